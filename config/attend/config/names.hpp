// SPDX-License-Identifier: Apache-2.0
// Names as people write them: one spelling for options, keys and variables, and suggestions for mistyped ones.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace attend {

// camelCase to snake_case: an underscore before an upper-case letter that follows a lower-case letter or digit, and
// before the last letter of an upper-case run that a lower-case letter follows; then lower case. Dots and
// everything else stay: "addBiasKV" -> "add_bias_kv", "e.normQ.gamma" -> "e.norm_q.gamma". ASCII only.
[[nodiscard]] std::string fold_name(std::string_view name);

// The candidates nearest to a mistyped name, best first, at most `max`: few edits away (insertions, deletions,
// replacements, swapped neighbours; spelling and case folded first), or containing it as a part. Ties by name.
[[nodiscard]] std::vector<std::string> nearest_names(std::string_view name, std::span<const std::string> candidates,
                                                     std::size_t max = 3);

// `; did you mean "window"?`, `; did you mean "a" or "b"?`, or empty text if nothing is near.
[[nodiscard]] std::string did_you_mean(std::string_view name, std::span<const std::string> candidates);

// The names separated by ", "; an empty list gives "(none)".
[[nodiscard]] std::string join_names(std::span<const std::string> names);

}  // namespace attend
