// SPDX-License-Identifier: Apache-2.0
// Pieces of blocks against plain loops in double precision, for any strides and number of workers.
#include <algorithm>
#include <array>
#include <numeric>

#include "unit/toolkit/block_call.hpp"
#include "unit/toolkit/support.hpp"

#define ATTEND_TEST_DECLARE_BLOCKS(entry)                                                                          \
    extern "C" attend_status attend_probe_activation_##entry(const attend_context*, int, float*, int64_t);         \
    extern "C" attend_status attend_probe_norm_##entry(const attend_context*, const attend_tensor* const*);        \
    extern "C" attend_status attend_probe_gated_sum_##entry(const attend_context*, const attend_tensor* const*,    \
                                                            const float*, int);                                    \
    extern "C" uint64_t attend_probe_feed_forward_workspace_##entry(const attend_tensor* const*, uint32_t);        \
    extern "C" attend_status attend_probe_feed_forward_##entry(const attend_context*, const attend_tensor* const*, \
                                                               int, const float*);                                 \
    extern "C" attend_status attend_probe_merge_##entry(const attend_context*, const attend_tensor* const*);       \
    extern "C" void attend_probe_best_##entry(const float*, int64_t, int64_t, uint64_t*, int64_t*, float*);        \
    extern "C" uint64_t attend_probe_block_workspace_##entry(const attend::test::BlockCall*, uint32_t);            \
    extern "C" attend_status attend_probe_block_##entry(const attend_context*, const attend::test::BlockCall*);
ATTEND_TEST_ENTRIES(ATTEND_TEST_DECLARE_BLOCKS)

namespace attend::test {
namespace {

struct BlockEntry {
    const char* name;
    bool runs_here;
    attend_status (*activation)(const attend_context*, int, float*, int64_t);
    attend_status (*norm)(const attend_context*, const attend_tensor* const*);
    attend_status (*gated_sum)(const attend_context*, const attend_tensor* const*, const float*, int);
    uint64_t (*feed_forward_workspace)(const attend_tensor* const*, uint32_t);
    attend_status (*feed_forward)(const attend_context*, const attend_tensor* const*, int, const float*);
    attend_status (*merge)(const attend_context*, const attend_tensor* const*);
    void (*best)(const float*, int64_t, int64_t, uint64_t*, int64_t*, float*);
    uint64_t (*block_workspace)(const BlockCall*, uint32_t);
    attend_status (*block)(const attend_context*, const BlockCall*);
};
#define ATTEND_TEST_BLOCK_ENTRY(entry)                      \
    BlockEntry{#entry,                                      \
               cpu_runs_##entry(),                          \
               attend_probe_activation_##entry,             \
               attend_probe_norm_##entry,                   \
               attend_probe_gated_sum_##entry,              \
               attend_probe_feed_forward_workspace_##entry, \
               attend_probe_feed_forward_##entry,           \
               attend_probe_merge_##entry,                  \
               attend_probe_best_##entry,                   \
               attend_probe_block_workspace_##entry,        \
               attend_probe_block_##entry},
const BlockEntry block_entries[] = {ATTEND_TEST_ENTRIES(ATTEND_TEST_BLOCK_ENTRY)};

template <class Body>
void for_each_block_entry(Body body) {
    for (const BlockEntry& entry : block_entries) {
        if (!entry.runs_here) {
            WARN("instruction set " << entry.name << " is not available on this processor: not tested");
            continue;
        }
        INFO("instruction set " << entry.name);
        body(entry);
    }
}

// A context with a host of so many workers and scratch of exactly so many bytes.
struct Call {
    LoopHost host;
    Scratch scratch;
    ErrorText error;
    attend_context context;
    explicit Call(uint32_t workers, uint64_t bytes = 0)
        : host(workers), scratch(bytes), context{host.get(), nullptr, scratch.data(), scratch.bytes(), &error.error,
                                                 workers,    0} {}
};

std::vector<float> numbers(Random& random, int64_t count, float factor = 1.0f) {
    std::vector<float> list(static_cast<size_t>(count));
    for (float& value : list) value = factor * random.normal();
    return list;
}
double wide(float x) { return static_cast<double>(x); }

double activated(int which, double x) {
    if (which == 0)
        return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
    if (which == 1) return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    return std::max(x, 0.0) * std::max(x, 0.0);
}

TEST_CASE("blocks: activations", "[toolkit]") {
    std::vector<float> from;
    for (double x = -12.0; x <= 12.0; x += 0.0037) from.push_back(static_cast<float>(x));
    for (const float x : {0.0f, -0.0f, 1e-30f, -1e-30f, 25.0f, -25.0f, 1e19f, -1e19f, 3e38f, -3e38f}) from.push_back(x);
    for_each_block_entry([&](const BlockEntry& entry) {
        for (int which = 0; which < 3; ++which) {
            std::vector<float> got = from;
            Call call(3);
            REQUIRE(entry.activation(&call.context, which, got.data(), static_cast<int64_t>(got.size())) == ATTEND_OK);
            double worst = 0;
            for (size_t at = 0; at < got.size(); ++at) {
                const double expected = static_cast<double>(static_cast<float>(activated(which, wide(from[at]))));
                if (wide(got[at]) == expected) continue;
                worst = std::max(worst, std::abs(wide(got[at]) - expected) / (3e-7 + std::abs(expected)));
            }
            INFO("activation " << which);
            CHECK(worst < 2e-6);
            float special[3] = {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                                nan_value};
            REQUIRE(entry.activation(&call.context, which, special, 3) == ATTEND_OK);
            CHECK(special[0] == std::numeric_limits<float>::infinity());
            CHECK(special[1] == 0.0f);
            CHECK(std::isnan(special[2]));
        }
    });
}

TEST_CASE("blocks: layer norm", "[toolkit]") {
    Random random(1);
    for (const int64_t width : {1, 7, 8, 33, 512})
        for (const float shift : {0.0f, 1000.0f}) {
            const int64_t batch = 2, rows = 5;
            std::vector<float> x = numbers(random, batch * rows * width), gamma = numbers(random, width),
                               beta = numbers(random, width);
            for (float& value : x) value += shift;
            std::vector<double> expected;
            for (int64_t row = 0; row < batch * rows; ++row) {
                const float* from = x.data() + row * width;
                double mean = 0, variance = 0;
                for (int64_t c = 0; c < width; ++c) mean += wide(from[c]) / static_cast<double>(width);
                for (int64_t c = 0; c < width; ++c)
                    variance += (wide(from[c]) - mean) * (wide(from[c]) - mean) / static_cast<double>(width);
                for (int64_t c = 0; c < width; ++c)
                    expected.push_back((wide(from[c]) - mean) / std::sqrt(variance + 1e-5) *
                                           wide(gamma[static_cast<size_t>(c)]) +
                                       wide(beta[static_cast<size_t>(c)]));
            }
            for_each_block_entry([&](const BlockEntry& entry) {
                std::vector<float> first;
                for (const Strides layout : {Strides::packed, Strides::swapped, Strides::reversed, Strides::spread})
                    for (const uint32_t workers : {1u, 4u}) {
                        Strided<float> from({batch, rows, width}, layout, x), g({width}, layout, gamma),
                            b({width}, layout, beta),
                            to({batch, rows, width}, layout, std::vector<float>(x.size(), nan_value));
                        const attend_tensor t[] = {from.tensor(), g.tensor(), b.tensor(), to.tensor()};
                        const attend_tensor* list[] = {&t[0], &t[1], &t[2], &t[3]};
                        Call call(workers);
                        REQUIRE(entry.norm(&call.context, list) == ATTEND_OK);
                        CHECK(first_difference(to.values(), expected, 2e-6) == -1);
                        CHECK(to.gaps_untouched());
                        if (first.empty()) first = to.values();
                        if (layout == Strides::packed) CHECK(same_bits(first, to.values()));
                    }
            });
        }
}

TEST_CASE("blocks: gated sums", "[toolkit]") {
    Random random(2);
    const int64_t batch = 2, heads = 3, rows = 4;
    for (const int64_t width : {1, 5, 16, 53})
        for (int kind = 0; kind < 4; ++kind)
            for (const bool with_base : {true, false}) {
                const int64_t count = batch * heads * rows * width;
                const std::vector<float> base = numbers(random, count), add = numbers(random, count);
                std::vector<float> gates = numbers(random, kind == 2 ? heads : kind == 3 ? width : 1);
                gates.back() = 0.0f;
                std::vector<double> expected;
                for (int64_t at = 0; at < count; ++at) {
                    const int64_t h = at / width / rows % heads, c = at % width;
                    const double g = kind == 0 ? 1.0
                                               : wide(gates[static_cast<size_t>(kind == 2   ? h
                                                                                : kind == 3 ? c
                                                                                            : 0)]);
                    expected.push_back((with_base ? wide(base[static_cast<size_t>(at)]) : 0.0) +
                                       g * wide(add[static_cast<size_t>(at)]));
                }
                for_each_block_entry([&](const BlockEntry& entry) {
                    for (const Strides layout : {Strides::packed, Strides::spread}) {
                        std::vector<float> poisoned = add;
                        for (int64_t at = 0; at < count; ++at)
                            if (expected[static_cast<size_t>(at)] == wide(base[static_cast<size_t>(at)]) && with_base)
                                poisoned[static_cast<size_t>(at)] = nan_value;  // behind a closed gate
                        Strided<float> b({batch, heads, rows, width}, layout, base),
                            a({batch, heads, rows, width}, layout, poisoned),
                            to({batch, heads, rows, width}, layout, std::vector<float>(base.size(), nan_value));
                        const attend_tensor t[] = {b.tensor(), a.tensor(), to.tensor()};
                        const attend_tensor* list[] = {with_base ? &t[0] : nullptr, &t[1], &t[2]};
                        Call call(3);
                        REQUIRE(entry.gated_sum(&call.context, list, gates.data(), kind) == ATTEND_OK);
                        CHECK(first_difference(to.values(), expected, 1e-6) == -1);
                        CHECK(to.gaps_untouched());
                    }
                });
            }
}

TEST_CASE("blocks: feed-forward in portions", "[toolkit]") {
    Random random(3);
    // Widths at which one portion holds many items, part of one, or all.
    const int64_t sizes[][4] = {{3, 5, 8, 24},    {2, 150, 4, 9000}, {1, 1, 5, 3},
                                {40, 3, 4, 9000}, {0, 4, 4, 4},      {2, 0, 4, 4}};
    for (const auto& size : sizes) {
        const int64_t batch = size[0], rows = size[1], width = size[2], hidden = size[3];
        INFO("B " << batch << " N " << rows << " E " << width << " F " << hidden);
        const std::vector<float> y = numbers(random, batch * rows * width), gamma = numbers(random, width),
                                 beta = numbers(random, width), w1 = numbers(random, hidden * width, 0.4f),
                                 b1 = numbers(random, hidden),
                                 w2 = numbers(random, width * hidden, 1.0f / std::sqrt(static_cast<float>(hidden))),
                                 b2 = numbers(random, width);
        const float gate = 0.7f;
        const int which = static_cast<int>(random.whole(0, 2));
        std::vector<double> expected;
        for (int64_t row = 0; row < batch * rows; ++row) {
            const float* from = y.data() + row * width;
            double mean = 0, variance = 0;
            for (int64_t c = 0; c < width; ++c) mean += wide(from[c]) / static_cast<double>(width);
            for (int64_t c = 0; c < width; ++c)
                variance += (wide(from[c]) - mean) * (wide(from[c]) - mean) / static_cast<double>(width);
            std::vector<double> middle(static_cast<size_t>(hidden));
            for (int64_t f = 0; f < hidden; ++f) {
                double sum = wide(b1[static_cast<size_t>(f)]);
                for (int64_t c = 0; c < width; ++c)
                    sum += wide(w1[static_cast<size_t>(f * width + c)]) *
                           ((wide(from[c]) - mean) / std::sqrt(variance + 1e-5) * wide(gamma[static_cast<size_t>(c)]) +
                            wide(beta[static_cast<size_t>(c)]));
                middle[static_cast<size_t>(f)] = activated(which, sum);
            }
            for (int64_t c = 0; c < width; ++c) {
                double sum = wide(b2[static_cast<size_t>(c)]);
                for (int64_t f = 0; f < hidden; ++f)
                    sum += wide(w2[static_cast<size_t>(c * hidden + f)]) * middle[static_cast<size_t>(f)];
                expected.push_back(wide(from[c]) + wide(gate) * sum);
            }
        }
        for_each_block_entry([&](const BlockEntry& entry) {
            std::vector<float> first;
            for (const uint32_t workers : {1u, 2u, 5u}) {
                Strided<float> from({batch, rows, width}, Strides::packed, y), g({width}, Strides::packed, gamma),
                    b({width}, Strides::packed, beta), m1({hidden, width}, Strides::packed, w1),
                    c1({hidden}, Strides::packed, b1), m2({width, hidden}, Strides::packed, w2),
                    c2({width}, Strides::packed, b2);
                const attend_tensor t[] = {from.tensor(), g.tensor(),  b.tensor(), m1.tensor(),
                                           c1.tensor(),   m2.tensor(), c2.tensor()};
                // In place.
                const attend_tensor* list[] = {&t[0], &t[0], &t[1], &t[2], &t[3], &t[4], &t[5], &t[6]};
                Call call(workers, entry.feed_forward_workspace(list, workers));
                REQUIRE(entry.feed_forward(&call.context, list, which, &gate) == ATTEND_OK);
                CHECK(first_difference(from.values(), expected, 2e-5) == -1);
                CHECK(call.scratch.guard_untouched());
                if (first.empty()) first = from.values();
                CHECK(same_bits(first, from.values()));
            }
        });
    }
}

TEST_CASE("blocks: merging parts", "[toolkit]") {
    Random random(4);
    const int64_t batch = 2, heads = 2, rows = 7, width = 19;
    const float minus = -std::numeric_limits<float>::infinity();
    std::vector<float> a = numbers(random, batch * heads * rows * width),
                       b = numbers(random, batch * heads * rows * width),
                       la = numbers(random, batch * heads * rows, 3.0f),
                       lb = numbers(random, batch * heads * rows, 3.0f);
    la[0] = minus, lb[1] = minus, la[2] = lb[2] = minus, la[3] = 500.0f, lb[4] = 500.0f;
    for (int64_t c = 0; c < width; ++c)
        a[static_cast<size_t>(c)] = b[static_cast<size_t>(width + c)] = nan_value,
        a[static_cast<size_t>(2 * width + c)] = 0.0f;
    std::vector<double> expected, expected_lse;
    for (size_t row = 0; row < la.size(); ++row) {
        const double x = wide(la[row]), y = wide(lb[row]), most = std::max(x, y);
        const double total = most == wide(minus) ? most : most + std::log(std::exp(x - most) + std::exp(y - most));
        expected_lse.push_back(total);
        for (size_t c = 0; c < static_cast<size_t>(width); ++c) {
            const size_t at = row * static_cast<size_t>(width) + c;
            double sum = 0;
            if (x != wide(minus)) sum += std::exp(x - total) * wide(a[at]);
            if (y != wide(minus)) sum += std::exp(y - total) * wide(b[at]);
            expected.push_back(sum);
        }
    }
    for_each_block_entry([&](const BlockEntry& entry) {
        for (const Strides layout : {Strides::packed, Strides::swapped, Strides::spread}) {
            Strided<float> o({batch, heads, rows, width}, layout, a), l({batch, heads, rows}, layout, la),
                p({batch, heads, rows, width}, layout, b), pl({batch, heads, rows}, layout, lb);
            const attend_tensor t[] = {o.tensor(), l.tensor(), p.tensor(), pl.tensor()};
            const attend_tensor* list[] = {&t[0], &t[1], &t[2], &t[3]};
            Call call(3);
            REQUIRE(entry.merge(&call.context, list) == ATTEND_OK);
            CHECK(first_difference(o.values(), expected, 1e-6) == -1);
            CHECK(first_difference(l.values(), expected_lse, 1e-6, true) == -1);
            CHECK(o.gaps_untouched());
        }
    });
}

TEST_CASE("blocks: the best of many slots", "[toolkit]") {
    Random random(5);
    for (const int64_t count : {1, 2, 3, 17, 300, 5000})
        for (const int64_t k : {int64_t{1}, int64_t{2}, count / 2, count - 1, count}) {
            if (k < 1) continue;
            std::vector<float> scores = numbers(random, count);
            for (float& score : scores) {
                if (random.chance(0.3)) score = static_cast<float>(random.whole(-2, 2));  // ties
                if (random.chance(0.05)) score = -0.0f;
                if (random.chance(0.02)) score = nan_value;
                if (random.chance(0.02)) score = -std::numeric_limits<float>::infinity();
                if (random.chance(0.02)) score = std::numeric_limits<float>::infinity();
            }
            std::vector<int64_t> order(static_cast<size_t>(count));
            std::iota(order.begin(), order.end(), int64_t{0});
            std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) {
                const float a = scores[static_cast<size_t>(x)], b = scores[static_cast<size_t>(y)];
                if (std::isnan(a) || std::isnan(b)) return !std::isnan(a) && std::isnan(b);
                return a > b;
            });
            order.resize(static_cast<size_t>(k));
            for_each_block_entry([&](const BlockEntry& entry) {
                std::vector<uint64_t> room(static_cast<size_t>(2 * count));
                std::vector<int64_t> slots(static_cast<size_t>(k));
                std::vector<float> best(static_cast<size_t>(k));
                entry.best(scores.data(), count, k, room.data(), slots.data(), best.data());
                CHECK(slots == order);
                for (size_t at = 0; at < best.size(); ++at) {
                    const float score = scores[static_cast<size_t>(order[at])];
                    CHECK((best[at] == score || (std::isnan(best[at]) && std::isnan(score))));
                }
            });
        }
}

TEST_CASE("blocks: portions of a residual block", "[toolkit]") {
    Random random(6);
    const int64_t batch = 3, nq = 11, nk = 37, zw = 12, xw = 10, qk = 8, v = 6, heads = 2, hidden = 24;
    const std::vector<int64_t> extents[18] = {{zw},     {zw}, {xw},         {xw},     {zw},         {zw},
                                              {qk, zw}, {qk}, {qk, xw},     {qk},     {v, xw},      {v},
                                              {zw, v},  {zw}, {hidden, zw}, {hidden}, {zw, hidden}, {zw}};
    std::vector<Strided<float>> storage;
    for (const auto& shape : extents)
        storage.emplace_back(
            shape, Strides::packed,
            numbers(random, std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>()), 0.4f));
    const std::vector<float> z = numbers(random, nq * zw), x = numbers(random, batch * nk * xw);
    const std::vector<int64_t> valid{nk, 0, 20};
    for_each_block_entry([&](const BlockEntry& entry) {
        std::vector<float> whole;
        for (const auto& portion :
             {std::array<int64_t, 3>{0, 0, 0}, {3, 11, 37}, {1, 11, 37}, {2, 4, 37}, {3, 11, 7}, {2, 3, 10}, {1, 1, 1}})
            for (const uint32_t workers : {1u, 3u}) {
                Strided<float> from({batch, nq, zw}, Strides::packed,
                                    [&] {
                                        std::vector<float> all;
                                        for (int64_t b = 0; b < batch; ++b) all.insert(all.end(), z.begin(), z.end());
                                        return all;
                                    }()),
                    keys({batch, nk, xw}, Strides::spread, x),
                    to({batch, nq, zw}, Strides::packed,
                       std::vector<float>(static_cast<size_t>(batch * nq * zw), nan_value));
                Strided<int64_t> length({batch}, Strides::packed, valid);
                const attend_tensor zt = from.tensor(), xt = keys.tensor(), lt = length.tensor(), ot = to.tensor();
                BlockCall call{&zt, &xt, &lt, &ot, {}, heads, portion[0], portion[1], portion[2], true};
                std::vector<attend_tensor> weights;
                for (auto& one : storage) weights.push_back(one.tensor());
                for (size_t at = 0; at < 18; ++at) call.weights[at] = &weights[at];
                Call run(workers, entry.block_workspace(&call, workers));
                REQUIRE(entry.block(&run.context, &call) == ATTEND_OK);
                CHECK(run.scratch.guard_untouched());
                const std::vector<float> got = to.values();
                if (whole.empty()) whole = got;
                CHECK(first_difference(got, {whole.begin(), whole.end()}, 1e-5) == -1);
            }
    });
}

}  // namespace
}  // namespace attend::test
