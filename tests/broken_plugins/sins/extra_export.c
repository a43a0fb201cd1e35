/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: exports a second symbol. */
#include "../base.h"
ATTEND_EXPORT_ATTRIBUTE int zoo_helper(void);
int zoo_helper(void) { return 1; }
