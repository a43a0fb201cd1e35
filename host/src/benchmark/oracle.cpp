// SPDX-License-Identifier: Apache-2.0
#include "benchmark/oracle.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace attend::benchmark {
namespace {

constexpr double minus_infinity = -std::numeric_limits<double>::infinity();

std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

// [B,H,N,D] in double.
struct Rows {
    std::vector<double> values;
    std::int64_t heads, length, width;
    explicit Rows(const Tensor& tensor)
        : values(elements(tensor)), heads(tensor.shape[1]), length(tensor.shape[2]), width(tensor.shape[3]) {}
    [[nodiscard]] const double* row(std::int64_t b, std::int64_t h, std::int64_t i) const {
        return values.data() + ((b * heads + h) * length + i) * width;
    }
};

// A tensor broadcast to [B,H,Nq,Nk].
struct Broadcast {
    std::vector<double> values;
    std::vector<std::int64_t> shape;
    explicit Broadcast(const std::optional<Tensor>& tensor) {
        if (!tensor) return;
        values = elements(*tensor);
        shape = tensor->shape;
        if (shape.size() == 3) shape.insert(shape.begin() + 1, 1);
        while (shape.size() < 4) shape.insert(shape.begin(), 1);
    }
    [[nodiscard]] bool given() const { return !shape.empty(); }
    [[nodiscard]] double at(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
        const std::int64_t place[] = {b, h, i, j};
        std::int64_t offset = 0;
        for (std::size_t axis = 0; axis < 4; ++axis)
            offset = offset * shape[axis] + (shape[axis] == 1 ? 0 : place[axis]);
        return values[size(offset)];
    }
};

const OptionValue* option_of(const CallPlan& plan, const char* name) {
    for (const OptionValue& value : plan.values)
        if (value.name == name) return &value;
    return nullptr;
}

// Whether an enumeration has this choice in force; true where there is no such option.
bool has_choice(const CallPlan& plan, const char* name, const char* choice) {
    const OptionValue* value = option_of(plan, name);
    const OptionSpec* spec = plan.mechanism->find_option(name);
    if (value == nullptr || spec == nullptr) return true;
    const auto* index = std::get_if<std::int64_t>(&value->value);
    return index != nullptr && *index >= 0 && size(*index) < spec->choices.size() &&
           spec->choices[size(*index)] == choice;
}

// Built-in mechanisms whose core form is softmax attention and nothing else. Others that are exact too add terms of
// their own to the scores; of a plugin, `exact` means this.
bool plain_softmax(const MechanismRecord& mechanism) {
    static const std::vector<std::string> names{"standard-mha",
                                                "grouped-query-attention",
                                                "multi-query-attention",
                                                "causal-self-attention",
                                                "bidirectional-self-attention",
                                                "cross-attention",
                                                "flash-attention-v2",
                                                "flash-decoding"};
    if (mechanism.built_in && mechanism.name == "flash-attention-v3") return true;  // but for its rounding
    return mechanism.numerics == ATTEND_EXACT &&
           (!mechanism.built_in || std::find(names.begin(), names.end(), mechanism.name) != names.end());
}

bool plain_heads(const ForwardInputs& inputs) {
    return inputs.query.rank() == 4 && !inputs.query_lengths && !inputs.key_lengths;
}

}  // namespace

std::vector<double> elements(const Tensor& tensor) {
    const Result<Tensor> wide = convert(tensor, DType::f64);
    if (!wide) return {};
    const Result<Tensor> rows = contiguous_copy(*wide);
    if (!rows) return {};
    const auto* data = rows->as<const double>();
    return {data, data + rows->size()};
}

std::vector<double> dense_attention(const ForwardInputs& inputs, const attend_plan_desc& desc) {
    const Rows query(inputs.query), key(*inputs.key), value(*inputs.value);
    const Broadcast mask(inputs.mask), bias(inputs.bias);
    std::vector<double> slopes;
    for (const auto& [name, tensor] : inputs.extra)
        if (name == "alibi_slopes") slopes = elements(tensor);
    const std::int64_t batch = inputs.query.shape[0];
    const double scale = desc.scale == 0.0 ? 1.0 / std::sqrt(static_cast<double>(query.width)) : desc.scale;
    const bool causal = (desc.flags & ATTEND_PLAN_CAUSAL) != 0;
    std::vector<double> output(size(batch * query.heads * query.length * value.width), 0.0), scores(size(key.length));
    for (std::int64_t b = 0; b < batch; ++b)
        for (std::int64_t h = 0; h < query.heads; ++h)
            for (std::int64_t i = 0; i < query.length; ++i) {
                const std::int64_t kv = h * key.heads / query.heads, position = i + desc.causal_offset;
                const double* q = query.row(b, h, i);
                double largest = minus_infinity, sum = 0.0;
                for (std::int64_t j = 0; j < key.length; ++j) {
                    double& score = scores[size(j)];
                    score = minus_infinity;
                    if (causal && j > position) continue;
                    if (desc.window_left >= 0 && j < position - desc.window_left) continue;
                    if (desc.window_right >= 0 && j > position + desc.window_right) continue;
                    if (mask.given() && mask.at(b, h, i, j) == 0.0) continue;
                    const double* k = key.row(b, kv, j);
                    double dot = 0.0;
                    for (std::int64_t d = 0; d < query.width; ++d) dot += q[d] * k[d];
                    score = scale * dot;
                    if (desc.softcap > 0) score = desc.softcap * std::tanh(score / desc.softcap);
                    if (bias.given()) score += bias.at(b, h, i, j);
                    if (!slopes.empty()) score -= slopes[size(h)] * std::abs(static_cast<double>(position - j));
                    largest = std::max(largest, score);
                }
                if (largest == minus_infinity) continue;
                double* out = output.data() + ((b * query.heads + h) * query.length + i) * value.width;
                for (std::int64_t j = 0; j < key.length; ++j) {
                    if (scores[size(j)] == minus_infinity) continue;
                    const double weight = std::exp(scores[size(j)] - largest);
                    sum += weight;
                    const double* v = value.row(b, kv, j);
                    for (std::int64_t d = 0; d < value.width; ++d) out[d] += weight * v[d];
                }
                for (std::int64_t d = 0; d < value.width; ++d) out[d] /= sum;
            }
    return output;
}

std::vector<double> linear_attention(const ForwardInputs& inputs, const attend_plan_desc& desc, double eps) {
    const Rows query(inputs.query), key(*inputs.key), value(*inputs.value);
    const auto feature = [](double x) { return x > 0 ? x + 1.0 : std::exp(x); };
    const std::int64_t batch = inputs.query.shape[0];
    const bool causal = (desc.flags & ATTEND_PLAN_CAUSAL) != 0;
    std::vector<double> output(size(batch * query.heads * query.length * value.width), 0.0);
    for (std::int64_t b = 0; b < batch; ++b)
        for (std::int64_t h = 0; h < query.heads; ++h)
            for (std::int64_t i = 0; i < query.length; ++i) {
                const std::int64_t kv = h * key.heads / query.heads;
                const double* q = query.row(b, h, i);
                double* out = output.data() + ((b * query.heads + h) * query.length + i) * value.width;
                double sum = 0.0;
                for (std::int64_t j = 0; j < key.length && !(causal && j > i + desc.causal_offset); ++j) {
                    const double *k = key.row(b, kv, j), *v = value.row(b, kv, j);
                    double weight = 0.0;
                    for (std::int64_t d = 0; d < query.width; ++d) weight += feature(q[d]) * feature(k[d]);
                    sum += weight;
                    for (std::int64_t d = 0; d < value.width; ++d) out[d] += weight * v[d];
                }
                for (std::int64_t d = 0; d < value.width; ++d) out[d] /= sum + eps;
            }
    return output;
}

std::vector<double> projection(const ForwardInputs& inputs) {
    const Rows input(inputs.query), weight(*inputs.key);
    std::vector<double> output(size(input.length * weight.length));
    for (std::int64_t i = 0; i < input.length; ++i)
        for (std::int64_t o = 0; o < weight.length; ++o) {
            double sum = 0.0;
            for (std::int64_t e = 0; e < input.width; ++e) sum += input.row(0, 0, i)[e] * weight.row(0, 0, o)[e];
            output[size(i * weight.length + o)] = sum;
        }
    return output;
}

std::optional<Expected> oracle_of(const CallSpec& spec, const ForwardInputs& given, const CallPlan& plan) {
    if (spec.projection) return Expected{projection(given), "float64 matrix product"};
    ForwardInputs inputs = given;
    if (!inputs.key) inputs.key = inputs.query;
    if (!inputs.value) inputs.value = inputs.key;
    if (!plain_heads(inputs) || plan.desc.dropout > 0) return std::nullopt;
    const MechanismRecord& mechanism = *plan.mechanism;
    bool only_slopes = true;
    for (const auto& [name, tensor] : inputs.extra) only_slopes = only_slopes && name == "alibi_slopes";
    if (plain_softmax(mechanism) && only_slopes && plan.weights.empty())
        return Expected{dense_attention(inputs, plan.desc), "float64 softmax"};
    if (mechanism.name == "linear-attention" && has_choice(plan, "feature_map", "elu") &&
        has_choice(plan, "kernel_type", "unset") && !inputs.mask && !inputs.bias) {
        const OptionValue* eps = option_of(plan, "eps");
        const double* number = eps != nullptr ? std::get_if<double>(&eps->value) : nullptr;
        return Expected{linear_attention(inputs, plan.desc, number != nullptr ? *number : 1e-6),
                        "float64 linear attention"};
    }
    return std::nullopt;
}

std::optional<Expected> pattern_oracle(const AttentionService& service, const ForwardInputs& given,
                                       const CallPlan& plan, const NamedValues& options) {
    ForwardInputs inputs = given;
    if (!inputs.key) inputs.key = inputs.query;
    if (!inputs.value) inputs.value = inputs.key;
    const MechanismRecord& mechanism = *plan.mechanism;
    const PortRecord* scores = mechanism.find_port("scores");
    const Result<PortShape> shape = PortShape::parse(scores != nullptr ? scores->shape : "");
    PortScope scope;
    scope.specs = &mechanism.options;
    scope.values = &plan.values;
    const ShapeAlternative* weights = scores != nullptr && shape ? shape->choose(scope) : nullptr;
    if (mechanism.numerics != ATTEND_APPROXIMATE || weights == nullptr || weights->text != "B,Hq,Nq,Nk" ||
        !plain_heads(inputs) || inputs.mask || !inputs.extra.empty() || !plan.weights.empty() || plan.desc.dropout > 0)
        return std::nullopt;
    CallSizes sizes;
    sizes.batch = plan.desc.batch;
    sizes.heads = plan.desc.num_q_heads;
    sizes.kv_heads = plan.desc.num_kv_heads;
    sizes.q_len = plan.desc.q_len;
    sizes.kv_len = plan.desc.kv_len;
    sizes.head_dim = plan.desc.head_dim;
    Result<Tensor> mask =
        Tensor::allocate(DType::boolean, {1, sizes.heads, sizes.q_len, sizes.kv_len}, Tensor::Fill::zero);
    if (!mask) return std::nullopt;
    for (std::int64_t head = 0; head < sizes.heads; ++head) {
        std::uint8_t* rows = mask->as<std::uint8_t>() + head * sizes.q_len * sizes.kv_len;
        const Result<void> seen = service.visit_pattern(
            mechanism.name, sizes, options, {head, 0, sizes.q_len, 1}, [&](const PatternRange& range) {
                for (std::int64_t j = range.begin; j < range.end; j += range.step)
                    rows[range.first_row * sizes.kv_len + j] = 1;
            });
        if (!seen) return std::nullopt;
    }
    inputs.mask = std::move(*mask);
    attend_plan_desc desc = plan.desc;
    desc.flags &= ~static_cast<decltype(desc.flags)>(ATTEND_PLAN_CAUSAL);
    desc.window_left = desc.window_right = -1;
    return Expected{dense_attention(inputs, desc), "float64 softmax over the keys of its pattern"};
}

double relative_error(const Tensor& output, const std::vector<double>& expected) {
    const std::vector<double> got = elements(output);
    if (got.size() != expected.size()) return std::numeric_limits<double>::infinity();
    double largest = 0.0, worst = 0.0;
    for (std::size_t at = 0; at < got.size(); ++at) {
        const double difference = std::abs(got[at] - expected[at]);
        if (!std::isfinite(difference)) return std::numeric_limits<double>::infinity();
        largest = std::max(largest, std::abs(expected[at]));
        worst = std::max(worst, difference);
    }
    return largest > 0 ? worst / largest : worst;
}

double tolerance(const CallSpec& spec, DType computed_in) {
    if (spec.mechanism.ends_with("flash-attention-v3")) {
        std::string precision = "bf16";
        for (const auto& [name, value] : spec.options)
            if (name == "precision" && value.is_string()) precision = value.as_string();
        if (precision == "int8") return 5e-2;
        if (precision == "fp8") return 2e-1;
        if (precision == "bf16") return 2e-2;
    }
    // Eight bits of mantissa in the inputs, the weights and the output, and sums of them; float32 loses with the length
    // of its sums.
    if (computed_in == DType::bf16 || spec.dtype == DType::bf16) return 2e-2;
    if (computed_in == DType::f16 || spec.dtype == DType::f16) return 4e-3;
    return 5e-5;
}

}  // namespace attend::benchmark
