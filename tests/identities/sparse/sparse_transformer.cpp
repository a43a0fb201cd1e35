// SPDX-License-Identifier: Apache-2.0
// sparse-transformer-attention: the identities of its page.
#include "identities/sparse/key_sets.hpp"

namespace {

using namespace identities;
const std::string mechanism = "sparse-transformer-attention";

using Matrix = std::vector<std::vector<bool>>;

Matrix matrix_of(const KeySets& sets, std::int64_t n) {
    Matrix seen(static_cast<std::size_t>(n), std::vector<bool>(static_cast<std::size_t>(n)));
    for (std::int64_t i = 0; i < n; ++i)
        for (const std::int64_t j : sets.row(0, i))
            seen[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)] = true;
    return seen;
}
// Boolean product is the whole lower triangle.
bool reaches_all(const Matrix& a, const Matrix& b) {
    for (std::size_t i = 0; i < a.size(); ++i)
        for (std::size_t j = 0; j < a.size(); ++j) {
            bool reached = false;
            for (std::size_t over = 0; over < a.size(); ++over) reached = reached || (a[i][over] && b[over][j]);
            if (reached != (j <= i)) return false;
        }
    return true;
}

}  // namespace

TEST_CASE("sparse-transformer-attention: sizes of rows") {
    for (const std::int64_t n : {30, 41})
        for (const std::int64_t l : {1, 4, 7}) {
            const KeySets strided(mechanism, {{"stride", l}}, 1, n, n);
            for (std::int64_t p = 0; p < n; ++p)
                CHECK(static_cast<std::int64_t>(strided.row(0, p).size()) == std::min(p + 1, l) + p / l);
            for (std::int64_t c = 1; c <= l; c += 2) {
                const KeySets fixed(mechanism, {{"pattern", "fixed"}, {"stride", l}, {"summary", c}}, 1, n, n);
                for (std::int64_t p = 0; p < n; ++p)
                    CHECK(static_cast<std::int64_t>(fixed.row(0, p).size()) == p % l + 1 + c * (p / l));
            }
        }
}

TEST_CASE("sparse-transformer-attention: one block is full attention") {
    on_random_shapes({.group = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult full = forward(inputs, "standard-mha", {{"causal", true}});
        for (const char* pattern : {"strided", "fixed"})
            for (const std::int64_t more : {0, 7})
                CHECK(agree(forward(inputs, mechanism, {{"pattern", pattern}, {"stride", shape.kv_len + more}}), full));
        CHECK(agree(forward(inputs, mechanism, {{"stride", 1}}), full));
    });
}

TEST_CASE("sparse-transformer-attention: two steps reach every earlier position") {
    const std::int64_t n = 26;
    for (const std::int64_t l : {1, 3, 5, 8}) {
        const auto sets = [&](const char* pattern, const char* factor, std::int64_t c) {
            return matrix_of(
                KeySets(mechanism, {{"pattern", pattern}, {"stride", l}, {"summary", c}, {"factor", factor}}, 1, n, n),
                n);
        };
        CHECK(reaches_all(sets("strided", "second", 1), sets("strided", "first", 1)));
        for (std::int64_t c = 1; c <= l; ++c) CHECK(reaches_all(sets("fixed", "merged", c), sets("fixed", "first", c)));
    }
}

TEST_CASE("sparse-transformer-attention: heads summarise different columns") {
    const std::int64_t n = 40, l = 8, c = 2, verts = 4;
    const NamedValues options{
        {"pattern", "fixed"}, {"stride", l}, {"summary", c}, {"num_verts", verts}, {"factor", "second"}};
    const KeySets sets(mechanism, options, verts, n, n);
    for (std::int64_t p = 0; p < n; ++p) {
        std::set<std::int64_t> all;
        std::int64_t sum = 0;
        for (std::int64_t h = 0; h < verts; ++h) {
            Keys outside;
            for (const std::int64_t j : sets.row(h, p))
                if (j / l != p / l) outside.push_back(j);
            CHECK(static_cast<std::int64_t>(outside.size()) == c * (p / l));
            sum += static_cast<std::int64_t>(outside.size());
            all.insert(outside.begin(), outside.end());
        }
        CHECK(static_cast<std::int64_t>(all.size()) == sum);
    }
}

TEST_CASE("sparse-transformer-attention: the first factor is a window") {
    on_random_shapes({.group = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t l = 1 + random.below(12);
        CHECK(
            agree(forward(inputs, mechanism, {{"stride", l}, {"factor", "first"}}),
                  forward(inputs, "local-attention", {{"window_left", l - 1}, {"window_right", 0}, {"causal", true}})));
    });
}

TEST_CASE("sparse-transformer-attention: factors merge") {
    on_random_shapes({.group = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t l = 2 + random.below(8), n = shape.kv_len;
        for (const char* pattern : {"strided", "fixed"}) {
            const NamedValues options{{"pattern", pattern}, {"stride", l}};
            NamedValues first = options, second = options;
            first.emplace_back("factor", "first");
            second.emplace_back("factor", "second");
            // The second factor without what the first one shows.
            ForwardInputs rest = inputs;
            rest.mask = bools({1, 1, n, n}, [&](const std::vector<std::int64_t>& at) {
                return pattern[0] == 's' ? std::abs(at[2] - at[3]) >= l : at[2] / l != at[3] / l;
            });
            const Partial both = merged(forward(inputs, mechanism, first), forward(rest, mechanism, second));
            const ForwardResult together = forward(inputs, mechanism, options);
            CHECK(agree(values(together.output), both.output));
            CHECK(agree(values(*together.lse), both.lse));
        }
    });
}

TEST_CASE("sparse-transformer-attention: weights and rows agree") {
    on_random_shapes({.group = 3, .length = 200}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        for (const char* pattern : {"strided", "fixed"})
            for (const char* factor : {"merged", "heads", "first", "second"})
                for (const std::int64_t stride : {0, 70}) {
                    const NamedValues options{
                        {"pattern", pattern}, {"factor", factor}, {"stride", stride}, {"causal", random.below(2) == 0}};
                    CHECK(agree(forward(inputs, mechanism, options), forward(inputs, mechanism, options, true)));
                }
    });
}

TEST_CASE("sparse-transformer-attention: rejects summaries that do not fit a block") {
    Random random(1);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 9, 9, 8, 8});
    rejects(inputs, mechanism, {{"pattern", "fixed"}, {"stride", 4}, {"summary", 5}},
            {"\"summary\" is 5", "stride is 4", "accepted: 1 to 4"});
    rejects(inputs, mechanism, {{"pattern", "fixed"}, {"stride", 4}, {"summary", 2}, {"num_verts", 3}},
            {"\"num_verts\" (3)", "\"summary\" (2)", "4", "accepted: num_verts of 1 to 2"});
}

TEST_CASE("sparse-transformer-attention: rejects queries that stand on no key") {
    Random random(2);
    for (const bool causal : {true, false}) {
        rejects(make_inputs(random, {1, 2, 2, 9, 6, 8, 8}), mechanism, {{"causal", causal}},
                {"9 queries", "-3 to 5", "6 keys", "accepted: positions from 0 to 5"});
        const ForwardResult fine = forward(make_inputs(random, {1, 2, 2, 4, 6, 8, 8}), mechanism, {{"causal", causal}});
        CHECK(fine.output.shape[2] == 4);
    }
}
