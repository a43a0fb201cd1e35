// SPDX-License-Identifier: Apache-2.0
// bidirectional-self-attention: every token sees every token that is no padding, as encoders read a whole text.
//
// Paper    Devlin et al. 2019, "BERT", arXiv:1810.04805
// Formula  softmax attention over the tokens of the same segment that are no padding
//          projected: q = x Wq^T + bq, k = x Wk^T + bk, v = x Wv^T + bv, output = joined heads Wo^T + bo
// Cost     O(N^2 D); packed segments O(sum of their squared lengths); memory O(N)
// Differs  a row that sees nothing is zero; padded queries stay rows like others unless zero_padded_queries asks

#include "attend/author/projected.hpp"
#include "token_keys.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    int32_t form, bias, causal, zero_padded_queries;
    OptionalInt heads;
};
constexpr const char* name = "bidirectional-self-attention";

constexpr OptionRow option_table[] = {
    common::form_option(offsetof(Options, form)),
    option_maybe_int(offsetof(Options, heads), "heads", {1, 65536}, "heads, required in the projected form; divides E",
                     "form=projected"),
    option_bool(offsetof(Options, zero_padded_queries), "zero_padded_queries", false,
                "queries that stand on a padded key become empty rows"),
    option_bool(offsetof(Options, bias), "bias", true, "biases of the projections", "form=projected"),
    option_bool(offsetof(Options, causal), "causal", false, "always false; true is refused"),
    common::causal_alignment(),
    common::causal_offset(),
    ATTEND_SCORE_OPTIONS,
    ATTEND_WINDOW_OPTIONS,
    ATTEND_DROPOUT_OPTIONS,
    common::weight_seed(),
};

constexpr attend_port port_table[] = {
    common::query_or_tokens_port(),
    stored(common::key_port("form=core: B,Hkv,Nk,D")),
    stored(common::value_port("form=core: B,Hkv,Nk,Dv")),
    common::past_key_port(),
    common::past_value_port(),
    ATTEND_MASK_PORTS,
    input_port(0, "padding_mask", "B,Nk", "non-zero: a token, zero: padding", ATTEND_OPTIONAL, ATTEND_U8),
    input_port(0, "segment_ids", "B,Nk", "tokens of one id see one another; below 0: hidden, and an empty row",
               ATTEND_OPTIONAL, length_types),
    input_port(0, "segment_offsets", "ends | B,ends", "segment s is the tokens offsets[s] to offsets[s+1]-1",
               ATTEND_OPTIONAL, length_types),
    weight_port("wq", "form=projected: E,E", "normal(0,0.02) as Wq", "query projection"),
    weight_port("wk", "form=projected: E,E", "normal(0,0.02) as Wk", "key projection"),
    weight_port("wv", "form=projected: E,E", "normal(0,0.02) as Wv", "value projection"),
    weight_port("wo", "form=projected: E,E", "normal(0,0.02) as Wo", "output projection"),
    weight_port("bq", "form=projected & bias: E", "zeros", "query bias"),
    weight_port("bk", "form=projected & bias: E", "zeros", "key bias"),
    weight_port("bv", "form=projected & bias: E", "zeros", "value bias"),
    weight_port("bo", "form=projected & bias: E", "zeros", "output bias"),
    common::output_or_tokens_port(),
    common::lse_port(),
    common::scores_port(),
};

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    if (options.causal)
        return attend_fail(error, ATTEND_BAD_OPTION,
                           "option \"causal\" is true; accepted: false (every token sees both sides)", "causal");
    const attend_tensor* past = attend_find_name(&desc.bindings, "past_key");
    const int64_t keys = desc.q_len + (past ? past->shape[2] : 0);
    if (is_projected(options.form) && desc.kv_len != keys)
        return (Message() << name << ": a padding mask or segments are given for " << desc.kv_len
                          << " keys; accepted: " << keys << " (cached and new tokens)")
            .fail(error, ATTEND_BAD_SHAPE, "padding_mask");
    const attend_tensor* offsets = attend_find_name(&desc.bindings, "segment_offsets");
    const bool ids = attend_find_name(&desc.bindings, "segment_ids") != nullptr;
    if (ids && offsets)
        return attend_fail(error, ATTEND_BAD_SHAPE,
                           "inputs \"segment_ids\" and \"segment_offsets\" are both given; accepted: one of them",
                           "segment_offsets");
    if ((ids || offsets) && desc.q_len != desc.kv_len)
        return (Message() << name << ": segments are given with " << desc.q_len << " queries and " << desc.kv_len
                          << " keys; accepted: as many queries as keys")
            .fail(error, ATTEND_BAD_SHAPE, ids ? "segment_ids" : "segment_offsets");
    if (offsets && offsets->shape[offsets->ndim - 1] < 1)
        return attend_fail(error, ATTEND_BAD_SHAPE, "input \"segment_offsets\" is empty; accepted: [S+1] or [B,S+1]",
                           "segment_offsets");
    return check_past(desc, error);
}

int64_t table_size(const attend_plan_desc& desc, const attend_array& bindings) {
    return token_table_size(
        desc, attend_find_name(&bindings, "padding_mask") != nullptr,
        attend_find_name(&bindings, "segment_ids") || attend_find_name(&bindings, "segment_offsets"));
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    return tile_workspace(desc) + Carve::floats(table_size(desc, desc.bindings)) + 1024 +
           (is_projected(options.form) ? projected_workspace(self_projection(desc), desc) : 0);
}

// What can be wrong with numbers that the call brings.
attend_status check_tokens(const ForwardArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    const attend_tensor* padding = attend_find_name(args.bindings, "padding_mask");
    for (int64_t item = 0; padding && args.key_lengths && item < desc.batch; ++item) {
        const int64_t length = integer_at(*args.key_lengths, item * args.key_lengths->strides[0]);
        for (int64_t j = 0; j < desc.kv_len; ++j) {
            const bool token =
                static_cast<const uint8_t*>(padding->data)[item * padding->strides[0] + j * padding->strides[1]] != 0;
            if (token != (j < length))
                return (Message() << name << ": padding_mask and key_lengths differ at item " << item << ", key " << j
                                  << "; accepted: one of them, or the same padding in both")
                    .fail(error, ATTEND_BAD_SHAPE, "padding_mask");
        }
    }
    const attend_tensor* offsets = attend_find_name(args.bindings, "segment_offsets");
    if (!offsets) return ATTEND_OK;
    const int64_t axis = offsets->ndim - 1, rows = offsets->ndim == 2 ? offsets->shape[0] : 1;
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t at = 0, before = 0; at < offsets->shape[axis]; ++at) {
            const int64_t now =
                integer_at(*offsets, (axis ? row * offsets->strides[0] : 0) + at * offsets->strides[axis]);
            if (now < before || now > desc.kv_len)
                return (Message() << name << ": segment_offsets has " << now << " at " << at << ", behind " << before
                                  << "; accepted: numbers from 0 to " << desc.kv_len << " that do not decrease")
                    .fail(error, ATTEND_BAD_SHAPE, "segment_offsets");
            before = now;
        }
    return ATTEND_OK;
}

attend_status attend_tokens(const Options& options, const ForwardArgs& args, TileCall& call, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    const attend_tensor *padding = attend_find_name(args.bindings, "padding_mask"),
                        *ids = attend_find_name(args.bindings, "segment_ids"),
                        *offsets = attend_find_name(args.bindings, "segment_offsets");
    if (!padding && !ids && !offsets && !(options.zero_padded_queries && args.key_lengths))
        return run_tiles(call, context);
    Carve carve(context);
    TokenKeys keys{};
    keys.num_keys = desc.kv_len;
    keys.hides_queries = options.zero_padded_queries;
    keys.lengths = options.zero_padded_queries ? args.key_lengths : nullptr;
    if (padding) read_padding(keys, *padding, desc, carve);
    if (ids)
        read_segments(keys, desc, carve, [&](int64_t item, int64_t j) {
            return integer_at(*ids, item * ids->strides[0] + j * ids->strides[1]);
        });
    if (offsets)
        read_segments(keys, desc, carve, [&](int64_t item, int64_t j) {
            const int64_t axis = offsets->ndim - 1, row = axis ? item * offsets->strides[0] : 0;
            int64_t low = 0, high = offsets->shape[axis];  // offsets at or below j
            while (low < high) {
                const int64_t middle = (low + high) / 2;
                if (integer_at(*offsets, row + middle * offsets->strides[axis]) <= j)
                    low = middle + 1;
                else
                    high = middle;
            }
            return low == 0 || low == offsets->shape[axis] ? int64_t{-1} : low - 1;
        });
    use_keys(call.problem, keys);
    return run_tiles(call, carve.rest(context));
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    if (const attend_status status = check_tokens(args, context.error)) return status;
    if (is_projected(options.form))
        return run_projected(self_projection(*args.desc), args, context, [&](TileCall& call, const Context& rest) {
            return attend_tokens(options, args, call, rest);
        });
    TileCall call(args);
    return attend_tokens(options, args, call, context);
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    softmax_cost(desc, visible_pairs(desc), cost);
    if (is_projected(options.form)) projected_cost(self_projection(desc), desc, cost);
}

}  // namespace

ATTEND_MECHANISM(
    bidirectional_self,
    described<check, workspace, forward, cost>(
        {.name = name,
         .category = "self-attention",
         .title = "Bidirectional self-attention",
         .summary = "Every token sees the whole text, padding and other packed texts excepted, as encoders read.",
         .reference = "Devlin et al. 2019, BERT, arXiv:1810.04805",
         .time = "O(n^2 d)",
         .space = "O(n d)",
         .caps = softmax_caps | ATTEND_CAP_WINDOW | ATTEND_CAP_DECODE},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
