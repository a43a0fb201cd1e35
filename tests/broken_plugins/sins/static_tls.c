/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: uses static thread-local storage. */
static __thread __attribute__((tls_model("initial-exec"))) int zoo_counter;
#define ZOO_IN_OPEN if (++zoo_counter > 100) return 1;
#include "../base.h"
