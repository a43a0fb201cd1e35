// SPDX-License-Identifier: Apache-2.0
// The linear engine against the quadratic form: every map and stabiliser, awkward sizes, masks, lengths, offsets, strides,
// and random mixtures of all.
#include "unit/linear/support.hpp"

namespace attend::linear_test {
namespace {

// One of the maps that a mechanism can ask for, with the options that it takes.
void choose_map(LinearCase& c, Random& random, uint32_t kind) {
    c.kind = kind;
    c.sum_normalize = kind <= ATTEND_FEATURES_DPFP && random.chance(0.3);
    c.nu = random.whole(1, std::min<int64_t>(3, 2 * c.head_dim - 1));
    c.num_features = random.whole(1, 20);
    c.slots = random.chance(0.5) ? c.kv_heads : 1;
    c.official = c.stabilised() && random.chance(0.5);
    c.feature_eps = random.pick({0.0, 1e-6, 1e-2});
    c.query_scale = c.key_scale = random.pick({1.0, 0.6});
    c.kernel_eps = kind == ATTEND_FEATURES_PROJECTED_RELU ? random.pick({0.0, 1e-3}) : 0.0;
    c.want_lse = kind != ATTEND_FEATURES_TRIG;
    if (kind <= ATTEND_FEATURES_DPFP) {
        c.guard = random.pick({ATTEND_GUARD_ADD, ATTEND_GUARD_ADD, ATTEND_GUARD_NUMERATOR});
        c.guard_eps = random.pick({0.0, 1e-6, 0.1});
        c.key_scale = 1.0;
    } else {
        if (kind == ATTEND_FEATURES_PROJECTED_RELU && random.chance(0.3)) c.num_features = 0;
        c.guard = c.official || kind == ATTEND_FEATURES_PROJECTED_RELU ? ATTEND_GUARD_SHIFT : ATTEND_GUARD_NONE;
        c.guard_eps = random.pick({0.0, 1e-6, 1e-2});
    }
}

constexpr uint32_t every_map[] = {ATTEND_FEATURES_ELU,           ATTEND_FEATURES_RELU,       ATTEND_FEATURES_DPFP,
                                  ATTEND_FEATURES_SOFTMAX,       ATTEND_FEATURES_HYPERBOLIC, ATTEND_FEATURES_TRIG,
                                  ATTEND_FEATURES_PROJECTED_RELU};

TEST_CASE("linear engine: awkward lengths", "[linear]") {
    uint64_t seed = 1;
    for (const bool causal : {false, true})
        for (const int64_t q_len : {0, 1, 15, 17, 48, 97})
            for (const int64_t kv_len : {0, 1, 16, 47, 96, 100, 193}) {
                LinearCase c;
                c.q_len = q_len;
                c.kv_len = kv_len;
                c.causal = causal;
                c.offset = kv_len - q_len;
                Random random(seed);
                choose_map(c, random, every_map[seed % 7]);
                check_everywhere(c, seed++);
            }
}

TEST_CASE("linear engine: widths and groups", "[linear]") {
    uint64_t seed = 1000;
    for (const int64_t head_dim : {1, 3, 16, 65})
        for (const int64_t value_dim : {1, 7, 16, 65, 130})
            for (const int64_t group : {1, 3}) {
                LinearCase c;
                c.head_dim = head_dim;
                c.value_dim = value_dim;
                c.batch = 2;
                c.q_heads = 2 * group;
                c.q_len = 21;
                c.kv_len = 70;
                c.causal = seed % 2 == 0;
                c.offset = 49;
                c.spread = 1.0f / std::sqrt(static_cast<float>(head_dim));
                Random random(seed);
                choose_map(c, random, every_map[seed % 7]);
                check_everywhere(c, seed++);
            }
}

TEST_CASE("linear engine: random mixtures", "[linear]") {
    for (uint64_t seed = 1; seed <= 420; ++seed) {
        Random random(seed);
        LinearCase c;
        c.batch = random.whole(1, 2);
        c.kv_heads = random.whole(1, 2);
        c.q_heads = c.kv_heads * random.whole(1, 3);
        c.q_len = random.whole(0, 120);
        c.kv_len = random.whole(0, 260);
        c.head_dim = random.whole(1, 20);
        c.value_dim = random.pick<int64_t>({1, 5, 16, 33});
        c.causal = random.chance(0.6);
        c.offset = random.chance(0.5) ? c.kv_len - c.q_len : random.whole(-130, 300);
        c.mask = static_cast<int>(random.whole(0, 2));
        c.bias = random.chance(0.4) ? static_cast<int>(random.whole(1, 2)) : 0;
        c.bias_hides = random.chance(0.5);
        c.layout = static_cast<int>(random.whole(0, 3));
        c.chunk = random.pick<int64_t>({0, 0, 1, 5, 48, 77, 200});
        if (random.chance(0.4))
            for (int64_t b = 0; b < c.batch; ++b) c.key_lengths.push_back(random.whole(0, c.kv_len));
        if (random.chance(0.4))
            for (int64_t b = 0; b < c.batch; ++b) c.query_lengths.push_back(random.whole(0, c.q_len));
        c.per_item = !c.key_lengths.empty() && !c.query_lengths.empty() && random.chance(0.7);
        choose_map(c, random, every_map[seed % 7]);
        check_everywhere(c, seed);
    }
}

TEST_CASE("linear engine: cosines, rows of length 1 and gates", "[linear]") {
    for (uint64_t seed = 1; seed <= 240; ++seed) {
        Random random(seed);
        LinearCase c;
        c.kind = ATTEND_FEATURES_COSINE + static_cast<uint32_t>(seed % 3);
        c.batch = random.whole(1, 2);
        c.kv_heads = random.whole(1, 2);
        c.q_heads = c.kv_heads * random.whole(1, 3);
        c.q_len = random.whole(0, 120);
        c.kv_len = random.whole(0, 260);
        c.head_dim = random.whole(1, 20);
        c.value_dim = random.pick<int64_t>({1, 5, 16, 33});
        c.causal = random.chance(0.7);
        c.offset = random.chance(0.5) ? c.kv_len - c.q_len : random.whole(0, 300);
        c.mask = static_cast<int>(random.whole(0, 2));
        c.bias = random.chance(0.4) ? static_cast<int>(random.whole(1, 2)) : 0;
        c.bias_hides = random.chance(0.5);
        c.layout = static_cast<int>(random.whole(0, 3));
        c.chunk = random.pick<int64_t>({0, 0, 1, 5, 48, 77, 200});
        if (random.chance(0.4))
            for (int64_t b = 0; b < c.batch; ++b) c.key_lengths.push_back(random.whole(0, c.kv_len));
        if (random.chance(0.4))
            for (int64_t b = 0; b < c.batch; ++b) c.query_lengths.push_back(random.whole(0, c.q_len));
        c.per_item = !c.key_lengths.empty() && !c.query_lengths.empty() && random.chance(0.7);
        c.variant = random.chance(0.5);
        c.num_features = random.whole(1, 20);
        c.slots = random.chance(0.5) ? c.kv_heads : 1;
        c.angle = 1.57 / 700.0;
        c.query_offset = random.whole(0, 100);
        c.item_positions = random.chance(0.3);
        c.feature_factor = random.pick({0.1, 0.5});
        c.gated = c.unit_rows() && c.causal && random.chance(0.7);
        c.gate_logits = random.chance(0.5);
        c.guard = random.pick({ATTEND_GUARD_MAX, ATTEND_GUARD_MAX_SIZE, ATTEND_GUARD_WEIGHT});
        c.guard_eps = random.pick({1e-2, 1.0});
        c.guard_heads = {random.pick({0.05, 0.3}), 0.2};
        if (c.kind != ATTEND_FEATURES_SINCOS && random.chance(0.5)) c.guard = ATTEND_GUARD_MAX;
        c.want_lse = c.kind != ATTEND_FEATURES_SINCOS;
        check_everywhere(c, seed);
    }
}

TEST_CASE("linear engine: one state and many keys run in phases", "[linear]") {
    uint64_t seed = 5000;
    for (const uint32_t kind : {ATTEND_FEATURES_ELU, ATTEND_FEATURES_SOFTMAX, ATTEND_FEATURES_TRIG})
        for (const bool causal : {false, true})
            for (const bool official : {false, true}) {
                LinearCase c;
                c.q_heads = c.kv_heads = 1;
                c.q_len = causal ? 1800 : 400;
                c.kv_len = 2300;
                c.head_dim = 4;
                c.value_dim = 3;
                c.num_features = 6;
                c.kind = kind;
                c.official = official && c.stabilised();
                c.guard = c.official ? ATTEND_GUARD_SHIFT : ATTEND_GUARD_NONE;
                c.feature_eps = 1e-4;
                c.guard_eps = 1e-6;
                c.causal = causal;
                c.offset = 100;
                c.bias = official ? 1 : 0;
                c.want_lse = kind != ATTEND_FEATURES_TRIG;
                check_everywhere(c, seed++);
            }
    // Gates decay what lies before a segment.
    for (const uint32_t kind : {ATTEND_FEATURES_COSINE, ATTEND_FEATURES_SINCOS, ATTEND_FEATURES_ARCCOS}) {
        LinearCase c;
        c.q_heads = c.kv_heads = 1;
        c.q_len = 1800;
        c.kv_len = 2300;
        c.head_dim = 4;
        c.value_dim = 3;
        c.num_features = 6;
        c.kind = kind;
        c.causal = true;
        c.offset = c.query_offset = 700;
        c.angle = 1.57 / 2600.0;
        c.gated = kind != ATTEND_FEATURES_COSINE;
        c.gate_logits = kind == ATTEND_FEATURES_ARCCOS;
        c.guard = c.gated ? ATTEND_GUARD_WEIGHT : ATTEND_GUARD_MAX;
        c.guard_eps = 1e-3;
        c.guard_heads = {0.1};
        c.want_lse = kind != ATTEND_FEATURES_SINCOS;
        check_everywhere(c, seed++);
    }
}

TEST_CASE("linear engine: a hidden key is not touched, a later one changes nothing", "[linear]") {
    for (const uint32_t kind : every_map)
        for (const int64_t chunk : {0, 7}) {
            LinearCase c;
            c.kv_len = 150;
            c.q_len = 150;
            c.causal = true;
            c.mask = 1;
            c.chunk = chunk;
            Random random(kind);
            choose_map(c, random, kind);
            c.official = false;
            if (c.stabilised()) c.guard = ATTEND_GUARD_NONE;
            c.fill(77 + kind);
            for_each_entry([&](const Entry& entry) {
                INFO(c.text());
                const EngineResult plain = run_engine(entry, c, 1);
                REQUIRE(plain.status == ATTEND_OK);
                LinearCase wild = c;
                const int64_t from = 90;  // rows below see keys below
                for (int64_t head = 0; head < c.kv_heads; ++head)
                    for (int64_t key = 0; key < c.kv_len; ++key) {
                        const bool hidden = c.mask_data[static_cast<size_t>(key)] == 0;
                        if (!hidden && key < from) continue;
                        const float bad = key % 3 == 0   ? std::numeric_limits<float>::infinity()
                                          : key % 3 == 1 ? nan_value
                                                         : 1e30f;
                        wild.k[static_cast<size_t>((head * c.kv_len + key) * c.head_dim)] = bad;
                        wild.v[static_cast<size_t>((head * c.kv_len + key) * c.value_dim)] = bad;
                    }
                const EngineResult other = run_engine(entry, wild, 1);
                REQUIRE(other.status == ATTEND_OK);
                for (int64_t head = 0; head < c.q_heads; ++head) {
                    const auto first = static_cast<size_t>(head * c.q_len * c.value_dim),
                               count = static_cast<size_t>(from * c.value_dim);
                    CHECK(std::memcmp(&plain.output[first], &other.output[first], count * sizeof(float)) == 0);
                    // The first row that sees a wild key is not finite.
                    int64_t row = from;
                    while (c.mask_data[static_cast<size_t>(row)] == 0 || row % 3 == 2) ++row;
                    CHECK(!std::isfinite(other.output[static_cast<size_t>((head * c.q_len + row) * c.value_dim)]));
                }
            });
        }
}

TEST_CASE("linear engine: wild keys match the oracle where rows cannot see them", "[linear]") {
    for (uint64_t seed = 1; seed <= 40; ++seed) {
        LinearCase c;
        c.kv_len = 60;
        c.q_len = 60;
        c.causal = true;
        c.kind = seed % 2 ? ATTEND_FEATURES_ELU : ATTEND_FEATURES_SOFTMAX;
        c.wild = 0.02;
        c.fill(seed);
        const Expected expected = oracle(c);
        for_each_entry([&](const Entry& entry) {
            const EngineResult got = run_engine(entry, c, 1);
            REQUIRE(got.status == ATTEND_OK);
            // Rows that see NaN or infinity are not finite in both; the rest agrees.
            for (size_t at = 0; at < got.output.size(); ++at)
                if (std::isfinite(expected.output[at]))
                    CHECK(agrees(got.output[at], expected.output[at], expected.tolerance[at]));
        });
    }
}

TEST_CASE("linear engine: rows without keys are zero whatever they hold", "[linear]") {
    for (const uint32_t kind : every_map) {
        LinearCase c;
        c.q_len = 20;
        c.kv_len = 12;
        c.causal = true;
        c.offset = -8;
        c.mask = 1;
        Random random(kind);
        choose_map(c, random, kind);
        c.fill(kind);
        for (size_t key = 0; key < 3; ++key) c.mask_data[key] = 0;
        for (int64_t head = 0; head < c.q_heads; ++head)
            for (int64_t row = 0; row < 11; ++row)
                c.q[static_cast<size_t>((head * c.q_len + row) * c.head_dim)] = nan_value;
        for_each_entry([&](const Entry& entry) {
            const EngineResult got = run_engine(entry, c, 1);
            REQUIRE(got.status == ATTEND_OK);
            for (int64_t head = 0; head < c.q_heads; ++head)
                for (int64_t at = 0; at < 11 * c.value_dim; ++at)
                    CHECK(got.output[static_cast<size_t>(head * c.q_len * c.value_dim + at)] == 0.0f);
            if (c.want_lse) CHECK(got.lse[10] == -std::numeric_limits<float>::infinity());
        });
    }
}

TEST_CASE("linear engine: errors are told", "[linear]") {
    for_each_entry([](const Entry& entry) {
        LinearCase c;
        c.fill(1);
        c.kind = ATTEND_FEATURES_TRIG;
        c.fill(1);
        CHECK(run_engine(entry, c, 1).status == ATTEND_UNSUPPORTED);  // LSE of signed weights
        c.kind = ATTEND_FEATURES_DPFP;
        c.nu = 2 * c.head_dim;
        EngineResult result = run_engine(entry, c, 1);
        CHECK(result.status == ATTEND_INVALID_ARGUMENT);
        CHECK(result.text.find("nu") != std::string::npos);
        c = LinearCase{};
        c.key_lengths = {34};
        c.fill(1);
        result = run_engine(entry, c, 1);
        CHECK(result.status == ATTEND_BAD_SHAPE);
        CHECK(result.text.find("accepted: 0 to 33") != std::string::npos);
        c = LinearCase{};
        c.kv_heads = 3;
        c.fill(1);
        CHECK(run_engine(entry, c, 1).status == ATTEND_BAD_SHAPE);
        c = LinearCase{};
        c.kind = ATTEND_FEATURES_SOFTMAX;
        c.official = true;
        c.causal = true;
        c.fill(1);
        CHECK(run_engine(entry, c, 1, Piece{0, -1, 0, -1, nullptr, true}).status == ATTEND_UNSUPPORTED);
    });
}

}  // namespace
}  // namespace attend::linear_test
