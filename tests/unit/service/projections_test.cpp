// SPDX-License-Identifier: Apache-2.0
// Weights kept by the service: set, get, count, packed imports, and that nothing changes where something does not fit.
#include "support/calls.hpp"

namespace {

using attend::ForwardInputs;
using attend::ForwardOptions;
using attend::NamedTensors;
using attend::Tensor;
using support::normal;
using support::Random;
using support::same_bits;
using support::service;

constexpr std::int64_t width = 24, heads = 3;

ForwardInputs tokens(Random& random) {
    ForwardInputs inputs;
    inputs.query = normal(random, {2, 7, width});
    return inputs;
}
ForwardOptions projected(const char* mechanism = "standard-mha") {
    ForwardOptions options;
    options.mechanism = mechanism;
    options.options = {{"form", "projected"}, {"heads", heads}};
    return options;
}
const Tensor& of(const NamedTensors& list, const std::string& name) {
    for (const auto& [given, tensor] : list)
        if (given == name) return tensor;
    FAIL("no weight " << name);
    return list.front().second;
}
// A service of its own: what it keeps must not reach other tests.
std::unique_ptr<attend::AttentionService> fresh() {
    attend::ServiceSettings settings;
    settings.config = attend::load_default_config().config;
    settings.config.service.threads = 2;
    settings.built_in_dir = std::filesystem::path(ATTEND_BINARY_DIR) / "plugins";
    return std::move(attend::AttentionService::open(std::move(settings))).value();
}

}  // namespace

TEST_CASE("projections: as many numbers as the formula of standard-mha says") {
    Random random(1);
    const auto own = fresh();
    ForwardInputs like = tokens(random);
    CHECK(own->param_count(like, projected()).value() == 4 * width * width + 4 * width);
    ForwardOptions bare = projected();
    bare.options.emplace_back("bias", false);
    bare.options.emplace_back("output_projection", false);
    bare.options.emplace_back("add_bias_kv", true);
    CHECK(own->param_count(like, bare).value() == 3 * width * width + 2 * width);
    like.key = normal(random, {2, 9, 10});
    like.value = normal(random, {2, 9, 14});
    ForwardOptions wide = projected();
    wide.options.emplace_back("kdim", 10);
    wide.options.emplace_back("vdim", 14);
    CHECK(own->param_count(like, wide).value() == 2 * width * width + width * (10 + 14) + 4 * width);
}

TEST_CASE("projections: those in force can be read, and setting them changes nothing") {
    Random random(2);
    const auto own = fresh();
    ForwardInputs inputs = tokens(random);
    const auto before = own->forward(inputs, projected()).value();
    ForwardInputs like = inputs;
    like.weights = own->get_projections(inputs, projected()).value();
    CHECK(like.weights.size() == 8);
    REQUIRE(own->set_projections(like, projected()));
    const auto after = own->forward(inputs, projected()).value();
    CHECK(same_bits(before.output, after.output));
    const NamedTensors again = own->get_projections(inputs, projected()).value();
    for (const auto& [name, tensor] : like.weights) CHECK(same_bits(tensor, of(again, name)));
}

TEST_CASE("projections: calls without weights use the kept ones, others their own") {
    Random random(3);
    const auto own = fresh();
    const ForwardInputs inputs = tokens(random);
    ForwardInputs with = inputs;
    for (const char* name : {"wq", "wk", "wv", "wo"}) with.weights.emplace_back(name, normal(random, {width, width}));
    const auto defaults = own->forward(inputs, projected()).value();
    const auto expected = own->forward(with, projected()).value();
    REQUIRE(own->set_projections(with, projected()));
    // Copies were taken.
    for (auto& [name, tensor] : with.weights) tensor.as<float>()[0] += 1.0f;
    ForwardOptions automatic = projected();
    automatic.options = {{"heads", heads}};
    CHECK(same_bits(own->forward(inputs, projected()).value().output, expected.output));
    CHECK(same_bits(own->forward(inputs, automatic).value().output, expected.output));
    CHECK_FALSE(same_bits(own->forward(with, projected()).value().output, expected.output));
    ForwardInputs core = support::make_inputs(random, {1, 2, 2, 5, 5, 8, 8});
    ForwardOptions plain;
    plain.mechanism = "standard-mha";
    plain.options = {{"form", "core"}};
    CHECK(own->forward(core, plain));
    // Forgotten again.
    REQUIRE(own->set_projections(inputs, projected()));
    CHECK(same_bits(own->forward(inputs, projected()).value().output, defaults.output));
}

TEST_CASE("projections: a shape that does not fit is refused before anything changes") {
    Random random(4);
    const auto own = fresh();
    ForwardInputs good = tokens(random);
    good.weights.emplace_back("wq", normal(random, {width, width}));
    REQUIRE(own->set_projections(good, projected()));
    const auto before = own->get_projections(tokens(random), projected()).value();
    ForwardInputs bad = good;
    bad.weights = {{"wk", normal(random, {width, width})}, {"wv", normal(random, {width, width - 1})}};
    const auto refused = own->set_projections(bad, projected());
    REQUIRE_FALSE(refused);
    INFO(refused.error().message);
    CHECK(refused.error().message.find("\"wv\"") != std::string::npos);
    CHECK(refused.error().message.find("24, 23") != std::string::npos);
    bad.weights = {{"wz", normal(random, {width, width})}};
    CHECK_FALSE(own->set_projections(bad, projected()));
    const auto after = own->get_projections(tokens(random), projected()).value();
    for (const auto& [name, tensor] : before) CHECK(same_bits(tensor, of(after, name)));
}

TEST_CASE("projections: a packed matrix is taken apart, rows of queries, keys, values") {
    Random random(5);
    const auto own = fresh();
    ForwardInputs packed = tokens(random);
    const Tensor weight = normal(random, {3 * width, width}), bias = normal(random, {3 * width});
    packed.weights = {{"in_proj_weight", weight}, {"in_proj_bias", bias}};
    ForwardInputs apart = packed;
    apart.weights.clear();
    const char* names[] = {"q", "k", "v"};
    for (std::int64_t part = 0; part < 3; ++part) {
        apart.weights.emplace_back(std::string("w") + names[part],
                                   weight.view({width, width}, {width, 1}, part * width * width));
        apart.weights.emplace_back(std::string("b") + names[part], bias.view({width}, {1}, part * width));
    }
    const auto expected = own->forward(apart, projected()).value();
    CHECK(same_bits(own->forward(packed, projected()).value().output, expected.output));
    REQUIRE(own->set_projections(packed, projected()));
    ForwardInputs bare = packed;
    bare.weights.clear();
    CHECK(same_bits(own->forward(bare, projected()).value().output, expected.output));
    packed.weights = {{"in_proj_weight", normal(random, {3 * width + 1, width})}};
    const auto refused = own->forward(packed, projected());
    REQUIRE_FALSE(refused);
    CHECK(refused.error().message.find("[3*E,E]") != std::string::npos);
}
