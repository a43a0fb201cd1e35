/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: a port that is nothing. */
#define ZOO_PORTS ZOO_QUERY, ZOO_OUTPUT, ZOO_PORT(0u, 0u, "table", "D")
#include "../base.h"
