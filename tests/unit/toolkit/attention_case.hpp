// SPDX-License-Identifier: Apache-2.0
// One attention problem: dense data and what is switched on; an oracle in double precision, loops only; and a runner
// that lays the same problem out for an engine.
#pragma once

#include <functional>
#include <string>

#include "unit/toolkit/typed.hpp"

namespace attend::test {

struct AttentionCase {
    int64_t batch{1}, q_heads{2}, kv_heads{2}, q_len{17}, kv_len{33}, head_dim{16}, value_dim{16};
    int64_t cache{0};  // the first keys lie in a segment of their own
    int64_t extra{0};  // always-visible keys behind
    bool extra_dropout{true};
    double scale{0.25}, softcap{0.0}, dropout{0.0};
    uint64_t seed{0}, rng_offset{0};
    int64_t dropout_heads{0}, dropout_head{0};
    bool causal{false}, per_item{false}, use_mask{false}, use_bias{false}, hook{false}, hook_hides{false};
    int64_t offset{0}, window_left{-1}, window_right{-1};
    int64_t max_query_tile{0}, max_key_tile{0};
    int64_t split{-1};  // two calls: the keys below it leave their state to the others
    bool bias_hides{false}, broadcast_heads{false}, broadcast_queries{false};
    int scores{0};  // 0 none, 1 per head, 2 mean over heads
    bool want_lse{true}, want_output{true};
    Strides layout{Strides::packed};
    std::vector<int64_t> query_lengths, key_lengths;
    std::vector<int32_t> query_index, key_index;
    int64_t logical_q{0}, logical_k{0};  // extents that mask and bias have when index maps are used
    double wild{0.0};                    // share of keys and values that hold NaN
    bool wild_infinity{false};           // or infinity, in values
    Stored q_type{Stored::f32}, kv_type{Stored::f32}, extra_type{Stored::f32}, out_type{Stored::f32};
    bool float_scores{false};  // the oracle adds biases in float32, where huge ones swallow scores
    bool dots{false};          // the processor is said to have products of bf16 pairs

    // A key iterator of the toolkit, and the same rule for the oracle: (batch, head, i, i', j).
    attend_keys_fn keys{nullptr};
    attend_score_fn keep{nullptr}, score{nullptr};
    const void *keys_user{nullptr}, *score_user{nullptr};
    const attend_tile_hooks* hooks{nullptr};  // the oracle knows nothing of them
    const attend_tensor* const* map_key{nullptr};
    std::function<bool(int64_t, int64_t, int64_t, int64_t, int64_t)> sees;
    std::function<double(int64_t, int64_t, int64_t, int64_t, double)> changes;  // (batch, head, i', j, s)

    std::vector<float> q, k, v, bias;
    std::vector<uint8_t> mask;

    int64_t all_keys() const { return kv_len + extra; }
    int64_t mask_q() const { return query_index.empty() ? q_len : logical_q; }
    int64_t mask_k() const { return key_index.empty() ? kv_len : logical_k; }

    void fill(Random& random);
    void round_inputs();  // to their types, so that only the arithmetic differs from the oracle's
    std::string text() const;
};

struct AttentionResult {
    std::vector<double> output, lse, scores;
    std::vector<double> size;  // of the outputs: the sum of |weight value|
};

inline void AttentionCase::fill(Random& random) {
    const auto normals = [&](int64_t count) {
        std::vector<float> values(static_cast<size_t>(count));
        for (float& value : values) value = random.normal();
        return values;
    };
    q = normals(batch * q_heads * q_len * head_dim);
    k = normals(batch * kv_heads * all_keys() * head_dim);
    v = normals(batch * kv_heads * all_keys() * value_dim);
    if (wild > 0.0)
        for (int64_t row = 0; row < batch * kv_heads * all_keys(); ++row) {
            if (random.chance(wild)) k[static_cast<size_t>(row * head_dim + random.whole(0, head_dim - 1))] = nan_value;
            if (random.chance(wild))
                v[static_cast<size_t>(row * value_dim + random.whole(0, value_dim - 1))] =
                    wild_infinity ? std::copysign(std::numeric_limits<float>::infinity(), random.normal()) : nan_value;
        }
    // Whole rows of keys hidden now and then, so that there are rows without keys.
    const auto spread = [&](auto make) {
        std::vector<float> values(static_cast<size_t>(batch * q_heads * mask_q() * mask_k()));
        for (int64_t b = 0; b < batch; ++b)
            for (int64_t h = 0; h < q_heads; ++h)
                for (int64_t i = 0; i < mask_q(); ++i)
                    for (int64_t j = 0; j < mask_k(); ++j) {
                        const auto at = [&](int64_t hh, int64_t ii) {
                            return static_cast<size_t>(((b * q_heads + hh) * mask_q() + ii) * mask_k() + j);
                        };
                        const int64_t from_h = broadcast_heads ? 0 : h, from_i = broadcast_queries ? 0 : i;
                        values[at(h, i)] = from_h == h && from_i == i ? make(i, j) : values[at(from_h, from_i)];
                    }
        return values;
    };
    if (use_mask) {
        const bool harsh = random.chance(0.2);
        const std::vector<float> drawn =
            spread([&](int64_t i, int64_t) { return (i % 7 == 3 || random.chance(harsh ? 0.9 : 0.3)) ? 0.0f : 1.0f; });
        mask.assign(drawn.begin(), drawn.end());
    }
    if (use_bias)
        bias = spread([&](int64_t i, int64_t) {
            return bias_hides && (i % 5 == 2 || random.chance(0.3)) ? -std::numeric_limits<float>::infinity()
                                                                    : random.normal();
        });
}

inline void AttentionCase::round_inputs() {
    for (float& x : q) x = rounded_to(x, q_type);
    for (const bool values : {false, true}) {
        std::vector<float>& rows = values ? v : k;
        const int64_t width = values ? value_dim : head_dim;
        for (size_t at = 0; at < rows.size(); ++at) {
            const bool main = static_cast<int64_t>(at) / width % all_keys() < kv_len;
            rows[at] = rounded_to(rows[at], main ? kv_type : extra_type);
        }
    }
}

inline std::string AttentionCase::text() const {
    std::ostringstream out;
    out << "B " << batch << " Hq " << q_heads << " Hkv " << kv_heads << " Nq " << q_len << " Nk " << kv_len << " D "
        << head_dim << " Dv " << value_dim << " cache " << cache << " extra " << extra << " softcap " << softcap
        << " dropout " << dropout << " causal " << causal << " per_item " << per_item << " offset " << offset
        << " window " << window_left << "," << window_right << " mask " << use_mask << " bias " << use_bias << "/"
        << bias_hides << " broadcast " << broadcast_heads << broadcast_queries << " hook " << hook << hook_hides
        << " tiles " << max_query_tile << "," << max_key_tile << " scores " << scores << " layout "
        << static_cast<int>(layout) << " lengths " << query_lengths.size() << key_lengths.size() << " maps "
        << query_index.size() << "," << key_index.size() << " wild " << wild << "/" << wild_infinity << " types "
        << name_of(q_type) << "," << name_of(kv_type) << "," << name_of(extra_type) << "," << name_of(out_type)
        << " dots " << dots << " split " << split;
    return out.str();
}

// ---- the oracle ----

inline uint32_t oracle_philox(uint64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, int lane) {
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = 0xD2511F53ull * c0, p1 = 0xCD9E8D57ull * c2;
        const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0, n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
        c1 = static_cast<uint32_t>(p1);
        c3 = static_cast<uint32_t>(p0);
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    const uint32_t words[4] = {c0, c1, c2, c3};
    return words[lane];
}

// What the test's own score hook does.
inline double hook_score(int64_t head, int64_t position, int64_t j, double s) {
    return s + 0.125 * static_cast<double>(head) - 0.03125 * static_cast<double>((position + 3 * j) % 16);
}
inline bool hook_hides_pair(int64_t i, int64_t j) { return (i + 2 * j) % 5 == 0; }

inline AttentionResult oracle(const AttentionCase& c) {
    const double minus_infinity = -std::numeric_limits<double>::infinity();
    AttentionResult result;
    result.output.assign(static_cast<size_t>(c.batch * c.q_heads * c.q_len * c.value_dim), 0.0);
    result.size = result.output;
    result.lse.assign(static_cast<size_t>(c.batch * c.q_heads * c.q_len), minus_infinity);
    std::vector<double> weights(static_cast<size_t>(c.batch * c.q_heads * c.q_len * c.all_keys()), 0.0);
    const double threshold = std::min(std::nearbyint(c.dropout * 4294967296.0), 4294967295.0);
    std::vector<double> s(static_cast<size_t>(c.all_keys()));
    for (int64_t b = 0; b < c.batch; ++b)
        for (int64_t h = 0; h < c.q_heads; ++h)
            for (int64_t row = 0; row < c.q_len; ++row) {
                const int64_t hk = h * c.kv_heads / c.q_heads;
                const int64_t i = c.query_index.empty() ? row : c.query_index[static_cast<size_t>(row)];
                const int64_t q_length = c.query_lengths.empty() ? std::numeric_limits<int64_t>::max()
                                                                 : c.query_lengths[static_cast<size_t>(b)];
                const int64_t k_length =
                    c.key_lengths.empty() ? std::numeric_limits<int64_t>::max() : c.key_lengths[static_cast<size_t>(b)];
                if (i >= q_length) continue;
                const int64_t position = i + (c.per_item ? k_length - q_length : c.offset);
                double best = minus_infinity;
                bool nan = false;
                for (int64_t key = 0; key < c.all_keys(); ++key) {
                    const bool main = key < c.kv_len;
                    const int64_t j = main && !c.key_index.empty() ? c.key_index[static_cast<size_t>(key)] : key;
                    double dot = 0.0;
                    for (int64_t d = 0; d < c.head_dim; ++d)
                        dot += static_cast<double>(
                                   c.q[static_cast<size_t>(((b * c.q_heads + h) * c.q_len + row) * c.head_dim + d)]) *
                               static_cast<double>(c.k[static_cast<size_t>(
                                   ((b * c.kv_heads + hk) * c.all_keys() + key) * c.head_dim + d)]);
                    double x = c.scale * dot;
                    if (c.softcap > 0.0) x = c.softcap * std::tanh(x / c.softcap);
                    if (c.hook) x = hook_score(h, position, j, x);
                    if (c.changes) x = c.changes(b, h, position, j, x);
                    bool visible = true;
                    if (c.hook && c.hook_hides && hook_hides_pair(i, j)) visible = false;
                    if (main) {
                        const size_t at = static_cast<size_t>(((b * c.q_heads + h) * c.mask_q() + i) * c.mask_k() + j);
                        if (c.use_bias) {
                            const double bias = static_cast<double>(c.bias[at]);
                            if (bias == minus_infinity) visible = false;
                            x = c.float_scores ? static_cast<double>(static_cast<float>(x) + c.bias[at]) : x + bias;
                        }
                        if (c.use_mask && c.mask[at] == 0) visible = false;
                        if (j >= k_length) visible = false;
                        if (c.causal && j > position) visible = false;
                        if (c.window_left >= 0 && position - j > c.window_left) visible = false;
                        if (c.window_right >= 0 && j - position > c.window_right) visible = false;
                        if (c.sees && !c.sees(b, h, i, position, j)) visible = false;
                    }
                    s[static_cast<size_t>(key)] = visible ? x : minus_infinity;
                    nan = nan || (visible && std::isnan(x));
                    if (visible && x > best) best = x;
                }
                if (best == minus_infinity && !nan) continue;
                double sum = 0.0;
                for (double& x : s) {
                    const bool hidden = x == minus_infinity;
                    x = hidden ? 0.0 : std::exp(x - best);
                    if (hidden)
                        x = -1.0;  // marks a hidden key from here on
                    else
                        sum += x;
                }
                result.lse[static_cast<size_t>((b * c.q_heads + h) * c.q_len + row)] = best + std::log(sum);
                for (int64_t key = 0; key < c.all_keys(); ++key) {
                    const double x = s[static_cast<size_t>(key)];
                    if (x == -1.0) continue;
                    const double p = x / sum;
                    weights[static_cast<size_t>(((b * c.q_heads + h) * c.q_len + row) * c.all_keys() + key)] = p;
                    const bool main = key < c.kv_len;
                    const int64_t j = main && !c.key_index.empty() ? c.key_index[static_cast<size_t>(key)] : key;
                    double kept = p;
                    if (c.dropout > 0.0 && (main || c.extra_dropout)) {
                        const int64_t heads = c.dropout_heads > 0 ? c.dropout_heads : c.q_heads;
                        const uint32_t word =
                            oracle_philox(c.seed, static_cast<uint32_t>(j / 4), static_cast<uint32_t>(i),
                                          static_cast<uint32_t>(b * heads + c.dropout_head + h),
                                          (1u << 24) | static_cast<uint32_t>(c.rng_offset), static_cast<int>(j % 4));
                        kept *= static_cast<double>(word) >= threshold ? 1.0 / (1.0 - c.dropout) : 0.0;  // NaN stays
                    }
                    for (int64_t d = 0; d < c.value_dim; ++d) {
                        const size_t at = static_cast<size_t>(((b * c.q_heads + h) * c.q_len + row) * c.value_dim + d);
                        const double term =
                            kept * static_cast<double>(c.v[static_cast<size_t>(
                                       ((b * c.kv_heads + hk) * c.all_keys() + key) * c.value_dim + d)]);
                        result.output[at] += term;
                        result.size[at] += std::fabs(term);
                    }
                }
            }
    if (c.scores == 1) result.scores = weights;
    if (c.scores == 2) {
        result.scores.assign(static_cast<size_t>(c.batch * c.q_len * c.all_keys()), 0.0);
        for (int64_t b = 0; b < c.batch; ++b)
            for (int64_t h = 0; h < c.q_heads; ++h)
                for (int64_t at = 0; at < c.q_len * c.all_keys(); ++at)
                    result.scores[static_cast<size_t>(b * c.q_len * c.all_keys() + at)] +=
                        weights[static_cast<size_t>((b * c.q_heads + h) * c.q_len * c.all_keys() + at)] /
                        static_cast<double>(c.q_heads);
    }
    return result;
}

// ---- running an engine ----

struct EngineResult {
    std::vector<float> output, lse, scores;
    attend_status status{ATTEND_OK};
    std::string text;
    bool clean{true};  // nothing outside outputs and workspace was written
};

void test_score_hook(const void* user, const attend_score_tile* tile);

// Keys hook: a range of the axis.
struct KeyRange {
    int64_t begin, end;
    static void visit(const void* user, const attend_query_tile* tile, attend_key_visit_fn visit, void* visitor) {
        const auto& self = *static_cast<const KeyRange*>(user);
        const int64_t end = std::min(self.end, tile->kv_len);
        if (self.begin < end) visit(visitor, self.begin, end, 0);
    }
};

inline EngineResult run_engine(const Entry& entry, const AttentionCase& c, uint32_t workers) {
    const auto part = [&](const std::vector<float>& dense, int64_t heads, int64_t width, int64_t begin, int64_t end) {
        std::vector<float> cut;
        for (int64_t head = 0; head < heads; ++head)
            cut.insert(cut.end(), dense.begin() + (head * c.all_keys() + begin) * width,
                       dense.begin() + (head * c.all_keys() + end) * width);
        return cut;
    };
    TypedTensor query({c.batch, c.q_heads, c.q_len, c.head_dim}, c.layout, c.q, c.q_type);
    const int64_t cuts[4] = {0, c.cache, c.kv_len, c.all_keys()};
    TypedTensor key_parts[3], value_parts[3];
    attend_tensor key_tensors[3], value_tensors[3];
    std::vector<attend_key_segment> segments;
    for (size_t at = 0; at < 3; ++at) {
        if (at != 1 && cuts[at] == cuts[at + 1]) continue;
        const Stored type = at == 2 ? c.extra_type : c.kv_type;
        key_parts[at] = TypedTensor({c.batch, c.kv_heads, cuts[at + 1] - cuts[at], c.head_dim}, c.layout,
                                    part(c.k, c.batch * c.kv_heads, c.head_dim, cuts[at], cuts[at + 1]), type);
        value_parts[at] = TypedTensor({c.batch, c.kv_heads, cuts[at + 1] - cuts[at], c.value_dim}, c.layout,
                                      part(c.v, c.batch * c.kv_heads, c.value_dim, cuts[at], cuts[at + 1]), type);
        key_tensors[at] = key_parts[at].tensor();
        value_tensors[at] = value_parts[at].tensor();
        const uint32_t flags =
            at == 2 ? (ATTEND_SEGMENT_ALWAYS_VISIBLE | (c.extra_dropout ? 0u : ATTEND_SEGMENT_NO_DROPOUT)) : 0u;
        segments.push_back({&key_tensors[at], &value_tensors[at], flags, 0, c.map_key});
    }
    const auto blank = [](int64_t count) { return std::vector<float>(static_cast<size_t>(count), nan_value); };
    TypedTensor output({c.batch, c.q_heads, c.q_len, c.value_dim}, c.layout,
                       blank(c.batch * c.q_heads * c.q_len * c.value_dim), c.out_type);
    Strided<float> lse({c.batch, c.q_heads, c.q_len}, c.layout, blank(c.batch * c.q_heads * c.q_len));
    const std::vector<int64_t> scores_shape = c.scores == 2
                                                  ? std::vector<int64_t>{c.batch, c.q_len, c.all_keys()}
                                                  : std::vector<int64_t>{c.batch, c.q_heads, c.q_len, c.all_keys()};
    int64_t scores_size = 1;
    for (const int64_t extent : scores_shape) scores_size *= extent;
    Strided<float> scores(scores_shape, c.layout, blank(scores_size));
    const std::vector<bool> broadcast{false, c.broadcast_heads, c.broadcast_queries, false};
    const std::vector<int64_t> pair_shape{c.batch, c.q_heads, c.mask_q(), c.mask_k()};
    Strided<uint8_t> mask;
    Strided<float> bias;
    if (c.use_mask) mask = Strided<uint8_t>(pair_shape, c.layout, c.mask, broadcast);
    if (c.use_bias) bias = Strided<float>(pair_shape, c.layout, c.bias, broadcast);
    Strided<int64_t> q_lengths({static_cast<int64_t>(c.query_lengths.size())}, Strides::spread, c.query_lengths);
    Strided<int32_t> k_lengths({static_cast<int64_t>(c.key_lengths.size())}, Strides::packed,
                               std::vector<int32_t>(c.key_lengths.begin(), c.key_lengths.end()));

    const attend_tensor query_tensor = query.tensor(), output_tensor = output.tensor(), lse_tensor = lse.tensor(),
                        scores_tensor = scores.tensor(), mask_tensor = mask.tensor(), bias_tensor = bias.tensor(),
                        q_lengths_tensor = q_lengths.tensor(), k_lengths_tensor = k_lengths.tensor();
    attend_tile_problem problem{};
    problem.flags = (c.causal ? ATTEND_TILE_CAUSAL : 0u) | (c.per_item ? ATTEND_TILE_OFFSET_PER_ITEM : 0u) |
                    (c.scores == 2 ? ATTEND_TILE_AVERAGE_SCORES : 0u) | (c.hook_hides ? ATTEND_TILE_SCORE_HIDES : 0u);
    problem.num_segments = static_cast<uint32_t>(segments.size());
    problem.query = &query_tensor;
    problem.segments = segments.data();
    problem.output = c.want_output ? &output_tensor : nullptr;
    problem.lse = c.want_lse ? &lse_tensor : nullptr;
    problem.scores = c.scores != 0 ? &scores_tensor : nullptr;
    problem.mask = c.use_mask ? &mask_tensor : nullptr;
    problem.bias = c.use_bias ? &bias_tensor : nullptr;
    problem.query_lengths = c.query_lengths.empty() ? nullptr : &q_lengths_tensor;
    problem.key_lengths = c.key_lengths.empty() ? nullptr : &k_lengths_tensor;
    problem.causal_offset = c.offset;
    problem.window_left = c.window_left;
    problem.window_right = c.window_right;
    problem.scale = c.scale;
    problem.softcap = c.softcap;
    problem.dropout = c.dropout;
    problem.seed = c.seed;
    problem.rng_offset = c.rng_offset;
    problem.dropout_heads = c.dropout_heads;
    problem.dropout_head = c.dropout_head;
    problem.max_query_tile = c.max_query_tile;
    problem.max_key_tile = c.max_key_tile;
    problem.keys = c.keys;
    problem.keys_user = c.keys_user;
    problem.keep = c.keep;
    problem.keep_user = c.keys_user;
    problem.score = c.hook ? test_score_hook : c.score;
    problem.score_user = c.hook ? &c : c.score_user;
    problem.hooks = c.hooks;
    problem.query_index = c.query_index.empty() ? nullptr : c.query_index.data();
    problem.key_index = c.key_index.empty() ? nullptr : c.key_index.data();

    const LoopHost loop(workers);
    attend_cpu cpu{};
    cpu.struct_size = sizeof cpu;
    cpu.isa = c.dots ? ATTEND_ISA_AVX512_BF16 : 0;
    attend_host host = *loop.get();
    host.cpu = &cpu;
    Strided<float> state_max({c.batch, c.q_heads, c.q_len}, c.layout, blank(c.batch * c.q_heads * c.q_len)),
        state_sum({c.batch, c.q_heads, c.q_len}, c.layout, blank(c.batch * c.q_heads * c.q_len));
    const attend_tensor max_tensor = state_max.tensor(), sum_tensor = state_sum.tensor();
    attend_tile_problem before = problem;
    const KeyRange first{0, c.split}, rest{c.split, c.kv_len};
    if (c.split >= 0) {
        problem.flags |= ATTEND_TILE_TAKES_STATE;
        before.flags |= ATTEND_TILE_LEAVES_STATE;
        before.lse = nullptr;
        before.keys = problem.keys = KeyRange::visit;
        before.keys_user = &first;
        problem.keys_user = &rest;
        problem.max_query_tile = c.max_query_tile > 0 ? c.max_query_tile + 5 : 0;
        before.state_max = problem.state_max = &max_tensor;
        before.state_sum = problem.state_sum = &sum_tensor;
        if (c.extra > 0) --before.num_segments;
    }
    Scratch scratch(std::max(entry.tile_workspace(&problem, workers), entry.tile_workspace(&before, workers)));
    ErrorText error;
    attend_context context{};
    context.host = workers == 1 && !c.dots ? nullptr : &host;
    context.workspace = scratch.data();
    context.workspace_bytes = scratch.bytes();
    context.error = &error.error;
    context.max_workers = workers;
    EngineResult result;
    result.status = c.split >= 0 ? entry.tile_forward(&before, &context) : attend_status{ATTEND_OK};
    if (result.status == ATTEND_OK) result.status = entry.tile_forward(&problem, &context);
    result.text = error.text;
    result.output = output.values();
    result.lse = lse.values();
    result.scores = scores.values();
    result.clean = state_max.gaps_untouched() && state_sum.gaps_untouched() && output.gaps_untouched() &&
                   lse.gaps_untouched() && scores.gaps_untouched() && scratch.guard_untouched();
    return result;
}

// Compares an engine with the oracle, and its own bits for 1, 2 and 7 workers.
inline void check_case(const Entry& entry, const AttentionCase& c, const AttentionResult& expected,
                       double output_limit = 0.0) {
    INFO(c.text());
    const EngineResult got = run_engine(entry, c, 1);
    INFO(got.text);
    REQUIRE(got.status == ATTEND_OK);
    CHECK(got.clean);
    double largest = 1.0;
    for (const float value : c.v)
        if (std::fabs(value) > largest) largest = std::fabs(value);
    double limit = output_limit > 0.0 ? output_limit : 2e-6 * largest / (1.0 - c.dropout);
    // One rounding of the output to a narrow type; where pairs are multiplied, one of every weight, and exponentials
    // that are as precise as that needs, whose sums the LSE and the weights show.
    const double narrow = (c.out_type == Stored::f32 ? 0.0 : rounding_of(c.out_type)) + (c.dots ? 0x1p-8 : 0.0);
    const double sum_error = c.dots ? 0x1p-13 : 0.0;
    if (c.q_type != Stored::f32 || c.kv_type != Stored::f32) limit = std::max(limit, 1e-5);
    if (c.want_output) {
        const int64_t at = first_difference(got.output, expected.output, limit, expected.size, narrow);
        if (at >= 0) {
            INFO("output[" << at << "] is " << got.output[static_cast<size_t>(at)] << ", expected "
                           << expected.output[static_cast<size_t>(at)]);
            CHECK(at == -1);
        }
    }
    if (c.want_lse) {
        const int64_t at = first_difference(got.lse, expected.lse, 1e-5 + sum_error, true);
        if (at >= 0) {
            INFO("lse[" << at << "] is " << got.lse[static_cast<size_t>(at)] << ", expected "
                        << expected.lse[static_cast<size_t>(at)]);
            CHECK(at == -1);
        }
    }
    if (c.scores != 0) {
        const int64_t at = first_difference(got.scores, expected.scores, 2e-6 + sum_error);
        if (at >= 0) {
            INFO("scores[" << at << "] is " << got.scores[static_cast<size_t>(at)] << ", expected "
                           << expected.scores[static_cast<size_t>(at)]);
            CHECK(at == -1);
        }
    }
    for (const uint32_t workers : {2u, 7u}) {
        const EngineResult other = run_engine(entry, c, workers);
        CHECK(other.status == ATTEND_OK);
        CHECK(other.clean);
        CHECK(same_bits(got.output, other.output));
        CHECK(same_bits(got.lse, other.lse));
        CHECK(same_bits(got.scores, other.scores));
    }
}

}  // namespace attend::test
