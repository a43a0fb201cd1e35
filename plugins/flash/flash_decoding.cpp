// SPDX-License-Identifier: Apache-2.0
// flash-decoding: exact attention of few queries over a long cache, whose keys are computed in parts.
//
// Paper    Dao, Haziza, Massa, Sizov 2023, "Flash-Decoding for long-context inference"
// Formula  o_i = sum_j softmax_j(softcap(scale q_i . k_j) + bias_ij - m_h |i' - j|) v_j, i' = i + Lk - Lq; each part s of the
//          keys gives o_s and lse_s, and o = sum_s exp(lse_s - lse) o_s, lse = ln sum_s exp lse_s
// Cost     2 B Hq Nq Lk (D + Dv) flops; keys and values are read once for each key head, which bounds the time
// Differs  key lengths alone move positions: a cache has no padding in front; empty rows have LSE minus infinity

#include "attend/author/cache_rows.hpp"
#include "flash_decoding_call.hpp"

namespace attend::ATTEND_ISA {
namespace {

using namespace decoding;

constexpr const char* packings[] = {"auto", "true", "false", nullptr};
constexpr const char* kv_dtypes[] = {"auto", "fp32", "fp16", "bf16", "int8", "e4m3", nullptr};
constexpr const char* validations[] = {"none", "shapes", "full", nullptr};
constexpr OptionRow option_table[] = {
    common::causal("true"),
    common::causal_alignment("!causal_offset & causal | !causal_offset & windowed | !causal_offset & alibi_slopes"),
    common::causal_offset("causal | windowed | alibi_slopes"),
    ATTEND_SCORE_OPTIONS,
    ATTEND_WINDOW_OPTIONS,
    option_int(ATTEND_FIELD(num_splits), "0", {0, 256}, "parts that the keys are computed in; 0: from the sizes"),
    option_int(ATTEND_FIELD(block_kv), "128", {16, 4096},
               "keys that stay in one part, and that share a scale; a multiple of 16"),
    option_enum(ATTEND_FIELD(pack_gqa), "\"auto\"", packings,
                "query heads of a key head are computed together; auto: where there are several"),
    option_enum(ATTEND_FIELD(kv_dtype), "\"auto\"", kv_dtypes,
                "keys and values count as this type: float ones are rounded to a narrower one; auto: as they are"),
    common::resolved(ATTEND_TYPE_FLOAT, "dropout", "0", {0, 0}, "there is none: 0"),
    common::resolved(ATTEND_TYPE_BOOL, "return_lse", "false", {0, 1}, "return the log of the sum of exponentials too"),
    common::resolved(ATTEND_TYPE_BOOL, "deterministic", "true", {0, 1},
                     "same bits for any number of threads; this engine always keeps that"),
    option_enum(ATTEND_FIELD(validate), "\"shapes\"", validations,
                "full: refuse NaN and infinity in what is read as well"),
};

constexpr uint64_t cache_types = stored_floats | ATTEND_I8 | ATTEND_U8 | ATTEND_F8_E4M3;
constexpr attend_port cached(attend_port port) {
    port.dtypes = cache_types;
    return port;
}
constexpr attend_port port_table[] = {
    stored(common::query_port()),
    cached(common::key_port("!key_pages: B,Hkv,Nk,D", "keys, or codes with key_scale; absent: query")),
    cached(common::value_port("!key_pages: B,Hkv,Nk,Dv", "values, or codes with value_scale; absent: key")),
    ATTEND_MASK_PORTS,
    input_port(0, "key_pages", "P,Hkv,n,D", "pages of n keys in place of key; with block_table and key_lengths",
               ATTEND_OPTIONAL, cache_types),
    input_port(0, "value_pages", "key_pages: P,Hkv,n,Dv", "pages of n values", 0, cache_types),
    input_port(0, "block_table", "key_pages: B,T", "page of each n keys of an item; not read behind its length", 0,
               ATTEND_I32),
    input_port(0, "key_scale", "key_pages: P,Hkv,1 | B,Hkv,ceil(Nk/block_kv)",
               "what codes are multiplied by: for each page, or each block_kv keys", ATTEND_OPTIONAL),
    input_port(0, "value_scale", "key_pages: P,Hkv,1 | B,Hkv,ceil(Nk/block_kv)", "as key_scale, for values",
               ATTEND_OPTIONAL),
    input_port(0, "alibi_slopes", "Hq | B,Hq", "ALiBi slope m of each head: scores lose m |i' - j|", ATTEND_OPTIONAL),
    stored(output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result")),
    common::lse_port(),
};

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    if (options.block_kv % 16 != 0)
        return (Message() << "flash-decoding: option \"block_kv\" is " << options.block_kv
                          << "; accepted: a multiple of 16 from 16 to 4096")
            .fail(error, ATTEND_BAD_OPTION, "block_kv");
    const Kept kept = kept_in(desc.bindings);
    if (!kept.key || !kept.value) return ATTEND_OK;  // a question about sizes
    if (kept.pages && !attend_find(&desc.bindings, ATTEND_K_LENGTHS))
        return attend_fail(error, ATTEND_BAD_SHAPE,
                           "flash-decoding: key_lengths is missing; accepted with pages: the keys of each item, [B]",
                           "key_lengths");
    return check_types(options, desc, kept, error);
}

uint64_t workspace(const Options& options, const PlanArgs& args) { return decoding_workspace(options, *args.desc); }

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    return run_decoding(options, args, context);
}

void cost(const Options&, const PlanArgs& args, attend_cost& cost) {
    softmax_cost(*args.desc, visible_pairs(*args.desc), cost);
}

}  // namespace

ATTEND_MECHANISM(
    flash_decoding,
    described<check, workspace, forward, cost>(
        {.name = "flash-decoding",
         .category = "flash",
         .title = "Flash-Decoding",
         .summary = "Exact attention of a few new queries over a long cache of keys and values, which may lie in pages "
                    "or be kept in 8 bits.",
         .reference = "Dao, Haziza, Massa, Sizov 2023, Flash-Decoding for long-context inference",
         .time = "O(n d)",
         .space = "O(d)",
         .caps = (softmax_caps & ~(ATTEND_CAP_SCORES_OUT | ATTEND_CAP_DROPOUT)) | position_caps,
         .formula = "s_ij = scale q_i.k_j (capped, biased, masked), query i at position i + Lk - Lq\n"
                    "for each part S of the keys: lse_S = ln sum_j exp s_ij, o_S = sum_j exp(s_ij - lse_S) v_j\n"
                    "lse_i = ln sum_S exp lse_S;  o_i = sum_S exp(lse_S - lse_i) o_S",
         .cost = "Every key and value is read once for all query heads that share it: the time of a step is that of "
                 "reading the cache. bf16 halves it, codes of 8 bits quarter it.",
         .use = "One or a few new tokens against a cache: text generation, step by step. Pages let sequences of "
                "different length share memory; take flash-attention-v2 for the prompt itself.",
         .example = "attend compute flash-decoding --sequence-length 1 --sequence-length-k 4096 --heads 8 --kv-heads 2",
         .write_rows = write_cache_rows},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
