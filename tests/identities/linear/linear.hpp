// SPDX-License-Identifier: Apache-2.0
// What the identities of linear mechanisms share: calls with or without log-sum-exp, and what holds for all that collapse
// keys into a state.
#pragma once

#include "identities/identities.hpp"
#include "specs/linear/quadratic.hpp"

namespace identities {

using specs::linear::Row;

// Without log-sum-exp unless it is asked for.
inline ForwardResult call(const ForwardInputs& inputs, const std::string& mechanism, NamedValues options = {},
                          bool lse = false) {
    return run(service(), inputs, mechanism, std::move(options), lse);
}
inline NamedValues with(NamedValues options, NamedValues more) {
    options.insert(options.end(), more.begin(), more.end());
    return options;
}

// Rows (a, b) of a [B,H,N,D] tensor times a factor.
inline Row row(const Tensor& tensor, std::int64_t b, std::int64_t h, std::int64_t n, double factor = 1.0) {
    Row out;
    for (std::int64_t d = 0; d < tensor.shape[3]; ++d)
        out.push_back(factor * static_cast<double>(at(tensor, b, h, n, d)));
    return out;
}

// Largest distance to a quadratic form of one head: o_i = sum_j a(i, j) v_j / guard(sum_j a(i, j)), keys up to last(i).
inline double distance_to_form(const Tensor& output, const Tensor& value, std::int64_t b, std::int64_t h,
                               const std::function<double(std::int64_t, std::int64_t)>& weight,
                               const std::function<double(double)>& guard,
                               const std::function<std::int64_t(std::int64_t)>& last) {
    double worst = 0;
    const std::int64_t kv = h * value.shape[1] / output.shape[1];
    for (std::int64_t i = 0; i < output.shape[2]; ++i) {
        double den = 0;
        Row num(static_cast<std::size_t>(value.shape[3]), 0.0);
        bool any = false;
        for (std::int64_t j = 0; j < value.shape[2] && j <= last(i); ++j) {
            const double a = weight(i, j);
            any = true;
            den += a;
            for (std::int64_t c = 0; c < value.shape[3]; ++c)
                num[static_cast<std::size_t>(c)] += a * static_cast<double>(at(value, b, kv, j, c));
        }
        const double guarded = any ? guard(den) : 0;
        for (std::int64_t c = 0; c < value.shape[3]; ++c) {
            const double expected = guarded == 0 ? 0 : num[static_cast<std::size_t>(c)] / guarded;
            worst = std::max(worst, std::abs(expected - static_cast<double>(at(output, b, h, i, c))));
        }
    }
    return worst;
}

// The order of the keys does not matter where a call is not causal.
inline void check_key_order(const std::string& mechanism, const NamedValues& options = {}, double tolerance = 1e-5) {
    on_random_shapes({.group = 2, .square = false, .same_width = false}, [&](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        const Tensor before = call(inputs, mechanism, options).output;
        const auto order = shuffled(random, shape.kv_len);
        inputs.key = take(*inputs.key, 2, order);
        inputs.value = take(*inputs.value, 2, order);
        CHECK(agree(before, call(inputs, mechanism, options).output, tolerance));
    });
}

// The last causal row sees every key, as all rows do without causality.
inline void check_last_row(const std::string& mechanism, const NamedValues& options = {}) {
    on_random_shapes({.group = 2, .length = 180, .same_width = false}, [&](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const std::vector<std::int64_t> last = {shape.q_len - 1};
        CHECK(agree(take(call(inputs, mechanism, with(options, {{"causal", true}})).output, 2, last),
                    take(call(inputs, mechanism, options).output, 2, last)));
    });
}

// A later key changes no bit of an earlier causal row.
inline void check_future(const std::string& mechanism, NamedValues options = {}) {
    options.emplace_back("causal", true);
    on_random_shapes({.group = 2, .length = 180, .same_width = false}, [&](Random& random, const Shape& shape) {
        ForwardInputs inputs = make_inputs(random, shape);
        const Tensor before = call(inputs, mechanism, options).output;
        const std::int64_t cut = 1 + random.below(shape.kv_len - 1);
        for (auto* tensor : {&inputs.key, &inputs.value}) {
            *tensor = take(**tensor, 2, range(0, shape.kv_len));
            for (std::int64_t j = cut; j < shape.kv_len; ++j)
                for (std::int64_t d = 0; d < (*tensor)->shape[3]; ++d) at(**tensor, 0, 0, j, d) = j % 2 ? 1e4f : NAN;
        }
        CHECK(
            same_bits(take(before, 2, range(0, cut)), take(call(inputs, mechanism, options).output, 2, range(0, cut))));
    });
}

// Decoding with keys that come one by one gives the rows of one causal call.
inline void check_decoding(const std::string& mechanism, NamedValues options = {}) {
    options.emplace_back("causal", true);
    on_random_shapes({.group = 2, .length = 90, .same_width = false}, [&](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const Tensor whole = call(inputs, mechanism, options).output;
        for (const std::int64_t i : {std::int64_t{0}, shape.q_len / 2, shape.q_len - 1}) {
            ForwardInputs one = inputs;
            one.query = take(inputs.query, 2, {i});
            one.key = take(*inputs.key, 2, range(0, i + 1));
            one.value = take(*inputs.value, 2, range(0, i + 1));
            CHECK(agree(take(whole, 2, {i}), call(one, mechanism, options).output));
        }
    });
}

// Bits do not depend on the number of threads.
inline void check_threads(const std::string& mechanism, const NamedValues& options = {}) {
    Random random(3);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 1, 1300, 1300, 16, 16});
    const Tensor one = run(service("auto", 1), inputs, mechanism, options).output;
    for (const int threads : {2, 3})
        CHECK(same_bits(one, run(service("auto", threads), inputs, mechanism, options).output));
}

// What acts on single scores is refused, with its value and a mechanism that takes it.
inline void check_refuses_pairs(const std::string& mechanism, bool has_scores = false) {
    Random random(2);
    ForwardInputs inputs = make_inputs(random, {1, 2, 2, 6, 6, 8, 8});
    if (!has_scores) {
        rejects(inputs, mechanism, {{"softcap", 3.0}}, {"softcap", "3", "flash-attention-v2"});
        rejects(inputs, mechanism, {{"dropout", 0.25}}, {"dropout", "0.25", "flash-attention-v2"});
    }
    rejects(inputs, mechanism, {{"window_size", 4}}, {"window_size", "4", "local-attention"});
    rejects(inputs, mechanism, {{"window_left", 2}}, {"window_left", "2", "local-attention"});
    rejects(inputs, mechanism, {{"window_right", 0}}, {"window_right", "0", "local-attention"});
    inputs.mask = bools({6, 6}, [](const auto&) { return true; });
    rejects(inputs, mechanism, {}, {"mask", "6", "flash-attention-v2"});
    inputs.mask.reset();
    inputs.bias = filled({1, 2, 6, 6}, 0.0f);
    rejects(inputs, mechanism, {}, {"bias", "flash-attention-v2"});
}

}  // namespace identities
