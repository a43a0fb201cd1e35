/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: open returns an error with a text. */
#define ZOO_IN_OPEN if (host) return attend_fail(error, ATTEND_UNSUPPORTED, "needs a licence file", "licence");
#include "../base.h"
