/* SPDX-License-Identifier: Apache-2.0 */
/* One header and nothing else. */
#include ATTEND_HEADER
typedef int attend_not_empty;
