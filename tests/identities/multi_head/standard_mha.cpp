// SPDX-License-Identifier: Apache-2.0
// Identities of standard-mha.
#include "identities/identities.hpp"

namespace {

using namespace identities;
constexpr const char* standard = "standard-mha";

// A projected call with weights and biases of its own.
struct Module {
    std::int64_t batch, heads, width, model, length;
    ForwardInputs inputs;
    NamedValues options;
    explicit Module(Random& random) {
        batch = 1 + random.below(2);
        heads = 1 + random.below(4);
        width = 2 + random.below(8);
        model = heads * width;
        length = 3 + random.below(40);
        inputs.query = normal(random, {batch, length, model});
        for (const char* name : {"wq", "wk", "wv", "wo"})
            inputs.weights.emplace_back(name, layer(random, model, model));
        for (const char* name : {"bq", "bk", "bv", "bo"}) inputs.weights.emplace_back(name, normal(random, {model}));
        options = {{"heads", heads}};
    }
    Tensor& weight(const char* name) {
        for (auto& [key, tensor] : inputs.weights)
            if (key == name) return tensor;
        std::abort();
    }
};

void repeat(const std::function<void(Random&)>& body) {
    for (std::uint64_t seed = 1; seed <= 4; ++seed) {
        Random random(seed);
        INFO("seed " << seed);
        body(random);
    }
}

using Matrix = std::vector<std::vector<double>>;

Matrix random_matrix(Random& random, std::size_t n, double near_identity) {
    Matrix m(n, std::vector<double>(n));
    for (std::size_t i = 0; i < n; ++i)
        for (std::size_t j = 0; j < n; ++j)
            m[i][j] =
                near_identity * static_cast<double>(random.normal()) / static_cast<double>(n) + (i == j ? 1.0 : 0.0);
    return m;
}
// Rows made orthonormal one after the other.
Matrix orthogonal(Random& random, std::size_t n) {
    Matrix m = random_matrix(random, n, 3.0);
    for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t k = 0; k < i; ++k) {
            double dot = 0;
            for (std::size_t j = 0; j < n; ++j) dot += m[i][j] * m[k][j];
            for (std::size_t j = 0; j < n; ++j) m[i][j] -= dot * m[k][j];
        }
        double length = 0;
        for (const double x : m[i]) length += x * x;
        for (double& x : m[i]) x /= std::sqrt(length);
    }
    return m;
}
// Gauss and Jordan, for matrices near the identity.
Matrix inverse(Matrix m) {
    const std::size_t n = m.size();
    Matrix inv(n, std::vector<double>(n, 0.0));
    for (std::size_t i = 0; i < n; ++i) inv[i][i] = 1.0;
    for (std::size_t i = 0; i < n; ++i) {
        const double pivot = m[i][i];
        for (std::size_t j = 0; j < n; ++j) m[i][j] /= pivot, inv[i][j] /= pivot;
        for (std::size_t k = 0; k < n; ++k) {
            if (k == i) continue;
            const double factor = m[k][i];
            for (std::size_t j = 0; j < n; ++j) m[k][j] -= factor * m[i][j], inv[k][j] -= factor * inv[i][j];
        }
    }
    return inv;
}
// Rows [first, first + n) of a weight or bias become m times themselves.
void turn_rows(Tensor& weight, std::int64_t first, const Matrix& m) {
    const std::int64_t columns = weight.rank() == 2 ? weight.shape[1] : 1;
    const Tensor before = mapped(weight, [](float x) { return x; });
    weight = mapped(weight, [](float x) { return x; });
    for (std::size_t i = 0; i < m.size(); ++i)
        for (std::int64_t c = 0; c < columns; ++c) {
            double sum = 0;
            for (std::size_t k = 0; k < m.size(); ++k)
                sum += m[i][k] *
                       static_cast<double>(before.as<float>()[(first + static_cast<std::int64_t>(k)) * columns + c]);
            weight.as<float>()[(first + static_cast<std::int64_t>(i)) * columns + c] = static_cast<float>(sum);
        }
}
// Columns [first, first + n) of a weight are multiplied by m from the right.
void turn_columns(Tensor& weight, std::int64_t first, const Matrix& m) {
    const std::int64_t columns = weight.shape[1];
    const Tensor before = mapped(weight, [](float x) { return x; });
    weight = mapped(weight, [](float x) { return x; });
    for (std::int64_t r = 0; r < weight.shape[0]; ++r)
        for (std::size_t j = 0; j < m.size(); ++j) {
            double sum = 0;
            for (std::size_t k = 0; k < m.size(); ++k)
                sum += static_cast<double>(before.as<float>()[r * columns + first + static_cast<std::int64_t>(k)]) *
                       m[k][j];
            weight.as<float>()[r * columns + first + static_cast<std::int64_t>(j)] = static_cast<float>(sum);
        }
}

}  // namespace

TEST_CASE("standard-mha: key bias is inert") {
    repeat([](Random& random) {
        Module module(random);
        module.weight("bk") = filled({module.model}, 0.0f);
        const ForwardResult before = forward(module.inputs, standard, module.options);
        const Tensor bk = normal(random, {module.model});
        module.weight("bk") = bk;
        const ForwardResult after = forward(module.inputs, standard, module.options);
        CHECK(agree(after.output, before.output));
        const Tensor q = linear(module.inputs.query, module.weight("wq"), &module.weight("bq"));
        Tensor lse = mapped(*before.lse, [](float x) { return x; });
        for (std::int64_t b = 0; b < module.batch; ++b)
            for (std::int64_t h = 0; h < module.heads; ++h)
                for (std::int64_t i = 0; i < module.length; ++i) {
                    double dot = 0;
                    for (std::int64_t d = h * module.width; d < (h + 1) * module.width; ++d)
                        dot += static_cast<double>(at(q, b, i, d)) * static_cast<double>(bk.as<float>()[d]);
                    at(lse, b, h, i) += static_cast<float>(dot / std::sqrt(static_cast<double>(module.width)));
                }
        CHECK(agree(*after.lse, lse));
    });
}

TEST_CASE("standard-mha: zero key") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult plain = forward(inputs, standard),
                            with = forward(inputs, standard, {{"add_zero_attn", true}});
        Tensor output = mapped(plain.output, [](float x) { return x; });
        Tensor lse = mapped(*plain.lse, [](float x) { return x; });
        for (std::int64_t row = 0; row < lse.size(); ++row) {
            const double old = static_cast<double>(lse.as<float>()[row]);
            lse.as<float>()[row] = static_cast<float>(std::log1p(std::exp(old)));
            for (std::int64_t d = 0; d < shape.value_dim; ++d)
                output.as<float>()[row * shape.value_dim + d] *= static_cast<float>(1.0 / (1.0 + std::exp(-old)));
        }
        CHECK(agree(with.output, output));
        CHECK(agree(*with.lse, lse));
    });
}

TEST_CASE("standard-mha: gauge") {
    repeat([](Random& random) {
        Module module(random);
        const ForwardResult before = forward(module.inputs, standard, module.options);
        for (std::int64_t h = 0; h < module.heads; ++h) {
            const std::int64_t first = h * module.width;
            const Matrix r = orthogonal(random, static_cast<std::size_t>(module.width));
            for (const char* name : {"wq", "bq", "wk", "bk"}) turn_rows(module.weight(name), first, r);
            const Matrix a = random_matrix(random, static_cast<std::size_t>(module.width), 0.5);
            for (const char* name : {"wv", "bv"}) turn_rows(module.weight(name), first, a);
            turn_columns(module.weight("wo"), first, inverse(a));
        }
        CHECK(agree(forward(module.inputs, standard, module.options), before));
    });
}

TEST_CASE("standard-mha: value bias shift") {
    repeat([](Random& random) {
        Module module(random);
        module.inputs.key_lengths = lengths(std::vector<std::int64_t>(static_cast<std::size_t>(module.batch), 0));
        module.inputs.key_lengths->as<std::int64_t>()[0] = module.length;  // further items are empty
        const ForwardResult before = forward(module.inputs, standard, module.options);
        const Tensor u = normal(random, {module.model});
        Tensor& bv = module.weight("bv");
        bv = mapped(bv, [](float x) { return x; });
        for (std::int64_t e = 0; e < module.model; ++e) bv.as<float>()[e] += u.as<float>()[e];
        const ForwardResult after = forward(module.inputs, standard, module.options);
        const Tensor shift = linear(u.view({1, 1, module.model}, {module.model, module.model, 1}), module.weight("wo"));
        Tensor expected = mapped(before.output, [](float x) { return x; });
        for (std::int64_t i = 0; i < module.length; ++i)
            for (std::int64_t e = 0; e < module.model; ++e) at(expected, 0, i, e) += at(shift, 0, 0, e);
        CHECK(agree(after.output, expected));
    });
}

TEST_CASE("standard-mha: permutations") {
    on_random_shapes({.group = 2, .square = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult before = forward(inputs, standard);
        ForwardInputs other = inputs;
        const std::vector<std::int64_t> keys = shuffled(random, shape.kv_len), rows = shuffled(random, shape.q_len);
        other.key = take(*inputs.key, 2, keys);
        other.value = take(*inputs.value, 2, keys);
        CHECK(agree(forward(other, standard), before));
        other = inputs;
        other.query = take(inputs.query, 2, rows);
        const ForwardResult after = forward(other, standard);
        CHECK(agree(after.output, take(before.output, 2, rows)));
        CHECK(agree(*after.lse, take(*before.lse, 2, rows)));
    });
}

TEST_CASE("standard-mha: merged splits of the keys") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult whole = forward(inputs, standard);
        const std::vector<std::int64_t> order = shuffled(random, shape.kv_len);
        const auto middle = order.begin() + random.below(shape.kv_len + 1);
        const auto part = [&](std::vector<std::int64_t> which) {
            ForwardInputs some = inputs;
            some.key = take(*inputs.key, 2, which);
            some.value = take(*inputs.value, 2, which);
            return forward(some, standard);
        };
        const Partial both = merged(part({order.begin(), middle}), part({middle, order.end()}));
        CHECK(agree(both.output, values(whole.output)));
        CHECK(agree(both.lse, values(*whole.lse)));
        ForwardInputs one = inputs;
        one.query = take(inputs.query, 2, {0});
        CHECK(agree(forward(one, standard, {{"causal", true}}), forward(one, standard)));
    });
}

TEST_CASE("standard-mha: rejects widths and weights that do not fit") {
    Random random(1);
    ForwardInputs tokens;
    tokens.query = normal(random, {1, 5, 12});
    const NamedValues projected = {{"form", "projected"}, {"heads", 3}};
    const auto with = [&](NamedValues more) {
        more.insert(more.end(), projected.begin(), projected.end());
        return more;
    };
    rejects(tokens, standard, {{"form", "projected"}, {"heads", 5}}, {"12", "5"});
    rejects(tokens, standard, {{"form", "projected"}}, {"heads"});
    rejects(tokens, standard, with({{"model_dim", 16}}), {"model_dim", "16", "12"});
    tokens.key = normal(random, {1, 7, 10});
    rejects(tokens, standard, projected, {"key", "10", "12"});
    rejects(tokens, standard, with({{"kdim", 9}}), {"key", "10", "9"});
    tokens.value = normal(random, {1, 7, 11});
    rejects(tokens, standard, with({{"kdim", 10}, {"vdim", 12}}), {"value", "11", "12"});
    tokens.key.reset();
    tokens.value.reset();
    tokens.weights = {{"wo", normal(random, {12, 12})}};
    rejects(tokens, standard, with({{"output_projection", false}}), {"wo"});
    tokens.weights = {{"bias_k", normal(random, {12})}};
    rejects(tokens, standard, with({{"add_bias_kv", true}}), {"bias_k", "bias_v"});
}
