// SPDX-License-Identifier: Apache-2.0
#include "identities/identities.hpp"

namespace identities {

void on_random_shapes(const Limits& limits, const std::function<void(Random&, const Shape&)>& body, int count,
                      std::uint64_t seed) {
    for (int round = 0; round < count; ++round) {
        Random random(seed * 1000 + static_cast<std::uint64_t>(round));
        Shape shape;
        shape.batch = 1 + random.below(limits.batch);
        shape.kv_heads = 1 + random.below(limits.heads);
        shape.heads = shape.kv_heads * (1 + random.below(limits.group));
        shape.kv_len = 3 + random.below(limits.length);
        shape.q_len = limits.square ? shape.kv_len : 2 + random.below(limits.length);
        shape.head_dim = 2 + random.below(limits.width);
        shape.value_dim = limits.same_width ? shape.head_dim : 2 + random.below(limits.width);
        INFO(shape.text() << ", round " << round << " of seed " << seed);
        body(random, shape);
    }
}

ForwardResult forward(const ForwardInputs& inputs, const std::string& mechanism, NamedValues options, bool scores) {
    return run(service(), inputs, mechanism, std::move(options), true, scores);
}

bool agree(const std::vector<float>& a, const std::vector<float>& b, double tolerance) {
    if (a.size() != b.size()) return false;
    for (std::size_t at = 0; at < a.size(); ++at) {
        const double x = static_cast<double>(a[at]), y = static_cast<double>(b[at]);
        if (x == y) continue;
        if (!(std::abs(x - y) <= tolerance * (1.0 + std::abs(y)))) {
            UNSCOPED_INFO("element " << at << ": " << x << " and " << y);
            return false;
        }
    }
    return true;
}

Tensor filled(std::vector<std::int64_t> shape, float value) {
    Tensor tensor = Tensor::allocate(attend::DType::f32, std::move(shape)).value();
    std::fill(tensor.as<float>(), tensor.as<float>() + tensor.size(), value);
    return tensor;
}

Tensor bools(std::vector<std::int64_t> shape, const std::function<bool(const std::vector<std::int64_t>&)>& at) {
    Tensor tensor = Tensor::allocate(attend::DType::boolean, std::move(shape)).value();
    for (std::int64_t flat = 0; flat < tensor.size(); ++flat) {
        std::vector<std::int64_t> index(tensor.shape.size());
        for (std::size_t axis = index.size(), rest = static_cast<std::size_t>(flat); axis-- > 0;) {
            const auto extent = static_cast<std::size_t>(tensor.shape[axis]);
            index[axis] = static_cast<std::int64_t>(rest % extent);
            rest /= extent;
        }
        tensor.as<std::uint8_t>()[flat] = at(index) ? 1 : 0;
    }
    return tensor;
}

Tensor ints(std::vector<std::int64_t> shape, const std::vector<std::int64_t>& numbers) {
    Tensor tensor = Tensor::allocate(attend::DType::i32, std::move(shape)).value();
    for (std::size_t at = 0; at < numbers.size(); ++at)
        tensor.as<std::int32_t>()[at] = static_cast<std::int32_t>(numbers[at]);
    return tensor;
}

std::vector<std::int64_t> range(std::int64_t first, std::int64_t end) {
    std::vector<std::int64_t> numbers(static_cast<std::size_t>(end > first ? end - first : 0));
    std::iota(numbers.begin(), numbers.end(), first);
    return numbers;
}

std::vector<std::int64_t> shuffled(Random& random, std::int64_t count) {
    std::vector<std::int64_t> order = range(0, count);
    for (std::int64_t at = count; at > 1; --at)
        std::swap(order[static_cast<std::size_t>(at - 1)], order[static_cast<std::size_t>(random.below(at))]);
    return order;
}

Tensor take(const Tensor& from, std::size_t axis, const std::vector<std::int64_t>& which) {
    const Tensor flat = attend::contiguous_copy(from).value();
    std::vector<std::int64_t> shape = flat.shape;
    const std::int64_t extent = shape[axis];
    shape[axis] = static_cast<std::int64_t>(which.size());
    std::int64_t outer = 1, inner = static_cast<std::int64_t>(attend::dtype_size(flat.dtype));
    for (std::size_t at = 0; at < axis; ++at) outer *= shape[at];
    for (std::size_t at = axis + 1; at < shape.size(); ++at) inner *= shape[at];
    Tensor to = Tensor::allocate(flat.dtype, shape).value();
    const char* source = static_cast<const char*>(flat.data);
    char* target = static_cast<char*>(to.data);
    for (std::int64_t row = 0; row < outer; ++row)
        for (const std::int64_t entry : which) {
            std::memcpy(target, source + (row * extent + entry) * inner, static_cast<std::size_t>(inner));
            target += inner;
        }
    return to;
}

Tensor joined(const Tensor& a, const Tensor& b, std::size_t axis) {
    const Tensor x = attend::contiguous_copy(a).value(), y = attend::contiguous_copy(b).value();
    std::vector<std::int64_t> shape = x.shape;
    shape[axis] += y.shape[axis];
    std::int64_t outer = 1, inner = static_cast<std::int64_t>(attend::dtype_size(x.dtype));
    for (std::size_t at = 0; at < axis; ++at) outer *= shape[at];
    for (std::size_t at = axis + 1; at < shape.size(); ++at) inner *= shape[at];
    Tensor to = Tensor::allocate(x.dtype, shape).value();
    char* target = static_cast<char*>(to.data);
    for (std::int64_t row = 0; row < outer; ++row)
        for (const Tensor* part : {&x, &y}) {
            const auto bytes = static_cast<std::size_t>(part->shape[axis] * inner);
            std::memcpy(target, static_cast<const char*>(part->data) + row * static_cast<std::int64_t>(bytes), bytes);
            target += bytes;
        }
    return to;
}

Tensor mapped(const Tensor& from, const std::function<float(float)>& f) {
    Tensor to = attend::contiguous_copy(from).value();
    Tensor own = Tensor::allocate(attend::DType::f32, to.shape).value();
    for (std::int64_t at = 0; at < to.size(); ++at) own.as<float>()[at] = f(to.as<const float>()[at]);
    return own;
}

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor* bias) {
    const std::int64_t in = weight.shape[1], out = weight.shape[0];
    Tensor y = filled({x.shape[0], x.shape[1], out}, 0.0f);
    for (std::int64_t b = 0; b < x.shape[0]; ++b)
        for (std::int64_t n = 0; n < x.shape[1]; ++n)
            for (std::int64_t o = 0; o < out; ++o) {
                double sum = bias != nullptr ? static_cast<double>(bias->as<float>()[o]) : 0.0;
                for (std::int64_t e = 0; e < in; ++e)
                    sum += static_cast<double>(at(x, b, n, e)) * static_cast<double>(weight.as<float>()[o * in + e]);
                at(y, b, n, o) = static_cast<float>(sum);
            }
    return y;
}

Tensor heads_of(const Tensor& packed, std::int64_t heads) {
    const std::int64_t rows = packed.shape[1], width = packed.shape[2] / heads;
    return packed.view({packed.shape[0], heads, rows, width}, {rows * heads * width, width, heads * width, 1});
}

Tensor packed_heads(const Tensor& heads) {
    const auto& s = heads.shape;
    Tensor to = filled({s[0], s[2], s[1] * s[3]}, 0.0f);
    for (std::int64_t b = 0; b < s[0]; ++b)
        for (std::int64_t h = 0; h < s[1]; ++h)
            for (std::int64_t n = 0; n < s[2]; ++n)
                for (std::int64_t d = 0; d < s[3]; ++d) at(to, b, n, h * s[3] + d) = at(heads, b, h, n, d);
    return to;
}

Tensor layer(Random& random, std::int64_t out, std::int64_t in) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(in));
    return mapped(normal(random, {out, in}), [scale](float x) { return x * scale; });
}

Partial merged(const ForwardResult& a, const ForwardResult& b) {
    const std::vector<float> oa = values(a.output), ob = values(b.output), la = values(*a.lse), lb = values(*b.lse);
    Partial to{oa, la};
    const std::size_t width = la.empty() ? 0 : oa.size() / la.size();
    for (std::size_t row = 0; row < la.size(); ++row) {
        const double x = static_cast<double>(la[row]), y = static_cast<double>(lb[row]), most = std::max(x, y);
        const bool none = most == -std::numeric_limits<double>::infinity();
        const double sum = none ? most : most + std::log(std::exp(x - most) + std::exp(y - most));
        to.lse[row] = static_cast<float>(sum);
        for (std::size_t d = 0; d < width; ++d)
            to.output[row * width + d] =
                none ? 0.0f
                     : static_cast<float>(std::exp(x - sum) * static_cast<double>(oa[row * width + d]) +
                                          std::exp(y - sum) * static_cast<double>(ob[row * width + d]));
    }
    return to;
}

void rejects(const ForwardInputs& inputs, const std::string& mechanism, NamedValues options,
             std::initializer_list<const char*> texts, std::int64_t heads, std::int64_t kv_heads) {
    attend::ForwardOptions call;
    call.mechanism = mechanism;
    call.options = std::move(options);
    call.heads = heads;
    call.kv_heads = kv_heads;
    const auto result = service().forward(inputs, call);
    REQUIRE_FALSE(result);
    INFO(result.error().message);
    for (const char* text : texts) CHECK(result.error().message.find(text) != std::string::npos);
}

}  // namespace identities
