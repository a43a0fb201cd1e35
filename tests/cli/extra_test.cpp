// SPDX-License-Identifier: Apache-2.0
// graph-attention and hyperbolic-attention: the plugin that lies in no folder of the program's own.
#include "program.hpp"

#include <cmath>

using namespace cli_test;

namespace {

const char* const extra_plugins = CLI_TEST_EXTRA_PLUGINS;
const std::string library = std::string(extra_plugins) + "/libattend_geometric.so";

attend::Tensor ints(std::vector<std::int64_t> shape, const std::vector<std::int64_t>& values, attend::DType dtype) {
    auto tensor = attend::Tensor::allocate(dtype, std::move(shape));
    REQUIRE(tensor.ok());
    REQUIRE(static_cast<std::size_t>(tensor->size()) == values.size());
    for (std::size_t at = 0; at < values.size(); ++at) {
        if (dtype == attend::DType::i64)
            tensor->as<std::int64_t>()[at] = values[at];
        else
            tensor->as<std::int32_t>()[at] = static_cast<std::int32_t>(values[at]);
    }
    return *tensor;
}

Run compute(const std::string& mechanism, std::vector<std::string> more) {
    more.insert(more.begin(), {"compute", mechanism, "--plugin-dir", extra_plugins, "--quiet"});
    return run_attend(more);
}
const attend::Tensor& tensor(const attend::io::TensorFile& file, const std::string& name) {
    for (const auto& [given, found] : file.tensors)
        if (given == name) return found;
    FAIL("no tensor " << name);
    std::abort();
}

// Four nodes with two features; 0 -> 1, 2 -> 1, 1 -> 3; node 0 and 2 have no neighbours.
const std::vector<float> features{1, 0, 0, 1, 2, -1, -1, 3};
std::vector<double> expected_of_dot() {
    std::vector<double> o{0, 0, 0, 0, 0, 0, 0, 1};  // node 3 has one neighbour, node 1
    const double a = std::exp((0 * 1 + 1 * 0) / std::sqrt(2.0)), c = std::exp((0 * 2 + 1 * -1) / std::sqrt(2.0));
    o[2] = (a * 1 + c * 2) / (a + c);
    o[3] = (a * 0 + c * -1) / (a + c);
    return o;
}

}  // namespace

TEST_CASE("extra: list has the two mechanisms once the plugin lies in a folder, and counts them") {
    CHECK(contains(run_attend({"list", "--category", "extra"}).out, "no mechanism passes the filters"));
    const Folder folder;
    const std::string data = folder / "data";
    std::filesystem::create_directories(data + "/attend/plugins/abi-1");
    std::filesystem::copy(library, data + "/attend/plugins/abi-1/libattend_geometric.so");
    const Run all = run_attend({"list"}, {{"XDG_DATA_HOME", data}});
    for (const char* part : {"graph-attention ", "hyperbolic-attention ", "org.attend.geometric", ", 2 extra\n"})
        CHECK(contains(all.out, part));
    const attend::Json json =
        run_attend({"list", "--category", "extra", "--json"}, {{"ATTEND_PLUGIN_PATH", extra_plugins}}).json();
    REQUIRE(json.find("mechanisms")->size() == 2);
    CHECK(json.find("mechanisms")->as_array()[0].find("name")->as_string() == "graph-attention");
    CHECK(json.find("mechanisms")->as_array()[1].find("name")->as_string() == "hyperbolic-attention");
    for (const char* name : {"graph-attention", "hyperbolic-attention"}) {
        const Run described = run_attend({"describe", name, "--plugin", library});
        CHECK(described.status == 0);
        CHECK(contains(described.out, "attend compute " + std::string(name)));
    }
}

TEST_CASE("extra: graph-attention reads a graph from the tensor file, as edges or as rows, and returns it") {
    const Folder folder;
    const std::string out = folder / "out.safetensors";
    const attend::Tensor query = floats({4, 2}, features);
    const std::vector<double> expected = expected_of_dot();
    for (const attend::DType dtype : {attend::DType::i32, attend::DType::i64}) {
        const attend::Tensor edges = ints({2, 3}, {2, 1, 0, 1, 3, 1}, dtype),
                             starts = ints({5}, {0, 0, 2, 2, 3}, dtype), sources = ints({3}, {0, 2, 1}, dtype);
        save(folder / "edges.safetensors", {{"query", query}, {"input.edges", edges}});
        save(folder / "rows.npz", {{"query", query}, {"input.row_ptr", starts}, {"input.colIdx", sources}});
        for (const char* file : {"edges.safetensors", "rows.npz"}) {
            const Run run = compute("graph-attention",
                                    {"--input", folder / file, "--set", "version=dot", "--set", "addSelfLoops=false",
                                     "--set", "returnEdgeWeights=true", "--lse", "--output", out});
            INFO(file << run.err);
            REQUIRE(run.status == 0);
            const auto result = load(out);
            const auto o = elements(tensor(result, "output"));
            REQUIRE(o.size() == expected.size());
            for (std::size_t at = 0; at < o.size(); ++at) CHECK(std::abs(o[at] - expected[at]) <= 1e-6);
            CHECK(elements(tensor(result, "row_ptr")) == std::vector<double>{0, 0, 2, 2, 3});
            CHECK(elements(tensor(result, "col_idx")) == std::vector<double>{0, 2, 1});
            CHECK(elements(tensor(result, "edge_weights")).size() == 3);
            CHECK(elements(tensor(result, "edge_weights"))[2] == 1.0);
            CHECK(elements(tensor(result, "lse"))[0] == -std::numeric_limits<double>::infinity());
        }
    }
    // With loops the graph that comes back has one more edge for each node.
    const Run looped = compute("graph-attention", {"--input", folder / "edges.safetensors", "--set",
                                                   "return_edge_weights=true", "--output", out});
    REQUIRE(looped.status == 0);
    CHECK(elements(tensor(load(out), "row_ptr")) == std::vector<double>{0, 1, 4, 5, 7});
    CHECK(elements(tensor(load(out), "col_idx")) == std::vector<double>{0, 0, 1, 2, 2, 1, 3});
}

TEST_CASE("extra: graph-attention takes scores and vectors of edges, and weights, from the tensor file") {
    const Folder folder;
    const std::string file = folder / "in.safetensors", out = folder / "out.safetensors";
    const attend::Tensor query = floats({4, 2}, features), edges = ints({2, 3}, {2, 1, 0, 1, 3, 1}, attend::DType::i32);
    // att_src = 0 and att_dst = 0: the edges' scores alone, softmax(ln 3, 0) for the edges 2 -> 1 and 0 -> 1.
    save(file, {{"query", query},
                {"input.edges", edges},
                {"input.edge_score", floats({3}, {std::log(3.0f), 5.0f, 0.0f})},
                {"weight.attDst", floats({1, 2}, {0, 0})},
                {"weight.att_src", floats({1, 2}, {0, 0})}});
    REQUIRE(compute("graph-attention",
                    {"--input", file, "--set", "version=gat", "--set", "add_self_loops=false", "--output", out})
                .status == 0);
    const auto gat = elements(tensor(load(out), "output"));
    CHECK(std::abs(gat[2] - (0.75 * 2 + 0.25 * 1)) <= 1e-6);
    CHECK(std::abs(gat[3] - 0.75 * -1) <= 1e-6);
    // gatv2: query = -key, so that the edges' vectors alone are left.
    save(file, {{"query", floats({2, 1}, {-1, -1})},
                {"key", floats({2, 1}, {1, 1})},
                {"value", floats({2, 1}, {10, 20})},
                {"input.edges", ints({2, 2}, {0, 1, 0, 0}, attend::DType::i64)},
                {"input.edge_vec", floats({2, 1, 1}, {std::log(4.0f), -std::log(4.0f)})},
                {"weight.att", floats({1, 1}, {1})}});
    REQUIRE(compute("graph-attention",
                    {"--input", file, "--set", "add_self_loops=false", "--set", "negative_slope=0.5", "--output", out})
                .status == 0);
    // exp: 4 and 4^(-1/2).
    CHECK(std::abs(elements(tensor(load(out), "output"))[0] - (4 * 10 + 0.5 * 20) / 4.5) <= 1e-5);
}

TEST_CASE("extra: graph-attention without a graph, or with one that is none, is an error in one line") {
    const Folder folder;
    const std::string file = folder / "in.safetensors";
    const attend::Tensor query = floats({4, 2}, features);
    check_error(compute("graph-attention", {"--sequence-length", "8"}), 2,
                {"the graph is missing", "edges", "row_ptr"});
    save(file, {{"query", query}, {"input.edges", ints({2, 2}, {0, 9, 1, 1}, attend::DType::i32)}});
    check_error(compute("graph-attention", {"--input", file}), 2, {"edges[0][1]", "source", "is 9", "0 to 3"});
    save(file, {{"query", query}, {"input.edges", floats({2, 1}, {0, 1})}});
    check_error(compute("graph-attention", {"--input", file}), 2, {"edges", "F32"});
    save(file, {{"query", query}, {"input.edgs", ints({2, 1}, {0, 1}, attend::DType::i32)}});
    check_error(compute("graph-attention", {"--input", file}), 2, {"edgs", "edges"});
}

TEST_CASE("extra: hyperbolic-attention on a tensor file and on generated tensors") {
    const Folder folder;
    const std::string file = folder / "in.safetensors", out = folder / "out.safetensors";
    // Two points of the Poincare disc with equal weights: the midpoint of the geodesic through the origin.
    const auto disc = [](double rho) { return static_cast<float>(std::tanh(rho / 2)); };
    save(file, {{"query", floats({1, 2}, {0, 0.3f})},
                {"key", floats({2, 2}, {0, 0.1f, 0, 0.1f})},
                {"value", floats({2, 2}, {disc(2.0), 0, -disc(1.0), 0})},
                {"weight.beta", floats({1}, {2})}});
    const Run run = compute("hyperbolic-attention", {"--input", file, "--set", "inputMap=poincare", "--set",
                                                     "outputMap=hyperboloid", "--lse", "--scores", "--output", out});
    INFO(run.err);
    REQUIRE(run.status == 0);
    const auto result = load(out);
    CHECK(tensor(result, "output").shape.back() == 3);
    const auto o = elements(tensor(result, "output"));
    CHECK(std::abs(o[0] - std::cosh(0.5)) <= 1e-5);
    CHECK(std::abs(o[1] - std::sinh(0.5)) <= 1e-5);
    CHECK(std::abs(o[2]) <= 1e-6);
    CHECK(elements(tensor(result, "scores")) == std::vector<double>{0.5, 0.5});
    // d = 2 artanh 0.3 - 2 artanh 0.1, in nats 2 of them.
    const double d = 2 * (std::atanh(0.3) - std::atanh(0.1));
    CHECK(std::abs(elements(tensor(result, "lse"))[0] - (std::log(2.0) - 2 * d)) <= 1e-5);
    const Run generated = compute("hyperbolic-attention",
                                  {"--sequence-length", "16", "--heads", "2", "--dim", "8", "--causal", "--json"});
    REQUIRE(generated.status == 0);
    CHECK(*generated.json().find("shapes")->find("output") == attend::Json::array().push(1).push(2).push(16).push(8));
    check_error(compute("hyperbolic-attention", {"--sequence-length", "4", "--set", "curvature=1"}), 2,
                {"curvature", "1"});
}

TEST_CASE("extra: rules route to the mechanisms of the plugin, to a graph's only if there is one") {
    const Folder folder;
    const std::string config = folder.write("c.json", R"({"version": 1, "rules": [
        {"condition": "graph and numEdges == 3", "mechanism": "graph-attention", "options": {"version": "gat"}},
        {"condition": "seqLen == 16", "mechanism": "graph-attention"},
        {"condition": "default", "mechanism": "hyperbolic-attention"}]})");
    const auto chosen = [&](std::vector<std::string> words) {
        words.insert(words.begin(), {"compute", "auto", "--config", config, "--plugin-dir", extra_plugins, "--json"});
        const Run run = run_attend(words);
        INFO(run.err);
        REQUIRE(run.status == 0);
        return run.json().find("mechanism")->as_string();
    };
    CHECK(chosen({"--sequence-length", "16"}) == "hyperbolic-attention");
    const std::string file = folder / "in.safetensors";
    save(file,
         {{"query", floats({4, 2}, features)}, {"input.edges", ints({2, 3}, {2, 1, 0, 1, 3, 1}, attend::DType::i32)}});
    CHECK(chosen({"--input", file}) == "graph-attention");
    save(file, {{"query", floats({4, 2}, features)},
                {"input.row_ptr", ints({5}, {0, 0, 2, 2, 3}, attend::DType::i64)},
                {"input.col_idx", ints({3}, {0, 2, 1}, attend::DType::i64)}});
    CHECK(chosen({"--input", file}) == "graph-attention");
}

TEST_CASE("extra: recommend by the hierarchy or the graph of a request") {
    const Folder folder;
    const std::string config = folder.write("c.json", R"({"version": 1, "rules": [
        {"condition": "seqLen > 32768", "mechanism": "longformer-attention"},
        {"condition": "seqLen > 8192", "mechanism": "linear-attention"},
        {"condition": "hierarchical", "mechanism": "hyperbolic-attention"},
        {"condition": "graph", "mechanism": "graph-attention"},
        {"condition": "moe", "mechanism": "moe-attention"},
        {"condition": "default", "mechanism": "flash-attention-v2"}]})");
    const auto first = [&](const std::string& length, const std::vector<std::string>& more) {
        std::vector<std::string> words{"recommend",   "--config",          config, "--plugin-dir",
                                       extra_plugins, "--sequence-length", length, "--json"};
        words.insert(words.end(), more.begin(), more.end());
        const Run run = run_attend(words);
        INFO(run.err);
        REQUIRE(run.status == 0);
        return run.json().find("selected")->as_string();
    };
    CHECK(first("16384", {}) == "linear-attention");
    CHECK(first("32769", {}) == "longformer-attention");
    CHECK(first("100", {"--hierarchical"}) == "hyperbolic-attention");
    CHECK(first("100", {"--graph"}) == "graph-attention");
    CHECK(first("100", {"--hierarchical", "--graph"}) == "hyperbolic-attention");
    CHECK(first("100", {"--moe"}) == "moe-attention");
    CHECK(first("100", {}) == "flash-attention-v2");
}
