// SPDX-License-Identifier: Apache-2.0
// local-attention: the identities of its page.
#include "identities/sparse/key_sets.hpp"

namespace {

using namespace identities;
const std::string mechanism = "local-attention";

}  // namespace

TEST_CASE("local-attention: full width") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t w = std::max(shape.kv_len, shape.q_len) - 1;
        for (const bool causal : {false, true}) {
            const ForwardResult full = forward(inputs, "standard-mha", {{"causal", causal}});
            CHECK(agree(forward(inputs, mechanism, {{"window_size", w}, {"causal", causal}}), full));
            CHECK(agree(forward(inputs, mechanism,
                                {{"window_left", -1}, {"window_right", -1}, {"window_size", 0}, {"causal", causal}}),
                        full));
        }
    });
}

TEST_CASE("local-attention: width zero") {
    on_random_shapes({}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult got = forward(inputs, mechanism, {{"window_size", 0}, {"scale", 0.75}});
        CHECK(agree(got.output, *inputs.value, 1e-7));
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t h = 0; h < shape.heads; ++h)
                for (std::int64_t i = 0; i < shape.q_len; ++i) {
                    double score = 0.0;
                    for (std::int64_t d = 0; d < shape.head_dim; ++d)
                        score += 0.75 * static_cast<double>(at(inputs.query, b, h, i, d)) *
                                 static_cast<double>(at(*inputs.key, b, h / (shape.heads / shape.kv_heads), i, d));
                    CHECK(std::abs(static_cast<double>(at(*got.lse, b, h, i)) - score) <=
                          1e-5 * (1.0 + std::abs(score)));
                }
    });
}

TEST_CASE("local-attention: number of pairs") {
    for (const std::int64_t n : {20, 61, 130})
        for (const std::int64_t w : {0, 1, 7, 19}) {
            CHECK(KeySets(mechanism, {{"window_size", w}}, 1, n, n).pairs() == n * (2 * w + 1) - w * (w + 1));
            CHECK(KeySets(mechanism, {{"window_size", w}, {"causal", true}}, 1, n, n).pairs() ==
                  n * (w + 1) - w * (w + 1) / 2);
        }
}

TEST_CASE("local-attention: translation") {
    Random random(3);
    constexpr std::int64_t n = 480, w = 40;
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, n, n, 16, 16});
    const ForwardInputs fresh = make_inputs(random, {1, 2, 2, n, n, 16, 16});
    const ForwardResult before = forward(inputs, mechanism, {{"window_size", w}});
    for (const std::int64_t t : {96, 1, 13, 150}) {
        const auto shifted = [&](const Tensor& old, const Tensor& other) {
            return joined(take(other, 2, range(0, t)), take(old, 2, range(0, n - t)), 2);
        };
        ForwardInputs moved;
        moved.query = shifted(inputs.query, fresh.query);
        moved.key = shifted(*inputs.key, *fresh.key);
        moved.value = shifted(*inputs.value, *fresh.value);
        const ForwardResult after = forward(moved, mechanism, {{"window_size", w}});
        // Interior rows of both calls.
        const Tensor one = take(before.output, 2, range(w, n - w - t)),
                     other = take(after.output, 2, range(w + t, n - w));
        INFO("shifted by " << t);
        CHECK(agree(one, other, 1e-6));
        // Tiles of two heads are taken up in twos, 96 rows on the widest instruction set: those that see no end of the
        // sequence stand to their keys as before.
        if (t == 96)
            CHECK(same_bits(take(before.output, 2, range(96, n - 192)), take(after.output, 2, range(192, n - 96))));
    }
}

TEST_CASE("local-attention: nothing to the right") {
    on_random_shapes({.group = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t left = random.below(20);
        CHECK(agree(forward(inputs, mechanism, {{"window_left", left}, {"window_right", 0}}),
                    forward(inputs, mechanism, {{"window_left", left}, {"causal", true}})));
    });
}

TEST_CASE("local-attention: band and its complement") {
    on_random_shapes({.group = 2, .square = false}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t w = random.below(12), offset = shape.kv_len - shape.q_len;
        const ForwardResult band = forward(inputs, mechanism, {{"window_size", w}});
        const ForwardResult full = forward(inputs, "standard-mha");
        inputs.mask = bools({1, 1, shape.q_len, shape.kv_len},
                            [&](const auto& at) { return std::abs(at[3] - at[2] - offset) > w; });
        const Partial both = merged(band, forward(inputs, "standard-mha"));
        CHECK(agree(both.output, values(full.output)));
        CHECK(agree(both.lse, values(*full.lse)));
    });
}

TEST_CASE("local-attention: blocks on the diagonal") {
    Random random(11);
    for (const std::int64_t w : {1, 5, 16, 32})
        for (const std::int64_t blocks : {1, 3, 6}) {
            const ForwardInputs inputs = make_inputs(random, {2, 4, 2, w * blocks, w * blocks, 8, 8});
            for (const bool causal : {false, true})
                CHECK(agree(forward(inputs, mechanism,
                                    {{"mode", "block"},
                                     {"window_size", w},
                                     {"look_backward", 0},
                                     {"look_forward", 0},
                                     {"causal", causal}}),
                            forward(inputs, "blockwise-attention",
                                    {{"pattern", "diagonal"}, {"num_blocks", blocks}, {"causal", causal}})));
        }
}

TEST_CASE("local-attention: global tokens") {
    const auto list = [](std::initializer_list<int> items) {
        attend::Json array = attend::Json::array();
        for (const int item : items) array.push(item);
        return array;
    };
    for (const bool rows : {false, true})
        for (const char* mode : {"sliding", "block"}) {
            const NamedValues base{{"window_size", 3}, {"mode", mode}, {"global_rows", rows}};
            const auto with = [&](attend::Json tokens) {
                NamedValues options = base;
                options.emplace_back("global_tokens", std::move(tokens));
                return options;
            };
            const KeySets plain(mechanism, base, 1, 40, 40), counted(mechanism, with(2), 1, 40, 40),
                listed(mechanism, with(list({1, 0})), 1, 40, 40), far(mechanism, with(list({30, 12})), 1, 40, 40);
            for (std::int64_t i = 0; i < 40; ++i) {
                CHECK(counted.row(0, i) == listed.row(0, i));
                std::set<std::int64_t> wanted;
                for (const std::int64_t j : plain.row(0, i)) wanted.insert(j);
                wanted.insert({12, 30});
                if (rows && (i == 12 || i == 30))
                    for (std::int64_t j = 0; j < 40; ++j) wanted.insert(j);
                CHECK(far.row(0, i) == Keys(wanted.begin(), wanted.end()));
            }
        }
}

TEST_CASE("local-attention: rejects what a mode does not read, and globals that are none") {
    Random random(1);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 9, 9, 8, 8});
    rejects(inputs, mechanism, {{"window_left", -2}}, {"window_left", "-2"});
    rejects(inputs, mechanism, {{"window_right", -2}}, {"window_right", "-2"});
    rejects(inputs, mechanism, {{"mode", "block"}, {"window_size", 0}}, {"window_size", "0", "1 or more"});
    rejects(inputs, mechanism, {{"mode", "block"}, {"window_left", 3}}, {"window_left"});
    rejects(inputs, mechanism, {{"mode", "block"}, {"window_right", 3}}, {"window_right"});
    rejects(inputs, mechanism, {{"look_backward", 1}}, {"look_backward", "block"});
    rejects(inputs, mechanism, {{"look_forward", 0}}, {"look_forward", "block"});
    rejects(inputs, mechanism, {{"mode", "block"}, {"look_forward", 1}, {"causal", true}}, {"look_forward", "causal"});
    rejects(inputs, mechanism, {{"global_tokens", -1}}, {"global_tokens", "-1"});
    attend::Json twice = attend::Json::array(), far = attend::Json::array();
    twice.push(3), twice.push(3), far.push(9);
    rejects(inputs, mechanism, {{"global_tokens", twice}}, {"global_tokens", "twice"});
    rejects(inputs, mechanism, {{"global_tokens", far}}, {"global_tokens", "9", "0 to 8"});
}
