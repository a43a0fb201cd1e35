// SPDX-License-Identifier: Apache-2.0
// The tile engine against the oracle: awkward sizes, every step of the score pipeline alone, and random mixtures.
#include "support/effort.hpp"
#include "unit/toolkit/attention_case.hpp"

namespace attend::test {

void test_score_hook(const void* user, const attend_score_tile* tile) {
    const auto& c = *static_cast<const AttentionCase*>(user);
    const attend_query_tile& queries = *tile->queries;
    for (int64_t row = 0; row < tile->num_keys; ++row) {
        const int64_t j = tile->key_index != nullptr ? tile->key_index[row] : tile->first_key + row;
        for (int64_t lane = 0; lane < queries.lane_stride; ++lane) {
            float& s = tile->scores[row * queries.lane_stride + lane];
            s = static_cast<float>(
                hook_score(queries.lane_head[lane], queries.lane_position[lane], j, static_cast<double>(s)));
            if (c.hook_hides && hook_hides_pair(queries.lane_query[lane], j))
                s = -std::numeric_limits<float>::infinity();
        }
    }
}

namespace {

void check_everywhere(AttentionCase c, uint64_t seed, double output_limit = 0.0) {
    Random random(seed);
    c.fill(random);
    const AttentionResult expected = oracle(c);
    for_each_entry([&](const Entry& entry) { check_case(entry, c, expected, output_limit); });
}

TEST_CASE("tile engine: the entries are what they are called", "[toolkit]") {
    for_each_entry([](const Entry& entry) {
        const std::string name = entry.name;
        const int isa = name == "baseline" ? 1 : name == "avx2" ? 2 : name == "avx512" ? 3 : 4;
        const int lanes = name == "avx512" ? 16 : name == "avx2" ? 8 : 4;
        CHECK(entry.isa() == isa);
        CHECK(entry.lanes() == lanes);
    });
}

TEST_CASE("tile engine: awkward sizes", "[toolkit]") {
    uint64_t seed = 1;
    for (const bool causal : {false, true})
        for (const int64_t q_len : {0, 1, 2, 15, 16, 17, 47, 48, 49, 129})
            for (const int64_t kv_len : {0, 1, 2, 15, 17, 48, 127, 128, 129, 200}) {
                AttentionCase c;
                c.q_len = q_len;
                c.kv_len = kv_len;
                c.causal = causal;
                c.offset = kv_len - q_len;
                c.q_heads = 1 + static_cast<int64_t>(seed % 2);
                c.kv_heads = c.q_heads;
                c.scores = 1;
                check_everywhere(c, seed++);
            }
}

TEST_CASE("tile engine: head widths and groups", "[toolkit]") {
    uint64_t seed = 1000;
    for (const int64_t head_dim : {1, 3, 16, 64, 65, 128})
        for (const int64_t value_dim : {1, 7, 16, 64, 130})
            for (const int64_t group : {1, 3, 4}) {
                AttentionCase c;
                c.head_dim = head_dim;
                c.value_dim = value_dim;
                c.scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
                c.batch = 2;
                c.kv_heads = 2;
                c.q_heads = 2 * group;
                c.q_len = 21;
                c.kv_len = 140;
                c.causal = seed % 2 == 0;
                c.offset = 119;
                check_everywhere(c, seed++);
            }
}

TEST_CASE("tile engine: nothing to do", "[toolkit]") {
    AttentionCase c;
    c.batch = 0;
    check_everywhere(c, 1);
    c.batch = 2;
    c.kv_len = 0;
    c.extra = 3;
    check_everywhere(c, 2);
    c.q_heads = c.kv_heads = 0;
    check_everywhere(c, 3);
}

TEST_CASE("tile engine: one step of the pipeline at a time", "[toolkit]") {
    AttentionCase base;
    base.batch = 2;
    base.q_heads = 4;
    base.kv_heads = 2;
    base.q_len = 37;
    base.kv_len = 150;
    base.scores = 1;
    uint64_t seed = 2000;
    const auto with = [&](const char* name, auto change) {
        DYNAMIC_SECTION(name) {
            AttentionCase c = base;
            change(c);
            // Scores of some dozens carry errors of their own size times 2^-24.
            check_everywhere(c, seed, c.scale > 1.0 ? 3e-5 : 0.0);
        }
        ++seed;
    };
    with("plain", [](AttentionCase&) {});
    with("scale 0", [](AttentionCase& c) { c.scale = 0.0; });
    with("large scores", [](AttentionCase& c) { c.scale = 3.0; });
    with("softcap", [](AttentionCase& c) { c.softcap = 0.7; });
    with("hook", [](AttentionCase& c) { c.hook = true; });
    with("hiding hook", [](AttentionCase& c) { c.hook = c.hook_hides = true; });
    with("bias", [](AttentionCase& c) { c.use_bias = true; });
    with("bias hides", [](AttentionCase& c) { c.use_bias = c.bias_hides = true; });
    with("bias of heads", [](AttentionCase& c) { c.use_bias = c.bias_hides = c.broadcast_queries = true; });
    with("bias of keys",
         [](AttentionCase& c) { c.use_bias = c.bias_hides = c.broadcast_queries = c.broadcast_heads = true; });
    with("mask", [](AttentionCase& c) { c.use_mask = true; });
    with("mask of queries", [](AttentionCase& c) { c.use_mask = c.broadcast_heads = true; });
    with("mask of keys", [](AttentionCase& c) { c.use_mask = c.broadcast_queries = c.broadcast_heads = true; });
    with("causal", [](AttentionCase& c) {
        c.causal = true;
        c.offset = 113;
    });
    with("causal top-left", [](AttentionCase& c) { c.causal = true; });
    with("causal with empty rows", [](AttentionCase& c) {
        c.causal = true;
        c.offset = -20;
    });
    with("window", [](AttentionCase& c) {
        c.window_left = 9;
        c.window_right = 4;
        c.offset = 60;
    });
    with("window to the left", [](AttentionCase& c) {
        c.window_left = 0;
        c.causal = true;
        c.offset = 113;
    });
    with("window past the end", [](AttentionCase& c) {
        c.window_left = 5;
        c.window_right = 5;
        c.offset = 140;
    });
    with("huge window", [](AttentionCase& c) { c.window_left = c.window_right = INT64_MAX; });
    with("lengths", [](AttentionCase& c) {
        c.query_lengths = {37, 5};
        c.key_lengths = {0, 77};
    });
    with("lengths, offset per item", [](AttentionCase& c) {
        c.query_lengths = {30, 11};
        c.key_lengths = {20, 77};
        c.causal = c.per_item = true;
    });
    with("dropout", [](AttentionCase& c) {
        c.dropout = 0.3;
        c.seed = 0x123456789ABCDEF0ull;
        c.rng_offset = 2;
    });
    with("dropout with counted heads", [](AttentionCase& c) {
        c.dropout = 0.5;
        c.dropout_heads = 9;
        c.dropout_head = 5;
    });
    with("cache in front", [](AttentionCase& c) {
        c.cache = 61;
        c.causal = true;
        c.offset = 113;
    });
    with("extra keys", [](AttentionCase& c) {
        c.extra = 2;
        c.causal = true;
        c.window_left = 3;
        c.use_bias = c.use_mask = true;
        c.dropout = 0.2;
    });
    with("extra keys without dropout", [](AttentionCase& c) {
        c.extra = 5;
        c.extra_dropout = false;
        c.dropout = 0.4;
        c.key_lengths = {0, 3};
    });
    with("small tiles", [](AttentionCase& c) {
        c.max_query_tile = 5;
        c.max_key_tile = 16;
        c.causal = true;
        c.offset = 113;
    });
    with("mean over heads", [](AttentionCase& c) {
        c.scores = 2;
        c.causal = true;
        c.offset = 100;
        c.query_lengths = {37, 9};
    });
    with("lse alone", [](AttentionCase& c) {
        c.scores = 0;
        c.want_output = false;
    });
    with("scores alone", [](AttentionCase& c) { c.want_output = c.want_lse = false; });
}

TEST_CASE("tile engine: strides do not matter", "[toolkit]") {
    for (const Strides layout : {Strides::packed, Strides::swapped, Strides::reversed, Strides::spread}) {
        AttentionCase c;
        c.layout = layout;
        c.batch = 2;
        c.q_heads = 4;
        c.kv_heads = 2;
        c.q_len = 50;
        c.kv_len = 135;
        c.head_dim = 33;
        c.value_dim = 18;
        c.use_mask = c.use_bias = c.causal = true;
        c.offset = 85;
        c.scores = 1;
        check_everywhere(c, 7);
    }
}

TEST_CASE("tile engine: index maps", "[toolkit]") {
    AttentionCase c;
    c.q_heads = 2;
    c.q_len = 23;
    c.kv_len = 64;
    c.logical_q = 120;
    c.logical_k = 200;
    for (int32_t row = 0; row < 23; ++row) c.query_index.push_back(5 * row + 1);
    for (int32_t row = 0; row < 64; ++row) c.key_index.push_back(3 * row + row % 2);
    c.use_mask = c.use_bias = true;
    c.scores = 1;
    SECTION("all pairs") {}
    SECTION("causal with window") {
        c.causal = true;
        c.offset = 80;
        c.window_left = 40;
    }
    SECTION("dropout and hook") {
        c.dropout = 0.25;
        c.seed = 99;
        c.hook = true;
    }
    SECTION("lengths") {
        c.query_lengths = {60};
        c.key_lengths = {100};
        c.per_item = c.causal = true;
    }
    check_everywhere(c, 8);
}

TEST_CASE("tile engine: what is hidden does not leak", "[toolkit]") {
    // NaN in keys and values: rows that may see them are NaN, where the oracle is, and all others are untouched.
    uint64_t seed = 3000;
    for (const double wild : {0.02, 0.5})
        for (int feature = 0; feature < 8; ++feature) {
            AttentionCase c;
            c.wild = wild;
            c.q_heads = 4;
            c.kv_heads = 2;
            c.q_len = 53;
            c.kv_len = 141;
            c.value_dim = 19;
            c.scores = feature % 2 + 1;
            if (feature == 0) c.causal = true, c.offset = 88;
            if (feature == 1) c.use_mask = true;
            if (feature == 2) c.use_bias = c.bias_hides = true;
            if (feature == 3) c.window_left = 0, c.window_right = 0, c.offset = 20;
            if (feature == 4) c.key_lengths = {3}, c.query_lengths = {40};
            if (feature == 5) c.hook = c.hook_hides = true;
            if (feature == 6) c.causal = true, c.offset = -60;
            if (feature == 7) c.use_mask = c.causal = true, c.layout = Strides::spread;
            check_everywhere(c, seed++);
        }
}

TEST_CASE("tile engine: infinity behind a mask, and a mask of finite size", "[toolkit]") {
    AttentionCase c;
    c.use_mask = c.use_bias = true;
    c.q_len = 20;
    c.kv_len = 40;
    Random random(11);
    c.fill(random);
    for (int64_t i = 0; i < 20; ++i)
        for (int64_t h = 0; h < 2; ++h) {
            for (int64_t j = 0; j < 40; ++j) c.mask[static_cast<size_t>((h * 20 + i) * 40 + j)] = j % 4 != 1;
            // The lowest float is a very small weight, not a mask: a row of nothing else is a mean.
            for (int64_t j = 0; j < 40; ++j)
                if (i % 3 == 0)
                    c.bias[static_cast<size_t>((h * 20 + i) * 40 + j)] = std::numeric_limits<float>::lowest();
        }
    for (int64_t row = 1; row < 80; row += 4) {
        c.k[static_cast<size_t>(row * 16)] = std::numeric_limits<float>::infinity();
        c.v[static_cast<size_t>(row * 16 + 3)] = -std::numeric_limits<float>::infinity();
    }
    AttentionResult expected = oracle(c);
    for_each_entry([&](const Entry& entry) {
        const EngineResult got = run_engine(entry, c, 1);
        // At this size the scores themselves vanish in the bias, so these rows are plain means in float32.
        for (int64_t h = 0; h < 2; ++h)
            for (int64_t i = 0; i < 20; ++i)
                for (int64_t d = 0; d < 16; ++d) {
                    double mean = 0.0;
                    for (int64_t j = 0; j < 40; ++j)
                        if (j % 4 != 1)
                            mean += static_cast<double>(c.v[static_cast<size_t>((h * 40 + j) * 16 + d)]) / 30.0;
                    const size_t at = static_cast<size_t>((h * 20 + i) * 16 + d);
                    const double e = i % 3 == 0 ? mean : expected.output[at];
                    CHECK(std::fabs(static_cast<double>(got.output[at]) - e) < 8e-6);
                }
    });
}

TEST_CASE("tile engine: changing what a row may not see leaves its bits", "[toolkit]") {
    AttentionCase c;
    c.causal = true;
    c.q_len = c.kv_len = 150;
    Random random(12);
    c.fill(random);
    for_each_entry([&](const Entry& entry) {
        const EngineResult before = run_engine(entry, c, 1);
        AttentionCase changed = c;
        for (int64_t h = 0; h < 2; ++h)
            for (int64_t j = 70; j < 150; ++j)
                for (int64_t d = 0; d < 16; ++d) {
                    changed.k[static_cast<size_t>((h * 150 + j) * 16 + d)] = j % 2 ? 1e30f : nan_value;
                    changed.v[static_cast<size_t>((h * 150 + j) * 16 + d)] = j % 3 ? -7.0f : nan_value;
                }
        const EngineResult after = run_engine(entry, changed, 1);
        for (int64_t h = 0; h < 2; ++h) {
            CHECK(std::memcmp(&before.output[static_cast<size_t>(h * 150 * 16)],
                              &after.output[static_cast<size_t>(h * 150 * 16)], 70 * 16 * sizeof(float)) == 0);
            CHECK(std::memcmp(&before.lse[static_cast<size_t>(h * 150)], &after.lse[static_cast<size_t>(h * 150)],
                              70 * sizeof(float)) == 0);
        }
    });
}

TEST_CASE("tile engine: random mixtures", "[toolkit]") {
    for (uint64_t seed = 0; seed < support::rounds(260); ++seed) {
        Random random(50000 + seed);
        AttentionCase c;
        c.batch = random.whole(1, 3);
        c.kv_heads = random.whole(1, 3);
        c.q_heads = c.kv_heads * random.pick<int64_t>({1, 1, 2, 4});
        c.q_len = random.pick<int64_t>({0, 1, 1, 2, 3, 9, 15, 16, 17, 33, 47, 48, 49, 100});
        c.kv_len = random.pick<int64_t>({0, 1, 2, 15, 16, 17, 47, 49, 127, 128, 129, 200, 300});
        c.head_dim = random.pick<int64_t>({1, 3, 8, 16, 17, 32});
        c.value_dim = random.chance(0.5) ? c.head_dim : random.whole(1, 40);
        c.scale = random.chance(0.1) ? 1.0 : 0.3;
        c.layout =
            random.pick({Strides::packed, Strides::packed, Strides::swapped, Strides::reversed, Strides::spread});
        if (random.chance(0.3)) c.cache = random.whole(0, c.kv_len);
        if (random.chance(0.3)) c.extra = random.whole(1, 5), c.extra_dropout = random.chance(0.5);
        if (random.chance(0.25)) c.softcap = 1.5;
        if (random.chance(0.25)) c.dropout = 0.2, c.seed = seed, c.rng_offset = seed % 3;
        if (random.chance(0.25)) c.hook = true, c.hook_hides = random.chance(0.5);
        if (random.chance(0.3)) c.use_mask = true;
        if (random.chance(0.3)) c.use_bias = true, c.bias_hides = random.chance(0.5);
        c.broadcast_heads = random.chance(0.4);
        c.broadcast_queries = random.chance(0.2);
        c.causal = random.chance(0.4);
        c.offset = random.chance(0.7) ? c.kv_len - c.q_len : random.whole(-30, 60);
        if (random.chance(0.25)) c.window_left = random.whole(0, 40);
        if (random.chance(0.25)) c.window_right = random.whole(0, 40);
        if (random.chance(0.3)) c.max_query_tile = random.pick<int64_t>({1, 7, 16, 20});
        if (random.chance(0.3)) c.max_key_tile = random.pick<int64_t>({1, 10, 32, 64});
        for (int64_t b = 0; b < c.batch; ++b) {
            c.query_lengths.push_back(random.whole(0, c.q_len));
            c.key_lengths.push_back(random.whole(0, c.kv_len));
        }
        if (random.chance(0.6)) c.query_lengths.clear();
        if (random.chance(0.6)) c.key_lengths.clear();
        c.per_item = !c.query_lengths.empty() && !c.key_lengths.empty();
        if (random.chance(0.15)) c.wild = 0.05;
        c.scores = static_cast<int>(random.whole(0, 2));
        INFO("seed " << seed);
        check_everywhere(c, seed, c.scale == 1.0 ? 4e-5 : 8e-6);
    }
}

TEST_CASE("tile engine: a softmax in two calls, the second of which goes on from the first one's state", "[toolkit]") {
    for (uint64_t seed = 0; seed < support::rounds(120); ++seed) {
        Random random(70000 + seed);
        AttentionCase c;
        c.batch = random.whole(1, 2);
        c.kv_heads = random.whole(1, 2);
        c.q_heads = c.kv_heads * random.pick<int64_t>({1, 1, 3});
        c.q_len = random.pick<int64_t>({0, 1, 3, 16, 17, 49, 100, 210});
        c.kv_len = random.pick<int64_t>({0, 1, 2, 17, 49, 128, 200, 300});
        c.head_dim = random.pick<int64_t>({1, 8, 17, 32});
        c.value_dim = random.whole(1, 40);
        c.layout = random.pick({Strides::packed, Strides::swapped, Strides::reversed, Strides::spread});
        c.split = random.pick<int64_t>({0, c.kv_len / 2, random.whole(0, c.kv_len), c.kv_len});
        if (random.chance(0.3)) c.extra = random.whole(1, 5);
        if (random.chance(0.2)) c.softcap = 1.5;
        if (random.chance(0.2)) c.dropout = 0.2, c.seed = seed;
        if (random.chance(0.2)) c.hook = true;
        if (random.chance(0.3)) c.use_mask = true;
        if (random.chance(0.3)) c.use_bias = true, c.bias_hides = random.chance(0.5);
        c.causal = random.chance(0.5);
        c.offset = c.kv_len - c.q_len;
        if (random.chance(0.25)) c.window_left = random.whole(0, 40);
        if (random.chance(0.3)) c.max_query_tile = random.pick<int64_t>({1, 7, 20});
        if (random.chance(0.4))
            for (int64_t b = 0; b < c.batch; ++b) {
                c.query_lengths.push_back(random.whole(0, c.q_len));
                c.key_lengths.push_back(random.whole(0, c.kv_len));
            }
        if (random.chance(0.15)) c.wild = 0.05;
        if (random.chance(0.3)) {
            c.q_type = c.kv_type = Stored::bf16;
            c.dots = c.dropout == 0.0 && random.chance(0.5);
        }
        // Scores beyond the range in which a base may be rounded.
        const bool huge = random.chance(0.1);
        c.fill(random);
        if (huge && c.use_bias) {
            c.float_scores = true;
            for (float& x : c.bias) x = x > 0.0f ? -1e9f : x;
        }
        c.round_inputs();
        INFO("seed " << seed);
        const AttentionResult expected = oracle(c);
        for_each_entry([&](const Entry& entry) {
            AttentionCase own = c;
            own.dots = c.dots && has_bf16_dots(entry);
            check_case(entry, own, expected, 1e-5);
        });
    }
}

TEST_CASE("tile engine: long rows stay accurate", "[toolkit]") {
    AttentionCase c;
    c.q_heads = c.kv_heads = 1;
    c.q_len = 3;
    c.kv_len = 65536;
    c.head_dim = c.value_dim = 16;
    check_everywhere(c, 13);
}

TEST_CASE("tile engine: refuses what it cannot do, before writing anything", "[toolkit]") {
    Random random(14);
    AttentionCase base;
    base.fill(random);
    for_each_entry([&](const Entry& entry) {
        const auto refused = [&](AttentionCase c, attend_status status, const char* word) {
            const EngineResult got = run_engine(entry, c, 2);
            INFO(got.text);
            CHECK(got.status == status);
            CHECK(got.text.find(word) != std::string::npos);
            CHECK(got.text.find("accepted") != std::string::npos);
            for (const float value : got.output) CHECK(std::isnan(value));
        };
        AttentionCase c = base;
        c.dropout = 1.0;
        refused(c, ATTEND_INVALID_ARGUMENT, "dropout");
        c = base;
        c.scale = std::numeric_limits<double>::quiet_NaN();
        refused(c, ATTEND_INVALID_ARGUMENT, "scale");
        c = base;
        c.softcap = -1.0;
        refused(c, ATTEND_INVALID_ARGUMENT, "softcap");
        c = base;
        c.window_left = -2;
        refused(c, ATTEND_INVALID_ARGUMENT, "window_left");
        c = base;
        c.key_lengths = {34};
        refused(c, ATTEND_BAD_SHAPE, "key_lengths is 34");
        c = base;
        c.rng_offset = 1u << 24;
        refused(c, ATTEND_INVALID_ARGUMENT, "rng_offset");
        c = base;
        c.per_item = true;
        refused(c, ATTEND_INVALID_ARGUMENT, "lengths");
        c = base;
        c.split = 5;
        c.scores = 1;
        refused(c, ATTEND_INVALID_ARGUMENT, "scores is out of range");
        c = base;
        c.split = 5;
        c.q_type = c.kv_type = c.out_type = Stored::bf16;
        refused(c, ATTEND_BAD_DTYPE, "output");
        c = base;
        c.kv_heads = 2;
        c.q_heads = 3;
        c.q.resize(static_cast<size_t>(3 * 17 * 16));
        refused(c, ATTEND_BAD_SHAPE, "3 heads");

        Strided<float> query({1, 1, 4, 8}, Strides::packed, std::vector<float>(32)),
            key({1, 1, 4, 8}, Strides::packed, std::vector<float>(32));
        attend_tensor q = query.tensor(), k = key.tensor();
        const attend_key_segment segment{&k, &k, 0, 0, nullptr};
        attend_tile_problem problem{};
        problem.query = &q;
        problem.segments = &segment;
        problem.num_segments = 1;
        problem.output = &q;
        problem.window_left = problem.window_right = -1;
        Scratch scratch(entry.tile_workspace(&problem, 3));
        ErrorText error;
        attend_context context{nullptr, nullptr, scratch.data(), scratch.bytes() - 1, &error.error, 3, 0};
        CHECK(entry.tile_forward(&problem, &context) == ATTEND_WORKSPACE_TOO_SMALL);
        CHECK(std::string(error.text).find("workspace") != std::string::npos);
        q.dtype_bits = 64;
        CHECK(entry.tile_forward(&problem, &context) == ATTEND_BAD_DTYPE);
        q.dtype_bits = 32;
        q.ndim = 3;
        CHECK(entry.tile_forward(&problem, &context) == ATTEND_BAD_SHAPE);
    });
}

}  // namespace
}  // namespace attend::test
