/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: prints to standard output in open. */
#include <stdio.h>
#define ZOO_IN_OPEN puts("printed by a plugin");
#include "../base.h"
