// SPDX-License-Identifier: Apache-2.0
// From a request to a plugin's plan: options completed, form chosen, tensors laid out as the ports want them, sizes
// solved from the port shapes, weights initialised, outputs described. A CallPlan is immutable and is reused for every
// call of the same mechanism, options and shapes.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "attend/attention_service.hpp"
#include "attend/registry/mechanism_registry.hpp"
#include "plugin_services/services.hpp"
#include "service/port_grammar.hpp"

namespace attend {

class CallMetrics;

// Where a bound tensor comes from in a call.
enum class Source { query, key, value, mask, bias, query_lengths, key_lengths, extra };

struct BoundInput {
    const PortRecord* port{};
    Source source{Source::extra};
    std::size_t extra_index{};
    DType dtype{DType::f32};
    std::vector<std::int64_t> shape, strides;
};

struct BoundOutput {
    const PortRecord* port{};
    std::vector<std::int64_t> shape, strides;  // as the plugin sees it
    std::vector<std::int64_t> result_shape;    // as the caller gets it, row-major in the same memory
    DType dtype{DType::f32};
    bool dynamic_rows{false};     // the plugin says how long one axis is
    std::size_t dynamic_axis{0};  // which one
};

// The ABI's description of a bound tensor; its shape and strides point into the CallPlan.
struct CallTensor {
    attend_tensor tensor{};
    void describe(const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& strides, DType dtype,
                  void* data);
};

// In which types query, and key and value, reach the plugin.
struct CallTypes {
    DType query{DType::f32}, key_value{DType::f32};
};

class CallPlan {
public:
    ~CallPlan();
    CallPlan(const CallPlan&) = delete;
    CallPlan& operator=(const CallPlan&) = delete;

    MechanismPtr mechanism;
    std::vector<OptionValue> values;
    std::vector<BoundInput> inputs;
    std::vector<BoundOutput> outputs;
    std::vector<CallTensor> tensors;                      // of inputs, then outputs
    std::vector<std::pair<std::string, Tensor>> weights;  // kept alive for the plan
    bool default_weights{false};
    CallTypes types;
    attend_plan_desc desc{};
    attend_plan* plan{};
    std::uint64_t workspace_bytes{}, workspace_align{64}, seed{}, rng_offset{};
    std::string variant;
    std::vector<std::string> warnings;
    std::string reason;  // of the choice that led here; filled by the service
    double flops{};
    mutable std::atomic<double> fastest_ms{0};  // of the runs so far; 0: none
    std::uint64_t call_bytes{};                 // outputs and workspace; this and what follows is the service's
    std::shared_ptr<CallMetrics> metrics;
    std::shared_ptr<std::atomic<std::uint64_t>> rule_hits;  // of the rule that chose; null: named by the caller

private:
    friend class CallLayout;
    CallPlan() = default;
};

// What a call asks for beside its tensors.
struct CallRequest {
    NamedValues options;
    std::int64_t heads{}, kv_heads{};
    bool lse{}, scores{};
    std::string precision{"fp32"};
    bool precision_given{false};  // by the call itself: then fp32 means float32 for narrower tensors, too
    CallTypes types{};
};

// The options in force, defaults and form resolved, and whether the form takes tokens where another takes heads.
struct CallForm {
    std::vector<OptionValue> values;
    bool projected{false};
};

// From the options and the tables of the mechanism; inputs NULL: a call without tensors.
Result<CallForm> choose_form(const MechanismRecord& mechanism, const ForwardInputs* inputs, const CallRequest& request);

// Tensors keep a narrow type that the mechanism reads by itself, unless the request says fp32; a request for a narrower
// precision rounds them to it. Projected forms compute in float32: their weights are. Refuses what is not offered.
Result<CallTypes> choose_types(const MechanismRecord& mechanism, const ForwardInputs& inputs,
                               const CallRequest& request, const CallForm& form);

// Inputs converted to the chosen types, everything else to what the mechanism takes; shapes as the caller gave them.
Result<ForwardInputs> convert_inputs(const MechanismRecord& mechanism, const ForwardInputs& inputs,
                                     const CallTypes& types);

// Everything up to and including the plugin's plan. Errors name the mechanism, the tensor or option, and what is accepted.
Result<std::shared_ptr<CallPlan>> build_call(const MechanismPtr& mechanism, const ForwardInputs& inputs,
                                             const CallRequest& request, const CallForm& form,
                                             std::uint32_t max_workers);

// For recommendations: would the plugin take a call of these sizes, and what would it cost? Core form, no tensors.
struct SizeRequest {
    std::int64_t batch{1}, heads{1}, kv_heads{1}, q_len{1}, kv_len{1}, head_dim{64}, value_dim{64};
    bool mask{}, bias{}, lse{}, scores{};
};
struct Estimate {
    std::optional<double> flops, bytes, workspace;
    double error_bound{};  // infinity: unbounded
};
Result<Estimate> estimate_call(const MechanismPtr& mechanism, const SizeRequest& sizes, const NamedValues& options,
                               std::uint32_t max_workers);

// What AttentionService::visit_pattern says, for a call of these sizes.
Result<void> visit_pattern(const MechanismPtr& mechanism, const SizeRequest& sizes, const NamedValues& options,
                           const PatternRows& rows, const PatternVisitor& visit);

// Scratch of the calling thread, kept and grown as needed: a call costs no allocation for it. Null: no memory.
void* thread_workspace(std::uint64_t bytes, std::uint64_t align);

// The tensor of the call that an input of its plan is.
const Tensor* bound_tensor(const ForwardInputs& inputs, const BoundInput& bound);

// Runs the plan on tensors of the shapes it was built for. cancel may be null; once it is true, the call ends with
// ErrorCode::cancelled.
Result<ForwardResult> run_call(const CallPlan& plan, const ForwardInputs& inputs, std::uint32_t max_workers,
                               const std::atomic<bool>* cancel = nullptr);

// The options in force as a JSON object; options without a value are left out.
[[nodiscard]] Json options_in_force(const MechanismRecord& mechanism, const std::vector<OptionValue>& values);

// "exact", "approximate" or "different-function".
[[nodiscard]] const char* exactness_name(std::uint32_t numerics);

}  // namespace attend
