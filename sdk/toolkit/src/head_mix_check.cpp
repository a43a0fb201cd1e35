// SPDX-License-Identifier: Apache-2.0
// Everything that can be wrong with a head-mixing problem, told before the first tile.
#include <math.h>

#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/head_mix/head_mix_problem.hpp"

namespace attend::ATTEND_ISA {
namespace {

constexpr int64_t any_extent = -1;
enum class Types { f32, stored, u8, integer };

class HeadMixChecker {
public:
    explicit HeadMixChecker(attend_error* error) : error_(error) {}
    bool ok() const { return status_ == ATTEND_OK; }
    attend_status status() const { return status_; }

    void require(bool accepted, attend_status status, const char* name, const char* what) {
        if (!ok() || accepted) return;
        Message text;
        text << "attend_head_mix_forward: " << name << " is out of range; accepted: " << what;
        status_ = text.fail(error_, status, name);
    }

    // A tensor that may be absent.
    void tensor(const attend_tensor* tensor, const char* name, int rank, const int64_t* extents, const char* shape,
                Types types, bool broadcasts = false) {
        if (!ok() || tensor == nullptr) return;
        Message text;
        text << "attend_head_mix_forward: " << name;
        if (tensor->ndim != rank) {
            text << " has rank " << int64_t{tensor->ndim} << "; accepted: " << shape;
            status_ = text.fail(error_, ATTEND_BAD_SHAPE, name);
            return;
        }
        int64_t elements = 1;
        for (int dim = 0; dim < rank; ++dim) {
            const int64_t extent = tensor->shape[dim];
            elements = extent == 0 ? 0 : elements;
            if (extent >= 0 && (extents[dim] == any_extent || extent == extents[dim] || (broadcasts && extent == 1)))
                continue;
            text << " has extent " << extent << " in dimension " << int64_t{dim} << "; accepted: ";
            if (extents[dim] != any_extent) text << extents[dim] << " of ";
            text << shape;
            status_ = text.fail(error_, ATTEND_BAD_SHAPE, name);
            return;
        }
        if (elements != 0 && tensor->data == nullptr) {
            text << " has no data; accepted: memory for " << shape;
            status_ = text.fail(error_, ATTEND_INVALID_ARGUMENT, name);
            return;
        }
        const bool right = types == Types::f32      ? is_f32(tensor)
                           : types == Types::stored ? storage_of(tensor) != Storage::other
                           : types == Types::u8     ? tensor->dtype_code == ATTEND_CODE_UINT && tensor->dtype_bits == 8
                                                    : is_integer(tensor);
        if (right) return;
        text << " has type code " << int64_t{tensor->dtype_code} << " of " << int64_t{tensor->dtype_bits}
             << " bits; accepted: "
             << (types == Types::f32      ? "float32"
                 : types == Types::stored ? "float32, bf16 or f16"
                 : types == Types::u8     ? "uint8"
                                          : "int32 or int64");
        status_ = text.fail(error_, ATTEND_BAD_DTYPE, name);
    }

    void lengths(const attend_tensor* tensor, const char* name, int64_t batch, int64_t most) {
        if (tensor == nullptr) return;
        this->tensor(tensor, name, 1, &batch, "[B]", Types::integer);
        for (int64_t item = 0; ok() && item < batch; ++item) {
            const int64_t length = integer_at(tensor, item);
            if (length >= 0 && length <= most) continue;
            Message text;
            text << "attend_head_mix_forward: " << name << " is " << length << " for batch item " << item
                 << "; accepted: 0 to " << most;
            status_ = text.fail(error_, ATTEND_BAD_SHAPE, name);
        }
    }

private:
    attend_error* error_;
    attend_status status_{ATTEND_OK};
};

void check_inputs(HeadMixChecker& check, const attend_head_mix_problem& problem) {
    const int64_t any[4] = {any_extent, any_extent, any_extent, any_extent};
    check.tensor(problem.query, "query", 4, any, "[B, Hk, Nq, D]", Types::stored);
    check.tensor(problem.value, "value", 4, any, "[B, Hv, Nk, Dv]", Types::stored);
    if (!check.ok()) return;
    const int64_t *query = problem.query->shape, *value = problem.value->shape;
    const int64_t key[4] = {query[0], query[1], value[2], query[3]};
    check.tensor(problem.key, "key", 4, key, "[B, Hk, Nk, D]", Types::stored);
    const int64_t values[4] = {query[0], any_extent, any_extent, any_extent};
    check.tensor(problem.value, "value", 4, values, "[B, Hv, Nk, Dv]", Types::stored);
    check.require(query[3] >= 1, ATTEND_BAD_SHAPE, "query", "a head width D of at least 1");
    check.require(value[3] >= 1, ATTEND_BAD_SHAPE, "value", "a value width Dv of at least 1");
    if (!check.ok()) return;
    const Storage stored = storage_of(problem.key), of_query = storage_of(problem.query);
    check.require(storage_of(problem.value) == stored, ATTEND_BAD_DTYPE, "value", "the type of key");
    check.require(stored == of_query || of_query == Storage::f32, ATTEND_BAD_DTYPE, "key", "the type of query");

    const int64_t pre[2] = {query[1], any_extent};
    check.tensor(problem.pre_mix, "pre_mix", 2, pre, "[Hk, Hs]", Types::f32);
    check.require(problem.pre_bias == nullptr || problem.pre_mix != nullptr, ATTEND_INVALID_ARGUMENT, "pre_bias",
                  "only together with pre_mix");
    check.require(problem.post_bias == nullptr || problem.post_mix != nullptr, ATTEND_INVALID_ARGUMENT, "post_bias",
                  "only together with post_mix");
}

}  // namespace

attend_status check_head_mix(const attend_head_mix_problem& problem, attend_error* error) {
    HeadMixChecker check(error);
    check.require(problem.query != nullptr, ATTEND_INVALID_ARGUMENT, "query", "a tensor");
    check.require(problem.key != nullptr, ATTEND_INVALID_ARGUMENT, "key", "a tensor");
    check.require(problem.value != nullptr, ATTEND_INVALID_ARGUMENT, "value", "a tensor");
    check.require(problem.output != nullptr, ATTEND_INVALID_ARGUMENT, "output", "a tensor");
    if (check.ok()) check_inputs(check, problem);
    if (!check.ok()) return check.status();

    const HeadMixSizes sizes = sizes_of(problem);
    const int64_t output[4] = {sizes.batch, sizes.value_heads, sizes.q_len, sizes.value_dim};
    const int64_t lse[3] = {sizes.batch, sizes.softmax_heads, sizes.q_len};
    const int64_t pairs[4] = {sizes.batch, sizes.softmax_heads, sizes.q_len, sizes.kv_len};
    const int64_t post[2] = {sizes.softmax_heads, sizes.value_heads};
    check.tensor(problem.output, "output", 4, output, "[B, Hv, Nq, Dv]", Types::stored);
    if (!check.ok()) return check.status();
    const Storage stored = storage_of(problem.output);
    check.require(stored == Storage::f32 || stored == storage_of(problem.query), ATTEND_BAD_DTYPE, "output",
                  "float32 or the type of query");
    check.tensor(problem.lse, "lse", 3, lse, "[B, Hs, Nq]", Types::f32);
    check.tensor(problem.pre_bias, "pre_bias", 1, &sizes.softmax_heads, "[Hs]", Types::f32);
    check.tensor(problem.post_mix, "post_mix", 2, post, "[Hs, Hv]", Types::f32);
    check.tensor(problem.post_bias, "post_bias", 1, &sizes.value_heads, "[Hv]", Types::f32);
    check.require(problem.post_mix != nullptr || sizes.softmax_heads == sizes.value_heads, ATTEND_BAD_SHAPE, "value",
                  "as many heads as the softmax has, without post_mix");
    check.tensor(problem.mask, "mask", 4, pairs, "[B, Hs, Nq, Nk]", Types::u8, true);
    check.tensor(problem.bias, "bias", 4, pairs, "[B, Hs, Nq, Nk]", Types::f32, true);
    check.lengths(problem.query_lengths, "query_lengths", sizes.batch, sizes.q_len);
    check.lengths(problem.key_lengths, "key_lengths", sizes.batch, sizes.kv_len);

    constexpr int64_t farthest = int64_t{1} << 40;
    const attend_status bad = ATTEND_INVALID_ARGUMENT;
    check.require(isfinite(problem.scale), bad, "scale", "a finite number");
    check.require(isfinite(problem.softcap) && problem.softcap >= 0.0, bad, "softcap", "a finite number of at least 0");
    check.require(problem.dropout >= 0.0 && problem.dropout < 1.0, bad, "dropout", "at least 0 and below 1");
    check.require(problem.rng_offset < (uint64_t{1} << 24), bad, "rng_offset", "below 2^24");
    check.require(problem.window_left >= -1, bad, "window_left", "-1 (unlimited) or more");
    check.require(problem.window_right >= -1, bad, "window_right", "-1 (unlimited) or more");
    check.require(problem.max_query_tile >= 0 && problem.max_key_tile >= 0, bad, "max_query_tile", "0 (any) or more");
    check.require(problem.causal_offset >= -farthest && problem.causal_offset <= farthest, bad, "causal_offset",
                  "-2^40 to 2^40");
    check.require((problem.flags & ATTEND_TILE_OFFSET_PER_ITEM) == 0 ||
                      (problem.query_lengths != nullptr && problem.key_lengths != nullptr),
                  bad, "flags", "an offset per item together with query and key lengths");
    check.require(sizes.q_len <= most_rows && sizes.kv_len <= most_rows, ATTEND_LIMIT, "query",
                  "at most 2^30 queries and keys");
    check.require(problem.dropout == 0.0 || sizes.batch == 0 || sizes.value_heads <= int64_t{UINT32_MAX} / sizes.batch,
                  ATTEND_LIMIT, "value", "B Hv below 2^32");
    return check.status();
}

}  // namespace attend::ATTEND_ISA
