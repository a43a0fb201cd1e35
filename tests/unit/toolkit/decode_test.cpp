// SPDX-License-Identifier: Apache-2.0
// The decode engine against the oracle: few query rows, awkward sizes, every step of the pipeline that it does itself,
// all element types, with the processor's own bfloat16 dot and without.
#include <cstdlib>

#include "support/effort.hpp"
#include "unit/toolkit/attention_case.hpp"

#define ATTEND_TEST_DECLARE_DECODE(entry) \
    extern "C" bool attend_probe_decode_applies_##entry(const attend_tile_problem*);
ATTEND_TEST_ENTRIES(ATTEND_TEST_DECLARE_DECODE)

namespace attend::test {
namespace {

bool decode_applies(const Entry& entry, const attend_tile_problem& problem) {
#define ATTEND_TEST_ASK_DECODE(set) \
    if (std::string(entry.name) == #set) return attend_probe_decode_applies_##set(&problem);
    ATTEND_TEST_ENTRIES(ATTEND_TEST_ASK_DECODE)
    return false;
}

struct How {
    Stored query{Stored::f32}, key{Stored::f32};
    bool hardware{false};  // the processor's own dot of bfloat16 may be used
    bool expect_decode{true};
};

EngineResult run_decode(const Entry& entry, const AttentionCase& c, const How& how, uint32_t workers) {
    TypedTensor query({c.batch, c.q_heads, c.q_len, c.head_dim}, c.layout, c.q, how.query);
    const int64_t cuts[4] = {0, c.cache, c.kv_len, c.all_keys()};
    const auto part = [&](const std::vector<float>& dense, int64_t width, size_t at) {
        std::vector<float> cut;
        for (int64_t head = 0; head < c.batch * c.kv_heads; ++head)
            cut.insert(cut.end(), dense.begin() + (head * c.all_keys() + cuts[at]) * width,
                       dense.begin() + (head * c.all_keys() + cuts[at + 1]) * width);
        return cut;
    };
    TypedTensor keys[3], values[3];
    attend_tensor key_tensors[3], value_tensors[3];
    std::vector<attend_key_segment> segments;
    for (size_t at = 0; at < 3; ++at) {
        if (at != 1 && cuts[at] == cuts[at + 1]) continue;
        const int64_t n = cuts[at + 1] - cuts[at];
        keys[at] = TypedTensor({c.batch, c.kv_heads, n, c.head_dim}, c.layout, part(c.k, c.head_dim, at), how.key);
        values[at] = TypedTensor({c.batch, c.kv_heads, n, c.value_dim}, c.layout, part(c.v, c.value_dim, at), how.key);
        key_tensors[at] = keys[at].tensor();
        value_tensors[at] = values[at].tensor();
        segments.push_back(
            {&key_tensors[at], &value_tensors[at], at == 2 ? ATTEND_SEGMENT_ALWAYS_VISIBLE : 0u, 0, nullptr});
    }
    const auto blank = [](int64_t count) { return std::vector<float>(static_cast<size_t>(count), nan_value); };
    TypedTensor output({c.batch, c.q_heads, c.q_len, c.value_dim}, c.layout,
                       blank(c.batch * c.q_heads * c.q_len * c.value_dim), how.query);
    Strided<float> lse({c.batch, c.q_heads, c.q_len}, c.layout, blank(c.batch * c.q_heads * c.q_len));
    const std::vector<bool> broadcast{false, c.broadcast_heads, c.broadcast_queries, false};
    const std::vector<int64_t> pair_shape{c.batch, c.q_heads, c.q_len, c.kv_len};
    Strided<uint8_t> mask;
    Strided<float> bias;
    if (c.use_mask) mask = Strided<uint8_t>(pair_shape, c.layout, c.mask, broadcast);
    if (c.use_bias) bias = Strided<float>(pair_shape, c.layout, c.bias, broadcast);
    Strided<int64_t> q_lengths({static_cast<int64_t>(c.query_lengths.size())}, Strides::spread, c.query_lengths);
    Strided<int64_t> k_lengths({static_cast<int64_t>(c.key_lengths.size())}, Strides::packed, c.key_lengths);
    const attend_tensor query_tensor = query.tensor(), output_tensor = output.tensor(), lse_tensor = lse.tensor(),
                        mask_tensor = mask.tensor(), bias_tensor = bias.tensor(), q_lengths_tensor = q_lengths.tensor(),
                        k_lengths_tensor = k_lengths.tensor();
    attend_tile_problem problem{};
    problem.flags = (c.causal ? ATTEND_TILE_CAUSAL : 0u) | (c.per_item ? ATTEND_TILE_OFFSET_PER_ITEM : 0u) |
                    (c.hook_hides ? ATTEND_TILE_SCORE_HIDES : 0u);
    problem.num_segments = static_cast<uint32_t>(segments.size());
    problem.query = &query_tensor;
    problem.segments = segments.data();
    problem.output = c.want_output ? &output_tensor : nullptr;
    problem.lse = c.want_lse ? &lse_tensor : nullptr;
    problem.mask = c.use_mask ? &mask_tensor : nullptr;
    problem.bias = c.use_bias ? &bias_tensor : nullptr;
    problem.query_lengths = c.query_lengths.empty() ? nullptr : &q_lengths_tensor;
    problem.key_lengths = c.key_lengths.empty() ? nullptr : &k_lengths_tensor;
    problem.causal_offset = c.offset;
    problem.window_left = c.window_left;
    problem.window_right = c.window_right;
    problem.scale = c.scale;
    problem.softcap = c.softcap;
    problem.max_key_tile = c.max_key_tile;
    problem.score = c.hook ? test_score_hook : nullptr;
    problem.score_user = &c;
    CHECK(decode_applies(entry, problem) == how.expect_decode);

    const LoopHost loop(workers);
    attend_cpu cpu{};
    cpu.struct_size = sizeof cpu;
    cpu.isa = how.hardware ? ATTEND_ISA_AVX512_BF16 : 0;
    attend_host host = *loop.get();
    host.cpu = &cpu;
    Scratch scratch(entry.tile_workspace(&problem, workers));
    ErrorText error;
    attend_context context{};
    context.host = &host;
    context.workspace = scratch.data();
    context.workspace_bytes = scratch.bytes();
    context.error = &error.error;
    context.max_workers = workers;
    EngineResult result;
    result.status = entry.tile_forward(&problem, &context);
    result.text = error.text;
    result.output = output.values();
    result.lse = lse.values();
    result.clean = output.gaps_untouched() && lse.gaps_untouched() && scratch.guard_untouched();
    CHECK(scratch.bytes() <= (uint64_t{2} << 20) * workers);
    return result;
}

void check_how(const Entry& entry, const AttentionCase& c, const AttentionResult& expected, const How& how) {
    INFO(c.text());
    INFO("query type " << static_cast<int>(how.query) << ", key type " << static_cast<int>(how.key) << ", hardware "
                       << how.hardware);
    const EngineResult got = run_decode(entry, c, how, 1);
    INFO(got.text);
    REQUIRE(got.status == ATTEND_OK);
    CHECK(got.clean);
    double largest = 1.0;
    for (const float value : c.v)
        if (std::isfinite(value)) largest = std::max(largest, static_cast<double>(std::fabs(value)));
    double limit = (c.scale > 0.5 ? 4e-5 : 4e-6) * largest;
    if (how.query == Stored::f16) limit += largest * 0x1p-11;
    // One rounding of the result, and one of every weight where pairs are multiplied.
    if (how.query == Stored::bf16) limit += largest * (how.hardware ? 0x1p-7 : 0x1p-8);
    const int64_t at = c.want_output ? first_difference(got.output, expected.output, limit) : -1;
    if (at >= 0) {
        INFO("output[" << at << "] is " << got.output[static_cast<size_t>(at)] << ", expected "
                       << expected.output[static_cast<size_t>(at)]);
        CHECK(at == -1);
    }
    const int64_t log_at = c.want_lse ? first_difference(got.lse, expected.lse, 1e-5, true) : -1;
    if (log_at >= 0) {
        INFO("lse[" << log_at << "] is " << got.lse[static_cast<size_t>(log_at)] << ", expected "
                    << expected.lse[static_cast<size_t>(log_at)]);
        CHECK(log_at == -1);
    }
    for (const uint32_t workers : {2u, 7u}) {
        const EngineResult other = run_decode(entry, c, how, workers);
        CHECK(other.status == ATTEND_OK);
        CHECK(other.clean);
        CHECK(same_bits(got.output, other.output));
        CHECK(same_bits(got.lse, other.lse));
    }
}

// Every instruction set; float32 or all combinations of types.
void check_decode(AttentionCase c, uint64_t seed, bool all_types = false, bool expect_decode = true) {
    Random random(seed);
    c.fill(random);
    constexpr Stored types[][2] = {{Stored::f32, Stored::f32},
                                   {Stored::bf16, Stored::bf16},
                                   {Stored::f16, Stored::f16},
                                   {Stored::f32, Stored::bf16},
                                   {Stored::f32, Stored::f16}};
    for (const auto& [query, key] : types) {
        AttentionCase rounded = c;
        for (float& x : rounded.q) x = rounded_to(x, query);
        for (float& x : rounded.k) x = rounded_to(x, key);
        for (float& x : rounded.v) x = rounded_to(x, key);
        const AttentionResult expected = oracle(rounded);
        for_each_entry([&](const Entry& entry) {
            How how{query, key, false, expect_decode};
            check_how(entry, rounded, expected, how);
            how.hardware = query == Stored::bf16 && has_bf16_dots(entry);
            if (how.hardware) check_how(entry, rounded, expected, how);
        });
        if (!all_types) return;
    }
}

TEST_CASE("decode: head widths, numbers of keys, groups", "[toolkit]") {
    uint64_t seed = 100;
    for (const int64_t head_dim : {1, 3, 16, 63, 64, 72, 128, 384})
        for (const int64_t kv_len : {0, 1, 15, 16, 17, 127, 1024}) {
            if (head_dim * kv_len > 130000 && seed % 3 != 0) {
                ++seed;
                continue;
            }
            AttentionCase c;
            c.head_dim = head_dim;
            c.value_dim = seed % 3 == 0 ? head_dim : static_cast<int64_t>(1 + seed * 37 % 150);
            c.scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
            c.kv_heads = 1 + static_cast<int64_t>(seed % 2);
            c.q_heads = c.kv_heads * static_cast<int64_t>(1 + seed % 8);
            c.q_len = 1;
            c.kv_len = kv_len;
            c.layout = seed % 2 == 0 ? Strides::packed : Strides::swapped;
            check_decode(c, seed++, true);
        }
}

TEST_CASE("decode: rows from heads and queries", "[toolkit]") {
    uint64_t seed = 300;
    for (int64_t group = 1; group <= 8; ++group)
        for (int64_t q_len = 1; group * q_len <= 8; ++q_len) {
            AttentionCase c;
            c.batch = 2;
            c.kv_heads = 2;
            c.q_heads = 2 * group;
            c.q_len = q_len;
            c.kv_len = 77;
            c.head_dim = 40;
            c.value_dim = 24;
            c.causal = true;
            c.offset = 77 - q_len;
            check_decode(c, seed++, group * q_len > 6);
        }
}

TEST_CASE("decode: one step of the pipeline at a time", "[toolkit]") {
    AttentionCase base;
    base.batch = 2;
    base.q_heads = 6;
    base.kv_heads = 2;
    base.q_len = 2;
    base.kv_len = 150;
    base.head_dim = 24;
    base.value_dim = 33;
    uint64_t seed = 400;
    const auto with = [&](const char* name, auto change) {
        DYNAMIC_SECTION(name) {
            AttentionCase c = base;
            change(c);
            check_decode(c, seed, true);
            c.wild = 0.1;  // NaN that may be seen is seen, and no other
            check_decode(c, seed, true);
        }
        ++seed;
    };
    with("plain", [](AttentionCase&) {});
    with("scale 0", [](AttentionCase& c) { c.scale = 0.0; });
    with("softcap", [](AttentionCase& c) { c.softcap = 0.7; });
    with("hook", [](AttentionCase& c) { c.hook = true; });
    with("hiding hook", [](AttentionCase& c) { c.hook = c.hook_hides = true; });
    with("bias", [](AttentionCase& c) { c.use_bias = true; });
    with("bias hides", [](AttentionCase& c) { c.use_bias = c.bias_hides = true; });
    with("bias of keys",
         [](AttentionCase& c) { c.use_bias = c.bias_hides = c.broadcast_queries = c.broadcast_heads = true; });
    with("mask", [](AttentionCase& c) { c.use_mask = true; });
    with("mask of queries", [](AttentionCase& c) { c.use_mask = c.broadcast_heads = true; });
    with("mask of keys", [](AttentionCase& c) { c.use_mask = c.broadcast_queries = c.broadcast_heads = true; });
    with("causal", [](AttentionCase& c) { c.causal = true, c.offset = 90; });
    with("causal with an empty row", [](AttentionCase& c) { c.causal = true, c.offset = -1; });
    with("window", [](AttentionCase& c) { c.window_left = 9, c.window_right = 4, c.offset = 60; });
    with("window to the left", [](AttentionCase& c) { c.window_left = 0, c.causal = true, c.offset = 113; });
    with("window past the end", [](AttentionCase& c) { c.window_left = c.window_right = 5, c.offset = 152; });
    with("huge window", [](AttentionCase& c) { c.window_left = c.window_right = INT64_MAX; });
    with("lengths", [](AttentionCase& c) { c.query_lengths = {2, 1}, c.key_lengths = {0, 77}; });
    with("no query", [](AttentionCase& c) { c.query_lengths = {0, 2}; });
    with("lengths, offset per item", [](AttentionCase& c) {
        c.query_lengths = {1, 2};
        c.key_lengths = {20, 77};
        c.causal = c.per_item = true;
    });
    with("cache in front", [](AttentionCase& c) { c.cache = 149, c.causal = true, c.offset = 148; });
    with("extra keys", [](AttentionCase& c) {
        c.extra = 5;
        c.causal = c.hook = c.use_bias = c.use_mask = true;
        c.window_left = 3;
        c.key_lengths = {0, 3};
    });
    with("small tiles", [](AttentionCase& c) { c.max_key_tile = 5, c.hook = true; });
    with("lse alone", [](AttentionCase& c) { c.want_output = false; });
    with("output alone", [](AttentionCase& c) { c.want_lse = false; });
}

TEST_CASE("decode: keys in parts", "[toolkit]") {
    uint64_t seed = 500;
    for (const int64_t kv_len : {8000, 7999}) {
        const bool all = kv_len == 8000;
        AttentionCase c;
        c.batch = 3;
        c.kv_heads = 1;
        c.q_heads = 3;
        c.q_len = 1;
        c.kv_len = kv_len;
        c.head_dim = 48;
        c.value_dim = 64;
        c.scale = 0.125;
        check_decode(c, seed++);
        c.key_lengths = {0, 17, 4500};
        c.extra = 3;
        c.cache = 2600;
        c.hook = true;
        check_decode(c, seed++, all);
        c.causal = c.use_mask = true;
        c.offset = 3000;
        c.window_left = 100;
        c.wild = 0.01;
        check_decode(c, seed++, all);
    }
}

TEST_CASE("decode: float32 is exact to a millionth", "[toolkit]") {
    for (const int64_t group : {1, 4}) {
        AttentionCase c;
        c.kv_heads = 1;
        c.q_heads = group;
        c.q_len = 1;
        c.kv_len = 5000;
        c.head_dim = c.value_dim = 128;
        c.scale = 1.0 / std::sqrt(128.0);
        Random random(600);
        c.fill(random);
        const AttentionResult expected = oracle(c);
        for_each_entry([&](const Entry& entry) {
            const EngineResult got = run_decode(entry, c, How{}, 2);
            double error = 0.0, size = 0.0;
            for (size_t at = 0; at < expected.output.size(); ++at) {
                const double difference = static_cast<double>(got.output[at]) - expected.output[at];
                error += difference * difference;
                size += expected.output[at] * expected.output[at];
            }
            CHECK(std::sqrt(error / size) <= 1e-6);
        });
    }
}

TEST_CASE("decode: what is hidden leaves the bits of the others", "[toolkit]") {
    AttentionCase c;
    c.q_heads = 4;
    c.kv_heads = 2;
    c.q_len = 1;
    c.kv_len = 300;
    c.use_mask = c.broadcast_heads = c.broadcast_queries = true;
    Random random(700);
    c.fill(random);
    for (int64_t h = 0; h < 4; ++h)
        for (int64_t j = 0; j < 300; ++j) c.mask[static_cast<size_t>(h * 300 + j)] = j % 3 != 1;
    AttentionCase changed = c;
    for (int64_t h = 0; h < 2; ++h)
        for (int64_t j = 1; j < 300; j += 3)
            for (int64_t d = 0; d < 16; ++d) {
                changed.k[static_cast<size_t>((h * 300 + j) * 16 + d)] = j % 2 ? 1e30f : nan_value;
                changed.v[static_cast<size_t>((h * 300 + j) * 16 + d)] = j % 4 == 0 ? -7.0f
                                                                         : j % 4 == 1
                                                                             ? nan_value
                                                                             : std::numeric_limits<float>::infinity();
            }
    for_each_entry([&](const Entry& entry) {
        for (const Stored type : {Stored::f32, Stored::bf16})
            for (const bool hardware : {false, true}) {
                if (hardware && !has_bf16_dots(entry)) continue;
                const How how{type, type, hardware, true};
                CHECK(same_bits(run_decode(entry, c, how, 1).output, run_decode(entry, changed, how, 1).output));
                CHECK(same_bits(run_decode(entry, c, how, 1).lse, run_decode(entry, changed, how, 1).lse));
            }
    });
}

TEST_CASE("decode: infinity in a value that is seen, at the end of an odd number of keys", "[toolkit]") {
    AttentionCase c;
    c.q_heads = c.kv_heads = 1;
    c.q_len = 1;
    c.kv_len = 17;
    Random random(800);
    c.fill(random);
    c.v[16 * 16 + 3] = std::numeric_limits<float>::infinity();
    for_each_entry([&](const Entry& entry) {
        for (const bool hardware : {false, true}) {
            if (hardware && !has_bf16_dots(entry)) continue;
            const EngineResult got = run_decode(entry, c, How{Stored::bf16, Stored::bf16, hardware, true}, 1);
            for (size_t d = 0; d < 16; ++d) CHECK(std::isinf(got.output[d]) == (d == 3));
        }
    });
}

TEST_CASE("decode: the processor's own dot is used where it is there", "[toolkit]") {
    AttentionCase c;
    c.q_heads = 4;
    c.kv_heads = 1;
    c.q_len = 1;
    c.kv_len = 200;
    c.value_dim = 256;
    Random random(900);
    c.fill(random);
    for_each_entry([&](const Entry& entry) {
        const EngineResult without = run_decode(entry, c, How{Stored::bf16, Stored::bf16, false, true}, 1);
        if (std::string(entry.name) == "avx512" && !has_bf16_dots(entry)) return;
        const EngineResult with = run_decode(entry, c, How{Stored::bf16, Stored::bf16, true, true}, 1);
        // Rounded weights show in some of a thousand results.
        CHECK(same_bits(without.output, with.output) == (std::string(entry.name) != "avx512"));
    });
}

TEST_CASE("decode: random mixtures", "[toolkit]") {
    for (uint64_t seed = 0; seed < support::rounds(150); ++seed) {
        Random random(70000 + seed);
        AttentionCase c;
        c.batch = random.whole(1, 3);
        c.kv_heads = random.whole(1, 3);
        c.q_len = random.pick<int64_t>({1, 1, 1, 2, 3});
        c.q_heads = c.kv_heads * random.whole(1, 8 / c.q_len);
        c.kv_len = random.pick<int64_t>({0, 1, 2, 15, 16, 17, 47, 64, 65, 129, 200, 1100});
        c.head_dim = random.pick<int64_t>({1, 3, 8, 16, 17, 32, 70});
        c.value_dim = random.chance(0.5) ? c.head_dim : random.whole(1, 80);
        c.scale = 0.3;
        c.layout = random.pick({Strides::packed, Strides::swapped});
        if (random.chance(0.3)) c.cache = random.whole(0, c.kv_len);
        if (random.chance(0.3)) c.extra = random.whole(1, 5);
        if (random.chance(0.25)) c.softcap = 1.5;
        if (random.chance(0.25)) c.hook = true, c.hook_hides = random.chance(0.5);
        if (random.chance(0.3)) c.use_mask = true;
        if (random.chance(0.3)) c.use_bias = true, c.bias_hides = random.chance(0.5);
        c.broadcast_heads = random.chance(0.4);
        c.broadcast_queries = random.chance(0.2);
        c.causal = random.chance(0.4);
        c.offset = random.chance(0.7) ? c.kv_len - c.q_len : random.whole(-3, 60);
        if (random.chance(0.25)) c.window_left = random.whole(0, 40);
        if (random.chance(0.25)) c.window_right = random.whole(0, 40);
        if (random.chance(0.2)) c.max_key_tile = random.pick<int64_t>({1, 10, 32, 64});
        for (int64_t b = 0; b < c.batch; ++b) {
            c.query_lengths.push_back(random.whole(0, c.q_len));
            c.key_lengths.push_back(random.whole(0, c.kv_len));
        }
        if (random.chance(0.6)) c.query_lengths.clear();
        if (random.chance(0.6)) c.key_lengths.clear();
        c.per_item = !c.query_lengths.empty() && !c.key_lengths.empty();
        if (random.chance(0.2)) c.wild = 0.05;
        INFO("seed " << seed);
        check_decode(c, seed, seed % 3 == 0);
    }
}

TEST_CASE("decode: what it does not do stays with the tile engine", "[toolkit]") {
    AttentionCase c;
    c.q_heads = 9;
    c.kv_heads = 1;
    c.q_len = 1;
    check_decode(c, 1, false, false);
    c.q_heads = 1;
    c.layout = Strides::spread;
    check_decode(c, 2, false, false);
}

}  // namespace
}  // namespace attend::test
