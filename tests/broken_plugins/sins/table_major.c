/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: the note says ABI 1, the table ABI 2. */
#define ZOO_TABLE_MAJOR 2
#include "../base.h"
