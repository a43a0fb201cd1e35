// SPDX-License-Identifier: Apache-2.0
// The engine's short way (elementwise features, every key visible, whole vectors) against the quadratic form, and its
// promises where values are not finite.
#include "unit/linear/support.hpp"

namespace attend::linear_test {
namespace {

LinearCase plain_case(Random& random) {
    LinearCase c;
    c.batch = random.whole(1, 2);
    c.kv_heads = random.whole(1, 2);
    c.q_heads = c.kv_heads * random.whole(1, 2);
    c.q_len = random.whole(1, 150);
    c.kv_len = random.whole(1, 200);
    c.head_dim = random.pick<int64_t>({16, 32, 48, 64});
    c.value_dim = random.pick<int64_t>({16, 48, 64, 96});
    c.layout = static_cast<int>(random.whole(0, 1));
    c.causal = random.chance(0.7);
    c.offset = random.chance(0.5) ? c.kv_len - c.q_len : random.whole(-130, 230);
    c.kind =
        random.pick({ATTEND_FEATURES_ELU, ATTEND_FEATURES_ELU, ATTEND_FEATURES_RELU, ATTEND_FEATURES_PROJECTED_RELU});
    c.num_features = c.kind == ATTEND_FEATURES_PROJECTED_RELU ? 0 : 12;
    c.kernel_eps = c.kind == ATTEND_FEATURES_PROJECTED_RELU ? 1e-3 : 0.0;
    c.query_scale = random.pick({1.0, 0.6});
    c.guard = c.kind == ATTEND_FEATURES_PROJECTED_RELU
                  ? ATTEND_GUARD_SHIFT
                  : random.pick({ATTEND_GUARD_ADD, ATTEND_GUARD_ADD, ATTEND_GUARD_NUMERATOR});
    c.guard_eps = random.pick({0.0, 1e-6, 0.1});
    if (random.chance(0.4))
        for (int64_t b = 0; b < c.batch; ++b) c.key_lengths.push_back(random.whole(0, c.kv_len));
    if (random.chance(0.4))
        for (int64_t b = 0; b < c.batch; ++b) c.query_lengths.push_back(random.whole(0, c.q_len));
    c.per_item = !c.key_lengths.empty() && !c.query_lengths.empty() && random.chance(0.7);
    return c;
}

TEST_CASE("linear engine, short way: random mixtures", "[linear]") {
    for (uint64_t seed = 1; seed <= 160; ++seed) {
        Random random(seed);
        check_everywhere(plain_case(random), seed);
    }
}

TEST_CASE("linear engine, short way: segments and phases", "[linear]") {
    for (const bool causal : {false, true})
        for (const int64_t heads : {1, 3}) {
            LinearCase c;
            c.q_heads = c.kv_heads = heads;
            c.q_len = causal ? 1900 : 300;
            c.kv_len = 2100;
            c.head_dim = c.value_dim = 16;
            c.causal = causal;
            c.offset = 150;
            c.guard = ATTEND_GUARD_ADD;
            c.guard_eps = 1e-6;
            check_everywhere(c, 900 + static_cast<uint64_t>(heads));
        }
}

TEST_CASE("linear engine, short way: agrees with the long way", "[linear]") {
    for (uint64_t seed = 200; seed <= 230; ++seed) {
        Random random(seed);
        LinearCase c = plain_case(random);
        if (c.guard == ATTEND_GUARD_NUMERATOR) c.guard = ATTEND_GUARD_ADD;  // sums of any size
        c.fill(seed);
        LinearCase other = c;
        other.chunk = 48;  // asked for, so taken
        for_each_entry([&](const Entry& entry) {
            INFO(c.text());
            const EngineResult a = run_engine(entry, c, 1), b = run_engine(entry, other, 1);
            REQUIRE(a.status == ATTEND_OK);
            REQUIRE(b.status == ATTEND_OK);
            for (size_t at = 0; at < a.output.size(); ++at) {
                const double size = std::max(1.0, std::fabs(static_cast<double>(b.output[at])));
                CHECK(std::fabs(static_cast<double>(a.output[at]) - static_cast<double>(b.output[at])) <= 2e-5 * size);
            }
        });
    }
}

TEST_CASE("linear engine, short way: a later key changes nothing", "[linear]") {
    for (const uint32_t kind : {ATTEND_FEATURES_ELU, ATTEND_FEATURES_RELU})
        for (const int64_t from : {1, 15, 16, 50, 149}) {
            LinearCase c;
            c.kv_len = c.q_len = 150;
            c.head_dim = 32;
            c.value_dim = 48;
            c.causal = true;
            c.kind = kind;
            c.fill(77);
            LinearCase wild = c;
            for (int64_t head = 0; head < c.kv_heads; ++head)
                for (int64_t key = from; key < c.kv_len; ++key) {
                    const float bad = key % 3 == 0   ? std::numeric_limits<float>::infinity()
                                      : key % 3 == 1 ? nan_value
                                                     : 1e30f;
                    const int64_t row = head * c.kv_len + key;
                    wild.k[static_cast<size_t>(row * c.head_dim + key % c.head_dim)] = bad;
                    if (key % 2 == 0) wild.v[static_cast<size_t>(row * c.value_dim + key % c.value_dim)] = bad;
                }
            for_each_entry([&](const Entry& entry) {
                INFO(c.text() << " from " << from);
                const EngineResult clean = run_engine(entry, c, 1), other = run_engine(entry, wild, 1);
                REQUIRE(clean.status == ATTEND_OK);
                REQUIRE(other.status == ATTEND_OK);
                for (int64_t head = 0; head < c.q_heads; ++head) {
                    const auto first = static_cast<size_t>(head * c.q_len * c.value_dim);
                    const auto count = static_cast<size_t>(from * c.value_dim);
                    CHECK(std::memcmp(&clean.output[first], &other.output[first], count * sizeof(float)) == 0);
                    bool finite = true;
                    for (int64_t at = 149 * c.value_dim; at < 150 * c.value_dim; ++at)
                        finite = finite && std::isfinite(other.output[first + static_cast<size_t>(at)]);
                    if (from < 149) CHECK(!finite);
                }
            });
        }
}

TEST_CASE("linear engine, short way: wild keys match the oracle where rows cannot see them", "[linear]") {
    for (uint64_t seed = 1; seed <= 30; ++seed) {
        LinearCase c;
        c.kv_len = c.q_len = 90;
        c.head_dim = c.value_dim = 16;
        c.causal = true;
        c.wild = 0.02;
        c.fill(seed);
        const Expected expected = oracle(c);
        for_each_entry([&](const Entry& entry) {
            const EngineResult got = run_engine(entry, c, 1);
            REQUIRE(got.status == ATTEND_OK);
            for (size_t at = 0; at < got.output.size(); ++at)
                if (std::isfinite(expected.output[at]))
                    CHECK(agrees(got.output[at], expected.output[at], expected.tolerance[at]));
        });
    }
}

}  // namespace
}  // namespace attend::linear_test
