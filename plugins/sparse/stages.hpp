// SPDX-License-Identifier: Apache-2.0
// Attention in stages: the first stage stores rows and later ones merge theirs, or the first leaves the state of its softmax
// and a second one goes on. Narrow outputs are joined in float32, one head at a time, and rounded once.
#pragma once

#include "attend/toolkit/tile/storage.hpp"
#include "parts.hpp"

namespace attend::ATTEND_ISA {

constexpr int64_t band_rows = 512, class_rows = 1024;  // of a part

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Items and heads that a run of stages is for, and where they go.
struct StageUnit {
    int64_t batch, batches, head, heads;
    PartTarget target;
};
// Runs of heads inside a unit: first, first + step, ..., each `width` heads of one key head.
struct HeadRuns {
    int64_t first, step, count, width;
};
inline HeadRuns all_heads(const StageUnit& unit, const attend_plan_desc& desc) {
    const int64_t group = desc.num_kv_heads > 0 ? desc.num_q_heads / desc.num_kv_heads : 1;
    if (unit.heads == 1) return {unit.head, 1, 1, 1};
    return {unit.head, group, unit.heads / group, group};
}
// Every head for which shows(head) holds, one at a time.
inline HeadRuns one_by_one(const StageUnit& unit) { return {unit.head, 1, unit.heads, 1}; }

// What a stage leaves to the next one.
enum class Between { nothing, results, state };

class Stages {
public:
    static Between merged(bool merges) { return merges ? Between::results : Between::nothing; }
    static uint64_t workspace(const attend_plan_desc& desc, Between between) {
        if (between == Between::nothing) return 0;
        const bool to_output = direct(attend_find(&desc.bindings, ATTEND_OUT));
        const uint64_t numbers = Carve::floats(to_output ? desc.batch * desc.num_q_heads * desc.q_len : desc.q_len);
        const uint64_t of_state = between == Between::state ? 2 * numbers : 0;
        if (to_output) return between == Between::state ? of_state : numbers;
        return of_state + numbers + Carve::floats(desc.q_len * desc.value_dim);
    }
    static bool direct(const attend_tensor* output) { return output == nullptr || storage_of(output) == Storage::f32; }

    // body(unit) runs the stages of a unit.
    template <class Body>
    static attend_status run(const ForwardArgs& args, const Context& context, Carve& carve, Between between,
                             const Body& body) {
        const attend_plan_desc& desc = *args.desc;
        StageUnit unit{0, desc.batch, 0, desc.num_q_heads, {args.output, args.lse, 0, 0}};
        OwnTensor rows, lse, max, sum;
        if (between == Between::nothing) return body(unit);
        const bool to_output = direct(args.output);
        const auto numbers = [&](OwnTensor& own) {
            const int64_t items = to_output ? desc.batch : 1, heads = to_output ? desc.num_q_heads : 1;
            describe(own, carve.take(items * heads * desc.q_len), items, heads, desc.q_len, 1);
            own.tensor.ndim = 3;
            return &own.tensor;
        };
        if (between == Between::state) unit.target.max = numbers(max), unit.target.sum = numbers(sum);
        if (to_output) {
            if (between == Between::results) {
                const attend_tensor* kept = numbers(lse);
                if (args.lse == nullptr) unit.target.lse = kept;
            }
            return body(unit);
        }
        unit.target.lse = numbers(lse);
        describe(rows, carve.take(desc.q_len * desc.value_dim), 1, 1, desc.q_len, desc.value_dim);
        unit.target.output = &rows.tensor;
        unit.batches = unit.heads = 1;
        for (int64_t b = 0; b < desc.batch; ++b)
            for (int64_t h = 0; h < desc.num_q_heads; ++h) {
                unit.batch = unit.target.batch = b;
                unit.head = unit.target.head = h;
                const attend_status status = body(unit);
                if (status != ATTEND_OK) return status;
                narrow(args, context, rows, lse, b, h);
            }
        return ATTEND_OK;
    }

private:
    static void narrow(const ForwardArgs& args, const Context&, const OwnTensor& rows, const OwnTensor& lse, int64_t b,
                       int64_t h) {
        const StoredView output = stored_view(args.output);
        const auto* values = static_cast<const float*>(rows.tensor.data);
        const auto* logs = static_cast<const float*>(lse.tensor.data);
        const auto to = view_of<float, 3>(args.lse);
        for (int64_t i = 0; i < rows.shape[2]; ++i) {
            narrow_row(output.storage, values + i * rows.shape[3], rows.shape[3], output.at(b, h, i), output.step());
            if (to.present) *to.at(b, h, i) = logs[i];
        }
    }
};

// What the parts of a stage have in common.
struct Stage {
    const StageUnit* unit;
    HeadRuns heads;
    int64_t window_left, window_right;
    const PartKeys* pattern;
    bool merges;

    PartSpec spec(int64_t number) const {
        PartSpec part{};
        part.batch = unit->batch + number / heads.count;
        part.head = heads.first + number % heads.count * heads.step;
        part.heads = heads.width;
        part.window_left = window_left;
        part.window_right = window_right;
        part.pattern = pattern;
        part.merges = merges;
        return part;
    }
    int64_t groups() const { return unit->batches * heads.count; }
};

// All rows on `keys` (rows in chunks that see what window and diagonal leave of them).
inline attend_status run_rows(const Parts& parts, const Stage& stage, const attend_plan_desc& desc, const Steps& keys,
                              int64_t first_row = 0, int64_t end_row = -1) {
    const int64_t rows = (end_row < 0 ? desc.q_len : end_row) - first_row;
    const int64_t chunks = ceil_div(rows, band_rows);
    return parts.each(stage.groups() * chunks, [&](int64_t n, uint32_t slot) {
        PartSpec part = stage.spec(n / chunks);
        const int64_t first = first_row + n % chunks * band_rows;
        part.rows = Steps{first, 1, Steps::least(band_rows, first_row + rows - first)};
        part.keys = keys;
        return parts.run(part, stage.unit->target, slot);
    });
}

// Every residue class of positions on the keys of its class; `skip(head)` leaves a head out.
inline attend_status run_classes(const Parts& parts, const Stage& stage, const attend_plan_desc& desc, int64_t step) {
    const int64_t most = ceil_div(desc.q_len, step), chunks = ceil_div(most, class_rows);
    const int64_t classes = step < desc.q_len ? step : desc.q_len;  // that have rows
    if (desc.q_len == 0) return ATTEND_OK;
    return parts.each(stage.groups() * classes * chunks, [&](int64_t n, uint32_t slot) {
        PartSpec part = stage.spec(n / chunks / classes);
        const int64_t first = n / chunks % classes;
        const Steps rows = class_of(first, step, desc.q_len);
        const int64_t begin = n % chunks * class_rows;
        if (begin >= rows.count) return attend_status{ATTEND_OK};
        part.rows = rows.part(begin, Steps::least(begin + class_rows, rows.count));
        part.keys = class_of(floor_mod(first + parts.offset_of(part.batch), step), step, desc.kv_len);
        return parts.run(part, stage.unit->target, slot);
    });
}

}  // namespace attend::ATTEND_ISA
