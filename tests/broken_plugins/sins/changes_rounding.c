/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: changes the rounding mode. */
#include <fenv.h>
#define ZOO_IN_OPEN fesetround(FE_UPWARD);
#include "../base.h"
