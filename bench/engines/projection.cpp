// SPDX-License-Identifier: Apache-2.0
// bench-projection: the linear layer of the toolkit as if it were a mechanism, so that benchmarks reach it as they reach
// everything else.
//
// Formula  y = x W^T; x is the query [1,1,N,E], W the key [1,1,O,E], y the output [1,1,N,O]
// Cost     2 N E O flops

#include "attend/author/projected.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    int64_t unused;
};

constexpr uint64_t float_types = ATTEND_F32 | ATTEND_BF16;
constexpr attend_port port_table[] = {
    input_port(ATTEND_Q, "query", "B,Hq,Nq,D", "x", 0, float_types),
    input_port(ATTEND_K, "key", "B,Hkv,Nk,D", "W", 0, float_types),
    output_port(ATTEND_OUT, "output", "B,Hq,Nq,Nk", "y", 0, float_types),
};

attend_status check(const Options&, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    if (desc.batch != 1 || desc.num_q_heads != 1 || desc.num_kv_heads != 1)
        return attend_fail(error, ATTEND_BAD_SHAPE, "bench-projection: takes one item and one head", "query");
    return ATTEND_OK;
}

// [1,1,rows,columns] as [1,rows,columns], or as [rows,columns].
struct Matrix {
    attend_tensor tensor;
    Matrix(const attend_tensor& four, int skipped) : tensor(four) {
        tensor.ndim = 4 - skipped;
        tensor.shape = four.shape + skipped;
        tensor.strides = four.strides + skipped;
    }
};

uint64_t workspace(const Options&, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    const attend_tensor *query = attend_find(&desc.bindings, ATTEND_Q), *key = attend_find(&desc.bindings, ATTEND_K),
                        *output = attend_find(&desc.bindings, ATTEND_OUT);
    if (!query || !key || !output)
        return projection_workspace(1, desc.q_len, desc.head_dim, desc.kv_len, desc.max_workers);
    const Matrix x(*query, 1), w(*key, 2), y(*output, 1);
    const attend_projection projection{&x.tensor, &w.tensor, nullptr, &y.tensor};
    return ATTEND_KERNEL(attend_projection_workspace)(&projection, desc.max_workers);
}

attend_status forward(const Options&, const ForwardArgs& args, const Context& context) {
    const Matrix x(*args.query, 1), w(*args.key, 2), y(*args.output, 1);
    return project(&x.tensor, &w.tensor, nullptr, &y.tensor, context);
}

void cost(const Options&, const PlanArgs& args, attend_cost& cost) {
    const auto n = static_cast<double>(args.desc->q_len), e = static_cast<double>(args.desc->head_dim),
               o = static_cast<double>(args.desc->kv_len);
    cost.flops = 2.0 * n * e * o;
    cost.bytes = 4.0 * (n * e + e * o + n * o);
}

}  // namespace

ATTEND_MECHANISM(bench_projection, {
                                       .name = "bench-projection",
                                       .category = "extra",
                                       .title = "Linear layer",
                                       .summary = "y = x W^T by the toolkit's engine, for benchmarks.",
                                       .reference = "",
                                       .time_complexity = "O(n e o)",
                                       .space_complexity = "O(n o)",
                                       .caps = ATTEND_CAP_CROSS | ATTEND_CAP_DETERMINISTIC | ATTEND_CAP_STRIDED_IO,
                                       .dtypes = float_types,
                                       .numerics = ATTEND_OWN_DEFINITION,
                                       .revision = 1,
                                       .options = nullptr,
                                       .option_count = 0,
                                       .options_size = 0,
                                       ATTEND_PORT_TABLE(port_table),
                                       .check = erased<check>,
                                       .workspace = erased<workspace>,
                                       .forward = erased<forward>,
                                       .cost = erased<cost>,
                                   })

}  // namespace attend::ATTEND_ISA
