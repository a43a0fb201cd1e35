// SPDX-License-Identifier: Apache-2.0
// sink-attention: causal attention to a few leading tokens and a sliding window, as streaming language models use it.
//
// Paper    Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks", arXiv:2309.17453
// Formula  softmax attention over { j < sinks } + { i' - window <= j <= i' }
// Cost     O(n (sinks + window) d)

#include "attend/author/tile.hpp"
#include "attend/toolkit/tile/keys/band.hpp"

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    int64_t sinks, window;
};

constexpr OptionRow option_table[] = {
    option_int(ATTEND_FIELD(sinks), "4", {0, 1048576}, "leading tokens that every query sees"),
    option_int(ATTEND_FIELD(window), "256", {0, 1048576}, "keys seen to the left of a query"),
    common::causal("true"),
    common::scale(),
};
constexpr attend_port port_table[] = {
    common::query_port(), common::key_port(),
    common::value_port(), output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result"),
    common::lse_port(),
};

uint64_t workspace(const Options&, const PlanArgs& args) { return tile_workspace(*args.desc); }

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    TileCall call(args);
    BandKeys keys{};
    keys.left = options.window;
    keys.globals.num_leading = &options.sinks;  // causal, on by default, cuts sinks and band alike
    use_keys(call.problem, keys);
    return run_tiles(call, context);
}

}  // namespace

ATTEND_MECHANISM(sink, described<workspace, forward>({.name = "sink-attention",
                                                      .category = "extra",
                                                      .title = "Attention sinks",
                                                      .summary = "A few leading tokens and a sliding window.",
                                                      .reference = "Xiao et al. 2023, arXiv:2309.17453",
                                                      .time = "O(n w d)",
                                                      .space = "O(n d)",
                                                      .caps = ATTEND_CAP_CAUSAL | ATTEND_CAP_GQA | ATTEND_CAP_CROSS |
                                                              ATTEND_CAP_LSE_OUT | ATTEND_CAP_DV_DIFFERS |
                                                              ATTEND_CAP_STRIDED_IO,
                                                      .dtypes = ATTEND_F32,
                                                      .numerics = ATTEND_APPROXIMATE},
                                                     option_table, port_table))

}  // namespace attend::ATTEND_ISA
