// SPDX-License-Identifier: Apache-2.0
// Attention masks. True means "may attend". A mask is a conjunction of terms that know which keys a row sees without a
// matrix of pairs: causal, window, lengths, segments, block pattern; and dense tensors, for what has no such form.
//
//   auto near = attend::create_mask("sliding", 128, {.window_size = 16});
//   auto mask = attend::Mask::both(attend::create_mask("causal", 128).value(), near.value());
//   inputs.mask = mask->to_dense().value();
//
// Positions: row i of Nq queries stands at i + Nk - Nq among the keys (bottom-right).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "attend/error.hpp"
#include "attend/tensor.hpp"

namespace attend {

// Materialising more pairs than this is refused, a byte each.
inline constexpr std::int64_t default_max_mask_bytes = std::int64_t{1} << 30;

// What create_mask takes beside kind and length; each kind reads its own, another's is an error.
struct MaskArguments {
    std::optional<std::int64_t> q_len{}, k_len{};  // instead of seq_len
    // padding, one of three: padded key positions (repeats allowed), lengths [B], or a BOOL tensor [B, Nk]
    std::optional<std::vector<std::int64_t>> positions{}, lengths{};
    std::optional<Tensor> keep{};
    // sliding: window_size on both sides, or left and right by themselves (-1: unlimited); causal: nothing to the right.
    // A window of 0 keeps the diagonal.
    std::optional<std::int64_t> window_size{}, left{}, right{};
    bool causal{false};
    // block: pattern [ceil(Nq / block_q), ceil(Nk / block_k)], BOOL
    std::optional<std::int64_t> block_q{}, block_k{};
    std::optional<Tensor> pattern{};
    // segment: numbers [B, Nq] and [B, Nk], I32 or I64; a row sees keys of its own number, none if that is negative
    std::optional<Tensor> segment_q{}, segment_k{};
    // custom: BOOL of up to four axes, broadcast to [B, H, Nq, Nk] (three axes: [B, Nq, Nk]), or a predicate of
    // (b, h, i, j), asked for every pair of batch x heads x Nq x Nk
    std::optional<Tensor> dense{};
    std::function<bool(std::int64_t, std::int64_t, std::int64_t, std::int64_t)> predicate{};
    std::int64_t batch{1}, heads{1};
    std::int64_t max_bytes{default_max_mask_bytes};
};

enum class TileClass { empty, partial, full };

// Query rows [row, row + rows) and keys [key, key + keys) of one head.
struct MaskTile {
    std::int64_t batch{0}, head{0}, row{0}, rows{0}, key{0}, keys{0};
};

class Mask {
public:
    // Extents; 1 where every item or head has the same mask.
    [[nodiscard]] std::int64_t batch() const noexcept { return batch_; }
    [[nodiscard]] std::int64_t heads() const noexcept { return heads_; }
    [[nodiscard]] std::int64_t q_len() const noexcept { return q_len_; }
    [[nodiscard]] std::int64_t k_len() const noexcept { return k_len_; }

    // May row i see key j? Indices of an axis of extent 1 are not looked at.
    [[nodiscard]] bool keep(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const;
    // empty: no pair of the tile, full: every pair. Always exact.
    [[nodiscard]] TileClass classify(const MaskTile& tile) const;
    [[nodiscard]] bool row_empty(std::int64_t b, std::int64_t h, std::int64_t i) const;
    // Pairs that are kept, over batch() x heads() x Nq x Nk.
    [[nodiscard]] std::int64_t nnz() const;

    // [Nq, Nk] of a mask that depends on positions alone, [B, 1, 1, Nk] of one that depends on keys alone, otherwise
    // [B, H, Nq, Nk]. BOOL; or F32 with 0 and -inf. Error: limit, above max_bytes.
    [[nodiscard]] Result<Tensor> to_dense(std::int64_t max_bytes = default_max_mask_bytes) const;
    [[nodiscard]] Result<Tensor> to_additive(std::int64_t max_bytes = default_max_mask_bytes) const;

    // Batch and heads broadcast as in numpy, lengths must agree (error: shape). `both` stays symbolic; the other two
    // become blocks where all terms are blocks of one size, else dense (error: limit, above max_bytes).
    [[nodiscard]] static Result<Mask> both(const Mask& a, const Mask& b);
    [[nodiscard]] static Result<Mask> either(const Mask& a, const Mask& b,
                                             std::int64_t max_bytes = default_max_mask_bytes);
    [[nodiscard]] static Result<Mask> inverse(const Mask& a, std::int64_t max_bytes = default_max_mask_bytes);

    // How many terms it is a conjunction of; a mask without terms keeps every pair.
    [[nodiscard]] std::size_t num_terms() const noexcept;

private:
    friend Result<Mask> create_mask(std::string_view, std::int64_t, const MaskArguments&);
    struct Blocks {
        std::int64_t q, k, columns;
        std::shared_ptr<const std::vector<std::uint8_t>> pattern;
    };
    struct Segments {
        std::int64_t items;
        std::shared_ptr<const std::vector<std::int64_t>> q, k;
    };
    struct Dense {
        std::int64_t extents[4];  // 1 or that of the mask
        std::shared_ptr<const std::vector<std::uint8_t>> values;
    };
    struct Range {
        std::int64_t begin, end;
    };

    Mask(std::int64_t q_len, std::int64_t k_len) : q_len_(q_len), k_len_(k_len) {}
    static std::int64_t pick(std::int64_t extent, std::int64_t index) { return extent == 1 ? 0 : index; }
    [[nodiscard]] Range band(std::int64_t b, std::int64_t i) const;  // keys that causal, window and lengths leave
    [[nodiscard]] bool others_keep(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const;
    [[nodiscard]] bool has_others() const noexcept { return !blocks_.empty() || !segments_.empty() || !dense_.empty(); }
    template <class Rule>
    static Result<Mask> combined(const Mask& a, const Mask& b, std::int64_t max_bytes, Rule rule);

    std::int64_t batch_{1}, heads_{1}, q_len_, k_len_;
    std::optional<std::int64_t> left_, right_;  // of the intersection of all windows; causal is right = 0
    std::shared_ptr<const std::vector<std::int64_t>> lengths_;
    std::vector<Blocks> blocks_;
    std::vector<Segments> segments_;
    std::vector<Dense> dense_;
};

// kind: causal, padding, sliding, block, segment, custom; Nq = Nk = seq_len unless the arguments say otherwise.
[[nodiscard]] Result<Mask> create_mask(std::string_view kind, std::int64_t seq_len,
                                       const MaskArguments& arguments = {});

}  // namespace attend
