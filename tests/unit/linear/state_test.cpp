// SPDX-License-Identifier: Apache-2.0
// The state that leaves and enters: a call in pieces equals one call, states over disjoint keys merge, and neither the
// chunk nor a constant weight of all keys matters.
#include "unit/linear/support.hpp"

namespace attend::linear_test {
namespace {

LinearCase stream_case(uint32_t kind) {
    LinearCase c;
    c.batch = 2;
    c.q_heads = 4;
    c.kv_heads = 2;
    c.q_len = c.kv_len = 230;
    c.head_dim = 6;
    c.value_dim = 9;
    c.kind = kind;
    c.nu = 2;
    c.spread = 0.8f;
    c.want_lse = kind != ATTEND_FEATURES_TRIG;
    c.guard = kind <= ATTEND_FEATURES_DPFP ? ATTEND_GUARD_ADD : ATTEND_GUARD_NONE;
    c.guard_eps = 1e-3;
    if (kind == ATTEND_FEATURES_COSINE) {
        c.angle = 1.57 / 400.0;
        c.item_positions = false;
        c.guard = ATTEND_GUARD_MAX;
    }
    if (c.unit_rows()) {
        c.feature_factor = 0.3;
        c.gated = true;
        c.want_lse = kind == ATTEND_FEATURES_ARCCOS;
        c.guard = kind == ATTEND_FEATURES_ARCCOS ? ATTEND_GUARD_MAX : ATTEND_GUARD_WEIGHT;
        c.guard_heads = {0.9, 0.7};
    }
    return c;
}

constexpr uint32_t recurrent[] = {ATTEND_FEATURES_COSINE, ATTEND_FEATURES_SINCOS, ATTEND_FEATURES_ARCCOS};
constexpr uint32_t streaming[] = {ATTEND_FEATURES_ELU,        ATTEND_FEATURES_DPFP, ATTEND_FEATURES_SOFTMAX,
                                  ATTEND_FEATURES_HYPERBOLIC, ATTEND_FEATURES_TRIG, ATTEND_FEATURES_PROJECTED_RELU};

std::vector<uint32_t> all_streaming() {
    std::vector<uint32_t> kinds(std::begin(streaming), std::end(streaming));
    kinds.insert(kinds.end(), std::begin(recurrent), std::end(recurrent));
    return kinds;
}

TEST_CASE("linear state: causal pieces equal one call", "[linear]") {
    for (const uint32_t kind : all_streaming())
        for (const int bias : {0, 1, 2}) {
            LinearCase c = stream_case(kind);
            c.causal = true;
            c.bias = bias;
            c.fill(kind * 10 + static_cast<uint64_t>(bias));
            const Expected expected = oracle(c);
            for_each_entry([&](const Entry& entry) {
                INFO(c.text());
                const EngineResult whole = run_engine(entry, c, 1, Piece{0, -1, 0, -1, nullptr, true});
                REQUIRE(whole.status == ATTEND_OK);
                compare(c, whole, expected);
                // Prefill in two uneven pieces, then keys one by one.
                std::vector<int64_t> cuts = {0, 100, 226, 227, 228, 229, 230};
                State state;
                LinearCase piece = c;
                std::vector<std::vector<float>> outputs;
                for (size_t at = 0; at + 1 < cuts.size(); ++at) {
                    const State before = state;
                    const EngineResult part =
                        run_engine(entry, piece, 1,
                                   Piece{cuts[at], cuts[at + 1], cuts[at], cuts[at + 1], at ? &before : nullptr, true});
                    INFO(part.text);
                    REQUIRE(part.status == ATTEND_OK);
                    state = part.state;
                    outputs.push_back(part.output);
                }
                for (size_t at = 0; at + 1 < cuts.size(); ++at) {
                    const int64_t rows = cuts[at + 1] - cuts[at];
                    for (int64_t head = 0; head < c.batch * c.q_heads; ++head)
                        for (int64_t i = 0; i < rows * c.value_dim; ++i) {
                            const auto whole_at = static_cast<size_t>((head * c.q_len + cuts[at]) * c.value_dim + i);
                            const float got = outputs[at][static_cast<size_t>(head * rows * c.value_dim + i)];
                            if (!agrees(got, expected.output[whole_at], expected.tolerance[whole_at])) {
                                INFO("piece " << at << " head " << head << " element " << i << ": " << got
                                              << ", expected " << expected.output[whole_at]);
                                CHECK(false);
                            }
                        }
                }
                // The states agree once their references do.
                const int64_t columns = c.value_dim + 1,
                              rows = static_cast<int64_t>(whole.state.sums.size()) / columns /
                                     static_cast<int64_t>(whole.state.scales.size() / ATTEND_LINEAR_STATE_SCALES);
                for (size_t unit = 0; unit * ATTEND_LINEAR_STATE_SCALES < whole.state.scales.size(); ++unit) {
                    const double shift = state.scales[unit * ATTEND_LINEAR_STATE_SCALES + 1] +
                                         state.scales[unit * ATTEND_LINEAR_STATE_SCALES] -
                                         whole.state.scales[unit * ATTEND_LINEAR_STATE_SCALES + 1] -
                                         whole.state.scales[unit * ATTEND_LINEAR_STATE_SCALES];
                    CHECK(state.scales[unit * ATTEND_LINEAR_STATE_SCALES + 2] ==
                          whole.state.scales[unit * ATTEND_LINEAR_STATE_SCALES + 2]);
                    for (int64_t i = 0; i < rows * columns; ++i) {
                        const auto at = unit * static_cast<size_t>(rows * columns) + static_cast<size_t>(i);
                        const double a = static_cast<double>(state.sums[at]) * std::exp(shift),
                                     b = static_cast<double>(whole.state.sums[at]);
                        CHECK(std::fabs(a - b) <= 1e-4 * std::max(1.0, std::fabs(b)));
                    }
                }
            });
        }
}

TEST_CASE("linear state: keys in two parts, read after both", "[linear]") {
    for (const uint32_t kind : streaming)
        for (const bool official : {false, true}) {
            LinearCase c = stream_case(kind);
            c.official = official && c.stabilised();
            if (official && !c.official) continue;
            if (c.official) c.guard = ATTEND_GUARD_SHIFT;
            c.feature_eps = 1e-3;
            c.bias = 1;
            c.q_len = 30;
            c.fill(kind);
            const Expected expected = oracle(c);
            for_each_entry([&](const Entry& entry) {
                INFO(c.text());
                const EngineResult first = run_engine(entry, c, 2, Piece{0, 0, 0, 90, nullptr, true});
                REQUIRE(first.status == ATTEND_OK);
                const EngineResult second = run_engine(entry, c, 2, Piece{0, -1, 90, -1, &first.state, true});
                REQUIRE(second.status == ATTEND_OK);
                compare(c, second, expected);
                const EngineResult third = run_engine(entry, c, 1, Piece{0, -1, 230, 230, &second.state, false});
                REQUIRE(third.status == ATTEND_OK);
                compare(c, third, expected);
            });
        }
}

TEST_CASE("linear state: workers and phases leave the same bits", "[linear]") {
    LinearCase c = stream_case(ATTEND_FEATURES_SOFTMAX);
    c.batch = c.q_heads = c.kv_heads = 1;
    c.q_len = c.kv_len = 1700;
    c.causal = true;
    c.fill(9);
    for_each_entry([&](const Entry& entry) {
        const EngineResult one = run_engine(entry, c, 1, Piece{0, -1, 0, -1, nullptr, true});
        REQUIRE(one.status == ATTEND_OK);
        for (const uint32_t workers : {2u, 7u}) {
            const EngineResult many = run_engine(entry, c, workers, Piece{0, -1, 0, -1, nullptr, true});
            REQUIRE(many.status == ATTEND_OK);
            CHECK(same_bits(one.output, many.output));
            CHECK(same_bits(one.state.sums, many.state.sums));
            CHECK(one.state.scales == many.state.scales);
        }
    });
}

TEST_CASE("linear: halves of the keys merge by output and LSE", "[linear]") {
    for (const uint32_t kind : {ATTEND_FEATURES_ELU, ATTEND_FEATURES_SOFTMAX, ATTEND_FEATURES_HYPERBOLIC}) {
        LinearCase c = stream_case(kind);
        c.guard = ATTEND_GUARD_NONE;
        c.fill(kind);
        for_each_entry([&](const Entry& entry) {
            const EngineResult whole = run_engine(entry, c, 1);
            const EngineResult a = run_engine(entry, c, 1, Piece{0, -1, 0, 77, nullptr, false}),
                               b = run_engine(entry, c, 1, Piece{0, -1, 77, -1, nullptr, false});
            for (size_t at = 0; at < whole.output.size(); ++at) {
                const size_t row = at / static_cast<size_t>(c.value_dim);
                const auto la = static_cast<double>(a.lse[row]), lb = static_cast<double>(b.lse[row]),
                           most = std::max(la, lb);
                const double wa = std::exp(la - most), wb = std::exp(lb - most);
                const double merged =
                    (wa * static_cast<double>(a.output[at]) + wb * static_cast<double>(b.output[at])) / (wa + wb);
                CHECK(std::fabs(merged - static_cast<double>(whole.output[at])) <= 1e-5);
                CHECK(std::fabs(most + std::log(wa + wb) - static_cast<double>(whole.lse[row])) <= 2e-5);
            }
        });
    }
}

TEST_CASE("linear: chunks do not matter to gates", "[linear]") {
    for (const uint32_t kind : recurrent) {
        LinearCase c = stream_case(kind);
        c.causal = true;
        c.fill(kind + 70);
        const Expected expected = oracle(c);
        for_each_entry([&](const Entry& entry) {
            for (const int64_t chunk : {1, 13, 64, 128, 1000}) {
                LinearCase other = c;
                other.chunk = chunk;
                compare(c, run_engine(entry, other, 1), expected);
            }
        });
    }
}

TEST_CASE("linear: chunks and a constant bias do not matter", "[linear]") {
    for (const uint32_t kind : streaming) {
        LinearCase c = stream_case(kind);
        c.causal = true;
        c.guard = ATTEND_GUARD_NONE;
        c.fill(kind + 50);
        const Expected expected = oracle(c);
        for_each_entry([&](const Entry& entry) {
            for (const int64_t chunk : {1, 13, 64, 128, 1000}) {
                LinearCase other = c;
                other.chunk = chunk;
                compare(c, run_engine(entry, other, 1), expected);
            }
            for (const float shift : {-120.0f, 110.0f}) {
                LinearCase other = c;
                other.bias = 1;
                other.bias_data.assign(static_cast<size_t>(c.batch * c.kv_len), shift);
                const EngineResult got = run_engine(entry, other, 1);
                Expected moved = expected;
                for (double& lse : moved.lse) lse += static_cast<double>(shift);
                compare(c, got, moved);
            }
        });
    }
}

}  // namespace
}  // namespace attend::linear_test
