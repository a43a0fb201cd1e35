// SPDX-License-Identifier: Apache-2.0
// AttentionService: one call from tensors to tensors, by a mechanism that the caller names or that the rules of the
// configuration choose. A mechanism named by the caller is never replaced by another.
//
//   auto service = attend::AttentionService::open({});
//   attend::ForwardInputs inputs{.query = q, .key = k, .value = v};
//   auto result = (*service)->forward(inputs, {.mechanism = "flash-attention-v2", .options = {{"causal", true}}});
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "attend/attention_weights.hpp"
#include "attend/config/config.hpp"
#include "attend/config/rules.hpp"
#include "attend/error.hpp"
#include "attend/tensor.hpp"

namespace attend {

class CallPlan;
class RegistrySnapshot;
struct PluginReport;
struct SearchedDir;
struct CpuFacts;

struct ServiceSettings {
    Config config;                                    // load_config, or the built-in default
    std::vector<std::filesystem::path> plugin_files;  // searched first
    std::vector<std::filesystem::path> plugin_dirs;
    std::string plugin_path;                            // further folders, colon-separated
    std::filesystem::path user_plugin_dir;              // empty: none
    std::optional<std::filesystem::path> built_in_dir;  // default: found from the program's own location
    bool probe{true};                                   // try foreign plugins in a child process first
};

// Shapes: query [B,H,N,D] (or [N,D], [D], packed [B,N,H*D] with `heads`; projected form [B,N,E]), key and value likewise.
// An absent key is the query, an absent value the key, unless the mechanism says otherwise. F32, F16, BF16 or F64.
using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

struct ForwardInputs {
    Tensor query;  // a Tensor{} stands for none, where the mechanism does without
    std::optional<Tensor> key, value;
    std::optional<Tensor> mask;                           // BOOL or U8, broadcastable to [B,H,Nq,Nk]; true = may attend
    std::optional<Tensor> bias;                           // float, likewise
    std::optional<Tensor> query_lengths, key_lengths;     // I32 or I64, [B]
    std::vector<std::pair<std::string, Tensor>> extra;    // other inputs that a mechanism declares, by name
    std::vector<std::pair<std::string, Tensor>> weights;  // by name
};

struct ForwardOptions {
    std::string mechanism{"auto"};       // a name, or "auto": rules, then thresholds
    NamedValues options{};               // checked against the mechanism's table; either spelling
    std::int64_t heads{0}, kv_heads{0};  // of packed tensors; 0 = not given
    bool lse{false}, scores{false};
    std::string precision{};  // empty: the service's
    RequestFacts facts{};     // further variables for rules (hierarchical, maxError, taskType, ...)
};

struct ForwardResult {
    Tensor output;
    std::optional<Tensor> lse, scores;
    std::vector<std::pair<std::string, Tensor>> extra;  // routing reports and the like
    std::string mechanism, plugin, plugin_version, backend, precision;
    std::string exactness;  // exact, approximate, different-function
    std::string reason;     // why this mechanism, default weights, ...
    std::vector<std::string> warnings;
    bool cached{false};  // the output came from the result cache
    bool plan_reused{false};
    double time_ms{0};
    double flops{0};  // by the mechanism's own formula; 0 = it gives none
    std::uint64_t workspace_bytes{0};
    std::shared_ptr<const CallPlan> plan;

    [[nodiscard]] Json options() const;  // in force, by name
};

struct Candidate {
    std::string mechanism;
    NamedValues options;
    std::string rule;  // "0", "1", ... the rule's index; "threshold", "default" or "candidate"
    std::string rule_text;
    std::string exactness;
    std::optional<double> error_bound;  // absent: unbounded
    std::optional<double> est_flops, est_bytes, est_time_ms;
    bool supported{false};
    std::vector<std::string> reasons;
    std::string check;  // of a rejected one: the check that failed
};

struct TraceStep {
    std::size_t index{};
    std::string text;
    std::optional<bool> value;
    std::string error, skipped_because;
};

struct Recommendation {
    std::optional<std::string> selected;
    std::vector<Candidate> recommendations, rejected;
    std::vector<TraceStep> trace;
};

// The shape of a call, for questions about it without tensors.
struct CallSizes {
    std::int64_t batch{1}, heads{1}, kv_heads{1}, q_len{1}, kv_len{1}, head_dim{64};
};
// Query rows [first, first + count) of a head, at_once at a time; 0: as many as the mechanism's engine takes together.
struct PatternRows {
    std::int64_t head{0}, first{0}, count{0}, at_once{1};
};
// Keys begin, begin + step, ... below end that the rows read; partial: some of these rows do not see some of them.
struct PatternRange {
    std::int64_t first_row, num_rows, begin, end, step;
    bool partial;
};
using PatternVisitor = std::function<void(const PatternRange&)>;

class AttentionService {
public:
    static Result<std::unique_ptr<AttentionService>> open(ServiceSettings settings);
    ~AttentionService();
    AttentionService(const AttentionService&) = delete;
    AttentionService& operator=(const AttentionService&) = delete;

    // May be called from several threads at a time. Inputs are not modified; outputs are new memory.
    Result<ForwardResult> forward(const ForwardInputs& inputs, const ForwardOptions& options);

    // Attention weights of such a call, some rows at a time: reductions, chosen rows and pairs, all of them under a guard.
    // Errors: a mechanism without weights (unsupported), what is asked for outside the call (shape), results or, where a
    // plugin knows no rows, a matrix above the guard (limit). The same bits whatever the number of threads and the chunks.
    Result<WeightSummary> attention_weights(const ForwardInputs& inputs, const ForwardOptions& options,
                                            const WeightRequest& request);
    // All of them, [B,H,Nq,Nk], or what their softmax gets.
    Result<Tensor> attention_scores(const ForwardInputs& inputs, const ForwardOptions& options,
                                    ScoreStage stage = ScoreStage::weights,
                                    std::uint64_t max_bytes = std::uint64_t{1} << 28);
    // All rows, in order.
    Result<void> visit_attention_weights(const ForwardInputs& inputs, const ForwardOptions& options,
                                         const WeightVisit& how, const WeightVisitor& visit);

    // Learned tensors kept by the service: later calls that name the same mechanism, bring no weights and do not ask for the
    // core form use them. `like.weights` are the tensors, `like` and `options` a call that they must fit (its tensors give
    // shapes and are not read); a packed in_proj_weight [3E,E] with in_proj_bias is taken apart. Every shape is checked before
    // anything changes; the tensors are copied. Without weights: those kept for the mechanism are forgotten.
    Result<void> set_projections(const ForwardInputs& like, const ForwardOptions& options);
    // The weights that such a call has, by name: given, kept, or made by the seeded initialisers. Copies.
    Result<NamedTensors> get_projections(const ForwardInputs& like, const ForwardOptions& options);
    // Numbers in them.
    Result<std::int64_t> param_count(const ForwardInputs& like, const ForwardOptions& options);

    // What forward would choose for a request described by rule variables, with every check. Pure function of its
    // arguments and the configuration.
    Result<Recommendation> recommend(const RequestFacts& facts);

    // The keys that a mechanism chooses by position (extension attend.pattern/1): ranges of the same rows are disjoint and
    // ascend; one row at a time they are the exact set, causal included, masks and lengths aside. The visitor must not throw.
    Result<void> visit_pattern(const std::string& mechanism, const CallSizes& sizes, const NamedValues& options,
                               const PatternRows& rows, const PatternVisitor& visit) const;

    [[nodiscard]] std::shared_ptr<const RegistrySnapshot> registry() const;
    [[nodiscard]] const std::vector<PluginReport>& plugin_reports() const;
    [[nodiscard]] const std::vector<SearchedDir>& searched_dirs() const;
    [[nodiscard]] const CpuFacts& cpu() const;
    [[nodiscard]] std::uint64_t isa() const;  // levels permitted
    [[nodiscard]] std::uint32_t threads() const;
    [[nodiscard]] const Config& config() const;
    struct PlanCacheFacts {
        std::uint64_t entries, hits, misses;
    };
    [[nodiscard]] PlanCacheFacts plan_cache() const;

private:
    struct State;
    explicit AttentionService(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

}  // namespace attend
