// SPDX-License-Identifier: Apache-2.0
#include "attend/attention.hpp"

#include <algorithm>
#include <chrono>
#include <mutex>

#include "attend/random.hpp"
#include "attend/registry/mechanism_registry.hpp"
#include "benchmark/materialised.hpp"

namespace attend {
namespace {

constexpr int warm_up_runs = 3, timed_runs = 10;

double median(std::vector<double> samples) {
    std::sort(samples.begin(), samples.end());
    const std::size_t middle = samples.size() / 2;
    return samples.size() % 2 == 1 ? samples[middle] : (samples[middle - 1] + samples[middle]) / 2.0;
}

Result<Tensor> generated(const char* role, std::int64_t rows, std::int64_t width) {
    Result<Tensor> made = Tensor::allocate(DType::f32, {1, rows, width}, Tensor::Fill::none);
    if (!made) return made;
    const std::uint32_t hash = name_hash(std::string("data/") + role);
    for (std::int64_t at = 0; at < made->size(); ++at)
        made->as<float>()[at] = static_cast<float>(normals(named_words(
            static_cast<std::uint64_t>(at / 4), 0, RandomDomain::data, hash))[static_cast<std::size_t>(at % 4)]);
    return made;
}

// A tensor of extents alone, for questions about calls.
Tensor extents(std::int64_t width) {
    Result<Tensor> made = Tensor::allocate(DType::f32, {1, 1, std::max<std::int64_t>(width, 0)});
    return made ? std::move(*made) : Tensor{};
}

void add_seed(NamedValues& options, double dropout, std::uint64_t seed) {
    if (dropout != 0.0) options.emplace_back("dropout", dropout);
    if (seed != 0) options.emplace_back("seed", seed);
}

}  // namespace

struct AttentionLayer::State {
    std::shared_ptr<AttentionService> service;
    std::string name, mechanism;
    ForwardOptions call;
    mutable std::mutex mutex;
    std::optional<ForwardInputs> last;
    NamedTensors weights;
};

AttentionLayer::AttentionLayer(std::shared_ptr<State> state) : state_(std::move(state)) {}
AttentionLayer::AttentionLayer(AttentionLayer&&) noexcept = default;
AttentionLayer& AttentionLayer::operator=(AttentionLayer&&) noexcept = default;
AttentionLayer::~AttentionLayer() = default;

const std::string& AttentionLayer::mechanism() const { return state_->mechanism; }
const NamedValues& AttentionLayer::options() const { return state_->call.options; }

Result<std::shared_ptr<AttentionLayer::State>> AttentionLayer::open(std::shared_ptr<AttentionService> service,
                                                                    const char* name, const char* mechanism,
                                                                    NamedValues options) {
    if (service == nullptr) return Error{ErrorCode::option, std::string(name) + ": there is no service", ""};
    const Result<MechanismPtr> found = service->registry()->get(mechanism, name);
    if (!found) return found.error();
    if (std::vector<Error> problems = check_options(mechanism, (*found)->options, options); !problems.empty()) {
        problems.front().message = std::string(name) + ": " + problems.front().message;
        return problems.front();
    }
    auto state = std::make_shared<State>();
    state->service = std::move(service);
    state->name = name;
    state->mechanism = mechanism;
    state->call.mechanism = mechanism;
    state->call.options = std::move(options);
    return state;
}

Result<void> AttentionLayer::check_packed(const char* what, const Tensor& tensor, std::int64_t width) const {
    if (tensor.rank() == 3 && tensor.shape[2] == width) return {};
    return Error{ErrorCode::shape,
                 state_->name + ": " + what + " is " + shape_text(tensor.shape) + "; accepted: [batch, sequence, " +
                     std::to_string(width) + "]",
                 ""};
}

Result<ForwardInputs> AttentionLayer::packed(const PackedTensor& query, const PackedTensor& key,
                                             const PackedTensor& value, const std::optional<Tensor>& mask) const {
    for (const auto& [what, given] : {std::pair("query", &query), std::pair("key", &key), std::pair("value", &value)})
        if (auto done = check_packed(what, given->tensor, given->width); !done) return done.error();
    ForwardInputs inputs;
    inputs.query = query.tensor;
    inputs.key = key.tensor;
    inputs.value = value.tensor;
    inputs.mask = mask;
    return inputs;
}

Result<Tensor> AttentionLayer::run(ForwardInputs inputs) {
    {
        const std::scoped_lock lock(state_->mutex);
        inputs.weights = state_->weights;
    }
    Result<ForwardResult> result = state_->service->forward(inputs, state_->call);
    if (!result) return result.error();
    const std::scoped_lock lock(state_->mutex);
    state_->last = std::move(inputs);
    return std::move(result->output);
}

Result<Tensor> AttentionLayer::weights_of(const ForwardInputs& inputs) const {
    ForwardOptions call = state_->call;
    call.scores = true;
    Result<ForwardResult> result = state_->service->forward(inputs, call);
    if (!result) return result.error();
    if (!result->scores) return Error{ErrorCode::unsupported, state_->mechanism + ": no score matrix", ""};
    return std::move(*result->scores);
}

Result<Tensor> AttentionLayer::last_weights() const {
    std::optional<ForwardInputs> last;
    {
        const std::scoped_lock lock(state_->mutex);
        last = state_->last;
    }
    if (!last)
        return Error{ErrorCode::not_found, state_->name + ": there are no attention weights before the first forward",
                     ""};
    return weights_of(*last);
}

Result<void> AttentionLayer::keep_projections(const ForwardInputs& like, const NamedTensors& weights) {
    ForwardInputs call = like;
    call.weights = weights;
    // As the call sees them: checked, and what was packed taken apart.
    Result<NamedTensors> checked = state_->service->get_projections(call, state_->call);
    if (!checked) return checked.error();
    const std::scoped_lock lock(state_->mutex);
    state_->weights = std::move(*checked);
    return {};
}

Result<NamedTensors> AttentionLayer::projections(const ForwardInputs& like) const {
    ForwardInputs call = like;
    {
        const std::scoped_lock lock(state_->mutex);
        call.weights = state_->weights;
    }
    return state_->service->get_projections(call, state_->call);
}

Result<std::int64_t> AttentionLayer::count_of(const ForwardInputs& like) const {
    return state_->service->param_count(like, state_->call);
}

// ---- FlashAttention

Result<FlashAttention> FlashAttention::create(std::shared_ptr<AttentionService> service,
                                              FlashAttentionOptions options) {
    NamedValues values{{"heads", options.heads}, {"dim", options.dim}, {"block_size", options.block_size}};
    if (options.causal) values.emplace_back("causal", true);
    if (options.scale) values.emplace_back("scale", *options.scale);
    if (options.window_size != 0) values.emplace_back("window_size", options.window_size);
    if (options.softcap != 0.0) values.emplace_back("softcap", options.softcap);
    add_seed(values, options.dropout, options.seed);
    auto state = open(std::move(service), "FlashAttention", "flash-attention-v2", std::move(values));
    if (!state) return state.error();
    (*state)->call.heads = options.heads;
    return FlashAttention(std::move(*state), options);
}

Result<Tensor> FlashAttention::forward(const Tensor& query, const Tensor& key, const Tensor& value,
                                       const std::optional<Tensor>& mask) {
    const std::int64_t width = given_.heads * given_.dim;
    Result<ForwardInputs> inputs = packed({query, width}, {key, width}, {value, width}, mask);
    if (!inputs) return inputs.error();
    return run(std::move(*inputs));
}

Result<Tensor> FlashAttention::attention_scores(const Tensor& query, const Tensor& key) const {
    const std::int64_t width = given_.heads * given_.dim;
    for (const auto& [what, tensor] : {std::pair("query", &query), std::pair("key", &key)})
        if (auto done = check_packed(what, *tensor, width); !done) return done.error();
    ForwardInputs inputs;
    inputs.query = query;
    inputs.key = inputs.value = key;
    return weights_of(inputs);
}

Result<FlashBenchmark> FlashAttention::benchmark(std::int64_t seq_len, std::uint64_t max_standard_bytes) const {
    if (seq_len < 1)
        return Error{ErrorCode::shape,
                     "FlashAttention: a benchmark of length " + std::to_string(seq_len) + "; accepted: at least 1", ""};
    const std::int64_t heads = given_.heads, dim = given_.dim;
    ForwardInputs inputs;
    for (const auto& [role, tensor] : {std::pair("query", &inputs.query), std::pair("key", &inputs.key.emplace()),
                                       std::pair("value", &inputs.value.emplace())}) {
        Result<Tensor> made = generated(role, seq_len, heads * dim);
        if (!made) return made.error();
        *tensor = std::move(*made);
    }
    FlashBenchmark report;
    report.seq_len = seq_len;
    ForwardOptions call = state_->call;
    call.use_cache = false;  // what is timed is computed
    std::vector<double> samples;
    constexpr double mega = 1048576.0;
    for (int turn = 0; turn < warm_up_runs + timed_runs; ++turn) {
        const Result<ForwardResult> result = state_->service->forward(inputs, call);
        if (!result) return result.error();
        if (turn >= warm_up_runs) samples.push_back(result->time_ms);
        report.flash_memory_mb = static_cast<double>(result->workspace_bytes + result->output.byte_size()) / mega;
    }
    report.flash_ms = median(samples);

    const auto scores_bytes = checked_byte_size({heads, seq_len, seq_len}, sizeof(float));
    const std::uint64_t output_bytes = static_cast<std::uint64_t>(heads * seq_len * dim) * sizeof(float);
    if (!scores_bytes || static_cast<std::uint64_t>(*scores_bytes) + output_bytes > max_standard_bytes) return report;
    Result<Tensor> scores = Tensor::allocate(DType::f32, {heads, seq_len, seq_len}, Tensor::Fill::none);
    Result<Tensor> output = Tensor::allocate(DType::f32, {heads, seq_len, dim}, Tensor::Fill::none);
    if (!scores || !output) return report;
    // Heads apart, as it reads them.
    std::vector<Tensor> apart;
    for (const Tensor* tensor : {&inputs.query, &*inputs.key, &*inputs.value}) {
        Result<Tensor> made = contiguous_copy(tensor->view({heads, seq_len, dim}, {dim, heads * dim, 1}));
        if (!made) return made.error();
        apart.push_back(std::move(*made));
    }
    samples.clear();
    for (int turn = 0; turn < warm_up_runs + timed_runs; ++turn) {
        const auto begin = std::chrono::steady_clock::now();
        const Result<void> done = benchmark::materialised_attention(
            {apart[0].as<const float>(), apart[1].as<const float>(), apart[2].as<const float>(), scores->as<float>(),
             output->as<float>(), 1, heads, heads, seq_len, seq_len, dim},
            state_->service->isa(), state_->service->threads());
        if (!done) return done.error();
        if (turn >= warm_up_runs)
            samples.push_back(
                std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
    }
    report.standard_ms = median(samples);
    report.standard_memory_mb = static_cast<double>(static_cast<std::uint64_t>(*scores_bytes) + output_bytes) / mega;
    report.speedup = *report.standard_ms / report.flash_ms;
    report.memory_saving = 1.0 - report.flash_memory_mb / *report.standard_memory_mb;
    return report;
}

// ---- MultiHeadAttention

Result<MultiHeadAttention> MultiHeadAttention::create(std::shared_ptr<AttentionService> service,
                                                      MultiHeadAttentionOptions options) {
    NamedValues values{{"form", "projected"}, {"model_dim", options.model_dim}, {"heads", options.heads}};
    if (!options.bias) values.emplace_back("bias", false);
    if (options.kdim) values.emplace_back("kdim", *options.kdim);
    if (options.vdim) values.emplace_back("vdim", *options.vdim);
    if (!options.batch_first) values.emplace_back("batch_first", false);
    if (options.add_zero_attn) values.emplace_back("add_zero_attn", true);
    if (!options.output_projection) values.emplace_back("output_projection", false);
    if (options.weight_seed != 0) values.emplace_back("weight_seed", options.weight_seed);
    add_seed(values, options.dropout, options.seed);
    auto state = open(std::move(service), "MultiHeadAttention", "standard-mha", std::move(values));
    if (!state) return state.error();
    MultiHeadAttention made(std::move(*state), options);
    // Whether heads divide the width, and the like, a call of one token knows.
    if (const auto count = made.param_count(); !count) return count.error();
    return made;
}

ForwardInputs MultiHeadAttention::like() const {
    ForwardInputs inputs;
    inputs.query = extents(given_.model_dim);
    inputs.key = extents(given_.kdim.value_or(given_.model_dim));
    inputs.value = extents(given_.vdim.value_or(given_.model_dim));
    return inputs;
}

Result<Tensor> MultiHeadAttention::forward(const Tensor& query, const Tensor& key, const Tensor& value,
                                           const std::optional<Tensor>& mask) {
    Result<ForwardInputs> inputs = packed({query, given_.model_dim}, {key, given_.kdim.value_or(given_.model_dim)},
                                          {value, given_.vdim.value_or(given_.model_dim)}, mask);
    if (!inputs) return inputs.error();
    return run(std::move(*inputs));
}

// ---- CrossAttention

Result<CrossAttention> CrossAttention::create(std::shared_ptr<AttentionService> service,
                                              CrossAttentionOptions options) {
    NamedValues values{{"form", "projected"},
                       {"query_dim", options.query_dim},
                       {"key_dim", options.key_dim},
                       {"heads", options.heads}};
    if (options.output_dim) values.emplace_back("output_dim", *options.output_dim);
    if (!options.bias) values.emplace_back("bias", false);
    if (options.weight_seed != 0) values.emplace_back("weight_seed", options.weight_seed);
    add_seed(values, options.dropout, options.seed);
    auto state = open(std::move(service), "CrossAttention", "cross-attention", std::move(values));
    if (!state) return state.error();
    CrossAttention made(std::move(*state), options);
    if (const auto count = made.param_count(); !count) return count.error();
    return made;
}

ForwardInputs CrossAttention::like() const {
    ForwardInputs inputs;
    inputs.query = extents(given_.query_dim);
    inputs.key = extents(given_.key_dim);
    inputs.value = inputs.key;
    return inputs;
}

Result<Tensor> CrossAttention::forward(const Tensor& query, const Tensor& context, const std::optional<Tensor>& mask) {
    if (auto done = check_packed("query", query, given_.query_dim); !done) return done.error();
    if (auto done = check_packed("context", context, given_.key_dim); !done) return done.error();
    ForwardInputs inputs;
    inputs.query = query;
    inputs.key = context;
    inputs.value = context;
    inputs.mask = mask;
    return run(std::move(inputs));
}

// ---- LinearAttention

Result<LinearAttention> LinearAttention::create(std::shared_ptr<AttentionService> service,
                                                LinearAttentionOptions options) {
    if (options.dim < 1)
        return Error{ErrorCode::option,
                     "LinearAttention: dim is " + std::to_string(options.dim) + "; accepted: at least 1", ""};
    NamedValues values{{"feature_map", options.feature_map}};
    if (options.eps) values.emplace_back("eps", *options.eps);
    if (options.causal) values.emplace_back("causal", true);
    if (options.num_features) values.emplace_back("num_features", *options.num_features);
    if (options.seed != 0) values.emplace_back("seed", options.seed);
    auto state = open(std::move(service), "LinearAttention", "linear-attention", std::move(values));
    if (!state) return state.error();
    (*state)->call.heads = options.heads;
    return LinearAttention(std::move(*state), options);
}

Result<Tensor> LinearAttention::forward(const Tensor& query, const Tensor& key, const Tensor& value) {
    const std::int64_t width = given_.heads * given_.dim;
    Result<ForwardInputs> inputs = packed({query, width}, {key, width}, {value, width});
    if (!inputs) return inputs.error();
    return run(std::move(*inputs));
}

Result<Tensor> LinearAttention::forward_causal(const Tensor& query, const Tensor& key, const Tensor& value) {
    const std::int64_t width = given_.heads * given_.dim;
    const Result<ForwardInputs> inputs = packed({query, width}, {key, width}, {value, width});
    if (!inputs) return inputs.error();
    ForwardOptions call = state_->call;
    if (!given_.causal) call.options.emplace_back("causal", true);
    Result<ForwardResult> result = state_->service->forward(*inputs, call);
    if (!result) return result.error();
    return std::move(result->output);
}

// ---- SlidingWindowAttention

Result<SlidingWindowAttention> SlidingWindowAttention::create(std::shared_ptr<AttentionService> service,
                                                              SlidingWindowAttentionOptions options) {
    if (!options.window_size)
        return Error{ErrorCode::option,
                     "SlidingWindowAttention: window_size is not given; accepted: keys on each side, at least 0", ""};
    NamedValues values{{"window_size", *options.window_size}};
    if (options.global_tokens != 0) values.emplace_back("global_tokens", options.global_tokens);
    add_seed(values, options.dropout, options.seed);
    auto state = open(std::move(service), "SlidingWindowAttention", "local-attention", std::move(values));
    if (!state) return state.error();
    (*state)->call.heads = options.heads;
    return SlidingWindowAttention(std::move(*state), options);
}

Result<Tensor> SlidingWindowAttention::forward(const Tensor& query, const Tensor& key, const Tensor& value) {
    const std::int64_t width = given_.heads * given_.dim;
    Result<ForwardInputs> inputs = packed({query, width}, {key, width}, {value, width});
    if (!inputs) return inputs.error();
    return run(std::move(*inputs));
}

// ---- GroupedQueryAttention

Result<GroupedQueryAttention> GroupedQueryAttention::create(std::shared_ptr<AttentionService> service,
                                                            GroupedQueryAttentionOptions options) {
    const auto wrong = [](const std::string& text) {
        return Error{ErrorCode::option, "GroupedQueryAttention: " + text, ""};
    };
    if (options.dim < 1) return wrong("dim is " + std::to_string(options.dim) + "; accepted: at least 1");
    if (options.kv_heads < 1 || options.query_heads < 1 || options.query_heads % options.kv_heads != 0)
        return wrong("query_heads " + std::to_string(options.query_heads) + " and kv_heads " +
                     std::to_string(options.kv_heads) + "; accepted: at least 1, query_heads a multiple of kv_heads");
    NamedValues values{{"form", "core"}};
    add_seed(values, options.dropout, options.seed);
    auto state = open(std::move(service), "GroupedQueryAttention", "grouped-query-attention", std::move(values));
    if (!state) return state.error();
    (*state)->call.heads = options.query_heads;
    (*state)->call.kv_heads = options.kv_heads;
    return GroupedQueryAttention(std::move(*state), options);
}

Result<Tensor> GroupedQueryAttention::forward(const Tensor& query, const Tensor& key, const Tensor& value,
                                              const std::optional<Tensor>& mask) {
    const std::int64_t width = given_.kv_heads * given_.dim;
    Result<ForwardInputs> inputs = packed({query, given_.query_heads * given_.dim}, {key, width}, {value, width}, mask);
    if (!inputs) return inputs.error();
    return run(std::move(*inputs));
}

}  // namespace attend
