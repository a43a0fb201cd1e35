// SPDX-License-Identifier: Apache-2.0
// gated-cross-attention: a frozen model reads images or other media; with closed gates it is the identity.
//
// Paper    Alayrac et al. 2022 (Flamingo), arXiv:2204.14198, section 2.2
// Formula  a = Wo attention(LN(x) Wq^T, media Wkv^T), y = x + tanh(attn_gate) a, z = y + tanh(ffn_gate) W2 act(W1 LN(y))
//          core form: residual + tanh(attn_gate) attention(q, k, v)
// Cost     immediate: O(Nq * tokens_per_media * H * D), else O(Nq * Nk * H * D); projections; no score matrix
// Differs  a text row without visible media gets a = 0 in every media_mask (public code averages all media in one of them)

#include "attend/author/block.hpp"
#include "attend/toolkit/block/media_keys.hpp"
#include "attend/toolkit/core/message.hpp"

namespace attend::ATTEND_ISA {
namespace {

enum MediaMask : int64_t { immediate, previous, none };
enum GateShape : int32_t { scalar, head, channel };

struct Options {
    int32_t form, gate_shape, ffn, activation;
    int64_t heads, head_dim, ffn_mult;
    OptionalInt tokens_per_media;
};

constexpr const char* media_masks[] = {"immediate", "previous", "none", nullptr};
constexpr const char* gate_shapes[] = {"scalar", "head", "channel", nullptr};
constexpr const char* activations[] = {"gelu", "sqrelu", nullptr};
constexpr OptionRow option_table[] = {
    option_enum(offsetof(Options, form), "form", "\"auto\"", common::forms,
                "core: ready-made heads; projected: the whole module; auto: projected if a weight of it is given"),
    option_int(offsetof(Options, heads), "heads", "8", {1, 65536}, "heads H", "form=projected"),
    option_int(offsetof(Options, head_dim), "head_dim", "64", {1, 1048576}, "head width D", "form=projected"),
    option_row(ATTEND_TYPE_ENUM, 0, "media_mask", nullptr, {0, 0}, media_masks,
               "immediate: the medium right before; previous: all before; none: all; default: immediate with text_time",
               Field::none, 0, nullptr),
    option_maybe_int(offsetof(Options, tokens_per_media), "tokens_per_media", {1, 2147483647},
                     "tokens n of each medium; default: from media of rank 4", "!media_index"),
    option_enum(offsetof(Options, gate_shape), "gate_shape", "\"scalar\"", gate_shapes,
                "numbers in a gate: one, one per head (core form), one per channel (module)"),
    option_bool(offsetof(Options, ffn), "ffn", true, "gated feed-forward layer behind the attention", "form=projected"),
    option_int(offsetof(Options, ffn_mult), "ffn_mult", "4", {1, 1024}, "its width in multiples of E",
               "form=projected & ffn"),
    option_enum(offsetof(Options, activation), "activation", "\"gelu\"", activations, "of the feed-forward layer",
                "form=projected & ffn"),
    ATTEND_SCORE_OPTIONS,
    ATTEND_DROPOUT_OPTIONS,
    common::weight_seed(),
};

constexpr attend_port port_table[] = {
    stored(input_port(ATTEND_Q, "query", "form=projected: B,Nq,E | B,Hq,Nq,D", "text x, or queries")),
    stored(input_port(ATTEND_K, "key",
                      "form=projected: B,Nk,Cm | form=projected: B,T,or(tokens_per_media,n),Cm | B,Hkv,Nk,D",
                      "media, flat or [B,T,n,Cm], or keys")),
    stored(common::value_port("form=core: B,Hkv,Nk,Dv")),
    input_port(0, "text_time", "B,Nq", "media that start at or before each text token; must not decrease",
               ATTEND_OPTIONAL, length_types),
    input_port(0, "media_index", "B,Nk", "medium of each media token, from 1; wins over tokens_per_media",
               ATTEND_OPTIONAL, length_types),
    input_port(0, "residual", "form=core: B,Hq,Nq,Dv", "what the gated result is added to; absent: query",
               ATTEND_OPTIONAL),
    ATTEND_MASK_PORTS,
    weight_port("norm.gamma", "form=projected: E", "ones", "norm of x"),
    weight_port("norm.beta", "form=projected: E", "zeros", "norm of x"),
    weight_port("wq", "form=projected: Hq*D,E", "kaimingUniform as Wq", "query projection"),
    weight_port("wkv", "form=projected: 2*Hq*D,Cm", "kaimingUniform as Wkv", "key rows, then value rows"),
    weight_port("wo", "form=projected: E,Hq*D", "kaimingUniform as Wo", "output projection"),
    weight_port("attn_gate", "form=projected & gate_shape=channel: E | gate_shape=head: Hq | 1", "zeros as attnGate",
                "gate of the attention, before tanh"),
    weight_port("ffn_norm.gamma", "form=projected & ffn: E", "ones", "norm before the feed-forward layer"),
    weight_port("ffn_norm.beta", "form=projected & ffn: E", "zeros", "norm before the feed-forward layer"),
    weight_port("w1", "form=projected & ffn: ffn_mult*E,E", "kaimingUniform as W1", "feed-forward, in"),
    weight_port("w2", "form=projected & ffn: E,ffn_mult*E", "kaimingUniform as W2", "feed-forward, out"),
    weight_port("ffn_gate", "form=projected & ffn & gate_shape=channel: E | form=projected & ffn: 1",
                "zeros as ffnGate", "gate of the feed-forward layer, before tanh"),
    stored(output_port(ATTEND_OUT, "output", "form=projected: B,Nq,E | B,Hq,Nq,Dv", "result")),
    common::lse_port(),
    common::scores_port(),
};

bool is_module(const Options& options) { return options.form == 2; }
int64_t extent(const attend_plan_desc& desc, uint32_t role, int axis) {
    const attend_tensor* tensor = attend_find(&desc.bindings, role);
    return tensor != nullptr && axis < tensor->ndim ? tensor->shape[axis] : 0;
}
int64_t mask_of(const attend_array& values, bool timed) {
    const attend_value* value = attend_find_option(&values, "media_mask");
    return value != nullptr && value->type != 0 ? value->u.i : timed ? immediate : none;
}
// Tokens of a medium, or 0 where nothing says.
int64_t tokens_of(const Options& options, const attend_tensor* key) {
    if (is_module(options) && key != nullptr && key->ndim == 4) return key->shape[2];
    return options.tokens_per_media.given ? options.tokens_per_media.value : 0;
}

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    const auto say = [&](attend_status status, const char* where, Message& text) {
        return text.fail(error, status, where);
    };
    Message text;
    text << "gated-cross-attention: ";
    if (options.gate_shape == (is_module(options) ? head : channel))
        return say(ATTEND_BAD_OPTION, "gate_shape",
                   text << "option \"gate_shape\" is " << gate_shapes[options.gate_shape] << " in the "
                        << (is_module(options) ? "projected form; accepted: scalar, channel"
                                               : "core form; accepted: scalar, head"));
    const bool timed = attend_find_name(&desc.bindings, "text_time") != nullptr;
    const bool indexed = attend_find_name(&desc.bindings, "media_index") != nullptr;
    const int64_t mask = mask_of(*args.values, timed),
                  tokens = tokens_of(options, attend_find(&desc.bindings, ATTEND_K));
    if (mask != none && !timed)
        return say(ATTEND_BAD_OPTION, "media_mask",
                   text << "option \"media_mask\" is " << media_masks[mask]
                        << " and there is no text_time; accepted: text_time given, or media_mask none");
    if (!indexed && tokens > 0 && desc.kv_len % tokens != 0)
        return say(ATTEND_BAD_OPTION, "tokens_per_media",
                   text << "option \"tokens_per_media\" is " << tokens << " for " << desc.kv_len
                        << " media tokens; accepted: a divisor, or input media_index");
    if (!indexed && tokens == 0 && mask != none)
        return say(ATTEND_BAD_OPTION, "tokens_per_media",
                   text << "option \"tokens_per_media\" is not given for flat media; accepted: 1 or more, media of "
                           "rank 4, or input media_index");
    const attend_tensor* query = attend_find(&desc.bindings, ATTEND_Q);
    if (query != nullptr && !is_module(options) && !attend_find_name(&desc.bindings, "residual") &&
        desc.value_dim != desc.head_dim)
        return say(ATTEND_BAD_SHAPE, "residual",
                   text << "value width " << desc.value_dim << " with queries of width " << desc.head_dim
                        << " as residual; accepted: equal widths, or input residual");
    return ATTEND_OK;
}

// What only the data can tell.
attend_status check_media(const ForwardArgs& args, const MediaKeys& media, attend_error* error) {
    Message text;
    text << "gated-cross-attention: ";
    for (int64_t b = 0; media.text_time && b < media.text_time->shape[0]; ++b)
        for (int64_t i = 0; i < media.text_time->shape[1]; ++i) {
            const int64_t least = i == 0 ? 0 : media.time(b, i - 1), now = media.time(b, i);
            if (now < least)
                return (text << "text_time[" << b << "," << i << "] is " << now << "; accepted: " << least
                             << " or more, since times start at 0 and do not decrease")
                    .fail(error, ATTEND_BAD_SHAPE, "text_time");
        }
    for (int64_t b = 0; media.media_index && b < args.desc->batch; ++b)
        for (int64_t j = 0; j < media.media_index->shape[1]; ++j)
            if (media.medium(b, j) < 1)
                return (text << "media_index[" << b << "," << j << "] is " << media.medium(b, j)
                             << "; accepted: 1 or more, since media are counted from 1")
                    .fail(error, ATTEND_BAD_SHAPE, "media_index");
    return ATTEND_OK;
}

int64_t gates_of(const Options& options, const attend_plan_desc& desc, int64_t width) {
    return options.gate_shape == head ? desc.num_q_heads : options.gate_shape == channel ? width : 1;
}
bool narrow_output(const attend_plan_desc& desc, const attend_tensor* output) {
    return desc.io_dtype != ATTEND_F32 || (output != nullptr && output->dtype_bits != 32);
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    if (!is_module(options)) {
        uint64_t bytes = Carve::floats(desc.num_q_heads);
        attend_plan_desc plain = desc;
        plain.bindings.count = 0;
        if (narrow_output(desc, attend_find(&desc.bindings, ATTEND_OUT)))
            bytes += Carve::floats(desc.batch * desc.num_q_heads * desc.q_len * desc.value_dim);
        return bytes + larger_bytes(tile_workspace(desc), tile_workspace(plain));
    }
    const int64_t width = extent(desc, ATTEND_Q, 2);
    const attend_tensor* key = attend_find(&desc.bindings, ATTEND_K);
    const GroupedHeads sizes(desc, width, key != nullptr ? key->shape[key->ndim - 1] : 0);
    return 2 * Carve::floats(width + 1) +
           larger_bytes(sizes.workspace(desc), feed_forward_workspace(desc.batch, desc.q_len, width,
                                                                      options.ffn_mult * width, desc.max_workers));
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc& desc = *args.desc;
    const attend_tensor* time = attend_find_name(args.bindings, "text_time");
    MediaKeys media{time, attend_find_name(args.bindings, "media_index"), tokens_of(options, args.key), 0, false};
    if (const attend_status status = check_media(args, media, context.error)) return status;
    const int64_t mask = mask_of(*args.values, time != nullptr);
    media.previous = mask == previous;
    const auto weight = [&](const char* name) { return attend_find_name(args.weights, name); };
    const auto hook = [&](attend_tile_problem& problem, int64_t first_item) {
        media.first_item = first_item;
        if (mask != none) use_keys(problem, media);
    };
    Carve carve(context);
    const int64_t width = args.query->shape[args.query->ndim - 1];
    const Gate shape{nullptr, options.gate_shape == head, options.gate_shape == channel};
    float* gates = carve.take(is_module(options) ? width + 1 : gates_of(options, desc, width));
    gate_values(weight("attn_gate"), gates);
    Gate gate = shape;
    gate.values = gates;
    if (!is_module(options)) {
        TileCall call(args);
        OwnTensor attended;
        if (args.output && narrow_output(desc, args.output)) {
            const int64_t rows = desc.batch * desc.num_q_heads * desc.q_len;
            describe(attended, carve.take(rows * desc.value_dim), desc.batch, desc.num_q_heads, desc.q_len,
                     desc.value_dim);
            call.problem.output = &attended.tensor;
        }
        hook(call.problem, 0);
        const attend_status status = run_tiles(call, carve.rest(context));
        if (status != ATTEND_OK || !args.output) return status;
        const attend_tensor* residual = attend_find_name(args.bindings, "residual");
        return gated_sum(&context, residual ? residual : args.query, call.problem.output, gate, args.output);
    }
    float* ffn_gates = carve.take(width + 1);
    const Context rest = carve.rest(context);
    const GroupedHeads sizes(desc, width, args.key->shape[args.key->ndim - 1]);
    const CrossWeights cross{weight("norm.gamma"), weight("norm.beta"), weight("wq"), weight("wkv"), weight("wo")};
    if (const attend_status status = grouped_cross(args, rest, sizes, cross, gate, hook)) return status;
    if (!options.ffn || args.rows.count > 0) return ATTEND_OK;
    gate_values(weight("ffn_gate"), ffn_gates);
    gate.values = ffn_gates;
    const FeedForward layers{weight("ffn_norm.gamma"),
                             weight("ffn_norm.beta"),
                             weight("w1"),
                             nullptr,
                             weight("w2"),
                             nullptr,
                             options.activation == 0 ? Activation::gelu_erf : Activation::squared_relu,
                             gate};
    return feed_forward(&rest, layers, args.output, args.output);
}

// In mode immediate each text token meets the tokens of one medium.
void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    const bool timed = attend_find_name(&desc.bindings, "text_time") != nullptr;
    const int64_t tokens = tokens_of(options, attend_find(&desc.bindings, ATTEND_K));
    const bool one = mask_of(*args.values, timed) == immediate && tokens > 0 && tokens < desc.kv_len;
    softmax_cost(desc, static_cast<double>(desc.q_len) * static_cast<double>(one ? tokens : desc.kv_len), cost);
    const auto rows = static_cast<double>(desc.batch * desc.q_len);
    if (!is_module(options)) return;
    const attend_tensor* key = attend_find(&desc.bindings, ATTEND_K);
    const auto inner = static_cast<double>(desc.num_q_heads * desc.head_dim),
               width = static_cast<double>(extent(desc, ATTEND_Q, 2)),
               media = static_cast<double>(key != nullptr ? key->shape[key->ndim - 1] : 0);
    cost.flops += 4.0 * inner * (rows * width + static_cast<double>(desc.batch * desc.kv_len) * media);
    if (options.ffn) cost.flops += 4.0 * rows * width * width * static_cast<double>(options.ffn_mult);
}

}  // namespace

ATTEND_MECHANISM(
    gated_cross,
    (described<check, workspace, forward, cost>(
        {.name = "gated-cross-attention",
         .category = "cross-attention",
         .title = "Gated cross-attention",
         .summary = "Adds images or other media to a frozen text model; with closed gates it "
                    "changes nothing.",
         .reference = "Alayrac et al. 2022, Flamingo, arXiv:2204.14198, section 2.2",
         .time = "O(n t d), t tokens of one medium",
         .space = "O((n + m) d)",
         .caps = softmax_caps,
         .numerics = ATTEND_OWN_DEFINITION,
         .formula =
             "core:   residual_i + tanh(attn_gate) softmax over the media that token i may see (scale q_i.k_j) V\n"
             "module: x + tanh(gate_attn) attention(norm(x)), then x + tanh(gate_ff) feed_forward(x)",
         .cost = "Each token meets the tokens of the media it may see, which with `immediate` is one: linear in the "
                 "text. The module adds projections and a feed-forward layer.",
         .use = "To add images or documents to a text model without retraining it: with closed gates it changes "
                "nothing. Without gates take cross-attention.",
         .example = "attend compute gated-cross-attention --sequence-length 64 --sequence-length-k 256 --heads 8"},
        option_table, port_table)))

}  // namespace attend::ATTEND_ISA
