/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: the note says ABI 2. */
#define ZOO_NOTE_MAJOR 2
#include "../base.h"
