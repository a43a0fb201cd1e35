// SPDX-License-Identifier: Apache-2.0
// Spokes of star-attention on lists of keys, row by row: a ring of a few neighbours and a few hubs are less than what a tile
// of queries would read for its rows together. Hubs, which see everything, go to the tile engine by themselves.
#pragma once

#include "attend/author/gather.hpp"
#include "parts.hpp"

namespace attend::ATTEND_ISA {

// Hubs are the first keys; a spoke sees `radius` neighbours on each side, around the end if cyclic.
struct SpokeKeys {
    int64_t hubs, radius, kv_len;
    bool cyclic;

    static constexpr int64_t most = 24;  // beyond, tiles are faster

    // Keys of a list, no more than `most` + 1 where the ring is longer.
    int64_t count() const {
        const int64_t ring = radius > most ? most + 1 : 2 * radius + 1, listed = hubs > most ? most + 1 : ring + hubs;
        return Steps::least(listed, kv_len);
    }

    static int64_t of_row(const void* user, int64_t, int64_t, int64_t, int64_t position, int64_t, int32_t* list,
                          int32_t*) {
        const SpokeKeys& self = *static_cast<const SpokeKeys*>(user);
        if (position < self.hubs || position >= self.kv_len) return 0;
        int64_t listed = 0;
        const auto add = [&](int64_t begin, int64_t end) {
            for (int64_t j = begin < self.hubs ? self.hubs : begin; j < end && j < self.kv_len; ++j)
                list[listed++] = static_cast<int32_t>(j);
        };
        for (int64_t j = 0; j < self.hubs; ++j) list[listed++] = static_cast<int32_t>(j);
        const int64_t begin = position - self.radius, end = position + self.radius + 1,
                      spokes = self.kv_len - self.hubs;
        if (!self.cyclic) {
            add(begin, end);
        } else if (end - begin >= spokes) {
            add(self.hubs, self.kv_len);
        } else {
            if (end > self.kv_len) add(self.hubs, end - spokes);
            add(begin, end);
            if (begin < self.hubs) add(begin + spokes, self.kv_len);
        }
        return listed;
    }
};

inline attend_gather_problem spoke_lists(const SpokeKeys& keys) {
    attend_gather_problem lists{};
    lists.keys = SpokeKeys::of_row;
    lists.keys_user = &keys;
    lists.most_keys = keys.count();
    return lists;
}

inline uint64_t spoke_workspace(const SpokeKeys& keys, const attend_plan_desc& desc) {
    const uint64_t rows = gather_workspace(desc, spoke_lists(keys));
    attend_plan_desc of_hubs = desc;
    of_hubs.q_len = Steps::least(keys.hubs, desc.q_len);
    const uint64_t hubs = tile_workspace(of_hubs) + Carve::floats(2 * desc.batch);
    return rows > hubs ? rows : hubs;
}

// One offset for all items.
inline attend_status run_spokes(const TileCall& call, const SpokeKeys& keys, const attend_plan_desc& desc,
                                const Context& context) {
    attend_gather_problem spokes = spoke_lists(keys);
    spokes.call = &call.problem;
    const attend_status status = ATTEND_KERNEL(attend_gather_forward)(&spokes, &context);
    const int64_t rows = Steps::least(keys.hubs - call.problem.causal_offset, desc.q_len);
    if (status != ATTEND_OK || rows <= 0) return status;
    // The rows that stand on hubs are the first ones.
    attend_tile_problem hubs = call.problem;
    OwnTensor query, output, lse, mask, bias, lengths;
    const auto first_rows = [&](OwnTensor& own, const attend_tensor* whole) -> const attend_tensor* {
        if (whole == nullptr) return nullptr;
        own.tensor = *whole;
        for (int axis = 0; axis < whole->ndim; ++axis) {
            own.shape[axis] = whole->shape[axis];
            own.strides[axis] = whole->strides[axis];
        }
        own.shape[2] = rows;
        own.tensor.shape = own.shape;
        own.tensor.strides = own.strides;
        return &own.tensor;
    };
    hubs.query = first_rows(query, hubs.query);
    hubs.output = first_rows(output, hubs.output);
    hubs.lse = first_rows(lse, hubs.lse);
    hubs.mask = first_rows(mask, hubs.mask);
    hubs.bias = first_rows(bias, hubs.bias);
    Carve carve(context);
    if (hubs.query_lengths != nullptr) {
        auto* list = reinterpret_cast<int64_t*>(carve.take(2 * desc.batch));
        for (int64_t b = 0; b < desc.batch; ++b) list[b] = Steps::least(integer_at(hubs.query_lengths, b), rows);
        describe(lengths, nullptr, desc.batch, 1, 1, 1);
        lengths.tensor.ndim = 1;
        lengths.tensor.dtype_code = ATTEND_CODE_INT;
        lengths.tensor.dtype_bits = 64;
        lengths.tensor.data = list;
        hubs.query_lengths = &lengths.tensor;
    }
    const Context rest = carve.rest(context);
    return ATTEND_KERNEL(attend_tile_forward)(&hubs, &rest);
}

}  // namespace attend::ATTEND_ISA
