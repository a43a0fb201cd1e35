// SPDX-License-Identifier: Apache-2.0
// Linear layers y = x W^T + b on the register-tile products. One side of the product lies in the lanes, packed as a panel;
// the other is read as it lies. With many tokens the lanes are outputs, so that tokens go in and out without a transpose;
// with few, tokens are the lanes, so that the weight is read once and never packed.
#include "attend/toolkit.h"
#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/core/parallel.hpp"
#include "attend/toolkit/core/workspace.hpp"
#include "attend/toolkit/gemm/operand.hpp"

namespace attend::ATTEND_ISA {
namespace {

// Features of a block: its panel stays in the second-level cache. Products of floats take a share of it that stays in the
// first, with a block of rows that fits beside it. The sum of each joins those before it in one step, so results depend
// on these two, and on nothing below.
constexpr int64_t most_inner = 1024, float_inner = 192;
// From here on packing the weight once per block of tokens costs less than transposing tokens in and out.
constexpr int64_t many_tokens = 192;
constexpr int64_t token_block = 512;
// Outputs of one item of few tokens; smaller blocks where there would not be something to do for every worker.
constexpr int64_t wide_block = 256, narrow_block = 64, enough_items = 32;
constexpr int64_t staged_rows = 32, lying_rows = 128;

constexpr int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t parts(int64_t n, int64_t of) { return (n + of - 1) / of; }

struct ProjectionSizes {
    int64_t tokens, in, out;
    bool outputs_in_lanes;
    int64_t tile_lanes, tiles;  // of the side in the lanes
    int64_t block, blocks;      // of the other side
    int64_t inner, inner_blocks;

    explicit ProjectionSizes(const attend_projection& projection) {
        tokens = projection.input->shape[0] * projection.input->shape[1];
        in = projection.input->shape[2];
        out = projection.weight->shape[0];
        outputs_in_lanes = tokens >= many_tokens;
        const int64_t lanes = outputs_in_lanes ? out : tokens, rows = outputs_in_lanes ? tokens : out;
        // Tiles of even width: 64 lanes are 2 x 32 rather than 48 and 16.
        tiles = parts(lanes, max_lanes);
        tile_lanes = tiles == 0 ? batch_lanes : parts(parts(lanes, tiles), batch_lanes) * batch_lanes;
        tiles = parts(lanes, tile_lanes);
        const int64_t few = tiles * parts(rows, wide_block) >= enough_items ? wide_block : narrow_block;
        blocks = parts(rows, outputs_in_lanes ? token_block : few);
        block = blocks == 0 ? 1 : parts(parts(rows, blocks), tile_rows) * tile_rows;
        blocks = parts(rows, block);
        inner_blocks = in == 0 ? 1 : parts(in, most_inner);
        inner = parts(parts(in, inner_blocks), batch_lanes) * batch_lanes;
    }
};

struct ProjectionScratch {
    float *panel, *staged, *tile, *addend;

    // Enough for every number of tokens: callers that learn it late reserve once.
    static ProjectionScratch take(Workspace& space, const ProjectionSizes& sizes) {
        ProjectionScratch scratch;
        scratch.panel = space.take<float>(sizes.inner * max_lanes);
        scratch.staged = space.take<float>(sizes.inner * staged_rows);
        scratch.tile = space.take<float>(token_block * max_lanes);
        scratch.addend = space.take<float>(wide_block > max_lanes ? wide_block : max_lanes);
        return scratch;
    }
    static uint64_t bytes(const ProjectionSizes& sizes) {
        Workspace count;
        take(count, sizes);
        return count.used();
    }
};
static_assert(token_block >= wide_block && token_block % tile_rows == 0 && wide_block % tile_rows == 0);

struct ProjectionRun {
    Operand input, weight, output;
    const attend_tensor* bias;
    ProjectionSizes sizes;
    bool dots;  // of bf16 pairs, by the processor
    unsigned char* memory;
    uint64_t slot_bytes;
    uint32_t slots;
};

// tile[row][lane] (=, +=) `count` features of `rows` rows against the panel.
template <int V>
void multiply(const ProjectionRun& run, const Operand& side, const ProjectionScratch& scratch, int64_t first_row,
              int64_t rows, int64_t begin, int64_t count, Into into) {
    constexpr int64_t lanes = V * batch_lanes;
    const bool as_it_lies = side.evenly_spaced() && (run.dots ? side.inner_stride == 1 : side.element == Element::f32);
    const int64_t step = as_it_lies ? lying_rows : staged_rows;
    for (int64_t row = 0; row < rows; row += step) {
        const int64_t used = least(step, rows - row);
        const void* from = scratch.staged;
        int64_t row_stride = run.sizes.inner, inner_stride = 1;
        if (as_it_lies) {
            from = side.at(first_row + row, begin);
            row_stride = side.row_stride;
            inner_stride = side.inner_stride;
        } else if (run.dots) {
            for (int64_t at = 0; at < used; ++at)
                stage_halves(side, first_row + row + at, begin, count,
                             reinterpret_cast<uint16_t*>(scratch.staged) + at * row_stride);
        } else {
            for (int64_t at = 0; at < used; ++at)
                stage_floats(side, first_row + row + at, begin, count, scratch.staged + at * row_stride);
        }
        float* to = scratch.tile + row * lanes;
        if (run.dots)
            pair_product<V, Dots::hardware>(from, 2 * row_stride, 4, used,
                                            reinterpret_cast<const uint32_t*>(scratch.panel), count, to, into,
                                            scratch.addend);
        else
            for (int64_t at = 0; at == 0 || at < count; at += float_inner)
                product<V>(static_cast<const float*>(from) + at * inner_stride, row_stride, inner_stride, used,
                           scratch.panel + at * lanes, least(float_inner, count - at), to, at == 0 ? into : Into::add,
                           scratch.addend);
    }
}

float bias_at(const attend_tensor* bias, int64_t output) {
    if (bias == nullptr) return 0.0f;
    const int64_t at = output * bias->strides[0];
    if (bias->dtype_bits == 32) return static_cast<const float*>(bias->data)[at];
    const uint16_t code = static_cast<const uint16_t*>(bias->data)[at];
    return bias->dtype_code == ATTEND_CODE_BFLOAT ? bf16_to_float(code) : f16_to_float(code);
}

template <int V>
void project_tile(const ProjectionRun& run, const ProjectionScratch& scratch, int64_t first_lane, int64_t num_lanes,
                  int64_t first_row, int64_t rows, bool packed) {
    const ProjectionSizes& sizes = run.sizes;
    const Operand& lanes = sizes.outputs_in_lanes ? run.weight : run.input;
    const Operand& other = sizes.outputs_in_lanes ? run.input : run.weight;
    for (int64_t part = 0; part < sizes.inner_blocks; ++part) {
        const int64_t begin = part * sizes.inner, count = least(sizes.inner, sizes.in - begin);
        if (!packed) pack_panel<V>(lanes, first_lane, num_lanes, begin, count, run.dots, scratch.panel);
        multiply<V>(run, other, scratch, first_row, rows, begin, count, part == 0 ? Into::overwrite : Into::add);
    }
    const int64_t first_output = sizes.outputs_in_lanes ? first_lane : first_row;
    const int64_t outputs = sizes.outputs_in_lanes ? num_lanes : rows;
    const int64_t filled = sizes.outputs_in_lanes ? V * batch_lanes : rows;
    for (int64_t at = 0; at < filled; ++at)
        scratch.addend[at] = at < outputs ? bias_at(run.bias, first_output + at) : 0.0f;
    if (sizes.outputs_in_lanes)
        write_tile<V>(scratch.tile, scratch.addend, first_row, rows, first_lane, num_lanes, run.output, false);
    else
        write_tile<V>(scratch.tile, scratch.addend, first_lane, num_lanes, first_row, rows, run.output, true);
}

attend_status run_items(void* user, uint64_t begin, uint64_t end, uint32_t slot) noexcept {
    const ProjectionRun& run = *static_cast<const ProjectionRun*>(user);
    const ProjectionSizes& sizes = run.sizes;
    if (slot >= run.slots) return ATTEND_INTERNAL;
    Workspace space(run.memory + slot * run.slot_bytes);
    const ProjectionScratch scratch = ProjectionScratch::take(space, sizes);
    const int64_t lanes = sizes.outputs_in_lanes ? sizes.out : sizes.tokens;
    const int64_t rows = sizes.outputs_in_lanes ? sizes.tokens : sizes.out;
    int64_t packed = -1;
    for (int64_t item = static_cast<int64_t>(begin); item < static_cast<int64_t>(end); ++item) {
        // Neighbouring items share a panel, which is then packed already where it is the only one of its rows.
        const int64_t tile = item / sizes.blocks;
        const int64_t first_lane = tile * sizes.tile_lanes, first_row = item % sizes.blocks * sizes.block;
        const int64_t num_lanes = least(sizes.tile_lanes, lanes - first_lane);
        const int64_t num_rows = least(sizes.block, rows - first_row);
        const bool ready = tile == packed;
        if (num_lanes > 2 * batch_lanes)
            project_tile<3>(run, scratch, first_lane, num_lanes, first_row, num_rows, ready);
        else if (num_lanes > batch_lanes)
            project_tile<2>(run, scratch, first_lane, num_lanes, first_row, num_rows, ready);
        else
            project_tile<1>(run, scratch, first_lane, num_lanes, first_row, num_rows, ready);
        packed = sizes.inner_blocks == 1 ? tile : -1;
    }
    return ATTEND_OK;
}

Operand operand_of(const attend_tensor* tensor) {
    Operand operand;
    element_of(tensor, operand.element);
    const int last = tensor->ndim - 1;
    operand.data = static_cast<unsigned char*>(tensor->data);
    operand.inner_stride = tensor->strides[last];
    operand.row_stride = tensor->strides[last - 1];
    operand.group = tensor->shape[last - 1] > 0 ? tensor->shape[last - 1] : 1;
    operand.group_stride = last == 2 ? tensor->strides[0] : 0;
    operand.rows = operand.group * (last == 2 ? tensor->shape[0] : 1);
    return operand;
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
    Element element;
    if (!element_of(tensor, element)) {
        text << " has type code " << int64_t{tensor->dtype_code} << " of " << int64_t{tensor->dtype_bits}
             << " bits; accepted: float32, bfloat16, float16";
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
    return ProjectionScratch::bytes(ProjectionSizes(*projection)) * (max_workers == 0 ? 1 : max_workers);
}

extern "C" attend_status ATTEND_KERNEL(attend_projection_forward)(const attend_projection* projection,
                                                                  const attend_context* context) {
    const attend_status checked = check_projection(*projection, context->error);
    if (checked != ATTEND_OK) return checked;
    ProjectionRun run{operand_of(projection->input),
                      operand_of(projection->weight),
                      operand_of(projection->output),
                      projection->bias,
                      ProjectionSizes(*projection),
                      false,
                      static_cast<unsigned char*>(context->workspace),
                      0,
                      worker_count(context)};
    run.dots = run.input.element == Element::bf16 && run.weight.element == Element::bf16 && context->host != nullptr &&
               has_hardware_dots(context->host->cpu);
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
