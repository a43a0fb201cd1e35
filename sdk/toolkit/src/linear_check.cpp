// SPDX-License-Identifier: Apache-2.0
// Everything that can be wrong with a linear problem, told before the first chunk.
#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/linear/linear_problem.hpp"

namespace attend::ATTEND_ISA {
namespace {

constexpr int64_t any_extent = -1;
constexpr const char* place = "attend_linear_forward: ";

class Checker {
public:
    explicit Checker(attend_error* error) : error_(error) {}
    bool ok() const { return status_ == ATTEND_OK; }
    attend_status status() const { return status_; }

    void fail(attend_status status, const char* where, Message& text) {
        if (ok()) status_ = text.fail(error_, status, where);
    }
    void that(bool accepted, const char* name, const char* what, attend_status status = ATTEND_INVALID_ARGUMENT) {
        if (!ok() || accepted) return;
        Message text;
        text << place << name << " is not as it must be; accepted: " << what;
        fail(status, name, text);
    }

    // Extents of -1 are free; where `broadcasts` is set an extent of 1 stands for the whole.
    void tensor(const attend_tensor* tensor, const char* name, int rank, const int64_t* extents, const char* shape,
                bool broadcasts = false) {
        if (!ok()) return;
        Message text;
        text << place << name;
        if (tensor == nullptr || tensor->ndim != rank) {
            if (tensor == nullptr)
                text << " is missing; accepted: " << shape;
            else
                text << " has rank " << int64_t{tensor->ndim} << "; accepted: " << shape;
            return fail(ATTEND_BAD_SHAPE, name, text);
        }
        bool empty = false;
        for (int axis = 0; axis < rank; ++axis) {
            const int64_t extent = tensor->shape[axis];
            empty = empty || extent == 0;
            if (extent >= 0 && (extents[axis] == any_extent || extent == extents[axis] || (broadcasts && extent == 1)))
                continue;
            text << " has extent " << extent << " in dimension " << int64_t{axis} << "; accepted: ";
            if (extents[axis] != any_extent) text << extents[axis] << " of ";
            text << shape;
            return fail(ATTEND_BAD_SHAPE, name, text);
        }
        if (empty || tensor->data != nullptr) return;
        text << " has no data; accepted: memory for " << shape;
        fail(ATTEND_INVALID_ARGUMENT, name, text);
    }
    void f32(const attend_tensor* tensor, const char* name, int rank, const int64_t* extents, const char* shape,
             bool broadcasts = false) {
        this->tensor(tensor, name, rank, extents, shape, broadcasts);
        if (ok()) that(is_f32(tensor), name, "float32 elements", ATTEND_BAD_DTYPE);
    }
    void lengths(const attend_tensor* tensor, const char* name, int64_t batch, int64_t longest) {
        if (tensor == nullptr) return;
        this->tensor(tensor, name, 1, &batch, "[B]");
        if (ok()) that(is_integer(tensor), name, "int32 or int64 elements", ATTEND_BAD_DTYPE);
        for (int64_t item = 0; ok() && item < batch; ++item) {
            const int64_t length = integer_at(tensor, item);
            if (length >= 0 && length <= longest) continue;
            Message text;
            text << place << name << " is " << length << " for batch item " << item << "; accepted: 0 to " << longest;
            return fail(ATTEND_BAD_SHAPE, name, text);
        }
    }

private:
    attend_error* error_;
    attend_status status_{ATTEND_OK};
};

void check_map(Checker& check, const attend_linear_problem& problem) {
    const attend_feature_map& map = problem.features;
    const int64_t head_dim = problem.query->shape[3], kv_heads = problem.key->shape[1];
    check.that(map.kind >= ATTEND_FEATURES_ELU && map.kind <= ATTEND_FEATURES_ARCCOS, "features.kind", "1 to 10");
    check.that(map.kind != ATTEND_FEATURES_DPFP || (map.nu >= 1 && map.nu < 2 * head_dim), "features.nu",
               "1 to 2 D - 1");
    const bool wants =
        is_stabilised(map.kind) || map.kind == ATTEND_FEATURES_SINCOS || map.kind == ATTEND_FEATURES_ARCCOS;
    const bool takes = wants || map.kind == ATTEND_FEATURES_PROJECTED_RELU;
    check.that(map.projection != nullptr ? takes : !wants, "features.projection",
               "a matrix with kinds 4 to 6, 9 and 10, none with 1 to 3 and 8");
    if (map.projection != nullptr) {
        const int64_t extents[3] = {any_extent, any_extent, head_dim};
        check.f32(map.projection, "features.projection", 3, extents, "[1 or Hkv, M, D]");
        if (!check.ok()) return;
        const int64_t slots = map.projection->shape[0];
        check.that(slots == 1 || slots == kv_heads, "features.projection", "[1 or Hkv, M, D]", ATTEND_BAD_SHAPE);
        check.that(map.projection->shape[1] >= 1, "features.projection", "at least one row", ATTEND_BAD_SHAPE);
    }
    check.that(map.feature_eps >= 0.0 && map.kernel_eps >= 0.0, "features.feature_eps", "0 or more, as kernel_eps");
    check.that(map.query_scale - map.query_scale == 0.0 && map.key_scale - map.key_scale == 0.0, "features.query_scale",
               "finite numbers");
}

}  // namespace

attend_status check_linear_problem(const attend_linear_problem& problem, attend_error* error) {
    Checker check(error);
    const int64_t any[4] = {any_extent, any_extent, any_extent, any_extent};
    check.f32(problem.query, "query", 4, any, "[B, Hq, Nq, D]");
    if (!check.ok()) return check.status();
    const int64_t batch = problem.query->shape[0], q_heads = problem.query->shape[1], q_len = problem.query->shape[2],
                  head_dim = problem.query->shape[3];
    const int64_t key[4] = {batch, any_extent, any_extent, head_dim};
    check.f32(problem.key, "key", 4, key, "[B, Hkv, Nk, D]");
    if (!check.ok()) return check.status();
    const int64_t kv_heads = problem.key->shape[1], kv_len = problem.key->shape[2];
    const int64_t value[4] = {batch, kv_heads, kv_len, any_extent};
    check.f32(problem.value, "value", 4, value, "[B, Hkv, Nk, Dv]");
    if (!check.ok()) return check.status();
    const int64_t value_dim = problem.value->shape[3];
    check.that(kv_heads >= 1 ? q_heads % kv_heads == 0 : q_heads == 0, "query", "a multiple of the key heads",
               ATTEND_BAD_SHAPE);
    check.that(head_dim >= 1 && value_dim >= 1, "query", "D and Dv of at least 1", ATTEND_BAD_SHAPE);
    const int64_t output[4] = {batch, q_heads, q_len, value_dim}, pairs[4] = {batch, q_heads, 1, kv_len};
    check.f32(problem.output, "output", 4, output, "[B, Hq, Nq, Dv]");
    if (problem.lse != nullptr) check.f32(problem.lse, "lse", 3, output, "[B, Hq, Nq]");
    if (problem.mask != nullptr) {
        check.tensor(problem.mask, "mask", 4, pairs, "[B, Hq, 1, Nk], each 1 or whole", true);
        if (check.ok()) check.that(problem.mask->dtype_bits == 8, "mask", "uint8 elements", ATTEND_BAD_DTYPE);
    }
    if (problem.bias != nullptr) check.f32(problem.bias, "bias", 4, pairs, "[B, Hq, 1, Nk], each 1 or whole", true);
    check.lengths(problem.query_lengths, "query_lengths", batch, q_len);
    check.lengths(problem.key_lengths, "key_lengths", batch, kv_len);
    if (check.ok()) check_map(check, problem);
    const uint32_t flags = problem.flags;
    check.that((flags & ATTEND_LINEAR_OFFSET_PER_ITEM) == 0 ||
                   (problem.query_lengths != nullptr && problem.key_lengths != nullptr),
               "flags", "an offset per item together with query and key lengths");
    check.that(problem.guard >= ATTEND_GUARD_NONE && problem.guard <= ATTEND_GUARD_WEIGHT, "guard", "1 to 7");
    check.that(problem.guard != ATTEND_GUARD_WEIGHT || problem.guard_heads != nullptr, "guard_heads",
               "a number for each key head");
    if (problem.gates != nullptr) {
        const int64_t gates[3] = {batch, kv_heads, kv_len};
        check.f32(problem.gates, "gates", 3, gates, "[B, Hkv, Nk]");
        check.that((problem.flags & ATTEND_LINEAR_CAUSAL) != 0, "gates", "a causal call", ATTEND_UNSUPPORTED);
    }
    check.that(problem.guard_eps >= 0.0, "guard_eps", "0 or more");
    check.that(problem.chunk >= 0 && problem.chunk <= (int64_t{1} << 20), "chunk", "0 (the engine chooses) to 2^20");
    constexpr int64_t farthest = int64_t{1} << 53;
    check.that(problem.causal_offset >= -farthest && problem.causal_offset <= farthest, "causal_offset",
               "-2^53 to 2^53");
    const uint32_t kind = problem.features.kind;
    check.that(problem.lse == nullptr || (kind != ATTEND_FEATURES_TRIG && kind != ATTEND_FEATURES_SINCOS), "lse",
               "none with trigonometric features: they are signed", ATTEND_UNSUPPORTED);
    const bool streams = problem.initial != nullptr || problem.final != nullptr;
    const bool official = is_stabilised(problem.features.kind) && problem.features.official != 0;
    check.that(!streams || !official || (flags & ATTEND_LINEAR_CAUSAL) == 0, "initial",
               "no state with the official stabiliser of a causal call: it depends on all keys", ATTEND_UNSUPPORTED);
    return check.status();
}

}  // namespace attend::ATTEND_ISA
