// SPDX-License-Identifier: Apache-2.0
// memory-attention: the k best of many stored slots per query, mixed with attention to the local keys.
//
// Paper    Wu, Rabe, Hutchins, Szegedy 2022 (Memorizing Transformers), arXiv:2203.08913, section 3
// Formula  O_mem = softmax over the top_k slots of largest q . k; O_loc = local attention
//          gate: s O_mem + (1 - s) O_loc, s = sigmoid(gate_bias_h); joint: one softmax over both; memory: O_mem
// Cost     O(Nq * M * D) for the selection, which is exact, O(Nq * top_k * (D + Dv)) behind it, and the local part
// Differs  selection is exact where the published code takes one winner per bucket; with an empty memory the gate does not
//          shrink the local part

#include <math.h>

#include "attend/author/block.hpp"
#include "attend/toolkit/block/normalized_scores.hpp"
#include "attend/toolkit/block/retrieval.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    int32_t mode, normalize, local_causal;
    int64_t top_k, rerank_heads;
};

constexpr const char* modes[] = {"gate", "joint", "memory", nullptr};
constexpr OptionRow option_table[] = {
    option_enum(offsetof(Options, mode), "mode", "\"gate\"", modes,
                "gate: a share per head; joint: one softmax over both; memory: no local part"),
    option_int(offsetof(Options, top_k), "top_k", "32", {0, 2147483647}, "slots per query; 0: all"),
    option_bool(offsetof(Options, normalize), "normalize", false, "queries and keys of length 1, and attn_scale"),
    common::scale("factor before softmax; left out or 0: 1/sqrt(head width), with normalize 1; times attn_scale"),
    option_bool(offsetof(Options, local_causal), "local_causal", true, "hide local keys that come after the query",
                "mode!=memory"),
    common::resolved(ATTEND_TYPE_BOOL, "causal", nullptr, {0, 1}, "another name of local_causal", nullptr,
                     "mode!=memory"),
    common::causal_alignment("mode!=memory & !causal_offset"),
    common::causal_offset("mode!=memory"),
    common::window_size("mode!=memory"),
    common::window_left("mode!=memory"),
    common::window_right("mode!=memory"),
    common::softcap(),
    ATTEND_DROPOUT_OPTIONS,
    option_int(offsetof(Options, rerank_heads), "rerank_heads", "1", {1, 65536},
               "parts of a vector that is reranked, a divisor of D", "rerank"),
};

constexpr attend_port port_table[] = {
    stored(common::query_port()),
    stored(input_port(ATTEND_K, "key", "B,Hkv,Nk,D", "local keys; absent: no local part", ATTEND_OPTIONAL)),
    stored(attend_port{sizeof(attend_port), ATTEND_V, ATTEND_INPUT | ATTEND_OPTIONAL, 0, "value", "B,Hkv,Nk,Dv",
                       "local values; absent: key", "key", ATTEND_F32}),
    input_port(0, "memory_key", "Bm,Hm,M,D", "keys of the slots; Bm 1 or B, Hm 1, Hkv or Hq", ATTEND_OPTIONAL),
    input_port(0, "memory_value", "Bm,Hm,M,Dv", "values of the slots", ATTEND_OPTIONAL),
    input_port(0, "memory_lengths", "Bm", "slots in use, the first ones", ATTEND_OPTIONAL, length_types),
    input_port(0, "memory_valid", "Bm,M", "non-zero: the slot is in use", ATTEND_OPTIONAL, ATTEND_U8),
    ATTEND_MASK_PORTS,
    weight_port("gate_bias", "mode=gate: Hq", "zeros as gateBias", "share of the memory, before the logistic function"),
    weight_port("attn_scale", "normalize: Hq", "constant(20) as attnScale", "scale of each head; its size counts"),
    stored(output_port(ATTEND_OUT, "output", "B,Hq,Nq,or(Dv,D)", "result")),
    output_port(ATTEND_LSE, "lse", "mode!=gate: B,Hq,Nq", "joint: of both parts; memory: of the chosen slots",
                ATTEND_OPTIONAL),
    output_port(0, "indices", "top_k=0: B,Hq,Nq,or(M,0) | B,Hq,Nq,top_k", "chosen slots, best first; -1: none", 0,
                ATTEND_I32),
    output_port(0, "weights", "top_k=0: B,Hq,Nq,or(M,0) | B,Hq,Nq,top_k", "their weights, before dropout"),
};

Mix mix_of(const Options& options) { return static_cast<Mix>(options.mode); }
int64_t number(const attend_array& values, const char* name, int64_t otherwise) {
    const attend_value* value = attend_find_option(&values, name);
    return value != nullptr && value->type != 0 ? value->u.i : otherwise;
}

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    const auto input = [&](const char* name) { return attend_find_name(&desc.bindings, name); };
    const attend_tensor *key = attend_find(&desc.bindings, ATTEND_K), *memory = input("memory_key");
    Message text;
    text << "memory-attention: ";
    const auto option = [&](const char* name, Message& what) { return what.fail(error, ATTEND_BAD_OPTION, name); };
    const auto shape = [&](const char* name, Message& what) { return what.fail(error, ATTEND_BAD_SHAPE, name); };
    if (was_given(*args.values, "causal") && was_given(*args.values, "local_causal") &&
        number(*args.values, "causal", 0) != options.local_causal)
        return option("local_causal", text << "options \"causal\" and \"local_causal\" differ; accepted: one of them, "
                                              "or the same value twice");
    if (desc.head_dim % options.rerank_heads != 0)
        return option("rerank_heads", text << "option \"rerank_heads\" is " << options.rerank_heads
                                           << " for the head width " << desc.head_dim << "; accepted: a divisor");
    if (mix_of(options) == Mix::gate && (desc.flags & ATTEND_PLAN_NEED_LSE))
        return (text << "lse is not defined in mode gate; accepted: mode joint or memory, or a call without lse")
            .fail(error, ATTEND_UNSUPPORTED, "lse");
    if (!attend_find(&desc.bindings, ATTEND_Q)) return ATTEND_OK;  // sizes alone
    if (mix_of(options) != Mix::memory && !key)
        return option("mode", text << "option \"mode\" is " << modes[options.mode]
                                   << " without local keys; accepted: key and value given, or mode memory");
    if (mix_of(options) == Mix::memory && (key || attend_find(&desc.bindings, ATTEND_V)))
        return option("mode",
                      text << "option \"mode\" is memory with local keys or values; accepted: no key and value, "
                              "or mode gate or joint");
    if (input("memory_lengths") && input("memory_valid"))
        return option("memory_valid", text << "memory_valid and memory_lengths are both given; accepted: one of them");
    if (!memory != !input("memory_value"))
        return shape("memory_value", text << (memory ? "memory_value" : "memory_key")
                                          << " is missing; accepted: memory_key and memory_value, or neither");
    if (!memory && (input("memory_lengths") || input("memory_valid")))
        return shape("memory_key", text << "memory_key is missing; accepted: memory_key with "
                                        << (input("memory_valid") ? "memory_valid" : "memory_lengths"));
    if (!memory) return ATTEND_OK;
    const int64_t items = memory->shape[0], heads = memory->shape[1];
    if (items != 1 && items != desc.batch)
        return shape("memory_key", text << "memory_key has " << items << " items for a batch of " << desc.batch
                                        << "; accepted: 1 or " << desc.batch);
    const bool divides = heads > 0 && desc.num_q_heads % heads == 0;
    if (!(key ? heads == 1 || heads == desc.num_kv_heads || heads == desc.num_q_heads : divides))
        return shape("memory_key",
                     text << "memory_key has " << heads
                          << " heads; accepted: " << (key ? "1, those of key (" : "a divisor of those of query (")
                          << (key ? desc.num_kv_heads : desc.num_q_heads) << (key ? "), or those of query" : ")"));
    return ATTEND_OK;
}

// The plan as the local part sees it: causal under either name, windows that follow from it.
attend_plan_desc local_desc(const Options& options, const attend_plan_desc& desc, const attend_array& values) {
    attend_plan_desc local = desc;
    const bool causal = number(values, "causal", options.local_causal) != 0;
    local.flags = (desc.flags & ~static_cast<uint32_t>(ATTEND_PLAN_CAUSAL)) | (causal ? ATTEND_PLAN_CAUSAL : 0u);
    const int64_t window = number(values, "window_size", 0), left = number(values, "window_left", -1),
                  right = number(values, "window_right", -1);
    if (left < 0 && right < 0 && window > 0) local.window_right = causal ? 0 : window;
    return local;
}

// What stands in the workspace, in this order, and behind it the scratch of the engines one after the other.
struct Pieces {
    Scratch scratch;
    double *scale, *gate;
    float *query_factor{}, *key_factor{}, *lse{}, *local{};
    bool narrow;

    Pieces(void* memory, const Options& options, const attend_plan_desc& desc, const attend_tensor* key,
           const attend_tensor* slots, const attend_tensor* output)
        : scratch(memory),
          scale(scratch.space.take<double>(desc.num_q_heads)),
          gate(scratch.space.take<double>(desc.num_q_heads)),
          narrow(output == nullptr || output->dtype_bits != 32) {
        const int64_t rows = desc.batch * desc.num_q_heads * desc.q_len;
        if (key && options.normalize) {
            query_factor = scratch.take(rows);
            key_factor = scratch.take(desc.batch * desc.num_kv_heads * desc.kv_len);
        }
        if (key && slots) lse = scratch.take(rows);
        if (key && slots && narrow) local = scratch.take(rows * desc.value_dim);
    }
};

Retrieval retrieval_of(const Options& options, const attend_plan_desc& desc, const attend_array& bindings,
                       const attend_tensor* query) {
    Retrieval r{};
    r.query = query;
    r.key = attend_find_name(&bindings, "memory_key");
    r.value = attend_find_name(&bindings, "memory_value");
    r.lengths = attend_find_name(&bindings, "memory_lengths");
    r.valid = attend_find_name(&bindings, "memory_valid");
    r.mix = mix_of(options);
    r.normalize = options.normalize != 0;
    r.top_k = options.top_k;
    r.softcap = desc.softcap;
    r.dropout = desc.dropout;
    return r;
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    const attend_plan_desc& desc = *args.desc;
    const attend_tensor *key = attend_find(&desc.bindings, ATTEND_K), *query = attend_find(&desc.bindings, ATTEND_Q);
    const Retrieval r = retrieval_of(options, desc, desc.bindings, query);
    const Pieces pieces(nullptr, options, desc, key, r.key, attend_find(&desc.bindings, ATTEND_OUT));
    attend_plan_desc plain = desc;
    plain.bindings.count = 0;
    uint64_t most = larger_bytes(tile_workspace(desc), tile_workspace(plain));
    if (query && r.key) most = larger_bytes(most, retrieval_workspace(r, desc.max_workers));
    return pieces.scratch.space.used() + most;
}

attend_status check_lengths(const attend_tensor* lengths, int64_t slots, attend_error* error) {
    for (int64_t at = 0; lengths && at < lengths->shape[0]; ++at)
        if (const int64_t length = integer_at(lengths, at); length < 0 || length > slots)
            return (Message() << "memory-attention: memory_lengths[" << at << "] is " << length << "; accepted: 0 to "
                              << slots)
                .fail(error, ATTEND_BAD_SHAPE, "memory_lengths");
    return ATTEND_OK;
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    const attend_plan_desc desc = local_desc(options, *args.desc, *args.values);
    Retrieval r = retrieval_of(options, desc, *args.bindings, args.query);
    const int64_t slots = r.key ? r.key->shape[2] : 0;
    if (const attend_status status = check_lengths(r.lengths, slots, context.error)) return status;
    Pieces pieces(context.workspace, options, desc, args.key, r.key, args.output);
    const Context rest = pieces.scratch.rest(context);
    const attend_tensor *gate_bias = attend_find_name(args.weights, "gate_bias"),
                        *attn_scale = attend_find_name(args.weights, "attn_scale");
    const auto weight = [](const attend_tensor* tensor, int64_t at) {
        return static_cast<double>(static_cast<const float*>(tensor->data)[at * tensor->strides[0]]);
    };
    const double base = desc.scale == 0.0 && options.normalize ? 1.0 : resolved_scale(desc);
    for (int64_t h = 0; h < desc.num_q_heads; ++h) {
        pieces.scale[h] = base * (attn_scale ? ::fabs(weight(attn_scale, h)) : 1.0);
        pieces.gate[h] = gate_bias ? 1.0 / (1.0 + ::exp(-weight(gate_bias, h))) : 1.0;
    }
    OwnTensor local, local_lse;
    describe(local, pieces.local, desc.batch, desc.num_q_heads, desc.q_len, desc.value_dim);
    describe(local_lse, pieces.lse, 1, desc.batch, desc.num_q_heads, desc.q_len);
    local_lse.tensor.ndim = 3, local_lse.tensor.shape = local_lse.shape + 1,
    local_lse.tensor.strides = local_lse.strides + 1;
    const attend_tensor* local_output = pieces.local ? &local.tensor : args.output;
    if (args.key) {
        ForwardArgs part = args;
        part.desc = &desc;
        part.scores = nullptr;
        part.lse = r.key ? &local_lse.tensor : args.lse;
        TileCall call(part, args.query, args.key, args.value, local_output);
        call.problem.scale = base;
        const NormalizedScores scores{pieces.query_factor, pieces.key_factor, desc.num_q_heads, desc.q_len,
                                      desc.num_kv_heads,   desc.kv_len,       desc.softcap};
        attend_status status = ATTEND_OK;
        if (options.normalize) {
            call.problem.scale = 1.0;
            call.problem.softcap = 0.0;
            use_scores(call.problem, scores);
            status = norm_factors(&rest, args.query, pieces.scale, norm_eps, pieces.query_factor);
            if (status == ATTEND_OK) status = norm_factors(&rest, args.key, nullptr, norm_eps, pieces.key_factor);
        }
        if (status == ATTEND_OK) status = run_tiles(call, rest);
        if (status != ATTEND_OK) return status;
        r.local = local_output;
        r.local_lse = &local_lse.tensor;
    }
    r.output = args.output;
    r.lse = args.lse;
    r.indices = attend_find_name(args.bindings, "indices");
    r.weights = attend_find_name(args.bindings, "weights");
    r.scale = pieces.scale;
    r.gate = pieces.gate;
    r.seed = args.exec->seed;
    r.rng_offset = args.exec->rng_offset;
    r.local_keys = args.key ? desc.kv_len : 0;
    return r.key ? retrieve(&rest, r) : no_slots(r);
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc desc = local_desc(options, *args.desc, *args.values);
    const attend_tensor* memory = attend_find_name(&desc.bindings, "memory_key");
    softmax_cost(desc, mix_of(options) == Mix::memory ? 0.0 : visible_pairs(desc), cost);
    if (!memory) return;
    const auto slots = static_cast<double>(memory->shape[2]), wanted = static_cast<double>(options.top_k);
    const auto rows = static_cast<double>(desc.batch * desc.num_q_heads * desc.q_len),
               d = static_cast<double>(desc.head_dim);
    const double chosen = wanted == 0 || wanted > slots ? slots : wanted;
    cost.flops += 2.0 * rows * (slots * d + chosen * (d + static_cast<double>(desc.value_dim)));
    cost.bytes += 4.0 * static_cast<double>(memory->shape[0] * memory->shape[1]) * slots * d;
}

}  // namespace

ATTEND_MECHANISM(
    memory,
    (described<check, workspace, forward, cost>(
        {.name = "memory-attention",
         .category = "cross-attention",
         .title = "Memory attention",
         .summary = "Finds the best of many stored slots for each query and mixes them with the local "
                    "context.",
         .reference = "Wu et al. 2022, Memorizing Transformers, arXiv:2203.08913, section 3",
         .time = "O(n m d + n k d), m slots, k chosen",
         .space = "O(n d + n k)",
         .caps = (softmax_caps & ~static_cast<uint64_t>(ATTEND_CAP_SCORES_OUT)) | ATTEND_CAP_CAUSAL | ATTEND_CAP_WINDOW,
         .numerics = ATTEND_OWN_DEFINITION,
         .formula =
             "best = the top_k slots j of the memory by s_ij = scale q_i.m_j, exact;  memory part = softmax over "
             "them\n"
             "o_i = g memory part + (1 - g) local attention, or one joint softmax over both",
         .cost = "Finding the slots costs one product with every slot, as much as half of dense attention to the "
                 "memory; what follows costs top_k per query. No table of scores is kept.",
         .use = "To look up facts in a large store of past keys and values, or to rerank passages by their best "
                "slots. If all slots matter a little take cross-attention.",
         .example = "attend compute memory-attention --sequence-length 512 --heads 8 --dim 64 --set mode=joint --set "
                    "normalize=true"},
        option_table, port_table)))

}  // namespace attend::ATTEND_ISA
