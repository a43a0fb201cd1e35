/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: a port smaller than that of ABI 1.0. */
#define ZOO_PORT_SIZE 48u
#include "../base.h"
