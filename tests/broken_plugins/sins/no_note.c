/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: carries no note, so that it is no plugin. */
#define ZOO_NO_NOTE
#include "../base.h"
