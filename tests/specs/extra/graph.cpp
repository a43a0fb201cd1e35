// SPDX-License-Identifier: Apache-2.0
// graph-attention: o_i = sum over the edges into i of softmax_j(e_ij) v_j, e by version.
#include "specs/extra/graph.hpp"

namespace {

using attend::NamedValues;
using specs::Call;
using specs::Expected;
using specs::ForwardInputs;
using specs::Numbers;
using specs::Tensor;
using specs::graph::Edge;

std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

Expected oracle(const Call& call) {
    const ForwardInputs& in = *call.inputs;
    const Tensor &query = in.query, &key = in.key ? *in.key : query, &value = in.value ? *in.value : key;
    const oracle::View q{&query}, k{&key}, v{&value};
    const std::int64_t batch = query.shape[0], heads = query.shape[1], nq = query.shape[2], width = query.shape[3],
                       dv = value.shape[3];
    const std::string version = call.word("version");
    const double slope = call.number("negative_slope", 0.2), scale = call.number("scale", 0);
    const double factor = scale == 0 ? 1 / std::sqrt(static_cast<double>(width)) : scale;
    const double bound = std::sqrt(6.0 / static_cast<double>(heads + width));
    const auto weights = [&](const char* name, const char* seeded) {
        return specs::weight_of(call, name, seeded, size(heads * width), bound);
    };
    const std::vector<double> att = weights("att", "graph-attention/att"),
                              dst = weights("att_dst", "graph-attention/attDst"),
                              src = weights("att_src", "graph-attention/attSrc");
    const Tensor *score = specs::graph::input(in, "edge_score"), *vec = specs::graph::input(in, "edge_vec");
    const auto leaky = [&](double x) { return x >= 0 ? x : slope * x; };
    const std::vector<Edge> edges = specs::graph::settled_edges(in, call.flag("add_self_loops"));
    const bool several = specs::graph::per_item(in);
    Expected out;
    for (std::int64_t b = 0; b < batch; ++b)
        for (std::int64_t h = 0; h < heads; ++h)
            for (std::int64_t i = 0; i < nq; ++i) {
                const std::int64_t kv = h * key.shape[1] / heads;
                std::vector<Edge> row;
                for (const Edge& e : edges)
                    if (e.target == i && (!several || e.item == b)) row.push_back(e);
                // Data of an edge; of an added loop the mean over the others.
                const auto score_at = [&](std::int64_t id) {
                    return static_cast<double>(
                        score->shape.size() == 2
                            ? score->as<const float>()[h * score->strides[0] + id * score->strides[1]]
                            : score->as<const float>()[id * score->strides[0]]);
                };
                const auto vec_at = [&](std::int64_t id, std::int64_t d) {
                    return static_cast<double>(
                        vec->as<const float>()[id * vec->strides[0] + h * vec->strides[1] + d * vec->strides[2]]);
                };
                const auto data = [&](const Edge& e, auto of) {
                    if (e.id >= 0) return of(e.id);
                    double sum = 0, count = 0;
                    for (const Edge& other : row)
                        if (other.id >= 0) sum += of(other.id), count += 1;
                    return count > 0 ? sum / count : 0.0;
                };
                std::vector<double> x;
                double total = 0;
                std::vector<double> o(size(dv), 0.0);
                for (const Edge& e : row) {
                    const specs::Place place{b, h, i, e.source, i + specs::offset_of(call, b)};
                    if (!specs::common_visible(call, place, true, true)) {
                        x.push_back(-std::numeric_limits<double>::infinity());
                        continue;
                    }
                    double s = 0;
                    for (std::int64_t d = 0; d < width; ++d) {
                        const std::size_t w = size(h * width + d);
                        const double a = q(b, h, i, d), c = k(b, kv, e.source, d);
                        if (version == "gat") s += dst[w] * a + src[w] * c;
                        if (version == "dot") s += factor * a * c;
                        if (version == "gatv2")
                            s += att[w] *
                                 leaky(a + c + (vec ? data(e, [&](std::int64_t id) { return vec_at(id, d); }) : 0.0));
                    }
                    if (score) s += data(e, score_at);
                    x.push_back(version == "gat" ? leaky(s) : s);
                }
                double most = -std::numeric_limits<double>::infinity();
                for (const double s : x) most = std::max(most, s);
                for (std::size_t n = 0; n < row.size(); ++n) {
                    const double p = x[n] == -std::numeric_limits<double>::infinity() ? 0 : std::exp(x[n] - most);
                    total += p;
                    const double kept = p * specs::dropout_at(call, b * heads + h, i, row[n].source);
                    for (std::int64_t d = 0; p > 0 && d < dv; ++d) o[size(d)] += kept * v(b, kv, row[n].source, d);
                }
                for (const double sum : o) out.o.push_back(total > 0 ? sum / total : 0.0);
                out.lse.push_back(total > 0 ? most + std::log(total) : -std::numeric_limits<double>::infinity());
            }
    return out;
}

// About three edges into each node, some nodes with none and one with many.
std::vector<Edge> some_edges(Numbers& numbers, const ForwardInputs& inputs, bool several, bool parallel) {
    const std::int64_t nq = inputs.query.shape[2], nk = inputs.key->shape[2];
    std::vector<Edge> edges;
    for (std::int64_t item = 0; item < (several ? inputs.query.shape[0] : 1); ++item)
        for (std::int64_t n = 0; nq > 0 && nk > 0 && n < 3 * nq + nk; ++n) {
            const Edge edge{numbers.below(nk), n < 3 * nq ? numbers.below(nq) : 0, item, 0};
            const bool there = std::any_of(edges.begin(), edges.end(), [&](const Edge& e) {
                return e.source == edge.source && e.target == edge.target && e.item == item;
            });
            if (!there || parallel) edges.push_back(edge);
        }
    std::shuffle(edges.begin(), edges.end(), numbers.engine);
    return edges;
}

void needs(ForwardInputs& inputs) {
    Numbers numbers(static_cast<std::uint64_t>(inputs.query.size()) + 3);
    inputs.extra = {{"edges", specs::graph::edge_list(some_edges(numbers, inputs, false, false), false)}};
}

const attend::Json* option(const NamedValues& options, const std::string& name) {
    for (const auto& [given, value] : options)
        if (given == name) return &value;
    return nullptr;
}

// The graph in one of its forms, with edge data and weights or without.
void more(ForwardInputs& inputs, const NamedValues& options, Numbers& numbers) {
    const attend::Json *version = option(options, "version"), *multi = option(options, "allow_multi_edges");
    const std::string word = version != nullptr ? version->as_string() : "gatv2";
    const bool several = numbers.below(2) == 0, rows = numbers.below(2) == 0, wide = numbers.below(2) == 0;
    std::vector<Edge> edges = some_edges(numbers, inputs, several, multi != nullptr && multi->as_bool());
    inputs.extra.clear();
    if (rows) {
        specs::graph::sort(edges);
        std::vector<std::int64_t> sources;
        for (const Edge& e : edges) sources.push_back(e.source);
        const std::int64_t nq = inputs.query.shape[2], items = several ? inputs.query.shape[0] : 1;
        const std::vector<std::int64_t> shape = several ? std::vector{items, nq + 1} : std::vector{nq + 1};
        inputs.extra.emplace_back("row_ptr",
                                  specs::graph::ints(shape, specs::graph::row_starts(edges, items, nq), wide));
        inputs.extra.emplace_back("col_idx",
                                  specs::graph::ints({static_cast<std::int64_t>(sources.size())}, sources, !wide));
    } else {
        inputs.extra.emplace_back("edges", specs::graph::edge_list(edges, several, wide));
    }
    const std::int64_t heads = inputs.query.shape[1], width = inputs.query.shape[3],
                       count = static_cast<std::int64_t>(edges.size());
    if (numbers.below(2) == 0) {
        if (word == "gatv2")
            inputs.extra.emplace_back("edge_vec", numbers.normal({count, heads, width}));
        else
            inputs.extra.emplace_back("edge_score",
                                      numbers.below(2) == 0 ? numbers.normal({count}) : numbers.normal({heads, count}));
    }
    if (word == "dot" || numbers.below(2) == 0) return;
    for (const char* name : {"att", "att_dst", "att_src"})
        if ((std::string(name) == "att") == (word == "gatv2"))
            inputs.weights.emplace_back(name, numbers.normal({heads, width}));
}

const specs::Registration spec(
    {.mechanism = "graph-attention",
     .oracle = oracle,
     .variants = {{{"version", "gat"}},
                  {{"version", "dot"}},
                  {{"version", "dot"}, {"scale", 0.3}},
                  {{"add_self_loops", false}},
                  {{"version", "gat"}, {"add_self_loops", false}},
                  {{"version", "dot"}, {"add_self_loops", false}, {"causal", true}},
                  {{"negative_slope", 0.0}},
                  {{"version", "gat"}, {"negative_slope", 1.0}},
                  {{"allow_multi_edges", true}},
                  {{"version", "gat"}, {"allow_multi_edges", true}, {"add_self_loops", false}},
                  {{"causal", true}},
                  {{"window_size", 4}, {"add_self_loops", false}},
                  {{"dropout", 0.3}, {"seed", 7}},
                  {{"version", "dot"}, {"dropout", 0.5}, {"rng_offset", 3}, {"allow_multi_edges", true}},
                  {{"version", "gat"}, {"return_edge_weights", true}},
                  {{"return_edge_weights", true}, {"add_self_loops", false}}},
     .masks = false,
     .key_masks = false,
     .biases = false,
     .exempt = {{"hidden keys", "takes no mask; hidden edges are tested by name"}},
     .tolerance = 1e-5,
     .needs = needs,
     .more = more,
     .fits = [](const NamedValues& options, std::int64_t nq, std::int64_t nk) {
         const attend::Json* loops = option(options, "add_self_loops");
         return nq == nk || (loops != nullptr && !loops->as_bool());
     }});

}  // namespace
