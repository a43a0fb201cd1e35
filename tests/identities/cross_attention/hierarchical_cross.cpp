// SPDX-License-Identifier: Apache-2.0
// Identities of hierarchical-cross-attention on heads; those of the whole block are in hierarchical_block.cpp.
#include "identities/cross_attention/module.hpp"

namespace {

using namespace identities;
constexpr const char* hierarchical = "hierarchical-cross-attention";
constexpr const char* flat = "cross-attention";
constexpr const char* segment_scores[] = {"contextual", "mean-key", "lse", "uniform"};
constexpr double minus = -std::numeric_limits<double>::infinity();

using Cuts = std::vector<std::int64_t>;  // offsets of one list

const Limits shapes{2, 2, 3, 40, 16, false, false};

// Sorted numbers from first to last, equal neighbours among them.
Cuts random_cuts(Random& random, std::int64_t first, std::int64_t last, std::int64_t segments) {
    Cuts cuts{first, last};
    while (static_cast<std::int64_t>(cuts.size()) <= segments) cuts.push_back(first + random.below(last - first + 1));
    std::sort(cuts.begin(), cuts.end());
    return cuts;
}
Tensor list_of(const Cuts& cuts) { return ints({static_cast<std::int64_t>(cuts.size())}, cuts); }

// Heads with the weights of a contextual score, of the size of initialised ones.
ForwardInputs heads(Random& random, const Shape& shape, std::int64_t width = 0) {
    ForwardInputs inputs = make_inputs(random, shape);
    const std::int64_t ds = width > 0 ? width : shape.head_dim;
    Weights w;
    w.random(random, "seg_wq", {shape.heads, ds, shape.head_dim}, 0.4f);
    w.random(random, "seg_wk", {shape.heads, ds, shape.value_dim}, 0.4f);
    w.norm(random, "seg_norm", shape.value_dim);
    inputs.weights = w.list;
    return inputs;
}

void put(ForwardInputs& inputs, const char* name, Tensor tensor) {
    for (auto& [known, old] : inputs.extra)
        if (known == name) return void(old = std::move(tensor));
    inputs.extra.emplace_back(name, std::move(tensor));
}
void put_weight(ForwardInputs& inputs, const char* name, Tensor tensor) {
    for (auto& [known, old] : inputs.weights)
        if (known == name) old = tensor;
}

// A call with one kind of logit: weights that it does not read are left out.
ForwardResult call(ForwardInputs inputs, const std::string& score, NamedValues options = {}, bool scores = false,
                   int threads = 2) {
    if (score != "contextual") inputs.weights.clear();
    options.emplace_back("segment_score", score);
    return run(service("auto", threads), inputs, hierarchical, options, score == "lse", scores);
}
const Tensor& extra(const ForwardResult& result, const char* name) {
    for (const auto& [known, tensor] : result.extra)
        if (known == name) return tensor;
    FAIL("no output " << name);
    std::abort();
}

// The section's formula.
struct Formula {
    std::vector<double> output, lse, weights, logs;
};
struct Problem {
    std::string score;
    std::vector<Cuts> cuts;  // of each item
    double segment_scale{}, softcap{};
    bool norm{true};
    std::function<bool(std::int64_t, std::int64_t, std::int64_t, std::int64_t)> visible;  // item, head, query, key
};
Formula formula(const ForwardInputs& inputs, const Problem& problem) {
    const auto &qs = inputs.query.shape, &ks = inputs.key->shape, &vs = inputs.value->shape;
    const Weights w{inputs.weights};
    const Tensor* given = nullptr;
    for (const auto& [name, tensor] : inputs.extra)
        if (name == "segment_query") given = &tensor;
    const auto real = [](float x) { return static_cast<double>(x); };
    Formula out;
    for (std::int64_t b = 0; b < qs[0]; ++b)
        for (std::int64_t h = 0; h < qs[1]; ++h)
            for (std::int64_t i = 0; i < qs[2]; ++i) {
                const std::int64_t kv = h * ks[1] / qs[1];
                const Cuts& cuts = problem.cuts[static_cast<std::size_t>(b)];
                std::vector<std::vector<double>> summaries;
                std::vector<double> e;
                for (std::size_t s = 0; s + 1 < cuts.size(); ++s) {
                    std::vector<double> t, summary(static_cast<std::size_t>(vs[3]), 0.0);
                    std::vector<std::int64_t> seen;
                    double raw = 0, sum = 0;
                    for (std::int64_t j = cuts[s]; j < cuts[s + 1]; ++j) {
                        if (!problem.visible(b, h, i, j)) continue;
                        double dot = 0;
                        for (std::int64_t d = 0; d < qs[3]; ++d)
                            dot += real(at(inputs.query, b, h, i, d)) * real(at(*inputs.key, b, kv, j, d));
                        dot /= std::sqrt(static_cast<double>(qs[3]));
                        raw += dot;
                        seen.push_back(j);
                        t.push_back(problem.softcap > 0 ? problem.softcap * std::tanh(dot / problem.softcap) : dot);
                    }
                    const double most = t.empty() ? 0.0 : *std::max_element(t.begin(), t.end());
                    for (const double x : t) sum += std::exp(x - most);
                    for (std::size_t n = 0; n < t.size(); ++n)
                        for (std::int64_t d = 0; d < vs[3]; ++d)
                            summary[static_cast<std::size_t>(d)] +=
                                std::exp(t[n] - most) / sum * real(at(*inputs.value, b, kv, seen[n], d));
                    const double log = t.empty() ? minus : most + std::log(sum);
                    double logit = problem.score == "lse" ? log : 0.0;
                    if (problem.score == "mean-key") logit = raw / static_cast<double>(t.size());
                    if (problem.score == "contextual") {
                        const Tensor& wk = *w.find("seg_wk");
                        Matrix c(1, vs[3]);
                        c.data = summary;
                        if (problem.norm) c = layer_norm(c, w.vector("seg_norm.gamma"), w.vector("seg_norm.beta"));
                        for (std::int64_t a = 0; a < wk.shape[1]; ++a) {
                            double left = given != nullptr ? real(at(*given, b, h, i, a)) : 0.0, right = 0;
                            for (std::int64_t d = 0; given == nullptr && d < qs[3]; ++d)
                                left += real(at(*w.find("seg_wq"), h, a, d)) * real(at(inputs.query, b, h, i, d));
                            for (std::int64_t d = 0; d < vs[3]; ++d) right += real(at(wk, h, a, d)) * c(0, d);
                            logit += problem.segment_scale * left * right;
                        }
                    }
                    summaries.push_back(summary);
                    out.logs.push_back(log);
                    e.push_back(t.empty() ? minus : logit);
                }
                const double most = *std::max_element(e.begin(), e.end());
                double sum = 0;
                for (const double x : e) sum += x == minus ? 0.0 : std::exp(x - most);
                out.lse.push_back(most == minus ? minus : most + std::log(sum));
                std::vector<double> o(static_cast<std::size_t>(vs[3]), 0.0);
                for (std::size_t s = 0; s < e.size(); ++s) {
                    const double beta = e[s] == minus ? 0.0 : std::exp(e[s] - most) / sum;
                    out.weights.push_back(beta);
                    for (std::size_t d = 0; d < o.size(); ++d) o[d] += beta * summaries[s][d];
                }
                out.output.insert(out.output.end(), o.begin(), o.end());
            }
    return out;
}
bool agree(const Tensor& got, const std::vector<double>& expected) {
    return identities::agree(values(got), std::vector<float>(expected.begin(), expected.end()));
}

}  // namespace

TEST_CASE("hierarchical-cross-attention: formula") {
    on_random_shapes(
        shapes,
        [](Random& random, const Shape& shape) {
            for (const char* score : segment_scores)
                for (const int variant : {0, 1, 2, 3}) {
                    INFO(score << ", variant " << variant);
                    const std::int64_t ds = variant == 1 ? 3 : shape.head_dim;
                    ForwardInputs inputs = heads(random, shape, ds);
                    Problem problem{score, {}, 1 / std::sqrt(static_cast<double>(ds)), 0.0, true, {}};
                    NamedValues options;
                    const bool contextual = std::string(score) == "contextual";
                    const std::int64_t size = 1 + random.below(9), count = (shape.kv_len + size - 1) / size;
                    std::vector<std::int64_t> all, key_lengths, query_lengths;
                    for (std::int64_t b = 0; b < shape.batch; ++b) {
                        Cuts cuts;
                        for (std::int64_t s = 0; s <= count; ++s) cuts.push_back(std::min(s * size, shape.kv_len));
                        if (variant != 0) {  // a list for each item; empty segments, tokens before and behind
                            const std::int64_t first = random.below(3),
                                               last = first + random.below(shape.kv_len - first);
                            cuts = random_cuts(random, first, last, 5);
                        }
                        all.insert(all.end(), cuts.begin(), cuts.end());
                        problem.cuts.push_back(cuts);
                        key_lengths.push_back(variant < 2 ? shape.kv_len : random.below(shape.kv_len + 1));
                        query_lengths.push_back(variant < 2 ? shape.q_len : random.below(shape.q_len + 1));
                    }
                    const Tensor mask = bools({shape.batch, shape.heads, shape.q_len, shape.kv_len},
                                              [&](const auto&) { return variant < 3 || random.below(4) > 1; });
                    if (variant == 0)
                        options.emplace_back("segment_size", size);
                    else
                        put(inputs, "segment_offsets",
                            ints({shape.batch, static_cast<std::int64_t>(all.size()) / shape.batch}, all));
                    if (variant == 1 && contextual) {
                        problem.segment_scale = 0.7, problem.norm = false;
                        options.insert(options.end(),
                                       {{"segment_dim", ds}, {"segment_scale", 0.7}, {"segment_norm", false}});
                        std::erase_if(inputs.weights, [](const auto& x) { return x.first.starts_with("seg_norm"); });
                    }
                    if (variant == 2 && contextual) {
                        put(inputs, "segment_query", normal(random, {shape.batch, shape.heads, shape.q_len, ds}));
                        std::erase_if(inputs.weights, [](const auto& x) { return x.first == "seg_wq"; });
                    }
                    if (variant >= 2) {
                        inputs.key_lengths = lengths(key_lengths);
                        inputs.query_lengths = lengths(query_lengths);
                        options.emplace_back("softcap", problem.softcap = 1.5);
                    }
                    if (variant == 3) inputs.mask = mask;
                    problem.visible = [&](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
                        const auto item = static_cast<std::size_t>(b);
                        return i < query_lengths[item] && j < key_lengths[item] &&
                               mask.as<const std::uint8_t>()[((b * shape.heads + h) * shape.q_len + i) * shape.kv_len +
                                                             j];
                    };
                    const ForwardResult got = call(inputs, score, options);
                    const Formula expected = formula(inputs, problem);
                    CHECK(agree(got.output, expected.output));
                    CHECK(agree(extra(got, "segment_weights"), expected.weights));
                    CHECK(agree(extra(got, "segment_lse"), expected.logs));
                    if (got.lse) CHECK(agree(*got.lse, expected.lse));
                }
        },
        6);
}

TEST_CASE("hierarchical-cross-attention: lse is flat") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        if (random.below(2) == 0) inputs.bias = normal(random, {1, shape.heads, shape.q_len, shape.kv_len});
        const ForwardResult expected = forward(inputs, flat);
        for (const std::int64_t size : {std::int64_t{1}, std::int64_t{5}, shape.kv_len, std::int64_t{1000}})
            CHECK(identities::agree(call(inputs, "lse", {{"segment_size", size}}), expected));
        put(inputs, "segment_offsets", list_of(random_cuts(random, 0, shape.kv_len, 6)));
        CHECK(identities::agree(call(inputs, "lse"), expected));
    });
}

TEST_CASE("hierarchical-cross-attention: one segment") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = heads(random, shape);
        const std::int64_t first = random.below(shape.kv_len), last = first + 1 + random.below(shape.kv_len - first);
        put(inputs, "segment_offsets", list_of({first, last}));
        ForwardInputs part;
        part.query = inputs.query;
        part.key = take(*inputs.key, 2, range(first, last));
        part.value = take(*inputs.value, 2, range(first, last));
        const ForwardResult expected = forward(part, flat);
        for (const char* score : segment_scores) {
            const ForwardResult got = call(inputs, score);
            CHECK(identities::agree(got.output, expected.output));
            CHECK(identities::agree(values(extra(got, "segment_lse")), values(*expected.lse)));
        }
    });
}

TEST_CASE("hierarchical-cross-attention: segments of one token") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const Tensor got = call(inputs, "uniform", {{"segment_size", 1}}).output;
        std::vector<double> expected;
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t h = 0; h < shape.heads; ++h)
                for (std::int64_t i = 0; i < shape.q_len; ++i)
                    for (std::int64_t d = 0; d < shape.value_dim; ++d) {
                        double sum = 0;
                        for (std::int64_t j = 0; j < shape.kv_len; ++j)
                            sum += static_cast<double>(at(*inputs.value, b, h * shape.kv_heads / shape.heads, j, d));
                        expected.push_back(sum / static_cast<double>(shape.kv_len));
                    }
        CHECK(agree(got, expected));
    });
}

TEST_CASE("hierarchical-cross-attention: equal tokens") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t size = 1 + random.below(6);
        std::vector<std::int64_t> tokens;
        for (std::int64_t j = 0; j < shape.kv_len; ++j) tokens.insert(tokens.end(), static_cast<std::size_t>(size), j);
        inputs.key = take(*inputs.key, 2, tokens);
        inputs.value = take(*inputs.value, 2, tokens);
        CHECK(
            identities::agree(call(inputs, "mean-key", {{"segment_size", size}}).output, forward(inputs, flat).output));
    });
}

TEST_CASE("hierarchical-cross-attention: order of tokens and segments") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = heads(random, shape);
        const Cuts cuts = random_cuts(random, 0, shape.kv_len, 5);
        const std::vector<std::int64_t> order = shuffled(random, 5);
        std::vector<std::int64_t> tokens;
        Cuts moved_cuts{0};
        for (const std::int64_t s : order) {
            const auto from = static_cast<std::size_t>(s);
            for (const std::int64_t j : shuffled(random, cuts[from + 1] - cuts[from])) tokens.push_back(cuts[from] + j);
            moved_cuts.push_back(static_cast<std::int64_t>(tokens.size()));
        }
        ForwardInputs before = inputs, after = inputs;
        put(before, "segment_offsets", list_of(cuts));
        put(after, "segment_offsets", list_of(moved_cuts));
        after.key = take(*inputs.key, 2, tokens);
        after.value = take(*inputs.value, 2, tokens);
        for (const char* score : segment_scores) {
            INFO(score);
            const ForwardResult a = call(before, score), b = call(after, score);
            CHECK(identities::agree(b.output, a.output));
            for (const char* name : {"segment_weights", "segment_lse"})
                CHECK(identities::agree(extra(b, name), take(extra(a, name), 3, order)));
        }
    });
}

TEST_CASE("hierarchical-cross-attention: empty segments") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = heads(random, shape);
        const std::int64_t cut = random.below(shape.kv_len + 1), end = shape.kv_len;
        for (const char* score : segment_scores) {
            INFO(score);
            put(inputs, "segment_offsets", list_of({0, cut, end}));
            const ForwardResult plain = call(inputs, score);
            put(inputs, "segment_offsets", list_of({0, 0, cut, cut, cut, end, end}));
            const ForwardResult more = call(inputs, score);
            CHECK(same_bits(plain.output, more.output));
            CHECK(same_bits(extra(plain, "segment_weights"), take(extra(more, "segment_weights"), 3, {1, 4})));
            for (const std::int64_t s : {0, 2, 3, 5}) {
                for (const float x : values(take(extra(more, "segment_weights"), 3, {s}))) CHECK(x == 0.0f);
                for (const float x : values(take(extra(more, "segment_lse"), 3, {s})))
                    CHECK(x == -std::numeric_limits<float>::infinity());
            }
            // Keys that nobody sees are as good as none, whatever they hold; with no token at all the output is 0.
            ForwardInputs hidden = inputs;
            hidden.mask = bools({shape.kv_len}, [&](const auto& index) { return index[0] >= cut; });
            put(hidden, "segment_offsets", list_of({0, cut, end}));
            hidden.key = take(*inputs.key, 2, range(0, end));
            hidden.value = take(*inputs.value, 2, range(0, end));
            for (std::int64_t j = 0; j < cut; ++j)
                at(*hidden.key, 0, 0, j, 0) = at(*hidden.value, 0, 0, j, 0) = std::numeric_limits<float>::quiet_NaN();
            ForwardInputs rest = inputs;
            put(rest, "segment_offsets", list_of({cut, end}));
            CHECK(identities::agree(call(hidden, score).output, call(rest, score).output));
            put(rest, "segment_offsets", list_of({cut, cut}));
            for (const float x : values(call(rest, score).output)) CHECK(x == 0.0f);
        }
    });
}

TEST_CASE("hierarchical-cross-attention: tokens outside") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        const std::int64_t first = random.below(shape.kv_len), last = first + random.below(shape.kv_len - first);
        ForwardInputs inputs = heads(random, shape);
        put(inputs, "segment_offsets", list_of({first, (first + last) / 2, last}));
        for (const char* score : segment_scores) {
            const Tensor expected = call(inputs, score).output;
            ForwardInputs other = inputs;
            other.key = take(*inputs.key, 2, range(0, shape.kv_len));
            other.value = take(*inputs.value, 2, range(0, shape.kv_len));
            for (std::int64_t j = 0; j < shape.kv_len; ++j)
                if (j < first || j >= last)
                    at(*other.key, 0, 0, j, 0) = at(*other.value, 0, 0, j, 1) = std::numeric_limits<float>::quiet_NaN();
            CHECK(same_bits(call(other, score).output, expected));
        }
    });
}

TEST_CASE("hierarchical-cross-attention: uniform mean") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t size = 1 + random.below(shape.kv_len);
        std::vector<double> expected;
        double count = 0;
        for (std::int64_t first = 0; first < shape.kv_len; first += size, ++count) {
            ForwardInputs part = inputs;
            const std::vector<std::int64_t> tokens = range(first, std::min(first + size, shape.kv_len));
            part.key = take(*inputs.key, 2, tokens);
            part.value = take(*inputs.value, 2, tokens);
            const std::vector<float> now = values(forward(part, flat).output);
            expected.resize(now.size());
            for (std::size_t n = 0; n < now.size(); ++n) expected[n] += static_cast<double>(now[n]);
        }
        for (double& x : expected) x /= count;
        CHECK(agree(call(inputs, "uniform", {{"segment_size", size}}).output, expected));
    });
}

TEST_CASE("hierarchical-cross-attention: repeated tokens") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = heads(random, shape), twice = inputs;
        const std::int64_t cut = 1 + random.below(shape.kv_len - 1), end = shape.kv_len;
        std::vector<std::int64_t> tokens = range(0, cut);
        for (std::int64_t j = cut; j < end; ++j) tokens.insert(tokens.end(), 2, j);
        twice.key = take(*inputs.key, 2, tokens);
        twice.value = take(*inputs.value, 2, tokens);
        put(inputs, "segment_offsets", list_of({0, cut, end}));
        put(twice, "segment_offsets", list_of({0, cut, cut + 2 * (end - cut)}));
        for (const char* score : segment_scores) {
            INFO(score);
            const ForwardResult once = call(inputs, score), more = call(twice, score);
            CHECK(identities::agree(more.output, once.output) == (std::string(score) != "lse"));
            const Tensor second = take(extra(once, "segment_lse"), 3, {1});
            CHECK(identities::agree(take(extra(more, "segment_lse"), 3, {1}),
                                    mapped(second, [](float x) { return x + std::log(2.0f); })));
        }
    });
}

TEST_CASE("hierarchical-cross-attention: token weights") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = heads(random, shape);
        const Cuts cuts = random_cuts(random, 0, shape.kv_len, 5);
        put(inputs, "segment_offsets", list_of(cuts));
        for (const char* score : segment_scores) {
            INFO(score);
            const ForwardResult got = call(inputs, score, {}, true);
            const std::vector<float> tokens = values(*got.scores), segments = values(extra(got, "segment_weights"));
            std::vector<float> sums;
            const auto keys = static_cast<std::size_t>(shape.kv_len);
            for (std::size_t row = 0; row < tokens.size() / keys; ++row) {
                double all = 0;
                for (std::size_t s = 0; s + 1 < cuts.size(); ++s) {
                    double sum = 0;
                    for (auto j = static_cast<std::size_t>(cuts[s]); j < static_cast<std::size_t>(cuts[s + 1]); ++j)
                        sum += static_cast<double>(tokens[row * keys + j]);
                    sums.push_back(static_cast<float>(sum));
                    all += sum;
                }
                CHECK(std::abs(all - 1) < 1e-5);
            }
            CHECK(identities::agree(sums, segments));
        }
    });
}

TEST_CASE("hierarchical-cross-attention: constant values") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = heads(random, shape);
        const Cuts cuts = random_cuts(random, 0, shape.kv_len, 4);
        std::vector<std::int64_t> owner;
        for (std::int64_t s = 0; s < 4; ++s)
            for (std::int64_t j = cuts[static_cast<std::size_t>(s)]; j < cuts[static_cast<std::size_t>(s) + 1]; ++j)
                owner.push_back(s);
        const Tensor words = normal(random, {shape.batch, shape.kv_heads, 4, shape.value_dim});
        inputs.value = take(words, 2, owner);
        put(inputs, "segment_offsets", list_of(cuts));
        for (const char* score : segment_scores) {
            INFO(score);
            const ForwardResult got = call(inputs, score);
            const Tensor& beta = extra(got, "segment_weights");
            std::vector<double> expected;
            for (std::int64_t b = 0; b < shape.batch; ++b)
                for (std::int64_t h = 0; h < shape.heads; ++h)
                    for (std::int64_t i = 0; i < shape.q_len; ++i)
                        for (std::int64_t d = 0; d < shape.value_dim; ++d) {
                            double sum = 0;
                            for (std::int64_t s = 0; s < 4; ++s)
                                sum += static_cast<double>(at(beta, b, h, i, s)) *
                                       static_cast<double>(at(words, b, h * shape.kv_heads / shape.heads, s, d));
                            expected.push_back(sum);
                        }
            CHECK(agree(got.output, expected));
        }
    });
}

TEST_CASE("hierarchical-cross-attention: zero weights") {
    on_random_shapes(
        shapes,
        [](Random& random, const Shape& shape) {
            ForwardInputs inputs = heads(random, shape);
            inputs.bias = normal(random, {1, shape.heads, shape.q_len, shape.kv_len});
            inputs.mask = bools({shape.batch, shape.heads, shape.q_len, shape.kv_len},
                                [&](const auto&) { return random.below(5) > 0; });
            inputs.key_lengths =
                lengths(std::vector<std::int64_t>(static_cast<std::size_t>(shape.batch), shape.kv_len - 1));
            inputs.query_lengths =
                lengths(std::vector<std::int64_t>(static_cast<std::size_t>(shape.batch), shape.q_len - 1));
            put_weight(inputs, "seg_wq", filled({shape.heads, shape.head_dim, shape.head_dim}, 0.0f));
            for (const double dropout : {0.0, 0.3}) {
                const NamedValues options{{"segment_size", 6}, {"dropout", dropout}, {"seed", 4}, {"rng_offset", 2}};
                const ForwardResult a = call(inputs, "contextual", options, true),
                                    b = call(inputs, "uniform", options, true);
                CHECK(identities::agree(a.output, b.output));
                CHECK(identities::agree(*a.scores, *b.scores));
                CHECK(identities::agree(extra(a, "segment_weights"), extra(b, "segment_weights")));
            }
        },
        8);
}

TEST_CASE("hierarchical-cross-attention: dropout") {
    Random random(5);
    ForwardInputs inputs = heads(random, {1, 2, 1, 9, 40, 8, 6});
    // The weights of segments follow from summaries before dropout in every mode but contextual, and nothing else moves.
    for (const char* score : {"mean-key", "uniform"}) {
        const ForwardResult plain = call(inputs, score, {{"segment_size", 7}}, true),
                            dropped = call(inputs, score, {{"segment_size", 7}, {"dropout", 0.4}, {"seed", 3}}, true);
        CHECK_FALSE(identities::agree(dropped.output, plain.output));
        CHECK(same_bits(*dropped.scores, *plain.scores));
        for (const char* name : {"segment_weights", "segment_lse"})
            CHECK(same_bits(extra(dropped, name), extra(plain, name)));
    }
}

TEST_CASE("hierarchical-cross-attention: threads") {
    on_random_shapes({2, 3, 2, 200, 30, false, false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = heads(random, shape);
        for (const char* score : segment_scores) {
            const ForwardResult one = call(inputs, score, {{"segment_size", 9}}, true, 1),
                                two = call(inputs, score, {{"segment_size", 9}}, true, 2);
            CHECK(same_bits(one.output, two.output));
            CHECK(same_bits(*one.scores, *two.scores));
            for (const char* name : {"segment_weights", "segment_lse"})
                CHECK(same_bits(extra(one, name), extra(two, name)));
        }
    });
}

TEST_CASE("hierarchical-cross-attention: weights left out") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        const auto output = [&](const ForwardInputs& given, std::int64_t seed) {
            return call(given, "contextual", {{"segment_size", 1}, {"weight_seed", seed}}).output;
        };
        // Identity wherever Ds equals the width it meets.
        const bool square = shape.head_dim == shape.value_dim;
        ForwardInputs given = inputs;
        const auto identity = [&](const std::vector<std::int64_t>& size) {
            Tensor tensor = filled(size, 0.0f);
            for (std::int64_t h = 0; h < size[0]; ++h)
                for (std::int64_t d = 0; d < std::min(size[1], size[2]); ++d) at(tensor, h, d, d) = 1.0f;
            return tensor;
        };
        given.weights = {{"seg_wq", identity({shape.heads, shape.head_dim, shape.head_dim})},
                         {"seg_norm.gamma", filled({shape.value_dim}, 1.0f)},
                         {"seg_norm.beta", filled({shape.value_dim}, 0.0f)}};
        CHECK(same_bits(output(inputs, 1), output(given, 1)));
        CHECK(same_bits(output(inputs, 1), output(inputs, 2)) == square);
        if (square) given.weights.emplace_back("seg_wk", identity({shape.heads, shape.head_dim, shape.head_dim}));
        CHECK(same_bits(output(inputs, 2), output(given, 2)));
    });
}

TEST_CASE("hierarchical-cross-attention: no tokens") {
    Random random(8);
    for (const char* score : segment_scores) {
        const ForwardResult none = call(heads(random, {2, 2, 1, 3, 0, 4, 5}), score);
        for (const float x : values(none.output)) CHECK(x == 0.0f);
        CHECK(extra(none, "segment_weights").shape == std::vector<std::int64_t>{2, 2, 3, 0});
        CHECK(call(heads(random, {2, 2, 1, 0, 3, 4, 5}), score).output.size() == 0);
    }
}

TEST_CASE("hierarchical-cross-attention: rejects offsets out of order or out of reach") {
    Random random(1);
    ForwardInputs inputs = make_inputs(random, {2, 2, 2, 4, 12, 6, 6});
    const auto refused = [&](Tensor offsets, std::initializer_list<const char*> texts) {
        put(inputs, "segment_offsets", std::move(offsets));
        rejects(inputs, hierarchical, {}, texts);
        rejects(inputs, hierarchical, {{"segment_score", "uniform"}}, texts);
    };
    refused(list_of({0, 7, 5, 12}), {"segment_offsets", "5 after 7", "12"});
    refused(list_of({-1, 7, 12}), {"segment_offsets", "-1", "0 to 12"});
    refused(list_of({0, 7, 13}), {"segment_offsets", "13", "0 to 12"});
    refused(ints({2, 3}, {0, 3, 12, 4, 3, 12}), {"segment_offsets", "3 after 4"});
    refused(ints({3, 2}, {0, 3, 0, 3, 0, 3}), {"segment_offsets", "3", "2"});
}

TEST_CASE("hierarchical-cross-attention: rejects a document without segments") {
    Random random(2);
    ForwardInputs inputs = make_inputs(random, {1, 2, 2, 4, 12, 6, 6});
    put(inputs, "segment_offsets", list_of({0}));
    rejects(inputs, hierarchical, {}, {"segment_offsets", "1", "at least 2"});
    rejects(make_inputs(random, {1, 2, 2, 4, 12, 6, 6}), hierarchical, {{"segment_size", 0}}, {"segment_size", "0"});
}

TEST_CASE("hierarchical-cross-attention: rejects weights of another shape") {
    Random random(3);
    const Shape shape{1, 4, 2, 4, 12, 6, 5};
    ForwardInputs inputs = heads(random, shape);
    put_weight(inputs, "seg_wq", normal(random, {4, 6, 5}));
    rejects(inputs, hierarchical, {}, {"seg_wq", "5", "6"});
    inputs = heads(random, shape);
    put_weight(inputs, "seg_wk", normal(random, {2, 6, 5}));
    rejects(inputs, hierarchical, {}, {"seg_wk", "2", "4"});
    inputs = heads(random, shape);
    rejects(inputs, hierarchical, {{"segment_dim", 3}}, {"seg_w", "6", "3"});
    put(inputs, "segment_query", normal(random, {1, 4, 4, 6}));
    rejects(inputs, hierarchical, {}, {"seg_wq"});
    inputs = heads(random, shape);
    rejects(inputs, hierarchical, {{"segment_score", "uniform"}}, {"seg_w"});
    inputs.weights.clear();
    put(inputs, "segment_query", normal(random, {1, 4, 4, 7}));
    rejects(inputs, hierarchical, {}, {"segment_query", "7", "6"});
}

TEST_CASE("hierarchical-cross-attention: rejects lse with dropout") {
    Random random(4);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 4, 12, 6, 6});
    rejects(inputs, hierarchical, {{"segment_score", "lse"}, {"dropout", 0.25}},
            {"segment_score", "lse", "dropout 0.25"});
}

TEST_CASE("hierarchical-cross-attention: rejects causal and windows") {
    Random random(5);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 6, 8, 4, 4});
    rejects(inputs, hierarchical, {{"causal", true}}, {"causal"});
    rejects(inputs, hierarchical, {{"window_size", 3}}, {"window_size"});
    rejects(inputs, hierarchical, {{"window_left", 3}}, {"window_left"});
}
