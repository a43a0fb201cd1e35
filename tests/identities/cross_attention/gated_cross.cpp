// SPDX-License-Identifier: Apache-2.0
// Identities of gated-cross-attention.
#include "identities/cross_attention/module.hpp"

namespace {

using namespace identities;
constexpr const char* gated = "gated-cross-attention";

// A module call: text of E features, T media of n tokens.
struct Module {
    std::int64_t batch, length, width, media, tokens, media_width, heads, head_dim, mult;
    ForwardInputs inputs;
    NamedValues options;

    explicit Module(Random& random, bool channel = false) {
        batch = 1 + random.below(2), length = 3 + random.below(30), width = 4 + random.below(20);
        media = 1 + random.below(4), tokens = 1 + random.below(7), media_width = 2 + random.below(12);
        heads = 1 + random.below(3), head_dim = 1 + random.below(9), mult = 1 + random.below(3);
        inputs.query = normal(random, {batch, length, width});
        inputs.key = normal(random, {batch, media, tokens, media_width});
        std::vector<std::int64_t> times;
        for (std::int64_t b = 0; b < batch; ++b) {
            std::int64_t now = random.below(2);
            for (std::int64_t i = 0; i < length; ++i) times.push_back(now += random.below(3) == 0 && now < media);
        }
        inputs.extra.emplace_back("text_time", ints({batch, length}, times));
        Weights w;
        const std::int64_t inner = heads * head_dim, gates = channel ? width : 1;
        w.norm(random, "norm", width);
        w.random(random, "wq", {inner, width});
        w.random(random, "wkv", {2 * inner, media_width});
        w.random(random, "wo", {width, inner});
        w.random(random, "attn_gate", {gates}, 1.0f);
        w.norm(random, "ffn_norm", width);
        w.random(random, "w1", {mult * width, width});
        w.random(random, "w2", {width, mult * width});
        w.random(random, "ffn_gate", {gates}, 1.0f);
        inputs.weights = w.list;
        options = {{"heads", heads}, {"head_dim", head_dim}, {"ffn_mult", mult}};
        if (channel) options.emplace_back("gate_shape", "channel");
    }
    void set(const char* name, Tensor tensor) {
        for (auto& [known, weight] : inputs.weights)
            if (known == name) weight = tensor;
    }
    void without_ffn() {
        options.pop_back();
        options.emplace_back("ffn", false);
        std::erase_if(inputs.weights, [](const auto& weight) {
            return weight.first.starts_with("ffn") || weight.first == "w1" || weight.first == "w2";
        });
    }
    std::int64_t time(std::int64_t b, std::int64_t i) const {
        return inputs.extra[0].second.as<const std::int32_t>()[b * length + i];
    }
    Tensor output(NamedValues extra = {}) const {
        NamedValues all = options;
        all.insert(all.end(), extra.begin(), extra.end());
        return run(service(), inputs, gated, all).output;
    }
};

void on_modules(const std::function<void(Random&, Module&)>& body, bool channel = false) {
    for (std::uint64_t round = 0; round < 5; ++round) {
        Random random(round + 40);
        Module module(random, channel);
        INFO("round " << round);
        body(random, module);
    }
}

Matrix formula(const Module& module, std::int64_t b, const std::string& mask, const std::string& activation) {
    const Weights w{module.inputs.weights};
    const Matrix x = matrix(module.inputs.query, b), media = matrix(*module.inputs.key, b);
    const Matrix kv = linear(media, matrix(*w.find("wkv")));
    const std::int64_t inner = module.heads * module.head_dim;
    Matrix k(kv.rows, inner), v(kv.rows, inner);
    for (std::int64_t j = 0; j < kv.rows; ++j)
        for (std::int64_t c = 0; c < inner; ++c) k(j, c) = kv(j, c), v(j, c) = kv(j, inner + c);
    const Matrix q = linear(layer_norm(x, w.vector("norm.gamma"), w.vector("norm.beta")), matrix(*w.find("wq")));
    const Matrix a = linear(attention(q, k, v, module.heads,
                                      [&](std::int64_t i, std::int64_t j) {
                                          const std::int64_t m = j / module.tokens + 1, t = module.time(b, i);
                                          return mask == "none" || (mask == "immediate" ? t == m : t >= m);
                                      }),
                            matrix(*w.find("wo")));
    const auto gate = [&](const char* name, std::int64_t c) {
        const std::vector<double> g = w.vector(name);
        return std::tanh(g[g.size() == 1 ? 0 : static_cast<std::size_t>(c)]);
    };
    Matrix y = x;
    for (std::int64_t i = 0; i < y.rows; ++i)
        for (std::int64_t c = 0; c < y.cols; ++c) y(i, c) += gate("attn_gate", c) * a(i, c);
    const auto act = [&](double t) { return activation == "gelu" ? gelu_erf(t) : std::max(t, 0.0) * std::max(t, 0.0); };
    const Matrix middle =
        each(linear(layer_norm(y, w.vector("ffn_norm.gamma"), w.vector("ffn_norm.beta")), matrix(*w.find("w1"))), act);
    const Matrix f = linear(middle, matrix(*w.find("w2")));
    for (std::int64_t i = 0; i < y.rows; ++i)
        for (std::int64_t c = 0; c < y.cols; ++c) y(i, c) += gate("ffn_gate", c) * f(i, c);
    return y;
}

// A core call with times, media of n tokens and a gate.
ForwardInputs core(Random& random, const Shape& shape, std::int64_t media, float gate) {
    ForwardInputs inputs = make_inputs(random, shape);
    std::vector<std::int64_t> times;
    for (std::int64_t b = 0; b < shape.batch; ++b)
        for (std::int64_t i = 0; i < shape.q_len; ++i) times.push_back(i * (media + 1) / shape.q_len);
    inputs.extra.emplace_back("text_time", ints({shape.batch, shape.q_len}, times));
    inputs.extra.emplace_back("residual", normal(random, {shape.batch, shape.heads, shape.q_len, shape.value_dim}));
    inputs.weights.emplace_back("attn_gate", filled({1}, gate));
    return inputs;
}

}  // namespace

TEST_CASE("gated-cross-attention: module formula") {
    for (const bool channel : {false, true})
        on_modules(
            [](Random&, Module& module) {
                for (const char* mask : {"immediate", "previous", "none"})
                    for (const char* activation : {"gelu", "sqrelu"}) {
                        INFO(mask << ", " << activation);
                        const Tensor got = module.output({{"media_mask", mask}, {"activation", activation}});
                        for (std::int64_t b = 0; b < module.batch; ++b)
                            CHECK(agree(got, b, formula(module, b, mask, activation)));
                    }
            },
            channel);
}

TEST_CASE("gated-cross-attention: flat media") {
    on_modules([](Random&, Module& module) {
        const Tensor expected = module.output();
        Module flat = module;
        flat.inputs.key =
            module.inputs.key->view({module.batch, module.media * module.tokens, module.media_width},
                                    {module.media * module.tokens * module.media_width, module.media_width, 1});
        CHECK(same_bits(flat.output({{"tokens_per_media", module.tokens}}), expected));
        std::vector<std::int64_t> index;
        for (std::int64_t b = 0; b < module.batch; ++b)
            for (std::int64_t j = 0; j < module.media * module.tokens; ++j) index.push_back(j / module.tokens + 1);
        flat.inputs.extra.emplace_back("media_index", ints({module.batch, module.media * module.tokens}, index));
        CHECK(agree(flat.output(), expected));
        // Media whose tokens do not follow each other in memory.
        Module apart = module;
        Tensor room = Tensor::allocate(attend::DType::f32, {module.inputs.key->size() * 2}).value();
        const std::int64_t step = 2 * module.tokens * module.media_width;
        Tensor view = room.view(module.inputs.key->shape, {module.media * step, step, module.media_width, 1});
        for (std::int64_t b = 0; b < module.batch; ++b)
            for (std::int64_t t = 0; t < module.media; ++t)
                for (std::int64_t n = 0; n < module.tokens; ++n)
                    for (std::int64_t c = 0; c < module.media_width; ++c)
                        at(view, b, t, n, c) = at(*module.inputs.key, b, t, n, c);
        apart.inputs.key = view;
        CHECK(agree(apart.output(), expected));
    });
}

TEST_CASE("gated-cross-attention: closed gates") {
    on_modules([](Random&, Module& module) {
        module.set("attn_gate", filled({1}, 0.0f));
        module.set("ffn_gate", filled({1}, 0.0f));
        CHECK(same_bits(module.output(), module.inputs.query));
    });
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = core(random, shape, 1, 0.0f);
        CHECK(same_bits(run(service(), inputs, gated, {{"tokens_per_media", shape.kv_len}}).output,
                        inputs.extra[1].second));
        ForwardInputs plain = make_inputs(random, {1, 2, 1, 5, 7, 6, 6});
        CHECK(same_bits(run(service(), plain, gated).output, plain.query));
    });
}

TEST_CASE("gated-cross-attention: odd in the gate") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = core(random, shape, 1, 0.7f);
        const NamedValues options{{"tokens_per_media", shape.kv_len}};
        const std::vector<float> x = values(inputs.extra[1].second),
                                 plus = values(run(service(), inputs, gated, options).output);
        inputs.weights[0].second = filled({1}, -0.7f);
        const std::vector<float> minus = values(run(service(), inputs, gated, options).output);
        std::vector<float> mirrored(x.size());
        for (std::size_t at = 0; at < x.size(); ++at) mirrored[at] = x[at] - (minus[at] - x[at]);
        CHECK(agree(plus, mirrored));
    });
}

TEST_CASE("gated-cross-attention: open gate") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = core(random, shape, 1, 20.0f);
        const std::vector<float> x = values(inputs.extra[1].second),
                                 a = values(run(service(), make_inputs(random, shape), "cross-attention").output);
        ForwardInputs plain = inputs;
        plain.extra.clear(), plain.weights.clear();
        const std::vector<float> attended = values(run(service(), plain, "cross-attention").output);
        std::vector<float> sum(x.size());
        for (std::size_t at = 0; at < x.size(); ++at) sum[at] = x[at] + attended[at];
        CHECK(agree(values(run(service(), inputs, gated, {{"media_mask", "none"}}).output), sum));
        CHECK(a.size() == sum.size());
    });
}

TEST_CASE("gated-cross-attention: reach of a medium") {
    on_modules([](Random& random, Module& module) {
        const std::int64_t changed = random.below(module.media);
        for (const char* mask : {"immediate", "previous"}) {
            const Tensor before = module.output({{"media_mask", mask}});
            Module other = module;
            other.inputs.key = mapped(*module.inputs.key, [](float x) { return x; });
            for (std::int64_t b = 0; b < module.batch; ++b)
                for (std::int64_t n = 0; n < module.tokens; ++n)
                    for (std::int64_t c = 0; c < module.media_width; ++c)
                        at(*other.inputs.key, b, changed, n, c) = random.normal() * 3.0f;
            const Tensor after = other.output({{"media_mask", mask}});
            for (std::int64_t b = 0; b < module.batch; ++b)
                for (std::int64_t i = 0; i < module.length; ++i) {
                    const std::int64_t t = module.time(b, i);
                    const bool reached = mask[0] == 'i' ? t == changed + 1 : t >= changed + 1;
                    const bool same = same_bits(take(take(before, 0, {b}), 1, {i}), take(take(after, 0, {b}), 1, {i}));
                    if (!reached) CHECK(same);
                }
        }
    });
}

TEST_CASE("gated-cross-attention: before the first medium") {
    on_modules([](Random&, Module& module) {
        const Tensor whole = module.output();
        Module first = module;
        first.without_ffn();
        const Tensor attended = first.output();
        for (std::int64_t b = 0; b < module.batch; ++b)
            for (std::int64_t i = 0; i < module.length; ++i) {
                if (module.time(b, i) != 0) continue;
                const auto row = [&](const Tensor& tensor) { return take(take(tensor, 0, {b}), 1, {i}); };
                CHECK(same_bits(row(attended), row(module.inputs.query)));
                CHECK_FALSE(same_bits(row(whole), row(module.inputs.query)));
            }
    });
}

TEST_CASE("gated-cross-attention: order inside a medium") {
    on_modules([](Random& random, Module& module) {
        Module other = module;
        other.inputs.key = take(*module.inputs.key, 2, shuffled(random, module.tokens));
        CHECK(agree(other.output(), module.output()));
    });
}

TEST_CASE("gated-cross-attention: one medium") {
    on_modules([](Random&, Module& module) {
        module.inputs.key = take(*module.inputs.key, 1, {0});
        module.media = 1;
        std::vector<std::int64_t> times;
        for (std::int64_t at = 0; at < module.batch * module.length; ++at) times.push_back(at % module.length > 1);
        module.inputs.extra[0].second = ints({module.batch, module.length}, times);
        CHECK(agree(module.output({{"media_mask", "previous"}}), module.output({{"media_mask", "immediate"}})));
    });
}

TEST_CASE("gated-cross-attention: closed feed-forward layer") {
    on_modules([](Random&, Module& module) {
        module.set("ffn_gate", filled({1}, 0.0f));
        const Tensor closed = module.output();
        module.without_ffn();
        CHECK(same_bits(module.output(), closed));
    });
}

TEST_CASE("gated-cross-attention: rejects times") {
    Random random(3);
    ForwardInputs inputs = core(random, {1, 2, 2, 6, 8, 4, 4}, 2, 1.0f);
    inputs.extra[0].second = ints({1, 6}, {0, 1, 1, 0, 2, 2});
    rejects(inputs, gated, {{"tokens_per_media", 4}}, {"text_time[0,3] is 0", "accepted: 1 or more"});
    inputs.extra[0].second = ints({1, 5}, {0, 1, 1, 1, 2});
    rejects(inputs, gated, {{"tokens_per_media", 4}}, {"text_time", "accepted: 6"});
    inputs.extra.erase(inputs.extra.begin());
    for (const char* mask : {"immediate", "previous"})
        rejects(inputs, gated, {{"media_mask", mask}, {"tokens_per_media", 4}}, {"\"media_mask\"", mask, "text_time"});
}

TEST_CASE("gated-cross-attention: rejects media without a size") {
    Random random(4);
    ForwardInputs inputs = core(random, {1, 2, 2, 6, 8, 4, 4}, 2, 1.0f);
    rejects(inputs, gated, {}, {"\"tokens_per_media\" is not given", "media_index"});
    rejects(inputs, gated, {{"tokens_per_media", 3}}, {"\"tokens_per_media\" is 3 for 8", "divisor"});
    Module module(random);
    rejects(module.inputs, gated,
            {{"heads", module.heads},
             {"head_dim", module.head_dim},
             {"ffn_mult", module.mult},
             {"tokens_per_media", module.tokens + 1}},
            {"key"});
    inputs.extra.emplace_back("media_index", ints({1, 8}, {1, 1, 0, 1, 2, 2, 2, 2}));
    rejects(inputs, gated, {}, {"media_index[0,2] is 0", "accepted: 1 or more"});
}

TEST_CASE("gated-cross-attention: rejects gate shapes") {
    Random random(5);
    const ForwardInputs inputs = core(random, {1, 2, 2, 6, 8, 4, 4}, 1, 1.0f);
    rejects(inputs, gated, {{"gate_shape", "channel"}, {"tokens_per_media", 8}},
            {"\"gate_shape\" is channel", "accepted: scalar, head"});
    Module module(random);
    NamedValues options = module.options;
    module.inputs.weights.clear();
    options.emplace_back("form", "projected");
    options.emplace_back("gate_shape", "head");
    rejects(module.inputs, gated, options, {"\"gate_shape\" is head", "accepted: scalar, channel"});
    ForwardInputs wide = make_inputs(random, {1, 2, 2, 6, 8, 4, 5});
    rejects(wide, gated, {}, {"residual"});
}

TEST_CASE("gated-cross-attention: rejects causal and windows") {
    Random random(6);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 6, 8, 4, 4});
    rejects(inputs, gated, {{"causal", true}}, {"causal"});
    rejects(inputs, gated, {{"window_size", 3}}, {"window_size"});
}
