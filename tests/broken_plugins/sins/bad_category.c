/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: a category that does not exist. */
#define ZOO_CATEGORY "fast"
#include "../base.h"
