/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: crashes when the process ends. */
#include <stdlib.h>
#include "../base.h"
__attribute__((destructor)) static void zoo_end(void) { abort(); }
