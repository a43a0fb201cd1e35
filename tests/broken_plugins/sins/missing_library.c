/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: needs a library that is removed after the link. */
extern int zoo_helper(void);
#define ZOO_IN_OPEN if (zoo_helper() != 7) return 1;
#include "../base.h"
