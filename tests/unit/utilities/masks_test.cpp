// SPDX-License-Identifier: Apache-2.0
#include <random>

#include "attend/masks.hpp"
#include "support/catch.hpp"

namespace {

using attend::create_mask;
using attend::DType;
using attend::Mask;
using attend::MaskArguments;
using attend::Tensor;
using attend::TileClass;

std::mt19937 engine(20);
std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(engine() % static_cast<std::uint32_t>(n)); }

Tensor flags(std::vector<std::int64_t> shape, int one_in = 2) {
    Tensor tensor = Tensor::allocate(DType::boolean, std::move(shape)).value();
    for (std::int64_t at = 0; at < tensor.size(); ++at) tensor.as<std::uint8_t>()[at] = below(one_in) != 0 ? 1 : 0;
    return tensor;
}
Tensor numbers(std::vector<std::int64_t> shape) {
    Tensor tensor = Tensor::allocate(DType::i32, std::move(shape)).value();
    for (std::int64_t at = 0; at < tensor.size(); ++at)
        tensor.as<std::int32_t>()[at] = static_cast<std::int32_t>(below(4)) - 1;
    return tensor;
}

constexpr std::int64_t batch = 2, heads = 3;
struct Lengths {
    std::int64_t q, k;
};

// One mask of every kind, with the rule that it stands for.
struct Known {
    Mask mask;
    std::function<bool(std::int64_t, std::int64_t, std::int64_t, std::int64_t)> rule;
};
std::vector<Known> every_kind(const Lengths& n) {
    std::vector<Known> all;
    const std::int64_t delta = n.k - n.q;
    const auto make = [&](const char* kind, MaskArguments arguments) {
        arguments.q_len = n.q;
        arguments.k_len = n.k;
        return create_mask(kind, 0, arguments).value();
    };
    all.push_back({make("causal", {}), [=](auto, auto, auto i, auto j) { return j <= i + delta; }});
    const std::int64_t window = below(4), left = below(5) - 1, right = below(5) - 1;
    all.push_back({make("sliding", {.window_size = window}),
                   [=](auto, auto, auto i, auto j) { return j >= i + delta - window && j <= i + delta + window; }});
    all.push_back({make("sliding", {.left = left, .right = right}), [=](auto, auto, auto i, auto j) {
                       return (left < 0 || j >= i + delta - left) && (right < 0 || j <= i + delta + right);
                   }});
    const std::vector<std::int64_t> lengths{below(n.k + 1), below(n.k + 1)};
    all.push_back({make("padding", {.lengths = lengths}),
                   [=](auto b, auto, auto, auto j) { return j < lengths[static_cast<std::size_t>(b)]; }});
    const std::vector<std::int64_t> positions{below(n.k), below(n.k), 0, 0};
    all.push_back({make("padding", {.positions = positions}), [=](auto, auto, auto, auto j) {
                       return std::find(positions.begin(), positions.end(), j) == positions.end();
                   }});
    const std::int64_t bq = 1 + below(4), bk = 1 + below(4), across = (n.k + bk - 1) / bk;
    const Tensor pattern = flags({(n.q + bq - 1) / bq, across});
    all.push_back({make("block", {.block_q = bq, .block_k = bk, .pattern = pattern}), [=](auto, auto, auto i, auto j) {
                       return pattern.as<const std::uint8_t>()[i / bq * across + j / bk] != 0;
                   }});
    const Tensor sq = numbers({batch, n.q}), sk = numbers({batch, n.k});
    all.push_back({make("segment", {.segment_q = sq, .segment_k = sk}), [=](auto b, auto, auto i, auto j) {
                       const int q = sq.as<const std::int32_t>()[b * n.q + i],
                                 k = sk.as<const std::int32_t>()[b * n.k + j];
                       return q >= 0 && q == k;
                   }});
    const Tensor dense = flags({batch, heads, n.q, n.k}, 4);
    all.push_back({make("custom", {.dense = dense}), [=](auto b, auto h, auto i, auto j) {
                       return dense.as<const std::uint8_t>()[((b * heads + h) * n.q + i) * n.k + j] != 0;
                   }});
    return all;
}

// Every question that a mask answers, against its rule.
template <class Rule>
void check(const Mask& mask, const Lengths& n, Rule rule) {
    std::int64_t kept = 0;
    bool agree = true, rows = true;
    for (std::int64_t b = 0; b < batch; ++b)
        for (std::int64_t h = 0; h < heads; ++h)
            for (std::int64_t i = 0; i < n.q; ++i) {
                bool none = true;
                for (std::int64_t j = 0; j < n.k; ++j) {
                    agree = agree && mask.keep(b, h, i, j) == rule(b, h, i, j);
                    none = none && !rule(b, h, i, j);
                    kept += b < mask.batch() && h < mask.heads() && rule(b, h, i, j) ? 1 : 0;
                }
                rows = rows && mask.row_empty(b, h, i) == none;
            }
    CHECK(agree);
    CHECK(rows);
    CHECK(mask.nnz() == kept);
    const Tensor dense = mask.to_dense().value();
    bool same = true;
    const std::vector<std::int64_t> shape =
        dense.rank() == 2 ? std::vector<std::int64_t>{1, 1, dense.shape[0], dense.shape[1]} : dense.shape;
    for (std::int64_t at = 0; at < dense.size(); ++at) {
        const std::int64_t j = at % shape[3], i = at / shape[3] % shape[2], h = at / shape[3] / shape[2] % shape[1],
                           b = at / shape[3] / shape[2] / shape[1];
        same = same && (dense.as<const std::uint8_t>()[at] != 0) == rule(b, h, i, j);
    }
    CHECK(same);
    for (int tile = 0; tile < 30; ++tile) {
        const attend::MaskTile where{below(batch), below(heads), below(n.q), 1 + below(4), below(n.k), 1 + below(4)};
        bool some = false, all = true;
        for (std::int64_t i = where.row; i < std::min(where.row + where.rows, n.q); ++i)
            for (std::int64_t j = where.key; j < std::min(where.key + where.keys, n.k); ++j)
                (rule(where.batch, where.head, i, j) ? some : all) = rule(where.batch, where.head, i, j);
        CHECK(mask.classify(where) == (!some ? TileClass::empty : all ? TileClass::full : TileClass::partial));
    }
}

std::vector<Lengths> sizes() { return {{7, 7}, {2, 5}, {5, 2}, {1, 9}, {12, 13}}; }

}  // namespace

TEST_CASE("utilities: masks combine elementwise") {
    for (const Lengths& n : sizes()) {
        const std::vector<Known> all = every_kind(n);
        for (const Known& a : all) {
            check(a.mask, n, a.rule);
            check(Mask::inverse(a.mask).value(), n, [&](auto... at) { return !a.rule(at...); });
            for (const Known& b : all) {
                check(Mask::both(a.mask, b.mask).value(), n,
                      [&](auto... at) { return a.rule(at...) && b.rule(at...); });
                check(Mask::either(a.mask, b.mask).value(), n,
                      [&](auto... at) { return a.rule(at...) || b.rule(at...); });
            }
        }
    }
}

TEST_CASE("utilities: masks follow De Morgan") {
    for (const Lengths& n : sizes()) {
        const std::vector<Known> all = every_kind(n);
        for (const Known& a : all)
            for (const Known& b : all) {
                const Mask left = Mask::inverse(Mask::both(a.mask, b.mask).value()).value();
                const Mask right = Mask::either(Mask::inverse(a.mask).value(), Mask::inverse(b.mask).value()).value();
                bool same = true;
                for (std::int64_t i = 0; i < n.q; ++i)
                    for (std::int64_t j = 0; j < n.k; ++j)
                        for (std::int64_t h = 0; h < heads; ++h)
                            same = same && left.keep(1, h, i, j) == right.keep(1, h, i, j);
                CHECK(same);
            }
    }
}

TEST_CASE("utilities: masks classify tiles as their dense form") {
    for (const Lengths& n : sizes()) {
        const std::vector<Known> all = every_kind(n);
        Mask mask = all[0].mask;
        for (std::size_t at = 1; at < all.size(); ++at) mask = Mask::both(mask, all[at].mask).value();
        // Windows meet in one, and so do lengths.
        CHECK(mask.num_terms() == 6);
        check(mask, n, [&](auto... at) {
            return std::all_of(all.begin(), all.end(), [&](const Known& known) { return known.rule(at...); });
        });
    }
}

TEST_CASE("utilities: a causal mask is a wide causal window") {
    for (const Lengths& n : sizes()) {
        MaskArguments arguments{.q_len = n.q, .k_len = n.k, .window_size = std::max(n.q, n.k), .causal = true};
        const Mask window = create_mask("sliding", 0, arguments).value();
        const Mask causal = create_mask("causal", 0, {.q_len = n.q, .k_len = n.k}).value();
        for (std::int64_t i = 0; i < n.q; ++i)
            for (std::int64_t j = 0; j < n.k; ++j) CHECK(window.keep(0, 0, i, j) == causal.keep(0, 0, i, j));
    }
}

TEST_CASE("utilities: causal stands at the bottom right") {
    const auto rows = [](std::int64_t q, std::int64_t k) {
        const Tensor dense = create_mask("causal", 0, {.q_len = q, .k_len = k}).value().to_dense().value();
        std::string text;
        for (std::int64_t at = 0; at < dense.size(); ++at) {
            if (at > 0 && at % k == 0) text += ' ';
            text += dense.as<const std::uint8_t>()[at] != 0 ? '1' : '0';
        }
        return text;
    };
    CHECK(rows(2, 5) == "11110 11111");
    CHECK(rows(5, 2) == "00 00 00 10 11");
}

TEST_CASE("utilities: additive masks are zero and minus infinity") {
    const Mask mask = create_mask("sliding", 6, {.window_size = 0}).value();
    const Tensor additive = mask.to_additive().value(), dense = mask.to_dense().value();
    REQUIRE(additive.shape == std::vector<std::int64_t>{6, 6});
    for (std::int64_t at = 0; at < 36; ++at)
        CHECK(additive.as<const float>()[at] == (dense.as<const std::uint8_t>()[at] != 0 ? 0.0f : -HUGE_VALF));
    CHECK(mask.nnz() == 6);
}

TEST_CASE("utilities: shapes of dense masks") {
    using Shape = std::vector<std::int64_t>;
    CHECK(create_mask("causal", 4)->to_dense()->shape == Shape{4, 4});
    CHECK(create_mask("padding", 4, {.lengths = std::vector<std::int64_t>{1, 4, 0}})->to_dense()->shape ==
          Shape{3, 1, 1, 4});
    CHECK(create_mask("padding", 4, {.positions = std::vector<std::int64_t>{3, 3}})->to_dense()->shape ==
          Shape{1, 1, 1, 4});
    CHECK(create_mask("padding", 4, {.keep = flags({2, 4})})->to_dense()->shape == Shape{2, 1, 1, 4});
    CHECK(create_mask("segment", 4, {.segment_q = numbers({2, 4}), .segment_k = numbers({2, 4})})->to_dense()->shape ==
          Shape{2, 1, 4, 4});
    CHECK(
        create_mask("custom", 4, {.predicate = [](auto b, auto, auto, auto) { return b == 0; }, .batch = 2, .heads = 3})
            ->to_dense()
            ->shape == Shape{2, 3, 4, 4});
    CHECK(create_mask("custom", 4, {.dense = flags({2, 4, 4})})->to_dense()->shape == Shape{2, 1, 4, 4});
}

TEST_CASE("utilities: masks refuse what they cannot be") {
    const auto message = [](const auto& result) {
        REQUIRE_FALSE(result.ok());
        return result.error().message;
    };
    CHECK(message(create_mask("casual", 4)).find("did you mean \"causal\"") != std::string::npos);
    CHECK(message(create_mask("padding", 4, {.positions = std::vector<std::int64_t>{4}}))
              .find("padded position 4; accepted: 0 to 3") != std::string::npos);
    CHECK(message(create_mask("padding", 4, {.positions = std::vector<std::int64_t>{-1}})).find("-1") !=
          std::string::npos);
    CHECK(message(create_mask("padding", 4)).find("one of positions") != std::string::npos);
    CHECK(message(create_mask("padding", 4, {.lengths = std::vector<std::int64_t>{5}})).find("0 to 4") !=
          std::string::npos);
    CHECK(message(create_mask("sliding", 4)).find("window_size, left or right") != std::string::npos);
    CHECK(message(create_mask("sliding", 4, {.window_size = -1})).find("at least 0") != std::string::npos);
    CHECK(message(create_mask("causal", 4, {.window_size = 3})).find("belongs to sliding") != std::string::npos);
    CHECK(message(create_mask("block", 4, {.block_q = 2, .block_k = 3, .pattern = flags({2, 3})})).find("[2, 2]") !=
          std::string::npos);
    CHECK(message(create_mask("segment", 4, {.segment_q = numbers({2, 4}), .segment_k = numbers({1, 4})}))
              .find("as many") != std::string::npos);
    CHECK(message(create_mask("custom", 4, {.dense = flags({3, 4})})).find("broadcasts") != std::string::npos);
    CHECK(message(create_mask("custom", 4)).find("one of dense and predicate") != std::string::npos);
    const Mask wide = create_mask("causal", 40000).value();
    CHECK(message(wide.to_dense()).find("1600000000 bytes; accepted: at most 1073741824") != std::string::npos);
    CHECK(message(Mask::inverse(wide)).find("accepted: at most") != std::string::npos);
    CHECK(wide.nnz() == std::int64_t{40000} * 40001 / 2);
    CHECK(message(Mask::both(wide, create_mask("causal", 3).value())).find("do not go together") != std::string::npos);
}
