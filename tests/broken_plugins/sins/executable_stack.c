/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: asks for an executable stack. */
#include "../base.h"
