// SPDX-License-Identifier: Apache-2.0
// Rows whose scores are huge: masks of -1e9 or of the lowest float that hide everything, offsets of either sign,
// products of large numbers. Such rows are the softmax of the scores as float32 holds them, and leave ordinary rows
// of their tile alone.
#include "unit/toolkit/attention_case.hpp"

namespace attend::test {
namespace {

constexpr float highest = std::numeric_limits<float>::max();
constexpr float offsets[] = {1e4f, 7e5f, 7.3e5f, 1e6f, 3e6f, 1.1e7f, 1e9f, 1e30f, highest};

// The types that the score pipelines differ in; on avx512 with hardware dots too.
void check_huge(AttentionCase c) {
    for (const Stored type : {Stored::f32, Stored::bf16, Stored::f16}) {
        c.q_type = c.kv_type = c.out_type = type;
        c.dots = false;
        c.round_inputs();
        const AttentionResult expected = oracle(c);
        for_each_entry([&](const Entry& entry) {
            AttentionCase way = c;
            check_case(entry, way, expected);
            if (type != Stored::bf16 || !has_bf16_dots(entry)) return;
            way.dots = true;
            check_case(entry, way, expected);
        });
    }
}

// Small integers and a scale of 1/4: scores, and their sums with the offsets, are the same in every order of addition.
AttentionCase exact_case(Random& random, int64_t q_len = 41) {
    AttentionCase c;
    c.q_len = q_len;
    c.kv_len = 290;
    c.use_bias = c.float_scores = true;
    c.scores = 1;
    c.fill(random);
    for (std::vector<float>* values : {&c.q, &c.k})
        for (float& x : *values) x = static_cast<float>(random.whole(-2, 2));
    for (float& x : c.bias) x = 0.0f;
    return c;
}
template <class Bias>
void set_bias(AttentionCase& c, Bias bias) {
    for (size_t at = 0; at < c.bias.size(); ++at) {
        const auto place = static_cast<int64_t>(at);
        c.bias[at] = bias(place / c.kv_len % c.q_len, place % c.kv_len);
    }
}

TEST_CASE("huge scores: one offset for all keys of some rows", "[toolkit]") {
    for (const float size : offsets)
        for (const float offset : {-size, size}) {
            INFO("offset " << offset);
            Random random(1);
            AttentionCase c = exact_case(random);
            set_bias(c, [&](int64_t, int64_t) { return offset; });
            check_huge(c);
            set_bias(c, [&](int64_t i, int64_t) { return i % 3 == 1 ? offset : 0.0f; });
            check_huge(c);
            c.causal = true;
            c.offset = 249;
            check_huge(c);
            set_bias(c, [&](int64_t i, int64_t) {
                return i % 4 == 1 ? offset : i % 4 == 2 ? -offset : i % 4 == 3 ? -1e9f : 0.0f;
            });
            c.dropout = 0.25;
            check_huge(c);
        }
}

TEST_CASE("huge scores: few rows", "[toolkit]") {
    // Without weights asked for, these go the way of decoding.
    for (const float size : offsets)
        for (const float offset : {-size, size}) {
            INFO("offset " << offset);
            Random random(2);
            AttentionCase c = exact_case(random, 3);
            c.scores = 0;
            set_bias(c, [&](int64_t i, int64_t) { return i == 1 ? offset : 0.0f; });
            check_huge(c);
        }
}

TEST_CASE("huge scores: rows that equal scores make a mean", "[toolkit]") {
    for (const float offset : {-1e9f, -1e30f, -highest, 1e9f}) {
        Random random(2);
        AttentionCase c = exact_case(random);
        set_bias(c, [&](int64_t, int64_t) { return offset; });
        for_each_entry([&](const Entry& entry) {
            const EngineResult got = run_engine(entry, c, 1);
            INFO("offset " << offset);
            for (const float weight : got.scores) CHECK(std::fabs(weight * 290.0f - 1.0f) < 1e-5f);
            for (const float lse : got.lse) CHECK(lse == offset);
            for (size_t h = 0; h < 2; ++h)
                for (size_t d = 0; d < 16; ++d) {
                    double mean = 0.0;
                    for (size_t j = 0; j < 290; ++j) mean += static_cast<double>(c.v[(h * 290 + j) * 16 + d]) / 290.0;
                    for (size_t i = 0; i < 41; ++i)
                        CHECK(std::fabs(static_cast<double>(got.output[(h * 41 + i) * 16 + d]) - mean) < 2e-6);
                }
        });
    }
}

TEST_CASE("huge scores: some keys of a row, in every order of blocks", "[toolkit]") {
    for (const float offset : offsets)
        for (const float sign : {-1.0f, 1.0f})
            for (int order = 0; order < 5; ++order) {
                INFO("offset " << sign * offset << ", order " << order);
                Random random(3);
                AttentionCase c = exact_case(random);
                set_bias(c, [&](int64_t i, int64_t j) {
                    const bool huge = order == 0   ? j < 150
                                      : order == 1 ? j >= 150
                                      : order == 2 ? j == 289
                                      : order == 3 ? j == 0
                                                   : j % 2 == i % 2;
                    return huge && i % 5 != 0 ? sign * offset : 0.0f;
                });
                check_huge(c);
            }
}

TEST_CASE("huge scores: offsets that grow from block to block", "[toolkit]") {
    for (const float sign : {-1.0f, 1.0f})
        for (const bool falling : {false, true}) {
            Random random(4);
            AttentionCase c = exact_case(random);
            c.max_key_tile = 32;
            set_bias(c, [&](int64_t i, int64_t j) {
                const int64_t step = falling ? 8 - j / 34 : j / 34;
                return i % 2 == 0 ? sign * offsets[step] : 0.0f;
            });
            check_huge(c);
        }
}

TEST_CASE("huge scores: beside hidden keys", "[toolkit]") {
    for (const float offset : {-1e9f, -highest, 1e9f, highest}) {
        Random random(5);
        AttentionCase c = exact_case(random);
        c.key_lengths = {201};
        c.causal = true;
        c.offset = 170;
        set_bias(c, [&](int64_t i, int64_t j) {
            return j % 3 == i % 3 ? -std::numeric_limits<float>::infinity() : i % 2 == 0 ? offset : 0.0f;
        });
        for (int64_t head = 0; head < 2; ++head)
            for (int64_t j = 201; j < 290; ++j) {
                c.k[static_cast<size_t>((head * 290 + j) * 16)] = nan_value;
                c.v[static_cast<size_t>((head * 290 + j) * 16 + 5)] = nan_value;
            }
        check_huge(c);
    }
}

TEST_CASE("huge scores: large queries and keys", "[toolkit]") {
    // One key takes all, by far more than scores of this size are off.
    for (const float size : {1e3f, 1e4f, 1e8f})
        for (int signs = 0; signs < 3; ++signs) {
            Random random(6);
            AttentionCase c;
            c.q_len = 41;
            c.kv_len = 290;
            c.head_dim = 24;
            c.scores = 1;
            c.fill(random);
            const auto stretch = [&](std::vector<float>& values, bool queries) {
                for (size_t at = 0; at < values.size(); ++at) {
                    // Every third query is small instead: its scores are ordinary ones.
                    const bool small = queries && static_cast<int64_t>(at) / c.head_dim % 3 == 0;
                    if (signs != 0) values[at] = std::fabs(values[at]);
                    if (signs == 1 && !queries) values[at] = -values[at];
                    values[at] *= small ? 1.0f / size : size;
                }
            };
            stretch(c.q, true);
            stretch(c.k, false);
            INFO("size " << size << ", signs " << signs);
            if (size > 1e4f) {  // beyond the range of f16
                for (const bool dots : {false, true}) {
                    AttentionCase way = c;
                    way.q_type = way.kv_type = Stored::bf16;
                    way.dots = dots;
                    way.round_inputs();
                    const AttentionResult expected = oracle(way);
                    for_each_entry([&](const Entry& entry) {
                        if (!dots || has_bf16_dots(entry)) check_case(entry, way, expected);
                    });
                }
                continue;
            }
            check_huge(c);
        }
}

}  // namespace
}  // namespace attend::test
