// SPDX-License-Identifier: Apache-2.0
// Position encodings outside of a mechanism: rotary tables and their application (Su et al. 2021), ALiBi's slopes (Press et
// al. 2021), sinusoidal tables (Vaswani et al. 2017), learned tables. Angles are evaluated in double and rounded once: a
// float angle is off by 4e-3 at position 65536.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "attend/error.hpp"
#include "attend/tensor.hpp"

namespace attend {

// How frequencies change for contexts longer than those trained on. Each scaling reads its own fields.
struct RotaryScaling {
    std::string type{"none"};                    // none, linear, ntk, dynamic_ntk, yarn, llama3
    double factor{1.0};                          // linear, dynamic_ntk, yarn, llama3: s >= 1
    double alpha{1.0};                           // ntk: >= 1
    std::optional<std::int64_t> max_len{};       // dynamic_ntk: the trained length
    std::optional<std::int64_t> original_len{};  // yarn, llama3 (there 8192): the trained length
    double beta_fast{32.0}, beta_slow{1.0};      // yarn
    std::optional<double> attention_factor{};    // yarn; default 0.1 ln s + 1, 1 where s is 1
    double low{1.0}, high{4.0};                  // llama3
};

struct RotaryOptions {
    double base{10000.0};  // > 1
    RotaryScaling scaling{};
    std::int64_t offset{0};                                // of the first row's position
    std::optional<std::vector<std::int64_t>> positions{};  // of the rows, may be negative; instead of offset
};

struct RotaryTable {
    Tensor cos, sin;  // F32 [seq_len, dim / 2]
};

// dim: even, 2 to 1024. Errors (option): odd dim, base <= 1, factors below 1, high <= low, beta_fast <= beta_slow, a missing
// trained length.
[[nodiscard]] Result<RotaryTable> rotary_embedding(std::int64_t seq_len, std::int64_t dim,
                                                   const RotaryOptions& options = {});

// x [..., N, D], F32; its first 2 * columns channels turn, the rest pass. half: pairs (t, t + columns), interleaved:
// pairs (2t, 2t + 1). New memory. Errors: shape, dtype; more channels than there are; rows other than the tables'.
enum class RotaryPairs { half, interleaved };
[[nodiscard]] Result<Tensor> apply_rotary(const Tensor& x, const RotaryTable& table,
                                          RotaryPairs layout = RotaryPairs::half);

// One slope per head, n >= 1: 2^(-8(h+1)/n) for powers of two, else those of the power below and every second one of
// twice that, in published order. The bias is -slope |i + Nk - Nq - j|.
[[nodiscard]] Result<std::vector<double>> alibi_slopes(std::int64_t heads);

enum class SinusoidalLayout { interleaved, split };
// [seq_len, dim], F32; odd dim has one sine more than cosines.
[[nodiscard]] Result<Tensor> sinusoidal(std::int64_t seq_len, std::int64_t dim, double base = 10000.0,
                                        SinusoidalLayout layout = SinusoidalLayout::interleaved,
                                        std::int64_t offset = 0);

// Rows of a table [max_len, dim], F32, at these positions (error option: one outside it). default_position_table is
// normal(0, 0.02) of the name `posTable`.
[[nodiscard]] Result<Tensor> learned_positions(const Tensor& table, const std::vector<std::int64_t>& positions);
[[nodiscard]] Result<Tensor> default_position_table(std::int64_t max_len, std::int64_t dim,
                                                    std::uint64_t weight_seed = 0);

}  // namespace attend
