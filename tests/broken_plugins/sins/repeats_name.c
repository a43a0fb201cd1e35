/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: repeats the short name of a built-in mechanism. */
#define ZOO_MECHANISM "flash-attention-v2"
#include "../base.h"
