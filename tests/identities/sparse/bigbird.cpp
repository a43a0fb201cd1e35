// SPDX-License-Identifier: Apache-2.0
// bigbird-attention: the identities of its page.
#include "identities/sparse/key_sets.hpp"

namespace {

using namespace identities;
const std::string mechanism = "bigbird-attention";
using Blocks = std::set<std::int64_t>;

// Blocks of one key: those that row block `row` of a head reads.
Blocks blocks_of(std::int64_t count, std::int64_t head, std::int64_t row, NamedValues options) {
    options.emplace_back("block_size", 1);
    attend::CallSizes sizes;
    sizes.heads = sizes.kv_heads = head + 1;
    sizes.q_len = sizes.kv_len = count;
    Blocks read;
    const auto done =
        service().visit_pattern(mechanism, sizes, options, {head, row, 1, 1}, [&](const attend::PatternRange& range) {
            for (std::int64_t j = range.begin; j < range.end; j += range.step) read.insert(j);
        });
    if (!done) FAIL(done.error().message);
    return read;
}
Blocks without(Blocks from, const Blocks& others) {
    for (const std::int64_t block : others) from.erase(block);
    return from;
}

ForwardInputs with_extra(Random& random, const Shape& shape, std::int64_t extra) {
    ForwardInputs inputs = make_inputs(random, shape);
    inputs.extra = {{"global_query", normal(random, {shape.batch, shape.heads, extra, shape.head_dim})},
                    {"global_key", normal(random, {shape.batch, shape.kv_heads, extra, shape.head_dim})},
                    {"global_value", normal(random, {shape.batch, shape.kv_heads, extra, shape.value_dim})}};
    return inputs;
}
const Tensor& named(const ForwardResult& result, const std::string& name) {
    for (const auto& [known, tensor] : result.extra)
        if (known == name) return tensor;
    FAIL("no output " << name);
    std::abort();
}

}  // namespace

TEST_CASE("bigbird-attention: window alone") {
    on_random_shapes({.group = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t width = 1 + random.below(9), reach = random.below(3);
        for (const bool causal : {false, true})
            CHECK(agree(forward(inputs, mechanism,
                                {{"block_size", width},
                                 {"num_window_blocks", 2 * reach + 1},
                                 {"global_left", 0},
                                 {"global_right", 0},
                                 {"num_random_blocks", 0},
                                 {"causal", causal}}),
                        forward(inputs, "local-attention",
                                {{"mode", "block"},
                                 {"window_size", width},
                                 {"look_backward", reach},
                                 {"look_forward", causal ? 0 : reach},
                                 {"causal", causal}})));
    });
}

TEST_CASE("bigbird-attention: wide window") {
    on_random_shapes({.group = 2, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t width = 1 + random.below(9), blocks = (shape.kv_len + width - 1) / width;
        CHECK(agree(forward(inputs, mechanism,
                            {{"block_size", width}, {"num_window_blocks", 2 * blocks - 1}, {"num_random_blocks", 0}}),
                    forward(inputs, "standard-mha")));
    });
}

TEST_CASE("bigbird-attention: all blocks drawn") {
    on_random_shapes({.group = 2}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t width = 1 + random.below(9), blocks = (shape.kv_len + width - 1) / width;
        CHECK(agree(forward(inputs, mechanism, {{"block_size", width}, {"num_random_blocks", blocks}}),
                    forward(inputs, "standard-mha")));
    });
}

TEST_CASE("bigbird-attention: number of blocks") {
    for (const std::int64_t r : {0, 1, 3})
        for (const std::int64_t nb : {5 + r, 9 + r, std::int64_t{24}}) {
            std::int64_t sum = 0;
            for (std::int64_t row = 0; row < nb; ++row) {
                const auto count = static_cast<std::int64_t>(blocks_of(nb, 0, row, {{"num_random_blocks", r}}).size());
                sum += count;
                if (row >= 2 && row < nb - 2) CHECK(count == 5 + r);
            }
            CHECK(sum == 2 * nb + 2 * (4 + r) + (nb - 4) * (5 + r));
        }
}

TEST_CASE("bigbird-attention: draws") {
    constexpr std::int64_t nb = 14, row = 6, r = 3, seeds = 10000;
    const Blocks fixed = blocks_of(nb, 0, row, {{"num_random_blocks", 0}});
    CHECK(fixed == Blocks{0, 5, 6, 7, 13});
    std::map<std::int64_t, std::int64_t> drawn;
    for (std::int64_t seed = 0; seed < seeds; ++seed) {
        const Blocks random = without(blocks_of(nb, 0, row, {{"num_random_blocks", r}, {"seed", seed}}), fixed);
        if (static_cast<std::int64_t>(random.size()) != r) CHECK(static_cast<std::int64_t>(random.size()) == r);
        for (const std::int64_t block : random) ++drawn[block];
    }
    const double share = static_cast<double>(r) / (nb - 5), sigma = std::sqrt(seeds * share * (1.0 - share));
    CHECK(drawn.size() == nb - 5);
    for (const auto& [block, count] : drawn) {
        INFO("block " << block << " drawn " << count << " times");
        CHECK(std::abs(static_cast<double>(count) - seeds * share) <= 4.0 * sigma);
    }
}

TEST_CASE("bigbird-attention: check values") {
    const auto random = [](std::int64_t row, std::int64_t head) {
        return without(blocks_of(16, head, row, {{"seed", 0}}), blocks_of(16, head, row, {{"num_random_blocks", 0}}));
    };
    CHECK(random(1, 0) == Blocks{10, 11, 12});
    CHECK(random(1, 1) == Blocks{3, 6, 14});
    CHECK(random(2, 0) == Blocks{8, 11, 14});
    CHECK(random(7, 0) == Blocks{1, 3, 5});
    CHECK(random(7, 1) == Blocks{11, 13, 14});
    CHECK(random(14, 1) == Blocks{3, 9, 12});
}

TEST_CASE("bigbird-attention: extra tokens") {
    on_random_shapes({.group = 2, .same_width = false}, [](Random& random, const Shape& shape) {
        const std::int64_t extra = 1 + random.below(6), width = 1 + random.below(20);
        ForwardInputs inputs = with_extra(random, shape, extra);
        if (random.below(2) == 0)
            inputs.key_lengths = lengths(
                std::vector<std::int64_t>(static_cast<std::size_t>(shape.batch), 1 + random.below(shape.kv_len)));
        const ForwardResult got =
            forward(inputs, mechanism, {{"mode", "etc"}, {"block_size", width}, {"num_window_blocks", 2001}});
        ForwardInputs whole;
        whole.query = inputs.query;
        whole.key = joined(inputs.extra[1].second, *inputs.key, 2);
        whole.value = joined(inputs.extra[2].second, *inputs.value, 2);
        if (inputs.key_lengths)
            whole.key_lengths = lengths(std::vector<std::int64_t>(
                static_cast<std::size_t>(shape.batch), extra + inputs.key_lengths->as<const std::int64_t>()[0]));
        CHECK(agree(got, forward(whole, "standard-mha")));
        whole.query = inputs.extra[0].second;
        const ForwardResult global = forward(whole, "standard-mha");
        CHECK(agree(named(got, "global_output"), global.output));
        CHECK(agree(named(got, "global_lse"), *global.lse));
        // What hides keys from the sequence hides none from the extra tokens, and no extra key from the sequence.
        inputs.mask = bools({1, 1, 1, shape.kv_len}, [](const auto&) { return false; });
        const ForwardResult masked =
            forward(inputs, mechanism, {{"mode", "etc"}, {"block_size", width}, {"window_left", 0}});
        CHECK(same_bits(named(masked, "global_output"), named(got, "global_output")));
        whole = ForwardInputs{};
        whole.query = inputs.query;
        whole.key = inputs.extra[1].second;
        whole.value = inputs.extra[2].second;
        CHECK(agree(masked, forward(whole, "standard-mha")));
    });
}

TEST_CASE("bigbird-attention: unread blocks") {
    Random random(17);
    constexpr std::int64_t width = 8, nb = 14, n = width * nb;
    const ForwardInputs inputs = make_inputs(random, {1, 4, 2, n, n, 16, 16});
    const NamedValues options{{"block_size", width}, {"seed", 3}};
    const ForwardResult before = forward(inputs, mechanism, options);
    for (const std::int64_t changed : {2, 6, 11}) {
        ForwardInputs other = inputs;
        const std::vector<std::int64_t> all = range(0, n);
        other.key = take(*inputs.key, 2, all);
        other.value = take(*inputs.value, 2, all);
        for (std::int64_t h = 0; h < 2; ++h)
            for (std::int64_t j = changed * width; j < (changed + 1) * width; ++j)
                for (std::int64_t d = 0; d < 16; ++d) {
                    at(*other.key, 0, h, j, d) = random.normal();
                    at(*other.value, 0, h, j, d) = std::numeric_limits<float>::quiet_NaN();
                }
        const ForwardResult after = forward(other, mechanism, options);
        for (std::int64_t h = 0; h < 4; ++h)
            for (std::int64_t row = 0; row < nb; ++row) {
                const bool reads = blocks_of(nb, h, row, {{"seed", 3}}).count(changed) != 0;
                const auto rows = range(row * width, (row + 1) * width);
                const auto part = [&](const Tensor& from) { return take(take(from, 1, {h}), 2, rows); };
                INFO("block " << changed << ", head " << h << ", row block " << row);
                CHECK(same_bits(part(before.output), part(after.output)) == !reads);
            }
    }
}

TEST_CASE("bigbird-attention: other names") {
    Random random(19);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 90, 90, 8, 8});
    CHECK(
        same_bits(forward(inputs, mechanism, {{"block_size", 6}, {"window_size", 25}, {"num_global_tokens", 7}}).output,
                  forward(inputs, mechanism,
                          {{"block_size", 6}, {"num_window_blocks", 7}, {"global_left", 2}, {"global_right", 0}})
                      .output));
    CHECK(same_bits(forward(inputs, mechanism, {{"block_size", 6}, {"window_size", 0}}).output,
                    forward(inputs, mechanism, {{"block_size", 6}, {"num_window_blocks", 1}}).output));
}

TEST_CASE("bigbird-attention: rejects even windows, two names of one thing, rows off the axis, etc with causal") {
    Random random(1);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 9, 9, 8, 8});
    rejects(inputs, mechanism, {{"num_window_blocks", 4}}, {"num_window_blocks", "4", "odd"});
    rejects(inputs, mechanism, {{"block_size", 0}}, {"block_size", "0"});
    rejects(inputs, mechanism, {{"window_size", 5}, {"num_window_blocks", 3}},
            {"window_size", "5", "num_window_blocks", "3"});
    rejects(inputs, mechanism, {{"num_global_tokens", 5}, {"global_left", 1}},
            {"num_global_tokens", "5", "global_left"});
    rejects(inputs, mechanism, {{"num_global_tokens", 5}, {"global_right", 2}},
            {"num_global_tokens", "global_right", "2"});
    rejects(make_inputs(random, {1, 2, 2, 9, 8, 8, 8}), mechanism, {}, {"9", "8"});
    rejects(inputs, mechanism, {{"causal_offset", 1}}, {"9"});
    rejects(inputs, mechanism, {{"mode", "etc"}}, {"global_query"});
    rejects(with_extra(random, {1, 2, 2, 9, 9, 8, 8}, 2), mechanism, {}, {"global_query"});
    ForwardInputs some = with_extra(random, {1, 2, 2, 9, 9, 8, 8}, 2);
    some.extra.pop_back();
    rejects(some, mechanism, {{"mode", "etc"}}, {"global_value"});
    rejects(with_extra(random, {1, 2, 2, 9, 9, 8, 8}, 2), mechanism, {{"mode", "etc"}, {"causal", true}},
            {"causal", "etc"});
    ForwardInputs shorter = inputs;
    shorter.query_lengths = lengths({5});
    shorter.key_lengths = lengths({4});
    rejects(shorter, mechanism, {}, {"5", "-1"});
    // All blocks global is legal, and so are calls without keys.
    CHECK(agree(forward(inputs, mechanism, {{"block_size", 4}, {"global_left", 2}, {"global_right", 7}}),
                forward(inputs, "standard-mha")));
    const ForwardResult none = forward(make_inputs(random, {1, 2, 2, 9, 0, 8, 8}), mechanism);
    for (const float x : values(none.output)) CHECK(x == 0.0f);
}
