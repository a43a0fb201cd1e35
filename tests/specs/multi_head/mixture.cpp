// SPDX-License-Identifier: Apache-2.0
// Each pattern by itself as dense attention, then mixed by the gates.
#include "specs/spec.hpp"

namespace {

const attend::Tensor* find(const std::vector<std::pair<std::string, attend::Tensor>>& list, const char* name) {
    for (const auto& [given, tensor] : list)
        if (given == name) return &tensor;
    return nullptr;
}

bool shows(const std::string& pattern, const specs::Place& at) {
    const std::size_t open = pattern.find('('), comma = pattern.find(',');
    const std::string name = pattern.substr(0, open);
    const std::int64_t a = open == std::string::npos ? 0 : std::stoll(pattern.substr(open + 1)),
                       b = comma == std::string::npos ? 0 : std::stoll(pattern.substr(comma + 1)),
                       d = at.position - at.j;
    const auto floored = [](std::int64_t x, std::int64_t by) {
        return static_cast<std::int64_t>(std::floor(static_cast<double>(x) / static_cast<double>(by)));
    };
    if (name == "local") return std::abs(d) < a;
    if (name == "remote") return std::abs(d) >= a;
    if (name == "dilated") return std::abs(d) < a * b && d % b == 0;
    if (name == "sink") return at.j < a || std::abs(d) < b;
    if (name == "strided") return d % a == 0;
    if (name == "block") return floored(at.position, a) == floored(at.j, a);
    return true;
}

specs::Expected mixture(const specs::Call& call) {
    const attend::Json& patterns = *call.options.find("patterns");
    const std::size_t count = patterns.size();
    const std::string mode = call.word("gate_mode");
    const oracle::Dense whole = specs::problem_of(call, specs::everywhere, true, true);
    const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
    const auto number = [](const attend::Tensor* tensor, std::size_t at) {
        return tensor == nullptr ? 0.0 : static_cast<double>(tensor->as<const float>()[at]);
    };
    const attend::Tensor *logits = find(call.inputs->weights, "gate_logits"),
                         *bias = find(call.inputs->weights, "gate_bias"),
                         *proj = find(call.inputs->weights, "gate_proj"),
                         *alpha = find(call.inputs->weights, "gate_alpha"), *gates = find(call.inputs->extra, "gates");
    const auto gates_of = [&](std::int64_t b, std::int64_t h, std::int64_t i) {
        std::vector<double> gate(count);
        if (mode == "clamp") {
            const std::int64_t heads = alpha == nullptr ? whole.kv_heads : alpha->shape[0],
                               at = heads == whole.q_heads ? h : h * whole.kv_heads / whole.q_heads;
            const double a = alpha == nullptr ? 1.0 : std::clamp(number(alpha, size(at)), 0.0, 1.0);
            return std::vector<double>{a, 1 - a};
        }
        for (std::size_t p = 0; p < count; ++p) {
            const std::size_t at = size(h) * count + p;
            if (mode == "explicit")
                gate[p] = number(gates, size((b * whole.q_heads + h) * whole.q_len + i) * count + p);
            else if (mode == "static" || mode == "hard")
                gate[p] = number(logits, at);
            else
                gate[p] = number(bias, at);
            for (std::int64_t d = 0; mode.starts_with("query") && d < whole.head_dim; ++d)
                gate[p] += number(proj, at * size(whole.head_dim) + size(d)) * whole.q(b, h, i, d);
        }
        if (mode == "explicit") return gate;
        const std::size_t best = size(std::max_element(gate.begin(), gate.end()) - gate.begin());
        const double most = gate[best];
        double sum = 0;
        for (std::size_t p = 0; p < count; ++p) {
            gate[p] = mode == "query-sigmoid" ? 1 / (1 + std::exp(-gate[p]))
                      : mode == "hard"        ? (p == best ? 1.0 : 0.0)
                                              : std::exp(gate[p] - most);
            sum += gate[p];
        }
        for (double& g : gate) g /= mode == "query-sigmoid" ? 1 : sum;
        return gate;
    };
    specs::Expected out;
    const std::int64_t rows = whole.batch * whole.q_heads * whole.q_len;
    out.o.assign(size(rows * whole.value_dim), 0.0);
    out.p.assign(size(rows * whole.kv_len), 0.0);
    out.lse.assign(size(rows) * count, 0.0);
    for (std::size_t p = 0; p < count; ++p) {
        const std::string pattern = patterns.as_array()[p].as_string();
        const specs::Expected part = specs::dense(
            call, [&](const specs::Place& at) { return shows(pattern, at); }, true, true);
        for (std::int64_t row = 0; row < rows; ++row) {
            const double gate =
                gates_of(row / whole.q_len / whole.q_heads, row / whole.q_len % whole.q_heads, row % whole.q_len)[p];
            out.lse[size(row) * count + p] = part.lse[size(row)];
            for (std::int64_t c = 0; c < whole.value_dim; ++c)
                out.o[size(row * whole.value_dim + c)] += gate * part.o[size(row * whole.value_dim + c)];
            for (std::int64_t j = 0; j < whole.kv_len; ++j)
                out.p[size(row * whole.kv_len + j)] += gate * part.p[size(row * whole.kv_len + j)];
        }
    }
    return out;
}

void more(attend::ForwardInputs& inputs, const attend::NamedValues& options, specs::Numbers& numbers) {
    std::string mode = "static";
    std::int64_t count = 3;
    for (const auto& [name, value] : options) {
        if (name == "gate_mode") mode = value.as_string();
        if (name == "patterns") count = static_cast<std::int64_t>(value.size());
    }
    const std::int64_t heads = inputs.query.shape[1], width = inputs.query.shape[3];
    if (mode == "static" || mode == "hard") inputs.weights.emplace_back("gate_logits", numbers.normal({heads, count}));
    if (mode == "clamp") inputs.weights.emplace_back("gate_alpha", numbers.normal({heads}));
    if (mode.starts_with("query")) {
        inputs.weights.emplace_back("gate_proj", numbers.normal({heads, count, width}));
        inputs.weights.emplace_back("gate_bias", numbers.normal({heads, count}));
    }
    if (mode != "explicit") return;
    attend::Tensor gates = numbers.normal({inputs.query.shape[0], heads, inputs.query.shape[2], count});
    for (std::int64_t at = 0; at < gates.size(); ++at) gates.as<float>()[at] = std::abs(gates.as<float>()[at]);
    inputs.extra.emplace_back("gates", std::move(gates));
}

attend::Json list(std::initializer_list<const char*> words) {
    attend::Json array = attend::Json::array();
    for (const char* word : words) array.push(attend::Json(word));
    return array;
}

const specs::Registration spec(
    {.mechanism = "mixture-attention",
     .oracle = mixture,
     .variants = {{{"patterns", list({"global"})}},
                  {{"patterns", list({"local(3)", "remote(3)"})}, {"gate_mode", "clamp"}},
                  {{"patterns", list({"sink(2,4)", "strided(3)", "block(5)"})}},
                  {{"patterns", list({"local(5)", "dilated(4,3)", "global"})}, {"gate_mode", "hard"}},
                  {{"patterns", list({"local(5)", "dilated(4,3)"})}, {"gate_mode", "query-softmax"}},
                  {{"patterns", list({"block(7)", "sink(0,3)"})}, {"gate_mode", "query-sigmoid"}, {"scale", 0.7}},
                  {{"patterns", list({"remote(6)", "sink(3,2)", "local(1)"})}, {"gate_mode", "explicit"}},
                  {{"patterns", list({"local(4)", "global"})}, {"causal", true}, {"softcap", 1.0}},
                  {{"patterns", list({"local(4)", "strided(2)"})}, {"dropout", 0.3}, {"seed", 3}},
                  {{"patterns", list({"local(40)", "block(16)"})}, {"causal_alignment", "top-left"}}},
     .exempt = {},
     .tolerance = 1e-5,
     .more = more});

}  // namespace
