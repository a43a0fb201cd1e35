/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: sets a variable. */
#include <stdlib.h>
#define ZOO_IN_OPEN setenv("ZOO", "1", 1);
#include "../base.h"
