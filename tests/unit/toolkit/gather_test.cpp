// SPDX-License-Identifier: Apache-2.0
// The gather engine on its own: rows whose keys are lists of indices, against dense attention that sees exactly those keys.
#include "unit/toolkit/attention_case.hpp"

#include "attend/toolkit/gather.h"

#define ATTEND_TEST_DECLARE_GATHER(entry)                                                        \
    extern "C" uint64_t attend_gather_workspace_##entry(const attend_gather_problem*, uint32_t); \
    extern "C" attend_status attend_gather_forward_##entry(const attend_gather_problem*, const attend_context*);
ATTEND_TEST_ENTRIES(ATTEND_TEST_DECLARE_GATHER)

namespace attend::test {
namespace {

// Which keys a row lists: about `share` of them, drawn by a hash; rows of a group have the list of its first row.
struct Lists {
    uint64_t seed{1};
    double share{0.3};
    int64_t kv_len{0}, group{0}, step{1};  // step 2: even keys alone
    bool heads_share{false};

    bool has(int64_t batch, int64_t head, int64_t row, int64_t key) const {
        if (key % step != 0) return false;
        const int64_t first = group > 1 ? row / group * group : row;
        uint64_t mix = seed;
        for (const int64_t part : {batch, heads_share ? int64_t{0} : head, first, key}) {
            mix = (mix ^ static_cast<uint64_t>(part)) * 0x9E3779B97F4A7C15ull;
            mix ^= mix >> 29;
        }
        return static_cast<double>(mix >> 11) * 0x1p-53 < share;
    }
    static int64_t write(const void* user, int64_t batch, int64_t head, int64_t row, int64_t, int64_t, int32_t* list,
                         int32_t*) {
        const Lists& self = *static_cast<const Lists*>(user);
        int64_t count = 0;
        for (int64_t key = 0; key < self.kv_len; ++key)
            if (self.has(batch, head, row, key)) list[count++] = static_cast<int32_t>(key);
        return count;
    }
};

// What the tile problem of the test's runner becomes; the runner knows engines by their tile functions alone.
const Lists* lists_now = nullptr;
attend_gather_problem gather_of(const attend_tile_problem* call) {
    attend_gather_problem problem{};
    problem.call = call;
    problem.flags = lists_now->heads_share ? ATTEND_GATHER_HEADS_SHARE : 0u;
    problem.keys = Lists::write;
    problem.keys_user = lists_now;
    problem.most_keys = lists_now->kv_len;
    problem.group_rows = lists_now->group;
    return problem;
}
#define ATTEND_TEST_GATHER_FUNCTIONS(entry)                                                                \
    uint64_t gather_workspace_##entry(const attend_tile_problem* call, uint32_t workers) {                 \
        const attend_gather_problem problem = gather_of(call);                                             \
        return attend_gather_workspace_##entry(&problem, workers);                                         \
    }                                                                                                      \
    attend_status gather_forward_##entry(const attend_tile_problem* call, const attend_context* context) { \
        const attend_gather_problem problem = gather_of(call);                                             \
        return attend_gather_forward_##entry(&problem, context);                                           \
    }
ATTEND_TEST_ENTRIES(ATTEND_TEST_GATHER_FUNCTIONS)

Entry gathering(const Entry& entry) {
    Entry gather = entry;
#define ATTEND_TEST_GATHER_ENTRY(isa)                   \
    if (std::strcmp(entry.name, #isa) == 0) {           \
        gather.tile_workspace = gather_workspace_##isa; \
        gather.tile_forward = gather_forward_##isa;     \
    }
    ATTEND_TEST_ENTRIES(ATTEND_TEST_GATHER_ENTRY)
    return gather;
}

void check_lists(AttentionCase c, Lists lists, uint64_t seed, bool poison = false) {
    lists.kv_len = c.kv_len;
    lists.seed = seed;
    if (poison) lists.step = 2;
    Random random(seed);
    c.fill(random);
    c.round_inputs();
    for (int64_t row = 0; poison && row < c.batch * c.kv_heads * c.kv_len; ++row) {
        if (row % c.kv_len % 2 == 0) continue;
        std::fill_n(c.k.begin() + row * c.head_dim, c.head_dim, nan_value);
        std::fill_n(c.v.begin() + row * c.value_dim, c.value_dim, nan_value);
    }
    c.sees = [&lists](int64_t b, int64_t h, int64_t i, int64_t, int64_t j) { return lists.has(b, h, i, j); };
    const AttentionResult expected = oracle(c);
    lists_now = &lists;
    INFO("group " << lists.group << ", heads share " << lists.heads_share << ", share " << lists.share);
    for_each_entry([&](const Entry& entry) { check_case(gathering(entry), c, expected); });
    lists_now = nullptr;
}

}  // namespace

TEST_CASE("gather: awkward sizes", "[toolkit]") {
    uint64_t seed = 1;
    for (const int64_t q_len : {1, 2, 7, 8, 9, 49})
        for (const int64_t kv_len : {1, 2, 15, 17, 129}) {
            AttentionCase c;
            c.batch = 1 + static_cast<int64_t>(seed % 2);
            c.kv_heads = 1 + static_cast<int64_t>(seed % 3);
            c.q_heads = c.kv_heads * (1 + static_cast<int64_t>(seed / 3 % 2));
            c.q_len = q_len;
            c.kv_len = kv_len;
            const int64_t widths[] = {1, 3, 63, 64, 65, 72};
            c.head_dim = widths[seed % 6];
            c.value_dim = widths[(seed * 5 + seed / 6) % 6];
            Lists lists;
            const double shares[] = {0.0, 0.1, 0.5, 1.0};
            lists.share = shares[seed % 4];
            check_lists(c, lists, seed++);
        }
}

TEST_CASE("gather: lists that rows share", "[toolkit]") {
    uint64_t seed = 100;
    for (const int64_t group : {0, 1, 3, 7, 8, 9, 16, 50})
        for (const bool heads_share : {false, true})
            for (const bool causal : {false, true}) {
                AttentionCase c;
                c.batch = 2;
                c.q_heads = 4;
                c.kv_heads = 2;
                c.q_len = 37;
                c.kv_len = 61;
                c.value_dim = 19;
                c.causal = causal;
                c.offset = 20;
                c.scores = static_cast<int>(seed % 2);
                c.layout = seed % 4 < 2 ? Strides::packed : Strides::spread;
                Lists lists;
                lists.group = group;
                lists.heads_share = heads_share;
                check_lists(c, lists, seed++);
            }
}

TEST_CASE("gather: keys that no list names hold NaN", "[toolkit]") {
    uint64_t seed = 200;
    for (const int64_t group : {1, 8, 24})
        for (const Stored type : {Stored::f32, Stored::bf16, Stored::f16}) {
            AttentionCase c;
            c.q_len = 24;
            c.kv_len = 50;
            c.q_type = c.kv_type = c.out_type = type;
            Lists lists;
            lists.group = group;
            check_lists(c, lists, seed++, true);
        }
}

TEST_CASE("gather: types, masks, biases, windows, lengths, dropout and softcap", "[toolkit]") {
    Random random(7);
    for (uint64_t seed = 300; seed < 360; ++seed) {
        AttentionCase c;
        c.batch = random.whole(1, 2);
        c.kv_heads = random.whole(1, 2);
        c.q_heads = c.kv_heads * random.whole(1, 3);
        c.q_len = random.whole(1, 40);
        c.kv_len = random.whole(1, 80);
        c.head_dim = random.whole(1, 70);
        c.value_dim = random.whole(1, 70);
        c.scale = 1.0 / std::sqrt(static_cast<double>(c.head_dim));
        c.layout = random.pick({Strides::packed, Strides::swapped, Strides::reversed, Strides::spread});
        c.q_type = c.out_type = random.pick({Stored::f32, Stored::bf16, Stored::f16});
        c.kv_type = c.q_type == Stored::f32 ? random.pick({Stored::f32, Stored::bf16, Stored::f16}) : c.q_type;
        c.causal = random.chance(0.4);
        c.offset = random.whole(-3, 20);
        if (random.chance(0.3)) c.window_left = random.whole(0, 20);
        if (random.chance(0.3)) c.window_right = random.whole(0, 20);
        c.use_mask = random.chance(0.4);
        c.use_bias = random.chance(0.4);
        c.bias_hides = random.chance(0.5);
        c.broadcast_heads = random.chance(0.3);
        c.broadcast_queries = random.chance(0.3);
        if (random.chance(0.3)) c.softcap = 2.0;
        if (random.chance(0.3)) c.dropout = 0.25, c.seed = seed, c.rng_offset = 3;
        if (random.chance(0.4))
            for (int64_t b = 0; b < c.batch; ++b) {
                c.query_lengths.push_back(random.whole(0, c.q_len));
                c.key_lengths.push_back(random.whole(0, c.kv_len));
            }
        c.scores = random.chance(0.3) ? 1 : 0;
        Lists lists;
        lists.group = random.pick<int64_t>({0, 1, 4, 8, 13});
        lists.heads_share = random.chance(0.5);
        check_lists(c, lists, seed, random.chance(0.3));
    }
}

TEST_CASE("gather: refusals", "[toolkit]") {
    Lists lists;
    lists.kv_len = 33;
    lists_now = &lists;
    Random random(5);
    AttentionCase c;
    c.fill(random);
    for_each_entry([&](const Entry& entry) {
        AttentionCase two = c;
        two.cache = 10;
        CHECK(run_engine(gathering(entry), two, 1).status == ATTEND_UNSUPPORTED);
        AttentionCase mean = c;
        mean.scores = 2;
        const EngineResult refused = run_engine(gathering(entry), mean, 1);
        CHECK(refused.status == ATTEND_UNSUPPORTED);
        CHECK(refused.text.find("accepted: one segment") != std::string::npos);
    });
    lists_now = nullptr;
}

}  // namespace attend::test
