/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: calls a function that exists nowhere. */
extern int zoo_exists_nowhere(void);
#define ZOO_IN_OPEN if (zoo_exists_nowhere()) return 1;
#include "../base.h"
