/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: the table says another data layout. */
#define ZOO_TABLE_LAYOUT 0x04040104u
#include "../base.h"
