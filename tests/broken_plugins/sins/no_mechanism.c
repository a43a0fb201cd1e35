/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: lists no mechanism. */
#define ZOO_COUNT 0u
#include "../base.h"
