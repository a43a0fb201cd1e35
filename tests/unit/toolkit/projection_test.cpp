// SPDX-License-Identifier: Apache-2.0
// Linear layers against plain loops in double precision.
#include "unit/toolkit/support.hpp"

namespace attend::test {
namespace {

struct Projected {
    std::vector<float> output;
    attend_status status;
    std::string text;
    bool clean;
};

Projected project(const Entry& entry, const std::vector<int64_t>& sizes, const std::vector<float>& x,
                  const std::vector<float>& w, const std::vector<float>& b, Strides layout, bool with_bias,
                  uint32_t workers) {
    const int64_t batch = sizes[0], tokens = sizes[1], in = sizes[2], out = sizes[3];
    Strided<float> input({batch, tokens, in}, layout, x), weight({out, in}, layout, w), bias({out}, layout, b);
    Strided<float> output({batch, tokens, out}, layout,
                          std::vector<float>(static_cast<size_t>(batch * tokens * out), nan_value));
    const attend_tensor input_tensor = input.tensor(), weight_tensor = weight.tensor(), bias_tensor = bias.tensor(),
                        output_tensor = output.tensor();
    const attend_projection projection{&input_tensor, &weight_tensor, with_bias ? &bias_tensor : nullptr,
                                       &output_tensor};
    LoopHost host(workers);
    Scratch scratch(entry.projection_workspace(&projection, workers));
    ErrorText error;
    attend_context context{host.get(), nullptr, scratch.data(), scratch.bytes(), &error.error, workers, 0};
    Projected result;
    result.status = entry.projection_forward(&projection, &context);
    result.text = error.text;
    result.output = output.values();
    result.clean = output.gaps_untouched() && scratch.guard_untouched();
    return result;
}

TEST_CASE("projection: equals plain loops", "[toolkit]") {
    Random random(1);
    for (const int64_t batch : {0, 1, 3})
        for (const int64_t tokens : {0, 1, 5, 16, 17, 50, 100})
            for (const int64_t in : {1, 16, 33})
                for (const int64_t out : {1, 7, 64, 65, 300}) {
                    if (random.chance(0.5)) continue;
                    const Strides layout =
                        random.pick({Strides::packed, Strides::swapped, Strides::reversed, Strides::spread});
                    const bool with_bias = random.chance(0.5);
                    std::vector<float> x(static_cast<size_t>(batch * tokens * in)), w(static_cast<size_t>(out * in)),
                        b(static_cast<size_t>(out));
                    for (std::vector<float>* values : {&x, &w, &b})
                        for (float& value : *values) value = random.normal();
                    std::vector<double> expected;
                    for (int64_t row = 0; row < batch * tokens; ++row)
                        for (int64_t o = 0; o < out; ++o) {
                            double sum = with_bias ? static_cast<double>(b[static_cast<size_t>(o)]) : 0.0;
                            for (int64_t e = 0; e < in; ++e)
                                sum += static_cast<double>(x[static_cast<size_t>(row * in + e)]) *
                                       static_cast<double>(w[static_cast<size_t>(o * in + e)]);
                            expected.push_back(sum);
                        }
                    const std::vector<int64_t> sizes{batch, tokens, in, out};
                    INFO("B " << batch << " N " << tokens << " E " << in << " O " << out << " layout "
                              << static_cast<int>(layout));
                    for_each_entry([&](const Entry& entry) {
                        const Projected got = project(entry, sizes, x, w, b, layout, with_bias, 1);
                        CHECK(got.status == ATTEND_OK);
                        CHECK(got.clean);
                        CHECK(first_difference(got.output, expected, 1e-5) == -1);
                        for (const uint32_t workers : {2u, 7u})
                            CHECK(same_bits(got.output,
                                            project(entry, sizes, x, w, b, layout, with_bias, workers).output));
                    });
                }
}

TEST_CASE("projection: a NaN stays in its token", "[toolkit]") {
    Random random(2);
    std::vector<float> x(20 * 8), w(5 * 8), b(5);
    for (std::vector<float>* values : {&x, &w, &b})
        for (float& value : *values) value = random.normal();
    x[3 * 8 + 2] = nan_value;
    for_each_entry([&](const Entry& entry) {
        const Projected got = project(entry, {1, 20, 8, 5}, x, w, b, Strides::packed, true, 1);
        for (size_t at = 0; at < got.output.size(); ++at) CHECK(std::isnan(got.output[at]) == (at / 5 == 3));
    });
}

TEST_CASE("projection: what many tokens need is enough for fewer", "[toolkit]") {
    for_each_entry([&](const Entry& entry) {
        uint64_t before = 0;
        for (int64_t tokens = 0; tokens <= 700; ++tokens) {
            Strided<float> input({1, tokens, 9}, Strides::packed, std::vector<float>(static_cast<size_t>(tokens * 9))),
                weight({130, 9}, Strides::packed, std::vector<float>(130 * 9));
            const attend_tensor x = input.tensor(), w = weight.tensor();
            const attend_projection projection{&x, &w, nullptr, nullptr};
            const uint64_t needed = entry.projection_workspace(&projection, 2);
            if (tokens > 0) CHECK(needed >= before);
            before = tokens > 0 ? needed : 0;
        }
    });
}

TEST_CASE("projection: refuses what does not fit", "[toolkit]") {
    Strided<float> input({1, 3, 4}, Strides::packed, std::vector<float>(12)),
        weight({5, 6}, Strides::packed, std::vector<float>(30)),
        output({1, 3, 5}, Strides::packed, std::vector<float>(15));
    const attend_tensor x = input.tensor(), w = weight.tensor(), y = output.tensor();
    const attend_projection projection{&x, &w, nullptr, &y};
    for_each_entry([&](const Entry& entry) {
        ErrorText error;
        attend_context context{};
        context.error = &error.error;
        CHECK(entry.projection_forward(&projection, &context) == ATTEND_BAD_SHAPE);
        CHECK(std::string(error.text).find("weight has extent 6 in dimension 1; accepted: [O, E], there 4") !=
              std::string::npos);
        const attend_projection square{&y, &y, nullptr, &y};
        CHECK(entry.projection_forward(&square, &context) == ATTEND_BAD_SHAPE);
    });
}

}  // namespace
}  // namespace attend::test
