// SPDX-License-Identifier: Apache-2.0
// Attention weights some rows at a time, through attend.scores/1, and what is kept of each row.
#include "attend/attention_weights.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "service/call_plan.hpp"
#include "service/service_state.hpp"
#include "service/status.hpp"

namespace attend {
namespace {

constexpr const char* place = "attention_weights: ";

const attend_scores_extension* rows_of_scores(const MechanismRecord& mechanism) {
    const attend_mechanism& functions = *mechanism.functions;
    if (functions.get_extension == nullptr) return nullptr;
    const auto* found =
        static_cast<const attend_scores_extension*>(functions.get_extension(mechanism.lib, ATTEND_EXT_SCORES));
    return found != nullptr && found->struct_size >= sizeof *found && found->rows != nullptr ? found : nullptr;
}

std::string bytes_text(double bytes) {
    return bytes < 9e18 ? std::to_string(static_cast<std::uint64_t>(bytes)) + " bytes" : "more than 2^63 bytes";
}
Error too_large(const std::string& what, const std::vector<std::int64_t>& shape, double bytes, std::uint64_t most) {
    return {ErrorCode::limit,
            place + what + " " + shape_text(shape) + " takes " + bytes_text(bytes) + "; accepted: up to " +
                std::to_string(most) + " bytes",
            "raise max_full_bytes, or ask for reductions"};
}
double bytes_of(const std::vector<std::int64_t>& shape, double item) {
    for (const std::int64_t extent : shape) item *= static_cast<double>(extent);
    return item;
}

// body(n) for n below `count`, on the workers of the pool. The order of results does not depend on them: each n has its own.
template <class Body>
void in_parallel(WorkerPool& pool, std::int64_t count, std::int64_t grain, const Body& body) {
    attend_call call;
    call.max_workers = pool.workers();
    (void)pool.run(
        &call, static_cast<std::uint64_t>(count), static_cast<std::uint64_t>(std::max<std::int64_t>(grain, 1)), 0,
        [](void* user, std::uint64_t begin, std::uint64_t end, std::uint32_t) noexcept -> attend_status {
            const Body& each = *static_cast<const Body*>(user);
            for (std::uint64_t n = begin; n < end; ++n) each(static_cast<std::int64_t>(n));
            return ATTEND_OK;
        },
        const_cast<Body*>(&body));
}

// Rows of a prepared call, as many at a time as fit.
class RowReader {
public:
    static Result<RowReader> open(PreparedCall call, const WeightVisit& how, WorkerPool& pool) {
        RowReader reader(std::move(call), how, pool);
        const CallPlan& plan = *reader.call_.plan;
        const auto at = std::find_if(plan.outputs.begin(), plan.outputs.end(),
                                     [](const BoundOutput& bound) { return bound.port->role == ATTEND_SCORES; });
        const std::vector<std::int64_t>& shape = at->shape;
        if (at->dtype != DType::f32 || shape.size() < 3 || shape.size() > 4)
            return Error{ErrorCode::plugin,
                         plan.mechanism->name + ": scores are " + shape_text(shape) + " of " + dtype_name(at->dtype) +
                             "; accepted: F32 of rank 3 or 4",
                         ""};
        reader.output_ = static_cast<std::size_t>(at - plan.outputs.begin());
        WeightRows& all = reader.extents_;
        all.batch = shape[0];
        all.heads = shape.size() == 4 ? shape[1] : 1;
        all.q_len = shape[shape.size() - 2];
        all.kv_len = shape.back();
        reader.extension_ = rows_of_scores(*plan.mechanism);
        if (how.stage == ScoreStage::logits && (reader.extension_ == nullptr || reader.extension_->logits == nullptr))
            return Error{ErrorCode::unsupported,
                         plan.mechanism->name +
                             ": no logits: its weights are not those of one softmax, or it does not tell; accepted: "
                             "stage weights",
                         ""};
        return reader;
    }

    [[nodiscard]] const WeightRows& extents() const { return extents_; }
    [[nodiscard]] std::vector<std::int64_t> shape() const {
        return {extents_.batch, extents_.heads, extents_.q_len, extents_.kv_len};
    }
    // What tiles of rows have in common: the engine takes 48 lanes at a time.
    [[nodiscard]] std::int64_t rows_at_once() const {
        constexpr std::int64_t tile = 48;
        const std::int64_t row = std::max<std::int64_t>(1, extents_.batch * extents_.heads * extents_.kv_len * 4);
        const std::int64_t most =
            static_cast<std::int64_t>(std::min<std::uint64_t>(how_.chunk_bytes, std::uint64_t{1} << 40)) / row;
        return std::max<std::int64_t>(1, most >= tile ? most / tile * tile : most);
    }

    // The rows where `wants(first, end)` says which of [first, end) are wanted, into `whole` if there is one.
    template <class Wants>
    Result<void> each(Tensor* whole, const Wants& wants, const WeightVisitor& visit) {
        if (extents_.batch == 0 || extents_.heads == 0 || extents_.q_len == 0) return {};
        if (extension_ == nullptr) return at_once(whole, visit);
        const std::int64_t most = std::min(rows_at_once(), extents_.q_len), heads = extents_.batch * extents_.heads;
        // A tile writes many rows side by side: a power of two apart they would share few places of a cache.
        const std::int64_t apart = (extents_.kv_len + 15) / 16 * 16 + 16;
        Tensor room;
        for (std::int64_t grid = 0; grid < extents_.q_len; grid += most) {
            auto [first, end] = wants(grid, std::min(grid + most, extents_.q_len));
            if (first >= end) continue;
            WeightRows rows = extents_;
            rows.first = first;
            rows.count = end - first;
            float* data = nullptr;
            if (whole != nullptr) {
                rows.row_stride = extents_.kv_len;
                rows.head_stride = extents_.q_len * extents_.kv_len;
                data = whole->as<float>() + first * extents_.kv_len;
            } else {
                if (room.data == nullptr) {
                    Result<Tensor> made = Tensor::allocate(DType::f32, {heads, most, apart}, Tensor::Fill::none);
                    if (!made) return made.error();
                    room = std::move(*made);
                }
                rows.row_stride = apart;
                rows.head_stride = rows.count * apart;
                data = room.as<float>();
            }
            rows.data = data;
            if (auto done = compute(rows, data); !done) return done;
            if (auto done = visit(rows); !done) return done;
        }
        return {};
    }

private:
    RowReader(PreparedCall call, const WeightVisit& how, WorkerPool& pool)
        : call_(std::move(call)), how_(how), pool_(&pool) {}

    // A plugin that knows no rows: the whole matrix, if it may be.
    Result<void> at_once(Tensor* whole, const WeightVisitor& visit) {
        if (const double bytes = bytes_of(shape(), 4); bytes > static_cast<double>(how_.max_full_bytes))
            return too_large(call_.plan->mechanism->name + " gives its weights only as a matrix, which as", shape(),
                             bytes, how_.max_full_bytes);
        Result<ForwardResult> result = run_call(*call_.plan, call_.inputs, pool_->workers());
        if (!result) return result.error();
        const Tensor scores = result->scores->view(shape(), compact_strides(shape()));
        if (whole != nullptr) *whole = scores;
        WeightRows rows = extents_;
        rows.count = extents_.q_len;
        rows.data = scores.as<const float>();
        rows.head_stride = extents_.q_len * extents_.kv_len;
        rows.row_stride = extents_.kv_len;
        return visit(rows);
    }

    Result<void> compute(const WeightRows& rows, float* data) {
        const CallPlan& plan = *call_.plan;
        const MechanismRecord& mechanism = *plan.mechanism;
        const std::size_t count = plan.inputs.size() + 1;
        std::vector<attend_tensor> tensors(count);
        std::vector<attend_binding> bindings(count);
        for (std::size_t at = 0; at < plan.inputs.size(); ++at) {
            tensors[at] = plan.tensors[at].tensor;
            tensors[at].data = bound_tensor(call_.inputs, plan.inputs[at])->data;
            const PortRecord& port = *plan.inputs[at].port;
            bindings[at] = {sizeof(attend_binding), port.role, port.name.c_str(), &tensors[at]};
        }
        const std::int64_t per_item = rows.heads * rows.head_stride;
        const bool ranked = plan.outputs[output_].shape.size() == 4;
        const std::array<std::int64_t, 4> shape{rows.batch, rows.heads, rows.count, rows.kv_len},
            strides{per_item, rows.head_stride, rows.row_stride, 1};
        const std::array<std::int64_t, 3> flat{rows.batch, rows.count, rows.kv_len},
            flat_strides{per_item, rows.row_stride, 1};
        attend_tensor& scores = tensors.back();
        scores = plan.tensors[plan.inputs.size() + output_].tensor;
        scores.data = data;
        scores.shape = ranked ? shape.data() : flat.data();
        scores.strides = ranked ? strides.data() : flat_strides.data();
        scores.extent_bytes = static_cast<std::uint64_t>((rows.batch * rows.heads - 1) * rows.head_stride +
                                                         (rows.count - 1) * rows.row_stride + rows.kv_len) *
                              4;
        bindings.back() = {sizeof(attend_binding), ATTEND_SCORES, plan.outputs[output_].port->name.c_str(), &scores};

        attend_call call;
        call.max_workers = pool_->workers();
        attend_exec exec{};
        exec.struct_size = sizeof exec;
        exec.bindings = {bindings.data(), static_cast<std::uint32_t>(count), sizeof(attend_binding)};
        exec.workspace = thread_workspace(plan.workspace_bytes, plan.workspace_align);
        exec.workspace_bytes = plan.workspace_bytes;
        exec.seed = plan.seed;
        exec.rng_offset = plan.rng_offset;
        exec.call = &call;
        if (plan.workspace_bytes != 0 && exec.workspace == nullptr)
            return Error{
                ErrorCode::memory,
                mechanism.name + ": no memory for a workspace of " + std::to_string(plan.workspace_bytes) + " bytes",
                ""};
        std::array<char, 512> text{};
        attend_error error{sizeof error, text.size(), ATTEND_OK, 0, text.data(), nullptr};
        attend_status status = ATTEND_INTERNAL;
        try {
            status = (how_.stage == ScoreStage::logits ? extension_->logits : extension_->rows)(
                plan.plan, &exec, rows.first, rows.count, &error);
        } catch (...) {
            return Error{ErrorCode::internal, mechanism.name + ": the plugin threw while computing weights", ""};
        }
        if (status != ATTEND_OK) return plugin_error(mechanism, status, text.data());
        return {};
    }

    PreparedCall call_;
    WeightVisit how_;
    WorkerPool* pool_;
    const attend_scores_extension* extension_{nullptr};
    std::size_t output_{0};
    WeightRows extents_;
};

// ln x of a positive number to 1e-12 of it, in steps that a compiler turns into vectors; other numbers go another way.
inline double fast_log(double x) {
    const auto bits = std::bit_cast<std::uint64_t>(x);
    // Mantissa in [0.707, 1.414).
    const std::uint64_t shifted = bits - 0x3fe6a09e667f3bcdu;
    const auto exponent = std::bit_cast<double>((shifted >> 52 ^ 0x800u) | 0x4330000000000000u);
    const double mantissa = std::bit_cast<double>(bits - (shifted & 0xfff0000000000000u));
    const double s = (mantissa - 1.0) / (mantissa + 1.0), z = s * s;
    const double series =
        2.0 + z * (2.0 / 3 + z * (2.0 / 5 + z * (2.0 / 7 + z * (2.0 / 9 + z * (2.0 / 11 + z * (2.0 / 13))))));
    const double e = exponent - (4503599627370496.0 + 2048.0);
    return e * 0.69314718055994530942 + s * series;
}

// - sum w ln w. Sums in a fixed order, eight side by side, over blocks in steps that vectorise.
double entropy_of(const float* row, std::int64_t keys) {
    constexpr std::int64_t lanes = 8, block = 64;
    double sums[lanes] = {}, weights[block], terms[block];
    for (std::int64_t at = 0; at < keys; at += block) {
        const std::int64_t count = std::min(block, keys - at);
        // NaN and negative weights have no entropy; weights of 0 add nothing.
        int any = 0;
        for (std::int64_t n = 0; n < count; ++n) any |= row[at + n] != 0.0f ? 1 : 0;
        if (any == 0) continue;
        for (std::int64_t n = 0; n < count; ++n) weights[n] = static_cast<double>(row[at + n]);
        for (std::int64_t n = count; n < block; ++n) weights[n] = 0.0;
        for (std::int64_t n = 0; n < block; ++n) {
            const double w = weights[n];
            terms[n] = w * fast_log(w > 0.0 ? w : 1.0);
        }
        for (std::int64_t n = 0; n < block; ++n) any |= weights[n] >= 0.0 ? 0 : 2;
        if ((any & 2) != 0) return std::numeric_limits<double>::quiet_NaN();
        for (std::int64_t n = 0; n < block; n += lanes)
            for (std::int64_t lane = 0; lane < lanes; ++lane) sums[lane] += terms[n + lane];
    }
    double sum = 0.0;
    for (const double lane : sums) sum += lane;
    return sum == 0.0 ? 0.0 : -sum;
}

// The k largest weights above 0, in a heap whose top is the one to go next. Keys ascend, so an equal weight never displaces.
void largest_of(const float* row, std::int64_t keys, std::int64_t k, std::vector<std::pair<float, std::int64_t>>& heap,
                float* values, std::int64_t* places) {
    const auto better = [](const auto& a, const auto& b) {
        return a.first > b.first || (a.first == b.first && a.second < b.second);
    };
    heap.clear();
    float least = 0.0f;
    const auto offer = [&](std::int64_t key) {
        if (!(row[key] > least)) return;
        if (static_cast<std::int64_t>(heap.size()) == k) {
            std::pop_heap(heap.begin(), heap.end(), better);
            heap.back() = {row[key], key};
        } else {
            heap.emplace_back(row[key], key);
        }
        std::push_heap(heap.begin(), heap.end(), better);
        if (static_cast<std::int64_t>(heap.size()) == k) least = heap.front().first;
    };
    constexpr std::int64_t block = 64;
    std::int64_t at = 0;
    for (; at + block <= keys; at += block) {
        int any = 0;
        for (std::int64_t n = 0; n < block; ++n) any |= row[at + n] > least ? 1 : 0;
        for (std::int64_t n = 0; n < block && any != 0; ++n) offer(at + n);
    }
    for (; at < keys; ++at) offer(at);
    std::sort(heap.begin(), heap.end(), better);
    for (std::int64_t n = 0; n < k; ++n) {
        const bool there = n < static_cast<std::int64_t>(heap.size());
        values[n] = there ? heap[static_cast<std::size_t>(n)].first : 0.0f;
        places[n] = there ? heap[static_cast<std::size_t>(n)].second : -1;
    }
}

// What a request keeps of the rows that come by.
class Summary {
public:
    Summary(const WeightRequest& request, const WeightRows& extents) : request_(request), extents_(extents) {}

    Result<void> prepare() {
        result.batch = extents_.batch, result.heads = extents_.heads;
        result.q_len = extents_.q_len, result.kv_len = extents_.kv_len;
        if (request_.top_k < 0)
            return Error{ErrorCode::option,
                         place + std::string("top_k is ") + std::to_string(request_.top_k) + "; accepted: 0 or more",
                         ""};
        for (std::size_t at = 0; at < request_.rows.size(); ++at)
            if (auto done = inside("rows[" + std::to_string(at) + "]", request_.rows[at], extents_.q_len); !done)
                return done;
        for (std::size_t at = 0; at < request_.pairs.size(); ++at) {
            const WeightPair& pair = request_.pairs[at];
            const struct {
                const char* name;
                std::int64_t value, extent;
            } parts[] = {{"batch", pair.batch, extents_.batch},
                         {"head", pair.head, extents_.heads},
                         {"row", pair.row, extents_.q_len},
                         {"key", pair.key, extents_.kv_len}};
            for (const auto& part : parts)
                if (auto done = inside("pairs[" + std::to_string(at) + "]." + part.name, part.value, part.extent);
                    !done)
                    return done;
        }
        const std::int64_t b = extents_.batch, h = extents_.heads;
        if (request_.top_k > 0) {
            const std::vector<std::int64_t> shape{b, h, extents_.q_len, request_.top_k};
            if (auto done = make("top_values and top_keys", result.top_values, DType::f32, shape, 12); !done)
                return done;
            if (auto done = make("top_keys", result.top_keys, DType::i64, shape, 8); !done) return done;
        }
        if (request_.column_mass)
            if (auto done = make("column_mass", result.column_mass, DType::f64, {b, h, extents_.kv_len}, 8); !done)
                return done;
        if (request_.row_entropy)
            if (auto done = make("row_entropy", result.row_entropy, DType::f64, {b, h, extents_.q_len}, 8); !done)
                return done;
        if (!request_.rows.empty())
            if (auto done = make("row_weights", result.row_weights, DType::f32,
                                 {b, h, static_cast<std::int64_t>(request_.rows.size()), extents_.kv_len}, 4);
                !done)
                return done;
        if (request_.full)
            if (auto done = make("full", result.full, DType::f32, {b, h, extents_.q_len, extents_.kv_len}, 4); !done)
                return done;
        result.pairs.assign(request_.pairs.size(), 0.0f);
        for (std::size_t at = 0; at < request_.rows.size(); ++at)
            wanted_.push_back({request_.rows[at], static_cast<std::int64_t>(at), true});
        for (std::size_t at = 0; at < request_.pairs.size(); ++at)
            wanted_.push_back({request_.pairs[at].row, static_cast<std::int64_t>(at), false});
        std::sort(wanted_.begin(), wanted_.end(), [](const Wanted& x, const Wanted& y) { return x.row < y.row; });
        return {};
    }

    // The part of [first, end) that has something to give.
    [[nodiscard]] std::pair<std::int64_t, std::int64_t> needed(std::int64_t first, std::int64_t end) const {
        if (request_.top_k > 0 || request_.column_mass || request_.row_entropy || request_.full) return {first, end};
        const auto from = at_or_behind(first), to = at_or_behind(end);
        if (from == to) return {first, first};
        return {from->row, (to - 1)->row + 1};
    }

    void take(const WeightRows& rows, WorkerPool& pool) {
        const std::int64_t heads = rows.batch * rows.heads;
        if (request_.top_k > 0 || request_.row_entropy)
            in_parallel(pool, heads * rows.count, 4, [&](std::int64_t n) {
                const std::int64_t head = n / rows.count, i = rows.first + n % rows.count;
                const float* row = rows.data + head * rows.head_stride + (i - rows.first) * rows.row_stride;
                const std::int64_t at = head * rows.q_len + i;
                if (request_.row_entropy) result.row_entropy->as<double>()[at] = entropy_of(row, rows.kv_len);
                if (request_.top_k == 0) return;
                thread_local std::vector<std::pair<float, std::int64_t>> heap;
                largest_of(row, rows.kv_len, request_.top_k, heap, result.top_values->as<float>() + at * request_.top_k,
                           result.top_keys->as<std::int64_t>() + at * request_.top_k);
            });
        if (request_.column_mass) {
            // Columns side by side, so that each sum has its rows in order.
            constexpr std::int64_t columns = 2048;
            const std::int64_t blocks = (rows.kv_len + columns - 1) / columns;
            in_parallel(pool, heads * blocks, 1, [&](std::int64_t n) {
                const std::int64_t head = n / blocks, begin = n % blocks * columns,
                                   count = std::min(columns, rows.kv_len - begin);
                double* sums = result.column_mass->as<double>() + head * rows.kv_len + begin;
                for (std::int64_t i = 0; i < rows.count; ++i) {
                    const float* row = rows.data + head * rows.head_stride + i * rows.row_stride + begin;
                    for (std::int64_t j = 0; j < count; ++j) sums[j] += static_cast<double>(row[j]);
                }
            });
        }
        for (auto at = at_or_behind(rows.first); at != wanted_.end() && at->row < rows.first + rows.count; ++at) {
            if (!at->whole) {
                const WeightPair& pair = request_.pairs[static_cast<std::size_t>(at->slot)];
                result.pairs[static_cast<std::size_t>(at->slot)] = rows.row(pair.batch, pair.head, pair.row)[pair.key];
                continue;
            }
            const auto count = static_cast<std::int64_t>(request_.rows.size());
            for (std::int64_t head = 0; head < heads; ++head)
                std::copy_n(rows.data + head * rows.head_stride + (at->row - rows.first) * rows.row_stride, rows.kv_len,
                            result.row_weights->as<float>() + (head * count + at->slot) * rows.kv_len);
        }
    }

    WeightSummary result;

private:
    struct Wanted {
        std::int64_t row, slot;
        bool whole;  // a row of the request, else a pair
    };

    std::vector<Wanted>::const_iterator at_or_behind(std::int64_t row) const {
        return std::lower_bound(wanted_.begin(), wanted_.end(), row,
                                [](const Wanted& wanted, std::int64_t other) { return wanted.row < other; });
    }
    static Result<void> inside(const std::string& name, std::int64_t value, std::int64_t extent) {
        if (value >= 0 && value < extent) return {};
        return Error{ErrorCode::shape,
                     place + name + " is " + std::to_string(value) + "; accepted: " +
                         (extent > 0 ? "0 to " + std::to_string(extent - 1) : "none, there are no such weights"),
                     ""};
    }
    Result<void> make(const char* name, std::optional<Tensor>& to, DType dtype, std::vector<std::int64_t> shape,
                      double item) const {
        if (const double bytes = bytes_of(shape, item); bytes > static_cast<double>(request_.max_full_bytes))
            return too_large(name, shape, bytes, request_.max_full_bytes);
        Result<Tensor> made = Tensor::allocate(dtype, std::move(shape));
        if (!made) return made.error();
        to = std::move(*made);
        return {};
    }

    const WeightRequest& request_;
    WeightRows extents_;
    std::vector<Wanted> wanted_;
};

std::pair<std::int64_t, std::int64_t> all_rows(std::int64_t first, std::int64_t end) { return {first, end}; }

}  // namespace

Result<PreparedCall> AttentionService::State::prepare_weights(const ForwardInputs& given, const ForwardOptions& asked) {
    ForwardOptions options = asked;
    options.scores = true;
    options.lse = false;
    if (options.mechanism != "auto") {
        const Result<MechanismPtr> named = registry.snapshot()->get(options.mechanism, "attention_weights");
        if (!named) return named.error();
        if (!(*named)->has(ATTEND_CAP_SCORES_OUT))
            return Error{ErrorCode::unsupported,
                         (*named)->name + ": no score matrix; accepted: a mechanism with attention weights",
                         "`attend list --json` shows them: capability SCORES_OUT"};
    }
    ForwardCall call;
    if (auto done = prepare(call, given, options); !done) return done.error();
    return PreparedCall{call.plan, call.read_inputs()};
}

Result<WeightSummary> AttentionService::attention_weights(const ForwardInputs& inputs, const ForwardOptions& options,
                                                          const WeightRequest& request) {
    Result<PreparedCall> call = state_->prepare_weights(inputs, options);
    if (!call) return call.error();
    WorkerPool& pool = *state_->machine->pool;
    Result<RowReader> reader =
        RowReader::open(std::move(*call), {ScoreStage::weights, request.chunk_bytes, request.max_full_bytes}, pool);
    if (!reader) return reader.error();
    Summary summary(request, reader->extents());
    if (auto done = summary.prepare(); !done) return done.error();
    auto done = reader->each(
        summary.result.full ? &*summary.result.full : nullptr,
        [&](std::int64_t first, std::int64_t end) { return summary.needed(first, end); },
        [&](const WeightRows& rows) -> Result<void> {
            summary.take(rows, pool);
            return {};
        });
    if (!done) return done.error();
    return std::move(summary.result);
}

Result<Tensor> AttentionService::attention_scores(const ForwardInputs& inputs, const ForwardOptions& options,
                                                  ScoreStage stage, std::uint64_t max_bytes) {
    Result<PreparedCall> call = state_->prepare_weights(inputs, options);
    if (!call) return call.error();
    WeightVisit how;
    how.stage = stage;
    how.chunk_bytes = how.max_full_bytes = max_bytes;
    Result<RowReader> reader = RowReader::open(std::move(*call), how, *state_->machine->pool);
    if (!reader) return reader.error();
    const std::vector<std::int64_t> shape = reader->shape();
    if (const double bytes = bytes_of(shape, 4); bytes > static_cast<double>(max_bytes))
        return too_large("the matrix", shape, bytes, max_bytes);
    Result<Tensor> whole = Tensor::allocate(DType::f32, shape);
    if (!whole) return whole.error();
    auto done = reader->each(&*whole, all_rows, [](const WeightRows&) -> Result<void> { return {}; });
    if (!done) return done.error();
    return whole;
}

Result<void> AttentionService::visit_attention_weights(const ForwardInputs& inputs, const ForwardOptions& options,
                                                       const WeightVisit& how, const WeightVisitor& visit) {
    Result<PreparedCall> call = state_->prepare_weights(inputs, options);
    if (!call) return call.error();
    Result<RowReader> reader = RowReader::open(std::move(*call), how, *state_->machine->pool);
    if (!reader) return reader.error();
    return reader->each(nullptr, all_rows, visit);
}

}  // namespace attend
