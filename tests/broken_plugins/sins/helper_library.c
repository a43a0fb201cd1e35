/* SPDX-License-Identifier: Apache-2.0 */
/* The library that missing_library needs; the tests do not find it. */
int zoo_helper(void);
int zoo_helper(void) { return 7; }
