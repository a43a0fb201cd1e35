/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: leaves a thread behind. */
#include <pthread.h>
#include <unistd.h>

static void *zoo_sleep(void *unused) {
    for (;;) sleep(1);
    return unused;
}
#define ZOO_IN_OPEN pthread_t zoo_thread;\
    if (pthread_create(&zoo_thread, NULL, zoo_sleep, NULL)) return 1;
#include "../base.h"
