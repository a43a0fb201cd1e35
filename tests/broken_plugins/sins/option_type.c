/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: an option of a type that does not exist. */
#define ZOO_OPTIONS {(uint32_t)sizeof(attend_option), 8u, 0u, 0u, "mode", "", "", NULL, NULL, 0.0, 0.0, 0.0, NULL, NULL}
#include "../base.h"
