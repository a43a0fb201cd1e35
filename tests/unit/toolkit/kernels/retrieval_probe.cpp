// SPDX-License-Identifier: Apache-2.0
// Compiled once per instruction set: lets the unit tests reach the retrieval from a memory.
#include "../retrieval_call.hpp"
#include "attend/toolkit.h"
#include "attend/toolkit/block/retrieval.hpp"

using namespace attend::ATTEND_ISA;

static Retrieval retrieval_of(const attend::test::RetrievalCall& call) {
    Retrieval to{};
    to.query = call.query, to.key = call.key, to.value = call.value;
    to.lengths = call.lengths, to.valid = call.valid;
    to.output = call.output, to.lse = call.lse, to.indices = call.indices, to.weights = call.weights;
    to.scale = call.scale;
    to.mix = Mix::memory;
    to.normalize = call.normalize;
    to.top_k = call.top_k;
    return to;
}
extern "C" uint64_t ATTEND_KERNEL(attend_probe_retrieval_workspace)(const attend::test::RetrievalCall* call,
                                                                    uint32_t workers) {
    return retrieval_workspace(retrieval_of(*call), workers);
}
extern "C" attend_status ATTEND_KERNEL(attend_probe_retrieval)(const attend_context* context,
                                                               const attend::test::RetrievalCall* call) {
    return retrieve(context, retrieval_of(*call));
}
