/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: a text that is not UTF-8. */
#define ZOO_SUMMARY "caf\xE9 "
#include "../base.h"
