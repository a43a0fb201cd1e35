// SPDX-License-Identifier: Apache-2.0
// What the right answer is, in double precision and by loops alone; it shares nothing with the engines.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "benchmark/call.hpp"

namespace attend::benchmark {

// Softmax attention of the sizes, scale, softcap, windows and causal offset that the plan resolved, with mask, bias and
// ALiBi slopes of the inputs: [B,H,Nq,Dv].
[[nodiscard]] std::vector<double> dense_attention(const ForwardInputs& inputs, const attend_plan_desc& desc);
// Linear attention with the features elu(x) + 1, scale 1.
[[nodiscard]] std::vector<double> linear_attention(const ForwardInputs& inputs, const attend_plan_desc& desc,
                                                   double eps);
// y = x W^T: [1,1,N,E].
[[nodiscard]] std::vector<double> projection(const ForwardInputs& inputs);

// The oracle that describes a call, and its name; nothing where none does.
struct Expected {
    std::vector<double> values;
    std::string name;
};
[[nodiscard]] std::optional<Expected> oracle_of(const CallSpec& spec, const ForwardInputs& inputs,
                                                const CallPlan& plan);

// Of a mechanism that attends to keys chosen by position, with nothing learned and no keys of its own: softmax over the keys
// that it names (extension attend.pattern/1). The keys are the plugin's word, every number is worked out here.
[[nodiscard]] std::optional<Expected> pattern_oracle(const AttentionService& service, const ForwardInputs& inputs,
                                                     const CallPlan& plan, const NamedValues& options);

// Largest difference as a share of the largest expected magnitude; infinity if a number is not finite or sizes differ.
[[nodiscard]] double relative_error(const Tensor& output, const std::vector<double>& expected);
// The elements as doubles, row-major.
[[nodiscard]] std::vector<double> elements(const Tensor& tensor);
// What that error may be.
[[nodiscard]] double tolerance(const CallSpec& spec, DType computed_in);

}  // namespace attend::benchmark
