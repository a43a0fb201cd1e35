// SPDX-License-Identifier: Apache-2.0
// A call of flash-decoding: where keys and values are, in which types, in how many parts, and the tile problem for it.
#pragma once

#include "attend/author/finite.hpp"
#include "attend/author/tile.hpp"
#include "attend/toolkit/core/key_store.hpp"
#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/tile/scores/alibi.hpp"
#include "attend/toolkit/tile/tile_problem.hpp"

namespace attend::ATTEND_ISA::decoding {

struct Options {
    int64_t num_splits, block_kv;
    int32_t pack_gqa, kv_dtype, validate;
};
enum Packing : int32_t { pack_auto, pack_yes, pack_no };
enum KvDtype : int32_t { kv_auto, kv_fp32, kv_fp16, kv_bf16, kv_int8, kv_e4m3 };
enum Validation : int32_t { validate_none, validate_shapes, validate_full };

// Keys and values of a call: tensors, or pages.
struct Kept {
    const attend_tensor *key, *value, *pages, *key_scale, *value_scale;
};
inline Kept kept_in(const attend_array& bindings) {
    Kept kept{attend_find_name(&bindings, "key_pages"), attend_find_name(&bindings, "value_pages"),
              attend_find_name(&bindings, "block_table"), attend_find_name(&bindings, "key_scale"),
              attend_find_name(&bindings, "value_scale")};
    if (kept.key == nullptr) kept.key = attend_find(&bindings, ATTEND_K);
    if (kept.value == nullptr) kept.value = attend_find(&bindings, ATTEND_V);
    return kept;
}

inline const char* type_name(decode::Element element) {
    using decode::Element;
    return element == Element::f32    ? "fp32"
           : element == Element::f16  ? "fp16"
           : element == Element::bf16 ? "bf16"
           : element == Element::i8   ? "int8"
                                      : "e4m3";
}

inline uint32_t rounding_of(const Options& options, const Kept& kept) {
    if (decode::element_of(*kept.key) != decode::Element::f32) return ATTEND_STORE_AS_IT_IS;
    return options.kv_dtype == kv_bf16   ? ATTEND_STORE_ROUND_BF16
           : options.kv_dtype == kv_fp16 ? ATTEND_STORE_ROUND_F16
                                         : ATTEND_STORE_AS_IT_IS;
}

// Types that do not go together, and scales that are missing or too many.
inline attend_status check_types(const Options& options, const attend_plan_desc& desc, const Kept& kept,
                                 attend_error* error) {
    using decode::Element;
    const attend_tensor* query = attend_find(&desc.bindings, ATTEND_Q);
    const Element element = decode::element_of(*kept.key), other = decode::element_of(*kept.value);
    const bool codes = decode::is_code(element);
    Message text;
    text << "flash-decoding: ";
    if (element != other) {
        text << "keys are " << type_name(element) << ", values " << type_name(other) << "; accepted: one type for both";
        return text.fail(error, ATTEND_BAD_DTYPE, "value");
    }
    if (!codes && query != nullptr) {
        const Element own = decode::element_of(*query);
        if (element != own && decode::bytes_of(element) >= decode::bytes_of(own)) {
            text << "keys are " << type_name(element) << ", queries " << type_name(own)
                 << "; accepted: the same, or narrower keys and values";
            return text.fail(error, ATTEND_BAD_DTYPE, "key");
        }
    }
    const char* const wanted[] = {"", "fp32", "fp16", "bf16", "int8", "e4m3"};
    const bool fits =
        options.kv_dtype == kv_auto ||
        (codes ? options.kv_dtype == (element == Element::i8 ? kv_int8 : kv_e4m3)
               : options.kv_dtype == kv_fp32 ||
                     (element == Element::f32 ? options.kv_dtype <= kv_bf16
                                              : options.kv_dtype == (element == Element::f16 ? kv_fp16 : kv_bf16)));
    if (!fits) {
        text << "option \"kv_dtype\" is " << wanted[options.kv_dtype] << ", keys and values are " << type_name(element)
             << "; accepted: " << (codes ? type_name(element) : "their own type, or a narrower one of floats");
        if (!codes) text << " (int8 and e4m3 need tensors of codes and their scales)";
        return text.fail(error, ATTEND_BAD_OPTION, "kv_dtype");
    }
    if (codes && (kept.key_scale == nullptr || kept.value_scale == nullptr)) {
        const char* missing = kept.key_scale == nullptr ? "key_scale" : "value_scale";
        text << "input \"" << missing << "\" is missing; accepted with codes (" << type_name(element)
             << "): key_scale and value_scale";
        return text.fail(error, ATTEND_BAD_SHAPE, missing);
    }
    if (!codes && (kept.key_scale != nullptr || kept.value_scale != nullptr)) {
        const char* given = kept.key_scale != nullptr ? "key_scale" : "value_scale";
        text << "input \"" << given << "\" is given with keys of type " << type_name(element)
             << "; accepted: scales with int8 and e4m3 codes alone";
        return text.fail(error, ATTEND_BAD_SHAPE, given);
    }
    return ATTEND_OK;
}

inline bool packs(const Options& options) { return options.pack_gqa != pack_no; }

// Parts of the keys. Workers count as this many whatever the machine has, so that results depend on sizes alone.
constexpr int64_t assumed_workers = 16;
constexpr int64_t rows_at_once = 8;  // of one key head
inline int64_t splits_for(const Options& options, const attend_plan_desc& desc) {
    if (options.num_splits > 0) return options.num_splits;
    const int64_t blocks = divide_up(desc.kv_len, options.block_kv);
    const int64_t rows = (packs(options) ? desc.num_q_heads / desc.num_kv_heads : 1) * desc.q_len;
    const int64_t heads = packs(options) ? desc.num_kv_heads : desc.num_q_heads;
    const int64_t tiles = desc.batch * heads * divide_up(rows, rows_at_once);
    if (10 * tiles >= 8 * assumed_workers || blocks <= 4 || tiles == 0) return 1;
    const int64_t most = lesser(assumed_workers, blocks);
    // How full the waves of tiles are that n parts make: w / ceil(w), w = tiles n / workers.
    const auto efficiency = [&](int64_t n) {
        const int64_t all = tiles * n;
        return static_cast<double>(all) / static_cast<double>(divide_up(all, assumed_workers) * assumed_workers);
    };
    double best = 0.0;
    for (int64_t n = 1; n <= most; ++n) best = efficiency(n) > best ? efficiency(n) : best;
    for (int64_t n = 1; n < most; ++n)
        if (efficiency(n) >= 0.85 * best) return n;
    return most;
}

inline void fill_store(attend_key_store& store, const Options& options, const attend_plan_desc& desc,
                       const Kept& kept) {
    store = attend_key_store{};
    store.pages = kept.pages;
    store.key_scale = kept.key_scale;
    store.value_scale = kept.value_scale;
    store.split_keys = options.block_kv;
    // Callers have one scale for each page, caches (author/key_cache.hpp) one for each key.
    store.scale_keys = kept.pages == nullptr || kept.key_scale == nullptr
                           ? options.block_kv
                           : divide_up(kept.key->shape[2], greater(kept.key_scale->shape[2], 1));
    store.splits = splits_for(options, desc);
    store.rounding = kept.key != nullptr ? rounding_of(options, kept) : ATTEND_STORE_AS_IT_IS;
}

// Every `step`-th head from the first on.
inline void take_heads(OwnTensor& own, const attend_tensor& from, int64_t first, int64_t step, int64_t heads) {
    int64_t shape[4] = {1, 1, 1, 1}, strides[4] = {0, 0, 0, 0};
    for (int axis = 0; axis < from.ndim; ++axis) shape[axis] = from.shape[axis], strides[axis] = from.strides[axis];
    const int64_t bytes = from.dtype_bits / 8;
    describe(own, from, {shape[0], heads, shape[2], shape[3]}, {strides[0], strides[1] * step, strides[2], strides[3]});
    own.tensor.ndim = from.ndim;
    if (from.data != nullptr) own.tensor.data = static_cast<char*>(from.data) + first * strides[1] * bytes;
}

inline uint64_t decoding_workspace(const Options& options, const attend_plan_desc& desc) {
    OwnTensor query, key, value, output;
    const int64_t heads = packs(options) ? desc.num_q_heads : desc.num_kv_heads;
    describe(query, nullptr, desc.batch, heads, desc.q_len, desc.head_dim);
    describe(key, nullptr, desc.batch, desc.num_kv_heads, desc.kv_len, desc.head_dim);
    describe(value, nullptr, desc.batch, desc.num_kv_heads, desc.kv_len, desc.value_dim);
    describe(output, nullptr, desc.batch, heads, desc.q_len, desc.value_dim);
    const struct {
        OwnTensor* own;
        const attend_tensor* bound;
    } types[] = {{&query, attend_find(&desc.bindings, ATTEND_Q)}, {&output, attend_find(&desc.bindings, ATTEND_OUT)}};
    for (const auto& entry : types)
        if (entry.bound != nullptr) {
            entry.own->tensor.dtype_code = entry.bound->dtype_code;
            entry.own->tensor.dtype_bits = entry.bound->dtype_bits;
        }
    const Kept kept = kept_in(desc.bindings);
    const bool bound = kept.key != nullptr && kept.value != nullptr;
    const attend_key_segment segment{bound ? kept.key : &key.tensor, bound ? kept.value : &value.tensor, 0, 0, nullptr};
    attend_key_store store;
    fill_store(store, options, desc, kept);
    attend_tile_problem problem{};
    problem.query = &query.tensor;
    problem.segments = &segment;
    problem.num_segments = 1;
    problem.output = &output.tensor;
    problem.store = &store;
    return ATTEND_KERNEL(attend_tile_workspace)(&problem, desc.max_workers);
}

inline attend_status not_finite(const Context& context, const char* what) {
    return (Message() << "flash-decoding: " << what << "; accepted with validate=full: finite numbers")
        .fail(context.error, ATTEND_NUMERIC, "validate");
}

// NaN and infinity in what the call reads: rows behind an item's length are not.
inline attend_status check_finite(const ForwardArgs& args, const Kept& kept, const attend_key_store& store,
                                  const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    if (!all_finite(args.query, false)) return not_finite(context, "query holds NaN or infinity");
    if (!all_finite(args.bias, true)) return not_finite(context, "bias holds NaN or plus infinity");
    const struct {
        const attend_tensor *tensor, *scale;
        const char *text, *scale_text;
    } sides[] = {
        {kept.key, kept.key_scale, "key holds NaN or infinity", "key_scale is not finite and above 0"},
        {kept.value, kept.value_scale, "value holds NaN or infinity", "value_scale is not finite and above 0"}};
    for (const auto& side : sides)
        for (int64_t item = 0; item < desc.batch; ++item) {
            const int64_t keys = args.key_lengths != nullptr ? integer_at(args.key_lengths, item) : desc.kv_len;
            for (int64_t head = 0; head < desc.num_kv_heads; ++head) {
                const StoredRows rows(*side.tensor, &store, side.scale, item, head);
                const decode::Element element = decode::element_of(*side.tensor);
                const int64_t width = side.tensor->shape[3], step = side.tensor->strides[3];
                for (int64_t row = 0; row < keys; ++row) {
                    if (side.scale != nullptr) {
                        const float scale = rows.scale_of(row);
                        if (!(scale > 0.0f && scale - scale == 0.0f)) return not_finite(context, side.scale_text);
                    }
                    const char* from = rows.at(row);
                    for (int64_t t = 0; t < width; ++t) {
                        const float x = decode::element_at(from, t * step, element);
                        if (x - x != 0.0f) return not_finite(context, side.text);
                    }
                }
            }
        }
    return ATTEND_OK;
}

// Pages that the call reads, before anything does.
inline attend_status check_pages(const ForwardArgs& args, const Kept& kept, const Context& context) {
    const int64_t page = kept.key->shape[2], pages = kept.key->shape[0];
    const attend_tensor& table = *kept.pages;
    for (int64_t item = 0; item < args.desc->batch; ++item) {
        const int64_t keys = integer_at(args.key_lengths, item);
        for (int64_t at = 0; at * page < keys; ++at) {
            const int64_t entry =
                static_cast<const int32_t*>(table.data)[item * table.strides[0] + at * table.strides[1]];
            if (entry >= 0 && entry < pages) continue;
            return (Message() << "flash-decoding: block_table[" << item << ", " << at << "] is " << entry
                              << "; accepted: 0 to " << pages - 1 << ", a page that is there")
                .fail(context.error, ATTEND_BAD_SHAPE, "block_table");
        }
    }
    return ATTEND_OK;
}

inline attend_status run_decoding(const Options& options, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    const Kept kept = kept_in(*args.bindings);
    attend_key_store store;
    fill_store(store, options, desc, kept);
    if (kept.pages != nullptr)
        if (const attend_status status = check_pages(args, kept, context)) return status;
    const attend_tensor* slopes = attend_find_name(args.bindings, "alibi_slopes");
    if (!all_finite(slopes, false))
        return attend_fail(context.error, ATTEND_NUMERIC,
                           "input \"alibi_slopes\" holds a value that is not finite; accepted: finite slopes",
                           "alibi_slopes");
    if (options.validate == validate_full)
        if (const attend_status status = check_finite(args, kept, store, context)) return status;

    TileCall call(args, args.query, kept.key, kept.value, args.output);
    attend_tile_problem& problem = call.problem;
    problem.store = &store;
    // A cache has no padding in front: lengths move the queries, one of the two alone as well.
    const attend_value *offset = attend_find_option(args.values, "causal_offset"),
                       *alignment = attend_find_option(args.values, "causal_alignment");
    const bool placed = (offset != nullptr && offset->type != 0) ||
                        (alignment != nullptr && alignment->type != 0 && alignment->u.i == 1);
    problem.flags &= ~ATTEND_TILE_OFFSET_PER_ITEM;
    if (!placed && (args.key_lengths != nullptr || args.query_lengths != nullptr))
        problem.flags |= ATTEND_TILE_OFFSET_PER_ITEM;
    AlibiSlopes alibi{};
    if (slopes != nullptr) {
        alibi.slopes = static_cast<const float*>(slopes->data);
        alibi.batch_stride = slopes->ndim == 2 ? slopes->strides[0] : 0;
        alibi.head_stride = slopes->strides[slopes->ndim - 1];
        use_scores(problem, alibi);
    }
    const int64_t group = desc.num_q_heads / desc.num_kv_heads;
    if (packs(options) || group == 1) return run_tiles(call, context);
    // One query head of every key head at a time.
    const attend_tile_problem whole = problem;
    OwnTensor query, output, lse, mask, bias;
    for (int64_t member = 0; member < group; ++member) {
        const struct {
            const attend_tensor* from;
            OwnTensor* own;
            const attend_tensor** to;
        } tensors[] = {{whole.query, &query, &problem.query},
                       {whole.output, &output, &problem.output},
                       {whole.lse, &lse, &problem.lse},
                       {whole.mask, &mask, &problem.mask},
                       {whole.bias, &bias, &problem.bias}};
        for (const auto& tensor : tensors) {
            if (tensor.from == nullptr) continue;
            take_heads(*tensor.own, *tensor.from, member, group, desc.num_kv_heads);
            *tensor.to = &tensor.own->tensor;
        }
        if (slopes != nullptr) {
            alibi.slopes = static_cast<const float*>(slopes->data) + member * slopes->strides[slopes->ndim - 1];
            alibi.head_stride = group * slopes->strides[slopes->ndim - 1];
        }
        if (const attend_status status = run_tiles(call, context)) return status;
    }
    return ATTEND_OK;
}

}  // namespace attend::ATTEND_ISA::decoding
