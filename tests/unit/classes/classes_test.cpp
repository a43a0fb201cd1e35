// SPDX-License-Identifier: Apache-2.0
// Every option and method of the typed classes, by the table in tests/data/classes.txt, does something that shows.
#include <cmath>
#include <fstream>
#include <functional>
#include <sstream>

#include "attend/attention.hpp"
#include "attend/masks.hpp"
#include "support/calls.hpp"

namespace {

using namespace support;
using attend::CrossAttention;
using attend::FlashAttention;
using attend::GroupedQueryAttention;
using attend::LinearAttention;
using attend::MultiHeadAttention;
using attend::NamedTensors;
using attend::SlidingWindowAttention;
using attend::Tensor;

std::shared_ptr<attend::AttentionService> shared() {
    return {&support::service(), [](attend::AttentionService*) {}};  // the tests' own outlives everything here
}
template <class Class, class Options>
Class made(const Options& options) {
    auto layer = Class::create(shared(), options);
    if (!layer) FAIL(layer.error().message);
    return std::move(*layer);
}
template <class Class, class Options>
std::string refusal(const Options& options) {
    const auto layer = Class::create(shared(), options);
    REQUIRE_FALSE(layer.ok());
    return layer.error().message;
}
std::vector<float> numbers(const attend::Result<Tensor>& tensor) {
    if (!tensor) FAIL(tensor.error().message);
    const Tensor plain = attend::contiguous_copy(*tensor).value();
    return {plain.as<const float>(), plain.as<const float>() + plain.size()};
}
double apart(const attend::Result<Tensor>& a, const attend::Result<Tensor>& b) {
    const std::vector<float> x = numbers(a), y = numbers(b);
    REQUIRE(x.size() == y.size());
    double most = 0;
    for (std::size_t at = 0; at < x.size(); ++at)
        most = std::max(most, std::abs(static_cast<double>(x[at]) - static_cast<double>(y[at])));
    return most;
}
constexpr double visible = 1e-3, same = 2e-5;

// [2, rows, width] of a seed.
Tensor tensor(std::int64_t rows, std::int64_t width, std::uint64_t seed) {
    Random random(seed);
    return normal(random, {2, rows, width});
}
struct Packed {
    Tensor q, k, v;
};
Packed packed(std::int64_t width, std::int64_t key_width = 0) {
    const std::int64_t other = key_width == 0 ? width : key_width;
    return {tensor(9, width, 1), tensor(13, other, 2), tensor(13, other, 3)};
}
attend::Result<Tensor> by_name(const std::string& mechanism, const Packed& t, std::int64_t heads,
                               attend::NamedValues options, std::int64_t kv_heads = 0) {
    attend::ForwardInputs inputs;
    inputs.query = t.q;
    inputs.key = t.k;
    inputs.value = t.v;
    attend::ForwardOptions call;
    call.mechanism = mechanism;
    call.options = std::move(options);
    call.heads = heads;
    call.kv_heads = kv_heads;
    auto result = support::service().forward(inputs, call);
    if (!result) return result.error();
    return std::move(result->output);
}
template <class Options>
attend::Result<Tensor> flash(const Options& options, const Packed& t) {
    return made<FlashAttention>(options).forward(t.q, t.k, t.v);
}
using Flash = attend::FlashAttentionOptions;
using Heads = attend::MultiHeadAttentionOptions;
using Cross = attend::CrossAttentionOptions;
using Linear = attend::LinearAttentionOptions;
using Window = attend::SlidingWindowAttentionOptions;
using Grouped = attend::GroupedQueryAttentionOptions;
using Shape = std::vector<std::int64_t>;

// The difference that one change of the options makes.
template <class Class, class Options>
double change(const Options& before, const Options& after, const Packed& t) {
    return apart(made<Class>(before).forward(t.q, t.k, t.v), made<Class>(after).forward(t.q, t.k, t.v));
}
const Flash small_flash{.heads = 2, .dim = 16};
const Heads small_heads{.model_dim = 24, .heads = 4};
const Cross small_cross{.query_dim = 24, .key_dim = 40, .heads = 4};
const Linear small_linear{.dim = 16, .heads = 2};
const Window small_window{.window_size = 2, .heads = 2, .dim = 16};
const Grouped small_grouped{.query_heads = 4, .kv_heads = 2, .dim = 8};

template <class Options, class Change>
Options with(Options options, Change change) {
    change(options);
    return options;
}

const std::map<std::string, std::function<void()>>& checks() {
    static const std::map<std::string, std::function<void()>> all{
        {"FlashAttention.heads",
         [] {
             CHECK(Flash{}.heads == 8);
             const Packed t = packed(32);
             CHECK(change<FlashAttention>(small_flash, with(small_flash, [](Flash& o) { o.heads = 4, o.dim = 8; }), t) >
                   visible);
             CHECK(refusal<FlashAttention>(Flash{.heads = 0}).find("heads") != std::string::npos);
         }},
        {"FlashAttention.dim",
         [] {
             CHECK(Flash{}.dim == 64);
             const auto refused =
                 made<FlashAttention>(small_flash).forward(tensor(3, 30, 1), tensor(3, 32, 1), tensor(3, 32, 1));
             REQUIRE_FALSE(refused.ok());
             CHECK(refused.error().message == "FlashAttention: query is [2, 3, 30]; accepted: [batch, sequence, 32]");
         }},
        {"FlashAttention.block_size",
         [] {
             CHECK(Flash{}.block_size == 256);
             CHECK(change<FlashAttention>(small_flash, with(small_flash, [](Flash& o) { o.block_size = 16; }),
                                          packed(32)) <= same);
             CHECK(refusal<FlashAttention>(Flash{.block_size = 5000}).find("4096") != std::string::npos);
             CHECK(made<FlashAttention>(Flash{.block_size = 32}).options()[2].second == attend::Json(32));
         }},
        {"FlashAttention.causal",
         [] {
             CHECK_FALSE(Flash{}.causal);
             const Flash causal = with(small_flash, [](Flash& o) { o.causal = true; });
             CHECK(change<FlashAttention>(small_flash, causal, packed(32)) > visible);
             CHECK(apart(flash(causal, packed(32)), by_name("flash-attention-v2", packed(32), 2, {{"causal", true}})) ==
                   0);
         }},
        {"FlashAttention.dropout",
         [] {
             CHECK(Flash{}.dropout == 0.0);
             CHECK(change<FlashAttention>(small_flash, with(small_flash, [](Flash& o) { o.dropout = 0.5; }),
                                          packed(32)) > visible);
             CHECK(refusal<FlashAttention>(Flash{.dropout = 1.0}).find("dropout") != std::string::npos);
         }},
        {"FlashAttention.scale",
         [] {
             const Packed t = packed(32);
             CHECK(change<FlashAttention>(small_flash, with(small_flash, [](Flash& o) { o.scale = 0.25; }), t) ==
                   0);  // 1/sqrt(16)
             CHECK(change<FlashAttention>(small_flash, with(small_flash, [](Flash& o) { o.scale = 1.0; }), t) >
                   visible);
         }},
        {"FlashAttention.window_size",
         [] {
             CHECK(Flash{}.window_size == 0);
             CHECK(change<FlashAttention>(small_flash, with(small_flash, [](Flash& o) { o.window_size = 1; }),
                                          packed(32)) > visible);
         }},
        {"FlashAttention.softcap",
         [] {
             CHECK(Flash{}.softcap == 0.0);
             CHECK(change<FlashAttention>(small_flash, with(small_flash, [](Flash& o) { o.softcap = 0.5; }),
                                          packed(32)) > visible);
         }},
        {"FlashAttention.forward",
         [] {
             const Packed t = packed(32);
             FlashAttention layer = made<FlashAttention>(small_flash);
             const auto output = layer.forward(t.q, t.k, t.v);
             REQUIRE(output.ok());
             CHECK(output->shape == t.q.shape);
             const attend::Mask window =
                 attend::create_mask("sliding", 0, {.q_len = 9, .k_len = 13, .window_size = 1}).value();
             const Tensor two = window.to_dense().value();
             const Tensor mask = two.view({1, 9, 13}, {0, 13, 1});
             CHECK(apart(layer.forward(t.q, t.k, t.v, mask),
                         flash(with(small_flash, [](Flash& o) { o.window_size = 1; }), t)) <= same);
         }},
        {"FlashAttention.attention_scores",
         [] {
             const Packed t = packed(32);
             const auto weights =
                 made<FlashAttention>(with(small_flash, [](Flash& o) { o.dropout = 0.5; })).attention_scores(t.q, t.k);
             REQUIRE(weights.ok());
             CHECK(weights->shape == Shape{2, 2, 9, 13});
             const std::vector<float> p = numbers(weights);
             for (std::size_t row = 0; row < p.size(); row += 13) {
                 double sum = 0;
                 for (std::size_t j = 0; j < 13; ++j) sum += static_cast<double>(p[row + j]);
                 CHECK(sum == Approx(1.0).margin(1e-5));
             }
         }},
        {"FlashAttention.benchmark",
         [] {
             FlashAttention layer = made<FlashAttention>(small_flash);
             const attend::FlashBenchmark report = layer.benchmark(96).value();
             CHECK(report.seq_len == 96);
             REQUIRE((report.standard_ms && report.speedup && report.memory_saving && report.standard_memory_mb));
             CHECK(report.flash_ms > 0);
             CHECK(*report.speedup == Approx(*report.standard_ms / report.flash_ms));
             CHECK(*report.standard_memory_mb == Approx((2 * 96 * 96 + 2 * 96 * 16) * 4 / 1048576.0));
             CHECK(*report.memory_saving == Approx(1 - report.flash_memory_mb / *report.standard_memory_mb));
             const attend::FlashBenchmark capped = layer.benchmark(96, 1000).value();
             CHECK_FALSE((capped.standard_ms || capped.speedup || capped.memory_saving));
             CHECK_FALSE(layer.benchmark(0).ok());
         }},
        {"MultiHeadAttention.model_dim",
         [] {
             CHECK(refusal<MultiHeadAttention>(Heads{}).find("model_dim") != std::string::npos);
             CHECK(refusal<MultiHeadAttention>(Heads{.model_dim = 30, .heads = 4}).find("30") != std::string::npos);
             CHECK_FALSE(made<MultiHeadAttention>(small_heads)
                             .forward(tensor(3, 23, 1), tensor(3, 24, 1), tensor(3, 24, 1))
                             .ok());
         }},
        {"MultiHeadAttention.heads",
         [] {
             CHECK(Heads{}.heads == 8);
             CHECK(change<MultiHeadAttention>(small_heads, with(small_heads, [](Heads& o) { o.heads = 2; }),
                                              packed(24)) > 1e-4);
         }},
        {"MultiHeadAttention.dropout",
         [] {
             CHECK(Heads{}.dropout == 0.0);
             CHECK(change<MultiHeadAttention>(small_heads, with(small_heads, [](Heads& o) { o.dropout = 0.5; }),
                                              packed(24)) > visible);
         }},
        {"MultiHeadAttention.bias",
         [] {
             CHECK(Heads{}.bias);
             CHECK(made<MultiHeadAttention>(small_heads).param_count().value() == 4 * 24 * 24 + 4 * 24);
             CHECK(
                 made<MultiHeadAttention>(with(small_heads, [](Heads& o) { o.bias = false; })).param_count().value() ==
                 4 * 24 * 24);
         }},
        {"MultiHeadAttention.kdim",
         [] {
             const Heads wide = with(small_heads, [](Heads& o) { o.kdim = 10; });
             CHECK(made<MultiHeadAttention>(wide).forward(tensor(3, 24, 1), tensor(5, 10, 2), tensor(5, 24, 3)).ok());
             CHECK_FALSE(made<MultiHeadAttention>(small_heads)
                             .forward(tensor(3, 24, 1), tensor(5, 10, 2), tensor(5, 24, 3))
                             .ok());
         }},
        {"MultiHeadAttention.vdim",
         [] {
             const Heads wide = with(small_heads, [](Heads& o) { o.vdim = 11; });
             CHECK(made<MultiHeadAttention>(wide).forward(tensor(3, 24, 1), tensor(5, 24, 2), tensor(5, 11, 3)).ok());
             CHECK(made<MultiHeadAttention>(wide).param_count().value() == 3 * 24 * 24 + 24 * 11 + 4 * 24);
         }},
        {"MultiHeadAttention.batch_first",
         [] {
             CHECK(Heads{}.batch_first);
             const Packed t = packed(24);
             const auto turned = [](const Tensor& x) {
                 return x.view({x.shape[1], x.shape[0], x.shape[2]}, {x.strides[1], x.strides[0], 1});
             };
             const auto plain = made<MultiHeadAttention>(small_heads).forward(t.q, t.k, t.v);
             const auto other = made<MultiHeadAttention>(with(small_heads, [](Heads& o) {
                                    o.batch_first = false;
                                })).forward(turned(t.q), turned(t.k), turned(t.v));
             REQUIRE(other.ok());
             CHECK(other->shape == Shape{9, 2, 24});
             CHECK(apart(plain, turned(*other)) <= same);
         }},
        {"MultiHeadAttention.add_zero_attn",
         [] {
             CHECK_FALSE(Heads{}.add_zero_attn);
             CHECK(change<MultiHeadAttention>(small_heads, with(small_heads, [](Heads& o) { o.add_zero_attn = true; }),
                                              packed(24)) > 1e-4);
         }},
        {"MultiHeadAttention.output_projection",
         [] {
             CHECK(Heads{}.output_projection);
             const Heads bare = with(small_heads, [](Heads& o) { o.output_projection = false; });
             CHECK(change<MultiHeadAttention>(small_heads, bare, packed(24)) > visible);
             CHECK(made<MultiHeadAttention>(bare).param_count().value() == 3 * 24 * 24 + 3 * 24);
         }},
        {"MultiHeadAttention.forward",
         [] {
             const Packed t = packed(24);
             CHECK(apart(made<MultiHeadAttention>(small_heads).forward(t.q, t.k, t.v),
                         by_name("standard-mha", t, 4, {{"form", "projected"}})) <= same);
         }},
        {"MultiHeadAttention.get_attention_weights",
         [] {
             MultiHeadAttention layer = made<MultiHeadAttention>(small_heads);
             const auto before = layer.get_attention_weights();
             REQUIRE_FALSE(before.ok());
             CHECK(before.error().message.find("before the first forward") != std::string::npos);
             const Packed t = packed(24);
             REQUIRE(layer.forward(t.q, t.k, t.v).ok());
             CHECK(layer.get_attention_weights()->shape == Shape{2, 4, 9, 13});
             REQUIRE(layer.forward(t.q, t.q, t.q).ok());
             CHECK(layer.get_attention_weights()->shape == Shape{2, 4, 9, 9});
         }},
        {"MultiHeadAttention.set_projections",
         [] {
             MultiHeadAttention layer = made<MultiHeadAttention>(small_heads),
                                other = made<MultiHeadAttention>(small_heads);
             const Packed t = packed(24);
             NamedTensors weights = layer.get_projections().value();
             Random random(4);
             for (auto& [name, weight] : weights)
                 for (std::int64_t at = 0; at < weight.size(); ++at) weight.as<float>()[at] = 0.1f * random.normal();
             REQUIRE(layer.set_projections(weights).ok());
             CHECK(apart(layer.forward(t.q, t.k, t.v), other.forward(t.q, t.k, t.v)) > visible);  // each has its own
             weights[0].second = tensor(3, 3, 1);
             const auto wrong = layer.set_projections(weights);
             REQUIRE_FALSE(wrong.ok());
             CHECK(wrong.error().message.find(weights[0].first) != std::string::npos);
         }},
        {"MultiHeadAttention.get_projections",
         [] {
             MultiHeadAttention layer = made<MultiHeadAttention>(small_heads);
             NamedTensors weights = layer.get_projections().value();
             CHECK(weights.size() == 8);
             for (auto& [name, weight] : weights) std::fill_n(weight.as<float>(), weight.size(), 0.5f);
             REQUIRE(layer.set_projections(weights).ok());
             std::fill_n(weights[0].second.as<float>(), weights[0].second.size(), 9.0f);  // copies on both ways
             const NamedTensors kept = layer.get_projections().value();
             for (const auto& [name, weight] : kept) CHECK(weight.as<const float>()[0] == 0.5f);
         }},
        {"MultiHeadAttention.param_count",
         [] { CHECK(made<MultiHeadAttention>(Heads{.model_dim = 64}).param_count().value() == 4 * 64 * 64 + 4 * 64); }},
        {"CrossAttention.query_dim",
         [] {
             CHECK_FALSE(CrossAttention::create(shared(), Cross{.key_dim = 8}).ok());
             CHECK_FALSE(made<CrossAttention>(small_cross).forward(tensor(3, 40, 1), tensor(5, 40, 2)).ok());
         }},
        {"CrossAttention.key_dim",
         [] {
             CHECK_FALSE(CrossAttention::create(shared(), Cross{.query_dim = 8}).ok());
             CHECK_FALSE(made<CrossAttention>(small_cross).forward(tensor(3, 24, 1), tensor(5, 24, 2)).ok());
         }},
        {"CrossAttention.heads",
         [] {
             CHECK(Cross{}.heads == 8);
             CHECK(apart(made<CrossAttention>(small_cross).forward(tensor(3, 24, 1), tensor(5, 40, 2)),
                         made<CrossAttention>(with(small_cross, [](Cross& o) {
                             o.heads = 2;
                         })).forward(tensor(3, 24, 1), tensor(5, 40, 2))) > 1e-4);
         }},
        {"CrossAttention.dropout",
         [] {
             CHECK(Cross{}.dropout == 0.0);
             CHECK(apart(made<CrossAttention>(small_cross).forward(tensor(3, 24, 1), tensor(5, 40, 2)),
                         made<CrossAttention>(with(small_cross, [](Cross& o) {
                             o.dropout = 0.5;
                         })).forward(tensor(3, 24, 1), tensor(5, 40, 2))) > visible);
         }},
        {"CrossAttention.output_dim",
         [] {
             const auto output = made<CrossAttention>(with(small_cross, [](Cross& o) {
                                     o.output_dim = 7;
                                 })).forward(tensor(3, 24, 1), tensor(5, 40, 2));
             CHECK(output->shape == Shape{2, 3, 7});
             CHECK(made<CrossAttention>(small_cross).forward(tensor(3, 24, 1), tensor(5, 40, 2))->shape ==
                   Shape{2, 3, 24});
         }},
        {"CrossAttention.bias",
         [] {
             CHECK(Cross{}.bias);
             CHECK(made<CrossAttention>(small_cross).param_count().value() == 2 * 24 * 24 + 2 * 24 * 40 + 4 * 24);
             CHECK(made<CrossAttention>(with(small_cross, [](Cross& o) { o.bias = false; })).param_count().value() ==
                   2 * 24 * 24 + 2 * 24 * 40);
         }},
        {"CrossAttention.forward",
         [] {
             CrossAttention layer = made<CrossAttention>(small_cross);
             const Tensor context = tensor(5, 40, 2);
             Tensor mask = Tensor::allocate(attend::DType::boolean, {1, 3, 5}).value();
             for (std::int64_t i = 0; i < 3; ++i) mask.as<std::uint8_t>()[i * 5] = 1;  // the first token alone
             const auto first = layer.forward(tensor(3, 24, 1), context.view({2, 1, 40}, {200, 40, 1}));
             CHECK(apart(layer.forward(tensor(3, 24, 1), context, mask), first) <= same);
         }},
        {"CrossAttention.get_attention_weights",
         [] {
             CrossAttention layer = made<CrossAttention>(small_cross);
             CHECK_FALSE(layer.get_attention_weights().ok());
             REQUIRE(layer.forward(tensor(3, 24, 1), tensor(5, 40, 2)).ok());
             CHECK(layer.get_attention_weights()->shape == Shape{2, 4, 3, 5});
         }},
        {"LinearAttention.dim",
         [] {
             CHECK(refusal<LinearAttention>(Linear{}).find("dim") != std::string::npos);
             CHECK_FALSE(made<LinearAttention>(small_linear)
                             .forward(tensor(3, 30, 1), tensor(3, 32, 1), tensor(3, 32, 1))
                             .ok());
         }},
        {"LinearAttention.heads",
         [] {
             CHECK(Linear{}.heads == 8);
             CHECK(change<LinearAttention>(small_linear, with(small_linear, [](Linear& o) { o.heads = 4, o.dim = 8; }),
                                           packed(32)) > visible);
         }},
        {"LinearAttention.feature_map",
         [] {
             CHECK(Linear{}.feature_map == "elu");
             for (const char* map : {"relu", "dpfp", "favor+"}) {
                 INFO(map);
                 CHECK(change<LinearAttention>(small_linear,
                                               with(small_linear, [&](Linear& o) { o.feature_map = map; }),
                                               packed(32)) > visible);
             }
             CHECK(apart(made<LinearAttention>(with(small_linear, [](Linear& o) { o.feature_map = "favor+"; }))
                             .forward(packed(32).q, packed(32).k, packed(32).v),
                         by_name("performer-attention", packed(32), 2, {})) <= same);
             CHECK(refusal<LinearAttention>(with(small_linear, [](Linear& o) {
                       o.feature_map = "gelu";
                   })).find("elu") != std::string::npos);
         }},
        {"LinearAttention.eps",
         [] {
             const Packed t = packed(32);
             CHECK(change<LinearAttention>(small_linear, with(small_linear, [](Linear& o) { o.eps = 1e-6; }), t) == 0);
             CHECK(change<LinearAttention>(small_linear, with(small_linear, [](Linear& o) { o.eps = 10.0; }), t) >
                   visible);
         }},
        {"LinearAttention.causal",
         [] {
             CHECK_FALSE(Linear{}.causal);
             CHECK(change<LinearAttention>(small_linear, with(small_linear, [](Linear& o) { o.causal = true; }),
                                           packed(32)) > visible);
         }},
        {"LinearAttention.num_features",
         [] {
             const Linear favor = with(small_linear, [](Linear& o) { o.feature_map = "favor+"; });
             CHECK(change<LinearAttention>(favor, with(favor, [](Linear& o) { o.num_features = 64; }), packed(32)) >
                   1e-5);
             const auto refused = made<LinearAttention>(with(small_linear, [](Linear& o) {
                                      o.num_features = 64;
                                  })).forward(packed(32).q, packed(32).k, packed(32).v);
             REQUIRE_FALSE(refused.ok());
             CHECK(refused.error().message.find("num_features") != std::string::npos);
         }},
        {"LinearAttention.forward",
         [] {
             CHECK(apart(made<LinearAttention>(small_linear).forward(packed(32).q, packed(32).k, packed(32).v),
                         by_name("linear-attention", packed(32), 2, {})) == 0);
         }},
        {"LinearAttention.forward_causal",
         [] {
             const Packed t = packed(32);
             const auto causal =
                 made<LinearAttention>(with(small_linear, [](Linear& o) { o.causal = true; })).forward(t.q, t.k, t.v);
             CHECK(apart(made<LinearAttention>(small_linear).forward_causal(t.q, t.k, t.v), causal) == 0);
         }},
        {"SlidingWindowAttention.window_size",
         [] {
             CHECK(refusal<SlidingWindowAttention>(Window{}).find("window_size") != std::string::npos);
             CHECK(change<SlidingWindowAttention>(
                       small_window, with(small_window, [](Window& o) { o.window_size = 5; }), packed(32)) > visible);
             CHECK(made<SlidingWindowAttention>(with(small_window, [](Window& o) { o.window_size = 0; }))
                       .forward(packed(32).q, packed(32).k, packed(32).v)
                       .ok());
         }},
        {"SlidingWindowAttention.heads",
         [] {
             CHECK(Window{}.heads == 8);
             CHECK(change<SlidingWindowAttention>(small_window,
                                                  with(small_window, [](Window& o) { o.heads = 4, o.dim = 8; }),
                                                  packed(32)) > visible);
         }},
        {"SlidingWindowAttention.dim",
         [] {
             CHECK(Window{}.dim == 64);
             CHECK_FALSE(made<SlidingWindowAttention>(small_window)
                             .forward(tensor(3, 30, 1), tensor(3, 32, 1), tensor(3, 32, 1))
                             .ok());
         }},
        {"SlidingWindowAttention.global_tokens",
         [] {
             CHECK(Window{}.global_tokens == 0);
             const Packed t{tensor(13, 32, 1), tensor(13, 32, 2), tensor(13, 32, 3)};
             CHECK(change<SlidingWindowAttention>(
                       small_window, with(small_window, [](Window& o) { o.global_tokens = 2; }), t) > visible);
         }},
        {"SlidingWindowAttention.dropout",
         [] {
             CHECK(Window{}.dropout == 0.0);
             CHECK(change<SlidingWindowAttention>(small_window, with(small_window, [](Window& o) { o.dropout = 0.5; }),
                                                  packed(32)) > visible);
         }},
        {"SlidingWindowAttention.forward",
         [] {
             CHECK(change<SlidingWindowAttention>(small_window, small_window, packed(32)) == 0);
             CHECK(apart(made<SlidingWindowAttention>(small_window).forward(packed(32).q, packed(32).k, packed(32).v),
                         flash(with(small_flash, [](Flash& o) { o.window_size = 2; }), packed(32))) <= same);
         }},
        {"GroupedQueryAttention.query_heads",
         [] {
             CHECK(refusal<GroupedQueryAttention>(Grouped{.query_heads = 6, .kv_heads = 4, .dim = 8})
                       .find("multiple of kv_heads") != std::string::npos);
         }},
        {"GroupedQueryAttention.kv_heads",
         [] {
             CHECK(refusal<GroupedQueryAttention>(Grouped{.query_heads = 4, .dim = 8}).find("kv_heads 0") !=
                   std::string::npos);
             GroupedQueryAttention layer = made<GroupedQueryAttention>(small_grouped);
             CHECK(layer.forward(tensor(3, 32, 1), tensor(5, 16, 2), tensor(5, 16, 3)).ok());
             CHECK_FALSE(layer.forward(tensor(3, 32, 1), tensor(5, 32, 2), tensor(5, 32, 3)).ok());
         }},
        {"GroupedQueryAttention.dim",
         [] {
             CHECK(refusal<GroupedQueryAttention>(Grouped{.query_heads = 4, .kv_heads = 2}).find("dim is 0") !=
                   std::string::npos);
         }},
        {"GroupedQueryAttention.dropout",
         [] {
             CHECK(Grouped{}.dropout == 0.0);
             const Packed t = packed(32, 16);
             CHECK(change<GroupedQueryAttention>(
                       small_grouped, with(small_grouped, [](Grouped& o) { o.dropout = 0.5; }), t) > visible);
         }},
        {"GroupedQueryAttention.forward",
         [] {
             const Packed t = packed(32, 16);
             CHECK(apart(made<GroupedQueryAttention>(small_grouped).forward(t.q, t.k, t.v),
                         by_name("grouped-query-attention", t, 4, {}, 2)) == 0);
         }},
    };
    return all;
}

}  // namespace

TEST_CASE("classes: every option and method of the table does something that shows") {
    std::ifstream file(ATTEND_SOURCE_DIR "/tests/data/classes.txt");
    std::string line;
    std::size_t rows = 0;
    while (std::getline(file, line)) {
        if (line.empty() || line[0] == '#') continue;
        std::istringstream words(line);
        std::string owner, kind, name;
        words >> owner >> kind >> name;
        INFO(line);
        const auto at = checks().find(owner + "." + name);
        REQUIRE(at != checks().end());
        at->second();
        ++rows;
    }
    CHECK(rows == checks().size());
}

TEST_CASE("classes: objects may be used from several threads at a time") {
    FlashAttention layer = made<FlashAttention>(small_flash);
    const Packed t = packed(32);
    const std::vector<float> expected = numbers(layer.forward(t.q, t.k, t.v));
    std::vector<std::thread> threads;
    std::atomic<int> right{0};
    for (int thread = 0; thread < 4; ++thread)
        threads.emplace_back([&] {
            for (int turn = 0; turn < 20; ++turn) {
                const auto output = layer.forward(t.q, t.k, t.v);
                right += output.ok() && std::equal(expected.begin(), expected.end(), output->as<const float>()) ? 1 : 0;
            }
        });
    for (std::thread& thread : threads) thread.join();
    CHECK(right == 80);
}
