// SPDX-License-Identifier: Apache-2.0
#include "attend/masks.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <string>

#include "attend/config/names.hpp"

namespace attend {
namespace {

using Bytes = std::vector<std::uint8_t>;
using Numbers = std::vector<std::int64_t>;

Error wrong(ErrorCode code, const std::string& text) { return Error{code, "create_mask: " + text, ""}; }

// Elements in row-major order, whatever the strides.
Result<Numbers> integers_of(const Tensor& tensor, const char* what, std::int64_t q_len) {
    if (tensor.dtype != DType::i32 && tensor.dtype != DType::i64)
        return wrong(ErrorCode::dtype,
                     std::string(what) + " is " + dtype_name(tensor.dtype) + "; accepted: I32 or I64");
    if (tensor.rank() != 2 || tensor.shape[1] != q_len)
        return wrong(ErrorCode::shape, std::string(what) + " is " + shape_text(tensor.shape) + "; accepted: [B, " +
                                           std::to_string(q_len) + "]");
    const Result<Tensor> plain = contiguous_copy(tensor);
    if (!plain) return plain.error();
    Numbers numbers(static_cast<std::size_t>(plain->size()));
    for (std::size_t at = 0; at < numbers.size(); ++at)
        numbers[at] =
            plain->dtype == DType::i32 ? plain->as<const std::int32_t>()[at] : plain->as<const std::int64_t>()[at];
    return numbers;
}

Result<Bytes> flags_of(const Tensor& tensor, const char* what) {
    if (tensor.dtype != DType::boolean && tensor.dtype != DType::u8)
        return wrong(ErrorCode::dtype,
                     std::string(what) + " is " + dtype_name(tensor.dtype) + "; accepted: BOOL or U8");
    const Result<Tensor> plain = contiguous_copy(tensor);
    if (!plain) return plain.error();
    Bytes flags(static_cast<std::size_t>(plain->size()));
    for (std::size_t at = 0; at < flags.size(); ++at) flags[at] = plain->as<const std::uint8_t>()[at] != 0 ? 1 : 0;
    return flags;
}

std::optional<std::int64_t> common(std::int64_t a, std::int64_t b) {
    if (a == b || b == 1) return a;
    if (a == 1) return b;
    return std::nullopt;
}

Result<void> fits(std::int64_t batch, std::int64_t heads, std::int64_t rows, std::int64_t keys, std::int64_t item,
                  std::int64_t max_bytes) {
    const auto bytes = checked_byte_size({batch, heads, rows, keys}, static_cast<std::size_t>(item));
    if (bytes && *bytes <= max_bytes) return {};
    return Error{ErrorCode::limit,
                 "mask: " + shape_text({batch, heads, rows, keys}) + " as pairs takes " +
                     (bytes ? std::to_string(*bytes) : "more than 2^63") + " bytes; accepted: at most " +
                     std::to_string(max_bytes),
                 ""};
}

}  // namespace

std::size_t Mask::num_terms() const noexcept {
    return blocks_.size() + segments_.size() + dense_.size() + (left_ || right_ ? 1u : 0u) + (lengths_ ? 1u : 0u);
}

Mask::Range Mask::band(std::int64_t b, std::int64_t i) const {
    const std::int64_t position = i + k_len_ - q_len_;
    Range range{0, k_len_};
    if (left_ && *left_ >= 0 && *left_ < position) range.begin = position - *left_;
    if (right_ && *right_ >= 0 && *right_ < k_len_ - position)
        range.end = std::max<std::int64_t>(position + *right_ + 1, 0);
    if (lengths_)
        range.end = std::min(
            range.end, (*lengths_)[static_cast<std::size_t>(pick(static_cast<std::int64_t>(lengths_->size()), b))]);
    range.end = std::max(range.begin, range.end);
    return range;
}

bool Mask::others_keep(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    for (const Blocks& term : blocks_)
        if ((*term.pattern)[static_cast<std::size_t>(i / term.q * term.columns + j / term.k)] == 0) return false;
    for (const Segments& term : segments_) {
        const std::int64_t item = pick(term.items, b);
        const std::int64_t q = (*term.q)[static_cast<std::size_t>(item * q_len_ + i)];
        if (q < 0 || q != (*term.k)[static_cast<std::size_t>(item * k_len_ + j)]) return false;
    }
    for (const Dense& term : dense_) {
        const auto& e = term.extents;
        const std::int64_t at = ((pick(e[0], b) * e[1] + pick(e[1], h)) * e[2] + pick(e[2], i)) * e[3] + pick(e[3], j);
        if ((*term.values)[static_cast<std::size_t>(at)] == 0) return false;
    }
    return true;
}

bool Mask::keep(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    const Range range = band(b, i);
    return j >= range.begin && j < range.end && others_keep(b, h, i, j);
}

TileClass Mask::classify(const MaskTile& tile) const {
    const std::int64_t last_row = std::min(tile.row + tile.rows, q_len_),
                       last_key = std::min(tile.key + tile.keys, k_len_);
    bool some = false, all = true;
    for (std::int64_t i = std::max<std::int64_t>(tile.row, 0); i < last_row; ++i) {
        const Range range = band(tile.batch, i);
        const std::int64_t begin = std::max(range.begin, tile.key), end = std::min(range.end, last_key);
        if (begin > tile.key || end < last_key) all = false;
        if (!has_others()) some = some || begin < end;
        for (std::int64_t j = begin; has_others() && j < end && (all || !some); ++j) {
            const bool kept = others_keep(tile.batch, tile.head, i, j);
            some = some || kept;
            all = all && kept;
        }
        if (some && !all) return TileClass::partial;
    }
    return !some ? TileClass::empty : all ? TileClass::full : TileClass::partial;
}

bool Mask::row_empty(std::int64_t b, std::int64_t h, std::int64_t i) const {
    const Range range = band(b, i);
    if (!has_others()) return range.begin >= range.end;
    for (std::int64_t j = range.begin; j < range.end; ++j)
        if (others_keep(b, h, i, j)) return false;
    return true;
}

std::int64_t Mask::nnz() const {
    std::int64_t count = 0;
    for (std::int64_t b = 0; b < batch_; ++b)
        for (std::int64_t h = 0; h < heads_; ++h)
            for (std::int64_t i = 0; i < q_len_; ++i) {
                const Range range = band(b, i);
                if (!has_others()) {
                    count += range.end - range.begin;
                    continue;
                }
                for (std::int64_t j = range.begin; j < range.end; ++j) count += others_keep(b, h, i, j) ? 1 : 0;
            }
    return count;
}

Result<Tensor> Mask::to_dense(std::int64_t max_bytes) const {
    const bool keys_alone =
        !left_ && !right_ && blocks_.empty() && segments_.empty() && num_terms() > 0 &&
        std::all_of(dense_.begin(), dense_.end(), [](const Dense& term) { return term.extents[2] == 1; });
    const bool positions_alone = !lengths_ && segments_.empty() && dense_.empty();
    const std::int64_t rows = keys_alone ? 1 : q_len_;
    if (auto done = fits(batch_, heads_, rows, k_len_, 1, max_bytes); !done) return done.error();
    Result<Tensor> made =
        Tensor::allocate(DType::boolean, positions_alone ? std::vector<std::int64_t>{rows, k_len_}
                                                         : std::vector<std::int64_t>{batch_, heads_, rows, k_len_});
    if (!made) return made;
    auto* to = made->as<std::uint8_t>();
    for (std::int64_t b = 0; b < batch_; ++b)
        for (std::int64_t h = 0; h < heads_; ++h)
            for (std::int64_t i = 0; i < rows && q_len_ > 0; ++i, to += k_len_) {
                const Range range = band(b, i);
                for (std::int64_t j = range.begin; j < range.end; ++j) to[j] = others_keep(b, h, i, j) ? 1 : 0;
            }
    return made;
}

Result<Tensor> Mask::to_additive(std::int64_t max_bytes) const {
    const Result<Tensor> flags = to_dense(max_bytes / 4);
    if (!flags) return flags.error();
    Result<Tensor> made = Tensor::allocate(DType::f32, flags->shape);
    if (!made) return made;
    for (std::int64_t at = 0; at < made->size(); ++at)
        made->as<float>()[at] =
            flags->as<const std::uint8_t>()[at] != 0 ? 0.0f : -std::numeric_limits<float>::infinity();
    return made;
}

Result<Mask> Mask::both(const Mask& a, const Mask& b) {
    const auto batch = common(a.batch_, b.batch_), heads = common(a.heads_, b.heads_);
    if (a.q_len_ != b.q_len_ || a.k_len_ != b.k_len_ || !batch || !heads)
        return Error{ErrorCode::shape,
                     "mask: " + shape_text({a.batch_, a.heads_, a.q_len_, a.k_len_}) + " and " +
                         shape_text({b.batch_, b.heads_, b.q_len_, b.k_len_}) +
                         " do not go together; accepted: equal lengths, batch and heads equal or 1",
                     ""};
    Mask all = a;
    all.batch_ = *batch;
    all.heads_ = *heads;
    const auto nearer = [](std::optional<std::int64_t> x, std::optional<std::int64_t> y) {
        if (!x || *x < 0) return y;
        if (!y || *y < 0) return x;
        return std::optional(std::min(*x, *y));
    };
    all.left_ = nearer(a.left_, b.left_);
    all.right_ = nearer(a.right_, b.right_);
    if (b.lengths_) {
        if (!a.lengths_) {
            all.lengths_ = b.lengths_;
        } else {
            const std::size_t items = std::max(a.lengths_->size(), b.lengths_->size());
            auto lengths = std::make_shared<Numbers>(items);
            for (std::size_t item = 0; item < items; ++item)
                (*lengths)[item] = std::min((*a.lengths_)[a.lengths_->size() == 1 ? 0 : item],
                                            (*b.lengths_)[b.lengths_->size() == 1 ? 0 : item]);
            all.lengths_ = std::move(lengths);
        }
    }
    all.blocks_.insert(all.blocks_.end(), b.blocks_.begin(), b.blocks_.end());
    all.segments_.insert(all.segments_.end(), b.segments_.begin(), b.segments_.end());
    all.dense_.insert(all.dense_.end(), b.dense_.begin(), b.dense_.end());
    return all;
}

template <class Rule>
Result<Mask> Mask::combined(const Mask& a, const Mask& b, std::int64_t max_bytes, Rule rule) {
    Result<Mask> shape = both(a, b);
    if (!shape) return shape;
    Mask made(a.q_len_, a.k_len_);
    made.batch_ = shape->batch_;
    made.heads_ = shape->heads_;
    const auto one_block = [](const Mask& mask) { return mask.num_terms() == 1 && mask.blocks_.size() == 1; };
    if (one_block(a) && one_block(b) && a.blocks_[0].q == b.blocks_[0].q && a.blocks_[0].k == b.blocks_[0].k) {
        auto pattern = std::make_shared<Bytes>(a.blocks_[0].pattern->size());
        for (std::size_t at = 0; at < pattern->size(); ++at)
            (*pattern)[at] = rule((*a.blocks_[0].pattern)[at] != 0, (*b.blocks_[0].pattern)[at] != 0) ? 1 : 0;
        made.blocks_.push_back({a.blocks_[0].q, a.blocks_[0].k, a.blocks_[0].columns, std::move(pattern)});
        return made;
    }
    if (auto done = fits(made.batch_, made.heads_, made.q_len_, made.k_len_, 1, max_bytes); !done) return done.error();
    auto values =
        std::make_shared<Bytes>(static_cast<std::size_t>(made.batch_ * made.heads_ * made.q_len_ * made.k_len_));
    std::size_t at = 0;
    for (std::int64_t item = 0; item < made.batch_; ++item)
        for (std::int64_t h = 0; h < made.heads_; ++h)
            for (std::int64_t i = 0; i < made.q_len_; ++i)
                for (std::int64_t j = 0; j < made.k_len_; ++j)
                    (*values)[at++] = rule(a.keep(item, h, i, j), b.keep(item, h, i, j)) ? 1 : 0;
    made.dense_.push_back({{made.batch_, made.heads_, made.q_len_, made.k_len_}, std::move(values)});
    return made;
}

Result<Mask> Mask::either(const Mask& a, const Mask& b, std::int64_t max_bytes) {
    return combined(a, b, max_bytes, [](bool x, bool y) { return x || y; });
}

Result<Mask> Mask::inverse(const Mask& a, std::int64_t max_bytes) {
    return combined(a, a, max_bytes, [](bool x, bool) { return !x; });
}

Result<Mask> create_mask(std::string_view kind, std::int64_t seq_len, const MaskArguments& given) {
    static const std::vector<std::string> kinds{"causal", "padding", "sliding", "block", "segment", "custom"};
    if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end())
        return wrong(ErrorCode::option, "unknown kind \"" + std::string(kind) + "\"" + did_you_mean(kind, kinds) +
                                            "; accepted: " + join_names(kinds));
    const std::int64_t q_len = given.q_len.value_or(seq_len), k_len = given.k_len.value_or(seq_len);
    if (q_len < 0 || k_len < 0)
        return wrong(ErrorCode::shape, "length " + std::to_string(std::min(q_len, k_len)) + "; accepted: at least 0");
    struct Argument {
        const char* name;
        const char* kind;
        bool present;
    };
    const Argument arguments[] = {{"positions", "padding", given.positions.has_value()},
                                  {"lengths", "padding", given.lengths.has_value()},
                                  {"keep", "padding", given.keep.has_value()},
                                  {"window_size", "sliding", given.window_size.has_value()},
                                  {"left", "sliding", given.left.has_value()},
                                  {"right", "sliding", given.right.has_value()},
                                  {"causal", "sliding", given.causal},
                                  {"block_q", "block", given.block_q.has_value()},
                                  {"block_k", "block", given.block_k.has_value()},
                                  {"pattern", "block", given.pattern.has_value()},
                                  {"segment_q", "segment", given.segment_q.has_value()},
                                  {"segment_k", "segment", given.segment_k.has_value()},
                                  {"dense", "custom", given.dense.has_value()},
                                  {"predicate", "custom", static_cast<bool>(given.predicate)}};
    for (const Argument& argument : arguments)
        if (argument.present && kind != argument.kind)
            return wrong(ErrorCode::option, std::string(argument.name) + " is given for a mask of kind " +
                                                std::string(kind) + "; accepted: it belongs to " + argument.kind);
    Mask mask(q_len, k_len);
    if (kind == "causal") {
        mask.right_ = 0;
        return mask;
    }
    if (kind == "padding") {
        if ((given.positions ? 1 : 0) + (given.lengths ? 1 : 0) + (given.keep ? 1 : 0) != 1)
            return wrong(ErrorCode::option, "padding needs one of positions, lengths and keep");
        if (given.lengths) {
            if (given.lengths->empty())
                return wrong(ErrorCode::shape, "lengths is empty; accepted: one per batch item");
            for (const std::int64_t length : *given.lengths)
                if (length < 0 || length > k_len)
                    return wrong(ErrorCode::option,
                                 "length " + std::to_string(length) + "; accepted: 0 to " + std::to_string(k_len));
            mask.lengths_ = std::make_shared<Numbers>(*given.lengths);
            mask.batch_ = static_cast<std::int64_t>(given.lengths->size());
            return mask;
        }
        Mask::Dense term{{1, 1, 1, k_len}, nullptr};
        if (given.positions) {
            Bytes keep(static_cast<std::size_t>(k_len), 1);
            for (const std::int64_t position : *given.positions) {
                if (position < 0 || position >= k_len)
                    return wrong(ErrorCode::option, "padded position " + std::to_string(position) +
                                                        "; accepted: 0 to " + std::to_string(k_len - 1));
                keep[static_cast<std::size_t>(position)] = 0;
            }
            term.values = std::make_shared<Bytes>(std::move(keep));
        } else {
            if (given.keep->rank() != 2 || given.keep->shape[1] != k_len)
                return wrong(ErrorCode::shape, "keep is " + shape_text(given.keep->shape) + "; accepted: [B, " +
                                                   std::to_string(k_len) + "]");
            Result<Bytes> keep = flags_of(*given.keep, "keep");
            if (!keep) return keep.error();
            term.values = std::make_shared<Bytes>(std::move(*keep));
            mask.batch_ = term.extents[0] = given.keep->shape[0];
        }
        mask.dense_.push_back(std::move(term));
        return mask;
    }
    if (kind == "sliding") {
        if (given.window_size && (given.left || given.right))
            return wrong(ErrorCode::option, "window_size beside left or right; accepted: one way of saying it");
        if (!given.window_size && !given.left && !given.right)
            return wrong(ErrorCode::option, "sliding needs window_size, left or right");
        if (given.causal && given.right && *given.right != 0)
            return wrong(ErrorCode::option, "right " + std::to_string(*given.right) + " beside causal; accepted: 0");
        mask.left_ = given.window_size ? given.window_size : given.left;
        mask.right_ = given.causal        ? std::optional<std::int64_t>(0)
                      : given.window_size ? given.window_size
                                          : given.right;
        const std::int64_t least = given.window_size ? 0 : -1;
        for (const auto& side : {mask.left_, mask.right_})
            if (side && *side < least)
                return wrong(ErrorCode::option,
                             "window " + std::to_string(*side) + "; accepted: at least " + std::to_string(least));
        return mask;
    }
    if (kind == "block") {
        if (!given.block_q || !given.block_k || !given.pattern)
            return wrong(ErrorCode::option, "block needs block_q, block_k and pattern");
        if (*given.block_q < 1 || *given.block_k < 1)
            return wrong(ErrorCode::option, "a block of " + std::to_string(*given.block_q) + " by " +
                                                std::to_string(*given.block_k) + "; accepted: at least 1 by 1");
        const auto up = [](std::int64_t n, std::int64_t by) { return n / by + (n % by != 0 ? 1 : 0); };
        const std::vector<std::int64_t> shape{up(q_len, *given.block_q), up(k_len, *given.block_k)};
        if (given.pattern->shape != shape)
            return wrong(ErrorCode::shape,
                         "pattern is " + shape_text(given.pattern->shape) + "; accepted: " + shape_text(shape));
        Result<Bytes> pattern = flags_of(*given.pattern, "pattern");
        if (!pattern) return pattern.error();
        mask.blocks_.push_back(
            {*given.block_q, *given.block_k, shape[1], std::make_shared<Bytes>(std::move(*pattern))});
        return mask;
    }
    if (kind == "segment") {
        if (!given.segment_q || !given.segment_k)
            return wrong(ErrorCode::option, "segment needs segment_q and segment_k");
        Result<Numbers> q = integers_of(*given.segment_q, "segment_q", q_len),
                        k = integers_of(*given.segment_k, "segment_k", k_len);
        if (!q) return q.error();
        if (!k) return k.error();
        if (given.segment_q->shape[0] != given.segment_k->shape[0])
            return wrong(ErrorCode::shape, "segments of " + std::to_string(given.segment_q->shape[0]) + " and " +
                                               std::to_string(given.segment_k->shape[0]) + " items; accepted: as many");
        mask.batch_ = given.segment_q->shape[0];
        mask.segments_.push_back(
            {mask.batch_, std::make_shared<Numbers>(std::move(*q)), std::make_shared<Numbers>(std::move(*k))});
        return mask;
    }
    if (given.dense.has_value() == static_cast<bool>(given.predicate))
        return wrong(ErrorCode::option, "custom needs one of dense and predicate");
    Mask::Dense term{{1, 1, 1, 1}, nullptr};
    if (given.dense) {
        std::vector<std::int64_t> shape = given.dense->shape;
        if (shape.size() == 3) shape.insert(shape.begin() + 1, 1);
        if (shape.size() > 4)
            return wrong(ErrorCode::mask, "dense is " + shape_text(shape) + "; accepted: at most four axes");
        shape.insert(shape.begin(), 4 - shape.size(), 1);
        if ((shape[2] != 1 && shape[2] != q_len) || (shape[3] != 1 && shape[3] != k_len))
            return wrong(ErrorCode::mask, "dense is " + shape_text(given.dense->shape) +
                                              "; accepted: what broadcasts to [B, H, " + std::to_string(q_len) + ", " +
                                              std::to_string(k_len) + "]");
        Result<Bytes> values = flags_of(*given.dense, "dense");
        if (!values) return values.error();
        std::copy(shape.begin(), shape.end(), term.extents);
        term.values = std::make_shared<Bytes>(std::move(*values));
        mask.batch_ = shape[0];
        mask.heads_ = shape[1];
    } else {
        if (given.batch < 1 || given.heads < 1)
            return wrong(ErrorCode::shape, "batch " + std::to_string(given.batch) + ", heads " +
                                               std::to_string(given.heads) + "; accepted: at least 1");
        if (auto done = fits(given.batch, given.heads, q_len, k_len, 1, given.max_bytes); !done) return done.error();
        Bytes values;
        values.reserve(static_cast<std::size_t>(given.batch * given.heads * q_len * k_len));
        for (std::int64_t b = 0; b < given.batch; ++b)
            for (std::int64_t h = 0; h < given.heads; ++h)
                for (std::int64_t i = 0; i < q_len; ++i)
                    for (std::int64_t j = 0; j < k_len; ++j) values.push_back(given.predicate(b, h, i, j) ? 1 : 0);
        mask.batch_ = term.extents[0] = given.batch;
        mask.heads_ = term.extents[1] = given.heads;
        term.extents[2] = q_len;
        term.extents[3] = k_len;
        term.values = std::make_shared<Bytes>(std::move(values));
    }
    mask.dense_.push_back(std::move(term));
    return mask;
}

}  // namespace attend
