/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: a role that does not exist. */
#define ZOO_PORTS ZOO_QUERY, ZOO_OUTPUT, ZOO_PORT(13u, ATTEND_INPUT, "table", "D")
#include "../base.h"
