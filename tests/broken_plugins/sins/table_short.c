/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: the table is shorter than that of ABI 1.0. */
#define ZOO_PLUGIN_SIZE 96
#include "../base.h"
