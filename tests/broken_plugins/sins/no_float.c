/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: does not take float32. */
#define ZOO_DTYPES ATTEND_F16
#include "../base.h"
