/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: the same option twice. */
#define ZOO_OPTIONS ZOO_INT("window", "4", 0.0, 8.0), ZOO_INT("window", "5", 0.0, 8.0)
#include "../base.h"
