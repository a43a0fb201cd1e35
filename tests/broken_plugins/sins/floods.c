/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: writes without end to the descriptor of the verdict. */
#include <unistd.h>
#define ZOO_IN_OPEN while (write(3, "ok ok ok ok ok ok ok ok ok ok ok", 32) > 0) {}
#include "../base.h"
