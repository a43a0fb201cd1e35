/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: exports a symbol, but not the entry. */
#define ZOO_NO_ENTRY
#include "../base.h"
