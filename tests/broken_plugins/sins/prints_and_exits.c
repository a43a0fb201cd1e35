/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: prints and ends the process in open. */
#include <stdio.h>
#include <stdlib.h>
#define ZOO_IN_OPEN puts("printed by a plugin"), fflush(stdout), exit(0);
#include "../base.h"
