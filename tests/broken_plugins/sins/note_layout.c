/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: the note says 32-bit pointers. */
#define ZOO_NOTE_LAYOUT 0x04040104u
#include "../base.h"
