// SPDX-License-Identifier: Apache-2.0
// The head-mixing engine against an oracle of loops in double precision: awkward sizes, numbers of heads that differ, each
// step of the pipeline, NaN behind hidden pairs, element types, strides, numbers of workers.
#include "unit/toolkit/typed.hpp"

#include "attend/toolkit/head_mix.h"

#define ATTEND_TEST_DECLARE_HEAD_MIX(entry)                                                          \
    extern "C" uint64_t attend_head_mix_workspace_##entry(const attend_head_mix_problem*, uint32_t); \
    extern "C" attend_status attend_head_mix_forward_##entry(const attend_head_mix_problem*, const attend_context*);
ATTEND_TEST_ENTRIES(ATTEND_TEST_DECLARE_HEAD_MIX)

namespace attend::test {
namespace {

struct HeadMixEntry {
    const char* name;
    uint64_t (*workspace)(const attend_head_mix_problem*, uint32_t);
    attend_status (*forward)(const attend_head_mix_problem*, const attend_context*);
};
#define ATTEND_TEST_HEAD_MIX(entry) \
    HeadMixEntry{#entry, attend_head_mix_workspace_##entry, attend_head_mix_forward_##entry},
const HeadMixEntry head_mix_entries[] = {ATTEND_TEST_ENTRIES(ATTEND_TEST_HEAD_MIX)};

constexpr double minus_infinity = -std::numeric_limits<double>::infinity();

struct MixCase {
    int64_t batch{1}, score_heads{3}, softmax_heads{3}, value_heads{3}, q_len{17}, kv_len{33}, head_dim{8},
        value_dim{8};
    bool pre{true}, pre_bias{false}, post{true}, post_bias{false};
    double scale{0.3}, softcap{0.0}, dropout{0.0};
    bool causal{false}, per_item{false}, use_mask{false}, use_bias{false}, share_heads{false}, share_queries{false};
    int64_t offset{0}, window_left{-1}, window_right{-1}, max_query_tile{0}, max_key_tile{0};
    std::vector<int64_t> query_lengths, key_lengths;
    double wild{0.0};  // share of keys and values that hold NaN
    bool want_lse{true};
    Strides layout{Strides::packed};
    Stored q_type{Stored::f32}, kv_type{Stored::f32}, out_type{Stored::f32};
    uint64_t seed{7}, rng_offset{3};

    std::vector<float> q, k, v, pre_mix, pre_add, post_mix, post_add, bias;
    std::vector<uint8_t> mask;

    void fill(Random& random) {
        const auto normals = [&](int64_t count, float size) {
            std::vector<float> values(static_cast<size_t>(count));
            for (float& value : values) value = size * random.normal();
            return values;
        };
        q = normals(batch * score_heads * q_len * head_dim, 1.0f);
        k = normals(batch * score_heads * kv_len * head_dim, 1.0f);
        v = normals(batch * value_heads * kv_len * value_dim, 1.0f);
        for (float& x : q) x = rounded_to(x, q_type);
        for (float& x : k) x = rounded_to(x, kv_type);
        for (float& x : v) x = rounded_to(x, kv_type);
        for (std::vector<float>* rows : {&k, &v})
            for (float& x : *rows)
                if (random.chance(wild)) x = nan_value;
        pre_mix = normals(score_heads * softmax_heads, 0.6f);
        pre_add = normals(softmax_heads, 1.0f);
        post_mix = normals(softmax_heads * value_heads, 0.6f);
        post_add = normals(value_heads, 0.1f);
        const int64_t heads = share_heads ? 1 : softmax_heads, rows = share_queries ? 1 : q_len;
        if (use_bias) bias = normals(batch * heads * rows * kv_len, 1.0f);
        for (float& x : bias)
            if (random.chance(0.2)) x = -std::numeric_limits<float>::infinity();
        if (use_mask) mask.resize(static_cast<size_t>(batch * heads * rows * kv_len));
        for (size_t at = 0; at < mask.size(); ++at)
            mask[at] = (static_cast<int64_t>(at) / kv_len % rows) % 7 != 3 && !random.chance(0.4) ? 1 : 0;
    }
    size_t pair(int64_t b, int64_t s, int64_t i, int64_t j) const {
        const int64_t heads = share_heads ? 1 : softmax_heads, rows = share_queries ? 1 : q_len;
        return static_cast<size_t>(((b * heads + (share_heads ? 0 : s)) * rows + (share_queries ? 0 : i)) * kv_len + j);
    }
    bool visible(int64_t b, int64_t s, int64_t i, int64_t j) const {
        const int64_t length = key_lengths.empty() ? kv_len : key_lengths[static_cast<size_t>(b)];
        const int64_t rows = query_lengths.empty() ? q_len : query_lengths[static_cast<size_t>(b)];
        const int64_t position = i + (per_item ? length - rows : offset);
        if (i >= rows || j >= length || (causal && j > position)) return false;
        if ((window_left >= 0 && j < position - window_left) || (window_right >= 0 && j > position + window_right))
            return false;
        if (use_mask && mask[pair(b, s, i, j)] == 0) return false;
        return !use_bias || bias[pair(b, s, i, j)] != -std::numeric_limits<float>::infinity();
    }
};

struct MixResult {
    std::vector<double> output, lse, size;
};

uint32_t drawn_word(const MixCase& c, int64_t row_head, int64_t i, int64_t j) {
    uint32_t w[4] = {static_cast<uint32_t>(j / 4), static_cast<uint32_t>(i), static_cast<uint32_t>(row_head),
                     (1u << 24) | static_cast<uint32_t>(c.rng_offset)};
    auto k0 = static_cast<uint32_t>(c.seed), k1 = static_cast<uint32_t>(c.seed >> 32);
    for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        const uint64_t a = 0xD2511F53ull * w[0], b = 0xCD9E8D57ull * w[2];
        const uint32_t next[4] = {static_cast<uint32_t>(b >> 32) ^ w[1] ^ k0, static_cast<uint32_t>(b),
                                  static_cast<uint32_t>(a >> 32) ^ w[3] ^ k1, static_cast<uint32_t>(a)};
        std::copy_n(next, 4, w);
    }
    return w[j % 4];
}

MixResult oracle(const MixCase& c) {
    const auto at = [](const std::vector<float>& from, int64_t index) {
        return static_cast<double>(from[static_cast<size_t>(index)]);
    };
    MixResult result;
    result.output.assign(static_cast<size_t>(c.batch * c.value_heads * c.q_len * c.value_dim), 0.0);
    result.size = result.output;
    result.lse.assign(static_cast<size_t>(c.batch * c.softmax_heads * c.q_len), minus_infinity);
    const double threshold = std::min(std::nearbyint(c.dropout * 4294967296.0), 4294967295.0);
    for (int64_t b = 0; b < c.batch; ++b)
        for (int64_t i = 0; i < c.q_len; ++i) {
            std::vector<double> weights(static_cast<size_t>(c.softmax_heads * c.kv_len), 0.0);
            std::vector<char> seen(static_cast<size_t>(c.kv_len), 0);
            std::vector<double> scores(static_cast<size_t>(c.score_heads * c.kv_len));
            for (int64_t h = 0; h < c.score_heads; ++h)
                for (int64_t j = 0; j < c.kv_len; ++j) {
                    double dot = 0.0;
                    for (int64_t d = 0; d < c.head_dim; ++d)
                        dot += at(c.q, ((b * c.score_heads + h) * c.q_len + i) * c.head_dim + d) *
                               at(c.k, ((b * c.score_heads + h) * c.kv_len + j) * c.head_dim + d);
                    scores[static_cast<size_t>(h * c.kv_len + j)] = c.scale * dot;
                }
            for (int64_t s = 0; s < c.softmax_heads; ++s) {
                double* row = weights.data() + s * c.kv_len;
                double largest = minus_infinity;
                for (int64_t j = 0; j < c.kv_len; ++j) {
                    row[j] = minus_infinity;
                    if (!c.visible(b, s, i, j)) continue;
                    double x = 0.0;
                    if (c.pre)
                        for (int64_t h = 0; h < c.score_heads; ++h)
                            x += scores[static_cast<size_t>(h * c.kv_len + j)] * at(c.pre_mix, h * c.softmax_heads + s);
                    else
                        x = scores[static_cast<size_t>(s * c.kv_len + j)];
                    if (c.pre_bias) x += at(c.pre_add, s);
                    if (c.softcap > 0.0) x = c.softcap * std::tanh(x / c.softcap);
                    if (c.use_bias) x += static_cast<double>(c.bias[c.pair(b, s, i, j)]);
                    row[j] = x;
                    seen[static_cast<size_t>(j)] = 1;
                    largest = std::isnan(x) || std::isnan(largest) ? std::nan("") : std::max(largest, x);
                }
                double sum = 0.0;
                for (int64_t j = 0; j < c.kv_len; ++j)
                    sum += row[j] == minus_infinity ? 0.0 : std::exp(row[j] - largest);
                if (largest != minus_infinity)
                    result.lse[static_cast<size_t>((b * c.softmax_heads + s) * c.q_len + i)] = largest + std::log(sum);
                for (int64_t j = 0; j < c.kv_len; ++j)
                    row[j] = row[j] == minus_infinity ? 0.0 : std::exp(row[j] - largest) / sum;
            }
            for (int64_t h = 0; h < c.value_heads; ++h)
                for (int64_t j = 0; j < c.kv_len; ++j) {
                    if (c.post ? seen[static_cast<size_t>(j)] == 0 : !c.visible(b, h, i, j)) continue;
                    double u = c.post_bias ? at(c.post_add, h) : 0.0;
                    if (c.post)
                        for (int64_t s = 0; s < c.softmax_heads; ++s)
                            u += weights[static_cast<size_t>(s * c.kv_len + j)] * at(c.post_mix, s * c.value_heads + h);
                    else
                        u = weights[static_cast<size_t>(h * c.kv_len + j)];
                    if (c.dropout > 0.0)
                        u *= static_cast<double>(drawn_word(c, b * c.value_heads + h, i, j)) >= threshold
                                 ? 1.0 / (1.0 - c.dropout)
                                 : 0.0;
                    for (int64_t d = 0; d < c.value_dim; ++d) {
                        const auto to = static_cast<size_t>(((b * c.value_heads + h) * c.q_len + i) * c.value_dim + d);
                        const double term = u * at(c.v, ((b * c.value_heads + h) * c.kv_len + j) * c.value_dim + d);
                        result.output[to] += term;
                        result.size[to] += std::fabs(term);
                    }
                }
        }
    return result;
}

struct MixRun {
    attend_status status{ATTEND_OK};
    std::string text;
    std::vector<float> output, lse;
    bool clean{false};
};

MixRun run_mix(const HeadMixEntry& entry, const MixCase& c, uint32_t workers) {
    TypedTensor query({c.batch, c.score_heads, c.q_len, c.head_dim}, c.layout, c.q, c.q_type);
    TypedTensor key({c.batch, c.score_heads, c.kv_len, c.head_dim}, c.layout, c.k, c.kv_type);
    TypedTensor value({c.batch, c.value_heads, c.kv_len, c.value_dim}, c.layout, c.v, c.kv_type);
    const auto blank = [](int64_t count) { return std::vector<float>(static_cast<size_t>(count), nan_value); };
    TypedTensor output({c.batch, c.value_heads, c.q_len, c.value_dim}, c.layout,
                       blank(c.batch * c.value_heads * c.q_len * c.value_dim), c.out_type);
    Strided<float> lse({c.batch, c.softmax_heads, c.q_len}, c.layout, blank(c.batch * c.softmax_heads * c.q_len));
    Strided<float> pre({c.score_heads, c.softmax_heads}, c.layout, c.pre_mix);
    Strided<float> post({c.softmax_heads, c.value_heads}, c.layout, c.post_mix);
    Strided<float> pre_add({c.softmax_heads}, c.layout, c.pre_add), post_add({c.value_heads}, c.layout, c.post_add);
    const std::vector<int64_t> pairs{c.batch, c.share_heads ? 1 : c.softmax_heads, c.share_queries ? 1 : c.q_len,
                                     c.kv_len};
    Strided<uint8_t> mask;
    Strided<float> bias;
    if (c.use_mask) mask = Strided<uint8_t>(pairs, c.layout, c.mask);
    if (c.use_bias) bias = Strided<float>(pairs, c.layout, c.bias);
    Strided<int64_t> q_lengths({static_cast<int64_t>(c.query_lengths.size())}, Strides::spread, c.query_lengths);
    Strided<int32_t> k_lengths({static_cast<int64_t>(c.key_lengths.size())}, Strides::packed,
                               std::vector<int32_t>(c.key_lengths.begin(), c.key_lengths.end()));
    const attend_tensor tensors[] = {query.tensor(),    key.tensor(),  value.tensor(), output.tensor(),
                                     lse.tensor(),      pre.tensor(),  post.tensor(),  pre_add.tensor(),
                                     post_add.tensor(), mask.tensor(), bias.tensor(),  q_lengths.tensor(),
                                     k_lengths.tensor()};
    attend_head_mix_problem problem{};
    problem.flags = (c.causal ? ATTEND_TILE_CAUSAL : 0u) | (c.per_item ? ATTEND_TILE_OFFSET_PER_ITEM : 0u);
    problem.query = &tensors[0];
    problem.key = &tensors[1];
    problem.value = &tensors[2];
    problem.output = &tensors[3];
    problem.lse = c.want_lse ? &tensors[4] : nullptr;
    problem.pre_mix = c.pre ? &tensors[5] : nullptr;
    problem.post_mix = c.post ? &tensors[6] : nullptr;
    problem.pre_bias = c.pre_bias ? &tensors[7] : nullptr;
    problem.post_bias = c.post_bias ? &tensors[8] : nullptr;
    problem.mask = c.use_mask ? &tensors[9] : nullptr;
    problem.bias = c.use_bias ? &tensors[10] : nullptr;
    problem.query_lengths = c.query_lengths.empty() ? nullptr : &tensors[11];
    problem.key_lengths = c.key_lengths.empty() ? nullptr : &tensors[12];
    problem.causal_offset = c.offset;
    problem.window_left = c.window_left;
    problem.window_right = c.window_right;
    problem.scale = c.scale;
    problem.softcap = c.softcap;
    problem.dropout = c.dropout;
    problem.seed = c.seed;
    problem.rng_offset = c.rng_offset;
    problem.max_query_tile = c.max_query_tile;
    problem.max_key_tile = c.max_key_tile;
    const LoopHost host(workers);
    Scratch scratch(entry.workspace(&problem, workers));
    ErrorText error;
    attend_context context{};
    context.host = workers == 1 ? nullptr : host.get();
    context.workspace = scratch.data();
    context.workspace_bytes = scratch.bytes();
    context.error = &error.error;
    context.max_workers = workers;
    MixRun result;
    result.status = entry.forward(&problem, &context);
    result.text = error.text;
    result.output = output.values();
    result.lse = lse.values();
    result.clean = output.gaps_untouched() && lse.gaps_untouched() && scratch.guard_untouched();
    return result;
}

void check_mix(MixCase c, uint64_t seed) {
    Random random(seed);
    c.fill(random);
    const MixResult expected = oracle(c);
    for_each_entry([&](const Entry& all) {
        const HeadMixEntry& entry =
            *std::find_if(std::begin(head_mix_entries), std::end(head_mix_entries),
                          [&](const HeadMixEntry& one) { return one.name == std::string(all.name); });
        INFO("B " << c.batch << " heads " << c.score_heads << "," << c.softmax_heads << "," << c.value_heads << " Nq "
                  << c.q_len << " Nk " << c.kv_len << " D " << c.head_dim << " Dv " << c.value_dim << " pre " << c.pre
                  << c.pre_bias << " post " << c.post << c.post_bias << " causal " << c.causal << " seed " << seed);
        const MixRun got = run_mix(entry, c, 1);
        INFO(got.text);
        REQUIRE(got.status == ATTEND_OK);
        CHECK(got.clean);
        const double share = 2e-6 + (c.out_type == Stored::f32 ? 0.0 : rounding_of(c.out_type));
        const int64_t at =
            first_difference(got.output, expected.output, 4e-6 / (1.0 - c.dropout), expected.size, share);
        if (at >= 0) {
            INFO("output[" << at << "] is " << got.output[static_cast<size_t>(at)] << ", expected "
                           << expected.output[static_cast<size_t>(at)]);
            CHECK(at == -1);
        }
        if (c.want_lse) CHECK(first_difference(got.lse, expected.lse, 1e-5, true) == -1);
        for (const uint32_t workers : {2u, 7u}) {
            const MixRun again = run_mix(entry, c, workers);
            CHECK(same_bits(again.output, got.output));
            if (c.want_lse) CHECK(same_bits(again.lse, got.lse));
        }
    });
}

TEST_CASE("head mixing: awkward sizes", "[toolkit]") {
    uint64_t seed = 1;
    for (const bool causal : {false, true})
        for (const int64_t q_len : {0, 1, 2, 15, 17, 48, 50, 129})
            for (const int64_t kv_len : {0, 1, 7, 63, 64, 65, 200}) {
                MixCase c;
                c.q_len = q_len;
                c.kv_len = kv_len;
                c.causal = causal;
                c.offset = kv_len - q_len;
                check_mix(c, seed++);
            }
}

TEST_CASE("head mixing: numbers and widths of heads", "[toolkit]") {
    uint64_t seed = 1000;
    for (const int64_t score : {1, 2, 5, 8, 17})
        for (const int64_t soft : {1, 3, 8, 13})
            for (const int64_t value : {1, 4, 9}) {
                MixCase c;
                c.score_heads = score;
                c.softmax_heads = soft;
                c.value_heads = value;
                c.head_dim = 1 + static_cast<int64_t>(seed % 20);
                c.value_dim = 1 + static_cast<int64_t>(seed * 7 % 33);
                c.q_len = 21;
                c.kv_len = 70;
                c.pre_bias = c.post_bias = seed % 3 == 0;
                c.use_mask = seed % 2 == 0;
                check_mix(c, seed++);
            }
    MixCase wide;  // queries and outputs of all heads are too large for tiles of three vectors
    wide.score_heads = wide.softmax_heads = wide.value_heads = 24;
    wide.head_dim = wide.value_dim = 200;
    wide.q_len = 49;
    wide.kv_len = 40;
    wide.scale = 0.07;
    check_mix(wide, seed);
}

TEST_CASE("head mixing: nothing to do", "[toolkit]") {
    MixCase c;
    c.batch = 0;
    check_mix(c, 1);
    c.batch = 2;
    c.kv_len = 0;
    c.post_bias = true;
    check_mix(c, 2);
}

TEST_CASE("head mixing: one step of the pipeline at a time", "[toolkit]") {
    MixCase base;
    base.batch = 2;
    base.score_heads = 4;
    base.softmax_heads = 3;
    base.value_heads = 5;
    base.q_len = 37;
    base.kv_len = 150;
    uint64_t seed = 2000;
    const auto with = [&](const char* name, auto change) {
        DYNAMIC_SECTION(name) {
            MixCase c = base;
            change(c);
            if (!c.pre) c.score_heads = c.softmax_heads;
            if (!c.post) c.value_heads = c.softmax_heads;
            check_mix(c, seed);
        }
        ++seed;
    };
    with("plain", [](MixCase&) {});
    with("no first mixing", [](MixCase& c) { c.pre = false; });
    with("no second mixing", [](MixCase& c) { c.post = false; });
    with("no mixing", [](MixCase& c) { c.pre = c.post = false; });
    with("linear biases", [](MixCase& c) { c.pre_bias = c.post_bias = true; });
    with("scale 0", [](MixCase& c) { c.scale = 0.0; });
    with("softcap", [](MixCase& c) { c.softcap = 0.7; });
    with("mask of heads", [](MixCase& c) { c.use_mask = c.post_bias = true; });
    with("mask of queries", [](MixCase& c) { c.use_mask = c.share_heads = true; });
    with("mask of keys", [](MixCase& c) { c.use_mask = c.share_heads = c.share_queries = c.post_bias = true; });
    with("bias of heads", [](MixCase& c) { c.use_bias = true; });
    with("bias of queries", [](MixCase& c) { c.use_bias = c.share_heads = true; });
    with("bias of keys", [](MixCase& c) { c.use_bias = c.share_heads = c.share_queries = true; });
    with("bias and mask, one mixing", [](MixCase& c) {
        c.use_bias = c.use_mask = true;
        c.post = false;
    });
    with("causal", [](MixCase& c) {
        c.causal = c.post_bias = true;
        c.offset = 113;
    });
    with("causal with empty rows", [](MixCase& c) {
        c.causal = c.post_bias = true;
        c.offset = -20;
    });
    with("causal, one mixing", [](MixCase& c) {
        c.causal = true;
        c.post = false;
        c.offset = -5;
    });
    with("window", [](MixCase& c) {
        c.window_left = 9;
        c.window_right = 4;
        c.offset = 60;
    });
    with("window past the end", [](MixCase& c) {
        c.window_left = c.window_right = 5;
        c.offset = 140;
    });
    with("huge window", [](MixCase& c) { c.window_left = c.window_right = int64_t{1} << 50; });
    with("lengths", [](MixCase& c) {
        c.query_lengths = {37, 5};
        c.key_lengths = {0, 77};
        c.post_bias = true;
    });
    with("lengths, offset per item", [](MixCase& c) {
        c.query_lengths = {30, 11};
        c.key_lengths = {20, 77};
        c.causal = c.per_item = true;
    });
    with("dropout", [](MixCase& c) { c.dropout = 0.3; });
    with("dropout, one mixing", [](MixCase& c) {
        c.dropout = 0.5;
        c.post = false;
    });
    with("small tiles", [](MixCase& c) {
        c.max_query_tile = 5;
        c.max_key_tile = 16;
        c.causal = true;
        c.offset = 113;
    });
    with("without lse", [](MixCase& c) { c.want_lse = false; });
    for (const Strides layout : {Strides::swapped, Strides::reversed, Strides::spread})
        with("strides", [layout](MixCase& c) {
            c.layout = layout;
            c.use_bias = c.use_mask = c.pre_bias = c.post_bias = true;
        });
    for (const Stored type : {Stored::bf16, Stored::f16}) {
        with("narrow types", [type](MixCase& c) {
            c.q_type = c.kv_type = c.out_type = type;
            c.head_dim = 19;
            c.value_dim = 21;
        });
        with("narrow cache", [type](MixCase& c) { c.kv_type = type; });
    }
}

TEST_CASE("head mixing: NaN behind hidden pairs stays there", "[toolkit]") {
    for (uint64_t seed = 3000; seed < 3040; ++seed) {
        MixCase c;
        c.wild = 0.01;
        c.use_mask = true;
        c.share_heads = seed % 2 == 0;
        c.share_queries = seed % 4 < 2;
        c.post = seed % 3 != 0;
        c.pre = seed % 5 != 0;
        c.post_bias = c.post && seed % 7 == 0;
        c.kv_len = 90;
        c.kv_type = seed % 6 == 1 ? Stored::bf16 : Stored::f32;
        check_mix(c, seed);
    }
}

TEST_CASE("head mixing: random mixtures", "[toolkit]") {
    for (uint64_t seed = 4000; seed < 4120; ++seed) {
        Random random(seed);
        MixCase c;
        c.batch = random.whole(1, 2);
        c.score_heads = random.whole(1, 9);
        c.pre = random.chance(0.8);
        c.post = random.chance(0.8);
        c.softmax_heads = c.pre ? random.whole(1, 9) : c.score_heads;
        c.value_heads = c.post ? random.whole(1, 9) : c.softmax_heads;
        c.q_len = random.whole(1, 70);
        c.kv_len = random.whole(1, 210);
        c.head_dim = random.whole(1, 40);
        c.value_dim = random.whole(1, 40);
        c.scale = 1.0 / std::sqrt(static_cast<double>(c.head_dim));
        c.pre_bias = c.pre && random.chance(0.3);
        c.post_bias = c.post && random.chance(0.3);
        c.causal = random.chance(0.4);
        c.offset = random.whole(-10, c.kv_len);
        c.window_left = random.chance(0.3) ? random.whole(0, 60) : -1;
        c.window_right = random.chance(0.3) ? random.whole(0, 60) : -1;
        c.use_mask = random.chance(0.4);
        c.use_bias = random.chance(0.3);
        c.share_heads = random.chance(0.5);
        c.share_queries = random.chance(0.3);
        c.dropout = random.chance(0.2) ? 0.3 : 0.0;
        c.softcap = random.chance(0.2) ? 2.0 : 0.0;
        if (random.chance(0.3)) {
            for (int64_t b = 0; b < c.batch; ++b) c.key_lengths.push_back(random.whole(0, c.kv_len));
            for (int64_t b = 0; b < c.batch; ++b) c.query_lengths.push_back(random.whole(0, c.q_len));
            c.per_item = random.chance(0.5);
        }
        check_mix(c, seed);
    }
}

TEST_CASE("head mixing: what does not fit is refused", "[toolkit]") {
    MixCase c;
    Random random(1);
    c.fill(random);
    const auto refused = [](const MixCase& wrong, const char* words) {
        for_each_entry([&](const Entry& all) {
            for (const HeadMixEntry& entry : head_mix_entries) {
                if (entry.name != std::string(all.name)) continue;
                const MixRun got = run_mix(entry, wrong, 1);
                INFO(got.text);
                CHECK(got.status != ATTEND_OK);
                CHECK(got.text.find(words) != std::string::npos);
                CHECK(got.text.find("accepted") != std::string::npos);
            }
        });
    };
    MixCase wrong = c;
    wrong.post = false;
    wrong.value_heads = 2;
    refused(wrong, "value");
    wrong = c;
    wrong.scale = std::numeric_limits<double>::quiet_NaN();
    refused(wrong, "scale");
    wrong = c;
    wrong.dropout = 1.0;
    refused(wrong, "dropout");
    wrong = c;
    wrong.key_lengths = {34};
    refused(wrong, "key_lengths");
    wrong = c;
    wrong.pre = false;
    wrong.pre_bias = true;
    refused(wrong, "pre_bias");
}

}  // namespace
}  // namespace attend::test
