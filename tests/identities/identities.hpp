// SPDX-License-Identifier: Apache-2.0
// What the tests of identities share: random shapes, tensors taken apart and put together, comparisons, refusals.
// A test case is named "<mechanism>: <identity>", the identity as its page calls it, or "<mechanism>: rejects ...".
#pragma once

#include <functional>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "support/calls.hpp"

namespace identities {

using namespace support;
using attend::ForwardInputs;
using attend::ForwardResult;
using attend::NamedValues;
using attend::Tensor;

// Runs a body on `count` random shapes; each failure names the shape and the seed.
struct Limits {
    std::int64_t batch{2}, heads{4}, group{1}, length{70}, width{20};
    bool square{true};      // Nq = Nk
    bool same_width{true};  // Dv = D
};
void on_random_shapes(const Limits& limits, const std::function<void(Random&, const Shape&)>& body, int count = 4,
                      std::uint64_t seed = 1);

// Like support::run, with log-sum-exp.
ForwardResult forward(const ForwardInputs& inputs, const std::string& mechanism, NamedValues options = {},
                      bool scores = false);

// Every element agrees within tolerance * (1 + its size); infinities of one sign agree, NaN with nothing.
bool agree(const std::vector<float>& a, const std::vector<float>& b, double tolerance = 1e-5);
inline bool agree(const Tensor& a, const Tensor& b, double tolerance = 1e-5) {
    return a.shape == b.shape && agree(values(a), values(b), tolerance);
}
// Output and log-sum-exp of two calls.
inline bool agree(const ForwardResult& a, const ForwardResult& b, double tolerance = 1e-5) {
    return agree(a.output, b.output, tolerance) && agree(*a.lse, *b.lse, tolerance);
}

Tensor filled(std::vector<std::int64_t> shape, float value);
Tensor bools(std::vector<std::int64_t> shape, const std::function<bool(const std::vector<std::int64_t>&)>& at);
Tensor ints(std::vector<std::int64_t> shape, const std::vector<std::int64_t>& numbers);

std::vector<std::int64_t> range(std::int64_t first, std::int64_t end);
std::vector<std::int64_t> shuffled(Random& random, std::int64_t count);

// The entries `which` of one axis, in that order, as a tensor of its own: slices, permutations, repetitions.
Tensor take(const Tensor& from, std::size_t axis, const std::vector<std::int64_t>& which);

// Two tensors one behind the other along an axis.
Tensor joined(const Tensor& a, const Tensor& b, std::size_t axis);

// Element by element: f(tensor's value).
Tensor mapped(const Tensor& from, const std::function<float(float)>& f);

// Element (a, b, c, d) of a float tensor of rank 4, writable where the tensor is its own (make_inputs, filled, take).
inline float& at(const Tensor& tensor, std::int64_t a, std::int64_t b, std::int64_t c, std::int64_t d) {
    const auto& s = tensor.strides;
    return tensor.as<float>()[a * s[0] + b * s[1] + c * s[2] + d * s[3]];
}
inline float& at(const Tensor& tensor, std::int64_t a, std::int64_t b, std::int64_t c) {
    const auto& s = tensor.strides;
    return tensor.as<float>()[a * s[0] + b * s[1] + c * s[2]];
}

// y = x W^T + b in double precision; b may be NULL.
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor* bias = nullptr);
// [B, N, H*D] as [B, H, N, D] and back, without copying where the strides allow it.
Tensor heads_of(const Tensor& packed, std::int64_t heads);
Tensor packed_heads(const Tensor& heads);
// Weights as initialisers would draw them: results stay of the size of the inputs.
Tensor layer(Random& random, std::int64_t out, std::int64_t in);

// Rule C6: results over disjoint sets of keys as one.
struct Partial {
    std::vector<float> output, lse;
};
Partial merged(const ForwardResult& a, const ForwardResult& b);

// The call must fail, and its sentence must contain every text.
void rejects(const ForwardInputs& inputs, const std::string& mechanism, NamedValues options,
             std::initializer_list<const char*> texts, std::int64_t heads = 0, std::int64_t kv_heads = 0);

}  // namespace identities
