/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: says that it cannot run on this CPU. */
#include <stddef.h>
#define ZOO_SCORE zoo_score
#include "attend/plugin.h"
static int32_t zoo_score(const attend_cpu *cpu) {
    (void)cpu;
    return 0;
}
#include "../base.h"
