/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: lists the same mechanism twice. */
#define ZOO_COUNT 2u
#include "../base.h"
