/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: needs a host that does not exist yet. */
#define ATTEND_MIN_HOST_MINOR 7
#include "../base.h"
