// SPDX-License-Identifier: Apache-2.0
// Attention in parts: rows and keys in steps (a residue class, every n-th key, a block), each part one run of the tile
// engine on one worker, several at a time. Rows and keys keep their logical numbers, so that masks, lengths, the diagonal,
// windows and dropout hold. A part stores its rows or merges them with what is there (S0.3). Keys far apart in memory are
// copied for the part: rows a page apart share few places of a cache.
#pragma once

#include <math.h>

#include "attend/author/tile.hpp"
#include "attend/toolkit/core/parallel.hpp"
#include "attend/toolkit/core/tensor_view.hpp"
#include "attend/toolkit/tile/keys/band_union.hpp"

namespace attend::ATTEND_ISA {

// first, first + step, ... : count numbers. With a list: count of those.
struct Steps {
    int64_t first, step, count;
    const int32_t* list = nullptr;

    int64_t at(int64_t n) const { return list != nullptr ? list[n] : first + n * step; }
    // How many are below x.
    int64_t below(int64_t x) const {
        if (list == nullptr) return x <= first ? 0 : least((x - first + step - 1) / step, count);
        int64_t low = 0, high = count;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (list[middle] < x)
                low = middle + 1;
            else
                high = middle;
        }
        return low;
    }
    Steps part(int64_t begin, int64_t end) const {
        if (list != nullptr) return {0, 1, end - begin, list + begin};
        return {first + begin * step, step, end - begin};
    }
    static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
};

constexpr int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
constexpr int64_t floor_mod(int64_t a, int64_t b) { return a - floor_div(a, b) * b; }
// Numbers below `length` that leave the remainder r.
inline Steps class_of(int64_t r, int64_t by, int64_t length) {
    return {r, by, r >= length ? 0 : (length - r + by - 1) / by};
}

// Which keys of a part its rows see, where that is not all: up to `taps` keys on each side of the position, nearest first,
// without those that another pass has seen already: at most `hole` away and, with hole_step, of the position's class.
struct PartKeys {
    int64_t taps = 0;       // 0: all; counted in `every`, which the part's keys are some of
    int64_t hole = -1;      // -1: none
    int64_t hole_step = 0;  // 0, 1: every class
    Steps every{}, keys{};

    struct Bounds {
        int64_t begin, end, hole_begin, hole_end;  // rows of the part's keys
    };
    Bounds bounds(int64_t p) const {
        Bounds at{0, keys.count, 0, 0};
        if (taps > 0) {
            const int64_t below = every.below(p + 1), low = below - taps, high = below + taps;
            at.begin = low <= 0 ? 0 : keys.below(every.at(low));
            at.end = high >= every.count ? keys.count : keys.below(every.at(high));
        }
        if (hole >= 0) at.hole_begin = keys.below(p - hole), at.hole_end = keys.below(p + hole + 1);
        return at;
    }

    static void visit(const void* user, const attend_query_tile* tile, attend_key_visit_fn visit_range, void* visitor) {
        const PartKeys& self = *static_cast<const PartKeys*>(user);
        const Bounds first = self.bounds(tile->first_position), last = self.bounds(tile->last_position);
        // All bounds rise with the position, so these are the places where what the lanes see changes.
        int64_t cuts[8] = {first.begin,      last.begin,      first.end,      last.end,
                           first.hole_begin, last.hole_begin, first.hole_end, last.hole_end};
        for (int at = 1; at < 8; ++at)
            for (int place = at; place > 0 && cuts[place - 1] > cuts[place]; --place) {
                const int64_t swap = cuts[place];
                cuts[place] = cuts[place - 1], cuts[place - 1] = swap;
            }
        RangeWriter out(tile->kv_len, visit_range, visitor);
        for (int at = 0; at < 7; ++at) {
            const int64_t begin = cuts[at], end = cuts[at + 1];
            if (begin == end || begin < first.begin || end > last.end) continue;
            const bool hidden = begin >= last.hole_begin && end <= first.hole_end && self.hole_step <= 1;
            const bool inside = begin >= last.begin && end <= first.end;
            const bool clear = end <= first.hole_begin || begin >= last.hole_end;
            if (!hidden) out.add(begin, end, inside && clear ? 0 : ATTEND_KEYS_PARTIAL);
        }
    }
    static void keep(const void* user, const attend_score_tile* tile) {
        const PartKeys& self = *static_cast<const PartKeys*>(user);
        const attend_query_tile& queries = *tile->queries;
        const int64_t lanes = queries.lane_stride;
        int32_t begin[most_lanes], end[most_lanes], hole_begin[most_lanes], hole_end[most_lanes], residue[most_lanes];
        const int64_t step = self.hole_step > 1 ? self.hole_step : 1;
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const Bounds at = self.bounds(queries.lane_position[lane]);
            begin[lane] = static_cast<int32_t>(at.begin);
            end[lane] = static_cast<int32_t>(at.end);
            hole_begin[lane] = static_cast<int32_t>(at.hole_begin);
            hole_end[lane] = static_cast<int32_t>(at.hole_end);
            residue[lane] = static_cast<int32_t>(floor_mod(queries.lane_position[lane], step));
        }
        for (int64_t at = 0; at < tile->num_keys; ++at) {
            const auto row = static_cast<int32_t>(tile->first_key + at);
            const auto of_key = static_cast<int32_t>(floor_mod(self.keys.at(row), step));
            float* const scores = tile->scores + at * lanes;
            for (int64_t lane = 0; lane < lanes; ++lane) {
                const bool seen = (row >= begin[lane]) & (row < end[lane]);
                const bool hidden = (row >= hole_begin[lane]) & (row < hole_end[lane]) & (of_key == residue[lane]);
                scores[lane] = seen & !hidden ? scores[lane] : -__builtin_inff();
            }
        }
    }
};

// Keys that have been copied for several parts, row-major [n, D] and [n, Dv] of the keys' type; index has their numbers.
struct KeyPanel {
    char *key, *value;
    Steps index;
    int64_t key_bytes, value_bytes;  // of a row
    KeyPanel part(int64_t begin, int64_t end) const {
        return {key + begin * key_bytes, value + begin * value_bytes, index.part(begin, end), key_bytes, value_bytes};
    }
};

// One part: rows of the query heads [head, head + heads), which share a key head, and keys.
struct PartSpec {
    int64_t batch, head, heads;
    Steps rows, keys;
    int64_t window_left, window_right;  // of the part, -1: none; those of the call hold, too
    const PartKeys* pattern;            // NULL: all keys
    bool merges;
    KeyPanel before{},
        after{};  // further keys, all below and all above `keys`; only `keys` is cut at the diagonal first
    attend_keys_fn visit = nullptr;  // hooks in place of `pattern`
    attend_score_fn keep = nullptr;
    const void* user = nullptr;
};

// Where rows go: float32, or as the query where nothing is merged; [b, h, i] from `batch` and `head` on.
struct PartTarget {
    const attend_tensor *output, *lse;  // lse NULL: not wanted
    int64_t batch, head;
    const attend_tensor *max = nullptr, *sum = nullptr;  // where a stage leaves its state to another
};

struct PartLimits {
    int64_t rows, keys, heads;
    bool merges;
    int64_t panel = 0;  // keys of panels
};

// What all parts of a call share, and the memory of its workers.
class Parts {
public:
    static constexpr int64_t page = 4096, most_packed = int64_t{8} << 20;

    Parts(const TileCall& whole, const attend_plan_desc& desc, const PartLimits& limits, const Context& context)
        : whole_(&whole), desc_(&desc), limits_(limits), context_(&context) {
        layout(desc, limits, 0);
        if (context.host != nullptr) {
            serial_ = *context.host;
            serial_.parallel_for = nullptr;
        }
    }

    static uint64_t workspace(const attend_plan_desc& desc, const PartLimits& limits) {
        Parts sizes(desc, limits);
        return sizes.slot_bytes_ * (desc.max_workers == 0 ? 1 : desc.max_workers);
    }

    const attend_key_segment& segment() const { return whole_->problem.segments[0]; }

    // The part's keys without those beyond the diagonal and the windows of its first and its last row.
    Steps seen(const PartSpec& spec) const {
        const attend_tile_problem& whole = whole_->problem;
        const int64_t offset = offset_of(spec.batch), first = spec.rows.at(0) + offset,
                      last = spec.rows.at(spec.rows.count - 1) + offset;
        const int64_t left = narrower(whole.window_left, spec.window_left),
                      right = narrower(whole.window_right, spec.window_right);
        int64_t begin = left < 0 ? 0 : spec.keys.below(first - left), end = spec.keys.count;
        if (right >= 0) end = lesser_of(end, spec.keys.below(last + right + 1));
        if ((whole.flags & ATTEND_TILE_CAUSAL) != 0) end = lesser_of(end, spec.keys.below(last + 1));
        return spec.keys.part(begin < end ? begin : end, end);
    }

    // One part on the worker `slot`.
    attend_status run(const PartSpec& spec, const PartTarget& target, uint32_t slot) const {
        if (spec.rows.count <= 0) return ATTEND_OK;
        char* at = static_cast<char*>(context_->workspace) + slot * slot_bytes_;
        auto* row_index = reinterpret_cast<int32_t*>(at + row_index_);
        auto* key_index = reinterpret_cast<int32_t*>(at + key_index_);
        const attend_tile_problem& whole = whole_->problem;
        const attend_key_segment& given = whole.segments[0];
        const int64_t left = narrower(whole.window_left, spec.window_left),
                      right = narrower(whole.window_right, spec.window_right);
        const Steps keys = seen(spec);
        for (int64_t n = 0; n < spec.rows.count; ++n) row_index[n] = static_cast<int32_t>(spec.rows.at(n));
        int32_t* index = key_index;
        for (const Steps* piece : {&spec.before.index, &keys, &spec.after.index})
            for (int64_t n = 0; n < piece->count; ++n) *index++ = static_cast<int32_t>(piece->at(n));
        const int64_t all_keys = index - key_index;

        OwnTensor query, key, value, output, lse, mask, bias, query_lengths, key_lengths;
        attend_tile_problem problem = whole;
        problem.scores = nullptr;
        problem.keys = nullptr;
        problem.keep = nullptr;
        problem.window_left = left;
        problem.window_right = right;
        problem.query_index = row_index;
        problem.key_index = key_index;
        if (all_keys < fewest_keys_of_dots) problem.flags |= ATTEND_TILE_WIDEN;
        problem.query = rows_of(query, *whole.query, spec.batch, spec.head, spec.heads, spec.rows);
        const int64_t kv_head = spec.head * desc_->num_kv_heads / desc_->num_q_heads;
        attend_key_segment segments[3] = {};
        OwnTensor panel_keys[2], panel_values[2];
        problem.segments = segments;
        problem.num_segments = 0;
        const auto add_panel = [&](const KeyPanel& panel, int which) {
            if (panel.index.count == 0) return;
            segments[problem.num_segments++] = {
                panel_of(panel_keys[which], *given.key, panel.key, panel.index.count),
                panel_of(panel_values[which], *given.value, panel.value, panel.index.count), 0, 0, nullptr};
        };
        add_panel(spec.before, 0);
        if (keys.count == all_keys || keys.count > 0)
            segments[problem.num_segments++] = {
                keys_of(key, *given.key, spec.batch, kv_head, keys, at + packed_keys_),
                keys_of(value, *given.value, spec.batch, kv_head, keys, at + packed_values_), 0, 0, nullptr};
        add_panel(spec.after, 1);
        PartKeys pattern;
        if (spec.pattern != nullptr) {
            pattern = *spec.pattern;
            pattern.keys = spec.before.index.count > 0 ? spec.before.index : keys;
            use_keys(problem, pattern);
        }
        if (spec.visit != nullptr) {
            problem.keys = spec.visit;
            problem.keep = spec.keep;
            problem.keys_user = problem.keep_user = spec.user;
        }
        problem.mask = pairs_of(mask, whole.mask, spec);
        problem.bias = pairs_of(bias, whole.bias, spec);
        problem.query_lengths = length_of(query_lengths, whole.query_lengths, spec.batch);
        problem.key_lengths = length_of(key_lengths, whole.key_lengths, spec.batch);
        problem.dropout_heads = desc_->num_q_heads;
        problem.dropout_head = spec.batch * desc_->num_q_heads + spec.head;

        const int64_t in_batch = spec.batch - target.batch, in_head = spec.head - target.head;
        OwnTensor whole_output, whole_lse;
        const attend_tensor* to = rows_of(whole_output, *target.output, in_batch, in_head, spec.heads, spec.rows);
        const attend_tensor* to_lse =
            target.lse != nullptr ? rows_of(whole_lse, *target.lse, in_batch, in_head, spec.heads, spec.rows) : nullptr;
        if (spec.merges) {
            describe(output, reinterpret_cast<float*>(at + part_output_), 1, spec.heads, spec.rows.count,
                     desc_->value_dim);
            describe(lse, reinterpret_cast<float*>(at + part_lse_), 1, spec.heads, spec.rows.count, 1);
            lse.tensor.ndim = 3;
            problem.output = &output.tensor;
            problem.lse = &lse.tensor;
        } else {
            problem.output = to;
            problem.lse = to_lse;
        }
        Context inner = *context_;
        inner.host = context_->host != nullptr ? &serial_ : nullptr;
        inner.max_workers = 1;
        inner.workspace = at + tiles_;
        inner.workspace_bytes = slot_bytes_ - tiles_;
        const attend_status status = ATTEND_KERNEL(attend_tile_forward)(&problem, &inner);
        if (status == ATTEND_OK && spec.merges) merge(*to, *to_lse, output, lse);
        return status;
    }

    // body(n, slot) for n from 0 to `count`.
    template <class Body>
    attend_status each(int64_t count, const Body& body) const {
        struct Loop {
            const Body* body;
            static attend_status run(void* user, uint64_t begin, uint64_t end, uint32_t slot) noexcept {
                const Loop& self = *static_cast<const Loop*>(user);
                for (uint64_t n = begin; n < end; ++n) {
                    const attend_status status = (*self.body)(static_cast<int64_t>(n), slot);
                    if (status != ATTEND_OK) return status;
                }
                return ATTEND_OK;
            }
        } loop{&body};
        return parallel_items(context_, static_cast<uint64_t>(count), Loop::run, &loop);
    }

    int64_t offset_of(int64_t batch) const {
        const attend_tile_problem& whole = whole_->problem;
        if ((whole.flags & ATTEND_TILE_OFFSET_PER_ITEM) == 0) return whole.causal_offset;
        return integer_at(whole.key_lengths, batch) - integer_at(whole.query_lengths, batch);
    }

    // The lesser of two windows, -1 being none.
    static int64_t narrower(int64_t a, int64_t b) { return a < 0 ? b : b < 0 ? a : a < b ? a : b; }

    // O and L of two parts become those of both.
    static void merge_row(float* to, int64_t to_step, const float* from, int64_t width, float& lse, float other) {
        if (other == -__builtin_inff()) return;
        double of_to = 0.0, of_other = 1.0, total = static_cast<double>(other);
        if (lse != -__builtin_inff()) {
            const auto x = static_cast<double>(lse), y = static_cast<double>(other);
            // With the larger one taken out, one exponential is left.
            const double lesser = ::exp(x > y ? y - x : x - y), sum = 1.0 + lesser;
            total = (x > y ? x : y) + ::log(sum);
            of_to = (x > y ? 1.0 : lesser) / sum, of_other = (x > y ? lesser : 1.0) / sum;
        }
        lse = static_cast<float>(total);
        const auto first = static_cast<float>(of_to), second = static_cast<float>(of_other);
        if (first == 0.0f) {
            for (int64_t c = 0; c < width; ++c) to[c * to_step] = second * from[c];
        } else if (second == 0.0f) {
            for (int64_t c = 0; c < width; ++c) to[c * to_step] *= first;
        } else if (to_step == 1) {
            for (int64_t c = 0; c < width; ++c) to[c] = first * to[c] + second * from[c];
        } else {
            for (int64_t c = 0; c < width; ++c) to[c * to_step] = first * to[c * to_step] + second * from[c];
        }
    }

    // Rows of [B, H, N, *] or [B, H, N] in steps.
    static const attend_tensor* rows_of(OwnTensor& own, const attend_tensor& whole, int64_t batch, int64_t head,
                                        int64_t heads, const Steps& rows) {
        own.tensor = whole;
        for (int axis = 0; axis < whole.ndim; ++axis) {
            own.shape[axis] = whole.shape[axis];
            own.strides[axis] = whole.strides[axis];
        }
        own.tensor.shape = own.shape;
        own.tensor.strides = own.strides;
        const int64_t start = batch * own.strides[0] + head * own.strides[1] + rows.at(0) * own.strides[2];
        own.tensor.data = static_cast<char*>(whole.data) + start * (whole.dtype_bits / 8);
        own.shape[0] = 1, own.shape[1] = heads, own.shape[2] = rows.count;
        own.strides[2] *= rows.step;
        return &own.tensor;
    }

    static const attend_tensor* length_of(OwnTensor& own, const attend_tensor* whole, int64_t batch) {
        if (whole == nullptr) return nullptr;
        own.tensor = *whole;
        own.shape[0] = 1;
        own.strides[0] = whole->strides[0];
        own.tensor.shape = own.shape;
        own.tensor.strides = own.strides;
        own.tensor.data = static_cast<char*>(whole->data) + batch * whole->strides[0] * (whole->dtype_bits / 8);
        return &own.tensor;
    }
    // Rows [begin, end) of `rows` behind each other, to their place in a copy of all.
    static void copy_rows(const attend_tensor& whole, int64_t batch, int64_t head, const Steps& rows, int64_t begin,
                          int64_t end, char* copy) {
        const int64_t bytes = whole.dtype_bits / 8, width = whole.shape[3];
        const char* base = static_cast<const char*>(whole.data) +
                           ((whole.shape[0] == 1 ? 0 : batch) * whole.strides[0] + head * whole.strides[1]) * bytes;
        char* to = copy + begin * width * bytes;
        for (int64_t n = begin; n < end; ++n, to += width * bytes) {
            const char* from = base + rows.at(n) * whole.strides[2] * bytes;
            if (whole.strides[3] == 1) {
                __builtin_memcpy(to, from, static_cast<size_t>(width * bytes));
                continue;
            }
            for (int64_t c = 0; c < width; ++c)
                __builtin_memcpy(to + c * bytes, from + c * whole.strides[3] * bytes, static_cast<size_t>(bytes));
        }
    }
    // Fills a panel with the keys of a key head.
    attend_status fill(const KeyPanel& panel, int64_t batch, int64_t kv_head) const {
        constexpr int64_t at_once = 256;
        const attend_key_segment& given = segment();
        const int64_t count = panel.index.count;
        return each((count + at_once - 1) / at_once, [&](int64_t n, uint32_t) {
            const int64_t begin = n * at_once, end = lesser_of(begin + at_once, count);
            copy_rows(*given.key, batch, kv_head, panel.index, begin, end, panel.key);
            copy_rows(*given.value, batch, kv_head, panel.index, begin, end, panel.value);
            return attend_status{ATTEND_OK};
        });
    }

private:
    static const attend_tensor* panel_of(OwnTensor& own, const attend_tensor& like, const char* rows, int64_t count) {
        describe(own, nullptr, 1, 1, count, like.shape[3]);
        own.tensor.data = const_cast<char*>(rows);
        own.tensor.dtype_code = like.dtype_code;
        own.tensor.dtype_bits = like.dtype_bits;
        return &own.tensor;
    }
    Parts(const attend_plan_desc& desc, const PartLimits& limits) : desc_(&desc), limits_(limits) {
        layout(desc, limits, 0);
    }

    static int64_t lesser_of(int64_t a, int64_t b) { return a < b ? a : b; }
    static uint64_t aligned(int64_t bytes) { return (static_cast<uint64_t>(bytes) + 63) & ~uint64_t{63}; }

    void layout(const attend_plan_desc& desc, const PartLimits& limits, uint64_t at) {
        const auto take = [&](uint64_t& place, int64_t bytes) {
            place = at;
            at += aligned(bytes);
        };
        take(row_index_, limits.rows * 4);
        take(key_index_, (limits.keys + limits.panel) * 4);
        packs_ = limits.keys * (desc.head_dim + desc.value_dim) * 4 <= most_packed;
        take(packed_keys_, packs_ ? limits.keys * desc.head_dim * 4 : 0);
        take(packed_values_, packs_ ? limits.keys * desc.value_dim * 4 : 0);
        take(part_output_, limits.merges ? limits.heads * limits.rows * desc.value_dim * 4 : 0);
        take(part_lse_, limits.merges ? limits.heads * limits.rows * 4 : 0);
        tiles_ = at;
        // Rows that fill the widest tiles and the largest groups of them: no part needs more.
        attend_plan_desc most = desc;
        most.batch = 1, most.num_q_heads = limits.heads, most.num_kv_heads = 1, most.q_len = 6144, most.max_workers = 1;
        at += (tile_workspace(most) + 63) & ~uint64_t{63};
        slot_bytes_ = at;
    }

    // Keys where they are, or a copy of them.
    const attend_tensor* keys_of(OwnTensor& own, const attend_tensor& whole, int64_t batch, int64_t head,
                                 const Steps& keys, char* packed) const {
        const Steps rows = keys.count == 0 ? Steps{0, 1, 0} : keys;
        rows_of(own, whole, whole.shape[0] == 1 ? 0 : batch, head, 1, rows);
        if (keys.step == 1 || keys.count == 0 || !packs_ || own_step(whole, keys) <= page) return &own.tensor;
        copy_rows(whole, batch, head, keys, 0, keys.count, packed);
        return panel_of(own, whole, packed, keys.count);
    }
    static int64_t own_step(const attend_tensor& whole, const Steps& keys) {
        const int64_t step = whole.strides[2] * keys.step * (whole.dtype_bits / 8);
        return step < 0 ? -step : step;
    }

    const attend_tensor* pairs_of(OwnTensor& own, const attend_tensor* whole, const PartSpec& spec) const {
        if (whole == nullptr) return nullptr;
        describe(own, *whole, {1, spec.heads, whole->shape[2], whole->shape[3]},
                 {whole->strides[0], whole->strides[1], whole->strides[2], whole->strides[3]});
        own.tensor.data = static_cast<char*>(whole->data) +
                          (spec.batch * own.strides[0] + spec.head * own.strides[1]) * (whole->dtype_bits / 8);
        return &own.tensor;
    }
    static void merge(const attend_tensor& to, const attend_tensor& to_lse, const OwnTensor& from,
                      const OwnTensor& from_lse) {
        const auto values = view_of<float, 4>(&to), part = view_of<float, 4>(&from.tensor);
        const auto lse = view_of<float, 3>(&to_lse), part_lse = view_of<float, 3>(&from_lse.tensor);
        for (int64_t h = 0; h < values.shape[1]; ++h)
            for (int64_t i = 0; i < values.shape[2]; ++i)
                merge_row(values.at(0, h, i), values.strides[3], part.at(0, h, i), values.shape[3], *lse.at(0, h, i),
                          *part_lse.at(0, h, i));
    }

    const TileCall* whole_{nullptr};
    const attend_plan_desc* desc_;
    PartLimits limits_;
    const Context* context_{nullptr};
    attend_host serial_{};
    bool packs_{false};
    uint64_t row_index_{0}, key_index_{0}, packed_keys_{0}, packed_values_{0}, part_output_{0}, part_lse_{0}, tiles_{0},
        slot_bytes_{0};
};

}  // namespace attend::ATTEND_ISA
