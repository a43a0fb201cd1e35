/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: reads through NULL in mechanism_count. */
#define ZOO_IN_COUNT const uint32_t *volatile zoo_nowhere = NULL;\
    if (*zoo_nowhere) return 2;
#include "../base.h"
