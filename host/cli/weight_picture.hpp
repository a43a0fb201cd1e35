// SPDX-License-Identifier: Apache-2.0
// Attention weights of one head as a picture of at most so many cells a side, from rows that come by one after the other.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attend/attention_weights.hpp"

namespace attend::cli {

enum class Pool { largest, mean };
enum class Colours { logarithmic, linear };

// Where [0, length) is cut into cells: cell c is [edge(c), edge(c + 1)).
struct Cells {
    std::int64_t length{0}, count{0};
    [[nodiscard]] std::int64_t edge(std::int64_t cell) const { return count > 0 ? cell * length / count : 0; }
};

class WeightPicture {
public:
    WeightPicture(std::int64_t most_cells, Pool pool) : most_cells_(most_cells), pool_(pool) {}

    // Takes the rows of item `batch` and head `head`.
    void take(const WeightRows& rows, std::int64_t batch, std::int64_t head);

    [[nodiscard]] std::int64_t rows() const noexcept { return rows_.count; }
    [[nodiscard]] std::int64_t columns() const noexcept { return columns_.count; }
    [[nodiscard]] std::int64_t queries() const noexcept { return rows_.length; }
    [[nodiscard]] std::int64_t keys() const noexcept { return columns_.length; }
    [[nodiscard]] double largest() const;  // of the cells
    [[nodiscard]] const std::vector<double>& cells() const noexcept { return cells_; }
    [[nodiscard]] Pool pool() const noexcept { return pool_; }

    // 0 to 1 for each cell; nothing is 0. Logarithmic: over four decades below the largest.
    [[nodiscard]] std::vector<double> shades(Colours colours) const;
    // Shades in characters.
    [[nodiscard]] std::string text(Colours colours) const;
    // The cells alone, dark on light; small ones several pixels wide.
    [[nodiscard]] Result<std::string> png(Colours colours) const;
    // With axes, a bar of the colours and a title; readable on light and on dark ground.
    [[nodiscard]] Result<std::string> svg(const std::string& title, Colours colours) const;
    // The same as a page that tells the weight under the pointer.
    [[nodiscard]] Result<std::string> html(const std::string& title, Colours colours) const;

private:
    std::int64_t most_cells_;
    Pool pool_;
    Cells rows_, columns_;
    std::vector<double> cells_;
};

}  // namespace attend::cli
