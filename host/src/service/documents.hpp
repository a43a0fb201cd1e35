// SPDX-License-Identifier: Apache-2.0
// Answers of the service as JSON: what the command line prints with --json and what the C API gives.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attend/attention_service.hpp"
#include "attend/config/json.hpp"
#include "attend/registry/mechanism_registry.hpp"

namespace attend {

struct PluginReport;

[[nodiscard]] Json json_list(const std::vector<std::string>& words);

// Names of a mask of data types, "F32", "BF16", ...
[[nodiscard]] std::vector<std::string> dtype_names(std::uint64_t mask);

// An initialiser without the name that seeds it: "xavierUniform as Wq" is xavierUniform to a reader.
[[nodiscard]] std::string initialiser_text(const std::string& init);

// The short name, or the qualified one where another plugin has the short one.
[[nodiscard]] std::string listed_name(const MechanismRecord& mechanism);

// One entry of `attend list`, everything of `attend describe`, the answer of `attend recommend`, one of `attend plugins`.
[[nodiscard]] Json list_json(const MechanismRecord& mechanism);
[[nodiscard]] Json describe_json(const MechanismRecord& mechanism);
[[nodiscard]] Json recommendation_json(const Recommendation& result);
// "without a mask", "a memory budget of at least 12345678 bytes", "kvHeads = 8": what would admit a rejected candidate.
[[nodiscard]] std::string change_text(const Change& change);
[[nodiscard]] Json plugin_json(const PluginReport& report);

// {mechanism, results: [{index, id, score, logit, rank}]}; id only where there are ids, the logit of what is dropped is null.
[[nodiscard]] Json reranking_json(const Reranking& ranking, bool ids);

// What ran, why, with which options, and how long; the shapes of its tensors by name.
[[nodiscard]] Json record_json(const ForwardResult& result);

// Every tensor of a result with its name: output, lse, scores, and the mechanism's own.
[[nodiscard]] NamedTensors result_tensors(const ForwardResult& result);

}  // namespace attend
