// SPDX-License-Identifier: Apache-2.0
// What the members of the flash family share: options and ports of exact attention in tiles, their checks, and the tile
// problem with ALiBi and block patterns.
#pragma once

#include "attend/author/finite.hpp"
#include "attend/author/tile.hpp"
#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/tile/keys/block_pattern.hpp"
#include "attend/toolkit/tile/scores/alibi.hpp"

namespace attend::ATTEND_ISA {

// Stands as member `flash` in the Options of a mechanism.
struct FlashOptions {
    int64_t heads, dim, block_size, block_size_q, block_size_kv;
    OptionalInt kv_heads, pattern_block_q, pattern_block_k;
    int32_t validate;

    int64_t query_side() const { return block_size_q > 0 ? block_size_q : block_size; }
    int64_t key_side() const { return block_size_kv > 0 ? block_size_kv : block_size; }
};

inline constexpr const char* flash_validations[] = {"none", "shapes", "full", nullptr};
inline constexpr Range flash_block_range{0, 4096};

#define ATTEND_FLASH_FIELD(field) offsetof(Options, flash.field), #field
#define ATTEND_FLASH_OPTIONS                                                                                           \
    option_int(ATTEND_FLASH_FIELD(heads), "8", {1, 1048576},                                                           \
               "heads of a packed [B,N,H*D] tensor; otherwise it must equal the tensor's"),                            \
        option_maybe_int(ATTEND_FLASH_FIELD(kv_heads), {1, 1048576}, "key heads, a divisor of heads; default: heads"), \
        option_int(ATTEND_FLASH_FIELD(dim), "64", {1, 1024},                                                           \
                   "head width of benchmark inputs; if given with tensors it must equal D"),                           \
        option_int(ATTEND_FLASH_FIELD(block_size), "256", flash_block_range,                                           \
                   "upper bound of both tile sides, 16 to 4096; 0: chosen"),                                           \
        option_int(ATTEND_FLASH_FIELD(block_size_q), "0", flash_block_range,                                           \
                   "upper bound of the query side; 0: from block_size"),                                               \
        option_int(ATTEND_FLASH_FIELD(block_size_kv), "0", flash_block_range,                                          \
                   "upper bound of the key side; 0: from block_size"),                                                 \
        ATTEND_VISIBILITY_OPTIONS(""), ATTEND_SCORE_OPTIONS, ATTEND_WINDOW_OPTIONS, ATTEND_DROPOUT_OPTIONS,            \
        option_maybe_int(ATTEND_FLASH_FIELD(pattern_block_q), {1, 2147483647.0},                                       \
                         "queries of one entry of block_pattern", "block_pattern"),                                    \
        option_maybe_int(ATTEND_FLASH_FIELD(pattern_block_k), {1, 2147483647.0}, "keys of one entry of block_pattern", \
                         "block_pattern"),                                                                             \
        common::resolved(ATTEND_TYPE_BOOL, "return_lse", "false", {0, 1},                                              \
                         "return the log of the sum of exponentials too"),                                             \
        common::resolved(ATTEND_TYPE_BOOL, "deterministic", "true", {0, 1},                                            \
                         "same bits for any number of threads; this engine always keeps that"),                        \
        option_enum(ATTEND_FLASH_FIELD(validate), "\"shapes\"", flash_validations,                                     \
                    "full: refuse NaN and infinity in the inputs as well")

#define ATTEND_FLASH_PORTS                                                                                           \
    stored(common::query_port()), stored(common::key_port()), stored(common::value_port()), ATTEND_MASK_PORTS,       \
        input_port(0, "alibi_slopes", "Hq | B,Hq", "ALiBi slope m of each head: scores lose m |i' - j|",             \
                   ATTEND_OPTIONAL),                                                                                 \
        input_port(                                                                                                  \
            0, "block_pattern", "pattern_items,pattern_heads,pattern_rows,pattern_columns",                          \
            "non-zero: the block of pattern_block_q queries and pattern_block_k keys may attend; [1 or B, 1 or Hq, " \
            "blocks, blocks]",                                                                                       \
            ATTEND_OPTIONAL, ATTEND_U8),                                                                             \
        stored(output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result")), common::lse_port(), common::scores_port()

inline attend_status check_flash(const char* mechanism, const FlashOptions& options, const PlanArgs& args,
                                 attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    // Sizes that were given must be those of the tensors.
    const struct {
        const char* name;
        bool given;
        int64_t value, size;
    } sizes[] = {{"heads", was_given(*args.values, "heads"), options.heads, desc.num_q_heads},
                 {"kv_heads", options.kv_heads.given != 0, options.kv_heads.value, desc.num_kv_heads},
                 {"dim", was_given(*args.values, "dim"), options.dim, desc.head_dim}};
    for (const auto& size : sizes)
        if (size.given && size.value != size.size)
            return (Message() << mechanism << ": option \"" << size.name << "\" is " << size.value
                              << "; accepted: " << size.size << " (that of the tensors)")
                .fail(error, ATTEND_BAD_OPTION, size.name);
    const struct {
        const char* name;
        int64_t value;
    } blocks[] = {{"block_size", options.block_size},
                  {"block_size_q", options.block_size_q},
                  {"block_size_kv", options.block_size_kv}};
    for (const auto& block : blocks)
        if (block.value > 0 && block.value < 16)
            return (Message() << mechanism << ": option \"" << block.name << "\" is " << block.value
                              << "; accepted: 0, or 16 to 4096")
                .fail(error, ATTEND_BAD_OPTION, block.name);
    const attend_tensor* pattern = attend_find_name(&desc.bindings, "block_pattern");
    if (!pattern) return ATTEND_OK;
    if (!options.pattern_block_q.given || !options.pattern_block_k.given)
        return attend_fail(error, ATTEND_BAD_OPTION,
                           "input \"block_pattern\" needs the options pattern_block_q and pattern_block_k",
                           "pattern_block_q");
    const int64_t bq = options.pattern_block_q.value, bk = options.pattern_block_k.value;
    const bool fits = (pattern->shape[0] == 1 || pattern->shape[0] == desc.batch) &&
                      (pattern->shape[1] == 1 || pattern->shape[1] == desc.num_q_heads) &&
                      pattern->shape[2] == (desc.q_len + bq - 1) / bq &&
                      pattern->shape[3] == (desc.kv_len + bk - 1) / bk;
    if (!fits)
        return attend_fail(error, ATTEND_BAD_SHAPE,
                           "input \"block_pattern\" does not fit; accepted: [1 or B, 1 or Hq, "
                           "ceil(Nq/pattern_block_q), ceil(Nk/pattern_block_k)]",
                           "block_pattern");
    return ATTEND_OK;
}

// A call's tile problem and what its hooks read. Must not move once filled.
struct FlashCall {
    TileCall tile;
    AlibiSlopes alibi{};
    BlockPattern blocks{};

    explicit FlashCall(const ForwardArgs& args) : tile(args) {}

    attend_status fill(const FlashOptions& options, const ForwardArgs& args, const Context& context) {
        const attend_tensor* slopes = attend_find_name(args.bindings, "alibi_slopes");
        const attend_tensor* pattern = attend_find_name(args.bindings, "block_pattern");
        if (!all_finite(slopes, false))
            return attend_fail(context.error, ATTEND_NUMERIC,
                               "input \"alibi_slopes\" holds a value that is not finite; accepted: finite slopes",
                               "alibi_slopes");
        if (options.validate == 2) {
            const attend_status finite = check_finite(args, context);
            if (finite != ATTEND_OK) return finite;
        }
        attend_tile_problem& problem = tile.problem;
        problem.max_query_tile = options.query_side();
        problem.max_key_tile = options.key_side();
        if (slopes) {
            alibi.slopes = static_cast<const float*>(slopes->data);
            alibi.batch_stride = slopes->ndim == 2 ? slopes->strides[0] : 0;
            alibi.head_stride = slopes->strides[slopes->ndim - 1];
            use_scores(problem, alibi);
        }
        if (pattern) {
            blocks = BlockPattern::of(*pattern, options.pattern_block_q.value, options.pattern_block_k.value);
            use_keys(problem, blocks);
        }
        return ATTEND_OK;
    }

private:
    static attend_status check_finite(const ForwardArgs& args, const Context& context) {
        const struct {
            const attend_tensor* tensor;
            const char* text;
            bool minus_infinity_ok;
        } inputs[] = {
            {args.query, "query holds NaN or infinity; accepted with validate=full: finite numbers", false},
            {args.key, "key holds NaN or infinity; accepted with validate=full: finite numbers", false},
            {args.value, "value holds NaN or infinity; accepted with validate=full: finite numbers", false},
            {args.bias,
             "bias holds NaN or plus infinity; accepted with validate=full: finite numbers and minus infinity", true}};
        for (const auto& input : inputs)
            if (!all_finite(input.tensor, input.minus_infinity_ok))
                return attend_fail(context.error, ATTEND_NUMERIC, input.text, "validate");
        return ATTEND_OK;
    }
};

inline uint64_t flash_workspace(const FlashOptions& options, const PlanArgs& args) {
    return tile_workspace(*args.desc, 0, options.query_side(), options.key_side());
}

}  // namespace attend::ATTEND_ISA
