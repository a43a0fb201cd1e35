/* SPDX-License-Identifier: Apache-2.0 */
/* The echo plugin, which claims that its output is exact softmax attention. */
#include <attend/plugin.h>

#undef ATTEND_OWN_DEFINITION
#define ATTEND_OWN_DEFINITION ATTEND_EXACT
#include "echo.c"
