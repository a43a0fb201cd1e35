/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: no output port. */
#define ZOO_PORTS ZOO_QUERY
#include "../base.h"
