/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: needs an instruction set of another processor family. */
#define ATTEND_REQUIRED_ISA ATTEND_ISA_SVE
#include "../base.h"
