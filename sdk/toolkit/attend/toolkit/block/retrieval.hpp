// SPDX-License-Identifier: Apache-2.0
// Attention to the k best of M stored slots per query, mixed with a local part that has been computed before.
//
//   a_m = q . k_m, both divided by sqrt(sum of squares + 1e-6) if normalized, accumulated in double, rounded to float
//   T   = the k slots of largest a, ties to the smaller slot;  softmax of scale_h a_m over T, on the slots' values
//
// Scores of a tile of queries with a tile of keys are computed in float, and a query keeps the slots whose score, with
// the error that it may have, reaches the k-th best of the least that the others may be. Exact scores are computed for what
// is left in the end, and before where too many come too close. So the choice depends neither on the vector width nor on
// tiles.
#pragma once

#include <math.h>

#include "attend/toolkit/block/best_slots.hpp"
#include "attend/toolkit/block/gated_sum.hpp"
#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/core/rng.hpp"
#include "attend/toolkit/core/workspace.hpp"
#include "attend/toolkit/gemm/micro_kernel.hpp"
#include "attend/toolkit/simd/math.hpp"

namespace attend::ATTEND_ISA {

enum class Mix : int32_t { gate, joint, memory };

struct Retrieval {
    const attend_tensor* query;              // [B, Hq, Nq, D], float32, bf16 or f16
    const attend_tensor *key, *value;        // float32 [Bm, Hm, M, D], [Bm, Hm, M, Dv]
    const attend_tensor *lengths, *valid;    // int [Bm], uint8 [Bm, M]; at most one of them
    const attend_tensor *local, *local_lse;  // float32 [B, Hq, Nq, Dv], [B, Hq, Nq]; NULL for Mix::memory
    const attend_tensor *output, *lse;       // [B, Hq, Nq, Dv] stored; [B, Hq, Nq] or NULL
    const attend_tensor *indices, *weights;  // int32, float32 [B, Hq, Nq, k]
    const double *scale, *gate;              // of each query head
    Mix mix;
    bool normalize;
    int64_t top_k;  // 0: all
    double softcap, dropout;
    uint64_t seed, rng_offset;
    int64_t local_keys;  // dropout counts slots behind them
};

constexpr double norm_eps = 1e-6;

// Sum of products in double: the products are exact and the eight sums are the same on every instruction set.
__attribute__((noinline)) inline double exact_dot(const float* a, const float* b, int64_t step, int64_t count) {
    double part[8] = {};
    int64_t at = 0;
    if (step == 1) {
        for (; at + 8 <= count; at += 8) {
            ATTEND_UNROLL
            for (int lane = 0; lane < 8; ++lane)
                part[lane] += static_cast<double>(a[at + lane]) * static_cast<double>(b[at + lane]);
        }
    }
    for (; at < count; ++at) part[at % 8] += static_cast<double>(a[at]) * static_cast<double>(b[at * step]);
    return ((part[0] + part[4]) + (part[1] + part[5])) + ((part[2] + part[6]) + (part[3] + part[7]));
}

// What a slot's key brings to its scores. norm < 0: the slot is not valid.
struct SlotKey {
    double norm;        // divides the exact score
    float factor;       // multiplies the float score
    float uncertainty;  // times the query's: how far the float score may be off
};

struct RetrievalSizes {
    int64_t batch, heads, rows, dim, value_dim, memories, memory_heads, slots, chosen;
    int64_t room;  // entries kept for a query during the sweep
    bool all;
    int64_t tile_rows, tiles;  // queries of a tile
    static constexpr int64_t key_tile = 128;
    static constexpr int64_t most_entries = int64_t{1} << 20;  // of a tile

    explicit RetrievalSizes(const Retrieval& r) {
        batch = r.query->shape[0], heads = r.query->shape[1], rows = r.query->shape[2], dim = r.query->shape[3];
        value_dim = r.value->shape[3];
        memories = r.key->shape[0], memory_heads = r.key->shape[1], slots = r.key->shape[2];
        all = r.top_k == 0 || r.top_k >= slots;
        chosen = all ? slots : r.top_k;
        room = all ? slots : chosen < 48 ? 128 : 2 * chosen + 32;
        tile_rows = rows > batch_lanes ? max_lanes : batch_lanes;
        while (tile_rows > 1 && tile_rows * room > most_entries) tile_rows /= 2;
        tiles = rows == 0 ? 0 : (rows + tile_rows - 1) / tile_rows;
    }
    int64_t all_slots() const { return memories * memory_heads * slots; }
};

struct RetrievalScratch {
    float *query, *panel, *scores, *limit, *uncertainty, *chosen_weights, *sum, *kept;
    double* norm;
    uint64_t *entries, *sorted;
    int32_t *slots, *order;
    int64_t *filled, *exact;

    RetrievalScratch(Workspace& space, const RetrievalSizes& s) {
        query = space.take<float>(s.tile_rows * s.dim);
        panel = space.take<float>(max_lanes * s.dim);
        scores = space.take<float>(max_lanes * RetrievalSizes::key_tile);
        limit = space.take<float>(max_lanes);
        uncertainty = space.take<float>(max_lanes);
        chosen_weights = space.take<float>(2 * (s.chosen + batch_lanes));
        sum = space.take<float>(s.value_dim + batch_lanes);
        norm = space.take<double>(max_lanes);
        entries = space.take<uint64_t>(s.tile_rows * s.room);
        sorted = space.take<uint64_t>(s.all ? s.chosen : 0);
        kept = space.take<float>(s.all ? 0 : s.tile_rows * s.room);
        slots = space.take<int32_t>(s.all ? 0 : s.tile_rows * s.room);
        order = space.take<int32_t>(s.all ? 0 : s.room);
        filled = space.take<int64_t>(max_lanes);
        exact = space.take<int64_t>(max_lanes);
    }
};

struct RetrievalRun {
    const Retrieval& r;
    RetrievalSizes sizes;
    SlotKey* keys;  // [Bm, Hm, M]
    unsigned char* memory;
    uint64_t slot_bytes;
    Element query_type, output_type;

    bool is_valid(int64_t bm, int64_t m) const {
        if (r.lengths != nullptr) return m < integer_at(r.lengths, bm);
        if (r.valid != nullptr)
            return static_cast<const uint8_t*>(r.valid->data)[bm * r.valid->strides[0] + m * r.valid->strides[1]] != 0;
        return true;
    }
    const float* key_row(int64_t bm, int64_t hm, int64_t m) const {
        return static_cast<const float*>(r.key->data) + bm * r.key->strides[0] + hm * r.key->strides[1] +
               m * r.key->strides[2];
    }

    // Norms of keys [begin, end) of all memories and heads.
    static attend_status measure(void* user, uint64_t begin, uint64_t end, uint32_t) noexcept {
        const RetrievalRun& run = *static_cast<const RetrievalRun*>(user);
        const RetrievalSizes& s = run.sizes;
        for (auto at = static_cast<int64_t>(begin); at < static_cast<int64_t>(end); ++at) {
            const int64_t m = at % s.slots, hm = at / s.slots % s.memory_heads, bm = at / s.slots / s.memory_heads;
            SlotKey& slot = run.keys[at];
            slot = SlotKey{-1.0, 0.0f, 0.0f};
            if (!run.is_valid(bm, m)) continue;
            const float* key = run.key_row(bm, hm, m);
            const int64_t step = run.r.key->strides[3];
            double squares = 0;
            if (step == 1)
                squares = exact_dot(key, key, 1, s.dim);
            else
                for (int64_t d = 0; d < s.dim; ++d)
                    squares += static_cast<double>(key[d * step]) * static_cast<double>(key[d * step]);
            // Beyond these sizes float sums may overflow: every score is computed exactly.
            const double norm = __builtin_sqrt(squares);
            slot.norm = run.r.normalize ? __builtin_sqrt(squares + norm_eps) : 1.0;
            if (norm != norm) slot.norm = norm;
            slot.factor = run.r.normalize ? static_cast<float>(1.0 / slot.norm) : 1.0f;
            slot.uncertainty = norm < 1e18 ? static_cast<float>((run.r.normalize ? 1.0 : norm) * 1.000001) : infinity;
        }
        return ATTEND_OK;
    }

    template <Element element>
    void read_query(int64_t b, int64_t h, int64_t i, float* to) const {
        const auto* from = static_cast<const typename Stored<element>::Type*>(r.query->data) + b * r.query->strides[0] +
                           h * r.query->strides[1] + i * r.query->strides[2];
        for (int64_t d = 0; d < sizes.dim; ++d) to[d] = Stored<element>::read_one(from[d * r.query->strides[3]]);
    }

    void load_queries(const RetrievalScratch& scratch, int64_t b, int64_t h, int64_t first, int64_t count) const {
        const double steps = static_cast<double>(2 * sizes.dim + 8) * 0x1p-24;
        for (int64_t lane = 0; lane < max_lanes; ++lane) {
            scratch.limit[lane] = lane < count ? -infinity : infinity;
            scratch.uncertainty[lane] = 0.0f;
            scratch.filled[lane] = 0;
            scratch.exact[lane] = 0;
            scratch.norm[lane] = 1.0;
            if (lane >= count) {
                for (int64_t d = 0; d < sizes.dim; ++d) scratch.panel[d * max_lanes + lane] = 0.0f;
                continue;
            }
            float* row = scratch.query + lane * sizes.dim;
            if (query_type == Element::f32)
                read_query<Element::f32>(b, h, first + lane, row);
            else if (query_type == Element::bf16)
                read_query<Element::bf16>(b, h, first + lane, row);
            else
                read_query<Element::f16>(b, h, first + lane, row);
            const double squares = exact_dot(row, row, 1, sizes.dim), norm = __builtin_sqrt(squares);
            if (r.normalize) scratch.norm[lane] = __builtin_sqrt(squares + norm_eps);
            const float factor = r.normalize ? static_cast<float>(1.0 / scratch.norm[lane]) : 1.0f;
            scratch.uncertainty[lane] =
                norm < 1e18 ? static_cast<float>((r.normalize ? 1.0 : norm) * steps * 1.000001) : infinity;
            for (int64_t d = 0; d < sizes.dim; ++d) scratch.panel[d * max_lanes + lane] = row[d] * factor;
        }
    }

    float exact_score(const RetrievalScratch& scratch, int64_t lane, const float* key, const SlotKey& slot) const {
        const double dot = exact_dot(scratch.query + lane * sizes.dim, key, r.key->strides[3], sizes.dim);
        return static_cast<float>(r.normalize ? dot / (scratch.norm[lane] * slot.norm) : dot);
    }

    // Exact scores of the lane's candidates: from here on it has entries.
    void make_exact(const RetrievalScratch& scratch, const SlotKey* slots, int64_t lane, int64_t bm, int64_t hm) const {
        for (int64_t at = 0; at < scratch.filled[lane]; ++at) {
            const int64_t m = scratch.slots[lane * sizes.room + at];
            scratch.entries[lane * sizes.room + at] =
                slot_entry(exact_score(scratch, lane, key_row(bm, hm, m), slots[m]), m);
        }
        scratch.exact[lane] = 1;
    }

    // Drops what cannot be among the best, which raises the limit for what follows.
    void thin(const RetrievalScratch& scratch, const SlotKey* slots, int64_t lane, int64_t bm, int64_t hm) const {
        if (scratch.filled[lane] <= sizes.chosen) return;
        if (scratch.exact[lane] == 0) thin_floats(scratch, slots, lane);
        if (scratch.exact[lane] == 0 && scratch.filled[lane] > sizes.room - sizes.room / 4)
            make_exact(scratch, slots, lane, bm, hm);  // too many are too close to each other
        if (scratch.exact[lane] == 0) return;
        uint64_t* entries = scratch.entries + lane * sizes.room;
        select_best(entries, scratch.filled[lane], sizes.chosen);
        scratch.filled[lane] = sizes.chosen;
        set_limit(scratch, lane, score_of(entries[sizes.chosen - 1]));
    }

    // One rounding to float may make equal what was not; NaN is worse than everything.
    static void set_limit(const RetrievalScratch& scratch, int64_t lane, float least) {
        constexpr float largest = 3.4028235e38f;
        if (least > largest) least = largest;
        scratch.limit[lane] = least == least ? least - __builtin_fabsf(least) * 0x1p-22f - 1e-37f : -infinity;
    }

    __attribute__((noinline)) void thin_floats(const RetrievalScratch& scratch, const SlotKey* slots,
                                               int64_t lane) const {
        float* scores = scratch.kept + lane * sizes.room;
        int32_t *places = scratch.slots + lane * sizes.room, *order = scratch.order;
        const int64_t filled = scratch.filled[lane], wanted = sizes.chosen;
        const float uncertainty = scratch.uncertainty[lane];
        // The least that each score may be, as integers of the same order.
        int64_t low = INT32_MAX, high = INT32_MIN;
        for (int64_t at = 0; at < filled; ++at) {
            float least = scores[at] - uncertainty * slots[places[at]].uncertainty;
            if (!(least == least)) least = -infinity;
            const int32_t bits = __builtin_bit_cast(int32_t, least);
            order[at] = bits ^ (bits >> 31 & INT32_MAX);
            low = order[at] < low ? order[at] : low;
            high = order[at] > high ? order[at] : high;
        }
        // The largest number that enough of them reach, or one a little smaller.
        for (++high; high - low > 1;) {
            const int64_t middle = low + (high - low) / 2;
            const auto bound = static_cast<int32_t>(middle);
            int32_t count = 0;
            for (int64_t at = 0; at < filled; ++at) count += order[at] >= bound ? 1 : 0;
            if (count < wanted) {
                high = middle;
                continue;
            }
            low = middle;
            if (count <= wanted + wanted / 8) break;
        }
        const auto least = static_cast<int32_t>(low);
        set_limit(scratch, lane, __builtin_bit_cast(float, least ^ (least >> 31 & INT32_MAX)));
        const float limit = scratch.limit[lane];
        int64_t rest = 0;
        for (int64_t at = 0; at < filled; ++at) {
            const float score = scores[at];
            const int32_t place = places[at];
            scores[rest] = score;
            places[rest] = place;
            rest += score + uncertainty * slots[place].uncertainty < limit ? 0 : 1;  // NaN stays
        }
        scratch.filled[lane] = rest;
    }

    // The best of all slots for all lanes.
    template <int V>
    void sweep(const RetrievalScratch& scratch, const SlotKey* slots, int64_t bm, int64_t hm, int64_t count) const {
        constexpr int64_t tile = RetrievalSizes::key_tile;
        const int64_t row_stride = r.key->strides[2], inner = r.key->strides[3], room = sizes.room;
        const float *scores = scratch.scores, *limits = scratch.limit, *uncertainties = scratch.uncertainty;
        float* kept = scratch.kept;
        int32_t* places = scratch.slots;
        int64_t *filled = scratch.filled, *exact = scratch.exact;
        for (int64_t first = 0; first < sizes.slots; first += tile) {
            const int64_t some = sizes.slots - first < tile ? sizes.slots - first : tile;
            const float* key = key_row(bm, hm, first);
            // Panels are as wide as the widest tile; V says how many vectors of them are in use.
            product<V>(key, row_stride, inner, some, scratch.panel, sizes.dim, scratch.scores, Into::overwrite, nullptr,
                       max_lanes);
            for (int64_t row = 0; row < some; ++row) {
                const SlotKey& slot = slots[first + row];
                if (slot.norm < 0.0) continue;
                const Batch factor(slot.factor), uncertainty(slot.uncertainty);
                for (int v = 0; v < V; ++v) {
                    const Batch score = factor * load(scores + row * max_lanes + v * batch_lanes);
                    const Batch limit =
                        fnma(uncertainty, load(uncertainties + v * batch_lanes), load(limits + v * batch_lanes));
                    // Not "at least": a NaN is looked at, too.
                    uint32_t bits = all_lane_bits & ~mask_bits(score < limit);
                    while (bits != 0) {
                        const int64_t lane = v * batch_lanes + __builtin_ctz(bits);
                        bits &= bits - 1;
                        if (lane >= count) break;
                        const int64_t at = filled[lane];
                        filled[lane] = at + 1;
                        if (exact[lane] == 0) {
                            kept[lane * room + at] = scores[row * max_lanes + lane] * slot.factor;
                            places[lane * room + at] = static_cast<int32_t>(first + row);
                        } else {
                            scratch.entries[lane * room + at] =
                                slot_entry(exact_score(scratch, lane, key + row * row_stride, slot), first + row);
                        }
                        if (at + 1 == room) thin(scratch, slots, lane, bm, hm);
                    }
                }
            }
        }
        for (int64_t lane = 0; lane < count; ++lane) {
            thin(scratch, slots, lane, bm, hm);
            if (scratch.exact[lane] == 0) make_exact(scratch, slots, lane, bm, hm);
            uint64_t* entries = scratch.entries + lane * sizes.room;
            if (scratch.filled[lane] > sizes.chosen) {
                select_best(entries, scratch.filled[lane], sizes.chosen);
                scratch.filled[lane] = sizes.chosen;
            }
            sort_best(entries, scratch.filled[lane]);
        }
    }

    void take_all(const RetrievalScratch& scratch, const SlotKey* slots, int64_t bm, int64_t hm, int64_t count) const {
        for (int64_t lane = 0; lane < count; ++lane) {
            uint64_t* entries = scratch.entries + lane * sizes.room;
            int64_t filled = 0;
            for (int64_t m = 0; m < sizes.slots; ++m)
                if (!(slots[m].norm < 0.0))
                    entries[filled++] = slot_entry(exact_score(scratch, lane, key_row(bm, hm, m), slots[m]), m);
            sort_all(entries, scratch.sorted, filled);
            scratch.filled[lane] = filled;
        }
    }

    // Softmax over the chosen slots, their values, and the mixture with the local row.
    void finish(const RetrievalScratch& scratch, int64_t b, int64_t h, int64_t i, int64_t bm, int64_t hm,
                const uint64_t* entries, int64_t count) const {
        float *weights = scratch.chosen_weights, *kept = weights + sizes.chosen + batch_lanes, *sum = scratch.sum;
        const double scale = r.scale[h];
        const auto logit = [&](uint64_t entry) {
            const double s = scale * static_cast<double>(score_of(entry));
            return r.softcap > 0.0 ? r.softcap * ::tanh(s / r.softcap) : s;
        };
        double most = -__builtin_huge_val(), total = 0;
        for (int64_t at = 0; at < count; ++at) {
            const double s = logit(entries[at]);
            most = s > most || s != s ? s : most;
        }
        for (int64_t at = 0; at < count; ++at) weights[at] = static_cast<float>(logit(entries[at]) - most);
        for (int64_t at = count; at < count + batch_lanes; ++at) weights[at] = 0.0f;
        for (int64_t at = 0; at < count; at += batch_lanes) store(weights + at, exp_nonpositive(load(weights + at)));
        for (int64_t at = 0; at < count; ++at) total += static_cast<double>(weights[at]);
        const double lse = count > 0 ? most + ::log(total) : -__builtin_huge_val();
        for (int64_t at = 0; at < count; ++at)
            weights[at] = static_cast<float>(static_cast<double>(weights[at]) / total);
        const float* used = weights;
        if (r.dropout > 0.0) {
            const uint32_t threshold = dropout_threshold(r.dropout);
            const float factor = dropout_scale(r.dropout);
            for (int64_t at = 0; at < count; ++at) {
                const int64_t j = r.local_keys + slot_of(entries[at]);
                const RandomWords words = dropout_words(r.seed, static_cast<uint32_t>(r.rng_offset),
                                                        static_cast<uint32_t>(b * sizes.heads + h),
                                                        static_cast<uint32_t>(i), static_cast<uint32_t>(j / 4));
                kept[at] = words.word[j % 4] >= threshold ? weights[at] * factor : 0.0f;
            }
            used = kept;
        }
        for (int64_t d = 0; d < sizes.value_dim; ++d) sum[d] = 0.0f;
        const float* values =
            static_cast<const float*>(r.value->data) + bm * r.value->strides[0] + hm * r.value->strides[1];
        for (int64_t at = 0; at < count; ++at) {
            if (used[at] == 0.0f) continue;
            const float* row = values + slot_of(entries[at]) * r.value->strides[2];
            int64_t d = 0;
            if (r.value->strides[3] == 1)
                for (; d + batch_lanes <= sizes.value_dim; d += batch_lanes)
                    store(sum + d, fma(Batch(used[at]), load(row + d), load(sum + d)));
            for (; d < sizes.value_dim; ++d) sum[d] += used[at] * row[d * r.value->strides[3]];
        }
        mix(scratch, b, h, i, count, lse, entries);
    }

    void mix(const RetrievalScratch& scratch, int64_t b, int64_t h, int64_t i, int64_t count, double lse,
             const uint64_t* entries) const {
        const auto at3 = [&](const attend_tensor& t) { return b * t.strides[0] + h * t.strides[1] + i * t.strides[2]; };
        double of_memory = 1.0, of_local = 0.0, total = lse;
        const float* local = nullptr;
        if (r.mix != Mix::memory) {
            local = static_cast<const float*>(r.local->data) + at3(*r.local);
            const double local_lse =
                static_cast<double>(static_cast<const float*>(r.local_lse->data)[at3(*r.local_lse)]);
            const bool no_local = local_lse == -__builtin_huge_val();
            if (count == 0) {
                of_memory = 0.0, of_local = 1.0, total = local_lse;
            } else if (!no_local && r.mix == Mix::gate) {
                of_memory = r.gate[h], of_local = 1.0 - r.gate[h];
            } else if (!no_local) {
                const double most = lse > local_lse ? lse : local_lse;
                total = most + ::log(::exp(lse - most) + ::exp(local_lse - most));
                of_memory = ::exp(lse - total), of_local = ::exp(local_lse - total);
            }
        }
        if (r.lse != nullptr) static_cast<float*>(r.lse->data)[at3(*r.lse)] = static_cast<float>(total);
        write(scratch.sum, static_cast<float>(of_memory), local, static_cast<float>(of_local), at3(*r.output));
        const float share = r.mix == Mix::joint ? static_cast<float>(of_memory) : 1.0f;
        const int64_t wanted = r.indices != nullptr ? r.indices->shape[3] : 0;
        for (int64_t at = 0; at < wanted; ++at) {
            static_cast<int32_t*>(r.indices->data)[at3(*r.indices) + at * r.indices->strides[3]] =
                at < count ? static_cast<int32_t>(slot_of(entries[at])) : -1;
            static_cast<float*>(r.weights->data)[at3(*r.weights) + at * r.weights->strides[3]] =
                at < count ? share * scratch.chosen_weights[at] : 0.0f;
        }
    }

    // A part with no share is not read: it passes neither NaN nor rounding on.
    void write(const float* sum, float of_memory, const float* local, float of_local, int64_t offset) const {
        const int64_t step = r.output->strides[3], local_step = local != nullptr ? r.local->strides[3] : 0;
        for (int64_t d = 0; d < sizes.value_dim; ++d) {
            float x = of_memory == 0.0f ? 0.0f : of_memory * sum[d];
            if (local != nullptr && of_local == 1.0f)
                x = local[d * local_step];
            else if (local != nullptr && of_local != 0.0f)
                x += of_local * local[d * local_step];
            if (output_type == Element::f32)
                static_cast<float*>(r.output->data)[offset + d * step] = x;
            else
                static_cast<uint16_t*>(r.output->data)[offset + d * step] =
                    output_type == Element::bf16 ? float_to_bf16(x) : float_to_f16(x);
        }
    }

    static attend_status serve(void* user, uint64_t begin, uint64_t end, uint32_t worker) noexcept {
        const RetrievalRun& run = *static_cast<const RetrievalRun*>(user);
        const RetrievalSizes& s = run.sizes;
        Workspace space(run.memory + worker * run.slot_bytes);
        const RetrievalScratch scratch(space, s);
        for (auto at = static_cast<int64_t>(begin); at < static_cast<int64_t>(end); ++at) {
            const int64_t first = at % s.tiles * s.tile_rows, h = at / s.tiles % s.heads, b = at / s.tiles / s.heads;
            const int64_t count = s.rows - first < s.tile_rows ? s.rows - first : s.tile_rows;
            const int64_t bm = s.memories == 1 ? 0 : b, hm = h * s.memory_heads / s.heads;
            const SlotKey* slots = run.keys + (bm * s.memory_heads + hm) * s.slots;
            run.load_queries(scratch, b, h, first, count);
            if (s.all)
                run.take_all(scratch, slots, bm, hm, count);
            else if (count > 2 * batch_lanes)
                run.sweep<3>(scratch, slots, bm, hm, count);
            else if (count > batch_lanes)
                run.sweep<2>(scratch, slots, bm, hm, count);
            else
                run.sweep<1>(scratch, slots, bm, hm, count);
            for (int64_t lane = 0; lane < count; ++lane)
                run.finish(scratch, b, h, first + lane, bm, hm, scratch.entries + lane * s.room, scratch.filled[lane]);
        }
        return ATTEND_OK;
    }
};

inline uint64_t retrieval_workspace(const Retrieval& retrieval, uint32_t workers) {
    const RetrievalSizes sizes(retrieval);
    Workspace slot, shared;
    const RetrievalScratch scratch(slot, sizes);
    (void)scratch;
    shared.take<SlotKey>(sizes.all_slots());
    return shared.used() + slot.used() * (workers == 0 ? 1 : workers);
}

// Fails where the key of a valid slot holds NaN.
inline attend_status retrieve(const attend_context* context, const Retrieval& retrieval) {
    const RetrievalSizes sizes(retrieval);
    Workspace slot, shared(context->workspace);
    const RetrievalScratch scratch(slot, sizes);
    (void)scratch;
    RetrievalRun run{retrieval,    sizes,       shared.take<SlotKey>(sizes.all_slots()), nullptr, slot.used(),
                     Element::f32, Element::f32};
    run.memory = static_cast<unsigned char*>(context->workspace) + shared.used();
    element_of(retrieval.query, run.query_type);
    element_of(retrieval.output, run.output_type);
    attend_status status =
        parallel_items(context, static_cast<uint64_t>(sizes.all_slots()), RetrievalRun::measure, &run);
    if (status != ATTEND_OK) return status;
    for (int64_t at = 0; at < sizes.all_slots(); ++at)
        if (run.keys[at].norm != run.keys[at].norm)
            return (Message() << "memory_key: slot " << at % sizes.slots << " of head "
                              << at / sizes.slots % sizes.memory_heads << " in memory "
                              << at / sizes.slots / sizes.memory_heads
                              << " holds NaN; accepted: numbers, or the slot not valid")
                .fail(context->error, ATTEND_NUMERIC, "memory_key");
    return parallel_items(context, static_cast<uint64_t>(sizes.batch * sizes.heads * sizes.tiles), RetrievalRun::serve,
                          &run);
}

// Without any memory: the local part stays as it is, or zeros; no slot is chosen.
inline attend_status no_slots(const Retrieval& r) {
    const attend_tensor *rows = r.output, *lists = r.indices;
    Element type{};
    element_of(r.output, type);
    for (int64_t b = 0; b < rows->shape[0]; ++b)
        for (int64_t h = 0; h < rows->shape[1]; ++h)
            for (int64_t i = 0; i < rows->shape[2]; ++i) {
                const auto at = [&](const attend_tensor* t) {
                    return b * t->strides[0] + h * t->strides[1] + i * t->strides[2];
                };
                for (int64_t d = 0; r.local == nullptr && d < rows->shape[3]; ++d) {
                    const int64_t offset = at(rows) + d * rows->strides[3];
                    if (type == Element::f32)
                        static_cast<float*>(rows->data)[offset] = 0.0f;
                    else
                        static_cast<uint16_t*>(rows->data)[offset] = 0;
                }
                if (r.local == nullptr && r.lse != nullptr) static_cast<float*>(r.lse->data)[at(r.lse)] = -infinity;
                for (int64_t n = 0; lists != nullptr && n < lists->shape[3]; ++n) {
                    static_cast<int32_t*>(lists->data)[at(lists) + n * lists->strides[3]] = -1;
                    static_cast<float*>(r.weights->data)[at(r.weights) + n * r.weights->strides[3]] = 0.0f;
                }
            }
    return ATTEND_OK;
}

}  // namespace attend::ATTEND_ISA
