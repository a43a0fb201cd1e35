/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: numerics of no known kind. */
#define ZOO_NUMERICS 9u
#include "../base.h"
