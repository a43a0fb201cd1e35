// SPDX-License-Identifier: Apache-2.0
// Identities of perceiver-attention.
#include "identities/cross_attention/module.hpp"

namespace {

using namespace identities;
constexpr const char* perceiver = "perceiver-attention";

// A module call: N inputs of C features, L latents, and queries if asked for.
struct Module {
    std::int64_t batch, inputs_n, c, latents, cz, queries, cy, cross_heads, self_heads, layers, qk, v, widening;
    ForwardInputs inputs;
    NamedValues options;

    explicit Module(Random& random, bool decodes, bool widths = false) {
        cross_heads = 1 + random.below(3), self_heads = 1 + random.below(3);
        const std::int64_t unit = cross_heads * self_heads;
        batch = 1 + random.below(2), inputs_n = 3 + random.below(40), latents = 1 + random.below(9);
        c = unit * (1 + random.below(4)), cz = unit * (1 + random.below(4)), cy = 2 + random.below(9);
        queries = 1 + random.below(8), layers = random.below(3), widening = 1 + random.below(3);
        qk = widths ? unit * (1 + random.below(4)) : 0, v = widths ? unit * (1 + random.below(4)) : 0;
        inputs.key = normal(random, {batch, inputs_n, c});
        if (decodes) inputs.query = normal(random, {batch, queries, cy});
        Weights w;
        w.random(random, "latents", {latents, cz}, 1.0f);
        block(random, w, "e", cz, c);
        for (std::int64_t t = 1; t <= layers; ++t) block(random, w, "s_" + std::to_string(t), cz, cz);
        if (decodes) block(random, w, "d", cy, cz);
        inputs.weights = w.list;
        options = {{"cross_heads", cross_heads},
                   {"self_heads", self_heads},
                   {"self_layers", layers},
                   {"cross_widening", widening},
                   {"self_widening", widening}};
        if (widths) options.emplace_back("qk_channels", qk), options.emplace_back("v_channels", v);
    }
    void block(Random& random, Weights& w, const std::string& name, std::int64_t z, std::int64_t x) const {
        const std::int64_t key = qk > 0 ? qk : x, value = v > 0 ? v : key, hidden = widening * z;
        w.norm(random, name + ".norm_q", z);
        if (name[0] != 's') w.norm(random, name + ".norm_kv", x);
        w.norm(random, name + ".norm_mlp", z);
        w.random(random, name + ".wq", {key, z}), w.random(random, name + ".wk", {key, x});
        w.random(random, name + ".wv", {value, x}), w.random(random, name + ".wo", {z, value});
        w.random(random, name + ".bq", {key}), w.random(random, name + ".bk", {key});
        w.random(random, name + ".bv", {value}), w.random(random, name + ".bo", {z});
        w.random(random, name + ".w1", {hidden, z}), w.random(random, name + ".b1", {hidden});
        w.random(random, name + ".w2", {z, hidden}), w.random(random, name + ".b2", {z});
    }
    Tensor output(const NamedValues& extra = {}) const {
        NamedValues all = options;
        all.insert(all.end(), extra.begin(), extra.end());
        return run(service(), inputs, perceiver, all).output;
    }
};

Matrix block(const Weights& w, const std::string& name, const Matrix& z, const Matrix& x, std::int64_t heads,
             bool residual, bool exact, std::int64_t length) {
    const auto norm = [&](const char* which, const Matrix& rows) {
        return layer_norm(rows, w.vector(name + "." + which + ".gamma"), w.vector(name + "." + which + ".beta"));
    };
    const auto layer = [&](const char* weight, const char* bias, const Matrix& rows) {
        return linear(rows, matrix(*w.find(name + "." + weight)), w.vector(name + "." + bias));
    };
    const Matrix read = norm(name[0] == 's' ? "norm_q" : "norm_kv", x), asked = norm("norm_q", z);
    Matrix a = layer("wo", "bo",
                     attention(layer("wq", "bq", asked), layer("wk", "bk", read), layer("wv", "bv", read), heads,
                               [length](std::int64_t, std::int64_t j) { return j < length; }));
    for (std::size_t at = 0; residual && at < a.data.size(); ++at) a.data[at] += z.data[at];
    const Matrix m = layer("w2", "b2", each(layer("w1", "b1", norm("norm_mlp", a)), exact ? gelu_erf : gelu_tanh));
    for (std::size_t at = 0; at < a.data.size(); ++at) a.data[at] += m.data[at];
    return a;
}

void on_modules(bool decodes, const std::function<void(Random&, Module&)>& body) {
    for (std::uint64_t round = 0; round < 5; ++round) {
        Random random(round + 90);
        Module module(random, decodes, round % 2 == 1);
        INFO("round " << round);
        body(random, module);
    }
}

// The core form with latents of its own.
ForwardInputs core(Random& random, const Shape& shape, std::int64_t latents, bool queries = true) {
    ForwardInputs inputs = make_inputs(random, shape);
    inputs.weights = {{"latent_query", normal(random, {shape.heads, latents, shape.head_dim})}};
    if (queries) inputs.weights.emplace_back("latent_key", normal(random, {shape.heads, latents, shape.head_dim}));
    if (!queries) inputs.query = Tensor{};
    return inputs;
}

const Limits limits{.group = 2, .square = false, .same_width = false};

}  // namespace

TEST_CASE("perceiver-attention: module formula") {
    for (const bool decodes : {false, true})
        on_modules(decodes, [&](Random&, Module& module) {
            const Weights w{module.inputs.weights};
            if (module.batch == 2) module.inputs.key_lengths = lengths({module.inputs_n / 2, module.inputs_n});
            for (const bool exact : {false, true})
                for (const bool residual : {true, false}) {
                    const std::int64_t blocks = exact && module.layers > 0 ? 2 : 1;
                    NamedValues options{
                        {"gelu", exact ? "erf" : "tanh"}, {"encoder_residual", residual}, {"blocks", blocks}};
                    if (decodes) options.emplace_back("decoder_residual", !residual);
                    const Tensor got = module.output(options);
                    for (std::int64_t b = 0; b < module.batch; ++b) {
                        const std::int64_t length =
                            module.inputs.key_lengths && b == 0 ? module.inputs_n / 2 : module.inputs_n;
                        Matrix z = block(w, "e", matrix(*w.find("latents")), matrix(*module.inputs.key, b),
                                         module.cross_heads, residual, exact, length);
                        for (std::int64_t t = 0; t < blocks * module.layers; ++t)
                            z = block(w, "s_" + std::to_string(t % module.layers + 1), z, z, module.self_heads, true,
                                      exact, z.rows);
                        if (decodes)
                            z = block(w, "d", matrix(module.inputs.query, b), z, module.cross_heads, !residual, exact,
                                      z.rows);
                        CHECK(agree(got, b, z, 2e-5));
                    }
                }
        });
}

TEST_CASE("perceiver-attention: order of inputs") {
    on_modules(true, [](Random& random, Module& module) {
        const Tensor expected = module.output();
        Module other = module;
        other.inputs.key = take(*module.inputs.key, 1, shuffled(random, module.inputs_n));
        CHECK(agree(other.output(), expected));
        other.inputs.key = joined(*module.inputs.key, *module.inputs.key, 1);
        CHECK(agree(other.output(), expected));
    });
    on_random_shapes(limits, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = core(random, shape, 5);
        ForwardInputs other = inputs;
        const std::vector<std::int64_t> order = shuffled(random, shape.kv_len);
        other.key = take(*inputs.key, 2, order), other.value = take(*inputs.value, 2, order);
        CHECK(agree(forward(inputs, perceiver), forward(other, perceiver)));
    });
}

TEST_CASE("perceiver-attention: parts of the inputs") {
    on_random_shapes(limits, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = core(random, shape, 6, false);
        const std::int64_t cut = 1 + random.below(shape.kv_len - 1);
        ForwardInputs a = inputs, b = inputs;
        a.key = take(*inputs.key, 2, range(0, cut)), a.value = take(*inputs.value, 2, range(0, cut));
        b.key = take(*inputs.key, 2, range(cut, shape.kv_len)),
        b.value = take(*inputs.value, 2, range(cut, shape.kv_len));
        const ForwardResult whole = forward(inputs, perceiver);
        const Partial parts = merged(forward(a, perceiver), forward(b, perceiver));
        CHECK(agree(values(whole.output), parts.output));
        CHECK(agree(values(*whole.lse), parts.lse));
    });
}

TEST_CASE("perceiver-attention: equal latents") {
    on_modules(false, [](Random&, Module& module) {
        Tensor& latents = module.inputs.weights[0].second;
        latents = joined(latents, take(latents, 0, {0}), 0);
        const Tensor got = module.output();
        CHECK(agree(take(got, 1, {0}), take(got, 1, {module.latents})));
    });
}

TEST_CASE("perceiver-attention: one latent") {
    on_random_shapes(limits, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = core(random, shape, 1);
        ForwardInputs encode = inputs;
        encode.query = Tensor{};
        encode.weights.pop_back();
        const Tensor read = forward(encode, perceiver).output;
        CHECK(agree(forward(inputs, perceiver).output,
                    take(read, 2, std::vector<std::int64_t>(static_cast<std::size_t>(shape.q_len), 0))));
    });
}

TEST_CASE("perceiver-attention: independent queries") {
    on_modules(true, [](Random& random, Module& module) {
        const Tensor all = module.output();
        const std::int64_t some = 1 + random.below(module.queries);
        Module few = module;
        few.inputs.query = take(module.inputs.query, 1, range(0, some));
        CHECK(agree(few.output(), take(all, 1, range(0, some))));
    });
    on_random_shapes(limits, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = core(random, shape, 4);
        ForwardInputs few = inputs;
        few.query = take(inputs.query, 2, {shape.q_len - 1});
        CHECK(agree(forward(few, perceiver).output, take(forward(inputs, perceiver).output, 2, {shape.q_len - 1})));
    });
}

TEST_CASE("perceiver-attention: hidden inputs") {
    on_modules(false, [](Random&, Module& module) {
        const Tensor expected = module.output();
        Module longer = module;
        longer.inputs.key =
            joined(*module.inputs.key, filled({module.batch, 3, module.c}, std::numeric_limits<float>::quiet_NaN()), 1);
        longer.inputs.key_lengths =
            lengths(std::vector<std::int64_t>(static_cast<std::size_t>(module.batch), module.inputs_n));
        CHECK(agree(longer.output(), expected));
    });
}

TEST_CASE("perceiver-attention: silent blocks") {
    on_modules(false, [](Random&, Module& module) {
        for (auto& [name, tensor] : module.inputs.weights)
            for (const char* part : {".wo", ".bo", ".w2", ".b2"})
                if (name.ends_with(part)) tensor = filled(tensor.shape, 0.0f);
        const Tensor got = module.output();
        for (std::int64_t b = 0; b < module.batch; ++b)
            CHECK(values(take(got, 0, {b})) == values(module.inputs.weights[0].second));
    });
}

TEST_CASE("perceiver-attention: no inputs") {
    on_modules(true, [](Random&, Module& module) {
        module.inputs.key = take(*module.inputs.key, 1, {});
        for (auto& [name, tensor] : module.inputs.weights)
            if (name.ends_with(".w2") || name.ends_with(".b2")) tensor = filled(tensor.shape, 0.0f);
        Module encoder = module;
        encoder.inputs.query = Tensor{};
        std::erase_if(encoder.inputs.weights,
                      [](const auto& w) { return w.first.starts_with("d.") || w.first.starts_with("s_"); });
        encoder.options[2].second = 0;
        const Tensor got = encoder.output({{"encoder_residual", false}});
        const Weights w{module.inputs.weights};
        for (std::int64_t at = 0; at < got.size(); ++at)
            CHECK(static_cast<double>(got.as<const float>()[at]) ==
                  w.vector("e.bo")[static_cast<std::size_t>(at % module.cz)]);
        for (const float x : values(module.output())) CHECK(std::isfinite(x));
    });
}

TEST_CASE("perceiver-attention: repeated self layers") {
    on_modules(true, [](Random&, Module& module) {
        if (module.layers == 0) return;
        Module unrolled = module;
        for (const auto& [name, tensor] : module.inputs.weights)
            if (name.starts_with("s_")) {
                const std::size_t dot = name.find('.');
                const std::int64_t number = std::stoll(name.substr(2, dot - 2)) + module.layers;
                unrolled.inputs.weights.emplace_back("s_" + std::to_string(number) + name.substr(dot), tensor);
            }
        unrolled.options[2].second = 2 * module.layers;
        CHECK(same_bits(module.output({{"blocks", 2}}), unrolled.output()));
    });
}

TEST_CASE("perceiver-attention: weights left out") {
    on_modules(true, [](Random&, Module& module) {
        module.inputs.weights.clear();
        module.options.emplace_back("form", "projected");
        module.options.emplace_back("num_latents", module.latents);
        module.options.emplace_back("latent_dim", module.cz);
        const Tensor once = module.output(), again = module.output(), other = module.output({{"weight_seed", 1}});
        CHECK(once.shape == std::vector<std::int64_t>{module.batch, module.queries, module.cy});
        CHECK(same_bits(once, again));
        CHECK_FALSE(same_bits(once, other));
    });
    Random random(8);
    ForwardInputs inputs = make_inputs(random, {1, 4, 2, 3, 9, 4, 5});
    inputs.query = Tensor{};
    CHECK(forward(inputs, perceiver).output.shape == std::vector<std::int64_t>{1, 2, 512, 5});
    CHECK(forward(inputs, perceiver, {{"num_latents", 7}, {"heads", 4}}).output.shape ==
          std::vector<std::int64_t>{1, 4, 7, 5});
}

TEST_CASE("perceiver-attention: rejects widths") {
    Random random(1);
    Module module(random, false);
    module.inputs.weights.clear();
    NamedValues options{
        {"form", "projected"}, {"cross_heads", 3}, {"qk_channels", 8}, {"num_latents", 2}, {"latent_dim", 6}};
    rejects(module.inputs, perceiver, options, {"the width 8 of the encoder", "3 heads"});
    options = {{"form", "projected"}, {"v_channels", 4},  {"qk_channels", 8}, {"self_layers", 1},
               {"self_heads", 8},     {"num_latents", 2}, {"latent_dim", 6}};
    rejects(module.inputs, perceiver, options, {"the width 4 of the self layers", "8 heads"});
}

TEST_CASE("perceiver-attention: rejects queries without a decoder") {
    Random random(2);
    Module module(random, true);
    std::erase_if(module.inputs.weights, [](const auto& weight) { return weight.first.starts_with("d."); });
    rejects(module.inputs, perceiver, module.options, {"decoder", "accepted: weights d.*"});
}

TEST_CASE("perceiver-attention: rejects causal, windows and dropout in the module") {
    Random random(3);
    const ForwardInputs inputs = core(random, {1, 2, 2, 4, 6, 4, 4}, 3);
    rejects(inputs, perceiver, {{"causal", true}}, {"causal"});
    rejects(inputs, perceiver, {{"window_left", 3}}, {"window_left"});
    Module module(random, false);
    NamedValues options = module.options;
    options.emplace_back("dropout", 0.5);
    rejects(module.inputs, perceiver, options, {"dropout", "projected form"});
    for (const bool scores : {false, true}) {
        attend::ForwardOptions call;
        call.mechanism = perceiver, call.options = module.options, call.lse = !scores, call.scores = scores;
        const auto refused = service().forward(module.inputs, call);
        REQUIRE_FALSE(refused);
        CHECK(refused.error().code == attend::ErrorCode::unsupported);
    }
}

TEST_CASE("perceiver-attention: rejects latents and weights") {
    Random random(4);
    ForwardInputs inputs = core(random, {1, 2, 2, 4, 6, 4, 4}, 3);
    rejects(inputs, perceiver, {{"num_latents", 0}}, {"\"num_latents\"", "accepted"});
    rejects(inputs, perceiver, {{"num_latents", 4}}, {"latent_query", "has 3 at axis 1", "accepted: 4"});
    rejects(inputs, perceiver, {{"heads", 4}}, {"heads"});
    inputs.weights[0].second = normal(random, {2, 0, 4});
    inputs.weights.pop_back();
    inputs.query = Tensor{};
    rejects(inputs, perceiver, {}, {"no latents", "at least 1"});
    inputs.key.reset();
    rejects(inputs, perceiver, {}, {"key is missing"});
    Module module(random, false);
    module.inputs.weights.emplace_back("s_9.wq", normal(random, {4, 4}));
    rejects(module.inputs, perceiver, module.options, {"s_9.wq", "self_layers is"});
}
