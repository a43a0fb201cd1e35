/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: a mechanism is NULL. */
#define ZOO_AT NULL
#include "../base.h"
