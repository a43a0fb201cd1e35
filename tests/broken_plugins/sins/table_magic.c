/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: the entry returns something that is no table. */
#define ZOO_MAGIC 7u
#include "../base.h"
