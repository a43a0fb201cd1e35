/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: a shape that is no shape. */
#define ZOO_PORTS ZOO_QUERY, ZOO_OUTPUT, ZOO_PORT(0u, ATTEND_INPUT, "table", "B,,(D")
#include "../base.h"
