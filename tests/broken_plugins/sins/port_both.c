/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: a port that is input and output. */
#define ZOO_PORTS ZOO_QUERY, ZOO_PORT(ATTEND_OUT, ATTEND_INPUT | ATTEND_OUTPUT, "output", "B,Hq,Nq,D")
#include "../base.h"
