/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: the same port twice. */
#define ZOO_PORTS ZOO_QUERY, ZOO_QUERY, ZOO_OUTPUT
#include "../base.h"
