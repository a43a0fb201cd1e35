// SPDX-License-Identifier: Apache-2.0
// multi-query-attention: one key and value head for all query heads.
//
// Paper    Shazeer 2019, "Fast Transformer Decoding: One Write-Head is All You Need", arXiv:1911.02150
// Formula  o_h = softmax(scale q_h k^T) v
//          projected: q = x Wq^T, k = x Wk^T, v = x Wv^T with one head each, output = joined heads Wo^T
// Cost     arithmetic of full attention; a decode step reads keys and values once for all heads
// Differs  keys and values may lack the axis of heads ([B,Nk,D])

#include "grouped_heads.hpp"

namespace attend::ATTEND_ISA {
namespace {

using Options = GroupedOptions;
constexpr const char* name = "multi-query-attention";

constexpr OptionRow option_table[] = {
    ATTEND_GROUPED_FRONT_OPTIONS,
    option_row(ATTEND_TYPE_INT, 0, "kv_heads", "1", {1, 65536}, nullptr, "key and value heads: always 1",
               Field::optional_integer, offsetof(Options, kv_heads), nullptr),
    ATTEND_GROUPED_BACK_OPTIONS,
};

constexpr attend_port port_table[] = {
    common::query_or_tokens_port(),
    stored(common::key_port("form=core: B,Hkv,Nk,D | form=core: B,Nk,D", "keys, one head; absent: query")),
    stored(common::value_port("form=core: B,Hkv,Nk,Dv | form=core: B,Nk,Dv", "values, one head; absent: key")),
    ATTEND_GROUPED_PORTS,
};

// The plan's sizes with the one key head, which tensors without an axis of heads do not tell.
attend_plan_desc sizes(const attend_plan_desc& given) {
    attend_plan_desc desc = given;
    desc.num_kv_heads = 1;
    return desc;
}

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    const attend_tensor *key = attend_find(&desc.bindings, ATTEND_K), *value = attend_find(&desc.bindings, ATTEND_V);
    if (key && value && key->ndim != value->ndim)
        return (Message() << name << ": key has rank " << int64_t{key->ndim} << ", value has rank "
                          << int64_t{value->ndim} << "; accepted: both [B,1,Nk,D] or both [B,Nk,D]")
            .fail(error, ATTEND_BAD_SHAPE, "value");
    attend_status status = check_size(name, "heads", options.heads, desc.num_q_heads, error);
    if (status == ATTEND_OK && options.kv_heads.given && options.kv_heads.value != 1)
        return (Message() << name << ": option \"kv_heads\" is " << options.kv_heads.value << "; accepted: 1")
            .fail(error, ATTEND_BAD_OPTION, "kv_heads");
    if (status == ATTEND_OK && desc.num_kv_heads != 1 && !(key && key->ndim == 3))
        return (Message() << name << ": key and value have " << desc.num_kv_heads
                          << " heads; accepted: 1 (all query heads share it)")
            .fail(error, ATTEND_BAD_SHAPE, "key");
    return status == ATTEND_OK ? check_past(desc, error) : status;
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    return grouped_workspace(options, sizes(*args.desc));
}

// [B,Nk,D] as [B,1,Nk,D].
const attend_tensor* with_head(OwnTensor& own, const attend_tensor* given) {
    if (given->ndim == 4) return given;
    describe(own, *given, {given->shape[0], 1, given->shape[1], given->shape[2]},
             {given->strides[0], 0, given->strides[1], given->strides[2]});
    return &own.tensor;
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    if (is_projected(options.form)) return grouped_projected(options, args, context);
    OwnTensor key, value;
    TileCall call(args, args.query, with_head(key, args.key), with_head(value, args.value), args.output);
    return run_tiles(call, context);
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    grouped_cost(options, sizes(*args.desc), cost);
}

}  // namespace

ATTEND_MECHANISM(
    multi_query,
    described<check, workspace, forward, cost>(
        {.name = name,
         .category = "multi-head",
         .title = "Multi-query attention",
         .summary = "All query heads share one key and value head: the smallest cache, the fastest decoding.",
         .reference = "Shazeer 2019, Fast Transformer Decoding, arXiv:1911.02150",
         .time = "O(n^2 d)",
         .space = "O(n d)",
         .caps = (softmax_caps | position_caps) & ~ATTEND_CAP_GQA,
         .formula = "all query heads read one key head and one value head\n"
                    "s_ij = scale q_i.k_j;  o_i = sum_j softmax_j(s_ij) v_j",
         .cost = "Time as dense attention; the cache is smaller by the number of heads, and a decoding step reads it "
                 "once for all heads.",
         .use = "For models trained with one key head (PaLM, Falcon 7B), when decoding speed or cache size matters "
                "most. grouped-query-attention keeps more quality for a larger cache.",
         .example = "attend compute multi-query-attention --sequence-length 256 --heads 8 --kv-heads 1"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
