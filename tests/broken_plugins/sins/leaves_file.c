/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: leaves a file open. */
#include <fcntl.h>
#define ZOO_IN_OPEN if (open("/dev/null", O_RDONLY) < 0) return 1;
#include "../base.h"
