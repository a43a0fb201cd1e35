/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: the default is no JSON. */
#define ZOO_OPTIONS ZOO_INT("window", "four", 0.0, 8.0)
#include "../base.h"
