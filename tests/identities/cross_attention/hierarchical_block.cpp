// SPDX-License-Identifier: Apache-2.0
// Identities of hierarchical-cross-attention with option block: the whole block on tokens and a document.
#include "identities/cross_attention/module.hpp"

namespace {

using namespace identities;
constexpr const char* hierarchical = "hierarchical-cross-attention";

// A block call: x [B,Nq,E], a document [B,Nk,E], segments of one list or of one for each item.
struct Block {
    std::int64_t batch, queries, keys, heads, width;
    ForwardInputs inputs;
    NamedValues options;
    std::vector<std::vector<std::int64_t>> cuts;
    std::vector<std::int64_t> query_lengths, key_lengths;
    std::function<bool(std::int64_t, std::int64_t, std::int64_t)> shown = [](auto, auto, auto) { return true; };

    explicit Block(Random& random, std::int64_t long_queries = 0, std::int64_t long_keys = 0) {
        batch = 1 + random.below(3), queries = 1 + random.below(90), keys = 1 + random.below(60);
        heads = 1 + random.below(4), width = heads * (2 + random.below(9));
        if (long_keys > 0) batch = 1, queries = long_queries, keys = long_keys, heads = 2, width = 6;
        inputs.query = normal(random, {batch, queries, width});
        inputs.key = normal(random, {batch, keys, width});
        Weights w;
        const float small = 1.0f / std::sqrt(static_cast<float>(width));
        for (const std::string level : {"word", "sent"}) {
            for (const char* name : {".wq", ".wk", ".wv", ".wo"}) w.random(random, level + name, {width, width}, small);
            for (const char* name : {".bq", ".bk", ".bv", ".bo"}) w.random(random, level + name, {width});
        }
        for (const char* name : {"norm_word_query", "norm_sent_query", "norm_segment", "ffn_norm", "norm_out"})
            w.norm(random, name, width);
        w.random(random, "w1", {4 * width, width}, small);
        w.random(random, "b1", {4 * width});
        w.random(random, "w2", {width, 4 * width}, small / 2);
        w.random(random, "b2", {width});
        w.random(random, "wg", {width, 2 * width}, small);
        w.random(random, "bg", {width});
        inputs.weights = w.list;
        const std::int64_t size = 1 + random.below(12);
        options = {{"block", true}, {"heads", heads}, {"segment_size", size}};
        for (std::int64_t b = 0; b < batch; ++b) {
            cuts.emplace_back();
            for (std::int64_t s = 0; s < (keys + size - 1) / size; ++s) cuts.back().push_back(s * size);
            cuts.back().push_back(keys);
        }
        query_lengths.assign(static_cast<std::size_t>(batch), queries);
        key_lengths.assign(static_cast<std::size_t>(batch), keys);
    }
    // Offsets with empty segments and tokens outside.
    void with_offsets(Random& random, bool each_item) {
        options.pop_back();
        std::vector<std::int64_t> all;
        for (std::size_t b = 0; b < cuts.size(); ++b) {
            if (b == 0 || each_item) {
                std::vector<std::int64_t> list;
                for (int n = 0; n < 6; ++n) list.push_back(random.below(keys + 1));
                list.push_back(list[2]);
                std::sort(list.begin(), list.end());
                all.insert(all.end(), list.begin(), list.end());
                cuts[b] = list;
            } else {
                cuts[b] = cuts[0];
            }
        }
        inputs.extra.emplace_back("segment_offsets", each_item ? ints({batch, 7}, all) : ints({7}, all));
    }
    void with_lengths(Random& random) {
        for (std::int64_t& n : query_lengths) n = random.below(queries + 1);
        for (std::int64_t& n : key_lengths) n = random.below(keys + 1);
        inputs.query_lengths = lengths(query_lengths);
        inputs.key_lengths = lengths(key_lengths);
    }
    // One in three pairs, and whole segments of some queries, are hidden.
    void with_mask(Random& random) {
        const Tensor mask = bools({batch, 1, queries, keys}, [&](const std::vector<std::int64_t>& index) {
            const auto& list = cuts[static_cast<std::size_t>(index[0])];
            const std::size_t which = static_cast<std::size_t>(index[2]) % (list.size() - 1);
            const bool gone = (index[3] >= list[which] && index[3] < list[which + 1]) || index[2] % 7 == 3;
            return !gone && random.below(3) > 0;
        });
        inputs.mask = mask;
        shown = [mask, this](std::int64_t b, std::int64_t i, std::int64_t j) {
            return mask.as<const std::uint8_t>()[(b * queries + i) * keys + j] != 0;
        };
    }
    void set(const char* name, Tensor tensor) {
        for (auto& [known, weight] : inputs.weights)
            if (known == name) weight = tensor;
    }
    Tensor output(int threads = 2) const { return run(service("auto", threads), inputs, hierarchical, options).output; }

    Matrix dense(const Matrix& from, const std::string& level, const std::string& letter) const {
        const Weights w{inputs.weights};
        return linear(from, matrix(*w.find(level + ".w" + letter)), w.vector(level + ".b" + letter));
    }
    Matrix norm(const Matrix& from, const std::string& name) const {
        const Weights w{inputs.weights};
        return layer_norm(from, w.vector(name + ".gamma"), w.vector(name + ".beta"));
    }
    // d: what was read, behind the feed-forward layer.
    Matrix read(std::int64_t b) const {
        const Weights w{inputs.weights};
        const auto item = static_cast<std::size_t>(b);
        const Matrix x = matrix(inputs.query, b), context = matrix(*inputs.key, b);
        const Matrix q = dense(norm(x, "norm_word_query"), "word", "q"), k = dense(context, "word", "k"),
                     v = dense(context, "word", "v");
        const std::size_t segments = cuts[item].size() - 1;
        std::vector<Matrix> sent_keys, sent_values;
        std::vector<std::vector<bool>> seen;
        for (std::size_t s = 0; s < segments; ++s) {
            const auto visible = [&](std::int64_t i, std::int64_t j) {
                return j >= cuts[item][s] && j < cuts[item][s + 1] && j < key_lengths[item] &&
                       i < query_lengths[item] && shown(b, i, j);
            };
            const Matrix summary = norm(dense(attention(q, k, v, heads, visible), "word", "o"), "norm_segment");
            sent_keys.push_back(dense(summary, "sent", "k"));
            sent_values.push_back(dense(summary, "sent", "v"));
            seen.emplace_back();
            for (std::int64_t i = 0; i < queries; ++i) {
                bool any = false;
                for (std::int64_t j = 0; j < keys; ++j) any = any || visible(i, j);
                seen.back().push_back(any);
            }
        }
        const Matrix sent_query = dense(norm(x, "norm_sent_query"), "sent", "q");
        Matrix joined(queries, width);
        for (std::int64_t i = 0; i < queries; ++i) {
            Matrix one(1, width), row_keys(static_cast<std::int64_t>(segments), width), row_values = row_keys;
            for (std::int64_t c = 0; c < width; ++c) {
                one(0, c) = sent_query(i, c);
                for (std::size_t s = 0; s < segments; ++s) {
                    row_keys(static_cast<std::int64_t>(s), c) = sent_keys[s](i, c);
                    row_values(static_cast<std::int64_t>(s), c) = sent_values[s](i, c);
                }
            }
            const Matrix got = attention(one, row_keys, row_values, heads, [&](std::int64_t, std::int64_t s) {
                return seen[static_cast<std::size_t>(s)][static_cast<std::size_t>(i)];
            });
            for (std::int64_t c = 0; c < width; ++c) joined(i, c) = got(0, c);
        }
        const Matrix m = dense(joined, "sent", "o");
        const Matrix middle = each(linear(norm(m, "ffn_norm"), matrix(*w.find("w1")), w.vector("b1")),
                                   [](double t) { return std::max(t, 0.0); });
        Matrix d = linear(middle, matrix(*w.find("w2")), w.vector("b2"));
        for (std::size_t n = 0; n < d.data.size(); ++n) d.data[n] += m.data[n];
        return d;
    }
    Matrix formula(std::int64_t b) const {
        const Weights w{inputs.weights};
        const Matrix x = matrix(inputs.query, b), d = read(b);
        Matrix both(queries, 2 * width);
        for (std::int64_t i = 0; i < queries; ++i)
            for (std::int64_t c = 0; c < width; ++c) both(i, c) = x(i, c), both(i, width + c) = d(i, c);
        Matrix y = linear(both, matrix(*w.find("wg")), w.vector("bg"));
        for (std::size_t n = 0; n < y.data.size(); ++n) {
            const double g = 1.0 / (1.0 + std::exp(-y.data[n]));
            y.data[n] = (1 - g) * x.data[n] + g * d.data[n];
        }
        return norm(y, "norm_out");
    }
};

void on_blocks(const std::function<void(Random&, Block&)>& body, std::uint64_t count = 6) {
    for (std::uint64_t round = 0; round < count; ++round) {
        Random random(round + 70);
        Block block(random);
        INFO("round " << round << ": " << block.batch << " items of " << block.queries << " and " << block.keys
                      << " tokens, width " << block.width << ", " << block.heads << " heads");
        body(random, block);
    }
}

}  // namespace

TEST_CASE("hierarchical-cross-attention: block formula") {
    for (const bool offsets : {false, true})
        for (const bool with_lengths : {false, true})
            for (const bool mask : {false, true})
                on_blocks([&](Random& random, Block& block) {
                    INFO("offsets " << offsets << ", lengths " << with_lengths << ", mask " << mask);
                    if (offsets) block.with_offsets(random, random.below(2) == 0);
                    if (with_lengths) block.with_lengths(random);
                    if (mask) block.with_mask(random);
                    const Tensor got = block.output();
                    for (std::int64_t b = 0; b < block.batch; ++b) CHECK(agree(got, b, block.formula(b)));
                });
}

// Documents and sequences are read in tiles and portions, which no result may tell.
TEST_CASE("hierarchical-cross-attention: block of a long document") {
    struct Case {
        std::int64_t queries, keys;
        std::vector<std::int64_t> cuts;
        bool mask;
    };
    const std::vector<Case> cases = {{5, 5000, {0, 5000}, false},
                                     {5, 5000, {3, 40, 40, 2200, 2210, 4900, 4900, 4999}, true},
                                     {530, 2500, {0, 100, 200, 2300, 2400, 2500}, true},
                                     {3, 4100, {0, 2048, 4096, 4100}, false}};
    for (const Case& one : cases) {
        Random random(static_cast<std::uint64_t>(one.keys + one.queries));
        Block block(random, one.queries, one.keys);
        block.options.pop_back();
        block.cuts[0] = one.cuts;
        block.inputs.extra.emplace_back("segment_offsets",
                                        ints({static_cast<std::int64_t>(one.cuts.size())}, one.cuts));
        if (one.mask) block.with_mask(random);
        CHECK(agree(block.output(), 0, block.formula(0)));
        CHECK(same_bits(block.output(1), block.output(2)));
    }
    Random random(9);
    Block many(random, 70, 4200);
    many.options.back() = {"segment_size", 2};
    many.cuts[0].clear();
    for (std::int64_t at = 0; at <= many.keys; at += 2) many.cuts[0].push_back(at);
    CHECK(agree(many.output(), 0, many.formula(0)));
}

TEST_CASE("hierarchical-cross-attention: block mask of every rank") {
    on_blocks([](Random& random, Block& block) {
        std::vector<bool> shown;
        for (std::int64_t n = 0; n < block.queries * block.keys; ++n) shown.push_back(random.below(3) > 0);
        const std::int64_t keys = block.keys;
        for (const bool rows : {false, true}) {
            const auto at_pair = [&](std::int64_t i, std::int64_t j) {
                return static_cast<bool>(shown[static_cast<std::size_t>((rows ? i * keys : 0) + j)]);
            };
            block.shown = [&](std::int64_t, std::int64_t i, std::int64_t j) { return at_pair(i, j); };
            if (rows)
                block.inputs.mask =
                    bools({block.queries, keys}, [&](const auto& index) { return at_pair(index[0], index[1]); });
            else
                block.inputs.mask = bools({keys}, [&](const auto& index) { return at_pair(0, index[0]); });
            const Tensor got = block.output();
            for (std::int64_t b = 0; b < block.batch; ++b) CHECK(agree(got, b, block.formula(b)));
        }
    });
}

TEST_CASE("hierarchical-cross-attention: gate of the block") {
    on_blocks([](Random&, Block& block) {
        block.set("bg", filled({block.width}, -40.0f));
        const Tensor closed = block.output();
        for (std::int64_t b = 0; b < block.batch; ++b)
            CHECK(agree(closed, b, block.norm(matrix(block.inputs.query, b), "norm_out")));
        block.set("bg", filled({block.width}, 40.0f));
        const Tensor open = block.output();
        for (std::int64_t b = 0; b < block.batch; ++b) CHECK(agree(open, b, block.norm(block.read(b), "norm_out")));
    });
}

TEST_CASE("hierarchical-cross-attention: nothing visible to the block") {
    on_blocks([](Random&, Block& block) {
        block.inputs.mask = bools({1, 1, 1, block.keys}, [](const auto&) { return false; });
        block.shown = [](auto, auto, auto) { return false; };
        const Tensor hidden = block.output();
        for (const float x : values(hidden)) CHECK(std::isfinite(x));
        for (std::int64_t b = 0; b < block.batch; ++b) CHECK(agree(hidden, b, block.formula(b)));
        // No document at all reads the same.
        Block none = block;
        none.inputs.mask.reset();
        none.inputs.key = filled({block.batch, 0, block.width}, 0.0f);
        CHECK(agree(none.output(), hidden));
    });
}

TEST_CASE("hierarchical-cross-attention: tokens outside the block") {
    on_blocks([](Random& random, Block& block) {
        block.with_offsets(random, true);
        block.with_lengths(random);
        const Tensor expected = block.output();
        for (std::int64_t b = 0; b < block.batch; ++b) {
            const auto item = static_cast<std::size_t>(b);
            for (std::int64_t j = 0; j < block.keys; ++j)
                if (j < block.cuts[item].front() || j >= std::min(block.cuts[item].back(), block.key_lengths[item]))
                    at(*block.inputs.key, b, j, 0) = std::numeric_limits<float>::quiet_NaN();
        }
        CHECK(same_bits(block.output(), expected));
    });
}

TEST_CASE("hierarchical-cross-attention: threads of the block") {
    on_blocks([](Random& random, Block& block) {
        block.with_lengths(random);
        block.with_mask(random);
        CHECK(same_bits(block.output(1), block.output(2)));
    });
}

TEST_CASE("hierarchical-cross-attention: weights of the block left out") {
    on_blocks(
        [](Random&, Block& block) {
            block.inputs.weights.clear();
            const Tensor first = block.output();
            CHECK(same_bits(block.output(), first));
            for (const float x : values(first)) CHECK(std::isfinite(x));
            block.options.emplace_back("weight_seed", 9);
            CHECK_FALSE(same_bits(block.output(), first));
        },
        3);
}

TEST_CASE("hierarchical-cross-attention: rejects in the block what belongs to heads") {
    Random random(6);
    const Block block(random);
    const auto with = [&](const char* name, attend::Json value) {
        NamedValues options = block.options;
        options.emplace_back(name, std::move(value));
        return options;
    };
    rejects(block.inputs, hierarchical, with("softcap", 2.5), {"softcap", "2.5", "block"});
    rejects(block.inputs, hierarchical, with("dropout", 0.25), {"dropout", "0.25", "block"});
    ForwardInputs inputs = block.inputs;
    inputs.bias = filled({block.queries, block.keys}, 0.0f);
    rejects(inputs, hierarchical, block.options, {"bias", "block"});
    inputs = block.inputs;
    inputs.mask = bools({1, 3, block.queries, block.keys}, [](const auto&) { return true; });
    rejects(inputs, hierarchical, block.options, {"mask", "3", "1"});
    inputs = block.inputs;
    inputs.value = inputs.key;
    rejects(inputs, hierarchical, block.options, {"value"});
}

TEST_CASE("hierarchical-cross-attention: rejects heads that do not divide the width") {
    Random random(7);
    Block block(random);
    NamedValues options = {{"block", true}, {"heads", block.width + 1}};
    block.inputs.weights.clear();
    rejects(block.inputs, hierarchical, options,
            {"heads", std::to_string(block.width).c_str(), std::to_string(block.width + 1).c_str()});
}
