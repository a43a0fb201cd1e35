// SPDX-License-Identifier: Apache-2.0
// Products of bf16 pairs and what prepares their operands, against double precision.
#include "unit/toolkit/pair_entries.hpp"

namespace attend::test {
namespace {

TEST_CASE("pairs: register-tile products", "[toolkit]") {
    Random random(5);
    for_each_dots([&](const PairEntry& entry, int hardware) {
        for (int vectors = 1; vectors <= 3; ++vectors)
            for (const int64_t rows : {1, 2, 3, 5, 8, 15, 23})
                for (const int64_t elements : {0, 1, 2, 5, 16, 33})
                    for (int layout = 0; layout < 3; ++layout)
                        for (int into = 0; into < 3; ++into) {
                            // Rows as they lie at odd addresses; interleaved rows; anything, backwards.
                            const int64_t lanes = vectors * entry.lanes(), steps = (elements + 1) / 2;
                            const int64_t row_stride = layout == 0 ? 2 * elements + 2 : layout == 1 ? 4 : -74;
                            const int64_t inner_stride = layout == 0 ? 4 : layout == 1 ? 4 * rows + 6 : 82;
                            const int64_t lowest = layout == 2 ? -row_stride * (rows - 1) : 0;
                            const int64_t highest = std::max<int64_t>(row_stride, 0) * (rows - 1) +
                                                    inner_stride * std::max<int64_t>(steps - 1, 0);
                            // Memory ends behind the last element that may be read.
                            const int64_t last = elements % 2 != 0 ? 2 : 4;
                            std::vector<unsigned char> memory(
                                static_cast<size_t>(elements == 0 ? 0 : lowest + highest + last), 0xFF);
                            unsigned char* a = memory.data() + lowest;
                            std::vector<uint32_t> x(static_cast<size_t>(steps * lanes));
                            std::vector<float> out(static_cast<size_t>(rows * lanes) + 32),
                                rescale(static_cast<size_t>(lanes));
                            std::vector<double> expected(static_cast<size_t>(rows * lanes), 0.0);
                            for (float& value : rescale) value = random.normal();
                            for (float& value : out) value = into == 0 ? nan_value : random.normal();
                            for (int64_t e = 0; e < elements; ++e) {
                                for (int64_t lane = 0; lane < lanes; ++lane)
                                    x[static_cast<size_t>(e / 2 * lanes + lane)] |= uint32_t{random_bf16(random)}
                                                                                    << e % 2 * 16;
                                for (int64_t row = 0; row < rows; ++row) {
                                    const uint16_t code = random_bf16(random);
                                    std::memcpy(a + row * row_stride + e / 2 * inner_stride + e % 2 * 2, &code, 2);
                                }
                            }
                            // Rows may overlap in memory, so the sums come after all is written.
                            for (int64_t e = 0; e < elements; ++e)
                                for (int64_t row = 0; row < rows; ++row) {
                                    uint16_t code;
                                    std::memcpy(&code, a + row * row_stride + e / 2 * inner_stride + e % 2 * 2, 2);
                                    for (int64_t lane = 0; lane < lanes; ++lane) {
                                        const uint32_t pair = x[static_cast<size_t>(e / 2 * lanes + lane)];
                                        expected[static_cast<size_t>(row * lanes + lane)] +=
                                            bf16_value(code) * bf16_value(static_cast<uint16_t>(pair >> e % 2 * 16));
                                    }
                                }
                            for (size_t at = 0; at < expected.size(); ++at) {
                                const auto old = static_cast<double>(out[at]);
                                if (into == 1) expected[at] += old;
                                if (into == 2)
                                    expected[at] += old * static_cast<double>(rescale[at % static_cast<size_t>(lanes)]);
                            }
                            const std::vector<float> behind(out.end() - 32, out.end());
                            entry.pair_product(hardware, vectors, a, row_stride, inner_stride, rows, x.data(), elements,
                                               out.data(), into, rescale.data());
                            REQUIRE(same_bits(behind, std::vector<float>(out.end() - 32, out.end())));
                            out.resize(out.size() - 32);
                            REQUIRE(first_difference(out, expected, 2e-5) == -1);
                        }
    });
}

TEST_CASE("pairs: rows of memory become lanes", "[toolkit]") {
    for_each_dots([&](const PairEntry& entry, int hardware) {
        if (hardware != 0) return;
        const auto lanes = static_cast<size_t>(2 * entry.lanes());
        for (const int64_t stride : {int64_t{1}, int64_t{3}, int64_t{-2}})
            for (const int64_t count : {0, 1, 2, 7, 31, 32, 33, 64, 67, 80}) {
                const auto reach = static_cast<size_t>(count == 0 ? 0 : std::abs(stride) * (count - 1) + 1);
                std::vector<std::vector<uint16_t>> memory(lanes);
                std::vector<const uint16_t*> rows(lanes);
                for (size_t lane = 0; lane < lanes; ++lane) {
                    memory[lane].resize(reach);
                    for (size_t at = 0; at < reach; ++at) memory[lane][at] = static_cast<uint16_t>(1000 * lane + at);
                    rows[lane] = memory[lane].data() + (stride < 0 && count > 0 ? reach - 1 : 0);
                }
                rows[1] = rows[0];
                std::vector<uint32_t> to(static_cast<size_t>((count + 1) / 2) * lanes + 1, 0xABABABABu);
                entry.lane_pairs(rows.data(), stride, count, to.data());
                bool right = to.back() == 0xABABABABu;
                for (int64_t e = 0; e < (count + 1) / 2 * 2; ++e)
                    for (size_t lane = 0; lane < lanes; ++lane) {
                        const auto got =
                            static_cast<uint16_t>(to[static_cast<size_t>(e / 2) * lanes + lane] >> e % 2 * 16);
                        right = right && got == (e < count ? rows[lane][e * stride] : 0);
                    }
                CHECK(right);
            }
    });
}

TEST_CASE("pairs: two value rows interleave", "[toolkit]") {
    for_each_dots([&](const PairEntry& entry, int hardware) {
        if (hardware != 0) return;
        for (const int64_t stride : {int64_t{1}, int64_t{2}})
            for (const int64_t columns : {0, 1, 5, 16, 31, 32, 33, 64, 100})
                for (const bool odd : {true, false}) {
                    const auto reach = static_cast<size_t>(columns == 0 ? 0 : stride * (columns - 1) + 1);
                    std::vector<uint16_t> a(reach), b(reach);
                    for (size_t at = 0; at < reach; ++at) {
                        a[at] = static_cast<uint16_t>(0x8000 + at);
                        b[at] = static_cast<uint16_t>(0xC000 + at);
                    }
                    std::vector<uint32_t> to(static_cast<size_t>(columns) + 1, 0xABABABABu);
                    entry.interleave(a.data(), odd ? b.data() : nullptr, stride, columns, to.data());
                    bool right = to.back() == 0xABABABABu;
                    for (int64_t c = 0; c < columns; ++c) {
                        const auto at = static_cast<size_t>(c * stride);
                        right = right &&
                                to[static_cast<size_t>(c)] == (uint32_t{a[at]} | (odd ? uint32_t{b[at]} << 16 : 0u));
                    }
                    CHECK(right);
                }
    });
}

}  // namespace
}  // namespace attend::test
