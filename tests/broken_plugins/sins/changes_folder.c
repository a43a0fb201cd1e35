/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: changes the working folder. */
#include <unistd.h>
#define ZOO_IN_OPEN if (chdir("/")) return 1;
#include "../base.h"
