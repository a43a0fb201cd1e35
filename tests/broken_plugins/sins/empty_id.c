/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: an empty plugin id. */
#define ZOO_ID ""
#include "../base.h"
