/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: ports at a stride that is no multiple of 8. */
#define ZOO_PORT_STRIDE 60u
#include "../base.h"
