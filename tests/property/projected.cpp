// SPDX-License-Identifier: Apache-2.0
// The projected forms: projections by plain loops in double precision around the core form give what the projected form
// gives, for every mechanism with wq, wk, wv and wo; with biases, fewer key heads, other widths and a cache.
#include "identities/identities.hpp"

namespace {

using namespace identities;

struct Case {
    const char* mechanism;
    bool grouped, widths, cache;
    NamedValues bias_options;  // that switch biases on
    NamedValues core_options;  // of both forms
};
const Case cases[] = {
    {"standard-mha", false, false, false, {}, {{"causal", true}}},
    {"grouped-query-attention", true, true, true, {{"bias", true}, {"output_bias", true}}, {{"causal", true}}},
    {"multi-query-attention", true, true, true, {{"bias", true}, {"output_bias", true}}, {{"window_size", 9}}},
    {"bidirectional-self-attention", false, false, true, {}, {{"softcap", 3.0}}},
    {"causal-self-attention", true, false, true, {}, {{"window_left", 6}}},
};

}  // namespace

TEST_CASE("the projected form is the core form between projections") {
    for (const Case& test : cases)
        for (std::uint64_t seed = 1; seed <= 6; ++seed) {
            Random random(seed);
            const bool single = std::string(test.mechanism) == "multi-query-attention";
            const bool packed = std::string(test.mechanism) == "causal-self-attention";
            const std::int64_t kv = single ? 1 : 1 + random.below(3),
                               hq = kv * (test.grouped ? 1 + random.below(3) : 1);
            const std::int64_t batch = 1 + random.below(2), n = 1 + random.below(40);
            const std::int64_t past = test.cache && seed > 2 ? random.below(30) : 0;
            std::int64_t d = 2 + random.below(12), model = hq * d;
            const std::int64_t dv = test.widths && seed % 2 == 0 ? 2 + random.below(12) : d;
            if (test.widths && seed % 3 == 0) model = 5 + random.below(40);
            INFO(test.mechanism << " seed " << seed << ": Hq " << hq << " Hkv " << kv << " D " << d << " Dv " << dv
                                << " E " << model << " N " << n << " Np " << past);
            const Tensor x = normal(random, {batch, n, model});
            Tensor wq = layer(random, hq * d, model), wk = layer(random, kv * d, model),
                   wv = layer(random, kv * dv, model), wo = layer(random, model, hq * dv);
            Tensor bq = normal(random, {hq * d}), bk = normal(random, {kv * d}), bv = normal(random, {kv * dv}),
                   bo = normal(random, {model});
            ForwardInputs projected;
            projected.query = x;
            if (packed)
                projected.weights = {{"wqkv", joined(joined(wq, wk, 0), wv, 0)},
                                     {"bqkv", joined(joined(bq, bk, 0), bv, 0)},
                                     {"wo", wo},
                                     {"bo", bo}};
            else
                projected.weights = {{"wq", wq}, {"wk", wk}, {"wv", wv}, {"wo", wo},
                                     {"bq", bq}, {"bk", bk}, {"bv", bv}, {"bo", bo}};
            NamedValues options = test.core_options;
            options.insert(options.end(), test.bias_options.begin(), test.bias_options.end());
            options.emplace_back("heads", hq);
            if (test.grouped && !single) options.emplace_back("kv_heads", kv);
            if (model != hq * d) options.emplace_back("head_dim", d);
            if (dv != d) options.emplace_back("value_dim", dv);
            ForwardInputs core;
            core.query = heads_of(linear(x, wq, &bq), hq);
            core.key = heads_of(linear(x, wk, &bk), kv);
            core.value = heads_of(linear(x, wv, &bv), kv);
            if (past > 0) {
                const Tensor key = normal(random, {batch, kv, past, d}), value = normal(random, {batch, kv, past, dv});
                projected.extra = {{"past_key", key}, {"past_value", value}};
                core.key = joined(key, *core.key, 2);
                core.value = joined(value, *core.value, 2);
            }
            const ForwardResult got = forward(projected, test.mechanism, options, true);
            const ForwardResult middle = forward(core, test.mechanism, test.core_options, true);
            CHECK(agree(got.output, linear(packed_heads(middle.output), wo, &bo)));
            CHECK(agree(*got.lse, *middle.lse));
            CHECK(agree(*got.scores, *middle.scores));
        }
}
