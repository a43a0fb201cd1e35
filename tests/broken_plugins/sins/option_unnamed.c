/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: an option without a name. */
#define ZOO_OPTIONS ZOO_INT(NULL, "4", 0.0, 8.0)
#include "../base.h"
