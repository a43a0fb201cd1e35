/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: the entry returns NULL. */
#define ZOO_ENTRY NULL
#include "../base.h"
