/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: the least value is above the greatest. */
#define ZOO_OPTIONS ZOO_INT("window", "4", 8.0, 0.0)
#include "../base.h"
