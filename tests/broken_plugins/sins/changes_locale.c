/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: changes the locale. */
#include <locale.h>
#define ZOO_IN_OPEN setlocale(LC_ALL, "C.UTF-8");
#include "../base.h"
