// SPDX-License-Identifier: Apache-2.0
// grouped-query-attention: groups of query heads share one key and value head each, so the cache is Hq/Hkv times smaller.
//
// Paper    Ainslie et al. 2023, "GQA", arXiv:2305.13245
// Formula  o_h = softmax(scale q_h k_g^T) v_g with g = floor(h Hkv / Hq)
//          projected: q = x Wq^T, k = x Wk^T, v = x Wv^T, output = joined heads Wo^T; biases if asked for
// Cost     arithmetic of full attention; keys and values are read, and cached, Hkv times
// Differs  keys of a cache stand in front of the projected ones; the causal diagonal is bottom-right aligned

#include "grouped_heads.hpp"

namespace attend::ATTEND_ISA {
namespace {

using Options = GroupedOptions;
constexpr const char* name = "grouped-query-attention";

constexpr OptionRow option_table[] = {
    ATTEND_GROUPED_FRONT_OPTIONS,
    option_maybe_int(ATTEND_FIELD(kv_heads), {1, 65536},
                     "key and value heads Hkv, a divisor of Hq; default: heads, or as the tensors"),
    ATTEND_GROUPED_BACK_OPTIONS,
};

constexpr attend_port port_table[] = {
    common::query_or_tokens_port(),
    stored(common::key_port("form=core: B,Hkv,Nk,D")),
    stored(common::value_port("form=core: B,Hkv,Nk,Dv")),
    ATTEND_GROUPED_PORTS,
};

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    attend_status status = check_size(name, "heads", options.heads, desc.num_q_heads, error);
    if (status == ATTEND_OK) status = check_size(name, "kv_heads", options.kv_heads, desc.num_kv_heads, error);
    return status == ATTEND_OK ? check_past(desc, error) : status;
}

uint64_t workspace(const Options& options, const PlanArgs& args) { return grouped_workspace(options, *args.desc); }

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    if (is_projected(options.form)) return grouped_projected(options, args, context);
    TileCall call(args);
    return run_tiles(call, context);
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) { grouped_cost(options, *args.desc, cost); }

}  // namespace

ATTEND_MECHANISM(
    grouped_query,
    described<check, workspace, forward, cost>(
        {.name = name,
         .category = "multi-head",
         .title = "Grouped-query attention",
         .summary =
             "Several query heads share one key and value head: a smaller cache at nearly the quality of full heads.",
         .reference = "Ainslie et al. 2023, GQA, arXiv:2305.13245",
         .time = "O(n^2 d)",
         .space = "O(n d)",
         .formula = "query head h reads key and value head floor(h kv_heads / heads)\n"
                    "s_ij = scale q_i.k_j;  o_i = sum_j softmax_j(s_ij) v_j",
         .cost = "Time as dense attention; keys and values (and with them the cache) are smaller by heads / kv_heads. "
                 "Key heads are never repeated in memory.",
         .use = "For models trained with grouped heads (Llama 2 70B and later, Mistral), where decoding is bound by "
                "reading the cache. With one key head take multi-query-attention, with as many as query heads it "
                "equals standard-mha.",
         .example = "attend compute grouped-query-attention --sequence-length 256 --heads 8 --kv-heads 2 --causal"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
