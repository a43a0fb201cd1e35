// SPDX-License-Identifier: Apache-2.0
// strided-attention: every query sees each stride-th key, and on request the keys near it; exact over those.
//
// Paper    the strided factor of Child et al. 2019, arXiv:1904.10509, section 4.3, taken alone; dilated windows of Beltagy
//          et al. 2020, arXiv:2004.05150, section 3.1
// Formula  relative: A(i) = { j : j - p_i divisible by stride }; absolute: A = { j : j mod stride = offset }
//          max_taps s: relative |j - p_i| <= s stride; absolute the s nearest of A at or below p_i and the s nearest above
//          S(i) = A(i) + { j : |j - p_i| <= local_window }; causal cuts at j <= p_i
// Cost     O(Nq (Nk / stride + 2 local_window) D), with max_taps O(Nq (2 max_taps + 1 + 2 local_window) D)
// Differs  published code transposes the sequence and wants its length divisible; here classes are read where they are

#include "attend/toolkit/core/message.hpp"
#include "strided_keys.hpp"

namespace attend::ATTEND_ISA {
namespace {

enum Phase : int32_t { relative, absolute };

struct Options {
    int64_t stride, offset, max_taps, local_window;
    int32_t phase;
};

constexpr double longest = 2147483647.0;
constexpr const char* phases[] = {"relative", "absolute", nullptr};
constexpr OptionRow option_table[] = {
    option_int(ATTEND_FIELD(stride), "0", {0, longest}, "distance of the keys seen; 0: square root of Nk, rounded up"),
    option_enum(
        ATTEND_FIELD(phase), "\"relative\"", phases,
        "relative: counted from the query's position; absolute: from key `offset`, the same keys for all queries"),
    option_int(ATTEND_FIELD(offset), "0", {0, longest}, "first key of phase absolute, below stride"),
    option_int(ATTEND_FIELD(max_taps), "0", {0, longest}, "strided keys seen in each direction, nearest first; 0: all"),
    option_int(ATTEND_FIELD(local_window), "0", {0, longest}, "keys seen on each side beside the strided ones"),
    ATTEND_CAUSAL_OPTIONS,
    ATTEND_WINDOW_OPTIONS,
    ATTEND_SCORE_OPTIONS,
    ATTEND_DROPOUT_OPTIONS,
};

constexpr attend_port port_table[] = {
    stored(common::query_port()),
    stored(common::key_port()),
    stored(common::value_port()),
    ATTEND_MASK_PORTS,
    stored(output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result")),
    common::lse_port(),
    common::scores_port(),
};

// Options with the default stride filled in.
StridedKeys keys_of(const Options& options, const attend_plan_desc& desc) {
    return {options.stride > 0 ? options.stride : default_stride(desc.kv_len),
            options.phase == absolute ? options.offset : -1, options.max_taps, options.local_window, desc.kv_len};
}

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const int64_t stride = keys_of(options, *args.desc).stride;
    Message text;
    text << "strided-attention: option \"offset\" is " << options.offset;
    if (options.phase == relative && options.offset != 0)
        return (text << " with phase relative; accepted: 0, or phase absolute")
            .fail(error, ATTEND_BAD_OPTION, "offset");
    if (options.offset >= stride && options.offset > 0)
        return (text << " and the stride is " << stride << "; accepted: 0 to " << stride - 1)
            .fail(error, ATTEND_BAD_OPTION, "offset");
    return ATTEND_OK;
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    return strided_workspace(keys_of(options, *args.desc), *args.desc);
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    const StridedKeys keys = keys_of(options, *args.desc);
    const TileCall call(args);
    if (args.scores != nullptr) return run_shown(call, keys, context);
    return run_strided(call, keys, args, context);
}

attend_status pattern(const Options& options, const PlanArgs& args, const PatternArgs& asked, const Context&) {
    return answer_ranges(*args.desc, asked,
                         [&](int64_t, int64_t p, KeyRanges& to) { keys_of(options, *args.desc).ranges(p, to); });
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    const StridedKeys keys = keys_of(options, desc);
    softmax_cost(desc, ranges_pairs(desc, [&](int64_t p, KeyRanges& to) { keys.ranges(p, to); }), cost);
}

double error_bound(const Options& options, const PlanArgs& args) {
    const StridedKeys keys = keys_of(options, *args.desc);
    return keys.stride == 1 && keys.taps == 0 ? 0.0 : no_limit;
}

}  // namespace

ATTEND_MECHANISM(
    strided,
    described<check, workspace, forward, cost, error_bound, pattern>(
        {.name = "strided-attention",
         .category = "sparse",
         .title = "Strided attention",
         .summary =
             "Every query sees each n-th key, counted from itself or from a fixed key, and on request the keys near "
             "it.",
         .reference =
             "Child et al. 2019, Generating Long Sequences with Sparse Transformers, arXiv:1904.10509, section 4.3",
         .time = "O(n sqrt(n) d)",
         .space = "O(n d)",
         .numerics = ATTEND_APPROXIMATE,
         .formula = "relative: A = keys j with j - p divisible by stride, p the query's position\n"
                    "absolute: A = keys j with j mod stride = offset\n"
                    "max_taps > 0: only the max_taps nearest of A on each side\n"
                    "S = A and the keys with |j - p| <= local_window; causal: only j <= p\n"
                    "output = softmax over S of scale * q . k, times V",
         .cost = "Nk / stride keys per query, and 2 local_window + 1 near ones: with the default stride O(n sqrt(n)). "
                 "Classes of "
                 "positions are dense problems of their own, so nothing is masked.",
         .use = "For periodic data: rows of images, channels, records of fixed size, with stride the period. For text "
                "take "
                "sparse-transformer-attention, which joins strided and local keys, or local-attention.",
         .example = "attend compute strided-attention --sequence-length 256 --heads 4 --set stride=16"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
