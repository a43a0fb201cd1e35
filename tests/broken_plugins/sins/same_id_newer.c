/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: has the id of another plugin in a higher version. */
#define ZOO_ID "org.zoo.good"
#define ZOO_VERSION "1.10.0"
#define ZOO_MECHANISM "zoo-second"
#include "../base.h"
