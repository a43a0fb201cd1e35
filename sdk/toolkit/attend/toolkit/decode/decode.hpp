// SPDX-License-Identifier: Apache-2.0
// Softmax attention for few query rows per key/value head: one token against a cache, one query against a matrix. The
// tile engine asks decode_applies() and hands such problems over; the meaning of a problem is the same on both paths.
#pragma once

#include "attend/toolkit.h"

namespace attend::ATTEND_ISA {

// Whether decode_forward computes this problem: from shapes, types and what is switched on; never from data, nor from
// the number of workers. The problem must be well-formed as far as its tensors' ranks go.
bool decode_applies(const attend_tile_problem& problem);

// Scratch, from shapes alone: 0 where these can never be few rows. The problem may lack types, strides and hooks that the
// call will have.
uint64_t decode_workspace(const attend_tile_problem& problem, uint32_t max_workers);
// For a problem that has been checked and that decode_applies() accepts.
attend_status decode_forward(const attend_tile_problem& problem, const attend_context* context);

}  // namespace attend::ATTEND_ISA
