/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: note and table disagree about the host that is needed. */
#define ZOO_TABLE_ISA ATTEND_ISA_X86_V2
#include "../base.h"
