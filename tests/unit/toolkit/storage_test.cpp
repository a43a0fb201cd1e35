// SPDX-License-Identifier: Apache-2.0
// The tile engine with bf16 and f16 tensors against the oracle, which gets the rounded inputs: sizes, every step of the
// pipeline, segments of several types, values that are not finite, groups of tiles; bf16 with hardware dots and
// without.
#include "support/effort.hpp"
#include "unit/toolkit/attention_case.hpp"

namespace attend::test {
namespace {

// Types of query, main keys and values, always-visible keys and values, output.
struct Types {
    Stored query, key, extra, output;
};
constexpr Stored f32 = Stored::f32, bf16 = Stored::bf16, f16 = Stored::f16;
constexpr Types combinations[] = {{bf16, bf16, bf16, bf16}, {f16, f16, f16, f16},   {bf16, bf16, bf16, f32},
                                  {f16, f16, f16, f32},     {f32, bf16, bf16, f32}, {f32, f16, f16, f32},
                                  {bf16, bf16, f32, bf16},  {f16, f16, f32, f16},   {f32, f32, bf16, f32},
                                  {bf16, bf16, f16, bf16}};
constexpr size_t num_combinations = sizeof combinations / sizeof combinations[0];

AttentionCase with_types(AttentionCase c, const Types& types) {
    c.q_type = types.query;
    c.kv_type = types.key;
    c.extra_type = types.extra;
    c.out_type = types.output;
    c.round_inputs();
    return c;
}

// Every entry, on avx512 also with hardware dots where all keys are bf16 as the queries.
template <class Body>
void for_each_way(AttentionCase c, Body body) {
    for_each_entry([&](const Entry& entry) {
        c.dots = false;
        body(entry, c);
        if (c.q_type != bf16 || c.kv_type != bf16 || !has_bf16_dots(entry)) return;
        c.dots = true;
        body(entry, c);
    });
}

void check_types(const AttentionCase& filled, const Types& types, double limit = 0.0) {
    const AttentionCase c = with_types(filled, types);
    const AttentionResult expected = oracle(c);
    for_each_way(c, [&](const Entry& entry, const AttentionCase& way) { check_case(entry, way, expected, limit); });
}
constexpr auto as_it_is = [](AttentionCase&) {};
// bf16, f16 and one of the other combinations. `change` sees the filled case.
template <class Change>
void check_stored(AttentionCase c, uint64_t seed, Change change, double limit = 0.0) {
    Random random(seed);
    c.fill(random);
    change(c);
    check_types(c, combinations[0], limit);
    check_types(c, combinations[1], limit);
    check_types(c, combinations[2 + seed % (num_combinations - 2)], limit);
}

TEST_CASE("storage: the formats of these tests", "[toolkit]") {
    CHECK(rounded_to(1.0f + 0x1p-8f, bf16) == 1.0f);
    CHECK(rounded_to(1.0f + 0x1.8p-7f, bf16) == 1.0f + 0x1p-6f);
    CHECK(rounded_to(1.0f - 0x1p-10f, bf16) == 1.0f);
    CHECK(rounded_to(-65520.0f, f16) == -HUGE_VALF);
    CHECK(rounded_to(65519.0f, f16) == 65504.0f);
    CHECK(rounded_to(0x1.8p-24f, f16) == 0x1p-23f);
    CHECK(std::isnan(rounded_to(nan_value, f16)));
    for (uint32_t code = 0; code < 0x7C00; ++code) {
        CHECK(code_of(value_of(static_cast<uint16_t>(code), f16), f16) == code);
        CHECK(code_of(-value_of(static_cast<uint16_t>(code), bf16), bf16) == (code | 0x8000u));
    }
}

TEST_CASE("storage: awkward sizes", "[toolkit]") {
    uint64_t seed = 1;
    for (const int64_t q_len : {1, 2, 8, 9, 17, 48, 49, 97, 130})
        for (const int64_t kv_len : {1, 2, 15, 17, 127, 128, 129, 257}) {
            AttentionCase c;
            c.q_len = q_len;
            c.kv_len = kv_len;
            c.q_heads = c.kv_heads = 1 + static_cast<int64_t>(seed % 2);
            const int64_t widths[] = {1, 3, 63, 64, 65, 72, 128};
            c.head_dim = widths[seed % 7];
            c.value_dim = widths[(seed * 3 + seed / 7) % 7];
            c.scale = 1.0 / std::sqrt(static_cast<double>(c.head_dim));
            c.causal = seed % 3 != 0;
            c.offset = kv_len - q_len + static_cast<int64_t>(seed % 5) - 2;
            c.scores = seed % 2 == 0 || q_len < 9 ? 1 : 0;  // with scores few rows do not go to the decode engine
            check_stored(c, seed++, as_it_is);
            if (q_len > 8) continue;
            c.scores = 0;
            check_stored(c, seed, as_it_is);
        }
}

TEST_CASE("storage: head widths, groups and strides", "[toolkit]") {
    uint64_t seed = 1000;
    for (const int64_t head_dim : {1, 3, 63, 64, 65, 72, 128})
        for (const int64_t value_dim : {1, 7, 64, 65, 130})
            for (const int64_t group : {1, 3}) {
                AttentionCase c;
                c.head_dim = head_dim;
                c.value_dim = value_dim;
                c.scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
                c.batch = 2;
                c.kv_heads = 2;
                c.q_heads = 2 * group;
                c.q_len = 21;
                c.kv_len = 141;
                c.causal = seed % 2 == 0;
                c.offset = 119;
                const Strides layouts[] = {Strides::packed, Strides::swapped, Strides::spread, Strides::reversed};
                c.layout = layouts[seed % 4];
                check_stored(c, seed++, as_it_is);
            }
}

TEST_CASE("storage: one step of the pipeline at a time", "[toolkit]") {
    AttentionCase base;
    base.batch = 2;
    base.q_heads = 4;
    base.kv_heads = 2;
    base.q_len = 37;
    base.kv_len = 151;
    base.value_dim = 19;
    base.scores = 1;
    uint64_t seed = 2000;
    const auto with = [&](const char* name, auto change) {
        DYNAMIC_SECTION(name) {
            for (const double wild : {0.0, 0.05})
                for (const bool infinity : {false, true}) {
                    // Infinities are what is hardest to keep out; of NaN alone the random mixtures have plenty.
                    if ((wild == 0.0) == infinity || (support::watched && !infinity)) continue;
                    AttentionCase c = base;
                    change(c);
                    c.wild = wild;
                    c.wild_infinity = infinity;
                    check_stored(c, seed, as_it_is);
                    seed += 100;
                    c.scores = 0;
                    c.layout = infinity ? Strides::spread : Strides::swapped;
                    check_stored(c, seed, as_it_is);
                    seed += 100;
                }
        }
        ++seed;
    };
    with("plain", [](AttentionCase&) {});
    with("scale 0", [](AttentionCase& c) { c.scale = 0.0; });
    with("negative scale", [](AttentionCase& c) { c.scale = -0.3; });
    with("softcap", [](AttentionCase& c) { c.softcap = 0.7; });
    with("hook", [](AttentionCase& c) { c.hook = true; });
    with("hiding hook", [](AttentionCase& c) { c.hook = c.hook_hides = true; });
    with("bias", [](AttentionCase& c) { c.use_bias = true; });
    with("bias hides", [](AttentionCase& c) { c.use_bias = c.bias_hides = true; });
    with("bias of keys",
         [](AttentionCase& c) { c.use_bias = c.bias_hides = c.broadcast_queries = c.broadcast_heads = true; });
    with("mask", [](AttentionCase& c) { c.use_mask = true; });
    with("mask of keys", [](AttentionCase& c) { c.use_mask = c.broadcast_queries = c.broadcast_heads = true; });
    with("causal, odd offset", [](AttentionCase& c) { c.causal = true, c.offset = 113; });
    with("causal, even offset", [](AttentionCase& c) { c.causal = true, c.offset = 114; });
    with("causal top-left", [](AttentionCase& c) { c.causal = true; });
    with("causal with empty rows", [](AttentionCase& c) { c.causal = true, c.offset = -21; });
    with("window", [](AttentionCase& c) { c.window_left = 9, c.window_right = 4, c.offset = 60; });
    with("window of one key", [](AttentionCase& c) { c.window_left = 0, c.causal = true, c.offset = 113; });
    with("window, odd begin", [](AttentionCase& c) { c.window_left = 20, c.causal = true, c.offset = 31; });
    with("window past the end", [](AttentionCase& c) { c.window_left = c.window_right = 5, c.offset = 141; });
    with("lengths", [](AttentionCase& c) { c.query_lengths = {37, 5}, c.key_lengths = {0, 77}; });
    with("lengths, offset per item", [](AttentionCase& c) {
        c.query_lengths = {30, 11};
        c.key_lengths = {21, 77};
        c.causal = c.per_item = true;
    });
    with("dropout", [](AttentionCase& c) { c.dropout = 0.3, c.seed = 0x123456789ABCDEF0ull, c.rng_offset = 2; });
    with("cache in front", [](AttentionCase& c) { c.cache = 61, c.causal = true, c.offset = 113; });
    with("extra keys", [](AttentionCase& c) { c.extra = 3, c.causal = true, c.offset = 5; });
    with("extra keys, everything on", [](AttentionCase& c) {
        c.extra = 2;
        c.causal = c.use_bias = c.use_mask = true;
        c.window_left = 3;
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
        c.max_key_tile = 17;
        c.causal = true;
        c.offset = 113;
    });
    with("tiles of one key", [](AttentionCase& c) { c.max_key_tile = 1, c.causal = true, c.offset = 90; });
    with("tiles of three keys", [](AttentionCase& c) { c.max_key_tile = 3, c.causal = true, c.offset = 90; });
    with("mean over heads", [](AttentionCase& c) { c.scores = 2, c.causal = true, c.offset = 100; });
    with("lse alone", [](AttentionCase& c) { c.want_output = false; });
}

// Ranges with odd ends: the first 5 keys for all, then pairs of a rule.
bool seen_by_rule(int64_t position, int64_t j) { return j < 5 || (j >= 9 && (position + 3 * j) % 7 < 3); }
void visit_rule(const void*, const attend_query_tile* tile, attend_key_visit_fn visit, void* visitor) {
    if (tile->kv_len < 1) return;
    visit(visitor, 0, std::min<int64_t>(5, tile->kv_len), 0);
    const int64_t edges[] = {9, 10, 27, 64, 101, INT64_MAX};
    for (int at = 0; at + 1 < 6 && edges[at] < tile->kv_len; ++at)
        visit(visitor, edges[at], std::min(edges[at + 1], tile->kv_len), ATTEND_KEYS_PARTIAL);
}
void keep_rule(const void*, const attend_score_tile* tile) {
    for (int64_t row = 0; row < tile->num_keys; ++row)
        for (int64_t lane = 0; lane < tile->queries->lane_stride; ++lane)
            if (!seen_by_rule(tile->queries->lane_position[lane], tile->first_key + row))
                tile->scores[row * tile->queries->lane_stride + lane] = -std::numeric_limits<float>::infinity();
}

TEST_CASE("storage: ranges of keys from a hook", "[toolkit]") {
    uint64_t seed = 5000;
    for (const bool causal : {false, true})
        for (const double wild : {0.0, 0.05})
            for (const double dropout : {0.0, 0.25}) {
                AttentionCase c;
                c.batch = 2;
                c.q_heads = 4;
                c.kv_heads = 2;
                c.q_len = 75;
                c.kv_len = 150;
                c.wild = wild;
                c.causal = causal;
                c.offset = 40;
                c.dropout = dropout;
                c.seed = seed;
                c.key_lengths = {0, 133};
                c.extra = static_cast<int64_t>(seed % 3);
                c.keys = visit_rule;
                c.keep = keep_rule;
                c.sees = [](int64_t, int64_t, int64_t, int64_t p, int64_t j) { return seen_by_rule(p, j); };
                c.scores = static_cast<int>(seed % 3);
                check_stored(c, seed++, as_it_is);
            }
}

TEST_CASE("storage: index maps", "[toolkit]") {
    AttentionCase c;
    c.q_len = 23;
    c.kv_len = 64;
    c.logical_q = 120;
    c.logical_k = 200;
    for (int32_t row = 0; row < 23; ++row) c.query_index.push_back(5 * row + 1);
    for (int32_t row = 0; row < 64; ++row) c.key_index.push_back(3 * row + row % 2);
    c.use_mask = c.use_bias = c.causal = true;
    c.offset = 80;
    c.window_left = 40;
    c.scores = 1;
    check_stored(c, 6000, as_it_is);
    c.wild = 0.05;
    check_stored(c, 6001, as_it_is);
}

TEST_CASE("storage: a pair of keys is cut in the middle", "[toolkit]") {
    // Everything from the length on is NaN or infinite, the partner of the last key too.
    for (const float poison : {nan_value, std::numeric_limits<float>::infinity()})
        for (const int64_t length : {1, 3, 15, 17, 63, 65, 127, 129, 149})
            for (int cut = 0; cut < 4; ++cut) {
                AttentionCase c;
                c.q_len = 50;
                c.kv_len = 150;
                c.head_dim = 24;
                c.value_dim = 33;
                c.scores = cut % 2;
                if (cut == 0) c.key_lengths = {length};
                // Rows of different ends: the last sees `length` keys.
                if (cut == 1) c.causal = true, c.offset = length - 50;
                if (cut == 2) c.window_right = 0, c.window_left = 6, c.offset = length - 50;
                if (cut == 3) c.use_mask = true;
                check_stored(c, 7000 + static_cast<uint64_t>(length), [&](AttentionCase& filled) {
                    if (cut == 3)
                        for (size_t at = 0; at < filled.mask.size(); ++at)
                            filled.mask[at] = static_cast<int64_t>(at % 150) < length ? 1 : 0;
                    for (int64_t head = 0; head < 2; ++head)
                        for (int64_t j = length; j < 150; ++j) {
                            for (int64_t d = 0; d < 24; ++d)
                                filled.k[static_cast<size_t>((head * 150 + j) * 24 + d)] = poison;
                            for (int64_t d = 0; d < 33; ++d)
                                filled.v[static_cast<size_t>((head * 150 + j) * 33 + d)] = poison;
                        }
                });
            }
}

TEST_CASE("storage: changing what a row may not see leaves its bits", "[toolkit]") {
    for (const Types& types : combinations) {
        AttentionCase c;
        c.causal = true;
        c.q_len = c.kv_len = 150;
        c.head_dim = 40;
        Random random(12);
        c.fill(random);
        c = with_types(c, types);
        for_each_way(c, [&](const Entry& entry, const AttentionCase& way) {
            const EngineResult before = run_engine(entry, way, 1);
            for (const int64_t first : {1, 69, 70, 128}) {
                AttentionCase changed = way;
                for (int64_t h = 0; h < 2; ++h)
                    for (int64_t j = first; j < 150; ++j) {
                        for (int64_t d = 0; d < 40; ++d)
                            changed.k[static_cast<size_t>((h * 150 + j) * 40 + d)] = j % 2 ? 1e30f : nan_value;
                        for (int64_t d = 0; d < 16; ++d)
                            changed.v[static_cast<size_t>((h * 150 + j) * 16 + d)] = j % 3 ? -7.0f : nan_value;
                    }
                const EngineResult after = run_engine(entry, changed, 1);
                INFO(way.text() << ", changed from key " << first);
                const size_t rows = static_cast<size_t>(first);
                for (size_t h = 0; h < 2; ++h) {
                    CHECK(std::memcmp(&before.output[h * 150 * 16], &after.output[h * 150 * 16],
                                      rows * 16 * sizeof(float)) == 0);
                    CHECK(std::memcmp(&before.lse[h * 150], &after.lse[h * 150], rows * sizeof(float)) == 0);
                }
            }
        });
    }
}

TEST_CASE("storage: the processor's dots run where they are offered, and only there", "[toolkit]") {
    for_each_entry([&](const Entry& entry) {
        for (const Types& types : combinations) {
            AttentionCase c;
            c.q_len = 60;
            c.kv_len = 200;
            c.extra = 2;
            Random random(21);
            c.fill(random);
            c = with_types(c, types);
            const EngineResult off = run_engine(entry, c, 1);
            c.dots = true;
            INFO(c.text());
            const bool all_bf16 = types.query == bf16 && types.key == bf16 && types.extra == bf16;
            if (std::strcmp(entry.name, "avx512") == 0 && all_bf16 && !has_bf16_dots(entry)) continue;
            const EngineResult on = run_engine(entry, c, 1);
            CHECK(same_bits(on.lse, off.lse) == !(all_bf16 && has_bf16_dots(entry)));
            CHECK(same_bits(on.output, off.output) == !(all_bf16 && has_bf16_dots(entry)));
        }
    });
}

TEST_CASE("storage: tiles that share a block of keys", "[toolkit]") {
    // Enough rows for groups of up to 8 tiles on every entry; some tiles of a group see values that are not finite,
    // others do not, before or after them.
    uint64_t seed = 8000;
    for (const int64_t query_tile : {0, 7})
        for (int feature = 0; feature < 9; ++feature)
            for (const double wild : {0.0, 0.01}) {
                if (support::watched && wild == 0.0) continue;
                AttentionCase c;
                c.batch = 2;
                c.q_heads = 4;
                c.kv_heads = 2;
                c.q_len = query_tile == 0 ? 210 : 130;
                c.kv_len = 270;
                c.head_dim = 8;
                c.value_dim = 9;
                c.max_query_tile = query_tile;
                c.wild = wild;
                c.wild_infinity = seed % 3 == 0;
                if (feature == 1) c.causal = true, c.offset = 61;
                if (feature == 2) c.causal = true, c.offset = -60;
                if (feature == 3) c.window_left = 40, c.window_right = 3, c.offset = 31;
                if (feature == 4) c.use_mask = true;
                if (feature == 5) c.use_bias = c.bias_hides = true;
                if (feature == 6) c.key_lengths = {131, 7}, c.query_lengths = {101, 130}, c.causal = true;
                if (feature == 7) c.hook = c.hook_hides = true;
                if (feature == 8) c.cache = 77, c.extra = 3, c.causal = true, c.offset = 120, c.dropout = 0.2;
                c.scores = feature == 3 ? 1 : 0;
                const auto rows_of_tiles = [&](AttentionCase& filled) {
                    // A mask by tiles: whole, none and mixed ones next to each other.
                    if (feature != 4) return;
                    for (int64_t row = 0; row < filled.batch * filled.q_heads * filled.q_len; ++row) {
                        const int64_t kind = row % filled.q_len / 50 % 4;
                        for (int64_t j = 0; j < filled.kv_len; ++j) {
                            uint8_t& may = filled.mask[static_cast<size_t>(row * filled.kv_len + j)];
                            may = kind == 0 ? 1 : kind == 1 ? may : kind == 2 ? (j < 128 ? 0 : 1) : (j < 128 ? 1 : 0);
                        }
                    }
                };
                Random random(seed);
                AttentionCase whole = c;
                whole.fill(random);
                rows_of_tiles(whole);
                check_types(whole, {f32, f32, f32, f32}, 8e-6);
                check_stored(c, seed++, rows_of_tiles);
            }
}

TEST_CASE("storage: tiles of one row that share a block of keys", "[toolkit]") {
    // Such a tile hides nothing of what it reads, but may end between the keys of a pair, whose other one is not finite.
    uint64_t seed = 8500;
    for (const int64_t query_tile : {1, 2})
        for (int feature = 0; feature < 3; ++feature) {
            AttentionCase c;
            c.batch = 2;
            c.q_heads = 4;
            c.kv_heads = 2;
            c.q_len = 70;
            c.kv_len = 150;
            c.head_dim = 8;
            c.value_dim = 9;
            c.max_query_tile = query_tile;
            c.wild = 0.05;
            c.wild_infinity = feature == 1;
            c.causal = feature != 2;
            c.offset = feature == 0 ? 79 : 20;
            if (feature == 2) c.window_left = 9, c.window_right = 4;
            check_stored(c, seed++, as_it_is);
        }
}

TEST_CASE("storage: random mixtures", "[toolkit]") {
    for (uint64_t seed = 0; seed < support::rounds(100); ++seed) {
        Random random(90000 + seed);
        AttentionCase c;
        c.batch = random.whole(1, 3);
        c.kv_heads = random.whole(1, 3);
        c.q_heads = c.kv_heads * random.pick<int64_t>({1, 1, 2, 4});
        c.q_len = random.pick<int64_t>({0, 1, 2, 9, 15, 16, 17, 33, 47, 48, 49, 100});
        c.kv_len = random.pick<int64_t>({0, 1, 2, 15, 16, 17, 47, 49, 127, 128, 129, 200, 300});
        c.head_dim = random.pick<int64_t>({1, 3, 8, 16, 17, 32});
        c.value_dim = random.chance(0.5) ? c.head_dim : random.whole(1, 40);
        c.scale = 0.3;
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
        if (random.chance(0.3)) c.max_key_tile = random.pick<int64_t>({1, 2, 10, 32, 64});
        for (int64_t b = 0; b < c.batch; ++b) {
            c.query_lengths.push_back(random.whole(0, c.q_len));
            c.key_lengths.push_back(random.whole(0, c.kv_len));
        }
        if (random.chance(0.6)) c.query_lengths.clear();
        if (random.chance(0.6)) c.key_lengths.clear();
        c.per_item = !c.query_lengths.empty() && !c.key_lengths.empty();
        if (random.chance(0.4)) c.wild = 0.05, c.wild_infinity = random.chance(0.5);
        c.scores = static_cast<int>(random.whole(0, 2));
        INFO("seed " << seed);
        check_stored(c, seed, as_it_is);
    }
}

TEST_CASE("storage: types that do not go together are refused", "[toolkit]") {
    for_each_entry([&](const Entry& entry) {
        const auto status_of = [&](Stored query, Stored key, Stored value, Stored extra, Stored output,
                                   const char* where) {
            const std::vector<float> ones(size_t{2 * 20 * 8}, 1.0f);
            TypedTensor tensors[] = {{{1, 2, 20, 8}, Strides::packed, ones, query},
                                     {{1, 2, 20, 8}, Strides::packed, ones, key},
                                     {{1, 2, 20, 8}, Strides::packed, ones, value},
                                     {{1, 2, 20, 8}, Strides::packed, ones, extra},
                                     {{1, 2, 20, 8}, Strides::packed, ones, output}};
            attend_tensor t[5];
            for (size_t at = 0; at < 5; ++at) t[at] = tensors[at].tensor();
            const attend_key_segment segments[2] = {{&t[1], &t[2], 0, 0, nullptr},
                                                    {&t[3], &t[3], ATTEND_SEGMENT_ALWAYS_VISIBLE, 0, nullptr}};
            attend_tile_problem problem{};
            problem.query = &t[0];
            problem.segments = segments;
            problem.num_segments = 2;
            problem.output = &t[4];
            problem.window_left = problem.window_right = -1;
            problem.scale = 1.0;
            Scratch scratch(entry.tile_workspace(&problem, 1));
            ErrorText error;
            attend_context context{};
            context.workspace = scratch.data();
            context.workspace_bytes = scratch.bytes();
            context.error = &error.error;
            context.max_workers = 1;
            const attend_status status = entry.tile_forward(&problem, &context);
            const std::string text = error.text;
            INFO(text << ", expected " << where);
            if (status == ATTEND_OK) {
                for (const float x : tensors[4].values()) CHECK(std::fabs(x - 1.0f) < 1e-5f);
            } else {
                CHECK(text.find(std::string("attend_tile_forward: ") + where + " has type code") == 0);
                CHECK(text.find("; accepted: ") != std::string::npos);
                for (const float x : tensors[4].values()) CHECK(x == 1.0f);
            }
            return status;
        };
        for (const Stored query : {f32, bf16, f16})
            for (const Stored key : {f32, bf16, f16})
                for (const Stored value : {f32, bf16, f16})
                    for (const Stored extra : {f32, bf16, f16})
                        for (const Stored output : {f32, bf16, f16}) {
                            const char* where = key != value                       ? "value"
                                                : key != query && query != f32     ? "key"
                                                : output != f32 && output != query ? "output"
                                                                                   : nullptr;
                            CHECK(status_of(query, key, value, extra, output, where == nullptr ? "nothing" : where) ==
                                  (where == nullptr ? ATTEND_OK : ATTEND_BAD_DTYPE));
                        }
    });
}

}  // namespace
}  // namespace attend::test
