/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: installs a signal handler. */
#include <signal.h>
#define ZOO_IN_OPEN signal(SIGUSR1, SIG_IGN);
#include "../base.h"
