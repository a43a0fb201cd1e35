// SPDX-License-Identifier: Apache-2.0
// Graphs as anybody may hand them in: random rows and edge lists, most of them broken, are taken or refused as a plain
// check says, and what is taken matches the oracle. Nothing outside of a tensor is read, which the sanitizers watch.
#include <climits>
#include <limits>

#include "specs/extra/graph.hpp"
#include "specs/inputs.hpp"
#include "support/calls.hpp"
#include "support/effort.hpp"

namespace {

using namespace support;
using attend::ForwardInputs;
using attend::ForwardResult;
using attend::NamedValues;
using attend::Tensor;
using specs::graph::Edge;
using specs::graph::ints;
using Numbers = std::vector<std::int64_t>;

const char* const graph = "graph-attention";
constexpr std::uint64_t random_graphs = support::watched ? 150 : 400;
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

// Each back end must agree with the oracle.
void check_taken(const ForwardInputs& inputs, const NamedValues& options) {
    for (const std::string& backend : backends()) {
        const ForwardResult got = run(service(backend), inputs, graph, options, true);
        const specs::Expected expected = specs::spec_of(graph).oracle({&inputs, got.options()});
        INFO(backend);
        CHECK(difference(values(got.output), expected.o) <= 1e-5 * std::max(1.0, largest(values(*inputs.value))));
        CHECK(difference(values(*got.lse), expected.lse) <= 2e-5);
    }
}
void check_refused(const ForwardInputs& inputs, const NamedValues& options, const std::vector<std::string>& parts) {
    const auto got = service().forward(inputs, {graph, options});
    REQUIRE_FALSE(got.ok());
    for (const std::string& part : parts) {
        INFO(got.error().message);
        CHECK(got.error().message.find(part) != std::string::npos);
    }
}

std::vector<Edge> random_edges(Random& random, std::int64_t targets, std::int64_t sources, std::int64_t items) {
    std::vector<Edge> edges;
    for (std::int64_t item = 0; item < items; ++item)
        for (std::int64_t i = 0; i < targets; ++i)
            for (std::int64_t j = 0; j < sources; ++j)
                if (random.below(3) == 0) edges.push_back({j, i, item, 0});
    return edges;
}
// A number that has no business in a graph, or perhaps has.
std::int64_t odd_number(Random& random, std::int64_t near, bool wide) {
    switch (random.below(6)) {
        case 0: return -1;
        case 1: return wide ? std::numeric_limits<std::int64_t>::max() : INT32_MAX;
        case 2: return wide ? std::numeric_limits<std::int64_t>::min() : INT32_MIN;
        case 3: return near;
        default: return random.below(near + 2);
    }
}

// Rows of one or several graphs, in the caller's numbers.
struct Rows {
    std::int64_t items, rows, sources;
    bool several;
    Numbers starts, columns;

    [[nodiscard]] bool valid(bool loops, bool repeated) const {
        if (loops && rows != sources) return false;
        if (static_cast<std::int64_t>(starts.size()) != (several ? items : 1) * (rows + 1)) return false;
        std::int64_t base = 0;
        const auto given = static_cast<std::int64_t>(columns.size());
        for (std::int64_t item = 0; item < (several ? items : 1); ++item) {
            const std::int64_t* start = starts.data() + item * (rows + 1);
            if (start[0] != 0) return false;
            for (std::int64_t row = 0; row < rows; ++row)
                if (start[row + 1] < start[row] || start[row + 1] > given - base) return false;
            for (std::int64_t row = 0; row < rows; ++row)
                for (std::int64_t e = start[row]; e < start[row + 1]; ++e) {
                    const std::int64_t j = columns[static_cast<std::size_t>(base + e)];
                    if (j < 0 || j >= sources) return false;
                    if (e == start[row]) continue;
                    const std::int64_t before = columns[static_cast<std::size_t>(base + e - 1)];
                    if (j < before || (j == before && !repeated)) return false;
                }
            base += start[rows];
        }
        return base == given;
    }
};

}  // namespace

TEST_CASE("graphs: random rows are taken or refused as a plain check says") {
    int taken = 0, refused = 0;
    for (std::uint64_t seed = 0; seed < random_graphs; ++seed) {
        Random random(seed + 1);
        const bool loops = random.below(3) == 0, repeated = random.below(4) == 0, wide = random.below(2) == 0;
        Rows rows{1 + random.below(3), 1 + random.below(6), 1 + random.below(6), random.below(2) == 0, {}, {}};
        if (loops && random.below(8) != 0) rows.sources = rows.rows;
        std::vector<Edge> edges = random_edges(random, rows.rows, rows.sources, rows.several ? rows.items : 1);
        specs::graph::sort(edges);
        for (const Edge& e : edges) {
            rows.columns.push_back(e.source);
            if (random.below(10) == 0 && random.below(4) == 0) rows.columns.push_back(e.source);
        }
        rows.starts = specs::graph::row_starts(edges, rows.several ? rows.items : 1, rows.rows);
        for (std::int64_t broken = random.below(3); broken > 0; --broken) {
            Numbers& numbers = random.below(2) == 0 ? rows.starts : rows.columns;
            if (numbers.empty()) continue;
            numbers[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(numbers.size())))] =
                odd_number(random, static_cast<std::int64_t>(rows.columns.size()), wide);
        }
        if (random.below(12) == 0) rows.columns.resize(rows.columns.size() + 1, 0);
        if (random.below(12) == 0 && !rows.columns.empty()) rows.columns.pop_back();
        ForwardInputs inputs = make_inputs(random, {rows.items, 2, 1, rows.rows, rows.sources, 5, 3});
        const Numbers shape = rows.several ? Numbers{rows.items, rows.rows + 1} : Numbers{rows.rows + 1};
        inputs.extra = {{"row_ptr", ints(shape, rows.starts, wide)},
                        {"col_idx", ints({static_cast<std::int64_t>(rows.columns.size())}, rows.columns, wide)}};
        const char* const versions[] = {"gatv2", "gat", "dot"};
        const NamedValues options{{"version", versions[random.below(3)]},
                                  {"add_self_loops", loops},
                                  {"allow_multi_edges", repeated},
                                  {"return_edge_weights", random.below(2) == 0}};
        INFO("seed " << seed);
        if (rows.valid(loops, repeated)) {
            ++taken;
            check_taken(inputs, options);
        } else {
            ++refused;
            check_refused(inputs, options, {});
        }
    }
    CHECK(taken > 30);
    CHECK(refused > 30);
}

TEST_CASE("graphs: random edge lists are taken or refused as a plain check says") {
    int taken = 0, refused = 0;
    for (std::uint64_t seed = 0; seed < random_graphs; ++seed) {
        Random random(seed + 5001);
        const bool loops = random.below(2) == 0, repeated = random.below(4) == 0, wide = random.below(2) == 0,
                   several = random.below(2) == 0;
        const std::int64_t items = 1 + random.below(3), targets = 1 + random.below(6),
                           sources = loops ? targets : 1 + random.below(6);
        std::vector<Edge> edges = random_edges(random, targets, sources, several ? items : 1);
        if (random.below(4) == 0 && !edges.empty()) edges.push_back(edges.front());
        std::shuffle(edges.begin(), edges.end(), random.engine);
        if (random.below(2) == 0 && !edges.empty()) {
            Edge& edge = edges[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(edges.size())))];
            std::int64_t* const fields[] = {&edge.source, &edge.target, &edge.item};
            *fields[random.below(several ? 3 : 2)] = odd_number(random, 4, wide);
        }
        bool valid = true;
        for (std::size_t n = 0; n < edges.size(); ++n) {
            const Edge& e = edges[n];
            valid = valid && e.source >= 0 && e.source < sources && e.target >= 0 && e.target < targets &&
                    e.item >= 0 && e.item < items;
            for (std::size_t m = 0; m < n && !repeated; ++m)
                valid = valid && !(edges[m].source == e.source && edges[m].target == e.target &&
                                   (edges[m].item == e.item || !several));
        }
        ForwardInputs inputs = make_inputs(random, {items, 2, 2, targets, sources, 4, 6});
        inputs.extra = {{"edges", specs::graph::edge_list(edges, several, wide)}};
        const char* const versions[] = {"gatv2", "gat", "dot"};
        const NamedValues options{
            {"version", versions[random.below(3)]}, {"add_self_loops", loops}, {"allow_multi_edges", repeated}};
        INFO("seed " << seed);
        if (valid) {
            ++taken;
            check_taken(inputs, options);
        } else {
            ++refused;
            check_refused(inputs, options, {});
        }
    }
    CHECK(taken > 30);
    CHECK(refused > 30);
}

TEST_CASE("graphs: rows of another length than the nodes, and sources of another number than the rows say") {
    Random random(1);
    ForwardInputs inputs = make_inputs(random, {2, 2, 2, 4, 4, 8, 8});
    const auto with = [&](std::vector<std::pair<std::string, Tensor>> tensors) {
        ForwardInputs call = inputs;
        call.extra = std::move(tensors);
        return call;
    };
    const Tensor sources = ints({3}, {0, 1, 2});
    check_refused(with({{"row_ptr", ints({4}, {0, 2, 2, 3})}, {"col_idx", sources}}), {}, {"row_ptr", "4", "5"});
    check_refused(with({{"row_ptr", ints({6}, {0, 2, 2, 3, 3, 3})}, {"col_idx", sources}}), {}, {"row_ptr", "6", "5"});
    check_refused(with({{"row_ptr", ints({0}, {})}, {"col_idx", sources}}), {}, {"row_ptr", "0", "5"});
    check_refused(with({{"row_ptr", ints({5}, {0, 2, 2, 3, 3})}, {"col_idx", ints({2}, {0, 1})}}), {},
                  {"row_ptr[3] is 3", "2 entries"});
    check_refused(with({{"row_ptr", ints({5}, {0, 2, 2, 3, 3})}, {"col_idx", ints({4}, {0, 1, 2, 3})}}), {},
                  {"row_ptr[4]", "3", "4 entries"});
    check_refused(with({{"row_ptr", ints({5}, {0, 2, 2, 3, 3})}, {"col_idx", ints({3, 1}, {0, 1, 2})}}), {},
                  {"col_idx"});
    check_refused(with({{"edges", ints({6}, {0, 1, 2, 0, 1, 2})}}), {}, {"edges"});
    check_refused(with({{"edges", ints({1, 2}, {0, 1})}}), {}, {"edges has 1 rows", "2", "3"});
    // Data of edges must be as many as the edges.
    ForwardInputs scored = with({{"edges", ints({2, 3}, {0, 1, 2, 1, 1, 0})}});
    scored.extra.emplace_back("edge_vec", normal(random, {2, 2, 8}));
    check_refused(scored, {}, {"edge_vec", "2", "3"});
    scored.extra.back() = {"edge_vec", normal(random, {3, 2, 7})};
    check_refused(scored, {}, {"edge_vec", "7", "8"});
    scored.extra.back() = {"edge_score", normal(random, {3, 3})};
    check_refused(scored, {{"version", "dot"}}, {"edge_score", "3", "2"});
}

TEST_CASE("graphs: without edges, without nodes, with loops alone") {
    Random random(2);
    for (const bool several : {false, true}) {
        const Tensor none = ints({several ? 3 : 2, 0}, {});
        // No edges: zeros; with loops each node sees itself.
        ForwardInputs inputs = make_inputs(random, {2, 2, 2, 5, 5, 4, 3});
        inputs.extra = {{"edges", none}};
        const ForwardResult empty = run(service(), inputs, graph, {{"add_self_loops", false}}, true);
        for (const float x : values(empty.output)) CHECK(x == 0.0f);
        for (const float x : values(*empty.lse)) CHECK(x == minus_infinity);
        const auto value = values(*inputs.value);
        CHECK(difference(values(run(service(), inputs, graph).output), {value.begin(), value.end()}) <= 1e-6);
        // No queries, no keys, no items; the graph that comes back has no rows but its end.
        for (const Shape& shape : {Shape{2, 2, 2, 0, 0, 4, 3}, Shape{2, 2, 2, 0, 5, 4, 3}, Shape{2, 2, 2, 5, 0, 4, 3},
                                   Shape{0, 2, 2, 5, 5, 4, 3}}) {
            INFO(shape.text() << several);
            ForwardInputs call = make_inputs(random, shape);
            call.extra = {{"edges", none}};
            for (const char* version : {"gatv2", "gat", "dot"}) {
                const ForwardResult got = run(service(), call, graph,
                                              {{"version", version},
                                               {"add_self_loops", shape.q_len == shape.kv_len},
                                               {"return_edge_weights", true}},
                                              true);
                CHECK(got.output.shape == Numbers{shape.batch, 2, shape.q_len, 3});
                for (const float x : values(got.output)) CHECK(x == 0.0f);
                for (const float x : values(*got.lse)) CHECK(x == minus_infinity);
            }
            if (several) continue;
            call.extra = {{"row_ptr", ints({shape.q_len + 1}, Numbers(static_cast<std::size_t>(shape.q_len + 1), 0))},
                          {"col_idx", ints({0}, {})}};
            run(service(), call, graph, {{"add_self_loops", shape.q_len == shape.kv_len}});
            call.extra = {{"edges", ints({2, 1}, {5, 0})}};
            if (shape.q_len != shape.kv_len || shape.q_len == 0)
                check_refused(call, {{"add_self_loops", false}}, {"edges["});
        }
    }
    // Loops that were there go, and each node has one; without, they are edges as others.
    ForwardInputs inputs = make_inputs(random, {1, 1, 1, 3, 3, 4, 4});
    inputs.extra = {{"edges", ints({2, 4}, {0, 1, 2, 2, 0, 1, 1, 2})}};
    for (const bool loops : {true, false}) {
        const ForwardResult got =
            run(service(), inputs, graph, {{"add_self_loops", loops}, {"return_edge_weights", true}});
        for (const auto& [name, tensor] : got.extra) {
            if (name == "row_ptr") CHECK(specs::graph::at(tensor, {3}) == 4);
            if (name == "col_idx") CHECK(specs::graph::at(tensor, {1}) == 1);
        }
        check_taken(inputs, {{"add_self_loops", loops}});
    }
    // A loop given twice is an edge given twice.
    inputs.extra = {{"edges", ints({2, 2}, {1, 1, 1, 1})}};
    check_refused(inputs, {}, {"from 1 to 1", "twice"});
    check_taken(inputs, {{"allow_multi_edges", true}, {"add_self_loops", false}});
}

TEST_CASE("graphs: one node has all edges, as many as a piece of a hub and one more or less") {
    for (const std::int64_t sources : {4095, 4096, 4097, 8192, 8193}) {
        if (support::watched && sources > 4097) continue;
        Random random(static_cast<std::uint64_t>(sources));
        ForwardInputs inputs = make_inputs(random, {2, 1, 1, 2, sources, 3, 5});
        std::vector<Edge> edges;
        for (std::int64_t j = 0; j < sources; ++j) edges.push_back({j, 1, 0, 0});
        std::shuffle(edges.begin(), edges.end(), random.engine);
        inputs.extra = {{"edges", specs::graph::edge_list(edges, false)}};
        inputs.key_lengths = lengths({sources, 4100});
        if (sources < 4100) inputs.key_lengths = lengths({sources, 17});
        for (const char* version : {"gatv2", "gat", "dot"}) {
            INFO(version << " " << sources);
            check_taken(inputs, {{"version", version}, {"add_self_loops", false}});
            check_taken(inputs, {{"version", version}, {"add_self_loops", false}, {"dropout", 0.4}, {"seed", 3}});
        }
    }
}

TEST_CASE("graphs: edges as a view with strides of its own") {
    Random random(4);
    ForwardInputs inputs = make_inputs(random, {2, 2, 2, 6, 6, 4, 4});
    const Numbers pairs{0, 1, 3, 1, 2, 0, 5, 5, 4, 1};
    const Tensor listed = ints({5, 2}, pairs);
    inputs.extra = {{"edges", listed.view({2, 5}, {1, 2})}};
    const auto viewed = run(service(), inputs, graph);
    Numbers apart;
    for (const std::size_t field : {0u, 1u})
        for (std::size_t e = 0; e < 5; ++e) apart.push_back(pairs[2 * e + field]);
    inputs.extra = {{"edges", ints({2, 5}, apart)}};
    CHECK(same_bits(viewed.output, run(service(), inputs, graph).output));
}
