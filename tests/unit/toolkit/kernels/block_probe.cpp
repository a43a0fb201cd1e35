// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set: lets the unit tests reach the pieces of blocks and of retrieval.
#include "../block_call.hpp"
#include "attend/author/residual_block.hpp"
#include "attend/toolkit/block/best_slots.hpp"

using namespace attend::ATTEND_ISA;

extern "C" attend_status ATTEND_KERNEL(attend_probe_activation)(const attend_context* context, int which, float* data,
                                                                int64_t count) {
    return activate_all(context, static_cast<Activation>(which), data, count);
}

extern "C" attend_status ATTEND_KERNEL(attend_probe_norm)(const attend_context* context,
                                                          const attend_tensor* const* t) {
    return layer_norm(context, t[0], t[1], t[2], t[3]);
}

// t: base or NULL, add, to. kind: 0 no gate, 1 one number, 2 one per head, 3 one per channel.
extern "C" attend_status ATTEND_KERNEL(attend_probe_gated_sum)(const attend_context* context,
                                                               const attend_tensor* const* t, const float* gates,
                                                               int kind) {
    return gated_sum(context, t[0], t[1], Gate{kind == 0 ? nullptr : gates, kind == 2, kind == 3}, t[2]);
}

// t: y, to, gamma, beta, w1, b1, w2, b2.
extern "C" uint64_t ATTEND_KERNEL(attend_probe_feed_forward_workspace)(const attend_tensor* const* t,
                                                                       uint32_t workers) {
    return feed_forward_workspace(t[0]->shape[0], t[0]->shape[1], t[0]->shape[2], t[4]->shape[0], workers);
}
extern "C" attend_status ATTEND_KERNEL(attend_probe_feed_forward)(const attend_context* context,
                                                                  const attend_tensor* const* t, int which,
                                                                  const float* gate) {
    return feed_forward(
        context, FeedForward{t[2], t[3], t[4], t[5], t[6], t[7], static_cast<Activation>(which), Gate{gate, 0, 0}},
        t[0], t[1]);
}

extern "C" attend_status ATTEND_KERNEL(attend_probe_merge)(const attend_context* context,
                                                           const attend_tensor* const* t) {
    return merge_parts(context, t[0], t[1], t[2], t[3]);
}

// The k best of the scores, best first: by selection (k < count) or by sorting all.
extern "C" void ATTEND_KERNEL(attend_probe_best)(const float* scores, int64_t count, int64_t k, uint64_t* room,
                                                 int64_t* slots, float* best) {
    const int64_t filled = k < count ? k : count;
    for (int64_t at = 0; at < count; ++at) room[at] = slot_entry(scores[at], at);
    if (k < count) {
        select_best(room, count, k);
        sort_best(room, k);
    } else {
        sort_all(room, room + count, count);
    }
    for (int64_t at = 0; at < filled; ++at) slots[at] = slot_of(room[at]), best[at] = score_of(room[at]);
}

static ResidualBlock block_of(const attend::test::BlockCall& call) {
    const attend_tensor &z = *call.z, &x = *call.x;
    ResidualBlock block(z.shape[0], z.shape[1], x.shape[1], z.shape[2], x.shape[2], call.weights[6]->shape[0],
                        call.weights[10]->shape[0], call.heads, call.weights[14]->shape[0] / z.shape[2]);
    if (call.items > 0) block.items = call.items, block.q_rows = call.q_rows, block.kv_rows = call.kv_rows;
    return block;
}
extern "C" uint64_t ATTEND_KERNEL(attend_probe_block_workspace)(const attend::test::BlockCall* call, uint32_t workers) {
    return block_of(*call).workspace(workers);
}
extern "C" attend_status ATTEND_KERNEL(attend_probe_block)(const attend_context* context,
                                                           const attend::test::BlockCall* call) {
    const auto& w = call->weights;
    const BlockWeights weights{w[0], w[1],  w[2],  w[3],  w[4],  w[5],  w[6],  w[7],  w[8],
                               w[9], w[10], w[11], w[12], w[13], w[14], w[15], w[16], w[17]};
    return block_of(*call).run(*context, weights, call->z, call->x, call->lengths, call->residual, Activation::gelu_erf,
                               call->to);
}
