/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: the entry throws. */
#define ATTEND_HOST_BUILD
#define ZOO_ENTRY hello ? throw 1 : &zoo_table
#include "../base.h"
