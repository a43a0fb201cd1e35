// SPDX-License-Identifier: Apache-2.0
// Identities of relative-position-attention.
#include "identities/identities.hpp"

namespace {

using namespace identities;
constexpr const char* relative = "relative-position-attention";
constexpr const char* standard = "standard-mha";

NamedValues plus(NamedValues a, const NamedValues& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
}
Tensor scaled(const Tensor& from, double factor) {
    return mapped(from, [factor](float x) { return static_cast<float>(factor) * x; });
}
double value_at(const Tensor& tensor, std::int64_t at) { return static_cast<double>(tensor.as<float>()[at]); }
double usual_scale(const Shape& shape) { return 1.0 / std::sqrt(static_cast<double>(shape.head_dim)); }

// Weights of a mode, as an initialiser would size them; `length` is max_distance, num_buckets or rel_dim.
void set_weights(Random& random, const Shape& s, const std::string& mode, std::int64_t length, ForwardInputs& inputs,
                 std::int64_t tables = 1) {
    if (mode == "shaw")
        inputs.weights = {{"rel_k", scaled(normal(random, {tables, 2 * length + 1, s.head_dim}), 0.5)},
                          {"rel_v", scaled(normal(random, {tables, 2 * length + 1, s.value_dim}), 0.5)}};
    else if (mode == "t5")
        inputs.weights = {{"rel_bias", normal(random, {length, s.heads})}};
    else
        inputs.weights = {{"rel_proj", scaled(normal(random, {s.heads, s.head_dim, length}), 0.4)},
                          {"u", scaled(normal(random, {s.heads, s.head_dim}), 0.5)},
                          {"v", scaled(normal(random, {s.heads, s.head_dim}), 0.5)}};
}
Tensor& weight(ForwardInputs& inputs, const std::string& name) {
    for (auto& [known, tensor] : inputs.weights)
        if (known == name) return tensor;
    std::abort();
}

// The dot product of row i of head h of x with a row of a table [H, D] (or of its only row).
double dot_with(const Tensor& x, std::int64_t b, std::int64_t h, std::int64_t i, const Tensor& table,
                std::int64_t row) {
    const std::int64_t width = x.shape[3];
    double sum = 0;
    for (std::int64_t d = 0; d < width; ++d)
        sum += static_cast<double>(at(x, b, h, i, d)) * value_at(table, row * width + d);
    return sum;
}

// R_h(distance) of mode xl from its definition: relProj[h] times sines and cosines.
std::vector<double> r_of(const Tensor& proj, std::int64_t head, std::int64_t distance) {
    const std::int64_t width = proj.shape[1], rel = proj.shape[2];
    std::vector<double> row(static_cast<std::size_t>(width), 0.0);
    for (std::int64_t t = 0; t < rel / 2; ++t) {
        const double angle =
            static_cast<double>(distance) * std::pow(10000.0, -2.0 * static_cast<double>(t) / static_cast<double>(rel));
        for (std::int64_t d = 0; d < width; ++d)
            row[static_cast<std::size_t>(d)] +=
                value_at(proj, (head * width + d) * rel + t) * std::sin(angle) +
                value_at(proj, (head * width + d) * rel + rel / 2 + t) * std::cos(angle);
    }
    return row;
}

// A bias [B, Hq, Nq, Nk] element by element.
Tensor bias_of(const Shape& s,
               const std::function<double(std::int64_t, std::int64_t, std::int64_t, std::int64_t)>& element) {
    Tensor bias = filled({s.batch, s.heads, s.q_len, s.kv_len}, 0.0f);
    for (std::int64_t b = 0; b < s.batch; ++b)
        for (std::int64_t h = 0; h < s.heads; ++h)
            for (std::int64_t i = 0; i < s.q_len; ++i)
                for (std::int64_t j = 0; j < s.kv_len; ++j)
                    at(bias, b, h, i, j) = static_cast<float>(element(b, h, i, j));
    return bias;
}
// Term scale * u_h . k_j.
double key_term(const Shape& s, const ForwardInputs& inputs, const Tensor& u, std::int64_t b, std::int64_t h,
                std::int64_t j) {
    return usual_scale(s) * dot_with(*inputs.key, b, h * s.kv_heads / s.heads, j, u, h);
}

// The bucket of each distance -(count - 1) .. count - 1, read off the log-sum-exp of a single key without content.
std::vector<std::int64_t> buckets(std::int64_t num_buckets, std::int64_t most, bool both, std::int64_t count) {
    ForwardInputs inputs;
    inputs.query = filled({1, 1, count, 4}, 0.0f);
    inputs.key = filled({1, 1, 1, 4}, 0.0f);
    inputs.value = filled({1, 1, 1, 4}, 1.0f);
    Tensor numbers = filled({num_buckets, 1}, 0.0f);
    for (std::int64_t at = 0; at < num_buckets; ++at) numbers.as<float>()[at] = static_cast<float>(at);
    inputs.weights = {{"rel_bias", numbers}};
    std::vector<std::int64_t> all(static_cast<std::size_t>(2 * count - 1));
    for (const char* alignment : {"top-left", "bottom-right"}) {
        const ForwardResult result = forward(inputs, relative,
                                             {{"mode", "t5"},
                                              {"num_buckets", num_buckets},
                                              {"max_distance", most},
                                              {"bidirectional", both},
                                              {"causal_alignment", alignment}});
        const std::int64_t offset = alignment[0] == 't' ? 0 : 1 - count;
        for (std::int64_t i = 0; i < count; ++i) {
            const double lse = static_cast<double>(result.lse->as<float>()[i]);
            CHECK(std::abs(lse - std::round(lse)) < 1e-4);
            all[static_cast<std::size_t>(count - 1 - (i + offset))] = std::llround(lse);
        }
    }
    return all;
}

}  // namespace

TEST_CASE("relative-position-attention: constant tables") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& s) {
        ForwardInputs inputs = make_inputs(random, s);
        std::vector<std::int64_t> visible(static_cast<std::size_t>(s.batch), 0);  // a second item is empty
        visible[0] = s.kv_len;
        inputs.key_lengths = lengths(visible);
        for (const bool causal : {false, true}) {
            inputs.weights.clear();
            const NamedValues option = {{"causal", causal}};
            const ForwardResult plain = forward(inputs, standard, option);
            for (const char* mode : {"shaw", "t5", "xl"}) {
                const std::int64_t length = mode[0] == 's' ? 3 : 8;
                NamedValues options = plus(option, {{"mode", mode}});
                if (mode[0] == 's') options.emplace_back("max_distance", length);
                if (mode[0] == 't') options.emplace_back("num_buckets", length);
                if (mode[0] == 'x') options.emplace_back("rel_dim", length);
                set_weights(random, s, mode, length, inputs);
                for (auto& [name, tensor] : inputs.weights) tensor = filled(tensor.shape, 0.0f);
                CHECK(agree(forward(inputs, relative, options), plain));
            }
            for (const bool per_head : {false, true}) {
                const std::int64_t tables = per_head ? s.heads : 1, rows = 7;
                const Tensor c = normal(random, {tables, 1, s.head_dim}), w = normal(random, {tables, 1, s.value_dim});
                const std::vector<std::int64_t> same(static_cast<std::size_t>(rows), 0);
                inputs.weights = {{"rel_k", take(c, 1, same)}, {"rel_v", take(w, 1, same)}};
                const ForwardResult got =
                    forward(inputs, relative, plus(option, {{"max_distance", 3}, {"per_head_tables", per_head}}));
                Tensor output = mapped(plain.output, [](float x) { return x; });
                Tensor lse = mapped(*plain.lse, [](float x) { return x; });
                for (std::int64_t h = 0; h < s.heads; ++h)
                    for (std::int64_t i = 0; i < s.q_len; ++i) {
                        if (std::isinf(at(lse, 0, h, i))) continue;
                        const std::int64_t table = per_head ? h : 0;
                        at(lse, 0, h, i) +=
                            static_cast<float>(usual_scale(s) * dot_with(inputs.query, 0, h, i, c, table));
                        for (std::int64_t d = 0; d < s.value_dim; ++d)
                            at(output, 0, h, i, d) += w.as<float>()[table * s.value_dim + d];
                    }
                CHECK(agree(got.output, output));
                CHECK(agree(*got.lse, lse));
            }
            const Tensor beta = normal(random, {1, s.heads});
            inputs.weights = {{"rel_bias", take(beta, 0, std::vector<std::int64_t>(8, 0))}};
            const ForwardResult got = forward(inputs, relative, plus(option, {{"mode", "t5"}, {"num_buckets", 8}}));
            Tensor lse = mapped(*plain.lse, [](float x) { return x; });
            for (std::int64_t b = 0; b < s.batch; ++b)
                for (std::int64_t h = 0; h < s.heads; ++h)
                    for (std::int64_t i = 0; i < s.q_len; ++i) at(lse, b, h, i) += beta.as<float>()[h];
            CHECK(agree(got.output, plain.output));
            CHECK(agree(*got.lse, lse));
        }
    });
}

TEST_CASE("relative-position-attention: range of shaw's tables") {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [](Random& random, const Shape& s) {
        ForwardInputs inputs = make_inputs(random, s);
        set_weights(random, s, "shaw", 0, inputs);
        ForwardInputs same = inputs;
        for (auto& [name, tensor] : same.weights) tensor = take(tensor, 1, std::vector<std::int64_t>(9, 0));
        CHECK(agree(forward(inputs, relative, {{"max_distance", 0}}), forward(same, relative, {{"max_distance", 4}})));

        const std::int64_t k = 1 + random.below(12), window = 1 + random.below(k), more = 1 + random.below(20);
        set_weights(random, s, "shaw", k, inputs);
        ForwardInputs longer = inputs;
        for (auto& [name, tensor] : longer.weights) {
            const Tensor end = normal(random, {1, more, tensor.shape[2]});
            tensor = joined(joined(end, tensor, 1), end, 1);
        }
        for (const bool values : {true, false}) {
            const NamedValues options = {{"window_size", window}, {"use_value_embedding", values}};
            if (!values) inputs.weights.pop_back(), longer.weights.pop_back();
            CHECK(agree(forward(longer, relative, plus(options, {{"max_distance", k + more}})),
                        forward(inputs, relative, plus(options, {{"max_distance", k}}))));
        }
    });
}

TEST_CASE("relative-position-attention: translation") {
    on_random_shapes({.group = 2, .length = 40, .same_width = false}, [](Random& random, const Shape& s) {
        const ForwardInputs inputs = make_inputs(random, s);
        const std::int64_t before = random.below(40), after = random.below(40), whole = before + s.kv_len + after;
        const auto embedded = [&](const Tensor& tensor, float padding) {
            std::vector<std::int64_t> front = tensor.shape, back = tensor.shape;
            front[2] = before;
            back[2] = after;
            return joined(joined(filled(front, padding), tensor, 2), filled(back, padding), 2);
        };
        const float nan = std::numeric_limits<float>::quiet_NaN();
        ForwardInputs padded = inputs;
        padded.query = embedded(inputs.query, 0.5f);
        padded.key = embedded(*inputs.key, nan);
        padded.value = embedded(*inputs.value, nan);
        padded.mask = bools({1, 1, 1, whole}, [&](const std::vector<std::int64_t>& at) {
            return at[3] >= before && at[3] < before + s.kv_len;
        });
        for (const char* mode : {"shaw", "t5", "xl"})
            for (const bool causal : {false, true}) {
                const std::int64_t length = mode[0] == 's' ? 5 : 10;
                NamedValues options = {{"mode", mode}, {"causal", causal}};
                if (mode[0] == 's') options.emplace_back("max_distance", length);
                if (mode[0] == 't') options.insert(options.end(), {{"num_buckets", length}, {"max_distance", 20}});
                if (mode[0] == 'x') options.insert(options.end(), {{"rel_dim", length}, {"clamp_len", 30}});
                set_weights(random, s, mode, length, padded);
                ForwardInputs bare = inputs;
                bare.weights = padded.weights;
                const ForwardResult got = forward(padded, relative, options),
                                    expected = forward(bare, relative, options);
                CHECK(agree(take(got.output, 2, range(before, before + s.kv_len)), expected.output));
                CHECK(agree(take(*got.lse, 2, range(before, before + s.kv_len)), *expected.lse));
            }
    });
}

TEST_CASE("relative-position-attention: t5 buckets") {
    const std::int64_t count = 700;
    const auto of = [&](const std::vector<std::int64_t>& all, std::int64_t distance) {
        return all[static_cast<std::size_t>(count - 1 + distance)];
    };
    for (const bool both : {true, false})
        for (const auto& [num, most] :
             std::vector<std::pair<std::int64_t, std::int64_t>>{{32, 128}, {8, 20}, {64, 512}, {4, 3}, {32, 600}}) {
            INFO(num << " buckets up to " << most << (both ? ", both sides" : ""));
            const std::vector<std::int64_t> all = buckets(num, most, both, count);
            const std::int64_t per_side = both ? num / 2 : num, exact = per_side / 2;
            for (const std::int64_t side : {-1, 1}) {
                const std::int64_t base = side > 0 && both ? per_side : 0;
                for (std::int64_t n = 1; n < count; ++n) {
                    const std::int64_t bucket = of(all, side * n) - base;
                    if (side > 0 && !both) {
                        REQUIRE(bucket == 0);
                        continue;
                    }
                    if (n > 1) REQUIRE(bucket >= of(all, side * (n - 1)) - base);
                    if (n < exact) REQUIRE(bucket == n);
                    if (n >= most) REQUIRE(bucket == per_side - 1);
                    REQUIRE(bucket < per_side);
                }
            }
            CHECK(of(all, 0) == 0);
        }
    const std::vector<std::int64_t> all = buckets(32, 128, true, count);
    CHECK(of(all, -1) == 1);
    CHECK(of(all, 1) == 17);
    CHECK(of(all, -8) == 8);
    CHECK(of(all, -128) == 15);

    on_random_shapes({.group = 2, .square = false}, [](Random& random, Shape s) {
        const std::int64_t most = 10;
        s.q_len = 1 + random.below(9);
        s.kv_len = s.q_len + most + 2 + random.below(30);
        ForwardInputs inputs = make_inputs(random, s);
        set_weights(random, s, "t5", 8, inputs);
        for (const char* alignment : {"bottom-right", "top-left"}) {
            const NamedValues options = {
                {"mode", "t5"}, {"num_buckets", 8}, {"max_distance", most}, {"causal_alignment", alignment}};
            const std::int64_t far = s.kv_len - s.q_len - most + 1;  // keys beyond the last bucket's start
            std::vector<std::int64_t> order = range(0, s.kv_len);
            if (alignment[0] == 'b')
                std::swap(order.front(), order[static_cast<std::size_t>(far - 1)]);
            else
                std::swap(order.back(), order[static_cast<std::size_t>(s.kv_len - far)]);
            ForwardInputs swapped = inputs;
            swapped.key = take(*inputs.key, 2, order);
            swapped.value = take(*inputs.value, 2, order);
            CHECK(agree(forward(swapped, relative, options), forward(inputs, relative, options)));
        }
    });
}

TEST_CASE("relative-position-attention: xl without projection or queries") {
    on_random_shapes(
        {.group = 2, .length = 40, .square = false, .same_width = false}, [](Random& random, const Shape& s) {
            const std::int64_t rel = 2 + 2 * random.below(12), clamp = 1 + random.below(30);
            const ForwardInputs bare = make_inputs(random, s);
            ForwardInputs inputs = bare, biased = bare;
            set_weights(random, s, "xl", rel, inputs);
            const Tensor proj = weight(inputs, "rel_proj"), u = weight(inputs, "u"), v = weight(inputs, "v");
            biased.bias = bias_of(s, [&](std::int64_t b, std::int64_t h, std::int64_t, std::int64_t j) {
                return key_term(s, bare, u, b, h, j);
            });
            const NamedValues options = {{"mode", "xl"}, {"rel_dim", rel}};
            weight(inputs, "rel_proj") = filled(proj.shape, 0.0f);
            CHECK(agree(forward(inputs, relative, options), forward(biased, standard)));

            weight(inputs, "rel_proj") = proj;
            inputs.query = biased.query = filled(bare.query.shape, 0.0f);
            for (const bool clips : {false, true}) {
                biased.bias = bias_of(s, [&](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
                    std::int64_t distance = i + s.kv_len - s.q_len - j;
                    if (clips) distance = std::clamp(distance, -clamp, clamp);
                    const std::vector<double> r = r_of(proj, h, distance);
                    double sum = 0;
                    for (std::int64_t d = 0; d < s.head_dim; ++d)
                        sum += value_at(v, h * s.head_dim + d) * r[static_cast<std::size_t>(d)];
                    return key_term(s, bare, u, b, h, j) + usual_scale(s) * sum;
                });
                CHECK(agree(forward(inputs, relative, plus(options, {{"clamp_len", clips ? clamp : -1}})),
                            forward(biased, standard)));
            }
        });
}

TEST_CASE("relative-position-attention: rel-shift") {
    on_random_shapes({.group = 2, .length = 40, .square = false}, [](Random& random, const Shape& s) {
        const std::int64_t rel = 2 + 2 * random.below(12), columns = s.kv_len + s.q_len;
        ForwardInputs inputs = make_inputs(random, s), biased = inputs;
        set_weights(random, s, "xl", rel, inputs);
        const Tensor &proj = weight(inputs, "rel_proj"), &u = weight(inputs, "u"), &v = weight(inputs, "v");
        biased.bias = filled({s.batch, s.heads, s.q_len, s.kv_len}, 0.0f);
        for (std::int64_t h = 0; h < s.heads; ++h) {
            std::vector<std::vector<double>> r;  // of distances Nk, Nk - 1, .. 1 - Nq
            for (std::int64_t m = 0; m < columns; ++m) r.push_back(r_of(proj, h, s.kv_len - m));
            for (std::int64_t b = 0; b < s.batch; ++b) {
                std::vector<double> flat;  // [Nq, Nk + Nq]: each query with each distance
                for (std::int64_t i = 0; i < s.q_len; ++i)
                    for (std::int64_t m = 0; m < columns; ++m) {
                        double sum = 0;
                        for (std::int64_t d = 0; d < s.head_dim; ++d)
                            sum +=
                                (static_cast<double>(at(inputs.query, b, h, i, d)) + value_at(v, h * s.head_dim + d)) *
                                r[static_cast<std::size_t>(m)][static_cast<std::size_t>(d)];
                        flat.push_back(usual_scale(s) * sum);
                    }
                // Read as [Nk + Nq, Nq], without its first row, as [Nq, Nk + Nq - 1], cut to Nk columns.
                for (std::int64_t i = 0; i < s.q_len; ++i)
                    for (std::int64_t j = 0; j < s.kv_len; ++j)
                        at(*biased.bias, b, h, i, j) =
                            static_cast<float>(flat[static_cast<std::size_t>(s.q_len + i * (columns - 1) + j)] +
                                               key_term(s, inputs, u, b, h, j));
            }
        }
        CHECK(agree(forward(inputs, relative, {{"mode", "xl"}, {"rel_dim", rel}}), forward(biased, standard)));
    });
}

TEST_CASE("relative-position-attention: segments") {
    on_random_shapes({.group = 2, .length = 40, .square = false}, [](Random& random, const Shape& s) {
        ForwardInputs inputs = make_inputs(random, s), biased = inputs;
        set_weights(random, s, "xl", 6, inputs);
        const ForwardResult plain = forward(inputs, relative, {{"mode", "xl"}, {"rel_dim", 6}});
        std::vector<std::int64_t> q, k;
        for (std::int64_t at = 0; at < s.batch * s.q_len; ++at) q.push_back(random.below(3));
        for (std::int64_t at = 0; at < s.batch * s.kv_len; ++at) k.push_back(random.below(3));
        inputs.extra = {{"segment_ids_q", ints({s.batch, s.q_len}, q)},
                        {"segment_ids_k", ints({s.batch, s.kv_len}, k)}};
        const Tensor seg_u = normal(random, {s.heads, s.head_dim}), seg_emb = normal(random, {2, s.heads, s.head_dim});
        inputs.weights.emplace_back("seg_u", seg_u);
        inputs.weights.emplace_back("seg_emb", seg_emb);
        const ForwardResult got = forward(inputs, relative, {{"mode", "xl"}, {"rel_dim", 6}});
        // The term as a user bias of the call without segments.
        ForwardInputs without = inputs;
        without.extra.clear();
        without.weights.resize(3);
        without.bias = bias_of(s, [&](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
            const bool same =
                q[static_cast<std::size_t>(b * s.q_len + i)] == k[static_cast<std::size_t>(b * s.kv_len + j)];
            const std::int64_t row = (same ? 0 : s.heads) + h;
            double sum = dot_with(inputs.query, b, h, i, seg_emb, row);
            for (std::int64_t d = 0; d < s.head_dim; ++d)
                sum += value_at(seg_u, h * s.head_dim + d) * value_at(seg_emb, row * s.head_dim + d);
            return usual_scale(s) * sum;
        });
        CHECK(agree(got, forward(without, relative, {{"mode", "xl"}, {"rel_dim", 6}})));
        std::vector<std::int64_t> renamed_q = q, renamed_k = k;  // only equality counts
        for (auto* ids : {&renamed_q, &renamed_k})
            for (std::int64_t& id : *ids) id = 1000 - 7 * id;
        inputs.extra = {{"segment_ids_q", ints({s.batch, s.q_len}, renamed_q)},
                        {"segment_ids_k", ints({s.batch, s.kv_len}, renamed_k)}};
        CHECK(same_bits(forward(inputs, relative, {{"mode", "xl"}, {"rel_dim", 6}}).output, got.output));
        for (auto* ids : {&q, &k}) std::fill(ids->begin(), ids->end(), 4);
        inputs.extra = {{"segment_ids_q", ints({s.batch, s.q_len}, q)},
                        {"segment_ids_k", ints({s.batch, s.kv_len}, k)}};
        CHECK(agree(forward(inputs, relative, {{"mode", "xl"}, {"rel_dim", 6}}).output, plain.output));
    });
}

TEST_CASE("relative-position-attention: rejects distances and buckets out of range") {
    Random random(1);
    const ForwardInputs inputs = make_inputs(random, {2, 3, 3, 5, 6, 8, 8});
    rejects(inputs, relative, {{"max_distance", -1}}, {"max_distance", "-1", "accepted"});
    rejects(inputs, relative, {{"mode", "alibi"}}, {"mode", "alibi", "xl"});
    rejects(inputs, relative, {{"mode", "t5"}, {"num_buckets", 31}}, {"num_buckets", "31", "even"});
    rejects(inputs, relative, {{"mode", "t5"}, {"num_buckets", 2}}, {"num_buckets", "2", "4"});
    rejects(inputs, relative, {{"mode", "t5"}, {"num_buckets", 1}, {"causal", true}}, {"num_buckets", "1", "2"});
    rejects(inputs, relative, {{"mode", "t5"}, {"num_buckets", 31}, {"causal", true}, {"bidirectional", true}},
            {"num_buckets", "31", "even"});
    CHECK(forward(inputs, relative, {{"mode", "t5"}, {"num_buckets", 31}, {"causal", true}}).output.size() > 0);
    rejects(inputs, relative, {{"mode", "t5"}, {"max_distance", 8}}, {"max_distance", "8", "num_buckets", "32"});
    rejects(inputs, relative, {{"mode", "t5"}, {"max_distance", 16}, {"causal", true}},
            {"max_distance", "16", "num_buckets", "32"});
    rejects(inputs, relative, {{"mode", "xl"}, {"rel_dim", 7}}, {"rel_dim", "7", "even"});
    rejects(make_inputs(random, {1, 3, 3, 5, 5, 7, 7}), relative, {{"mode", "xl"}}, {"rel_dim", "21", "even"});
}

TEST_CASE("relative-position-attention: rejects segments without xl or alone") {
    Random random(2);
    ForwardInputs inputs = make_inputs(random, {1, 2, 2, 5, 6, 8, 8});
    inputs.extra = {{"segment_ids_q", ints({1, 5}, range(0, 5))}, {"segment_ids_k", ints({1, 6}, range(0, 6))}};
    for (const char* mode : {"shaw", "t5"}) rejects(inputs, relative, {{"mode", mode}}, {"segment_ids_q", "mode"});
    inputs.extra[1].second = ints({1, 5}, range(0, 5));
    rejects(inputs, relative, {{"mode", "xl"}}, {"segment_ids_k", "5", "6"});
    inputs.extra.pop_back();
    rejects(inputs, relative, {{"mode", "xl"}}, {"segment_ids_q", "segment_ids_k"});
}

TEST_CASE("relative-position-attention: rejects tables of other shapes") {
    Random random(3);
    const ForwardInputs bare = make_inputs(random, {1, 4, 2, 5, 6, 8, 7});
    const auto refused = [&](const char* name, std::vector<std::int64_t> shape, const NamedValues& options,
                             std::initializer_list<const char*> texts) {
        ForwardInputs inputs = bare;
        inputs.weights = {{name, normal(random, std::move(shape))}};
        rejects(inputs, relative, options, texts);
    };
    refused("rel_k", {1, 6, 8}, {{"max_distance", 3}}, {"rel_k", "6", "7"});
    refused("rel_k", {4, 33, 8}, {}, {"rel_k", "4", "1"});
    refused("rel_k", {1, 33, 8}, {{"per_head_tables", true}}, {"rel_k", "1", "4"});
    refused("rel_v", {1, 33, 8}, {}, {"rel_v", "8", "7"});
    refused("rel_v", {1, 33, 7}, {{"use_value_embedding", false}}, {"rel_v", "switched off"});
    refused("rel_bias", {32, 2}, {{"mode", "t5"}}, {"rel_bias", "2", "4"});
    refused("rel_bias", {30, 4}, {{"mode", "t5"}}, {"rel_bias", "30", "32"});
    refused("rel_bias", {32, 4}, {}, {"rel_bias", "switched off"});
    refused("rel_proj", {4, 8, 30}, {{"mode", "xl"}}, {"rel_proj", "30", "32"});
    refused("u", {2, 8}, {{"mode", "xl"}}, {"u", "2", "4"});
    refused("seg_u", {4, 8}, {{"mode", "xl"}}, {"seg_u", "switched off"});
}
