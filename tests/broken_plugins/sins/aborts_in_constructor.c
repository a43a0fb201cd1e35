/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: aborts while it is being loaded. */
#include <stdlib.h>
#include "../base.h"
__attribute__((constructor)) static void zoo_start(void) { abort(); }
