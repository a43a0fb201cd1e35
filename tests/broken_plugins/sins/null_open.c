/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: a plugin without open. */
#define ZOO_OPEN NULL
#include "../base.h"
