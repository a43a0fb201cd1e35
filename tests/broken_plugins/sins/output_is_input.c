/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: the output of the call is declared as an input. */
#define ZOO_PORTS ZOO_QUERY, ZOO_PORT(ATTEND_OUT, ATTEND_INPUT, "output", "B,Hq,Nq,D")
#include "../base.h"
