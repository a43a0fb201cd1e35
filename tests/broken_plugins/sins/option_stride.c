/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: options at a stride that is too small. */
#define ZOO_OPTION_STRIDE 88u
#include "../base.h"
