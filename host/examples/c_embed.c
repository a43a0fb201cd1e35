/* SPDX-License-Identifier: Apache-2.0 */
/* Attention in a C program: open a service, call two mechanisms, see what ran, read a routing report. */
#include <stdio.h>

#include "attend/attend.h"

enum { BATCH = 1, HEADS = 2, TOKENS = 16, WIDTH = 32 };

static int failed(const attend_error_text *error) {
    fprintf(stderr, "%s: %s\n", error->name, error->message);
    return 1;
}

int main(void) {
    attend_error_text error = {.struct_size = sizeof error};
    attend_service *service = NULL;
    if (attend_service_open(NULL, &service, &error) != ATTEND_E_NONE) return failed(&error);

    static float elements[BATCH * HEADS * TOKENS * WIDTH];
    for (int at = 0; at < BATCH * HEADS * TOKENS * WIDTH; ++at) elements[at] = (float)(at * at % 23) * 0.1f - 1.0f;
    const int64_t shape[] = {BATCH, HEADS, TOKENS, WIDTH};
    const attend_view view = {
        .struct_size = sizeof view, .dtype = ATTEND_DTYPE_F32, .data = elements, .shape = shape, .ndim = 4};
    /* Key and value are the query: self-attention. */
    const attend_named_tensor tensors[] = {{.struct_size = sizeof tensors[0], .name = "query", .view = &view}};
    attend_forward_request request = {
        .struct_size = sizeof request, .mechanism = "flash-attention-v2", .tensors = tensors, .num_tensors = 1};
    request.options_json = "{\"causal\": true}";

    attend_result *result = NULL;
    int status = 0;
    attend_view output = {.struct_size = sizeof output};
    if (attend_forward(service, &request, &result, &error) != ATTEND_E_NONE ||
        attend_result_view(result, "output", &output, &error) != ATTEND_E_NONE) {
        status = failed(&error);
    } else {
        printf("first output value: %g\n%s", (double)((const float *)output.data)[0], attend_result_record(result));
    }
    attend_result_free(result);

    if (status == 0) {
        request.mechanism = "switch-attention";
        request.options_json = "{\"return_routing\": true}";
        attend_view dropped = {.struct_size = sizeof dropped};
        if (attend_forward(service, &request, &result, &error) != ATTEND_E_NONE ||
            attend_result_view(result, "routing.query.dropped", &dropped, &error) != ATTEND_E_NONE) {
            status = failed(&error);
        } else {
            /* int32 [BATCH] */
            printf("%d of %d tokens found no room at their expert\n%s", (int)((const int32_t *)dropped.data)[0], TOKENS,
                   attend_result_record(result));
        }
        attend_result_free(result);
    }
    attend_service_close(service);
    return status;
}
