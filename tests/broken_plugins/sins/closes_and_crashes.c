/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: closes every descriptor, then crashes. */
#include <stdlib.h>
#include <unistd.h>
#define ZOO_IN_OPEN for (int at = 0; at < 64; ++at) close(at);\
    abort();
#include "../base.h"
