// SPDX-License-Identifier: Apache-2.0
// Identities of nystrom-attention.
#include "identities/linear/linear.hpp"

namespace {

using namespace identities;
using specs::linear::dot;
using Rows = std::vector<Row>;
constexpr const char* nystrom = "nystrom-attention";

Tensor exact(const ForwardInputs& inputs, NamedValues options = {}) {
    return call(inputs, "standard-mha", std::move(options)).output;
}
// Each row `times` times, one behind the other.
Tensor repeated(const Tensor& tensor, std::int64_t times) {
    std::vector<std::int64_t> which;
    for (std::int64_t n = 0; n < tensor.shape[2] * times; ++n) which.push_back(n / times);
    return take(tensor, 2, which);
}
Rows product(const Rows& a, const Rows& b) {
    Rows out(a.size(), Row(b[0].size(), 0.0));
    for (std::size_t i = 0; i < a.size(); ++i)
        for (std::size_t t = 0; t < b.size(); ++t)
            for (std::size_t j = 0; j < b[0].size(); ++j) out[i][j] += a[i][t] * b[t][j];
    return out;
}
Rows inverse(Rows a) {
    const std::size_t n = a.size();
    Rows out(n, Row(n, 0.0));
    for (std::size_t i = 0; i < n; ++i) out[i][i] = 1;
    for (std::size_t c = 0; c < n; ++c) {
        std::size_t best = c;
        for (std::size_t r = c; r < n; ++r)
            if (std::abs(a[r][c]) > std::abs(a[best][c])) best = r;
        std::swap(a[c], a[best]);
        std::swap(out[c], out[best]);
        const double pivot = a[c][c];
        for (std::size_t j = 0; j < n; ++j) a[c][j] /= pivot, out[c][j] /= pivot;
        for (std::size_t r = 0; r < n; ++r) {
            const double factor = a[r][c];
            for (std::size_t j = 0; r != c && j < n; ++j) a[r][j] -= factor * a[c][j], out[r][j] -= factor * out[c][j];
        }
    }
    return out;
}
// Landmarks that are told apart: rows m of the identity times a factor, each twice, with values that name the segment, so
// that the output is K2 Z K2.
struct Apart {
    ForwardInputs inputs;
    Rows weights;  // K2
};
Apart landmarks_apart(std::int64_t m, double size) {
    Apart made;
    Tensor rows = filled({1, 1, m, m}, 0.0f), names = filled({1, 1, m, m}, 0.0f);
    for (std::int64_t t = 0; t < m; ++t) {
        for (std::int64_t d = 0; d < m; ++d)
            at(rows, 0, 0, t, d) = 0.1f * static_cast<float>((t * 7 + d * 5) % 11) / 11.0f;
        at(rows, 0, 0, t, t) += static_cast<float>(size);
        at(names, 0, 0, t, t) = 1.0f;
    }
    made.inputs.query = repeated(rows, 2);
    made.inputs.key = repeated(rows, 2);
    made.inputs.value = repeated(names, 2);
    const double scale = 1 / std::sqrt(static_cast<double>(m));
    for (std::int64_t i = 0; i < m; ++i) {
        Row row_of;
        double sum = 0;
        for (std::int64_t j = 0; j < m; ++j)
            row_of.push_back(std::exp(scale * dot(row(rows, 0, 0, i), row(rows, 0, 0, j))));
        for (const double x : row_of) sum += x;
        for (double& x : row_of) x /= sum;
        made.weights.push_back(row_of);
    }
    return made;
}
// K2 Z K2 as the service computes it.
Rows from_service(const Apart& of, std::int64_t iterations) {
    const auto m = static_cast<std::int64_t>(of.weights.size());
    const Tensor got = call(of.inputs, nystrom, {{"num_landmarks", m}, {"pinv_iterations", iterations}}).output;
    Rows out;
    for (std::int64_t t = 0; t < m; ++t) out.push_back(row(got, 0, 0, 2 * t));
    return out;
}
// E = I - K2 Z after so many iterations.
Rows residual(const Apart& of, std::int64_t iterations) {
    Rows e = product(from_service(of, iterations), inverse(of.weights));
    for (std::size_t i = 0; i < e.size(); ++i)
        for (std::size_t j = 0; j < e.size(); ++j) e[i][j] = (i == j ? 1.0 : 0.0) - e[i][j];
    return e;
}
double apart(const Rows& a, const Rows& b) {
    double worst = 0;
    for (std::size_t i = 0; i < a.size(); ++i)
        for (std::size_t j = 0; j < a[i].size(); ++j) worst = std::max(worst, std::abs(a[i][j] - b[i][j]));
    return worst;
}

}  // namespace

TEST_CASE("nystrom-attention: as many landmarks as rows") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        CHECK(agree(call(inputs, nystrom, {{"num_landmarks", std::min(shape.q_len, shape.kv_len)}}).output,
                    exact(inputs)));
        // Lengths and masks count, item by item and head by head; other items are not exact.
        std::vector<std::int64_t> lengths(static_cast<std::size_t>(shape.batch), shape.kv_len);
        lengths[0] = 1 + random.below(shape.kv_len);
        inputs.key_lengths = support::lengths(lengths);
        const Tensor got = call(inputs, nystrom, {{"num_landmarks", lengths[0]}}).output;
        CHECK(agree(take(got, 0, {0}), take(exact(inputs), 0, {0})));
    });
}

TEST_CASE("nystrom-attention: rows constant in segments") {
    for (std::uint64_t seed = 1; seed <= 4; ++seed) {
        Random random(seed);
        const std::int64_t m = 3 + random.below(4), times = 2 + random.below(9);
        ForwardInputs few = make_inputs(random, {2, 2, 2, m, m, 16, 5}), inputs = few;
        for (auto* tensor : {&few.query, &*few.key}) *tensor = mapped(*tensor, [](float x) { return 1.5f * x; });
        few.key = few.query;  // then no landmark is a mixture of the others
        inputs.query = repeated(few.query, times);
        inputs.key = repeated(*few.key, times);
        inputs.value = normal(random, {2, 2, m * times, 5});
        CHECK(
            agree(call(inputs, nystrom, {{"num_landmarks", m}, {"pinv_iterations", 40}}).output, exact(inputs), 1e-4));
    }
}

TEST_CASE("nystrom-attention: one iteration") {
    for (const double size : {3.0, 4.0}) {
        const Apart apart_rows = landmarks_apart(5, size);
        for (const std::int64_t before : {0, 1}) {
            const Rows e = residual(apart_rows, before), square = product(e, e), cube = product(square, e),
                       fourth = product(square, square);
            Rows expected = cube;
            for (std::size_t i = 0; i < e.size(); ++i)
                for (std::size_t j = 0; j < e.size(); ++j) expected[i][j] = 0.75 * cube[i][j] + 0.25 * fourth[i][j];
            CHECK(apart(residual(apart_rows, before + 1), expected) <= 1e-4);
        }
    }
}

TEST_CASE("nystrom-attention: converged inverse") {
    const Apart rows = landmarks_apart(5, 4.0);
    CHECK(apart(from_service(rows, 40), rows.weights) <= 1e-5);
    // Values of one: one where the inverse has converged, and within |E_6| after six iterations.
    ForwardInputs ones = rows.inputs;
    std::fill_n(ones.value->as<float>(), ones.value->size(), 1.0f);
    for (const float x : values(call(ones, nystrom, {{"num_landmarks", 5}, {"pinv_iterations", 40}}).output))
        CHECK(std::abs(x - 1.0f) <= 1e-5f);
    for (const std::int64_t iterations : {1, 3, 6}) {
        double norm = 0;
        for (const Row& row : residual(rows, iterations)) {
            double sum = 0;
            for (const double x : row) sum += std::abs(x);
            norm = std::max(norm, sum);
        }
        for (const float x :
             values(call(ones, nystrom, {{"num_landmarks", 5}, {"pinv_iterations", iterations}}).output))
            CHECK(std::abs(static_cast<double>(x) - 1.0) <= norm + 1e-5);
    }
}

TEST_CASE("nystrom-attention: one landmark") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const Tensor got = call(inputs, nystrom, {{"num_landmarks", 1}}).output;
        ForwardInputs mean = inputs;
        mean.query = filled({shape.batch, shape.heads, 1, shape.head_dim}, 0.0f);
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t h = 0; h < shape.heads; ++h)
                for (std::int64_t i = 0; i < shape.q_len; ++i)
                    for (std::int64_t d = 0; d < shape.head_dim; ++d)
                        at(mean.query, b, h, 0, d) += at(inputs.query, b, h, i, d) / static_cast<float>(shape.q_len);
        const Tensor one = exact(mean);
        CHECK(agree(got, take(one, 2, std::vector<std::int64_t>(static_cast<std::size_t>(shape.q_len), 0))));
    });
}

TEST_CASE("nystrom-attention: residual convolution") {
    on_random_shapes({.group = 2, .same_width = false}, [](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t taps = 1 + 2 * random.below(5);
        const Tensor filter = normal(random, {shape.heads, taps});
        const NamedValues options = {{"num_landmarks", 4}};
        const auto added = [&](ForwardInputs of) {
            const auto without = values(call(of, nystrom, options).output);
            of.weights = {{"conv_weight", filter}};
            auto with_filter = values(call(of, nystrom, with(options, {{"residual_kernel", taps}})).output);
            for (std::size_t at = 0; at < without.size(); ++at) with_filter[at] -= without[at];
            return with_filter;
        };
        const std::vector<float> got = added(inputs);
        std::vector<double> expected;
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t h = 0; h < shape.heads; ++h)
                for (std::int64_t i = 0; i < shape.q_len; ++i)
                    for (std::int64_t c = 0; c < shape.value_dim; ++c) {
                        double sum = 0;
                        for (std::int64_t t = 0; t < taps; ++t) {
                            const std::int64_t j = i + t - (taps - 1) / 2;
                            if (j >= 0 && j < shape.kv_len)
                                sum +=
                                    static_cast<double>(filter.as<float>()[h * taps + t]) *
                                    static_cast<double>(at(*inputs.value, b, h * shape.kv_heads / shape.heads, j, c));
                        }
                        expected.push_back(sum);
                    }
        CHECK(difference(got, expected) <= 2e-5);
        // It does not look at queries and keys.
        inputs.query = normal(random, inputs.query.shape);
        inputs.key = normal(random, inputs.key->shape);
        CHECK(difference(added(inputs), expected) <= 2e-5);
    });
}

TEST_CASE("nystrom-attention: padding") {
    on_random_shapes({.group = 2, .same_width = false}, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t more = 1 + random.below(20);
        const auto padded = [&](const Tensor& tensor) {
            return joined(tensor, filled({tensor.shape[0], tensor.shape[1], more, tensor.shape[3]}, NAN), 2);
        };
        for (const std::int64_t taps : {0, 3})
            for (const char* init : {"matrix", "batch"}) {
                const NamedValues options = {{"num_landmarks", 5}, {"residual_kernel", taps}, {"pinv_init", init}};
                ForwardInputs longer = inputs;
                longer.query = padded(inputs.query);
                longer.key = padded(*inputs.key);
                longer.value = padded(*inputs.value);
                longer.key_lengths =
                    lengths(std::vector<std::int64_t>(static_cast<std::size_t>(shape.batch), shape.kv_len));
                const Tensor alone = call(inputs, nystrom, options).output;
                CHECK(agree(take(call(longer, nystrom, options).output, 2, range(0, shape.q_len)), alone));
                longer.query_lengths = longer.key_lengths;
                const Tensor got = call(longer, nystrom, options).output;
                CHECK(agree(take(got, 2, range(0, shape.q_len)), alone));
                for (const float x : values(take(got, 2, range(shape.q_len, shape.q_len + more)))) CHECK(x == 0.0f);
            }
    });
}

TEST_CASE("nystrom-attention: more landmarks") {
    // Rows that vary smoothly along the sequence: the error falls with the number of landmarks, on average over draws.
    double errors[3] = {};
    const std::int64_t landmarks[] = {4, 8, 16};
    for (std::uint64_t seed = 1; seed <= 20; ++seed) {
        Random random(seed);
        ForwardInputs inputs = make_inputs(random, {1, 1, 1, 96, 96, 8, 4});
        for (auto* tensor : {&inputs.query, &*inputs.key, &*inputs.value})
            for (std::int64_t d = 0; d < tensor->shape[3]; ++d) {
                const float a = random.normal(), b = random.normal(), phase = 3.0f * random.normal();
                for (std::int64_t n = 0; n < 96; ++n) {
                    const float x = static_cast<float>(n) / 96.0f;
                    at(*tensor, 0, 0, n, d) = a * std::sin(6.0f * x + phase) + b * std::cos(4.0f * x);
                }
            }
        const auto full = values(exact(inputs));
        for (std::size_t at = 0; at < 3; ++at) {
            const auto got =
                values(call(inputs, nystrom, {{"num_landmarks", landmarks[at]}, {"pinv_iterations", 20}}).output);
            double sum = 0;
            for (std::size_t i = 0; i < got.size(); ++i)
                sum += std::pow(static_cast<double>(got[i]) - static_cast<double>(full[i]), 2);
            errors[at] += std::sqrt(sum / static_cast<double>(got.size())) / 20;
        }
    }
    INFO(errors[0] << " " << errors[1] << " " << errors[2]);
    CHECK(errors[0] > errors[1]);
    CHECK(errors[1] > errors[2]);
}

TEST_CASE("nystrom-attention: threads") {
    check_threads(nystrom);
    check_threads(nystrom, {{"pinv_init", "batch"}, {"residual_kernel", 5}});
}

TEST_CASE("nystrom-attention: rejects causal calls and what acts on single scores") {
    check_refuses_pairs(nystrom);
    Random random(1);
    ForwardInputs inputs = make_inputs(random, {1, 2, 2, 6, 6, 8, 8});
    rejects(inputs, nystrom, {{"causal", true}}, {"causal", "true", "flash-attention-v2"});
    inputs.bias = filled({1, 1, 1, 6}, 0.0f);
    rejects(inputs, nystrom, {}, {"bias", "flash-attention-v2"});
    inputs.bias.reset();
    attend::ForwardOptions asked;
    asked.mechanism = nystrom;
    asked.lse = true;
    const auto result = service().forward(inputs, asked);
    REQUIRE_FALSE(result);
    CHECK(result.error().message.find("lse") != std::string::npos);
}
TEST_CASE("nystrom-attention: rejects a convolution that does not fit") {
    Random random(1);
    ForwardInputs inputs = make_inputs(random, {1, 4, 2, 6, 6, 8, 8});
    rejects(inputs, nystrom, {{"residual_kernel", 4}}, {"residual_kernel", "4", "odd"});
    rejects(make_inputs(random, {1, 2, 2, 6, 7, 8, 8}), nystrom, {{"residual_kernel", 3}},
            {"residual_kernel", "3", "6", "7"});
    inputs.weights = {{"conv_weight", normal(random, {2, 3})}};
    rejects(inputs, nystrom, {{"residual_kernel", 3}}, {"conv_weight", "2", "4"});
    rejects(inputs, nystrom, {{"num_landmarks", 0}}, {"num_landmarks", "0"});
    rejects(inputs, nystrom, {{"pinv_iterations", 65}}, {"pinv_iterations", "65"});
}
