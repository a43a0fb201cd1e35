// SPDX-License-Identifier: Apache-2.0
// Flags of commands that ask which keys a mechanism reads, and the answer as numbers and as a picture.
#pragma once

#include <string>
#include <vector>

#include "attend/attention_service.hpp"
#include "attend/config/json.hpp"
#include "compute_flags.hpp"

namespace attend::cli {

// Sizes and options, of the flags of compute those that matter here.
void declare_pattern_flags(const Command& command, ComputeFlags& flags);

struct PatternQuestion {
    std::string mechanism;
    CallSizes sizes;
    NamedValues options;
};
[[nodiscard]] Result<PatternQuestion> pattern_question(const AttentionService& service, const ComputeFlags& flags,
                                                       const std::string& place);

// What a call computes, over all heads.
struct PatternCount {
    PatternQuestion question;
    double pairs{0}, visited{0};          // pairs that are seen; pairs in tiles that are computed
    std::int64_t least{0}, most{0};       // keys of a row
    std::int64_t tiles{0}, tile_rows{0};  // query tiles, and the rows of the tallest
    std::int64_t ranges{0}, partial{0};   // of tiles: all, and those where some pairs are hidden

    [[nodiscard]] double all() const;  // pairs of dense attention
    [[nodiscard]] Json json() const;
    [[nodiscard]] std::string text() const;
};
[[nodiscard]] Result<PatternCount> count_pattern(const AttentionService& service, PatternQuestion question);

// Shares of seen pairs in a grid over rows and keys of one head, row by row.
struct PatternPicture {
    std::int64_t rows{0}, columns{0};
    std::vector<double> shares;

    [[nodiscard]] std::string text() const;  // for a terminal
    [[nodiscard]] std::string svg(const std::string& title) const;
};
[[nodiscard]] Result<PatternPicture> draw_pattern(const AttentionService& service, const PatternQuestion& question,
                                                  std::int64_t head, std::int64_t most_cells);

}  // namespace attend::cli
