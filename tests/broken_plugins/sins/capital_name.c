/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: a mechanism name with capital letters. */
#define ZOO_MECHANISM "Zoo-Attention"
#include "../base.h"
