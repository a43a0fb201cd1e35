// SPDX-License-Identifier: Apache-2.0
// A dilated window and global tokens; rows on global positions are dense on projections of their own.
#include <cmath>

#include "specs/spec.hpp"

namespace {

const attend::Tensor* input_of(const specs::Call& call, const char* name) {
    for (const auto& [given, tensor] : call.inputs->extra)
        if (given == name) return &tensor;
    return nullptr;
}
const attend::Tensor* weight_of(const specs::Call& call, const char* name) {
    for (const auto& [given, tensor] : call.inputs->weights)
        if (given == name) return &tensor;
    return nullptr;
}
bool is_global(const specs::Call& call, std::int64_t b, std::int64_t position) {
    if (const attend::Tensor* mask = input_of(call, "global_mask"))
        return position >= 0 && position < mask->shape[1] &&
               mask->as<const std::uint8_t>()[b * mask->strides[0] + position * mask->strides[1]] != 0;
    const attend::Json* tokens = call.options.find("global_tokens");
    if (tokens != nullptr && tokens->is_array())
        for (const attend::Json& token : tokens->as_array())
            if (token.as_int64() == position) return true;
    return false;
}

specs::Expected oracle_of(const specs::Call& call) {
    const auto w = static_cast<std::int64_t>(call.number("window_size", 256));
    const attend::Json* dilation = call.options.find("dilation");
    const auto step = [&](std::int64_t h) {
        if (dilation->is_number()) return dilation->as_int64();
        const auto& list = dilation->as_array();
        return list[list.size() > 1 ? static_cast<std::size_t>(h) : 0].as_int64();
    };
    const auto visible = [&](const specs::Place& at) {
        // The common window of this mechanism has two names alone.
        const double left = call.number("window_left", -1), right = call.number("window_right", -1);
        if (left >= 0 && static_cast<double>(at.j) < static_cast<double>(at.position) - left) return false;
        if (right >= 0 && static_cast<double>(at.j) > static_cast<double>(at.position) + right) return false;
        if (is_global(call, at.b, at.position) || is_global(call, at.b, at.j)) return true;
        const std::int64_t distance = at.j - at.position;
        return distance % step(at.h) == 0 && std::abs(distance) <= w * step(at.h);
    };
    const oracle::Dense local = specs::problem_of(call, visible, true, false);
    oracle::Dense global = local;
    const auto through = [](const auto& rows, const attend::Tensor* weight, std::int64_t width) {
        return [rows, weight, width](std::int64_t b, std::int64_t h, std::int64_t n, std::int64_t e) {
            if (weight == nullptr) return rows(b, h, n, e);
            double sum = 0;
            for (std::int64_t d = 0; d < width; ++d)
                sum += rows(b, h, n, d) *
                       static_cast<double>(weight->as<const float>()[h * weight->strides[0] + d * weight->strides[1] +
                                                                     e * weight->strides[2]]);
            return sum;
        };
    };
    if (const attend::Tensor* query = input_of(call, "global_query")) {
        global.q = oracle::View{query};
        global.k = oracle::View{input_of(call, "global_key")};
        global.v = oracle::View{input_of(call, "global_value")};
    } else {
        global.q = through(local.q, weight_of(call, "wqg"), local.head_dim);
        global.k = through(local.k, weight_of(call, "wkg"), local.head_dim);
        global.v = through(local.v, weight_of(call, "wvg"), local.value_dim);
    }
    specs::Expected all = specs::solved(local);
    const specs::Expected of_globals = specs::solved(global);
    for (std::int64_t b = 0; b < local.batch; ++b)
        for (std::int64_t h = 0; h < local.q_heads; ++h)
            for (std::int64_t i = 0; i < local.q_len; ++i) {
                if (!is_global(call, b, i + specs::offset_of(call, b))) continue;
                const auto row = static_cast<std::size_t>((b * local.q_heads + h) * local.q_len + i);
                const auto copy = [&](std::vector<double>& to, const std::vector<double>& from, std::int64_t width) {
                    for (std::size_t c = row * static_cast<std::size_t>(width);
                         c < (row + 1) * static_cast<std::size_t>(width) && !to.empty(); ++c)
                        to[c] = from[c];
                };
                copy(all.o, of_globals.o, local.value_dim);
                copy(all.lse, of_globals.lse, 1);
                copy(all.p, of_globals.p, local.kv_len);
            }
    return all;
}

attend::Json list(std::initializer_list<int> items) {
    attend::Json array = attend::Json::array();
    for (const int item : items) array.push(item);
    return array;
}
bool has(const attend::NamedValues& options, const char* name) {
    for (const auto& [given, value] : options)
        if (given == name) return true;
    return false;
}
std::string word(const attend::NamedValues& options, const char* name) {
    for (const auto& [given, value] : options)
        if (given == name && value.is_string()) return value.as_string();
    return "";
}

// Marks global positions where the options list none, and brings projections where they ask for some.
void more(attend::ForwardInputs& inputs, const attend::NamedValues& options, specs::Numbers& numbers) {
    const attend::Tensor& key = inputs.key ? *inputs.key : inputs.query;
    const attend::Tensor& value = inputs.value ? *inputs.value : key;
    const std::int64_t d = key.shape[3], dv = value.shape[3];
    if (!has(options, "global_tokens") && has(options, "window_size") && key.shape[2] > 0) {
        attend::Tensor mask = attend::Tensor::allocate(attend::DType::boolean, {key.shape[0], key.shape[2]}).value();
        for (std::int64_t at = 0; at < mask.size(); ++at) mask.as<std::uint8_t>()[at] = numbers.below(6) == 0;
        inputs.extra.emplace_back("global_mask", mask);
    }
    const std::string from = word(options, "global_projection");
    if (from == "tensors") {
        inputs.extra.emplace_back("global_query", numbers.normal(inputs.query.shape));
        inputs.extra.emplace_back("global_key", numbers.normal(key.shape));
        inputs.extra.emplace_back("global_value", numbers.normal(value.shape));
    }
    const auto matrix = [&](std::int64_t heads, std::int64_t width) {
        attend::Tensor weight = numbers.normal({heads, width, width});
        for (std::int64_t at = 0; at < weight.size(); ++at)
            weight.as<float>()[at] /= std::sqrt(static_cast<float>(width));
        return weight;
    };
    if (from == "weights" || (from.empty() && has(options, "dilation") && !has(options, "global_tokens"))) {
        inputs.weights.emplace_back("wqg", matrix(inputs.query.shape[1], d));
        inputs.weights.emplace_back("wvg", matrix(key.shape[1], dv));
        if (from == "weights") inputs.weights.emplace_back("wkg", matrix(key.shape[1], d));
    }
}

const specs::Registration spec(
    {.mechanism = "longformer-attention",
     .oracle = oracle_of,
     .variants = {{{"global_tokens", list({})}, {"window_size", 3}},
                  {{"window_size", 0}},
                  {{"window_size", 4}, {"causal", true}},
                  {{"window_size", 2}, {"global_projection", "tensors"}},
                  {{"window_size", 3}, {"global_projection", "weights"}},
                  {{"window_size", 2}, {"global_projection", "weights"}, {"causal", true}, {"dropout", 0.3}},
                  {{"window_size", 3}, {"global_tokens", list({2, 0})}, {"global_projection", "shared"}},
                  {{"window_size", 2}, {"dilation", 3}},
                  {{"window_size", 4}, {"dilation", 2}, {"causal", true}, {"dropout", 0.25}},
                  {{"window_size", 1}, {"dilation", 4}, {"global_tokens", list({1})}, {"softcap", 2.0}},
                  {{"window_size", 3}, {"dilation", 5}, {"global_tokens", list({})}},
                  {{"window_size", 5}, {"global_projection", "tensors"}, {"dilation", 2}}},
     .more = more,
     .fits = [](const attend::NamedValues& options, std::int64_t, std::int64_t nk) {
         for (const auto& [name, value] : options)
             if (name == "global_tokens" && value.is_array())
                 for (const attend::Json& token : value.as_array())
                     if (token.as_int64() >= nk) return false;
         return true;
     }});
}  // namespace
