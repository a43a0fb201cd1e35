// SPDX-License-Identifier: Apache-2.0
// What the page of graph-attention promises.
#include "specs/extra/graph.hpp"
#include "identities/identities.hpp"

namespace {

using namespace identities;
using specs::graph::Edge;
using specs::graph::edge_list;

const char* const graph = "graph-attention";

std::vector<Edge> numbered(std::vector<Edge> edges) {
    for (std::size_t n = 0; n < edges.size(); ++n) edges[n].id = static_cast<std::int64_t>(n);
    return edges;
}
std::vector<Edge> complete(std::int64_t targets, std::int64_t sources) {
    std::vector<Edge> edges;
    for (std::int64_t i = 0; i < targets; ++i)
        for (std::int64_t j = 0; j < sources; ++j) edges.push_back({j, i, 0, 0});
    return numbered(std::move(edges));
}
// Each pair with probability 1/4, in random order.
std::vector<Edge> some(Random& random, std::int64_t targets, std::int64_t sources, std::int64_t item = 0) {
    std::vector<Edge> edges;
    for (std::int64_t i = 0; i < targets; ++i)
        for (std::int64_t j = 0; j < sources; ++j)
            if (random.below(4) == 0) edges.push_back({j, i, item, 0});
    std::shuffle(edges.begin(), edges.end(), random.engine);
    return numbered(std::move(edges));
}
ForwardInputs with_graph(ForwardInputs inputs, const std::vector<Edge>& edges, bool items = false) {
    std::erase_if(inputs.extra, [](const auto& extra) { return extra.first == "edges"; });
    inputs.extra.emplace_back("edges", edge_list(edges, items));
    return inputs;
}
NamedValues plain(const char* version) { return {{"version", version}, {"add_self_loops", false}}; }
NamedValues with(NamedValues options, const NamedValues& more) {
    options.insert(options.end(), more.begin(), more.end());
    return options;
}
const Tensor& extra(const ForwardResult& result, const std::string& name) {
    for (const auto& [given, tensor] : result.extra)
        if (given == name) return tensor;
    FAIL("no output " << name);
    std::abort();
}
Tensor weights_zero(std::int64_t heads, std::int64_t width) { return filled({heads, width}, 0.0f); }
ForwardInputs with_vectors(ForwardInputs inputs, const char* version, const std::function<Tensor()>& vector) {
    inputs.weights.clear();
    if (std::string(version) == "gatv2") inputs.weights.emplace_back("att", vector());
    if (std::string(version) == "gat") {
        inputs.weights.emplace_back("att_dst", vector());
        inputs.weights.emplace_back("att_src", vector());
    }
    return inputs;
}
constexpr Limits shapes{.group = 2, .same_width = false};
constexpr Limits cross_shapes{.group = 2, .square = false, .same_width = false};

}  // namespace

TEST_CASE("graph-attention: complete graph") {
    on_random_shapes(cross_shapes, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const auto got = forward(with_graph(inputs, complete(shape.q_len, shape.kv_len)), graph, plain("dot"));
        CHECK(agree(got, forward(inputs, "flash-attention-v2")));
    });
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        std::vector<Edge> past = complete(shape.q_len, shape.kv_len);
        std::erase_if(past, [](const Edge& e) { return e.source > e.target; });
        const auto expected = forward(inputs, "flash-attention-v2", {{"causal", true}});
        CHECK(agree(forward(with_graph(inputs, past), graph, plain("dot")), expected));
        const auto hidden = with_graph(inputs, complete(shape.q_len, shape.kv_len));
        CHECK(agree(forward(hidden, graph, with(plain("dot"), {{"causal", true}})), expected));
    });
}

TEST_CASE("graph-attention: slope one") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        for (const char* version : {"gat", "gatv2"}) {
            const Tensor att = normal(random, {shape.heads, shape.head_dim});
            const ForwardInputs inputs =
                with_vectors(with_graph(make_inputs(random, shape), some(random, shape.q_len, shape.kv_len)), version,
                             [&] { return att; });
            const NamedValues options = with(plain(version), {{"negative_slope", 1.0}, {"return_edge_weights", true}});
            const auto got = forward(inputs, graph, options);
            ForwardInputs other = inputs;
            other.query = normal(random, inputs.query.shape);
            const Tensor alpha = extra(got, "edge_weights");
            CHECK(agree(extra(forward(other, graph, options), "edge_weights"), alpha));
            // alpha = softmax of att . k_j over each row.
            const Tensor &starts = extra(got, "row_ptr"), &sources = extra(got, "col_idx");
            for (std::int64_t b = 0; b < shape.batch; ++b)
                for (std::int64_t h = 0; h < shape.heads; ++h)
                    for (std::int64_t i = 0; i < shape.q_len; ++i) {
                        std::vector<double> p;
                        double sum = 0;
                        const std::int64_t first = starts.as<const std::int64_t>()[i],
                                           last = starts.as<const std::int64_t>()[i + 1];
                        for (std::int64_t e = first; e < last; ++e) {
                            double s = 0;
                            for (std::int64_t d = 0; d < shape.head_dim; ++d)
                                s += static_cast<double>(att.as<const float>()[h * shape.head_dim + d]) *
                                     static_cast<double>(at(*inputs.key, b, h * shape.kv_heads / shape.heads,
                                                            sources.as<const std::int32_t>()[e], d));
                            p.push_back(std::exp(s));
                            sum += p.back();
                        }
                        for (std::int64_t e = first; e < last; ++e)
                            CHECK(std::abs(static_cast<double>(at(alpha, b, h, e)) -
                                           p[static_cast<std::size_t>(e - first)] / sum) <= 1e-5);
                    }
        }
    });
}

TEST_CASE("graph-attention: static and dynamic") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        // gat: the same neighbours come first for all nodes.
        const auto got = forward(with_graph(make_inputs(random, shape), complete(shape.q_len, shape.kv_len)), graph,
                                 with(plain("gat"), {{"return_edge_weights", true}}));
        const Tensor& alpha = extra(got, "edge_weights");
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t h = 0; h < shape.heads; ++h)
                for (std::int64_t i = 1; i < shape.q_len; ++i)
                    for (std::int64_t j = 1; j < shape.kv_len; ++j) {
                        const auto rise = [&](std::int64_t row) {
                            return at(alpha, b, h, row * shape.kv_len + j) -
                                   at(alpha, b, h, row * shape.kv_len + j - 1);
                        };
                        if (std::abs(rise(0)) > 1e-6f && std::abs(rise(i)) > 1e-6f)
                            CHECK((rise(0) > 0.0f) == (rise(i) > 0.0f));
                    }
        // gatv2: att = -1, q_i = -M e_i, k_j = M e_j: each node comes first for itself.
        const std::int64_t n = 2 + random.below(15);
        ForwardInputs inputs;
        inputs.query = filled({1, 1, n, n}, 0.0f);
        inputs.key = filled({1, 1, n, n}, 0.0f);
        inputs.value = filled({1, 1, n, n}, 0.0f);
        for (std::int64_t i = 0; i < n; ++i) {
            at(inputs.query, 0, 0, i, i) = -3.0f;
            at(*inputs.key, 0, 0, i, i) = 3.0f;
            at(*inputs.value, 0, 0, i, i) = 1.0f;
        }
        inputs.weights = {{"att", filled({1, n}, -1.0f)}};
        const Tensor o = forward(with_graph(inputs, complete(n, n)), graph, plain("gatv2")).output;
        for (std::int64_t i = 0; i < n; ++i)
            for (std::int64_t j = 0; j < n; ++j)
                if (i != j) CHECK(at(o, 0, 0, i, i) > at(o, 0, 0, i, j));
        const double other = std::exp(-3.0 * 0.8);
        CHECK(std::abs(static_cast<double>(at(o, 0, 0, 0, 0)) - 1 / (1 + static_cast<double>(n - 1) * other)) <= 1e-5);
    });
}

TEST_CASE("graph-attention: zero vectors") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        for (const char* version : {"gat", "gatv2"}) {
            const std::vector<Edge> edges = some(random, shape.q_len, shape.kv_len);
            const ForwardInputs inputs = with_vectors(with_graph(make_inputs(random, shape), edges), version,
                                                      [&] { return weights_zero(shape.heads, shape.head_dim); });
            const Tensor o = forward(inputs, graph, plain(version)).output;
            for (std::int64_t i = 0; i < shape.q_len; ++i)
                for (std::int64_t d = 0; d < shape.value_dim; ++d) {
                    double sum = 0, count = 0;
                    for (const Edge& e : edges)
                        if (e.target == i) sum += static_cast<double>(at(*inputs.value, 0, 0, e.source, d)), count += 1;
                    CHECK(std::abs(static_cast<double>(at(o, 0, 0, i, d)) - (count > 0 ? sum / count : 0)) <= 1e-5);
                }
        }
    });
}

TEST_CASE("graph-attention: relabelling") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        for (const char* version : {"gatv2", "gat", "dot"}) {
            const NamedValues options{{"version", version}};
            const std::int64_t n = shape.q_len;
            const ForwardInputs inputs = make_inputs(random, shape);
            std::vector<Edge> edges = some(random, n, n);
            const ForwardResult before = forward(with_graph(inputs, edges), graph, options);
            // Row r of the new tensors is node order[r] of the old ones.
            const std::vector<std::int64_t> order = shuffled(random, n);
            std::vector<std::int64_t> place(order.size());
            for (std::size_t r = 0; r < order.size(); ++r)
                place[static_cast<std::size_t>(order[r])] = static_cast<std::int64_t>(r);
            ForwardInputs moved = inputs;
            moved.query = take(inputs.query, 2, order);
            moved.key = take(*inputs.key, 2, order);
            moved.value = take(*inputs.value, 2, order);
            std::vector<Edge> renamed = edges;
            for (Edge& e : renamed) {
                e.source = place[static_cast<std::size_t>(e.source)];
                e.target = place[static_cast<std::size_t>(e.target)];
            }
            CHECK(agree(forward(with_graph(moved, renamed), graph, options).output, take(before.output, 2, order)));
            std::shuffle(edges.begin(), edges.end(), random.engine);
            CHECK(same_bits(forward(with_graph(inputs, edges), graph, options).output, before.output));
            // A second graph beside the first, on nodes of its own.
            const ForwardInputs second = make_inputs(random, shape);
            ForwardInputs both = inputs;
            both.query = joined(inputs.query, second.query, 2);
            both.key = joined(*inputs.key, *second.key, 2);
            both.value = joined(*inputs.value, *second.value, 2);
            std::vector<Edge> together = edges;
            for (Edge e : some(random, n, n)) {
                e.source += n, e.target += n;
                together.push_back(e);
            }
            CHECK(
                agree(take(forward(with_graph(both, together), graph, options).output, 2, range(0, n)), before.output));
        }
    });
}

TEST_CASE("graph-attention: one edge") {
    on_random_shapes(cross_shapes, [](Random& random, const Shape& shape) {
        for (const char* version : {"gatv2", "gat", "dot"}) {
            ForwardInputs inputs = make_inputs(random, shape);
            std::vector<Edge> edges;
            for (std::int64_t i = 0; i < shape.q_len; ++i) edges.push_back({random.below(shape.kv_len), i, 0, i});
            const Tensor o = forward(with_graph(inputs, edges), graph, plain(version)).output;
            for (const Edge& e : edges)
                for (std::int64_t h = 0; h < shape.heads; ++h)
                    for (std::int64_t d = 0; d < shape.value_dim; ++d)
                        CHECK(std::abs(at(o, 0, h, e.target, d) -
                                       at(*inputs.value, 0, h * shape.kv_heads / shape.heads, e.source, d)) <= 1e-5f);
            inputs.value = filled(inputs.value->shape, 2.5f);
            const std::vector<Edge> random_edges = some(random, shape.q_len, shape.kv_len);
            const Tensor constant = forward(with_graph(inputs, random_edges), graph, plain(version)).output;
            for (std::int64_t i = 0; i < shape.q_len; ++i) {
                const bool sees =
                    std::any_of(random_edges.begin(), random_edges.end(), [&](const Edge& e) { return e.target == i; });
                CHECK(std::abs(at(constant, 0, 0, i, 0) - (sees ? 2.5f : 0.0f)) <= 1e-5f);
            }
        }
    });
}

TEST_CASE("graph-attention: merge") {
    on_random_shapes(cross_shapes, [](Random& random, const Shape& shape) {
        for (const char* version : {"gatv2", "gat", "dot"}) {
            const ForwardInputs inputs = make_inputs(random, shape);
            const std::vector<Edge> edges = some(random, shape.q_len, shape.kv_len);
            std::vector<Edge> first, second;
            for (const Edge& e : edges) (random.below(2) == 0 ? first : second).push_back(e);
            const ForwardResult whole = forward(with_graph(inputs, edges), graph, plain(version)),
                                a = forward(with_graph(inputs, first), graph, plain(version)),
                                b = forward(with_graph(inputs, second), graph, plain(version));
            const Partial sum = merged(a, b);
            CHECK(agree(values(whole.output), sum.output));
            CHECK(agree(values(*whole.lse), sum.lse));
        }
    });
}

TEST_CASE("graph-attention: homogeneity") {
    on_random_shapes(cross_shapes, [](Random& random, const Shape& shape) {
        for (const char* version : {"gatv2", "gat"}) {
            // Rows of one edge: their log-sum-exp is the score.
            const ForwardInputs inputs = make_inputs(random, shape);
            std::vector<Edge> edges;
            for (std::int64_t i = 0; i < shape.q_len; ++i) edges.push_back({random.below(shape.kv_len), i, 0, i});
            const float a = 0.25f + 0.5f * static_cast<float>(random.below(6));
            const auto scaled = [&](const Tensor& x) { return mapped(x, [a](float v) { return a * v; }); };
            ForwardInputs larger = inputs;
            larger.query = scaled(inputs.query);
            larger.key = scaled(*inputs.key);
            const ForwardResult before = forward(with_graph(inputs, edges), graph, plain(version)),
                                after = forward(with_graph(larger, edges), graph, plain(version));
            CHECK(agree(*after.lse, scaled(*before.lse)));
        }
    });
}

TEST_CASE("graph-attention: loops twice") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult once = forward(with_graph(inputs, some(random, shape.q_len, shape.kv_len)), graph,
                                           {{"return_edge_weights", true}});
        ForwardInputs again = inputs;
        again.extra = {{"row_ptr", extra(once, "row_ptr")}, {"col_idx", extra(once, "col_idx")}};
        for (const bool loops : {true, false}) {
            const ForwardResult twice =
                forward(again, graph, {{"add_self_loops", loops}, {"return_edge_weights", true}});
            CHECK(same_bits(twice.output, once.output));
            CHECK(same_bits(extra(twice, "edge_weights"), extra(once, "edge_weights")));
            CHECK(extra(twice, "col_idx").shape == extra(once, "col_idx").shape);
        }
    });
}

TEST_CASE("graph-attention: weights of edges") {
    on_random_shapes(cross_shapes, [](Random& random, const Shape& shape) {
        for (const bool several : {false, true}) {
            std::vector<Edge> edges;
            for (std::int64_t item = 0; item < (several ? shape.batch : 1); ++item)
                for (const Edge& e : some(random, shape.q_len, shape.kv_len, item)) edges.push_back(e);
            ForwardInputs inputs = with_graph(make_inputs(random, shape), edges, several);
            inputs.key_lengths = lengths(
                std::vector<std::int64_t>(static_cast<std::size_t>(shape.batch), 1 + random.below(shape.kv_len)));
            const NamedValues options = with(plain("gatv2"), {{"dropout", 0.0}, {"return_edge_weights", true}});
            const ForwardResult got = forward(inputs, graph, options);
            const Tensor &alpha = extra(got, "edge_weights"), &starts = extra(got, "row_ptr"),
                         &sources = extra(got, "col_idx");
            const auto count = static_cast<std::int64_t>(edges.size());
            CHECK(sources.shape == std::vector<std::int64_t>{count});
            CHECK(alpha.shape == (several ? std::vector<std::int64_t>{shape.heads, count}
                                          : std::vector<std::int64_t>{shape.batch, shape.heads, count}));
            CHECK(starts.shape == (several ? std::vector<std::int64_t>{shape.batch, shape.q_len + 1}
                                           : std::vector<std::int64_t>{shape.q_len + 1}));
            std::int64_t base = 0;
            for (std::int64_t b = 0; b < shape.batch; ++b) {
                const auto start = [&](std::int64_t row) {
                    return several ? specs::graph::at(starts, {b, row}) : specs::graph::at(starts, {row});
                };
                for (std::int64_t h = 0; h < shape.heads; ++h)
                    for (std::int64_t i = 0; i < shape.q_len; ++i) {
                        std::vector<double> o(static_cast<std::size_t>(shape.value_dim), 0.0);
                        double sum = 0;
                        for (std::int64_t e = base + start(i); e < base + start(i + 1); ++e) {
                            const auto j = specs::graph::at(sources, {e});
                            const auto w = static_cast<double>(several ? alpha.as<const float>()[h * count + e]
                                                                       : at(alpha, b, h, e));
                            if (j >= inputs.key_lengths->as<const std::int64_t>()[b]) CHECK(w == 0.0);
                            sum += w;
                            for (std::size_t d = 0; d < o.size(); ++d)
                                o[d] += w * static_cast<double>(at(*inputs.value, b, h * shape.kv_heads / shape.heads,
                                                                   j, static_cast<std::int64_t>(d)));
                        }
                        CHECK((sum == 0.0 || std::abs(sum - 1) <= 1e-5));
                        for (std::size_t d = 0; d < o.size(); ++d)
                            CHECK(std::abs(o[d] - static_cast<double>(
                                                      at(got.output, b, h, i, static_cast<std::int64_t>(d)))) <= 1e-5);
                    }
                if (several) base += start(shape.q_len);
            }
        }
    });
}

TEST_CASE("graph-attention: hidden edges") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        for (const char* version : {"gatv2", "gat", "dot"}) {
            ForwardInputs inputs = with_graph(make_inputs(random, shape), some(random, shape.q_len, shape.kv_len));
            const std::int64_t keys = 1 + random.below(shape.kv_len);
            inputs.key_lengths = lengths(std::vector<std::int64_t>(static_cast<std::size_t>(shape.batch), keys));
            const ForwardResult clean = forward(inputs, graph, plain(version));
            const float nan = std::numeric_limits<float>::quiet_NaN();
            for (Tensor* tensor : {&*inputs.key, &*inputs.value})
                for (std::int64_t b = 0; b < shape.batch; ++b)
                    for (std::int64_t h = 0; h < shape.kv_heads; ++h)
                        for (std::int64_t j = keys; j < shape.kv_len; ++j)
                            for (std::int64_t d = 0; d < tensor->shape[3]; ++d) at(*tensor, b, h, j, d) = nan;
            const ForwardResult got = forward(inputs, graph, plain(version));
            CHECK(same_bits(got.output, clean.output));
            CHECK(same_bits(*got.lse, *clean.lse));
        }
    });
}

TEST_CASE("graph-attention: hubs") {
    // One node with so many edges that they are shared out; 5 pieces one after the other, 20 as a tree.
    for (const std::int64_t sources : {20000, 80000}) {
        Random random(static_cast<std::uint64_t>(sources));
        const ForwardInputs inputs = make_inputs(random, {1, 2, 1, 2, sources, 4, 4});
        std::vector<Edge> edges = complete(1, sources);
        edges.push_back({7, 1, 0, sources});
        for (const char* version : {"gatv2", "gat", "dot"}) {
            const ForwardResult got =
                forward(with_graph(inputs, edges), graph, with(plain(version), {{"return_edge_weights", true}}));
            if (std::string(version) == "dot")
                CHECK(agree(take(got.output, 2, {0}), take(forward(inputs, "flash-attention-v2").output, 2, {0})));
            CHECK(agree(take(got.output, 2, {1}), joined(take(*inputs.value, 2, {7}), take(*inputs.value, 2, {7}), 1)));
            const Tensor& alpha = extra(got, "edge_weights");
            for (std::int64_t h = 0; h < 2; ++h) {
                double sum = 0, o = 0;
                for (std::int64_t e = 0; e < sources; ++e) {
                    sum += static_cast<double>(at(alpha, 0, h, e));
                    o += static_cast<double>(at(alpha, 0, h, e)) * static_cast<double>(at(*inputs.value, 0, 0, e, 1));
                }
                CHECK(std::abs(sum - 1) <= 1e-5);
                CHECK(std::abs(o - static_cast<double>(at(got.output, 0, h, 0, 1))) <= 1e-5);
            }
            // The same as two halves by hand.
            std::vector<Edge> first(edges.begin(), edges.begin() + sources / 2),
                second(edges.begin() + sources / 2, edges.end());
            const Partial parts = merged(forward(with_graph(inputs, first), graph, plain(version)),
                                         forward(with_graph(inputs, second), graph, plain(version)));
            CHECK(agree(values(got.output), parts.output));
            CHECK(agree(values(*got.lse), parts.lse));
        }
    }
}

TEST_CASE("graph-attention: rejects graphs that are none, inputs of other versions and what it does not offer") {
    Random random(3);
    const ForwardInputs inputs = make_inputs(random, {2, 2, 2, 4, 4, 8, 8});
    const std::vector<Edge> edges = numbered({{0, 1, 0, 0}, {3, 1, 0, 0}, {2, 0, 0, 0}});
    const ForwardInputs good = with_graph(inputs, edges);
    const auto rows = [&](std::vector<std::int64_t> starts, std::vector<std::int64_t> sources) {
        ForwardInputs call = inputs;
        const auto nnz = static_cast<std::int64_t>(sources.size());
        const std::vector<std::int64_t> shape =
            starts.size() > 5 ? std::vector<std::int64_t>{static_cast<std::int64_t>(starts.size()) / 5, 5}
                              : std::vector<std::int64_t>{5};
        call.extra = {{"row_ptr", specs::graph::ints(shape, starts)}, {"col_idx", specs::graph::ints({nnz}, sources)}};
        return call;
    };
    rejects(inputs, graph, {}, {"the graph is missing", "edges"});
    rejects(rows({0, 2, 1, 3, 3}, {0, 1, 2}), graph, {}, {"row_ptr[2] is 1 after 2"});
    rejects(rows({1, 2, 2, 3, 3}, {0, 1, 2}), graph, {}, {"row_ptr[0] is 1", "accepted: 0"});
    rejects(rows({0, 2, 2, 2, 2}, {0, 1, 2}), graph, {}, {"row_ptr[4]", "2", "3 entries"});
    rejects(rows({0, 2, 2, 4, 4}, {0, 1, 2}), graph, {}, {"row_ptr[3] is 4", "3 entries"});
    rejects(rows({0, 2, 2, 3, 3, 0, 0, 0, 1, 2}, {0, 1, 2, 0}), graph, {}, {"row_ptr[1][4] is 2", "1 entries"});
    rejects(rows({0, 2, 2, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, {0, 1, 2}), graph, {}, {"row_ptr", "3", "2"});
    rejects(rows({0, 2, 2, 3, 3}, {0, 4, 2}), graph, {}, {"col_idx[1] is 4", "0 to 3"});
    rejects(rows({0, 2, 2, 3, 3}, {0, -1, 2}), graph, {}, {"col_idx[1] is -1", "0 to 3"});
    rejects(rows({0, 2, 2, 3, 3}, {1, 0, 2}), graph, {}, {"col_idx[1] is 0 after 1", "ascending"});
    rejects(rows({0, 2, 2, 3, 3}, {1, 1, 2}), graph, {}, {"from 1 to 0", "twice", "allow_multi_edges"});
    ForwardInputs alone = rows({0, 2, 2, 3, 3}, {0, 1, 2});
    alone.extra.pop_back();
    rejects(alone, graph, {}, {"row_ptr", "col_idx"});
    rejects(with_graph(inputs, numbered({{4, 1, 0, 0}})), graph, {}, {"edges[0][0]", "source", "4", "0 to 3"});
    rejects(with_graph(inputs, numbered({{0, -2, 0, 0}})), graph, {}, {"edges[1][0]", "destination", "-2", "0 to 3"});
    rejects(with_graph(inputs, numbered({{0, 1, 2, 0}}), true), graph, {}, {"edges[2][0]", "item", "2", "0 to 1"});
    rejects(with_graph(inputs, numbered({{2, 1, 0, 0}, {2, 1, 0, 0}})), graph, {}, {"from 2 to 1", "twice"});
    ForwardInputs four = inputs;
    four.extra = {{"edges", specs::graph::ints({4, 1}, {0, 1, 0, 0})}};
    rejects(four, graph, {}, {"edges", "4", "2", "3"});
    ForwardInputs both = rows({0, 2, 2, 3, 3}, {0, 1, 2});
    both.extra.push_back(good.extra[0]);
    rejects(both, graph, {}, {"both", "edges", "row_ptr"});
    rejects(good, graph, {{"version", "gat"}, {"scale", 0.5}}, {"scale", "0.5", "gat", "dot"});
    rejects(good, graph, {{"scale", 2.0}}, {"scale", "2", "gatv2", "dot"});
    rejects(good, graph, {{"softcap", 5.0}}, {"softcap"});
    rejects(good, graph, {{"negative_slope", 1.5}}, {"negative_slope", "1.5"});
    rejects(good, graph, {{"negative_slope", -0.1}}, {"negative_slope", "-0.1"});
    ForwardInputs longer = make_inputs(random, {2, 2, 2, 4, 5, 8, 8});
    longer.extra = good.extra;
    rejects(longer, graph, {}, {"add_self_loops", "4 queries", "5 keys"});
    ForwardInputs vec = good;
    vec.extra.emplace_back("edge_vec", normal(random, {3, 2, 8}));
    rejects(vec, graph, {{"version", "gat"}}, {"edge_vec", "gat"});
    rejects(vec, graph, {{"version", "dot"}}, {"edge_vec", "dot"});
    ForwardInputs score = good;
    score.extra.emplace_back("edge_score", normal(random, {3}));
    rejects(score, graph, {}, {"edge_score", "gatv2"});
    score.extra.back().second = normal(random, {4});
    rejects(score, graph, {{"version", "gat"}}, {"edge_score", "4", "3"});
    ForwardInputs masked = good;
    masked.mask = bools({4, 4}, [](const auto&) { return true; });
    rejects(masked, graph, {}, {"mask"});
    ForwardInputs biased = good;
    biased.bias = filled({4, 4}, 0.0f);
    rejects(biased, graph, {}, {"bias"});
}
