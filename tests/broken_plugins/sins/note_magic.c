/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: the note has another magic. */
#define ZOO_NOTE_MAGIC 0x12345678u
#include "../base.h"
