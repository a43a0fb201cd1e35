// SPDX-License-Identifier: Apache-2.0
// Dense attention whose scores lose m_h |i' - j|, or m_h (i' - j); slopes, positions and offsets by the formula.
#include <algorithm>

#include "specs/spec.hpp"

namespace {

using specs::Call;

const attend::Tensor* find(const std::vector<std::pair<std::string, attend::Tensor>>& list, const std::string& name) {
    for (const auto& [key, tensor] : list)
        if (key == name) return &tensor;
    return nullptr;
}

double slope(const Call& call, std::int64_t b, std::int64_t h) {
    if (const attend::Tensor* given = find(call.inputs->weights, "slopes")) {
        const std::int64_t heads = given->shape.back();
        return static_cast<double>(given->as<const float>()[(given->rank() == 2 ? b * heads : 0) + h]);
    }
    const auto heads = call.inputs->query.shape[1];
    const double most = call.number("max_bias", 8.0), power = std::exp2(std::floor(std::log2(heads)));
    const auto head = static_cast<double>(h);
    return head < power ? std::pow(2.0, -most * (head + 1) / power)
                        : std::pow(2.0, -most * (2 * (head - power) + 1) / (2 * power));
}

double position(const Call& call, const char* name, std::int64_t b, std::int64_t at, std::int64_t otherwise) {
    const attend::Tensor* given = find(call.inputs->extra, name);
    if (given == nullptr) return static_cast<double>(otherwise);
    const std::int64_t place = (given->rank() == 2 ? b * given->shape[1] : 0) + at;
    return given->dtype == attend::DType::i64 ? static_cast<double>(given->as<const std::int64_t>()[place])
                                              : static_cast<double>(given->as<const std::int32_t>()[place]);
}

// The oracle has one bias; the penalty is added to the caller's.
specs::Expected expected(const Call& call) {
    const specs::ForwardInputs& in = *call.inputs;
    const auto b = in.query.shape[0], h = in.query.shape[1], nq = in.query.shape[2],
               nk = (in.key ? *in.key : in.query).shape[2];
    const bool is_signed = call.word("distance") == "signed";
    specs::ForwardInputs with = in;
    with.bias = attend::Tensor::allocate(attend::DType::f32, {b, h, nq, nk}).value();
    const auto given = [&](std::int64_t at_b, std::int64_t at_h, std::int64_t i, std::int64_t j) {
        if (!in.bias) return 0.0;
        const auto& shape = in.bias->shape;
        const auto& strides = in.bias->strides;
        const std::int64_t at[4] = {at_b, at_h, i, j};
        std::int64_t place = 0;
        for (std::size_t axis = 0, rank = shape.size(); axis < rank; ++axis)
            place += shape[axis] == 1 ? 0 : strides[axis] * at[4 - rank + axis];
        return static_cast<double>(in.bias->as<const float>()[place]);
    };
    for (std::int64_t item = 0, next = 0; item < b; ++item)
        for (std::int64_t head = 0; head < h; ++head)
            for (std::int64_t i = 0; i < nq; ++i)
                for (std::int64_t j = 0; j < nk; ++j, ++next) {
                    const double distance = position(call, "positions_q", item, i, i + specs::offset_of(call, item)) -
                                            position(call, "positions_k", item, j, j);
                    with.bias->as<float>()[next] =
                        static_cast<float>(given(item, head, i, j) -
                                           slope(call, item, head) * (is_signed ? distance : std::abs(distance)));
                }
    const Call other{&with, call.options};
    return specs::dense(
        other, [](const specs::Place&) { return true; }, true, true);
}

// Half of the calls get positions and slopes of their own, for one item or for each.
void more(specs::ForwardInputs& inputs, const specs::NamedValues& options, specs::Numbers& numbers) {
    if (numbers.below(2) == 0) return;
    const auto b = inputs.query.shape[0], h = inputs.query.shape[1];
    const auto positions = [&](const char* name, std::int64_t n) {
        const bool each = numbers.below(2) == 0, wide = numbers.below(2) == 0;
        attend::Tensor tensor = attend::Tensor::allocate(wide ? attend::DType::i64 : attend::DType::i32,
                                                         each ? std::vector<std::int64_t>{b, n} : std::vector{n})
                                    .value();
        for (std::int64_t at = 0; at < tensor.size(); ++at) {
            const std::int64_t position = numbers.below(60) - 20;
            if (wide)
                tensor.as<std::int64_t>()[at] = position;
            else
                tensor.as<std::int32_t>()[at] = static_cast<std::int32_t>(position);
        }
        inputs.extra.emplace_back(name, tensor);
    };
    if (numbers.below(3) != 0) positions("positions_q", inputs.query.shape[2]);
    if (numbers.below(3) != 0) positions("positions_k", (inputs.key ? *inputs.key : inputs.query).shape[2]);
    const bool slopes_apply =
        std::none_of(options.begin(), options.end(), [](const auto& option) { return option.first == "max_bias"; });
    if (!slopes_apply) return;
    attend::Tensor slopes =
        numbers.normal(numbers.below(2) == 0 ? std::vector<std::int64_t>{b, h} : std::vector<std::int64_t>{h});
    for (std::int64_t at = 0; at < slopes.size(); ++at) slopes.as<float>()[at] *= 0.2f;
    inputs.weights.emplace_back("slopes", slopes);
}

const specs::Registration spec({.mechanism = "alibi-mha",
                                .oracle = expected,
                                .variants = {{{"causal", false}},
                                             {{"causal", false}, {"distance", "signed"}},
                                             {{"max_bias", 4.0}},
                                             {{"softcap", 2.0}, {"causal", false}},
                                             {{"dropout", 0.1}, {"seed", 3}},
                                             {{"window_left", 5}},
                                             {{"causal_alignment", "top-left"}},
                                             {{"causal_offset", 3}, {"causal", false}}},
                                .more = more});

}  // namespace
