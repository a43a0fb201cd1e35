/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: a mechanism without plan. */
#define ZOO_PLAN NULL
#include "../base.h"
