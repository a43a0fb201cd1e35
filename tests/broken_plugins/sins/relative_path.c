/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: looks for its libraries relative to itself. */
#include "../base.h"
