// SPDX-License-Identifier: Apache-2.0
// perceiver-attention: many inputs are read into few latents, worked on there, and read out by any number of queries.
//
// Paper    Jaegle et al. 2021 (Perceiver), arXiv:2103.03206, and 2022 (Perceiver IO), arXiv:2107.14795
// Formula  module: Z = block_e(latents, X), then self blocks on Z, then block_d(Y, Z) if there are output queries Y;
//          block: a = attention(LN(z), LN(x)), z1 = [z +] a, z1 + W2 gelu(W1 LN(z1) + b1) + b2
//          core: Zl = attention(latent_query, K, V); with queries attention(Q, latent_key, Zl)
// Cost     O(N * L * D) to encode, O(L^2 * D) per self layer, O(No * L * D) to decode; no score matrix
// Differs  inputs that are all hidden leave the attention part 0, as in the original code

#include "attend/author/residual_block.hpp"
#include "attend/toolkit/core/message.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    int32_t form, encoder_residual, decoder_residual, gelu;
    int64_t cross_heads, self_heads, self_layers, blocks, cross_widening, self_widening;
    OptionalInt heads, num_latents, latent_dim, qk_channels, v_channels;
};

constexpr const char* gelus[] = {"tanh", "erf", nullptr};
constexpr Range sizes{1, 1048576};
constexpr OptionRow option_table[] = {
    option_enum(
        offsetof(Options, form), "form", "\"auto\"", common::forms,
        "core: ready-made keys and values; projected: the whole module; auto: projected if a weight of it is given"),
    option_maybe_int(offsetof(Options, heads), "heads", {1, 65536},
                     "query heads without queries; default: those of latent_query, else of key", "form=core"),
    option_maybe_int(offsetof(Options, num_latents), "num_latents", sizes, "latents L; default: as given, else 512"),
    option_maybe_int(offsetof(Options, latent_dim), "latent_dim", sizes,
                     "width of the latents; default: as given, else 1024", "form=projected"),
    option_int(offsetof(Options, cross_heads), "cross_heads", "1", {1, 65536}, "heads of encoder and decoder",
               "form=projected"),
    option_int(offsetof(Options, self_heads), "self_heads", "8", {1, 65536}, "heads of the self layers",
               "form=projected & self_layers"),
    option_maybe_int(offsetof(Options, qk_channels), "qk_channels", sizes,
                     "width of queries and keys; default: in each block that of what it reads", "form=projected"),
    option_maybe_int(offsetof(Options, v_channels), "v_channels", sizes, "width of values; default: that of the keys",
                     "form=projected"),
    option_int(offsetof(Options, self_layers), "self_layers", "0", {0, 1024}, "self layers on the latents",
               "form=projected"),
    option_int(offsetof(Options, blocks), "blocks", "1", {1, 65536}, "how often the same self layers run",
               "form=projected & self_layers"),
    option_int(offsetof(Options, cross_widening), "cross_widening", "1", {1, 1024},
               "feed-forward width of encoder and decoder in multiples", "form=projected"),
    option_int(offsetof(Options, self_widening), "self_widening", "1", {1, 1024},
               "feed-forward width of the self layers in multiples", "form=projected & self_layers"),
    option_bool(offsetof(Options, encoder_residual), "encoder_residual", true, "latents are added in the encoder",
                "form=projected"),
    option_bool(offsetof(Options, decoder_residual), "decoder_residual", false, "queries are added in the decoder",
                "form=projected & query"),
    option_enum(offsetof(Options, gelu), "gelu", "\"tanh\"", gelus, "tanh: original; erf: exact", "form=projected"),
    common::resolved(ATTEND_TYPE_FLOAT, "scale", nullptr, {-no_limit, no_limit},
                     "factor before softmax in both stages; left out or 0: 1/sqrt(D)", nullptr, "form=core"),
    common::resolved(ATTEND_TYPE_FLOAT, "softcap", "0", {0, no_limit},
                     "c > 0: scores become c * tanh(score / c) in both stages; 0: off", nullptr, "form=core"),
    ATTEND_DROPOUT_OPTIONS,
    common::weight_seed(nullptr),
};

#define LATENTS "or(num_latents,given(L,512))"
#define CZ "or(latent_dim,given(Cz,1024))"
#define HEADS "given(Hq,Hkv)"
#define QK(kv) "or(qk_channels," kv ")"
#define VC(kv) "or(v_channels,or(qk_channels," kv "))"
#define NORM(guard, name, width, help)                          \
    weight_port(name ".gamma", guard ": " width, "ones", help), \
        weight_port(name ".beta", guard ": " width, "zeros", help)
// A block's weights: q is the width of what it changes, kv of what it reads; `table` is the prefix in the seeds.
#define BLOCK(guard, prefix, table, q, kv, widening)                                                               \
    weight_port(prefix ".wq", guard ": " QK(kv) "," q, "kaimingUniform as " table ".Wq", "query projection"),      \
        weight_port(prefix ".wk", guard ": " QK(kv) "," kv, "kaimingUniform as " table ".Wk", "key projection"),   \
        weight_port(prefix ".wv", guard ": " VC(kv) "," kv, "kaimingUniform as " table ".Wv", "value projection"), \
        weight_port(prefix ".wo", guard ": " q "," VC(kv), "kaimingUniform as " table ".Wo", "output projection"), \
        weight_port(prefix ".bq", guard ": " QK(kv), "zeros", "query bias"),                                       \
        weight_port(prefix ".bk", guard ": " QK(kv), "zeros", "key bias"),                                         \
        weight_port(prefix ".bv", guard ": " VC(kv), "zeros", "value bias"),                                       \
        weight_port(prefix ".bo", guard ": " q, "zeros", "output bias"),                                           \
        weight_port(prefix ".w1", guard ": " widening "*" q "," q, "kaimingUniform as " table ".W1",               \
                    "feed-forward, in"),                                                                           \
        weight_port(prefix ".b1", guard ": " widening "*" q, "zeros", "feed-forward, in"),                         \
        weight_port(prefix ".w2", guard ": " q "," widening "*" q, "kaimingUniform as " table ".W2",               \
                    "feed-forward, out"),                                                                          \
        weight_port(prefix ".b2", guard ": " q, "zeros", "feed-forward, out")

constexpr attend_port port_table[] = {
    input_port(ATTEND_Q, "query", "form=projected: B,No,Cy | B,Hq,Nq,D", "output queries; absent: latents come out",
               ATTEND_OPTIONAL),
    input_port(ATTEND_K, "key", "form=projected: B,Nk,C | B,Hkv,Nk,D", "inputs X, or keys"),
    input_port(ATTEND_V, "value", "form=core: B,Hkv,Nk,Dv", "values"),
    input_port(ATTEND_MASK, "mask", "form=core: broadcast(B," HEADS "," LATENTS ",Nk)",
               "non-zero: the latent may read the key", ATTEND_OPTIONAL, ATTEND_U8),
    input_port(ATTEND_BIAS, "bias", "form=core: broadcast(B," HEADS "," LATENTS ",Nk)",
               "added to the scores of the first stage; minus infinity hides", ATTEND_OPTIONAL),
    input_port(ATTEND_Q_LENGTHS, "query_lengths", "form=core & query: B", "valid queries of each item", ATTEND_OPTIONAL,
               length_types),
    common::key_lengths_port(),
    weight_port("latent_query", "form=core: " HEADS "," LATENTS ",D", "normal(0,0.02) as latentQuery",
                "queries of the latents"),
    weight_port("latent_key", "form=core & query: " HEADS "," LATENTS ",D", "normal(0,0.02) as latentKey",
                "keys of the latents"),
    weight_port("latents", "form=projected: " LATENTS "," CZ, "normal(0,0.02)", "latents before they have read"),
    NORM("form=projected", "e.norm_q", CZ, "encoder: latents"),
    NORM("form=projected", "e.norm_kv", "C", "encoder: inputs"),
    NORM("form=projected", "e.norm_mlp", CZ, "encoder: feed-forward"),
    BLOCK("form=projected", "e", "e", CZ, "C", "cross_widening"),
    NORM("form=projected", "s_{self_layers}.norm_q", CZ, "self layer: latents, as queries and keys"),
    NORM("form=projected", "s_{self_layers}.norm_mlp", CZ, "self layer: feed-forward"),
    BLOCK("form=projected", "s_{self_layers}", "s_{self_layers}", CZ, CZ, "self_widening"),
    NORM("form=projected & query", "d.norm_q", "Cy", "decoder: output queries"),
    NORM("form=projected & query", "d.norm_kv", CZ, "decoder: latents"),
    NORM("form=projected & query", "d.norm_mlp", "Cy", "decoder: feed-forward"),
    BLOCK("form=projected & query", "d", "d", "Cy", CZ, "cross_widening"),
    output_port(ATTEND_OUT, "output",
                "form=projected & query: B,No,Cy | form=projected: B," LATENTS "," CZ " | query: B,Hq,Nq,Dv | B," HEADS
                "," LATENTS ",Dv",
                "latents, or what the queries read from them"),
    output_port(ATTEND_LSE, "lse", "form=core & query: B,Hq,Nq | form=core: B," HEADS "," LATENTS,
                "log of the sum of exponentials, of the last stage", ATTEND_OPTIONAL),
    output_port(ATTEND_SCORES, "scores",
                "form=core & query: B,Hq,Nq," LATENTS " | form=core: B," HEADS "," LATENTS ",Nk",
                "weights of the last stage", ATTEND_OPTIONAL),
};

bool is_module(const Options& options) { return options.form == 2; }

// The blocks of a module call; weights and inputs are found in the same bindings.
struct Module {
    ResidualBlock encoder, self, decoder;
    int64_t latents, width;

    Module(const Options& o, const attend_plan_desc& desc, const attend_tensor* x, const attend_tensor* y,
           const attend_tensor* z)
        : encoder(desc.batch, z->shape[0], x->shape[1], z->shape[1], x->shape[2], qk(o, x->shape[2]), v(o, x->shape[2]),
                  o.cross_heads, o.cross_widening),
          self(desc.batch, z->shape[0], z->shape[0], z->shape[1], z->shape[1], qk(o, z->shape[1]), v(o, z->shape[1]),
               o.self_heads, o.self_widening),
          decoder(desc.batch, y ? y->shape[1] : 0, z->shape[0], y ? y->shape[2] : 1, z->shape[1], qk(o, z->shape[1]),
                  v(o, z->shape[1]), o.cross_heads, o.cross_widening),
          latents(z->shape[0]),
          width(z->shape[1]) {}
    static int64_t qk(const Options& o, int64_t kv) { return o.qk_channels.given ? o.qk_channels.value : kv; }
    static int64_t v(const Options& o, int64_t kv) { return o.v_channels.given ? o.v_channels.value : qk(o, kv); }
};

bool starts(const char* text, char letter, char next) { return text[0] == letter && text[1] == next; }

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    const attend_tensor *query = attend_find(&desc.bindings, ATTEND_Q), *key = attend_find(&desc.bindings, ATTEND_K);
    Message text;
    text << "perceiver-attention: ";
    for (const char* name : {"latents", "latent_query"})
        if (const attend_tensor* latents = attend_find_name(&desc.bindings, name))
            if (latents->shape[name[6] == '_' ? 1 : 0] < 1)
                return (text << "weight \"" << name << "\" has no latents; accepted: at least 1")
                    .fail(error, ATTEND_BAD_SHAPE, name);
    if (!is_module(options)) {
        if (query && options.heads.given && options.heads.value != desc.num_q_heads)
            return (text << "option \"heads\" is " << options.heads.value << " and query has " << desc.num_q_heads
                         << " heads; accepted: " << desc.num_q_heads)
                .fail(error, ATTEND_BAD_SHAPE, "heads");
        return ATTEND_OK;
    }
    if (desc.dropout > 0.0)
        return (text << "option \"dropout\" is above 0 in the projected form; accepted: 0, or the core form")
            .fail(error, ATTEND_UNSUPPORTED, "dropout");
    const attend_tensor* latents = attend_find_name(&desc.bindings, "latents");
    if (!key || !latents) return ATTEND_OK;
    const Module module(options, desc, key, query, latents);
    const struct {
        const char* name;
        const ResidualBlock& block;
        bool there;
    } blocks[] = {{"encoder", module.encoder, true},
                  {"self layers", module.self, options.self_layers > 0},
                  {"decoder", module.decoder, query != nullptr}};
    for (const auto& [name, block, there] : blocks)
        for (const int64_t width : {block.qk, block.v})
            if (there && width % block.heads != 0)
                return (text << "the width " << width << " of the " << name << " is not a multiple of its "
                             << block.heads << " heads; accepted: a width that the number of heads divides")
                    .fail(error, ATTEND_BAD_SHAPE, "cross_heads");
    bool others = false, decoder = false;
    for (uint32_t at = 0; at < desc.bindings.count; ++at) {
        const attend_binding& binding = *attend_binding_at(&desc.bindings, at);
        if (binding.role != 0 || (binding.tensor->flags & ATTEND_TENSOR_INITIALISED)) continue;
        others = others || starts(binding.name, 'e', '.') || starts(binding.name, 's', '_');
        decoder = decoder || starts(binding.name, 'd', '.');
    }
    if (query && others && !decoder)
        return (text
                << "weights of other blocks are given and none of the decoder; accepted: weights d.* with a query, "
                   "or no query")
            .fail(error, ATTEND_NOT_FOUND, "d.wq");
    return ATTEND_OK;
}

// "e.", "s_12." or "d." and the rest of a weight's name.
const attend_tensor* weight(const attend_array& weights, const char* prefix, int64_t number, const char* name) {
    char text[64];
    uint64_t at = 0;
    for (; *prefix != '\0'; ++prefix) text[at++] = *prefix;
    char digits[20];
    int count = 0;
    for (; number > 0; number /= 10) digits[count++] = static_cast<char>('0' + number % 10);
    while (count > 0) text[at++] = digits[--count];
    text[at++] = '.';
    for (; *name != '\0'; ++name) text[at++] = *name;
    text[at] = '\0';
    return attend_find_name(&weights, text);
}
BlockWeights block_weights(const attend_array& weights, const char* prefix, int64_t number) {
    const auto find = [&](const char* name) { return weight(weights, prefix, number, name); };
    BlockWeights w{find("norm_q.gamma"),
                   find("norm_q.beta"),
                   find("norm_kv.gamma"),
                   find("norm_kv.beta"),
                   find("norm_mlp.gamma"),
                   find("norm_mlp.beta"),
                   find("wq"),
                   find("bq"),
                   find("wk"),
                   find("bk"),
                   find("wv"),
                   find("bv"),
                   find("wo"),
                   find("bo"),
                   find("w1"),
                   find("b1"),
                   find("w2"),
                   find("b2")};
    if (w.kv_gamma == nullptr) w.kv_gamma = w.q_gamma, w.kv_beta = w.q_beta;  // self layers: one norm for both
    return w;
}

// The two stages of the core form as plans of their own.
struct Stages {
    attend_plan_desc encode, decode;
    int64_t latents;
    Stages(const attend_plan_desc& desc, const attend_tensor* latent_query) : encode(desc), decode(desc) {
        latents = latent_query != nullptr ? latent_query->shape[1] : 512;
        encode.num_q_heads = latent_query != nullptr ? latent_query->shape[0] : desc.num_q_heads;
        encode.q_len = latents;
        encode.flags = decode.flags = desc.flags & ~static_cast<uint32_t>(ATTEND_PLAN_OFFSET_PER_ITEM);
        decode.num_q_heads = decode.num_kv_heads = encode.num_q_heads;
        decode.kv_len = latents;
        encode.bindings = decode.bindings = attend_array{};
    }
    int64_t read() const { return encode.batch * encode.num_q_heads * latents * encode.value_dim; }
};

uint64_t workspace(const Options& options, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    const attend_tensor *query = attend_find(&desc.bindings, ATTEND_Q), *key = attend_find(&desc.bindings, ATTEND_K);
    if (!is_module(options)) {
        const Stages stages(desc, attend_find_name(&desc.bindings, "latent_query"));
        return Carve::floats(query ? stages.read() : 0) +
               larger_bytes(tile_workspace(stages.encode), tile_workspace(stages.decode));
    }
    const attend_tensor* latents = attend_find_name(&desc.bindings, "latents");
    if (!key || !latents) return 0;
    const Module module(options, desc, key, query, latents);
    uint64_t most = module.encoder.workspace(desc.max_workers);
    if (options.self_layers > 0) most = larger_bytes(most, module.self.workspace(desc.max_workers));
    if (query) most = larger_bytes(most, module.decoder.workspace(desc.max_workers));
    return 2 * Carve::floats(desc.batch * module.latents * module.width) + most;
}

attend_status run_core(const ForwardArgs& args, const Context& context) {
    const attend_tensor *lq = attend_find_name(args.weights, "latent_query"),
                        *lk = attend_find_name(args.weights, "latent_key");
    const Stages stages(*args.desc, lq);
    Carve carve(context);
    OwnTensor queries, keys, read;
    const int64_t shape[4] = {args.desc->batch, lq->shape[0], lq->shape[1], lq->shape[2]};
    describe(queries, *lq, shape, {0, lq->strides[0], lq->strides[1], lq->strides[2]});
    describe(read, args.query ? carve.take(stages.read()) : nullptr, shape[0], shape[1], shape[2],
             args.desc->value_dim);
    ForwardArgs encode = args;
    encode.desc = &stages.encode;
    encode.query_lengths = nullptr;
    if (args.query) {
        encode.lse = encode.scores = nullptr;
        encode.rows = {};
    }
    const TileCall first(encode, &queries.tensor, args.key, args.value, args.query ? &read.tensor : args.output);
    const attend_status status = run_tiles(first, carve.rest(context));
    if (status != ATTEND_OK || !args.query) return status;
    describe(keys, *lk, shape, {0, lk->strides[0], lk->strides[1], lk->strides[2]});
    ForwardArgs decode = args;
    decode.desc = &stages.decode;
    decode.key_lengths = nullptr;
    decode.mask = decode.bias = nullptr;
    TileCall second(decode, args.query, &keys.tensor, &read.tensor, args.output);
    second.problem.rng_offset += 1;
    return run_tiles(second, carve.rest(context));
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    if (!is_module(options)) return run_core(args, context);
    const attend_plan_desc& desc = *args.desc;
    const attend_tensor* latents = attend_find_name(args.weights, "latents");
    const Module module(options, desc, args.key, args.query, latents);
    const Activation gelu = options.gelu == 0 ? Activation::gelu_tanh : Activation::gelu_erf;
    Carve carve(context);
    const int64_t numbers = desc.batch * module.latents * module.width;
    Part first(carve.take(numbers), desc.batch, module.latents, module.width),
        second(carve.take(numbers), desc.batch, module.latents, module.width), broadcast;
    const Context rest = carve.rest(context);
    broadcast.view(*latents);
    broadcast.tensor.ndim = 3;
    broadcast.shape[2] = latents->shape[1], broadcast.strides[2] = latents->strides[1];
    broadcast.shape[1] = latents->shape[0], broadcast.strides[1] = latents->strides[0];
    broadcast.shape[0] = desc.batch, broadcast.strides[0] = 0;
    // Steps write into two places in turn; without queries the last one is the output.
    const int64_t steps = 1 + options.blocks * options.self_layers;
    const attend_tensor* places[2] = {&first.tensor, &second.tensor};
    if (!args.query) places[(steps - 1) % 2] = args.output;
    attend_status status = module.encoder.run(rest, block_weights(*args.weights, "e", 0), &broadcast.tensor, args.key,
                                              args.key_lengths, options.encoder_residual != 0, gelu, places[0]);
    for (int64_t step = 1; step < steps && status == ATTEND_OK; ++step) {
        const BlockWeights w = block_weights(*args.weights, "s_", (step - 1) % options.self_layers + 1);
        const attend_tensor* z = places[(step - 1) % 2];
        status = module.self.run(rest, w, z, z, nullptr, true, gelu, places[step % 2]);
    }
    if (status != ATTEND_OK || !args.query) return status;
    return module.decoder.run(rest, block_weights(*args.weights, "d", 0), args.query, places[(steps - 1) % 2], nullptr,
                              options.decoder_residual != 0, gelu, args.output);
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    const attend_tensor *query = attend_find(&desc.bindings, ATTEND_Q), *key = attend_find(&desc.bindings, ATTEND_K);
    if (!is_module(options)) {
        const Stages stages(desc, attend_find_name(&desc.bindings, "latent_query"));
        const auto pairs = [](const attend_plan_desc& stage) {
            return static_cast<double>(stage.q_len) * static_cast<double>(stage.kv_len);
        };
        softmax_cost(stages.encode, pairs(stages.encode), cost);
        if (key && !query) return;
        attend_cost second{};
        softmax_cost(stages.decode, pairs(stages.decode), second);
        cost.flops += second.flops, cost.bytes += second.bytes;
        return;
    }
    const attend_tensor* latents = attend_find_name(&desc.bindings, "latents");
    if (!key || !latents) return;
    const Module module(options, desc, key, query, latents);
    cost.flops = module.encoder.flops() + (query ? module.decoder.flops() : 0.0) +
                 static_cast<double>(options.blocks * options.self_layers) * module.self.flops();
    cost.bytes = 4.0 * static_cast<double>(desc.batch * (module.encoder.kv_len * module.encoder.kv_width +
                                                         module.decoder.q_len * module.decoder.q_width));
}

}  // namespace

ATTEND_MECHANISM(
    perceiver,
    (described<check, workspace, forward, cost>(
        {.name = "perceiver-attention",
         .category = "cross-attention",
         .title = "Perceiver attention",
         .summary = "Reads any number of inputs into a few latents, works there, and answers any "
                    "number of queries.",
         .reference = "Jaegle et al. 2021, Perceiver, arXiv:2103.03206; 2022, Perceiver IO, "
                      "arXiv:2107.14795",
         .time = "O(n l d), l latents",
         .space = "O((n + l) d)",
         .caps = softmax_caps,
         .dtypes = ATTEND_F32,
         .numerics = ATTEND_OWN_DEFINITION,
         .formula = "latents L read the input: L' = softmax(scale L K^T) V;  self layers work on L'\n"
                    "queries read the latents: o = softmax(scale q L'^T) L'",
         .cost = "Linear in the input and in the queries, times the number of latents; the self layers cost latents "
                 "squared and nothing of the input.",
         .use = "Very long or mixed inputs (pixels, audio, events) that some hundred latents can hold. If exact "
                "access to every input token matters take cross-attention.",
         .example = "attend compute perceiver-attention --sequence-length 64 --sequence-length-k 4096 --heads 8 --set "
                    "num_latents=128"},
        option_table, port_table)))

}  // namespace attend::ATTEND_ISA
