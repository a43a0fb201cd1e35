// SPDX-License-Identifier: Apache-2.0
// Attention inside residue classes: position p sees keys j with j - p divisible by a stride. A class is a dense problem on
// rows in steps, and neighbouring classes are alike: they go to the tile engine together, as items of a batch, on one
// worker. Inside a class rows and keys are counted by themselves, so that nothing is searched in lists of indices; where a
// mask, a bias or dropout asks for the logical ones, classes go one by one and keep them. Rows far apart in memory are copied
// first: a page apart they share few places of a cache.
#pragma once

#include "stages.hpp"

namespace attend::ATTEND_ISA {

// Heads [head, head + width) of one key head of one item, as a call of their own; rows go to their place in `target`.
struct HeadCall {
    attend_tile_problem problem;
    attend_key_segment segment{};
    OwnTensor query, key, value, output, lse, max, sum, mask, bias, query_lengths, key_lengths;

    HeadCall(const attend_tile_problem& whole, int64_t batch, int64_t head, int64_t width, const PartTarget& target,
             const attend_plan_desc& desc)
        : problem(whole) {
        const auto rows = [](OwnTensor& own, const attend_tensor* from, int64_t b, int64_t h,
                             int64_t heads) -> const attend_tensor* {
            if (from == nullptr) return nullptr;
            return Parts::rows_of(own, *from, from->shape[0] == 1 ? 0 : b, h, heads, {0, 1, from->shape[2]});
        };
        const attend_key_segment& keys = whole.segments[0];
        const int64_t kv_head = head * desc.num_kv_heads / desc.num_q_heads;
        problem.query = rows(query, whole.query, batch, head, width);
        segment.key = rows(key, keys.key, batch, kv_head, 1);
        segment.value = rows(value, keys.value, batch, kv_head, 1);
        problem.segments = &segment;
        problem.num_segments = 1;
        const int64_t b = batch - target.batch, h = head - target.head;
        problem.output = rows(output, whole.output, b, h, width);
        problem.lse = rows(lse, whole.lse, b, h, width);
        problem.state_max = rows(max, whole.state_max, b, h, width);
        problem.state_sum = rows(sum, whole.state_sum, b, h, width);
        problem.mask = rows(mask, whole.mask, batch, head, width);
        problem.bias = rows(bias, whole.bias, batch, head, width);
        problem.query_lengths = Parts::length_of(query_lengths, whole.query_lengths, batch);
        problem.key_lengths = Parts::length_of(key_lengths, whole.key_lengths, batch);
        problem.dropout_heads = desc.num_q_heads;
        problem.dropout_head = batch * desc.num_q_heads + head;
    }
    HeadCall(const HeadCall&) = delete;
    HeadCall& operator=(const HeadCall&) = delete;
};

// What of its class a position sees, counted in members of the class.
struct ClassKeys {
    int64_t stride;
    int64_t reach{-1};  // members on each side; -1: all
    int64_t hole{-1};   // members on each side that an earlier stage has seen, the position's own included; -1: none
};

// Hides the hole where the diagonal does not; positions of the tile are origin + unit * row.
struct ClassHole {
    int64_t hole, origin, unit;

    int64_t row(int64_t position) const { return floor_div(position - origin, unit); }
    static void visit(const void* user, const attend_query_tile* tile, attend_key_visit_fn visit_range, void* visitor) {
        const ClassHole& self = *static_cast<const ClassHole*>(user);
        const int64_t first = self.row(tile->first_position), last = self.row(tile->last_position);
        RangeWriter out(tile->kv_len, visit_range, visitor);
        out.add(0, first - self.hole, 0);
        if (last - self.hole < first + self.hole + 1) {  // some keys are hidden from all
            out.add(first - self.hole, last - self.hole, ATTEND_KEYS_PARTIAL);
            out.add(first + self.hole + 1, last + self.hole + 1, ATTEND_KEYS_PARTIAL);
        } else {
            out.add(first - self.hole, last + self.hole + 1, ATTEND_KEYS_PARTIAL);
        }
        out.add(last + self.hole + 1, tile->kv_len, 0);
    }
    static void keep(const void* user, const attend_score_tile* tile) {
        const ClassHole& self = *static_cast<const ClassHole*>(user);
        const attend_query_tile& queries = *tile->queries;
        const int64_t lanes = queries.lane_stride;
        int32_t begin[most_lanes], end[most_lanes];
        for (int64_t lane = 0; lane < lanes; ++lane) {
            const int64_t own = self.row(queries.lane_position[lane]);
            begin[lane] = LaneBands::narrow(own - self.hole);
            end[lane] = LaneBands::narrow(own + self.hole + 1);
        }
        for (int64_t at = 0; at < tile->num_keys; ++at) {
            const auto row = static_cast<int32_t>(tile->first_key + at);
            float* const scores = tile->scores + at * lanes;
            for (int64_t lane = 0; lane < lanes; ++lane)
                scores[lane] = (row >= begin[lane]) & (row < end[lane]) ? -__builtin_inff() : scores[lane];
        }
    }
};

// The keys at most `reach` away from each position, for heads of a unit: the results, or the state if the target keeps one.
inline attend_status run_band(const attend_tile_problem& whole, int64_t reach, bool widens, const StageUnit& unit,
                              const HeadRuns& heads, const attend_plan_desc& desc, const Context& context) {
    const PartTarget& target = unit.target;
    attend_tile_problem band = whole;
    band.window_left = Parts::narrower(whole.window_left, reach);
    band.window_right = Parts::narrower(whole.window_right, reach);
    band.output = target.output;
    band.lse = target.max == nullptr ? target.lse : nullptr;
    band.state_max = target.max;
    band.state_sum = target.sum;
    if (target.max != nullptr) band.flags |= ATTEND_TILE_LEAVES_STATE;
    if (widens) band.flags |= ATTEND_TILE_WIDEN;
    if (unit.batches == desc.batch && heads.first == 0 && heads.count * heads.width == desc.num_q_heads)
        return ATTEND_KERNEL(attend_tile_forward)(&band, &context);
    for (int64_t group = 0; group < unit.batches * heads.count; ++group) {
        const int64_t b = unit.batch + group / heads.count, h = heads.first + group % heads.count * heads.step;
        const HeadCall part(band, b, h, heads.width, target, desc);
        const attend_status status = ATTEND_KERNEL(attend_tile_forward)(&part.problem, &context);
        if (status != ATTEND_OK) return status;
    }
    return ATTEND_OK;
}

class ResidueClasses {
public:
    // Takes the state that an earlier stage has left in the target, if there is one.
    ResidueClasses(const TileCall& call, const attend_plan_desc& desc, const ClassKeys& keys, const StageUnit& unit,
                   const HeadRuns& heads, const Context& context)
        : whole_(&call.problem), desc_(&desc), keys_(keys), unit_(&unit), heads_(heads), context_(&context) {
        layout(heads.width);
        if (context.host != nullptr) {
            serial_ = *context.host;
            serial_.parallel_for = nullptr;
        }
        logical_ = whole_->mask != nullptr || whole_->bias != nullptr || whole_->dropout > 0.0;
        if (logical_) together_ = 1;
    }

    // Narrow types are widened: few keys, as with other calls.
    static bool widens(const attend_plan_desc& desc, int64_t stride) {
        return ceil_div(desc.kv_len, stride) < fewest_keys_of_dots;
    }
    static uint64_t workspace(const attend_plan_desc& desc, const ClassKeys& keys) {
        ResidueClasses sizes(desc, keys);
        return sizes.slot_bytes_ * (desc.max_workers == 0 ? 1 : desc.max_workers);
    }

    attend_status run() const {
        if (desc_->q_len == 0) return ATTEND_OK;
        const int64_t classes = lesser_of(keys_.stride, desc_->q_len), units = ceil_div(classes, together_);
        const int64_t chunks = ceil_div(most_rows(), class_rows);
        struct Loop {
            const ResidueClasses* self;
            int64_t classes, units, chunks;
            static attend_status run(void* user, uint64_t begin, uint64_t end, uint32_t slot) noexcept {
                const Loop& loop = *static_cast<const Loop*>(user);
                for (auto n = static_cast<int64_t>(begin); n < static_cast<int64_t>(end); ++n) {
                    const int64_t first = n / loop.chunks % loop.units * loop.self->together_;
                    const attend_status status = loop.self->run_unit(
                        n / loop.chunks / loop.units, first, lesser_of(first + loop.self->together_, loop.classes),
                        n % loop.chunks * class_rows, slot);
                    if (status != ATTEND_OK) return status;
                }
                return ATTEND_OK;
            }
        } loop{this, classes, units, chunks};
        const int64_t groups = unit_->batches * heads_.count;
        return parallel_items(context_, static_cast<uint64_t>(groups * units * chunks), Loop::run, &loop);
    }

private:
    static constexpr int64_t page = 4096, most_packed = int64_t{8} << 20, fits_cache = int64_t{384} << 10;
    static constexpr int64_t most_together = 16;
    static constexpr int64_t fewest_rows = 17;  // fewer may go another way in the engine, with other scratch
    static void all_keys(const void*, const attend_query_tile* tile, attend_key_visit_fn visit, void* visitor) {
        RangeWriter(tile->kv_len, visit, visitor).add(0, tile->kv_len, 0);
    }

    // Classes with as many rows and keys, and positions that begin at the same key of the class.
    struct Shape {
        int64_t rows, keys, first;
        bool operator==(const Shape& other) const {
            return rows == other.rows && keys == other.keys && first == other.first;
        }
    };
    Shape shape(int64_t row_class, int64_t offset) const {
        const int64_t p = row_class + offset;
        return {class_of(row_class, keys_.stride, desc_->q_len).count,
                class_of(floor_mod(p, keys_.stride), keys_.stride, desc_->kv_len).count, floor_div(p, keys_.stride)};
    }
    int64_t most_rows() const { return ceil_div(desc_->q_len, keys_.stride); }
    int64_t most_keys() const { return ceil_div(desc_->kv_len, keys_.stride); }

    attend_status run_unit(int64_t group, int64_t first, int64_t end, int64_t begin_row, uint32_t slot) const {
        const int64_t batch = unit_->batch + group / heads_.count,
                      head = heads_.first + group % heads_.count * heads_.step;
        const int64_t offset = (whole_->flags & ATTEND_TILE_OFFSET_PER_ITEM) == 0
                                   ? whole_->causal_offset
                                   : integer_at(whole_->key_lengths, batch) - integer_at(whole_->query_lengths, batch);
        while (first < end) {
            const Shape of = shape(first, offset);
            int64_t count = 1;
            while (first + count < end && shape(first + count, offset) == of) ++count;
            if (begin_row < of.rows) {
                const attend_status status = run_alike(batch, head, first, count, of, begin_row, offset, slot);
                if (status != ATTEND_OK) return status;
            }
            first += count;
        }
        return ATTEND_OK;
    }

    // `count` classes from `first` on, rows from `begin_row` on.
    attend_status run_alike(int64_t batch, int64_t head, int64_t first, int64_t count, const Shape& of,
                            int64_t begin_row, int64_t offset, uint32_t slot) const {
        char* const at = static_cast<char*>(context_->workspace) + slot * slot_bytes_;
        const int64_t stride = keys_.stride, rows = lesser_of(of.rows - begin_row, class_rows);
        const int64_t key_class = floor_mod(first + offset, stride);
        const bool causal = (whole_->flags & ATTEND_TILE_CAUSAL) != 0;
        const auto members = [&](int64_t window) {
            return Parts::narrower(window < 0 ? -1 : window / stride, keys_.reach);
        };
        int64_t left = members(whole_->window_left), right = members(whole_->window_right);
        int64_t position = of.first + begin_row;  // of the first row, among the keys of the class
        ClassHole hole{keys_.hole, 0, 1};
        int64_t key_begin = 0, key_end = of.keys;
        if (causal) {
            // Under the diagonal a hole is one that lies deeper, and the window reaches less far from there.
            right = -1;
            if (hole.hole >= 0) {
                position -= hole.hole + 1;
                if (left >= 0 && left <= hole.hole) key_end = 0;
                left = left > hole.hole ? left - hole.hole - 1 : -1;
            }
            key_end = lesser_of(key_end, position + rows);
        } else if (right >= 0) {
            key_end = lesser_of(key_end, position + rows + right);
        }
        if (left >= 0) key_begin = position - left;
        key_begin = key_begin < 0 ? 0 : lesser_of(key_begin, of.keys);
        const int64_t keys = key_end > key_begin ? key_end - key_begin : 0;
        const int64_t kv_head = head * desc_->num_kv_heads / desc_->num_q_heads;

        OwnTensor query, key, value, output, lse, max, sum, mask, bias, query_lengths, key_lengths;
        attend_tile_problem problem = *whole_;
        attend_key_segment segment{};
        problem.flags &= ~(ATTEND_TILE_OFFSET_PER_ITEM | ATTEND_TILE_LEAVES_STATE);
        if (widens(*desc_, keys_.stride)) problem.flags |= ATTEND_TILE_WIDEN;
        problem.segments = &segment;
        problem.num_segments = 1;
        const Place of_queries{batch, head, first, begin_row, count, heads_.width, rows};
        problem.query = together_rows(query, *whole_->query, of_queries, at + packed_queries_);
        const Place of_keys{
            whole_->segments[0].key->shape[0] == 1 ? 0 : batch, kv_head, key_class, key_begin, count, 1, keys};
        segment.key = together_rows(key, *whole_->segments[0].key, of_keys, at + packed_keys_);
        segment.value = together_rows(value, *whole_->segments[0].value, of_keys, at + packed_values_);
        const PartTarget& target = unit_->target;
        const Place of_rows{batch - target.batch, head - target.head, first, begin_row, count, heads_.width, rows};
        problem.output = rows_of(output, *target.output, of_rows);
        problem.lse = target.lse != nullptr ? rows_of(lse, *target.lse, of_rows) : nullptr;
        if (target.max != nullptr) {
            problem.flags |= ATTEND_TILE_TAKES_STATE;
            problem.state_max = rows_of(max, *target.max, of_rows);
            problem.state_sum = rows_of(sum, *target.sum, of_rows);
        }
        problem.scores = nullptr;
        problem.dropout_heads = desc_->num_q_heads;
        problem.dropout_head = batch * desc_->num_q_heads + head;

        if (logical_) {
            auto* row_index = reinterpret_cast<int32_t*>(at + row_index_);
            auto* key_index = reinterpret_cast<int32_t*>(at + key_index_);
            for (int64_t n = 0; n < rows; ++n) row_index[n] = static_cast<int32_t>(first + (begin_row + n) * stride);
            for (int64_t n = 0; n < keys; ++n)
                key_index[n] = static_cast<int32_t>(key_class + (key_begin + n) * stride);
            problem.query_index = row_index;
            problem.key_index = key_index;
            problem.causal_offset = key_class + position * stride - row_index[0];
            problem.window_left = left < 0 ? -1 : left * stride;
            problem.window_right = right < 0 ? -1 : right * stride;
            problem.mask = pairs_of(mask, whole_->mask, batch, head);
            problem.bias = pairs_of(bias, whole_->bias, batch, head);
            problem.query_lengths = Parts::length_of(query_lengths, whole_->query_lengths, batch);
            problem.key_lengths = Parts::length_of(key_lengths, whole_->key_lengths, batch);
            hole.origin = key_class + key_begin * stride;
            hole.unit = stride;
        } else {
            problem.causal_offset = position - key_begin;
            problem.window_left = left;
            problem.window_right = right;
            const auto lengths = [&](OwnTensor& own, const attend_tensor* whole, uint64_t place, int64_t from_class,
                                     int64_t from, int64_t most) -> const attend_tensor* {
                if (whole == nullptr) return nullptr;
                auto* list = reinterpret_cast<int64_t*>(at + place);
                for (int64_t n = 0; n < count; ++n) {
                    const int64_t below = class_of(from_class + n, stride, integer_at(whole, batch)).count - from;
                    list[n] = below < 0 ? 0 : lesser_of(below, most);
                }
                describe(own, nullptr, count, 1, 1, 1);
                own.tensor.ndim = 1;
                own.tensor.dtype_code = ATTEND_CODE_INT;
                own.tensor.dtype_bits = 64;
                own.tensor.data = list;
                return &own.tensor;
            };
            problem.query_lengths = lengths(query_lengths, whole_->query_lengths, row_lengths_, first, begin_row, rows);
            problem.key_lengths = lengths(key_lengths, whole_->key_lengths, key_lengths_, key_class, key_begin, keys);
        }
        if (hole.hole >= 0 && !causal)
            use_keys(problem, hole);
        else if (rows * heads_.width < fewest_rows)
            problem.keys = all_keys;

        Context inner = *context_;
        inner.host = context_->host != nullptr ? &serial_ : nullptr;
        inner.max_workers = 1;
        inner.workspace = at + tiles_;
        inner.workspace_bytes = slot_bytes_ - tiles_;
        return ATTEND_KERNEL(attend_tile_forward)(&problem, &inner);
    }

    // Members from `begin` on of `count` classes from `first` on, as [class, head, member, *] or [class, head, member].
    struct Place {
        int64_t batch, head, first, begin, count, heads, members;
    };
    const attend_tensor* rows_of(OwnTensor& own, const attend_tensor& whole, const Place& place) const {
        const int64_t by_row = whole.strides[2];
        own.tensor = whole;
        own.tensor.shape = own.shape;
        own.tensor.strides = own.strides;
        own.shape[0] = place.count, own.shape[1] = place.heads, own.shape[2] = place.members;
        own.strides[0] = by_row, own.strides[1] = whole.strides[1], own.strides[2] = by_row * keys_.stride;
        if (whole.ndim == 4) own.shape[3] = whole.shape[3], own.strides[3] = whole.strides[3];
        const int64_t start = place.batch * whole.strides[0] + place.head * whole.strides[1] +
                              (place.first + place.begin * keys_.stride) * by_row;
        own.tensor.data = static_cast<char*>(whole.data) + start * (whole.dtype_bits / 8);
        return &own.tensor;
    }
    // Rows of one head where they are, or a copy of them.
    const attend_tensor* together_rows(OwnTensor& own, const attend_tensor& whole, const Place& place,
                                       char* copy) const {
        rows_of(own, whole, place);
        const int64_t bytes = whole.dtype_bits / 8, step = own.strides[2] * bytes;
        if (!packs_ || place.members == 0 || place.heads > 1 || (step < 0 ? -step : step) <= page) return &own.tensor;
        const int64_t width = whole.shape[3], row = width * bytes;
        const char* base = static_cast<const char*>(own.tensor.data);
        // Neighbours in memory are members of neighbouring classes; those behind a step are asked for two steps ahead.
        constexpr int64_t ahead = 2;
        for (int64_t n = 0; n < place.members; ++n)
            for (int64_t c = 0; c < place.count; ++c) {
                const char* from = base + (n * own.strides[2] + c * own.strides[0]) * bytes;
                const char* later = from + ahead * own.strides[2] * bytes;
                if (n + ahead < place.members)
                    for (int64_t line = 0; line < row; line += 64) __builtin_prefetch(later + line);
                char* to = copy + (c * place.members + n) * row;
                if (own.strides[3] == 1) {
                    __builtin_memcpy(to, from, static_cast<size_t>(row));
                    continue;
                }
                for (int64_t d = 0; d < width; ++d)
                    __builtin_memcpy(to + d * bytes, from + d * own.strides[3] * bytes, static_cast<size_t>(bytes));
            }
        own.tensor.data = copy;
        own.strides[0] = own.strides[1] = place.members * width;
        own.strides[2] = width, own.strides[3] = 1;
        return &own.tensor;
    }
    const attend_tensor* pairs_of(OwnTensor& own, const attend_tensor* whole, int64_t batch, int64_t head) const {
        if (whole == nullptr) return nullptr;
        describe(own, *whole, {1, heads_.width, whole->shape[2], whole->shape[3]},
                 {whole->strides[0], whole->strides[1], whole->strides[2], whole->strides[3]});
        own.tensor.data = static_cast<char*>(whole->data) +
                          (batch * own.strides[0] + head * own.strides[1]) * (whole->dtype_bits / 8);
        return &own.tensor;
    }

    ResidueClasses(const attend_plan_desc& desc, const ClassKeys& keys) : desc_(&desc), keys_(keys) {
        layout(desc.num_kv_heads > 0 ? desc.num_q_heads / desc.num_kv_heads : 1);
    }
    static int64_t lesser_of(int64_t a, int64_t b) { return a < b ? a : b; }

    void layout(int64_t heads) {
        const int64_t keys = most_keys(), width = desc_->head_dim + desc_->value_dim;
        const int64_t of_class = keys * width * 4;
        const int64_t fitting = of_class > 0 ? fits_cache / of_class : most_together;
        together_ = fitting < 1 ? 1 : lesser_of(fitting, most_together);
        packs_ = of_class <= most_packed;
        uint64_t at = 0;
        const auto take = [&](uint64_t& place, int64_t bytes) {
            place = at;
            at += (static_cast<uint64_t>(bytes) + 63) & ~uint64_t{63};
        };
        take(row_index_, lesser_of(most_rows(), class_rows) * 4);
        take(key_index_, keys * 4);
        take(row_lengths_, together_ * 8);
        take(key_lengths_, together_ * 8);
        take(packed_keys_, packs_ ? together_ * keys * desc_->head_dim * 4 : 0);
        take(packed_values_, packs_ ? together_ * keys * desc_->value_dim * 4 : 0);
        take(packed_queries_, packs_ ? together_ * lesser_of(most_rows(), class_rows) * desc_->head_dim * 4 : 0);
        tiles_ = at;
        // Rows that fill the widest tiles and the largest groups of them: nothing here needs more.
        attend_plan_desc most = *desc_;
        most.batch = 1, most.num_q_heads = heads, most.num_kv_heads = 1, most.q_len = 6144, most.max_workers = 1;
        at += (tile_workspace(most) + 63) & ~uint64_t{63};
        slot_bytes_ = at;
    }

    const attend_tile_problem* whole_{nullptr};
    const attend_plan_desc* desc_;
    ClassKeys keys_;
    const StageUnit* unit_{nullptr};
    HeadRuns heads_{};
    const Context* context_{nullptr};
    attend_host serial_{};
    bool packs_{false}, logical_{false};
    int64_t together_{1};
    uint64_t row_index_{0}, key_index_{0}, row_lengths_{0}, key_lengths_{0}, packed_keys_{0}, packed_values_{0},
        packed_queries_{0}, tiles_{0}, slot_bytes_{0};
};

}  // namespace attend::ATTEND_ISA
