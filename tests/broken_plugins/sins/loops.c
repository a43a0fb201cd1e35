/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: never comes back from open. */
#define ZOO_IN_OPEN for (volatile unsigned at = 0;; ++at) {}
#include "../base.h"
