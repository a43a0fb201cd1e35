/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: changes the file mask. */
#include <sys/stat.h>
#define ZOO_IN_OPEN umask(0);
#include "../base.h"
