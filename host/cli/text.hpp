// SPDX-License-Identifier: Apache-2.0
// Text for people: aligned tables, titles, numbers with units.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "attend/config/json.hpp"
#include "attend/error.hpp"

namespace attend::cli {

// Bold, if standard output is a terminal and NO_COLOR is not set.
[[nodiscard]] std::string bold(std::string_view text);

// Columns as wide as their widest cell, two blanks between them.
class Table {
public:
    explicit Table(std::vector<std::string> header) : header_(std::move(header)) {}
    void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
    [[nodiscard]] bool empty() const noexcept { return rows_.empty(); }
    [[nodiscard]] std::string text(std::string_view indent = "") const;

private:
    std::vector<std::string> header_;  // empty: none
    std::vector<std::vector<std::string>> rows_;
};

// "name   value" lines.
[[nodiscard]] std::string aligned(const std::vector<std::pair<std::string, std::string>>& lines,
                                  std::string_view indent = "");

[[nodiscard]] std::string join(const std::vector<std::string>& words, std::string_view between = ", ");
[[nodiscard]] std::string number_text(double number, int digits = 4);  // significant digits
[[nodiscard]] std::string bytes_text(double bytes);                    // "64 B", "1.5 MiB"

// The document of --json, with its line end.
[[nodiscard]] std::string json_text(const Json& document);

// Complete or not at all: written beside the target, then renamed.
[[nodiscard]] Result<void> write_whole(const std::string& path, const std::string& text);

}  // namespace attend::cli
