// SPDX-License-Identifier: Apache-2.0
// A table of the ABI with a function that promises nothing (MAY_THROW), or one that does.
#include "attend/abi.h"

#if defined(MAY_THROW)
#define PROMISE
#else
#define PROMISE noexcept
#endif

static attend_status plan_info(const attend_plan*, attend_plan_info*) PROMISE { return ATTEND_OK; }

void fill(attend_mechanism& mechanism);
void fill(attend_mechanism& mechanism) {
    attend_mechanism table = attend_mechanism();
    attend_status (**place)(const attend_plan*, attend_plan_info*) ATTEND_NOEXCEPT = &table.plan_info;
    attend_status (*function)(const attend_plan*, attend_plan_info*) ATTEND_NOEXCEPT = plan_info;
    *place = function;
    mechanism = table;
}
