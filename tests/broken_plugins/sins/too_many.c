/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: claims a million mechanisms. */
#define ZOO_COUNT 1000000u
#include "../base.h"
