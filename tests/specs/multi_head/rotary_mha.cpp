// SPDX-License-Identifier: Apache-2.0
// Queries and keys turned in double, then dense attention.
#include "specs/spec.hpp"

namespace {

double at_index(const attend::Tensor& positions, std::int64_t b, std::int64_t n) {
    const std::int64_t at =
        positions.rank() == 2 ? b * positions.strides[0] + n * positions.strides[1] : n * positions.strides[0];
    return positions.dtype == attend::DType::i32 ? static_cast<double>(positions.as<const std::int32_t>()[at])
                                                 : static_cast<double>(positions.as<const std::int64_t>()[at]);
}

const attend::Tensor* input(const specs::Call& call, const char* name) {
    for (const auto& [given, tensor] : call.inputs->extra)
        if (given == name) return &tensor;
    return nullptr;
}

specs::Expected rotary(const specs::Call& call) {
    oracle::Dense x = specs::problem_of(call, specs::everywhere, true, true);
    const auto r = static_cast<std::int64_t>(call.number("rotary_dim", static_cast<double>(x.head_dim)));
    const std::string scaling = call.word("scaling");
    const double base = call.number("base", 1e4), f = call.number("scaling_factor", scaling == "llama3" ? 8 : 1),
                 l0 = call.number("original_max_position", scaling == "llama3" ? 8192 : 2048), pi = std::acos(-1.0);
    const auto width = static_cast<double>(r);
    const bool interleaved = call.word("layout") == "interleaved", keys_rotated = call.flag("keys_rotated");
    const attend::Tensor *at_q = input(call, "positions_q"), *at_k = input(call, "positions_k");
    const double key_start = call.number("position_offset", 0);
    const auto query_position = [=, &call](std::int64_t b, std::int64_t i) {
        if (at_q != nullptr) return at_index(*at_q, b, i);
        const double first = call.number("query_offset", key_start + static_cast<double>(specs::offset_of(call, b)));
        return first + static_cast<double>(i);
    };
    const auto key_position = [=](std::int64_t b, std::int64_t j) {
        return at_k != nullptr ? at_index(*at_k, b, j) : key_start + static_cast<double>(j);
    };
    double longest = l0;
    for (std::int64_t b = 0; b < x.batch; ++b) {
        for (std::int64_t i = 0; i < x.q_len; ++i) longest = std::max(longest, 1 + query_position(b, i));
        for (std::int64_t j = 0; j < x.kv_len; ++j) longest = std::max(longest, 1 + key_position(b, j));
    }
    const auto frequency = [=, &call](std::int64_t t) {
        const double place = -2.0 * static_cast<double>(t) / width, theta = std::pow(base, place),
                     power = width / (width - 2.0);
        if (scaling == "linear") return theta / f;
        if (scaling == "ntk") return std::pow(base * std::pow(f, power), place);
        if (scaling == "dynamicNtk") return std::pow(base * std::pow(f * longest / l0 - (f - 1), power), place);
        if (scaling == "yarn") {
            const auto dim = [&](double n) { return width * std::log(l0 / (2 * pi * n)) / (2 * std::log(base)); };
            const double low = std::max(0.0, std::floor(dim(call.number("beta_fast", 32))));
            double high = std::min(width - 1, std::ceil(dim(call.number("beta_slow", 1))));
            if (low == high) high += 0.001;
            const double ramp = std::clamp((static_cast<double>(t) - low) / (high - low), 0.0, 1.0);
            return (1 - ramp) * theta + ramp * theta / f;
        }
        if (scaling == "llama3") {
            const double low = call.number("low_freq_factor", 1), high = call.number("high_freq_factor", 4),
                         wave = 2 * pi / theta;
            if (wave < l0 / high) return theta;
            if (wave > l0 / low) return theta / f;
            const double s = (l0 / wave - low) / (high - low);
            return (1 - s) * theta / f + s * theta;
        }
        return theta;
    };
    const double m = call.number("attention_factor", scaling == "yarn" && f > 1 ? 0.1 * std::log(f) + 1 : 1);
    const auto turned = [=](const auto& row, double position, std::int64_t d) {
        if (d >= r) return row(d);
        const std::int64_t t = interleaved ? d / 2 : d % (r / 2);
        const bool second = interleaved ? d % 2 != 0 : d >= r / 2;
        const double a = row(interleaved ? 2 * t : t), b = row(interleaved ? 2 * t + 1 : t + r / 2),
                     angle = position * frequency(t);
        return second ? m * (a * std::sin(angle) + b * std::cos(angle))
                      : m * (a * std::cos(angle) - b * std::sin(angle));
    };
    const auto q = x.q, k = x.k;
    x.q = [=](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t d) {
        return turned([&](std::int64_t c) { return q(b, h, i, c); }, query_position(b, i), d);
    };
    if (!keys_rotated)
        x.k = [=](std::int64_t b, std::int64_t h, std::int64_t j, std::int64_t d) {
            return turned([&](std::int64_t c) { return k(b, h, j, c); }, key_position(b, j), d);
        };
    return specs::solved(x);
}

const specs::Registration spec(
    {.mechanism = "rotary-mha",
     .oracle = rotary,
     .variants = {{{"rotary_dim", 4}},
                  {{"layout", "interleaved"}},
                  {{"layout", "interleaved"}, {"rotary_dim", 6}, {"base", 500.0}},
                  {{"scaling", "linear"}, {"scaling_factor", 4.0}},
                  {{"scaling", "ntk"}, {"scaling_factor", 3.0}},
                  {{"scaling", "dynamicNtk"}, {"scaling_factor", 2.0}, {"original_max_position", 9}},
                  {{"scaling", "yarn"}, {"scaling_factor", 4.0}, {"original_max_position", 64}},
                  {{"scaling", "yarn"},
                   {"scaling_factor", 4.0},
                   {"beta_fast", 4.0},
                   {"beta_slow", 0.5},
                   {"attention_factor", 0.7}},
                  {{"scaling", "llama3"}, {"original_max_position", 32}},
                  {{"scaling", "llama3"},
                   {"scaling_factor", 2.0},
                   {"low_freq_factor", 0.5},
                   {"high_freq_factor", 8.0},
                   {"original_max_position", 40}},
                  {{"attention_factor", 1.3}, {"rotary_dim", 4}},
                  {{"position_offset", -7}},
                  {{"position_offset", 100}, {"query_offset", 3}},
                  {{"keys_rotated", true}},
                  {{"causal", true}, {"window_left", 5}},
                  {{"causal_alignment", "top-left"}},
                  {{"dropout", 0.2}, {"seed", 9}},
                  {{"softcap", 1.0}}},
     .odd_width = false});

}  // namespace
