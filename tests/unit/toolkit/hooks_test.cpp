// SPDX-License-Identifier: Apache-2.0
// The tile engine's hooks: what each may change, against oracles of the problem that the changes amount to.
#include "unit/toolkit/attention_case.hpp"

namespace attend::test {
namespace {

AttentionCase draw(Random& random) {
    AttentionCase c;
    c.batch = random.whole(1, 2);
    c.kv_heads = random.whole(1, 2);
    c.q_heads = c.kv_heads * random.pick<int64_t>({1, 3});
    c.q_len = random.pick<int64_t>({1, 5, 16, 49, 150, 420});
    c.kv_len = random.pick<int64_t>({1, 7, 33, 128, 200, 300});
    c.head_dim = random.pick<int64_t>({3, 16, 40});
    c.value_dim = random.pick<int64_t>({4, 16, 33});
    c.scale = 0.3;
    c.causal = random.chance(0.5);
    c.offset = c.kv_len - c.q_len;
    c.use_mask = random.chance(0.3);
    c.layout = random.pick({Strides::packed, Strides::swapped, Strides::reversed, Strides::spread});
    if (random.chance(0.3)) c.max_query_tile = random.whole(1, 40);
    if (random.chance(0.3)) c.max_key_tile = random.whole(1, 100);
    if (random.chance(0.3)) c.q_type = c.kv_type = c.out_type = random.pick({Stored::bf16, Stored::f16});
    if (random.chance(0.2)) c.wild = 0.05;
    c.fill(random);
    c.round_inputs();
    return c;
}

template <class Make>
void many(uint64_t seed, Make make) {
    for (uint64_t at = 0; at < 25; ++at) {
        Random random(seed + at);
        AttentionCase c = draw(random);
        make(c, random);
    }
}

void check_everywhere(const AttentionCase& c, const AttentionResult& expected) {
    for_each_entry([&](const Entry& entry) { check_case(entry, c, expected, 1e-5); });
}

constexpr int64_t max_test_lanes = 64;

TEST_CASE("tile hooks: queries and keys may be changed after they were loaded", "[toolkit]") {
    many(100, [](AttentionCase& c, Random&) {
        attend_tile_hooks hooks{};
        hooks.flags = ATTEND_HOOKS_CHANGE_KEYS;
        hooks.user = &c;
        hooks.queries = [](const void* user, const attend_query_tile* tile) {
            const auto& self = *static_cast<const AttentionCase*>(user);
            for (int64_t d = 0; d < self.head_dim; ++d)
                for (int64_t lane = 0; lane < tile->lane_stride; ++lane)
                    tile->queries[d * tile->lane_stride + lane] *=
                        static_cast<float>(1 + (d + tile->lane_row[lane]) % 3);
        };
        hooks.keys = [](const void* user, const attend_key_block* block) {
            const auto& self = *static_cast<const AttentionCase*>(user);
            for (int64_t row = 0; row < block->num_keys; ++row)
                for (int64_t d = 0; d < self.head_dim; ++d)
                    if ((block->first_key + row + block->kv_head + d) % 2 != 0)
                        block->keys[row * block->row_stride + d] *= -1.0f;
        };
        AttentionCase changed = c;
        for (int64_t at = 0; at < static_cast<int64_t>(c.q.size()); ++at)
            changed.q[static_cast<size_t>(at)] *=
                static_cast<float>(1 + (at % c.head_dim + at / c.head_dim % c.q_len) % 3);
        for (int64_t at = 0; at < static_cast<int64_t>(c.k.size()); ++at) {
            const int64_t d = at % c.head_dim, j = at / c.head_dim % c.kv_len,
                          head = at / c.head_dim / c.kv_len % c.kv_heads;
            if ((j + head + d) % 2 != 0) changed.k[static_cast<size_t>(at)] *= -1.0f;
        }
        const AttentionResult expected = oracle(changed);
        c.hooks = &hooks;
        check_everywhere(c, expected);
    });
}

TEST_CASE("tile hooks: content joins the scores before the soft cap, with queries, keys and memory at hand",
          "[toolkit]") {
    many(200, [](AttentionCase& c, Random& random) {
        c.softcap = random.pick({0.0, 1.5});
        attend_tile_hooks hooks{};
        hooks.user = &c;
        hooks.tile_floats = max_test_lanes;
        hooks.block_floats = 128;
        hooks.scratch_floats = max_test_lanes;
        hooks.queries = [](const void*, const attend_query_tile* tile) {
            for (int64_t lane = 0; lane < tile->lane_stride; ++lane)
                tile->memory[lane] = static_cast<float>(tile->lane_row[lane] % 4);
        };
        hooks.keys = [](const void*, const attend_key_block* block) {
            for (int64_t row = 0; row < block->num_keys; ++row)
                block->memory[row] = static_cast<float>((block->first_key + row) % 5);
        };
        // Doubles the product, and adds (i mod 4) (j mod 5) / 8.
        hooks.content = [](const void* user, const attend_score_tile* tile) {
            const auto& self = *static_cast<const AttentionCase*>(user);
            const attend_query_tile& queries = *tile->queries;
            const attend_key_block& block = *tile->block;
            for (int64_t row = 0; row < tile->num_keys; ++row) {
                const int64_t at = tile->first_key - block.first_key + row;
                for (int64_t lane = 0; lane < queries.lane_stride; ++lane) {
                    float& sum = tile->scratch[lane];
                    sum = queries.memory[lane] * block.memory[at] / 8;
                    for (int64_t d = 0; d < self.head_dim; ++d)
                        sum += queries.queries[d * queries.lane_stride + lane] *
                               block.keys[at * block.row_stride + d * block.feature_stride];
                    tile->scores[row * queries.lane_stride + lane] += sum;
                }
            }
        };
        // One feature more makes the same scores.
        AttentionCase wide = c;
        wide.head_dim = c.head_dim + 1;
        wide.scale = 2 * c.scale;
        const auto widen = [&](const std::vector<float>& from, int64_t rows, int64_t length, auto last) {
            std::vector<float> to;
            for (int64_t row = 0; row < rows; ++row) {
                to.insert(to.end(), from.begin() + row * c.head_dim, from.begin() + (row + 1) * c.head_dim);
                to.push_back(static_cast<float>(last(row % length)));
            }
            return to;
        };
        wide.q = widen(c.q, c.batch * c.q_heads * c.q_len, c.q_len, [](int64_t i) { return i % 4; });
        wide.k = widen(c.k, c.batch * c.kv_heads * c.kv_len, c.kv_len,
                       [&](int64_t j) { return static_cast<double>(j % 5) / 8 / wide.scale; });
        const AttentionResult expected = oracle(wide);
        c.hooks = &hooks;
        check_everywhere(c, expected);
    });
}

TEST_CASE("tile hooks: sums of weights follow the softmax, and finish changes what is stored", "[toolkit]") {
    many(300, [](AttentionCase& c, Random&) {
        c.wild = 0.0;
        c.scores = 1;
        const AttentionResult plain = oracle(c);
        attend_tile_hooks hooks{};
        hooks.flags = ATTEND_HOOKS_LSE;
        hooks.num_sums = 2;
        hooks.weights = [](const void*, const attend_score_tile* tile, float* sums) {
            const int64_t lanes = tile->queries->lane_stride;
            for (int64_t row = 0; row < tile->num_keys; ++row)
                for (int64_t lane = 0; lane < lanes; ++lane) {
                    const bool past = tile->first_key + row <= tile->queries->lane_position[lane];
                    sums[(past ? 0 : lanes) + lane] += tile->scores[row * lanes + lane];
                }
        };
        hooks.finish = [](const void*, const attend_finished_tile* tile) {
            const int64_t lanes = tile->queries->lane_stride;
            for (int64_t lane = 0; lane < lanes; ++lane) {
                tile->values[lane] += 3 * tile->sums[lane] - tile->sums[lanes + lane];
                tile->lse[lane] += 0.5f;
            }
        };
        AttentionResult expected = plain;
        for (int64_t at = 0; at < c.batch * c.q_heads * c.q_len; ++at) {
            for (int64_t j = 0; j < c.kv_len; ++j) {
                const double term =
                    (j <= at % c.q_len + c.offset ? 3.0 : -1.0) * plain.scores[static_cast<size_t>(at * c.kv_len + j)];
                expected.output[static_cast<size_t>(at * c.value_dim)] += term;
                expected.size[static_cast<size_t>(at * c.value_dim)] += std::fabs(term);
            }
            expected.lse[static_cast<size_t>(at)] += 0.5;
        }
        c.hooks = &hooks;
        check_everywhere(c, expected);
    });
}

TEST_CASE("tile hooks: several softmax maps over the same values", "[toolkit]") {
    many(400, [](AttentionCase& c, Random& random) {
        c.wild = 0.0;
        c.q_type = c.kv_type = c.out_type = Stored::f32;
        c.seed = 7;
        c.dropout = random.pick({0.0, 0.3});
        c.broadcast_heads = true;
        c.dropout_heads = 2 * c.q_heads;
        c.fill(random);  // the mask is one for all heads
        Random again(static_cast<uint64_t>(random.whole(0, 1000)));
        AttentionCase second = c;
        second.fill(again);
        second.v = c.v;
        second.mask = c.mask;
        second.dropout_head = c.q_heads;
        Strided<float> q[2], k[2], lse[2];
        attend_tensor query[2], key[2], logs[2];
        for (size_t map = 0; map < 2; ++map) {
            const AttentionCase& from = map == 0 ? c : second;
            q[map] = Strided<float>({c.batch, c.q_heads, c.q_len, c.head_dim}, c.layout, from.q);
            k[map] = Strided<float>({c.batch, c.kv_heads, c.kv_len, c.head_dim}, Strides::packed, from.k);
            lse[map] = Strided<float>({c.batch, c.q_heads, c.q_len}, Strides::swapped,
                                      std::vector<float>(static_cast<size_t>(c.batch * c.q_heads * c.q_len)));
            query[map] = q[map].tensor();
            key[map] = k[map].tensor();
            logs[map] = lse[map].tensor();
        }
        const attend_softmax_map maps[2] = {{&query[0], nullptr, 0, 1}, {&query[1], &logs[1], c.q_heads, 1}};
        const attend_tensor* keys[2] = {&key[0], &key[1]};
        attend_tile_hooks hooks{};
        hooks.num_maps = 2;
        hooks.user = &c;
        hooks.maps = maps;
        hooks.finish = [](const void* user, const attend_finished_tile* tile) {
            const auto& self = *static_cast<const AttentionCase*>(user);
            for (int64_t at = 0; at < self.value_dim * tile->queries->lane_stride; ++at)
                tile->values[at] -= 0.5f * tile->map_values[1][at];
        };
        const AttentionResult first = oracle(c), other = oracle(second);
        AttentionResult expected = first;
        for (size_t at = 0; at < expected.output.size(); ++at) {
            expected.output[at] -= 0.5 * other.output[at];
            expected.size[at] += 0.5 * other.size[at];
        }
        c.hooks = &hooks;
        c.map_key = keys;
        for_each_entry([&](const Entry& entry) {
            check_case(entry, c, expected, 1e-5);
            CHECK(first_difference(lse[1].values(), other.lse, 1e-5, true) == -1);
        });
    });
}

// Map 0 sees all keys, 1 every second, 2 those near the query.
bool map_sees(int64_t map, int64_t position, int64_t j) {
    return map == 0 || (map == 1 ? j % 2 == 0 : std::abs(position - j) < 9);
}
constexpr float shares[3] = {0.5f, 0.3f, 0.2f};

TEST_CASE("tile hooks: maps that share scores keep a softmax each", "[toolkit]") {
    many(500, [](AttentionCase& c, Random&) {
        c.scores = 1;
        attend_tile_hooks hooks{};
        hooks.flags = ATTEND_HOOKS_SHARED_SCORES;
        hooks.num_maps = 3;
        hooks.user = &c;
        hooks.map_keys = [](const void*, const attend_query_tile* tile, int64_t begin, int64_t end) {
            if (tile->map == 0) return ATTEND_KEYS_ALL;
            if (tile->map == 1) return ATTEND_KEYS_SOME;
            return end + 9 <= tile->first_position || begin > tile->last_position + 9 ? ATTEND_KEYS_NONE
                                                                                      : ATTEND_KEYS_SOME;
        };
        hooks.finish = [](const void* user, const attend_finished_tile* tile) {
            const auto& self = *static_cast<const AttentionCase*>(user);
            for (int64_t at = 0; at < self.value_dim * tile->queries->lane_stride; ++at)
                tile->values[at] = shares[0] * tile->values[at] + shares[1] * tile->map_values[1][at] +
                                   shares[2] * tile->map_values[2][at];
        };
        hooks.map_share = [](const void*, const attend_query_tile* tile, float* share) {
            for (int64_t lane = 0; lane < tile->lane_stride; ++lane) share[lane] = shares[tile->map];
        };
        AttentionResult expected;
        for (int64_t map = 0; map < 3; ++map) {
            AttentionCase one = c;
            one.sees = [map](int64_t, int64_t, int64_t, int64_t position, int64_t j) {
                return map_sees(map, position, j);
            };
            const AttentionResult part = oracle(one);
            if (map == 0) {
                expected = part;
                for (std::vector<double>* list : {&expected.output, &expected.size, &expected.scores})
                    std::fill(list->begin(), list->end(), 0.0);
            }
            for (size_t at = 0; at < part.output.size(); ++at) {
                expected.output[at] += static_cast<double>(shares[map]) * part.output[at];
                expected.size[at] += static_cast<double>(shares[map]) * part.size[at];
            }
            for (size_t at = 0; at < part.scores.size(); ++at)
                expected.scores[at] += static_cast<double>(shares[map]) * part.scores[at];
        }
        c.hooks = &hooks;
        c.keep = [](const void*, const attend_score_tile* tile) {
            const int64_t lanes = tile->queries->lane_stride;
            for (int64_t row = 0; row < tile->num_keys; ++row)
                for (int64_t lane = 0; lane < lanes; ++lane)
                    if (!map_sees(tile->queries->map, tile->queries->lane_position[lane], tile->first_key + row))
                        tile->scores[row * lanes + lane] = -std::numeric_limits<float>::infinity();
        };
        check_everywhere(c, expected);
    });
}

TEST_CASE("tile hooks: closed ranges that finish merges by their LSE equal one softmax", "[toolkit]") {
    many(600, [](AttentionCase& c, Random&) {
        const AttentionResult expected = oracle(c);
        attend_tile_hooks hooks{};
        hooks.flags = ATTEND_HOOKS_LSE;
        hooks.user = &c;
        hooks.tile_floats = (c.value_dim + 1) * max_test_lanes;
        hooks.queries = [](const void* user, const attend_query_tile* tile) {
            const auto& self = *static_cast<const AttentionCase*>(user);
            for (int64_t at = 0; at < self.value_dim * tile->lane_stride; ++at) tile->memory[at] = 0.0f;
            for (int64_t lane = 0; lane < tile->lane_stride; ++lane)
                tile->memory[self.value_dim * tile->lane_stride + lane] = -std::numeric_limits<float>::infinity();
        };
        hooks.close = [](const void* user, const attend_finished_tile* tile) {
            const auto& self = *static_cast<const AttentionCase*>(user);
            const int64_t lanes = tile->queries->lane_stride;
            float* sum = tile->queries->memory;
            float* logs = sum + self.value_dim * lanes;
            for (int64_t lane = 0; lane < lanes; ++lane) {
                const float both = std::fmax(logs[lane], tile->lse[lane]);
                if (both == -std::numeric_limits<float>::infinity()) continue;
                const float a = std::exp(logs[lane] - both), b = std::exp(tile->lse[lane] - both);
                for (int64_t d = 0; d < self.value_dim; ++d) {
                    float& at = sum[d * lanes + lane];
                    at = ((a == 0 ? 0 : a * at) + (b == 0 ? 0 : b * tile->values[d * lanes + lane])) / (a + b);
                }
                logs[lane] = both + std::log(a + b);
            }
        };
        hooks.finish = [](const void* user, const attend_finished_tile* tile) {
            const auto& self = *static_cast<const AttentionCase*>(user);
            const int64_t lanes = tile->queries->lane_stride, count = self.value_dim * lanes;
            for (int64_t at = 0; at < count; ++at) tile->values[at] = tile->queries->memory[at];
            for (int64_t lane = 0; lane < lanes; ++lane) tile->lse[lane] = tile->queries->memory[count + lane];
        };
        c.keys = [](const void*, const attend_query_tile* tile, attend_key_visit_fn visit, void* visitor) {
            const int64_t cuts[] = {0, 3, 40, 41, 170, tile->kv_len};
            for (size_t at = 0; at + 1 < std::size(cuts); ++at)
                if (cuts[at] < std::min(cuts[at + 1], tile->kv_len))
                    visit(visitor, cuts[at], std::min(cuts[at + 1], tile->kv_len), 0);
        };
        c.hooks = &hooks;
        if (c.wild == 0.0) check_everywhere(c, expected);
    });
}

TEST_CASE("tile hooks: what does not fit together is refused", "[toolkit]") {
    Random random(1);
    AttentionCase c = draw(random);
    const auto refused = [&](const attend_tile_hooks& hooks, const char* what) {
        AttentionCase bad = c;
        bad.hooks = &hooks;
        const EngineResult got = run_engine(entries[0], bad, 1);
        CHECK(got.status != ATTEND_OK);
        INFO(got.text);
        CHECK(got.text.find(what) != std::string::npos);
    };
    attend_tile_hooks hooks{};
    hooks.num_maps = 17;
    refused(hooks, "at most 16 maps");
    hooks.num_maps = 2;
    refused(hooks, "a description of each map");
    hooks = {};
    hooks.num_sums = -1;
    refused(hooks, "sizes of 0 or more");
    hooks = {};
    hooks.close = [](const void*, const attend_finished_tile*) {};
    refused(hooks, "close together with finish");
}

}  // namespace
}  // namespace attend::test
