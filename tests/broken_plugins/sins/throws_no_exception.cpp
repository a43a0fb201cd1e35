/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: throws a number out of mechanism_count. */
#define ATTEND_HOST_BUILD
#define ZOO_IN_COUNT \
    if (lib != nullptr) throw 42;
#include "../base.h"
