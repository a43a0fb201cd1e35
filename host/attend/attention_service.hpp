// SPDX-License-Identifier: Apache-2.0
// AttentionService: one call from tensors to tensors, by a mechanism that the caller names or that the rules of the
// configuration choose. A mechanism named by the caller is never replaced by another.
//
//   auto service = attend::AttentionService::open({});
//   attend::ForwardInputs inputs{.query = q, .key = k, .value = v};
//   auto result = (*service)->forward(inputs, {.mechanism = "flash-attention-v2", .options = {{"causal", true}}});
#pragma once

#include <atomic>
#include <chrono>
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
class AsyncCall;
struct MechanismRecord;
class CostTable;  // attend/cost_table.hpp
class RegistrySnapshot;
struct RerankOptions;  // attend/rerank.hpp
struct Reranking;
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
    // Every use of a registered tensor compares its elements with those at registration or at the last touch. Absent: in
    // builds with assertions.
    std::optional<bool> check_handles;
};

// A tensor that a service knows by number, so that its elements need not be read to recognise them.
using TensorHandle = std::uint64_t;

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
    // Registered tensors by role (query, key, value, mask, bias, query_lengths, key_lengths, input.<name>, weight.<name>):
    // they stand in for an absent tensor, or are the one given.
    std::vector<std::pair<std::string, TensorHandle>> handles{};
};

struct ForwardOptions {
    std::string mechanism{"auto"};       // a name, or "auto": rules, then thresholds
    NamedValues options{};               // checked against the mechanism's table; either spelling
    std::int64_t heads{0}, kv_heads{0};  // of packed tensors; 0 = not given
    bool lse{false}, scores{false};
    std::string precision{};  // empty: the service's
    RequestFacts facts{};     // further variables for rules (hierarchical, maxError, taskType, ...)
    bool use_cache{true};     // false: neither served from the result cache nor kept in it
    bool output{true};        // false: only scores and reports are wanted; a kept result may then have no output
    std::shared_ptr<std::atomic<bool>> cancel{};  // set it from any thread: the call ends with E_CANCELLED
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

// A variable of the request and the value that would let a rejected mechanism pass its checks; "infinity" for no limit.
// Several are meant together.
struct Change {
    std::string variable;  // of the rules
    Json value;
};

struct Candidate {
    std::string mechanism;
    NamedValues options;
    std::string rule;  // "0", "1", ... the rule's index; "threshold", "task", "default" or "candidate"
    std::string rule_text;
    std::string exactness;
    std::optional<double> error_bound;  // absent: unbounded
    std::optional<double> est_flops, est_bytes, est_time_ms;
    std::optional<double> est_workspace;  // bytes beside inputs and outputs
    bool supported{false};
    std::vector<std::string> reasons;
    std::string check;          // of a rejected one: the check that failed
    std::vector<Change> admit;  // of a rejected one: what would let it pass; empty: nothing of the request
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

// What a service has done since it was opened or last reset. One moment per field, not one for all.
struct ServiceMetrics {
    struct Mechanism {
        std::uint64_t calls{0};  // that succeeded; times are over the last 4096 of them, mean and maximum over all
        double mean_ms{0}, p50{0}, p95{0}, p99{0}, max_ms{0};
    };
    struct Cache {
        std::uint64_t hits{0}, misses{0}, bypass{0}, evictions{0}, bytes{0}, entries{0};
    };
    struct Selections {
        double mean_us{0};  // of those that were made; a known request is not chosen for again
        std::map<std::string, std::uint64_t> rule_hits;  // calls by rule: "0", "1", ..., "threshold"
        std::uint64_t skips{0};                          // candidates that a check refused
    };
    struct Benchmarks {
        std::uint64_t runs{0};
        double average_speedup{0}, peak_speedup{0}, success_rate{0};
    };
    std::uint64_t calls{0};                       // succeeded and failed
    std::map<std::string, std::uint64_t> errors;  // by name, E_OPTION
    std::uint64_t tokens{0};                      // query rows, over all sequences of the batch
    double flops{0};                              // by the mechanisms' own formulas
    std::uint64_t bytes_peak{0};                  // most that calls held at one time in outputs and workspaces
    std::map<std::string, Mechanism> mechanisms;
    Cache cache;
    Selections selection;
    Benchmarks benchmark;

    [[nodiscard]] Json json() const;
};

// A call under way on a thread of the service. Copies are the same call. It may outlive the service, whose end cancels it.
class PendingForward {
public:
    void cancel() const;  // get() then gives E_CANCELLED, unless the call was done before
    [[nodiscard]] bool ready() const;
    // Whether the call is done, after so long at most.
    [[nodiscard]] bool wait_for(std::chrono::milliseconds time) const;
    // Waits for the result. As often as you like; the tensors of the copies are the same memory.
    [[nodiscard]] Result<ForwardResult> get() const;

private:
    friend class AttentionService;
    explicit PendingForward(std::shared_ptr<AsyncCall> call) : call_(std::move(call)) {}
    std::shared_ptr<AsyncCall> call_;
};

class AttentionService {
public:
    static Result<std::unique_ptr<AttentionService>> open(ServiceSettings settings);
    ~AttentionService();
    AttentionService(const AttentionService&) = delete;
    AttentionService& operator=(const AttentionService&) = delete;

    // May be called from several threads at a time. Inputs are not modified; outputs are new memory.
    Result<ForwardResult> forward(const ForwardInputs& inputs, const ForwardOptions& options);

    // forward on a thread of the service, in the order of the requests. The tensors' storage is held until the call is done;
    // memory without storage is the caller's to keep.
    PendingForward forward_async(ForwardInputs inputs, ForwardOptions options);

    // Results in the order of the inputs, each bit for bit what forward gives for it; shapes may differ. Everything is
    // checked before anything is computed, and what fails names its index: `item 3: ...`.
    Result<std::vector<ForwardResult>> forward_batch(const std::vector<ForwardInputs>& inputs,
                                                     const ForwardOptions& options);

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

    // The same for a kind of task, whose mechanism comes first where it passes the checks: code-analysis, memory-retrieval,
    // long-context, swarm-coordination, and flash-attention-v2 for all others. Facts without a length: 1024 tokens.
    Result<Recommendation> recommend_for_task(const std::string& task, const RequestFacts& facts = {});
    // Every candidate for a call as its tensors and options describe it, the first one that which `auto` picks.
    Result<Recommendation> explain(const ForwardInputs& inputs, const ForwardOptions& options);
    // What this machine takes, for predicted times of later answers; null: none. From attend/cost_table.hpp.
    void use_costs(std::shared_ptr<const CostTable> costs);

    // Candidates [n,D] (or vectors of one length) by the attention that the query [D] or [Nq,D] pays them: attend/rerank.hpp.
    Result<Reranking> rerank(const Tensor& query, const Tensor& candidates, const RerankOptions& options);
    Result<Reranking> rerank(const std::vector<float>& query, const std::vector<std::vector<float>>& candidates,
                             const RerankOptions& options);

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
    [[nodiscard]] Config config() const;  // in force now
    struct PlanCacheFacts {
        std::uint64_t entries, hits, misses;
    };
    [[nodiscard]] PlanCacheFacts plan_cache() const;

    // The result cache (sdk/docs/cache.md). Counters since opening or reset_metrics; bytes and entries now.
    struct ResultCacheFacts {
        std::uint64_t hits, misses, bypass, evictions, bytes, entries;
    };
    [[nodiscard]] ResultCacheFacts result_cache() const;
    void invalidate();
    void invalidate(const std::string& mechanism);
    void invalidate_handle(TensorHandle handle);

    [[nodiscard]] ServiceMetrics metrics() const;
    void reset_metrics();
    // A measured speedup, by whoever measures (BenchmarkRunner does).
    void record_speedup(double speedup);

    // Takes effect for later calls; calls in flight keep what they began with. Rules, thresholds, precision, cache, budgets and
    // targets may change; back end, threads, plugins and providers are those of opening. A configuration with faults
    // changes nothing.
    Result<void> reconfigure(const Config& config);
    // Every fault for which reconfigure would refuse.
    [[nodiscard]] std::vector<Error> config_problems(const Config& config) const;
    // A mechanism of the caller's own, or (replace) in place of one: for later calls. Names match
    // [a-z0-9]+(-[a-z0-9]+)*. Plans and results of the one replaced are dropped.
    Result<void> register_mechanism(const MechanismRecord& mechanism, bool replace = false);

    // Registered tensors are known by number instead of by content. Whoever changes the elements says so: touch. The
    // memory is not copied; it must live until release.
    Result<TensorHandle> register_tensor(const Tensor& tensor);
    Result<void> touch(TensorHandle handle);
    Result<void> release(TensorHandle handle);

private:
    struct State;
    explicit AttentionService(std::unique_ptr<State> state);
    std::unique_ptr<State> state_;
};

}  // namespace attend
