/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: a plugin id with capital letters. */
#define ZOO_ID "Org.Zoo"
#include "../base.h"
