// SPDX-License-Identifier: Apache-2.0
// One call to be measured: its sizes and options, the tensors made for it, and the plugin's own function with everything
// bound beforehand, so that only it is timed.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "attend/attention_service.hpp"
#include "service/call_plan.hpp"

namespace attend::benchmark {

struct CallSpec {
    std::string mechanism;
    NamedValues options;
    DType dtype{DType::f32};  // of query, key and value
    std::string precision;    // of the call; empty: the service's
    std::string backend;      // empty: the one in force
    std::uint32_t threads{1};
    std::int64_t batch{1}, heads{8}, kv_heads{8}, q_len{512}, kv_len{512}, dim{64};
    bool causal{false}, bias{false}, mask{false}, alibi{false};
    bool projection{false};  // y = x W^T: query is x [N,E], key is W [E,E]
    bool codes{false};       // keys and values are int8 with scales
    std::int64_t page{0};    // and lie in pages of so many keys; 0: one behind the other

    [[nodiscard]] CallSpec small() const;   // the same kind of call, of a size that an oracle in loops can do
    [[nodiscard]] std::string key() const;  // tells specs apart
    [[nodiscard]] std::string shape_text() const;
    [[nodiscard]] NamedValues all_options() const;
};

// Standard normal query, key and value (repeated every few million elements where they are longer), bias and mask of
// the spec, and every further input that the mechanism requires.
[[nodiscard]] Result<ForwardInputs> make_inputs(const CallSpec& spec, const MechanismRecord& mechanism,
                                                std::uint64_t seed);
// What the mechanism requires beside query, key and value.
[[nodiscard]] Result<void> add_required(const CallSpec& spec, const MechanismRecord& mechanism, std::uint64_t seed,
                                        ForwardInputs& inputs);
// The same call with its keys and values as the spec keeps them: in pages in random order, as codes.
[[nodiscard]] Result<ForwardInputs> in_cache(const CallSpec& spec, const ForwardInputs& inputs, std::uint64_t seed);
[[nodiscard]] ForwardOptions forward_options(const CallSpec& spec);

// Why a mechanism cannot take the spec at all, empty if it may.
[[nodiscard]] std::string unfit(const CallSpec& spec, const MechanismRecord& mechanism);

class PreparedCall {
public:
    // Runs the call once through the service, which makes the plan, and binds memory that stays.
    static Result<std::unique_ptr<PreparedCall>> make(AttentionService& service, const ForwardInputs& inputs,
                                                      const ForwardOptions& options);
    PreparedCall(const PreparedCall&) = delete;
    PreparedCall& operator=(const PreparedCall&) = delete;

    [[nodiscard]] bool run() { return plan_->mechanism->functions->execute(plan_->plan, &exec_, nullptr) == ATTEND_OK; }
    [[nodiscard]] const Tensor& output() const { return outputs_[main_output_]; }
    [[nodiscard]] const CallPlan& plan() const { return *plan_; }
    [[nodiscard]] double bytes_moved() const;  // every bound tensor once
    [[nodiscard]] DType input_dtype() const;   // of the query as the plugin gets it
    [[nodiscard]] const ForwardResult& first() const { return first_; }
    [[nodiscard]] std::uint64_t growth() const { return growth_; }  // of resident memory in the first run

private:
    PreparedCall() = default;
    ForwardResult first_;
    std::shared_ptr<const CallPlan> plan_;
    std::vector<Tensor> kept_, outputs_;
    std::vector<attend_tensor> tensors_;
    std::vector<attend_binding> bindings_;
    std::vector<attend_dynamic_row> dynamic_;
    std::vector<std::int64_t> rows_;
    attend_dynamic_rows block_{};
    Tensor workspace_;
    attend_call call_;
    attend_exec exec_{};
    std::size_t main_output_{0};
    std::uint64_t growth_{0};
};

struct Timing {
    std::uint64_t runs{0};
    double median_ms{0}, lower_ms{0}, upper_ms{0}, fastest_ms{0};  // quartiles
};

// After a warm-up, at least `least` runs and more until about `seconds` have passed; very short calls are timed in
// batches. Zero runs: the plugin failed.
[[nodiscard]] Timing time_call(PreparedCall& call, std::uint64_t least, double seconds);
// How often the system has taken a processor from this process for somebody else's work.
[[nodiscard]] std::int64_t preemptions();
[[nodiscard]] Timing summarise(std::vector<double> samples_ms, std::uint64_t runs);

// Resident memory of the process, now and the largest since the last reset.
[[nodiscard]] std::uint64_t resident_bytes();
[[nodiscard]] std::uint64_t peak_resident_bytes();
void reset_peak_resident();

}  // namespace attend::benchmark
