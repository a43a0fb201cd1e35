/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: a mechanism whose struct_size is too small. */
#define ZOO_MECHANISM_SIZE 100
#include "../base.h"
