// SPDX-License-Identifier: Apache-2.0
// Identities of bidirectional-self-attention.
#include "identities/identities.hpp"

namespace {

using namespace identities;
constexpr const char* both_sides = "bidirectional-self-attention";

ForwardInputs rows_of(const ForwardInputs& all, std::int64_t item, const std::vector<std::int64_t>& rows) {
    ForwardInputs part;
    part.query = take(take(all.query, 0, {item}), 2, rows);
    part.key = take(take(*all.key, 0, {item}), 2, rows);
    part.value = take(take(*all.value, 0, {item}), 2, rows);
    return part;
}

// Rows of one item of a result are those of a call of their own.
void check_rows(const ForwardResult& whole, std::int64_t item, const std::vector<std::int64_t>& rows,
                const ForwardResult& part) {
    CHECK(agree(part.output, take(take(whole.output, 0, {item}), 2, rows)));
    CHECK(agree(*part.lse, take(take(*whole.lse, 0, {item}), 2, rows)));
}

void check_empty(const ForwardResult& whole, std::int64_t item, const std::vector<std::int64_t>& rows) {
    for (const float x : values(take(take(whole.output, 0, {item}), 2, rows))) CHECK(x == 0.0f);
    for (const float x : values(take(take(*whole.lse, 0, {item}), 2, rows)))
        CHECK(x == -std::numeric_limits<float>::infinity());
}

}  // namespace

TEST_CASE("bidirectional-self-attention: permutation equivariance") {
    on_random_shapes({.group = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult before = forward(inputs, both_sides);
        const std::vector<std::int64_t> order = shuffled(random, shape.q_len);
        ForwardInputs other;
        other.query = take(inputs.query, 2, order);
        other.key = take(*inputs.key, 2, order);
        other.value = take(*inputs.value, 2, order);
        const ForwardResult after = forward(other, both_sides);
        CHECK(agree(after.output, take(before.output, 2, order)));
        CHECK(agree(*after.lse, take(*before.lse, 2, order)));
        ForwardInputs tokens;
        const std::int64_t model = shape.heads * shape.head_dim;
        tokens.query = normal(random, {shape.batch, shape.q_len, model});
        for (const char* name : {"wq", "wk", "wv", "wo"})
            tokens.weights.emplace_back(name, layer(random, model, model));
        const Tensor projected = forward(tokens, both_sides, {{"heads", shape.heads}}).output;
        tokens.query = take(tokens.query, 1, order);
        CHECK(agree(forward(tokens, both_sides, {{"heads", shape.heads}}).output, take(projected, 1, order)));
    });
}

TEST_CASE("bidirectional-self-attention: repeated keys") {
    on_random_shapes({.square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult once = forward(inputs, both_sides);
        ForwardInputs many = inputs;
        for (std::int64_t copies = 2; copies <= 4; ++copies) {
            many.key = joined(*many.key, *inputs.key, 2);
            many.value = joined(*many.value, *inputs.value, 2);
            const ForwardResult result = forward(many, both_sides);
            CHECK(agree(result.output, once.output));
            const auto more = static_cast<float>(std::log(static_cast<double>(copies)));
            CHECK(agree(*result.lse, mapped(*once.lse, [more](float x) { return x + more; })));
        }
    });
}

TEST_CASE("bidirectional-self-attention: padding") {
    on_random_shapes({.batch = 1, .group = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t n = shape.q_len, valid = 1 + random.below(n);
        const std::vector<std::int64_t> rows = range(0, valid);
        const ForwardResult alone = forward(rows_of(inputs, 0, rows), both_sides);
        for (const std::int64_t extra : {std::int64_t{0}, std::int64_t{5}, std::int64_t{90}}) {
            ForwardInputs padded = inputs;
            std::vector<std::int64_t> more = range(0, n);
            more.insert(more.end(), static_cast<std::size_t>(extra), 0);
            padded.query = take(inputs.query, 2, more);
            padded.key = take(*inputs.key, 2, more);
            padded.value = take(*inputs.value, 2, more);
            const std::int64_t all = n + extra;
            for (std::int64_t h = 0; h < shape.kv_heads; ++h)
                for (std::int64_t j = valid; j < all; ++j)
                    for (std::int64_t d = 0; d < shape.head_dim; ++d) {
                        at(*padded.key, 0, h, j, d) = std::numeric_limits<float>::quiet_NaN();
                        at(*padded.value, 0, h, j, d) = std::numeric_limits<float>::infinity();
                    }
            for (const bool by_length : {true, false})
                for (const bool empties : {false, true}) {
                    ForwardInputs call = padded;
                    if (by_length)
                        call.key_lengths = lengths({valid});
                    else
                        call.extra = {{"padding_mask", bools({1, all}, [&](const auto& at) { return at[1] < valid; })}};
                    const ForwardResult result = forward(call, both_sides, {{"zero_padded_queries", empties}});
                    check_rows(result, 0, rows, alone);
                    if (empties) check_empty(result, 0, range(valid, all));
                }
        }
    });
    // Padding in front and in between, with a mask of the caller's beside it.
    on_random_shapes({}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        inputs.mask = bools({1, 1, shape.q_len, shape.kv_len}, [](const auto& at) { return (at[2] + at[3]) % 3 != 0; });
        const Tensor padding = bools({shape.batch, shape.kv_len}, [&](const auto&) { return random.below(3) != 0; });
        ForwardInputs masked = inputs;
        masked.mask = bools({shape.batch, 1, shape.q_len, shape.kv_len}, [&](const auto& at) {
            return (at[2] + at[3]) % 3 != 0 && padding.as<const std::uint8_t>()[at[0] * shape.kv_len + at[3]] != 0;
        });
        inputs.extra = {{"padding_mask", padding}};
        CHECK(agree(forward(inputs, both_sides), forward(masked, "standard-mha")));
    });
}

TEST_CASE("bidirectional-self-attention: packed segments") {
    on_random_shapes({.group = 2, .length = 200}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t n = shape.q_len;
        // Cuts of each item, with tokens outside in front and behind, and one empty segment.
        std::vector<std::int64_t> cuts, ids(static_cast<std::size_t>(shape.batch * n), -1);
        for (std::int64_t item = 0; item < shape.batch; ++item) {
            std::vector<std::int64_t> own{random.below(n + 1), random.below(n + 1), random.below(n + 1), 0, 0};
            own[3] = own[1];
            own[4] = n - random.below(2);
            std::sort(own.begin(), own.end());
            cuts.insert(cuts.end(), own.begin(), own.end());
        }
        for (std::int64_t item = 0; item < shape.batch; ++item)
            for (std::int64_t s = 0; s < 4; ++s)
                for (std::int64_t j = cuts[static_cast<std::size_t>(item * 5 + s)];
                     j < cuts[static_cast<std::size_t>(item * 5 + s + 1)]; ++j)
                    ids[static_cast<std::size_t>(item * n + j)] = 7 - s;
        ForwardInputs by_offsets = inputs, by_ids = inputs;
        by_offsets.extra = {{"segment_offsets", ints({shape.batch, 5}, cuts)}};
        by_ids.extra = {{"segment_ids", ints({shape.batch, n}, ids)}};
        const ForwardResult one = forward(by_offsets, both_sides), other = forward(by_ids, both_sides);
        CHECK(same_bits(one.output, other.output));
        for (std::int64_t item = 0; item < shape.batch; ++item) {
            const auto cut = [&](std::int64_t s) { return cuts[static_cast<std::size_t>(item * 5 + s)]; };
            for (std::int64_t s = 0; s < 4; ++s) {
                if (cut(s) == cut(s + 1)) continue;
                const std::vector<std::int64_t> rows = range(cut(s), cut(s + 1));
                check_rows(one, item, rows, forward(rows_of(inputs, item, rows), both_sides));
            }
            check_empty(one, item, range(0, cut(0)));
            check_empty(one, item, range(cut(4), n));
        }
        // Ids in any order, too; one id for all is no id.
        std::vector<std::int64_t> mixed;
        for (std::int64_t at = 0; at < shape.batch * n; ++at) mixed.push_back(random.below(4) - 1);
        by_ids.extra = {{"segment_ids", ints({shape.batch, n}, mixed)}};
        const ForwardResult result = forward(by_ids, both_sides);
        for (std::int64_t item = 0; item < shape.batch; ++item)
            for (std::int64_t id = -1; id < 3; ++id) {
                std::vector<std::int64_t> rows;
                for (std::int64_t j = 0; j < n; ++j)
                    if (mixed[static_cast<std::size_t>(item * n + j)] == id) rows.push_back(j);
                if (rows.empty()) continue;
                if (id < 0)
                    check_empty(result, item, rows);
                else
                    check_rows(result, item, rows, forward(rows_of(inputs, item, rows), both_sides));
            }
        by_ids.extra = {{"segment_ids", ints({shape.batch, n}, std::vector<std::int64_t>(mixed.size(), 3))}};
        CHECK(agree(forward(by_ids, both_sides), forward(inputs, both_sides)));
    });
}

TEST_CASE("bidirectional-self-attention: extreme scales") {
    on_random_shapes({}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult flat = forward(inputs, both_sides, {{"scale", 1e-12}});
        Tensor mean = filled(flat.output.shape, 0.0f);
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t h = 0; h < shape.heads; ++h)
                for (std::int64_t d = 0; d < shape.value_dim; ++d) {
                    double sum = 0;
                    for (std::int64_t j = 0; j < shape.kv_len; ++j)
                        sum += static_cast<double>(at(*inputs.value, b, h, j, d));
                    for (std::int64_t i = 0; i < shape.q_len; ++i)
                        at(mean, b, h, i, d) = static_cast<float>(sum / static_cast<double>(shape.kv_len));
                }
        CHECK(agree(flat.output, mean));
        CHECK(agree(*flat.lse, filled(flat.lse->shape, std::log(static_cast<float>(shape.kv_len)))));
        const double scale = 100.0 / std::sqrt(static_cast<double>(shape.head_dim));
        const ForwardResult sharp = forward(inputs, both_sides, {{"scale", scale}});
        std::int64_t checked = 0;
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t h = 0; h < shape.heads; ++h)
                for (std::int64_t i = 0; i < shape.q_len; ++i) {
                    double first = -1e300, second = -1e300;
                    std::int64_t best = 0;
                    for (std::int64_t j = 0; j < shape.kv_len; ++j) {
                        double dot = 0;
                        for (std::int64_t d = 0; d < shape.head_dim; ++d)
                            dot += static_cast<double>(at(inputs.query, b, h, i, d)) *
                                   static_cast<double>(at(*inputs.key, b, h, j, d));
                        if (dot > first)
                            second = first, first = dot, best = j;
                        else
                            second = std::max(second, dot);
                    }
                    if (scale * (first - second) < 16.0) continue;
                    ++checked;
                    for (std::int64_t d = 0; d < shape.value_dim; ++d)
                        CHECK(std::abs(at(sharp.output, b, h, i, d) - at(*inputs.value, b, h, best, d)) <= 1e-5f);
                }
        CHECK(checked > 0);
    });
}

TEST_CASE("bidirectional-self-attention: symmetric weights") {
    on_random_shapes({.length = 30}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        inputs.key = inputs.query;
        const ForwardResult result = forward(inputs, both_sides, {{"scale", 0.25}}, true);
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t h = 0; h < shape.heads; ++h)
                for (std::int64_t i = 0; i < shape.q_len; ++i)
                    for (std::int64_t j = 0; j < i; ++j) {
                        const double one = static_cast<double>(at(*result.scores, b, h, i, j)) *
                                           std::exp(static_cast<double>(at(*result.lse, b, h, i)));
                        const double other = static_cast<double>(at(*result.scores, b, h, j, i)) *
                                             std::exp(static_cast<double>(at(*result.lse, b, h, j)));
                        CHECK(std::abs(one - other) <= 1e-5 * (1.0 + other));
                    }
    });
}

TEST_CASE("bidirectional-self-attention: rejects causal and contradicting paddings and segments") {
    Random random(1);
    const ForwardInputs plain = make_inputs(random, {2, 2, 2, 6, 6, 8, 8});
    rejects(plain, both_sides, {{"causal", true}}, {"causal", "true", "false"});
    ForwardInputs inputs = make_inputs(random, {1, 2, 2, 4, 6, 8, 8});
    inputs.extra = {{"segment_ids", ints({1, 6}, {0, 0, 0, 1, 1, 1})}};
    rejects(inputs, both_sides, {}, {"segment", "4", "6"});
    inputs.extra = {{"segment_offsets", ints({3}, {0, 3, 6})}};
    rejects(inputs, both_sides, {}, {"segment", "4", "6"});
    inputs = plain;
    inputs.extra = {{"segment_ids", ints({2, 6}, std::vector<std::int64_t>(12, 0))},
                    {"segment_offsets", ints({2}, {0, 6})}};
    rejects(inputs, both_sides, {}, {"segment_ids", "segment_offsets"});
    inputs.extra = {{"segment_offsets", ints({3}, {0, 4, 3})}};
    rejects(inputs, both_sides, {}, {"segment_offsets", "3", "4"});
    inputs.extra = {{"segment_offsets", ints({2}, {-1, 6})}};
    rejects(inputs, both_sides, {}, {"segment_offsets", "-1", "0"});
    inputs.extra = {{"segment_offsets", ints({2}, {0, 7})}};
    rejects(inputs, both_sides, {}, {"segment_offsets", "7", "6"});
    inputs.key_lengths = lengths({6, 4});
    inputs.extra = {{"padding_mask", bools({2, 6}, [](const auto&) { return true; })}};
    rejects(inputs, both_sides, {}, {"padding_mask", "key_lengths"});
    ForwardInputs tokens;
    tokens.query = normal(random, {1, 5, 24});
    rejects(tokens, both_sides, {{"form", "projected"}, {"heads", 5}}, {"24", "5"});
    tokens.extra = {{"padding_mask", bools({1, 4}, [](const auto&) { return true; })}};
    rejects(tokens, both_sides, {{"form", "projected"}, {"heads", 4}}, {"4", "5"});
}
