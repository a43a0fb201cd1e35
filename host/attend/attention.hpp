// SPDX-License-Identifier: Apache-2.0
// Attention layers as objects: one class per common kind, thin over an AttentionService. Options are checked when an object is
// made; tensors are packed as models have them, [batch, sequence, heads * dim], float32 or narrower. Objects may be used
// from several threads at a time.
//
//   std::shared_ptr<attend::AttentionService> service = attend::AttentionService::open({}).value();
//   auto attention = attend::FlashAttention::create(service, {.heads = 8, .dim = 64, .causal = true});
//   auto output = attention->forward(q, k, v);
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "attend/attention_service.hpp"

namespace attend {

// What the classes share: the service, the options of the mechanism, and the tensors of the last call, which are held and
// not copied (whoever wraps memory of their own must keep it as long).
class AttentionLayer {
public:
    AttentionLayer(AttentionLayer&&) noexcept;
    AttentionLayer& operator=(AttentionLayer&&) noexcept;
    ~AttentionLayer();

    [[nodiscard]] const std::string& mechanism() const;
    [[nodiscard]] const NamedValues& options() const;

protected:
    struct State;
    explicit AttentionLayer(std::shared_ptr<State> state);
    static Result<std::shared_ptr<State>> open(std::shared_ptr<AttentionService> service, const char* name,
                                               const char* mechanism, NamedValues options);
    // [batch, sequence, width] with this width, or an error that names the tensor.
    [[nodiscard]] Result<void> check_packed(const char* what, const Tensor& tensor, std::int64_t width) const;
    struct PackedTensor {
        const Tensor& tensor;
        std::int64_t width;  // that it must have
    };
    [[nodiscard]] Result<ForwardInputs> packed(const PackedTensor& query, const PackedTensor& key,
                                               const PackedTensor& value,
                                               const std::optional<Tensor>& mask = std::nullopt) const;
    Result<Tensor> run(ForwardInputs inputs);
    // Weights [B, H, Nq, Nk] of these tensors, or of the last call.
    Result<Tensor> weights_of(const ForwardInputs& inputs) const;
    Result<Tensor> last_weights() const;
    // Learned tensors of the layer; `like` is a call of its widths.
    Result<void> keep_projections(const ForwardInputs& like, const NamedTensors& weights);
    Result<NamedTensors> projections(const ForwardInputs& like) const;
    Result<std::int64_t> count_of(const ForwardInputs& like) const;

    std::shared_ptr<State> state_;
};

struct FlashAttentionOptions {
    std::int64_t heads{8}, dim{64};  // dim: width of a head
    std::int64_t block_size{256};    // bound of both tile sides; 0: chosen
    bool causal{false};
    double dropout{0.0};
    std::optional<double> scale{};  // default 1/sqrt(dim)
    std::int64_t window_size{0};    // keys on each side; 0: all
    double softcap{0.0};            // 0: off
    std::uint64_t seed{0};          // of dropout
};

// Times of one call each, medians; memory above the inputs in 2^20 bytes.
struct FlashBenchmark {
    std::int64_t seq_len{0};
    double flash_ms{0}, flash_memory_mb{0};
    // Absent where all scores would not fit into max_standard_bytes.
    std::optional<double> standard_ms, standard_memory_mb;
    std::optional<double> speedup;        // standard_ms / flash_ms
    std::optional<double> memory_saving;  // 1 - flash / standard
};

// Exact attention by tiles: flash-attention-v2 (Dao 2023, arXiv:2307.08691).
class FlashAttention : public AttentionLayer {
public:
    static Result<FlashAttention> create(std::shared_ptr<AttentionService> service, FlashAttentionOptions options = {});
    // [batch, Nq, heads * dim], keys and values [batch, Nk, heads * dim]; mask [batch, Nq, Nk], true = may attend.
    Result<Tensor> forward(const Tensor& query, const Tensor& key, const Tensor& value,
                           const std::optional<Tensor>& mask = std::nullopt);
    // [batch, heads, Nq, Nk], before dropout.
    Result<Tensor> attention_scores(const Tensor& query, const Tensor& key) const;
    // Self-attention of generated tensors, batch 1, beside attention that stores its scores: two matrix products and a
    // softmax, same instruction set and threads. At least 10 runs each after 3 to warm up.
    Result<FlashBenchmark> benchmark(std::int64_t seq_len,
                                     std::uint64_t max_standard_bytes = std::uint64_t{4} << 30) const;

private:
    FlashAttention(std::shared_ptr<State> state, const FlashAttentionOptions& options)
        : AttentionLayer(std::move(state)), given_(options) {}
    FlashAttentionOptions given_;
};

struct MultiHeadAttentionOptions {
    std::int64_t model_dim{0};  // required
    std::int64_t heads{8};
    double dropout{0.0};
    bool bias{true};
    std::optional<std::int64_t> kdim{}, vdim{};  // default model_dim
    bool batch_first{true};                      // false: [sequence, batch, width]
    bool add_zero_attn{false};
    bool output_projection{true};
    std::uint64_t seed{0}, weight_seed{0};
};

// Multi-head attention with learned projections: standard-mha (Vaswani et al. 2017).
class MultiHeadAttention : public AttentionLayer {
public:
    static Result<MultiHeadAttention> create(std::shared_ptr<AttentionService> service,
                                             MultiHeadAttentionOptions options);
    // [batch, Nq, model_dim], [batch, Nk, kdim], [batch, Nk, vdim]; mask as above.
    Result<Tensor> forward(const Tensor& query, const Tensor& key, const Tensor& value,
                           const std::optional<Tensor>& mask = std::nullopt);
    // Of the last forward: [batch, heads, Nq, Nk]. Computed now, from tensors that are held, not copied.
    Result<Tensor> get_attention_weights() const { return last_weights(); }
    // wq, wk, wv, wo and their biases, or in_proj_weight and in_proj_bias; shapes are checked before anything changes.
    Result<void> set_projections(const NamedTensors& weights) { return keep_projections(like(), weights); }
    // Those set, or the seeded initialisers'.
    Result<NamedTensors> get_projections() const { return projections(like()); }
    Result<std::int64_t> param_count() const { return count_of(like()); }

private:
    MultiHeadAttention(std::shared_ptr<State> state, const MultiHeadAttentionOptions& options)
        : AttentionLayer(std::move(state)), given_(options) {}
    [[nodiscard]] ForwardInputs like() const;
    MultiHeadAttentionOptions given_;
};

struct CrossAttentionOptions {
    std::int64_t query_dim{0}, key_dim{0};  // required
    std::int64_t heads{8};
    double dropout{0.0};
    std::optional<std::int64_t> output_dim{};  // default query_dim
    bool bias{true};
    std::uint64_t seed{0}, weight_seed{0};
};

// One sequence asks another: cross-attention with learned projections.
class CrossAttention : public AttentionLayer {
public:
    static Result<CrossAttention> create(std::shared_ptr<AttentionService> service, CrossAttentionOptions options);
    // [batch, Nq, query_dim] and [batch, Nk, key_dim] to [batch, Nq, output_dim].
    Result<Tensor> forward(const Tensor& query, const Tensor& context,
                           const std::optional<Tensor>& mask = std::nullopt);
    Result<Tensor> get_attention_weights() const { return last_weights(); }
    Result<void> set_projections(const NamedTensors& weights) { return keep_projections(like(), weights); }
    Result<NamedTensors> get_projections() const { return projections(like()); }
    Result<std::int64_t> param_count() const { return count_of(like()); }

private:
    CrossAttention(std::shared_ptr<State> state, const CrossAttentionOptions& options)
        : AttentionLayer(std::move(state)), given_(options) {}
    [[nodiscard]] ForwardInputs like() const;
    CrossAttentionOptions given_;
};

struct LinearAttentionOptions {
    std::int64_t dim{0};  // required: width of a head
    std::int64_t heads{8};
    std::string feature_map{"elu"};  // elu, relu, dpfp, favor+
    std::optional<double> eps{};     // default 1e-6; favor+ has a guard of its own
    bool causal{false};
    std::optional<std::int64_t> num_features{};  // favor+ alone
    std::uint64_t seed{0};                       // of favor+'s features
};

// Attention by feature maps in time proportional to the length: linear-attention (Katharopoulos et al. 2020).
class LinearAttention : public AttentionLayer {
public:
    static Result<LinearAttention> create(std::shared_ptr<AttentionService> service, LinearAttentionOptions options);
    Result<Tensor> forward(const Tensor& query, const Tensor& key, const Tensor& value);
    // As with causal = true, whatever the option says.
    Result<Tensor> forward_causal(const Tensor& query, const Tensor& key, const Tensor& value);

private:
    LinearAttention(std::shared_ptr<State> state, const LinearAttentionOptions& options)
        : AttentionLayer(std::move(state)), given_(options) {}
    LinearAttentionOptions given_;
};

struct SlidingWindowAttentionOptions {
    std::optional<std::int64_t> window_size{};  // required: keys on each side of a query
    std::int64_t heads{8}, dim{64};
    std::int64_t global_tokens{0};  // leading tokens that see all and are seen by all
    double dropout{0.0};
    std::uint64_t seed{0};
};

// Attention within a window around each token: local-attention.
class SlidingWindowAttention : public AttentionLayer {
public:
    static Result<SlidingWindowAttention> create(std::shared_ptr<AttentionService> service,
                                                 SlidingWindowAttentionOptions options);
    Result<Tensor> forward(const Tensor& query, const Tensor& key, const Tensor& value);

private:
    SlidingWindowAttention(std::shared_ptr<State> state, const SlidingWindowAttentionOptions& options)
        : AttentionLayer(std::move(state)), given_(options) {}
    SlidingWindowAttentionOptions given_;
};

struct GroupedQueryAttentionOptions {
    std::int64_t query_heads{0}, kv_heads{0}, dim{0};  // required; kv_heads divides query_heads
    double dropout{0.0};
    std::uint64_t seed{0};
};

// Groups of query heads share a key and value head: grouped-query-attention (Ainslie et al. 2023).
class GroupedQueryAttention : public AttentionLayer {
public:
    static Result<GroupedQueryAttention> create(std::shared_ptr<AttentionService> service,
                                                GroupedQueryAttentionOptions options);
    // [batch, Nq, query_heads * dim], keys and values [batch, Nk, kv_heads * dim].
    Result<Tensor> forward(const Tensor& query, const Tensor& key, const Tensor& value,
                           const std::optional<Tensor>& mask = std::nullopt);

private:
    GroupedQueryAttention(std::shared_ptr<State> state, const GroupedQueryAttentionOptions& options)
        : AttentionLayer(std::move(state)), given_(options) {}
    GroupedQueryAttentionOptions given_;
};

}  // namespace attend
