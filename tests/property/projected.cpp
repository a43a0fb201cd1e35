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
            attend::WeightRequest rows;
            rows.full = true;
            rows.chunk_bytes = static_cast<std::uint64_t>(batch * hq * (n + past)) * 4 * 7;
            const auto again = service().attention_weights(projected, {test.mechanism, options}, rows);
            REQUIRE(again.ok());
            CHECK(same_bits(*again->full, *got.scores));
        }
}

TEST_CASE("options of the projected form of standard-mha") {
    for (std::uint64_t seed = 1; seed <= 4; ++seed) {
        Random random(seed);
        const std::int64_t batch = 1 + random.below(3), heads = 1 + random.below(3), width = 2 + random.below(7),
                           model = heads * width, n = 2 + random.below(20), keys = 2 + random.below(20), kdim = 5,
                           vdim = 9;
        INFO("seed " << seed);
        ForwardInputs inputs;
        inputs.query = normal(random, {batch, n, model});
        inputs.key = normal(random, {batch, keys, kdim});
        inputs.value = normal(random, {batch, keys, vdim});
        const Tensor wq = layer(random, model, model), wk = layer(random, model, kdim), wv = layer(random, model, vdim);
        inputs.weights = {{"wq", wq}, {"wk", wk}, {"wv", wv}};
        NamedValues options = {{"heads", heads}, {"bias", false}, {"kdim", kdim}, {"vdim", vdim}};
        const ForwardResult plain = forward(inputs, "standard-mha", options, true);
        const auto with = [&](const char* name) {
            NamedValues more = options;
            more.emplace_back(name, name != std::string("batch_first") && name != std::string("output_projection"));
            return more;
        };
        // The mean over heads.
        const ForwardResult averaged = forward(inputs, "standard-mha", with("average_weights"), true);
        CHECK(same_bits(averaged.output, plain.output));
        Tensor mean = filled({batch, n, keys}, 0.0f);
        for (std::int64_t b = 0; b < batch; ++b)
            for (std::int64_t h = 0; h < heads; ++h)
                for (std::int64_t i = 0; i < n; ++i)
                    for (std::int64_t j = 0; j < keys; ++j)
                        at(mean, b, i, j) += at(*plain.scores, b, h, i, j) / static_cast<float>(heads);
        CHECK(agree(*averaged.scores, mean));
        // Without the output projection, and with one learned key that masks do not hide.
        ForwardInputs core;
        core.query = heads_of(linear(inputs.query, wq), heads);
        core.key = heads_of(linear(*inputs.key, wk), heads);
        core.value = heads_of(linear(*inputs.value, wv), heads);
        const ForwardResult bare = forward(inputs, "standard-mha", with("output_projection"));
        CHECK(agree(bare.output, packed_heads(forward(core, "standard-mha").output)));
        const Tensor bias_k = normal(random, {model}), bias_v = normal(random, {model});
        const auto appended = [&](const Tensor& to, const Tensor& row) {
            const Tensor all = row.view({batch, heads, 1, width}, {0, width, width, 1});
            return joined(to, all, 2);
        };
        core.key = appended(*core.key, bias_k);
        core.value = appended(*core.value, bias_v);
        core.mask =
            bools({1, 1, n, keys + 1}, [&](const auto& at) { return at[3] == keys || (at[2] + at[3]) % 2 == 0; });
        ForwardInputs learned = inputs;
        learned.mask = bools({1, 1, n, keys}, [](const auto& at) { return (at[2] + at[3]) % 2 == 0; });
        learned.weights.emplace_back("bias_k", bias_k);
        learned.weights.emplace_back("bias_v", bias_v);
        NamedValues both = with("output_projection");
        both.emplace_back("add_bias_kv", true);
        const ForwardResult one = forward(learned, "standard-mha", both), other = forward(core, "standard-mha");
        CHECK(agree(one.output, packed_heads(other.output)));
        CHECK(agree(*one.lse, *other.lse));
        // [N, B, E] in and out.
        const auto turned = [](const Tensor& from) {
            return from.view({from.shape[1], from.shape[0], from.shape[2]},
                             {from.strides[1], from.strides[0], from.strides[2]});
        };
        inputs.query = attend::contiguous_copy(turned(inputs.query)).value();
        inputs.key = attend::contiguous_copy(turned(*inputs.key)).value();
        inputs.value = attend::contiguous_copy(turned(*inputs.value)).value();
        const ForwardResult second = forward(inputs, "standard-mha", with("batch_first"));
        CHECK(agree(attend::contiguous_copy(turned(second.output)).value(), plain.output));
        CHECK(agree(*second.lse, *plain.lse));
    }
}
