/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: an enumeration without choices. */
#define ZOO_OPTIONS {(uint32_t)sizeof(attend_option), ATTEND_TYPE_ENUM, 0u, 0u, "mode", "", "", NULL, NULL, 0.0, 0.0, 0.0, NULL, NULL}
#include "../base.h"
