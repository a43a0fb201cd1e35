// SPDX-License-Identifier: Apache-2.0
// Linear layers against plain loops in double precision.
#include "unit/toolkit/pair_entries.hpp"

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
        for (const int64_t tokens : {0, 1, 5, 16, 17, 50, 100, 210})
            for (const int64_t in : {0, 1, 16, 33})
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

// A tensor of 16-bit codes; the values that they stand for go back to `values`.
struct Halves {
    Strided<uint16_t> storage;
    uint8_t code{0};

    Halves(std::vector<int64_t> shape, Strides layout, std::vector<float>& values, bool bfloat) {
        std::vector<uint16_t> codes(values.size());
        pair_entries[0].narrow(bfloat ? 0 : 1, 1, values.data(), codes.data(), static_cast<int64_t>(codes.size()));
        pair_entries[0].widen(bfloat ? 0 : 1, 1, codes.data(), values.data(), static_cast<int64_t>(codes.size()));
        storage = Strided<uint16_t>(std::move(shape), layout, codes);
        code = bfloat ? ATTEND_CODE_BFLOAT : ATTEND_CODE_FLOAT;
    }
    attend_tensor tensor() {
        attend_tensor tensor = storage.tensor();
        tensor.dtype_code = code;
        return tensor;
    }
};

// A host that also says what the processor can do.
struct DotHost {
    attend_cpu cpu{};
    LoopHost loop;
    attend_host host;
    DotHost(uint32_t workers, bool dots) : loop(workers), host(*loop.get()) {
        cpu.struct_size = sizeof cpu;
        cpu.isa = dots ? ATTEND_ISA_AVX512_BF16 : 0;
        host.cpu = &cpu;
    }
};

TEST_CASE("projection: every pair of types", "[toolkit]") {
    Random random(7);
    // 0 float32, 1 bf16, 2 f16
    for (int x_type = 0; x_type < 3; ++x_type)
        for (int w_type = 0; w_type < 3; ++w_type)
            for (int y_type = 0; y_type < 3; ++y_type)
                for (const int64_t tokens : {3, 50, 200}) {
                    const int64_t batch = random.whole(1, 2), in = random.pick<int64_t>({1, 17, 64, 1031}),
                                  out = random.pick<int64_t>({5, 48, 70});
                    const Strides layout =
                        random.pick({Strides::packed, Strides::swapped, Strides::reversed, Strides::spread});
                    std::vector<float> x(static_cast<size_t>(batch * tokens * in)), w(static_cast<size_t>(out * in)),
                        b(static_cast<size_t>(out)), y(static_cast<size_t>(batch * tokens * out), 0.0f);
                    for (std::vector<float>* values : {&x, &w, &b})
                        for (float& value : *values) value = random.normal();
                    const int types[] = {x_type, w_type, y_type, random.chance(0.5) ? 0 : w_type};
                    std::vector<float>* values[] = {&x, &w, &y, &b};
                    const std::vector<int64_t> shapes[] = {{batch, tokens, in}, {out, in}, {batch, tokens, out}, {out}};
                    std::vector<Strided<float>> floats;
                    std::vector<Halves> halves;
                    floats.reserve(4);
                    halves.reserve(4);
                    attend_tensor tensors[4];
                    for (size_t at = 0; at < 4; ++at) {
                        if (types[at] == 0)
                            tensors[at] = floats.emplace_back(shapes[at], layout, *values[at]).tensor();
                        else
                            tensors[at] = halves.emplace_back(shapes[at], layout, *values[at], types[at] == 1).tensor();
                    }
                    std::vector<double> expected;
                    for (int64_t row = 0; row < batch * tokens; ++row)
                        for (int64_t o = 0; o < out; ++o) {
                            double sum = static_cast<double>(b[static_cast<size_t>(o)]);
                            for (int64_t e = 0; e < in; ++e)
                                sum += static_cast<double>(x[static_cast<size_t>(row * in + e)]) *
                                       static_cast<double>(w[static_cast<size_t>(o * in + e)]);
                            expected.push_back(sum);
                        }
                    INFO("types " << x_type << " " << w_type << " " << types[3] << " to " << y_type << ", B " << batch
                                  << " N " << tokens << " E " << in << " O " << out << " layout "
                                  << static_cast<int>(layout));
                    for_each_dots([&](const PairEntry& of, int hardware) {
                        const Entry& entry = entries[&of - pair_entries];
                        std::vector<float> first;
                        for (const uint32_t workers : {1u, 3u}) {
                            const attend_projection projection{&tensors[0], &tensors[1], &tensors[3], &tensors[2]};
                            DotHost host(workers, hardware != 0);
                            Scratch scratch(entry.projection_workspace(&projection, workers));
                            ErrorText error;
                            attend_context context{&host.host, nullptr, scratch.data(), scratch.bytes(), &error.error,
                                                   workers,    0};
                            REQUIRE(entry.projection_forward(&projection, &context) == ATTEND_OK);
                            CHECK(scratch.guard_untouched());
                            std::vector<float> got;
                            if (types[2] == 0) {
                                Strided<float>& to =
                                    floats[types[0] == 0 ? (types[1] == 0 ? 2 : 1) : (types[1] == 0 ? 1 : 0)];
                                CHECK(to.gaps_untouched());
                                got = to.values();
                            } else {
                                Halves& to = halves[types[0] != 0 ? (types[1] != 0 ? 2 : 1) : (types[1] != 0 ? 1 : 0)];
                                CHECK(to.storage.gaps_untouched());
                                const std::vector<uint16_t> codes = to.storage.values();
                                got.resize(codes.size());
                                of.widen(types[2] - 1, 1, codes.data(), got.data(), static_cast<int64_t>(got.size()));
                            }
                            const double limit = types[2] == 0 ? 2e-4 : types[2] == 1 ? 0x1p-8 + 1e-4 : 0x1p-11 + 2e-4;
                            CHECK(first_difference(got, expected, limit, true) == -1);
                            if (workers == 1)
                                first = got;
                            else
                                CHECK(same_bits(first, got));
                        }
                    });
                }
}

TEST_CASE("projection: a token alone gives the bits that it gives among many", "[toolkit]") {
    Random random(8);
    const int64_t tokens = 230, in = 1040, out = 40;
    std::vector<float> x(static_cast<size_t>(tokens * in)), w(static_cast<size_t>(out * in)),
        b(static_cast<size_t>(out));
    for (std::vector<float>* values : {&x, &w, &b})
        for (float& value : *values) value = random.normal();
    for_each_entry([&](const Entry& entry) {
        const std::vector<float> all = project(entry, {1, tokens, in, out}, x, w, b, Strides::packed, true, 1).output;
        for (const int64_t token : {0, 100, 229}) {
            const auto at = static_cast<std::ptrdiff_t>(token);
            const std::vector<float> own(x.begin() + at * in, x.begin() + (at + 1) * in);
            const std::vector<float> got = project(entry, {1, 1, in, out}, own, w, b, Strides::packed, true, 1).output;
            CHECK(same_bits(got, std::vector<float>(all.begin() + at * out, all.begin() + (at + 1) * out)));
        }
    });
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
