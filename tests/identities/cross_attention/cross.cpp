// SPDX-License-Identifier: Apache-2.0
// Identities of cross-attention.
#include "identities/identities.hpp"

namespace {

using namespace identities;
constexpr const char* cross = "cross-attention";

// A projected call with weights of its own: x [B,Nq,E], context [B,Nk,C].
struct Module {
    std::int64_t batch, heads, width, model, context, queries, keys;
    ForwardInputs inputs;
    NamedValues options;
    explicit Module(Random& random, std::int64_t heads_of_keys = 0) {
        batch = 1 + random.below(2);
        heads = 2 * (1 + random.below(3));
        width = 2 + random.below(12);
        model = heads * width;
        context = 3 + random.below(40);
        queries = 1 + random.below(50);
        keys = 1 + random.below(50);
        const std::int64_t key_heads = heads_of_keys > 0 ? heads_of_keys : heads;
        inputs.query = normal(random, {batch, queries, model});
        inputs.key = normal(random, {batch, keys, context});
        inputs.weights = {{"wq", layer(random, model, model)},
                          {"wk", layer(random, key_heads * width, context)},
                          {"wv", layer(random, key_heads * width, context)},
                          {"wo", layer(random, model, model)},
                          {"bq", normal(random, {model})},
                          {"bk", normal(random, {key_heads * width})},
                          {"bv", normal(random, {key_heads * width})},
                          {"bo", normal(random, {model})}};
        options = {{"heads", heads}, {"kv_heads", key_heads}, {"key_dim", context}};
    }
    const Tensor& weight(const char* name) const {
        for (const auto& [key, tensor] : inputs.weights)
            if (key == name) return tensor;
        std::abort();
    }
    void set(const char* name, const Tensor& to) {
        for (auto& [key, tensor] : inputs.weights)
            if (key == name) tensor = to;
    }
};

void repeat(const std::function<void(Random&)>& body) {
    for (std::uint64_t seed = 1; seed <= 4; ++seed) {
        Random random(seed);
        INFO("seed " << seed);
        body(random);
    }
}

}  // namespace

TEST_CASE("cross-attention: own context") {
    repeat([](Random& random) {
        Module module(random);
        module.inputs.key = module.inputs.query;
        module.set("wk", layer(random, module.model, module.model));
        module.set("wv", layer(random, module.model, module.model));
        const ForwardResult got = forward(module.inputs, cross, {{"heads", module.heads}});
        CHECK(agree(got, forward(module.inputs, "standard-mha", {{"heads", module.heads}})));
        const ForwardInputs core = make_inputs(random, {2, 3, 3, 20, 31, 8, 8});
        CHECK(agree(forward(core, cross), forward(core, "standard-mha")));
    });
}

TEST_CASE("cross-attention: one context token") {
    repeat([](Random& random) {
        Module module(random);
        module.inputs.key = take(*module.inputs.key, 1, {0});
        const ForwardResult got = forward(module.inputs, cross, module.options);
        const Tensor value = linear(*module.inputs.key, module.weight("wv"), &module.weight("bv"));
        const Tensor row = linear(value, module.weight("wo"), &module.weight("bo"));
        CHECK(agree(got.output, take(row, 1, std::vector<std::int64_t>(static_cast<std::size_t>(module.queries), 0))));
    });
}

TEST_CASE("cross-attention: context permutation and repetition") {
    repeat([](Random& random) {
        Module module(random, 2);
        const ForwardResult once = forward(module.inputs, cross, module.options);
        const Tensor context = *module.inputs.key;
        module.inputs.key = take(context, 1, shuffled(random, module.keys));
        CHECK(agree(forward(module.inputs, cross, module.options), once));
        module.inputs.key = context;
        for (const int copies : {2, 3, 4}) {
            module.inputs.key = joined(*module.inputs.key, context, 1);
            const ForwardResult many = forward(module.inputs, cross, module.options);
            CHECK(agree(many.output, once.output));
            const auto more = static_cast<float>(std::log(static_cast<double>(copies)));
            CHECK(agree(*many.lse, mapped(*once.lse, [more](float x) { return x + more; })));
        }
    });
}

TEST_CASE("cross-attention: independent rows") {
    repeat([](Random& random) {
        Module module(random);
        const ForwardResult whole = forward(module.inputs, cross, module.options);
        const Tensor x = module.inputs.query;
        for (std::int64_t first = 0; first < module.queries;) {
            const std::int64_t end = std::min(first + 1 + (first % 2 == 0 ? 0 : random.below(9)), module.queries);
            module.inputs.query = take(x, 1, range(first, end));
            const ForwardResult part = forward(module.inputs, cross, module.options);
            CHECK(agree(part.output, take(whole.output, 1, range(first, end))));
            CHECK(agree(*part.lse, take(*whole.lse, 2, range(first, end))));
            first = end;
        }
    });
}

TEST_CASE("cross-attention: inert keys") {
    repeat([](Random& random) {
        Module module(random);
        const ForwardResult before = forward(module.inputs, cross, module.options);
        module.set("bk", normal(random, {module.model}));
        CHECK(agree(forward(module.inputs, cross, module.options).output, before.output));
        const std::int64_t valid = 1 + random.below(module.keys);
        module.inputs.key_lengths = lengths(std::vector<std::int64_t>(static_cast<std::size_t>(module.batch), valid));
        const ForwardResult clean = forward(module.inputs, cross, module.options);
        Tensor context = take(*module.inputs.key, 1, range(0, module.keys));
        for (std::int64_t b = 0; b < module.batch; ++b)
            for (std::int64_t j = valid; j < module.keys; ++j)
                for (std::int64_t e = 0; e < module.context; ++e)
                    at(context, b, j, e) = std::numeric_limits<float>::quiet_NaN();
        module.inputs.key = context;
        CHECK(agree(forward(module.inputs, cross, module.options), clean));
    });
}

TEST_CASE("cross-attention: fully masked context") {
    repeat([](Random& random) {
        Module module(random);
        const std::int64_t hidden = random.below(module.queries);
        module.inputs.mask =
            bools({1, 1, module.queries, module.keys}, [&](const auto& at) { return at[2] != hidden; });
        const ForwardResult result = forward(module.inputs, cross, module.options);
        for (std::int64_t b = 0; b < module.batch; ++b)
            for (std::int64_t e = 0; e < module.model; ++e)
                CHECK(at(result.output, b, hidden, e) == module.weight("bo").as<const float>()[e]);
    });
}

TEST_CASE("cross-attention: rejects causal and windows and widths that do not fit") {
    Random random(1);
    ForwardInputs inputs = make_inputs(random, {1, 2, 2, 5, 7, 8, 8});
    rejects(inputs, cross, {{"causal", true}}, {"causal"});
    rejects(inputs, cross, {{"window_size", 2}}, {"window_size"});
    rejects(inputs, cross, {{"window_left", 2}}, {"window_left"});
    ForwardInputs tokens;
    tokens.query = normal(random, {1, 5, 12});
    rejects(tokens, cross, {{"form", "projected"}, {"heads", 2}}, {"key"});  // no context
    tokens.key = normal(random, {1, 7, 10});
    rejects(tokens, cross, {{"form", "projected"}, {"heads", 5}}, {"head_dim", "12", "5"});
    rejects(tokens, cross, {{"form", "projected"}, {"heads", 2}, {"key_dim", 9}}, {"key", "10", "9"});
    rejects(tokens, cross, {{"form", "projected"}, {"heads", 2}}, {"key", "10", "12"});
    rejects(tokens, cross, {{"form", "projected"}, {"heads", 2}, {"key_dim", 10}, {"query_dim", 11}}, {"query_dim"});
}
