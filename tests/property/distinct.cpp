// SPDX-License-Identifier: Apache-2.0
// No mechanism is another one in disguise: on the same inputs, with default options and seeded default weights, no two
// outputs agree, except where the table below says that they must, and why.
#include <map>
#include <set>

#include "specs/spec.hpp"
#include "support/calls.hpp"

namespace {

using namespace support;
using attend::ForwardInputs;
using attend::Tensor;

struct Equality {
    const char *mechanism, *same_as, *reason;
};
// With as many key heads as query heads, default options and more keys than any default window holds. Each row names one
// mechanism of its class; equality goes on from row to row.
constexpr Equality equalities[] = {
    {"grouped-query-attention", "standard-mha", "groups of one head are full attention"},
    {"bidirectional-self-attention", "standard-mha", "without padding and segments every token sees every token"},
    {"cross-attention", "standard-mha", "the core form is softmax attention over the given keys"},
    {"flash-attention-v2", "standard-mha", "another order of computation of the same function"},
    {"flash-decoding", "causal-self-attention", "with as many queries as keys it is causal attention"},
    {"blockwise-attention", "standard-mha", "pattern full is another order of computation of the same function"},
};

constexpr std::int64_t heads = 4, length = 704, width = 16;

// What a mechanism with another core shape gets in place of query, key and value; made from the same numbers.
ForwardInputs one_key_head(ForwardInputs inputs) {
    for (auto* tensor : {&inputs.key, &inputs.value})
        *tensor = (*tensor)->view({1, 1, length, width}, {length * width, length * width, width, 1});
    return inputs;
}
// Each query and key head twice, for two maps on the values of one.
ForwardInputs doubled_maps(ForwardInputs inputs) {
    const auto twice = [](const attend::Tensor& from) {
        attend::Tensor to = attend::Tensor::allocate(attend::DType::f32, {1, 2 * heads, length, width}).value();
        constexpr std::int64_t head = length * width;
        for (std::int64_t h = 0; h < 2 * heads; ++h)
            std::copy_n(from.as<const float>() + h / 2 * head, head, to.as<float>() + h * head);
        return to;
    };
    inputs.query = twice(inputs.query);
    inputs.key = twice(*inputs.key);
    return inputs;
}
const std::map<std::string, ForwardInputs (*)(ForwardInputs)> input_makers = {
    {"differential-attention", doubled_maps},
    {"multi-query-attention", one_key_head},
};

std::string leader(const std::string& mechanism) {
    for (const Equality& row : equalities)
        if (mechanism == row.mechanism) return leader(row.same_as);
    return mechanism;
}

// Largest difference; outputs of other sizes are as different as can be.
double apart(const std::vector<float>& a, const std::vector<float>& b) { return difference(a, {b.begin(), b.end()}); }

}  // namespace

TEST_CASE("no two mechanisms give the same output unless declared equal") {
    Random random(41);
    const ForwardInputs plain = make_inputs(random, {1, heads, heads, length, length, width, width});
    std::map<std::string, std::vector<float>> outputs;
    for (const auto& mechanism : service().registry()->list()) {
        ForwardInputs inputs = plain;
        if (const auto maker = input_makers.find(mechanism->name); maker != input_makers.end())
            inputs = maker->second(inputs);
        for (const specs::Spec& spec : specs::all())
            if (spec.mechanism == mechanism->name) {
                specs::Numbers numbers(42);
                if (spec.needs) spec.needs(inputs);
                if (spec.more) spec.more(inputs, {}, numbers);
            }
        outputs[mechanism->name] = values(run(service(), inputs, mechanism->name).output);
    }
    for (auto one = outputs.begin(); one != outputs.end(); ++one)
        for (auto other = std::next(one); other != outputs.end(); ++other) {
            const double distance = apart(one->second, other->second);
            INFO(one->first << " and " << other->first << " differ by " << distance);
            if (leader(one->first) == leader(other->first))
                CHECK(distance <= 1e-4);
            else
                CHECK(distance > 1e-4);
        }
}

TEST_CASE("declared equalities speak of mechanisms that exist, once each") {
    std::set<std::string> names, declared;
    for (const auto& mechanism : service().registry()->list()) names.insert(mechanism->name);
    for (const Equality& row : equalities) {
        INFO(row.mechanism << " and " << row.same_as << ": " << row.reason);
        CHECK(names.count(row.mechanism) == 1);
        CHECK(names.count(row.same_as) == 1);
        CHECK(declared.insert(row.mechanism).second);
        CHECK(leader(row.same_as) != row.mechanism);
    }
    for (const auto& [name, maker] : input_makers) CHECK(names.count(name) == 1);
}
