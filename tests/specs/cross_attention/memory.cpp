// SPDX-License-Identifier: Apache-2.0
// The local part as dense attention, the memory part slot by slot, and the mixture.
#include <algorithm>

#include "specs/spec.hpp"

namespace {

using specs::Call;

const attend::Tensor* find(const std::vector<std::pair<std::string, attend::Tensor>>& list, const char* name) {
    for (const auto& [known, tensor] : list)
        if (known == name) return &tensor;
    return nullptr;
}

constexpr double minus = -std::numeric_limits<double>::infinity();

struct Memory {
    const Call& call;
    const attend::Tensor* key = find(call.inputs->extra, "memory_key");
    const attend::Tensor* value = find(call.inputs->extra, "memory_value");
    const attend::Tensor* lengths = find(call.inputs->extra, "memory_lengths");
    const attend::Tensor* valid = find(call.inputs->extra, "memory_valid");

    double scale(std::int64_t h) const {
        const bool normalize = call.flag("normalize");
        const double given = call.number("scale", 0.0), width = static_cast<double>(call.inputs->query.shape[3]);
        const attend::Tensor* attn = find(call.inputs->weights, "attn_scale");
        const double factor = attn ? std::abs(static_cast<double>(attn->as<const float>()[h])) : 20.0;
        const double base = given != 0.0 ? given : normalize ? 1.0 : 1.0 / std::sqrt(width);
        return normalize ? base * factor : base;
    }
    // The vector at the view's (a, b, c), normalised if the call says so.
    std::vector<double> row(const attend::Tensor& tensor, std::int64_t a, std::int64_t b, std::int64_t c) const {
        const oracle::View view{&tensor};
        std::vector<double> x;
        double squares = 0;
        for (std::int64_t d = 0; d < tensor.shape[3]; ++d) {
            x.push_back(view(a, b, c, d));
            squares += x.back() * x.back();
        }
        if (call.flag("normalize"))
            for (double& element : x) element /= std::sqrt(squares + 1e-6);
        return x;
    }
    bool usable(std::int64_t bm, std::int64_t m) const {
        if (lengths) return m < lengths->as<const std::int32_t>()[bm];
        return !valid || valid->as<const std::uint8_t>()[bm * key->shape[2] + m] != 0;
    }
    // Adds to `o`, returns the log-sum-exp.
    double attend(std::int64_t b, std::int64_t h, std::int64_t i, std::vector<double>& o) const {
        if (key == nullptr) return minus;
        const std::int64_t bm = key->shape[0] == 1 ? 0 : b, heads = call.inputs->query.shape[1],
                           hm = h * key->shape[1] / heads, slots = key->shape[2];
        const std::vector<double> q = row(call.inputs->query, b, h, i);
        std::vector<std::pair<float, std::int64_t>> found;
        for (std::int64_t m = 0; m < slots; ++m) {
            if (!usable(bm, m)) continue;
            const std::vector<double> k = row(*key, bm, hm, m);
            double dot = 0;
            for (std::size_t d = 0; d < q.size(); ++d) dot += q[d] * k[d];
            found.emplace_back(-static_cast<float>(dot), m);
        }
        std::sort(found.begin(), found.end());
        const auto wanted = static_cast<std::size_t>(call.number("top_k", 32));
        if (wanted > 0 && found.size() > wanted) found.resize(wanted);
        const double cap = call.number("softcap", 0.0);
        double most = minus, sum = 0;
        std::vector<double> s;
        for (const auto& [score, m] : found) {
            const double x = scale(h) * -static_cast<double>(score);
            s.push_back(cap > 0 ? cap * std::tanh(x / cap) : x);
            most = std::max(most, s.back());
        }
        for (const double x : s) sum += std::exp(x - most);
        const std::int64_t local_keys = call.inputs->key ? call.inputs->key->shape[2] : 0;
        const oracle::View v{value};
        for (std::size_t at = 0; at < found.size(); ++at) {
            const double p =
                std::exp(s[at] - most) / sum * specs::dropout_at(call, b * heads + h, i, local_keys + found[at].second);
            for (std::size_t d = 0; d < o.size(); ++d)
                o[d] += p * v(bm, hm, found[at].second, static_cast<std::int64_t>(d));
        }
        return found.empty() ? minus : most + std::log(sum);
    }
};

specs::Expected oracle_of(const Call& given) {
    Call call = given;
    call.options.set("causal", call.optional_given("causal") ? call.flag("causal") : call.flag("local_causal"));
    const attend::ForwardInputs& in = *call.inputs;
    const Memory memory{call};
    const auto& shape = in.query.shape;
    const std::string mode = call.word("mode");
    const std::int64_t width = in.value ? in.value->shape[3] : in.key ? in.key->shape[3] : memory.value->shape[3];
    specs::Expected local;
    if (mode == "memory") {
        local.o.assign(static_cast<std::size_t>(shape[0] * shape[1] * shape[2] * width), 0.0);
        local.lse.assign(static_cast<std::size_t>(shape[0] * shape[1] * shape[2]), minus);
    } else {
        oracle::Dense problem = specs::problem_of(call, specs::everywhere, true, true);
        const std::int64_t kv_heads = in.key->shape[1];
        problem.scale = 1.0;
        problem.q = [&](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t d) {
            return memory.scale(h) * memory.row(in.query, b, h, i)[static_cast<std::size_t>(d)];
        };
        problem.k = [&, kv_heads](std::int64_t b, std::int64_t h, std::int64_t j, std::int64_t d) {
            return h < kv_heads ? memory.row(*in.key, b, h, j)[static_cast<std::size_t>(d)] : 0.0;
        };
        local = specs::solved(problem);
    }
    local.p.clear();
    const attend::Tensor* bias = find(in.weights, "gate_bias");
    std::size_t row = 0;
    for (std::int64_t b = 0; b < shape[0]; ++b)
        for (std::int64_t h = 0; h < shape[1]; ++h)
            for (std::int64_t i = 0; i < shape[2]; ++i, ++row) {
                std::vector<double> o(static_cast<std::size_t>(width), 0.0);
                const double of_memory = memory.attend(b, h, i, o), of_local = local.lse[row];
                double a = 1.0, c = 0.0, total = of_memory;
                if (of_memory == minus) {
                    a = 0.0, c = 1.0, total = of_local;
                } else if (of_local != minus && mode == "gate") {
                    a = 1.0 / (1.0 + std::exp(-(bias ? static_cast<double>(bias->as<const float>()[h]) : 0.0)));
                    c = 1.0 - a;
                } else if (of_local != minus) {
                    const double most = std::max(of_memory, of_local);
                    total = most + std::log(std::exp(of_memory - most) + std::exp(of_local - most));
                    a = std::exp(of_memory - total), c = std::exp(of_local - total);
                }
                local.lse[row] = total;
                for (std::size_t d = 0; d < o.size(); ++d) {
                    double& out = local.o[row * o.size() + d];
                    out = a * o[d] + c * out;
                }
            }
    return local;
}

void more(attend::ForwardInputs& inputs, const attend::NamedValues& options, specs::Numbers& numbers) {
    const auto is = [&](const char* name, const attend::Json& value) {
        return std::any_of(options.begin(), options.end(),
                           [&](const auto& option) { return option.first == name && option.second == value; });
    };
    const auto& shape = inputs.query.shape;
    const std::int64_t heads[] = {1, inputs.key->shape[1], shape[1]};
    const std::int64_t hm = heads[numbers.below(3)], bm = numbers.below(2) == 0 ? 1 : shape[0],
                       slots = 1 + numbers.below(90);
    inputs.extra.emplace_back("memory_key", numbers.normal({bm, hm, slots, shape[3]}));
    inputs.extra.emplace_back("memory_value", numbers.normal({bm, hm, slots, inputs.value->shape[3]}));
    if (const std::int64_t kind = numbers.below(3); kind == 1) {
        attend::Tensor lengths = attend::Tensor::allocate(attend::DType::i32, {bm}).value();
        for (std::int64_t b = 0; b < bm; ++b)
            lengths.as<std::int32_t>()[b] = static_cast<std::int32_t>(numbers.below(slots + 1));
        inputs.extra.emplace_back("memory_lengths", lengths);
    } else if (kind == 2) {
        attend::Tensor valid = attend::Tensor::allocate(attend::DType::boolean, {bm, slots}).value();
        for (std::int64_t at = 0; at < valid.size(); ++at) valid.as<std::uint8_t>()[at] = numbers.below(3) != 0;
        inputs.extra.emplace_back("memory_valid", valid);
    }
    if (is("mode", "memory")) inputs.key.reset(), inputs.value.reset();
    if (!is("mode", "memory") && !is("mode", "joint"))
        inputs.weights.emplace_back("gate_bias", numbers.normal({shape[1]}));
    if (is("normalize", true)) inputs.weights.emplace_back("attn_scale", numbers.normal({shape[1]}));
}

const specs::Registration spec({.mechanism = "memory-attention",
                                .oracle = oracle_of,
                                .variants = {{{"mode", "joint"}},
                                             {{"mode", "memory"}},
                                             {{"top_k", 3}},
                                             {{"top_k", 0}, {"mode", "joint"}},
                                             {{"top_k", 1}, {"normalize", true}},
                                             {{"normalize", true}, {"mode", "joint"}, {"softcap", 0.5}},
                                             {{"normalize", true}, {"mode", "memory"}, {"top_k", 7}, {"scale", 2.0}},
                                             {{"dropout", 0.5}, {"seed", 1}, {"mode", "joint"}, {"top_k", 9}},
                                             {{"dropout", 0.3}, {"seed", 3}, {"rng_offset", 2}},
                                             {{"local_causal", false}, {"window_size", 3}},
                                             {{"window_size", 4}},
                                             {{"causal", false}, {"softcap", 2.0}},
                                             {{"causal", true}, {"causal_alignment", "top-left"}, {"mode", "joint"}},
                                             {{"scale", -0.3}, {"mode", "joint"}, {"top_k", 5}}},
                                .more = more,
                                .has_lse = [](const attend::NamedValues& options) {
                                    return std::any_of(options.begin(), options.end(),
                                                       [](const auto& option) { return option.first == "mode"; });
                                }});

}  // namespace
