// SPDX-License-Identifier: Apache-2.0
// What the page of hyperbolic-attention promises.
#include "identities/identities.hpp"
#include "specs/extra/space.hpp"

namespace {

using namespace identities;
using specs::space::Point;
using specs::space::Row;

const char* const hyperbolic = "hyperbolic-attention";
const char* const in_maps[] = {"exp0", "pseudoPolar", "poincare", "klein", "hyperboloid"};

NamedValues maps(const std::string& in, const std::string& out, const NamedValues& more = {}) {
    NamedValues options{{"input_map", in}, {"output_map", out}};
    options.insert(options.end(), more.begin(), more.end());
    return options;
}
std::string as_output(const std::string& map) { return map == "exp0" ? "tangent" : map; }

// Points [B][H][N] within so many radii of curvature.
struct Points {
    std::int64_t batch, heads, count, width;
    std::vector<Point> list;
    [[nodiscard]] const Point& at(std::int64_t b, std::int64_t h, std::int64_t n) const {
        return list[static_cast<std::size_t>((b * heads + h) * count + n)];
    }
};
Points some_points(Random& random, std::int64_t batch, std::int64_t heads, std::int64_t count, std::int64_t width,
                   double most = 1.5) {
    Points points{batch, heads, count, width, {}};
    for (std::int64_t n = 0; n < batch * heads * count; ++n) {
        Row u;
        for (std::int64_t d = 0; d < width; ++d) u.push_back(static_cast<double>(random.normal()));
        u = specs::space::times(u, 1 / specs::space::length(u));
        points.list.push_back({most * static_cast<double>(random.below(1000) + 1) / 1000, u});
    }
    return points;
}
// Their coordinates; tangent vectors are scaled for the default factor of exp0.
Tensor coordinates(const Points& points, const std::string& map, double c = 1) {
    const double scale = 1 / std::sqrt(static_cast<double>(points.width));
    std::vector<float> numbers;
    std::int64_t width = 0;
    for (const Point& p : points.list) {
        const Row row = specs::space::coordinates(as_output(map), p, c, scale);
        width = static_cast<std::int64_t>(row.size());
        for (const double x : row) numbers.push_back(static_cast<float>(x));
    }
    Tensor tensor = Tensor::allocate(attend::DType::f32, {points.batch, points.heads, points.count, width}).value();
    std::copy(numbers.begin(), numbers.end(), tensor.as<float>());
    return tensor;
}
struct Scene {
    Points q, k, v;
    [[nodiscard]] ForwardInputs inputs(const std::string& map, double c = 1) const {
        ForwardInputs in;
        in.query = coordinates(q, map, c);
        in.key = coordinates(k, map, c);
        in.value = coordinates(v, map, c);
        return in;
    }
};
Scene scene(Random& random, const Shape& shape) {
    return {some_points(random, shape.batch, shape.heads, shape.q_len, shape.head_dim),
            some_points(random, shape.batch, shape.kv_heads, shape.kv_len, shape.head_dim),
            some_points(random, shape.batch, shape.kv_heads, shape.kv_len, shape.value_dim)};
}
constexpr Limits shapes{.heads = 3, .group = 2, .length = 50, .square = false, .same_width = false};
constexpr double rounded = 3e-5;  // where coordinates are rounded to float32 in two ways

// A random rotation of n axes.
std::vector<Row> rotation(Random& random, std::int64_t n) {
    std::vector<Row> rows;
    while (static_cast<std::int64_t>(rows.size()) < n) {
        Row r;
        for (std::int64_t d = 0; d < n; ++d) r.push_back(static_cast<double>(random.normal()));
        for (int twice = 0; twice < 2; ++twice)
            for (const Row& other : rows) {
                double dot = 0;
                for (std::size_t d = 0; d < r.size(); ++d) dot += r[d] * other[d];
                for (std::size_t d = 0; d < r.size(); ++d) r[d] -= dot * other[d];
            }
        rows.push_back(specs::space::times(r, 1 / specs::space::length(r)));
    }
    return rows;
}
Row turned(const std::vector<Row>& rows, const Row& x) {
    Row y;
    for (const Row& r : rows) {
        y.push_back(0);
        for (std::size_t d = 0; d < x.size(); ++d) y.back() += r[d] * x[d];
    }
    return y;
}
// A function of each row of a tensor.
Tensor by_rows(const Tensor& from, const std::function<Row(const Row&)>& f) {
    const Tensor to = mapped(from, [](float x) { return x; });
    const std::int64_t width = to.shape[3];
    for (std::int64_t row = 0; row < to.size() / width; ++row) {
        float* x = to.as<float>() + row * width;
        const Row y = f(Row(x, x + width));
        for (std::int64_t d = 0; d < width; ++d) x[d] = static_cast<float>(y[static_cast<std::size_t>(d)]);
    }
    return to;
}
// Rotation of space, then a boost along its first axis; time stands first.
std::function<Row(const Row&)> lorentz(const std::vector<Row>& rows, double rapidity) {
    return [rows, rapidity](const Row& x) {
        Row y = turned(rows, Row(x.begin() + 1, x.end()));
        const double time = std::cosh(rapidity) * x[0] + std::sinh(rapidity) * y[0];
        y[0] = std::sinh(rapidity) * x[0] + std::cosh(rapidity) * y[0];
        y.insert(y.begin(), time);
        return y;
    };
}

}  // namespace

TEST_CASE("hyperbolic-attention: one key") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        Shape square = shape;
        square.kv_len = shape.q_len;
        const Scene s = scene(random, square);
        for (const char* in : in_maps)
            for (const char* out : in_maps) {
                ForwardInputs inputs = s.inputs(in);
                inputs.mask = bools({square.q_len, square.q_len}, [](const auto& at) { return at[0] == at[1]; });
                // The scale of tangent vectors is that of the tensor's width, which for exp0 is the space's.
                const Tensor got = forward(inputs, hyperbolic, maps(in, as_output(out))).output;
                Points expected{square.batch, square.heads, square.q_len, square.value_dim, {}};
                for (std::int64_t b = 0; b < square.batch; ++b)
                    for (std::int64_t h = 0; h < square.heads; ++h)
                        for (std::int64_t i = 0; i < square.q_len; ++i)
                            expected.list.push_back(s.v.at(b, h * square.kv_heads / square.heads, i));
                Tensor wanted = coordinates(expected, out);
                if (std::string(out) == "exp0" && std::string(in) != "exp0") {
                    const float scale = 1 / std::sqrt(static_cast<float>(square.value_dim));
                    wanted = mapped(wanted, [scale](float x) { return x * scale; });
                }
                INFO(in << " to " << as_output(out));
                CHECK(agree(got, wanted, std::string(in) == out ? 1e-5 : rounded));
            }
    });
}

TEST_CASE("hyperbolic-attention: Lorentz equivariance") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = scene(random, shape).inputs("hyperboloid");
        const NamedValues options = maps("hyperboloid", "hyperboloid");
        const ForwardResult before = forward(inputs, hyperbolic, options, true);
        const auto move = lorentz(rotation(random, shape.head_dim), 0.6);
        ForwardInputs moved = inputs;
        moved.query = by_rows(inputs.query, move);
        moved.key = by_rows(*inputs.key, move);
        CHECK(agree(*forward(moved, hyperbolic, options, true).scores, *before.scores, rounded));
        const auto other = lorentz(rotation(random, shape.value_dim), -0.4);
        ForwardInputs values_moved = inputs;
        values_moved.value = by_rows(*inputs.value, other);
        CHECK(agree(forward(values_moved, hyperbolic, options).output, by_rows(before.output, other), rounded));
    });
}

TEST_CASE("hyperbolic-attention: distance") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        // Sigmoid weights of offset 0 tell distances: d = ln((1 - w) / w) / beta.
        const double c = 0.5 + 0.25 * static_cast<double>(random.below(5));
        const std::int64_t n = shape.q_len;
        const Points points = some_points(random, 1, 1, n, shape.head_dim);
        ForwardInputs inputs;
        inputs.query = coordinates(points, "poincare", c);
        const Tensor w =
            *support::run(service(), inputs, hyperbolic,
                          maps("poincare", "poincare", {{"weighting", "sigmoid"}, {"curvature", -c}}), false, true)
                 .scores;
        const auto d = [&](std::int64_t i, std::int64_t j) {
            const auto weight = static_cast<double>(at(w, 0, 0, i, j));
            return std::log((1 - weight) / weight);
        };
        for (std::int64_t i = 0; i < n; ++i) {
            CHECK(at(w, 0, 0, i, i) == 0.5f);
            for (std::int64_t j = 0; j < n; ++j) {
                double x = 0, y = 0, apart = 0;
                for (std::int64_t a = 0; a < shape.head_dim; ++a) {
                    const auto p = static_cast<double>(at(inputs.query, 0, 0, i, a)),
                               q = static_cast<double>(at(inputs.query, 0, 0, j, a));
                    x += p * p, y += q * q, apart += (p - q) * (p - q);
                }
                const double exact = std::acosh(1 + 2 * c * apart / ((1 - c * x) * (1 - c * y))) / std::sqrt(c);
                CHECK(std::abs(d(i, j) - exact) <= 1e-5 * (1 + exact));
                CHECK(std::abs(d(i, j) - d(j, i)) <= 1e-5);
                const std::int64_t k = random.below(n);
                CHECK(d(i, j) <= d(i, k) + d(k, j) + 1e-5);
            }
        }
    });
}

TEST_CASE("hyperbolic-attention: flat limit") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const Tensor got = forward(inputs, hyperbolic, {{"curvature", -1e-6}, {"beta", 1.5}}).output;
        const double scale = 1.5 / std::sqrt(static_cast<double>(shape.head_dim));
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t h = 0; h < shape.heads; ++h)
                for (std::int64_t i = 0; i < shape.q_len; ++i) {
                    const std::int64_t kv = h * shape.kv_heads / shape.heads;
                    Row o(static_cast<std::size_t>(shape.value_dim), 0.0);
                    double total = 0;
                    for (std::int64_t j = 0; j < shape.kv_len; ++j) {
                        double squares = 0;
                        for (std::int64_t d = 0; d < shape.head_dim; ++d)
                            squares += std::pow(static_cast<double>(at(inputs.query, b, h, i, d)) -
                                                    static_cast<double>(at(*inputs.key, b, kv, j, d)),
                                                2);
                        const double w = std::exp(-scale * std::sqrt(squares));
                        total += w;
                        for (std::size_t d = 0; d < o.size(); ++d)
                            o[d] += w * static_cast<double>(at(*inputs.value, b, kv, j, static_cast<std::int64_t>(d)));
                    }
                    for (std::size_t d = 0; d < o.size(); ++d)
                        CHECK(std::abs(o[d] / total -
                                       static_cast<double>(at(got, b, h, i, static_cast<std::int64_t>(d)))) <= 2e-5);
                }
    });
}

TEST_CASE("hyperbolic-attention: midpoint of two") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        const Scene s{some_points(random, 1, 1, 1, shape.head_dim), some_points(random, 1, 1, 1, shape.head_dim),
                      some_points(random, 1, 1, 2, shape.value_dim)};
        ForwardInputs inputs = s.inputs("klein");
        inputs.key = take(*inputs.key, 2, {0, 0});
        const Tensor o = forward(inputs, hyperbolic, maps("klein", "hyperboloid")).output;
        const Point middle = specs::space::point(
            "hyperboloid", Row(o.as<const float>(), o.as<const float>() + shape.value_dim + 1), 1, 1, 10);
        const Point &a = s.v.at(0, 0, 0), &b = s.v.at(0, 0, 1);
        const double half = specs::space::distance(a, b, 1) / 2;
        CHECK(std::abs(specs::space::distance(middle, a, 1) - half) <= rounded * (1 + half));
        CHECK(std::abs(specs::space::distance(middle, b, 1) - half) <= rounded * (1 + half));
    });
}

TEST_CASE("hyperbolic-attention: offset") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult plain = forward(inputs, hyperbolic), moved = forward(inputs, hyperbolic, {{"offset", 2.0}});
        CHECK(agree(moved.output, plain.output));
        CHECK(agree(*moved.lse, mapped(*plain.lse, [](float x) { return x - 2.0f; })));
        CHECK(agree(support::run(service(), inputs, hyperbolic, {{"weighting", "sigmoid"}, {"offset", 40.0}}).output,
                    plain.output));
    });
}

TEST_CASE("hyperbolic-attention: radius of the result") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        const Scene s = scene(random, shape);
        const Tensor o = forward(s.inputs("pseudoPolar"), hyperbolic, maps("pseudoPolar", "pseudoPolar")).output;
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t h = 0; h < shape.heads; ++h) {
                double most = 0;
                for (std::int64_t j = 0; j < shape.kv_len; ++j)
                    most = std::max(most, s.v.at(b, h * shape.kv_heads / shape.heads, j).rho);
                for (std::int64_t i = 0; i < shape.q_len; ++i)
                    CHECK(static_cast<double>(at(o, b, h, i, shape.value_dim)) <= most + 1e-5);
            }
    });
}

TEST_CASE("hyperbolic-attention: coordinates") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        const Scene s = scene(random, shape);
        const double c = 0.5 + static_cast<double>(random.below(3));
        const NamedValues curved{{"curvature", -c}};
        const Tensor first = forward(s.inputs("poincare", c), hyperbolic, maps("poincare", "tangent", curved)).output;
        for (const char* map : {"klein", "hyperboloid", "pseudoPolar"})
            CHECK(agree(forward(s.inputs(map, c), hyperbolic, maps(map, "tangent", curved)).output, first, rounded));
    });
}

TEST_CASE("hyperbolic-attention: rotation and order") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult plain = forward(inputs, hyperbolic);
        const std::vector<Row> rows = rotation(random, shape.value_dim);
        const auto turn = [&](const Row& x) { return turned(rows, x); };
        ForwardInputs other = inputs;
        other.value = by_rows(*inputs.value, turn);
        CHECK(agree(forward(other, hyperbolic).output, by_rows(plain.output, turn)));
        const std::vector<std::int64_t> order = shuffled(random, shape.kv_len);
        other.key = take(*inputs.key, 2, order);
        other.value = take(*inputs.value, 2, order);
        CHECK(agree(forward(other, hyperbolic), plain));
    });
}

TEST_CASE("hyperbolic-attention: merge") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        const Scene s = scene(random, shape);
        const ForwardInputs inputs = s.inputs("klein");
        const NamedValues options = maps("klein", "klein");
        const ForwardResult whole = forward(inputs, hyperbolic, options);
        const std::int64_t cut = shape.kv_len / 2;
        ForwardResult parts[2];
        for (int part = 0; part < 2; ++part) {
            ForwardInputs some = inputs;
            some.mask = bools({1, shape.kv_len}, [&](const auto& at) { return (at[1] < cut) == (part == 0); });
            parts[part] = forward(some, hyperbolic, options, true);
        }
        for (std::int64_t b = 0; b < shape.batch; ++b)
            for (std::int64_t h = 0; h < shape.heads; ++h)
                for (std::int64_t i = 0; i < shape.q_len; ++i) {
                    const auto first = static_cast<double>(at(*parts[0].lse, b, h, i)),
                               second = static_cast<double>(at(*parts[1].lse, b, h, i));
                    const double sum = std::max(first, second) + std::log1p(std::exp(-std::abs(first - second)));
                    CHECK(std::abs(static_cast<double>(at(*whole.lse, b, h, i)) - sum) <= 1e-5);
                    // Parts carry S / l and T / l; here T / l comes from the weights, and S = T times the midpoint.
                    double time[2] = {0, 0};
                    for (int part = 0; part < 2; ++part)
                        for (std::int64_t j = 0; j < shape.kv_len; ++j)
                            time[part] += static_cast<double>(at(*parts[part].scores, b, h, i, j)) *
                                          std::cosh(s.v.at(b, h * shape.kv_heads / shape.heads, j).rho);
                    const double a = time[0] * std::exp(first - sum), e = time[1] * std::exp(second - sum);
                    for (std::int64_t d = 0; d < shape.value_dim; ++d)
                        CHECK(std::abs((a * static_cast<double>(at(parts[0].output, b, h, i, d)) +
                                        e * static_cast<double>(at(parts[1].output, b, h, i, d))) /
                                           (a + e) -
                                       static_cast<double>(at(whole.output, b, h, i, d))) <= 1e-5);
                }
    });
}

TEST_CASE("hyperbolic-attention: rows without keys") {
    Random random(2);
    ForwardInputs inputs = make_inputs(random, {2, 2, 2, 5, 6, 4, 4});
    inputs.key_lengths = lengths({0, 3});
    inputs.query_lengths = lengths({5, 2});
    // What lengths hide may hold anything.
    for (Tensor* tensor : {&*inputs.key, &*inputs.value})
        for (std::int64_t h = 0; h < 2; ++h)
            for (std::int64_t j = 3; j < 6; ++j) at(*tensor, 1, h, j, 0) = std::numeric_limits<float>::quiet_NaN();
    at(inputs.query, 1, 0, 3, 1) = std::numeric_limits<float>::infinity();
    for (const char* out : {"tangent", "poincare", "klein", "hyperboloid", "pseudoPolar"}) {
        const ForwardResult got = forward(inputs, hyperbolic, {{"output_map", out}, {"curvature", -4.0}});
        for (const std::int64_t b : {0, 1})
            for (std::int64_t i = b == 0 ? 0 : 2; i < 5; ++i) {
                CHECK(at(*got.lse, b, 0, i) == -std::numeric_limits<float>::infinity());
                for (std::int64_t d = 0; d < got.output.shape[3]; ++d)
                    CHECK(at(got.output, b, 1, i, d) == (d == 0 && std::string(out) == "hyperboloid" ? 0.5f : 0.0f));
            }
    }
}

TEST_CASE("hyperbolic-attention: hidden keys") {
    on_random_shapes(shapes, [](Random& random, const Shape& shape) {
        // Finite rows that a mask, causal or a window hides do not change a bit, however far away they are.
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::int64_t cut = random.below(shape.kv_len);
        ForwardInputs masked = inputs;
        masked.mask = bools({1, shape.kv_len}, [&](const auto& at) { return at[1] <= cut; });
        ForwardInputs other = masked;
        other.key = mapped(*inputs.key, [](float x) { return x; });
        other.value = mapped(*inputs.value, [](float x) { return x; });
        for (Tensor* tensor : {&*other.key, &*other.value})
            for (std::int64_t b = 0; b < shape.batch; ++b)
                for (std::int64_t h = 0; h < shape.kv_heads; ++h)
                    for (std::int64_t j = cut + 1; j < shape.kv_len; ++j)
                        for (std::int64_t d = 0; d < tensor->shape[3]; ++d) at(*tensor, b, h, j, d) = 1e30f;
        CHECK(same_bits(forward(other, hyperbolic).output, forward(masked, hyperbolic).output));
        // The first row of a causal square call sees the first key alone.
        Shape square = shape;
        square.kv_len = shape.q_len;
        ForwardInputs first = make_inputs(random, square);
        const Tensor before = forward(first, hyperbolic, {{"causal", true}}).output;
        ForwardInputs changed = first;
        changed.key = mapped(*first.key, [](float x) { return x; });
        changed.value = mapped(*first.value, [](float x) { return x; });
        for (Tensor* tensor : {&*changed.key, &*changed.value})
            for (std::int64_t j = 1; j < square.kv_len; ++j) at(*tensor, 0, 0, j, 0) = -1e20f;
        const Tensor after = forward(changed, hyperbolic, {{"causal", true}}).output;
        CHECK(same_bits(take(after, 2, {0}), take(before, 2, {0})));
    });
}

TEST_CASE("hyperbolic-attention: rejects points that are none, options out of range and what it does not offer") {
    Random random(4);
    const ForwardInputs inputs = make_inputs(random, {2, 2, 2, 4, 4, 3, 3});
    rejects(inputs, hyperbolic, {{"curvature", 0.0}}, {"curvature", "0"});
    rejects(inputs, hyperbolic, {{"curvature", 1.0}}, {"curvature", "1"});
    rejects(inputs, hyperbolic, {{"beta", 0.0}}, {"beta", "0"});
    rejects(inputs, hyperbolic, {{"beta", -1.0}}, {"beta", "-1"});
    rejects(inputs, hyperbolic, {{"max_radius", 11.0}}, {"max_radius", "11", "10"});
    rejects(inputs, hyperbolic, {{"max_radius", 0.0}}, {"max_radius", "0"});
    rejects(inputs, hyperbolic, {{"curvature", -2e4}}, {"curvature", "-20000"});
    rejects(inputs, hyperbolic, {{"curvature", -1e-9}}, {"curvature", "1e-09"});
    rejects(inputs, hyperbolic, {{"weighting", "linear"}}, {"weighting", "linear", "sigmoid"});
    rejects(inputs, hyperbolic, {{"input_map", "lorentz"}}, {"input_map", "lorentz", "hyperboloid"});
    rejects(inputs, hyperbolic, {{"output_map", "exp0"}}, {"output_map", "exp0", "tangent"});
    rejects(inputs, hyperbolic, {{"input_scale", 0.0}}, {"input_scale", "0"});
    rejects(inputs, hyperbolic, {{"value_scale", -0.5}}, {"value_scale", "-0.5"});
    rejects(inputs, hyperbolic, {{"scale", 0.5}}, {"scale"});
    rejects(inputs, hyperbolic, {{"softcap", 5.0}}, {"softcap"});
    attend::ForwardOptions sigmoid{hyperbolic, {{"weighting", "sigmoid"}}};
    sigmoid.lse = true;
    const auto refused = service().forward(inputs, sigmoid);
    REQUIRE_FALSE(refused.ok());
    CHECK(refused.error().message.find("lse") != std::string::npos);
    const ForwardInputs narrow = make_inputs(random, {1, 1, 1, 4, 4, 1, 3});
    rejects(narrow, hyperbolic, {{"input_map", "pseudoPolar"}}, {"query", "1", "pseudoPolar", "2"});
    rejects(narrow, hyperbolic, {{"input_map", "hyperboloid"}}, {"query", "1", "hyperboloid", "2"});
    const ForwardInputs narrow_value = make_inputs(random, {1, 1, 1, 4, 4, 3, 1});
    rejects(narrow_value, hyperbolic, {{"input_map", "pseudoPolar"}}, {"value", "1", "pseudoPolar", "2"});
    Points points = some_points(random, 1, 2, 4, 3);
    const Scene s{points, points, points};
    for (const char* map : {"poincare", "klein"}) {
        ForwardInputs outside = s.inputs(map);
        for (std::int64_t d = 0; d < 3; ++d) at(*outside.key, 0, 1, 2, d) = 0.6f;
        rejects(outside, hyperbolic, {{"input_map", map}}, {"key[0][1][2]", "1.03", "below 1"});
    }
    ForwardInputs off = s.inputs("hyperboloid");
    at(off.query, 0, 0, 1, 0) = -at(off.query, 0, 0, 1, 0);
    rejects(off, hyperbolic, {{"input_map", "hyperboloid"}}, {"query[0][0][1]", "time"});
    off = s.inputs("hyperboloid");
    at(*off.value, 0, 1, 3, 0) += 0.5f;
    rejects(off, hyperbolic, {{"input_map", "hyperboloid"}}, {"value[0][1][3]", "hyperboloid"});
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        ForwardInputs not_finite = inputs;
        not_finite.value = mapped(*inputs.value, [](float x) { return x; });
        at(*not_finite.value, 1, 0, 2, 1) = bad;
        rejects(not_finite, hyperbolic, {}, {"value[1][0][2][1]", "finite"});
    }
    ForwardInputs weighted = inputs;
    weighted.weights = {{"beta", filled({2}, -1.0f)}};
    rejects(weighted, hyperbolic, {}, {"beta", "-1", "above 0"});
}
