/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: throws out of open. */
#include <stdexcept>
#define ATTEND_HOST_BUILD
#define ZOO_IN_OPEN \
    if (host != nullptr) throw std::runtime_error("out of open");
#include "../base.h"
