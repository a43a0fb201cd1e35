/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: the default lies outside its own range. */
#define ZOO_OPTIONS ZOO_INT("window", "9", 0.0, 8.0)
#include "../base.h"
