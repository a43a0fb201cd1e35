// SPDX-License-Identifier: Apache-2.0
// Linear layers y = x W^T + b on the register-tile products: tokens in the lanes, weight rows broadcast as they lie.
#include "attend/toolkit.h"
#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/core/parallel.hpp"
#include "attend/toolkit/core/tensor_view.hpp"
#include "attend/toolkit/core/workspace.hpp"
#include "attend/toolkit/gemm/micro_kernel.hpp"

namespace attend::ATTEND_ISA {
namespace {

// Outputs of one item. An item transposes its tokens once, which 256 outputs make negligible; with few tokens, smaller
// blocks give every worker something to do. No output depends on the choice.
constexpr int64_t wide_block = 256, narrow_block = 64, enough_items = 32;

struct ProjectionSizes {
    int64_t batch, tokens, in, out, tile_lanes, tiles, block, blocks;

    explicit ProjectionSizes(const attend_projection& projection) {
        batch = projection.input->shape[0];
        tokens = projection.input->shape[1];
        in = projection.input->shape[2];
        out = projection.weight->shape[0];
        // Tokens of all batch items follow each other, so that many short sequences still fill the lanes.
        const int64_t rows = batch * tokens;
        tiles = (rows + max_lanes - 1) / max_lanes;
        tile_lanes = tiles == 0 ? 1 : (rows + tiles - 1) / tiles;
        tile_lanes = (tile_lanes + batch_lanes - 1) / batch_lanes * batch_lanes;
        tiles = (rows + tile_lanes - 1) / tile_lanes;
        block = tiles * ((out + wide_block - 1) / wide_block) >= enough_items ? wide_block : narrow_block;
        blocks = (out + block - 1) / block;
    }

    // Sizes that no run with as many tokens or fewer exceeds: tiles are of even heights, so that 96 tokens may take
    // lower ones than 64 do, while callers that learn the number of tokens late reserve for the largest.
    static ProjectionSizes largest(const attend_projection& projection) {
        ProjectionSizes sizes(projection);
        const int64_t rows = sizes.batch * sizes.tokens;
        const int64_t lanes = (rows + batch_lanes - 1) / batch_lanes * batch_lanes;
        sizes.tile_lanes = rows == 0 ? sizes.tile_lanes : (lanes < max_lanes ? lanes : max_lanes);
        const int64_t most_tiles = (rows + max_lanes - 1) / max_lanes;
        sizes.block = most_tiles * ((sizes.out + wide_block - 1) / wide_block) >= enough_items ? wide_block : narrow_block;
        return sizes;
    }
};

struct ProjectionScratch {
    float *tokens, *product, *ones;
    const float** rows;
    float** out_rows;

    static ProjectionScratch take(Workspace& space, const ProjectionSizes& sizes) {
        ProjectionScratch scratch;
        scratch.tokens = space.take<float>(sizes.in * sizes.tile_lanes);
        scratch.product = space.take<float>(sizes.block * sizes.tile_lanes);
        scratch.ones = space.take<float>(sizes.tile_lanes);
        scratch.rows = space.take<const float*>(sizes.tile_lanes);
        scratch.out_rows = space.take<float*>(sizes.tile_lanes);
        return scratch;
    }
    static uint64_t bytes(const ProjectionSizes& sizes) {
        Workspace count;
        take(count, sizes);
        return count.used();
    }
};

struct ProjectionRun {
    TensorView<const float, 3> input;
    TensorView<const float, 2> weight;
    TensorView<const float, 1> bias;
    TensorView<float, 3> output;
    ProjectionSizes sizes;
    unsigned char* memory;
    uint64_t slot_bytes;
    uint32_t slots;
};

template <int V>
void project_tile(const ProjectionRun& run, const ProjectionScratch& scratch, int64_t first_row, int64_t num_lanes,
                  int64_t first_out, int64_t outs) {
    constexpr int64_t lanes = V * batch_lanes;
    for (int64_t lane = 0; lane < lanes; ++lane) {
        const int64_t row = first_row + (lane < num_lanes ? lane : num_lanes - 1);
        const int64_t item = row / run.sizes.tokens, token = row % run.sizes.tokens;
        scratch.rows[lane] = run.input.at(item, token, 0);
        scratch.out_rows[lane] = run.output.at(item, token, first_out);
        scratch.ones[lane] = 1.0f;
    }
    load_lanes<V>(scratch.rows, run.input.strides[2], run.sizes.in, 1.0f, scratch.tokens);
    product<V>(run.weight.at(first_out, 0), run.weight.strides[0], run.weight.strides[1], outs, scratch.tokens,
               run.sizes.in, scratch.product);
    if (run.bias.present)
        for (int64_t out = 0; out < outs; ++out) {
            const Batch bias(*run.bias.at(first_out + out));
            for (int v = 0; v < V; ++v) {
                float* at = scratch.product + out * lanes + v * batch_lanes;
                store(at, load(at) + bias);
            }
        }
    store_lanes<V>(scratch.product, outs, scratch.ones, scratch.out_rows, run.output.strides[2], num_lanes);
}

attend_status run_items(void* user, uint64_t begin, uint64_t end, uint32_t slot) noexcept {
    const ProjectionRun& run = *static_cast<const ProjectionRun*>(user);
    const ProjectionSizes& sizes = run.sizes;
    if (slot >= run.slots) return ATTEND_INTERNAL;
    Workspace space(run.memory + slot * run.slot_bytes);
    const ProjectionScratch scratch = ProjectionScratch::take(space, sizes);
    for (int64_t item = static_cast<int64_t>(begin); item < static_cast<int64_t>(end); ++item) {
        // Neighbouring items share a block of the weight, which then stays in the cache.
        const int64_t first_row = item % sizes.tiles * sizes.tile_lanes;
        const int64_t first_out = item / sizes.tiles * sizes.block;
        const int64_t rows_left = sizes.batch * sizes.tokens - first_row, outs_left = sizes.out - first_out;
        const int64_t num_lanes = rows_left < sizes.tile_lanes ? rows_left : sizes.tile_lanes;
        const int64_t outs = outs_left < sizes.block ? outs_left : sizes.block;
        if (num_lanes > 2 * batch_lanes)
            project_tile<3>(run, scratch, first_row, num_lanes, first_out, outs);
        else if (num_lanes > batch_lanes)
            project_tile<2>(run, scratch, first_row, num_lanes, first_out, outs);
        else
            project_tile<1>(run, scratch, first_row, num_lanes, first_out, outs);
    }
    return ATTEND_OK;
}

attend_status check_tensor(const attend_tensor* tensor, const char* name, int rank, const int64_t* extents,
                           const char* shape, attend_error* error) {
    Message text;
    text << "attend_projection_forward: " << name;
    if (tensor == nullptr || tensor->ndim != rank) {
        text << " has rank " << (tensor == nullptr ? int64_t{-1} : int64_t{tensor->ndim}) << "; accepted: " << shape;
        return text.fail(error, ATTEND_BAD_SHAPE, name);
    }
    bool empty = false;
    for (int dim = 0; dim < rank; ++dim) {
        empty = empty || tensor->shape[dim] == 0;
        if (tensor->shape[dim] >= 0 && (extents[dim] < 0 || tensor->shape[dim] == extents[dim])) continue;
        text << " has extent " << tensor->shape[dim] << " in dimension " << int64_t{dim} << "; accepted: " << shape;
        if (extents[dim] >= 0) text << ", there " << extents[dim];
        return text.fail(error, ATTEND_BAD_SHAPE, name);
    }
    if (!is_f32(tensor)) {
        text << " has type code " << int64_t{tensor->dtype_code} << " of " << int64_t{tensor->dtype_bits}
             << " bits; accepted: float32";
        return text.fail(error, ATTEND_BAD_DTYPE, name);
    }
    if (!empty && tensor->data == nullptr) {
        text << " has no data; accepted: memory for " << shape;
        return text.fail(error, ATTEND_INVALID_ARGUMENT, name);
    }
    return ATTEND_OK;
}

attend_status check_projection(const attend_projection& projection, attend_error* error) {
    const int64_t any[3] = {-1, -1, -1};
    attend_status status = check_tensor(projection.input, "input", 3, any, "[B, N, E]", error);
    if (status != ATTEND_OK) return status;
    const int64_t* input = projection.input->shape;
    const int64_t weight[2] = {-1, input[2]};
    status = check_tensor(projection.weight, "weight", 2, weight, "[O, E]", error);
    if (status != ATTEND_OK) return status;
    const int64_t out = projection.weight->shape[0];
    if (projection.bias != nullptr) status = check_tensor(projection.bias, "bias", 1, &out, "[O]", error);
    if (status != ATTEND_OK) return status;
    const int64_t output[3] = {input[0], input[1], out};
    return check_tensor(projection.output, "output", 3, output, "[B, N, O]", error);
}

}  // namespace
}  // namespace attend::ATTEND_ISA

using namespace attend::ATTEND_ISA;

extern "C" uint64_t ATTEND_KERNEL(attend_projection_workspace)(const attend_projection* projection,
                                                               uint32_t max_workers) {
    if (projection == nullptr || projection->input == nullptr || projection->weight == nullptr) return 0;
    return ProjectionScratch::bytes(ProjectionSizes::largest(*projection)) * (max_workers == 0 ? 1 : max_workers);
}

extern "C" attend_status ATTEND_KERNEL(attend_projection_forward)(const attend_projection* projection,
                                                                  const attend_context* context) {
    const attend_status checked = check_projection(*projection, context->error);
    if (checked != ATTEND_OK) return checked;
    ProjectionRun run{view_of<const float, 3>(projection->input),
                      view_of<const float, 2>(projection->weight),
                      view_of<const float, 1>(projection->bias),
                      view_of<float, 3>(projection->output),
                      ProjectionSizes(*projection),
                      static_cast<unsigned char*>(context->workspace),
                      0,
                      worker_count(context)};
    run.slot_bytes = ProjectionScratch::bytes(run.sizes);
    const uint64_t needed = run.slot_bytes * run.slots;
    if (context->workspace_bytes < needed || (run.memory == nullptr && needed > 0)) {
        Message text;
        text << "attend_projection_forward: workspace has " << static_cast<int64_t>(context->workspace_bytes)
             << " bytes; accepted: at least " << static_cast<int64_t>(needed) << " for " << int64_t{run.slots}
             << " workers";
        return text.fail(context->error, ATTEND_WORKSPACE_TOO_SMALL, "workspace");
    }
    return parallel_items(context, static_cast<uint64_t>(run.sizes.tiles * run.sizes.blocks), run_items, &run);
}
