/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: has the id and version of another plugin. */
#define ZOO_ID "org.zoo.good"
#define ZOO_MECHANISM "zoo-second"
#include "../base.h"
