/* SPDX-License-Identifier: Apache-2.0 */
/* Sin: a key pattern of rows that nobody asked for, seen only when somebody asks for it. */
#include "attend/plugin.h"

static attend_status stray_visit(const attend_lib *lib, const attend_plan_desc *desc, int64_t head, int64_t first_row,
                                 int64_t num_rows, int64_t rows_at_once, attend_pattern_visit_fn visit, void *visitor,
                                 attend_error *error) {
    const attend_pattern_keys keys = { 0, desc->kv_len, 1, 0u, 0u };
    (void)lib, (void)head, (void)rows_at_once, (void)error;
    visit(visitor, first_row, num_rows + 1, &keys);
    return ATTEND_OK;
}
static const attend_pattern_extension stray_extension = { (uint32_t)sizeof(attend_pattern_extension), 0u, stray_visit };
static const void *stray_get(const attend_lib *lib, const char *id) {
    (void)lib;
    return attend_text_equal(id, ATTEND_EXT_PATTERN) ? &stray_extension : NULL;
}
#define ZOO_EXTENSION stray_get
#include "../base.h"
