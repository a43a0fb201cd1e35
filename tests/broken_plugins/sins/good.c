/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: none; the neighbour that must go on working. */
#include "../base.h"
