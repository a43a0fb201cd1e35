/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: an option in capital letters. */
#define ZOO_OPTIONS ZOO_INT("Window", "4", 0.0, 8.0)
#include "../base.h"
