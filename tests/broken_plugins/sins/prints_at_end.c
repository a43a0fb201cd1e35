/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: prints when the process ends. */
#include <stdio.h>
#include "../base.h"
__attribute__((destructor)) static void zoo_end(void) { puts("printed at the end"); }
