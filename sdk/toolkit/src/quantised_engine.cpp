// SPDX-License-Identifier: Apache-2.0
// Attention in low precision: what has to be known of the whole call is prepared, then the tile engine runs with it.
#include <stdio.h>

#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/quantised/bound.hpp"
#include "attend/toolkit/quantised/prepare.hpp"
#include "attend/toolkit/tile/tile_problem.hpp"

namespace attend::ATTEND_ISA {
namespace {

QuantisedRun describe(const attend_quantised_problem& problem, const attend_cpu* cpu) {
    const attend_tile_problem& tile = *problem.tile;
    QuantisedRun run{};
    run.scores = static_cast<Format>(problem.scores);
    run.weights = static_cast<Format>(problem.weights);
    run.values = static_cast<Format>(problem.values);
    run.smooth_keys = (problem.flags & ATTEND_QUANTISED_SMOOTH_KEYS) != 0;
    run.incoherent = (problem.flags & ATTEND_QUANTISED_INCOHERENT) != 0;
    run.smooth_values = (problem.flags & ATTEND_QUANTISED_SMOOTH_VALUES) != 0;
    run.pairs = has_hardware_dots(cpu);
    run.value_pairs = run.pairs && run.weights != Format::none && run.values != Format::none;
    run.integers = has_byte_dots(cpu) ? Integers::bytes : Integers::words;
    run.adds_shift = run.smooth_keys && tile.softcap > 0.0;
    run.query = stored_view(tile.query);
    run.key = stored_view(tile.segments[0].key);
    run.value = stored_view(tile.segments[0].value);
    run.batch = tile.query->shape[0];
    run.q_heads = tile.query->shape[1];
    run.q_len = tile.query->shape[2];
    run.head_dim = tile.query->shape[3];
    run.kv_heads = tile.segments[0].key->shape[1];
    run.kv_len = tile.segments[0].key->shape[2];
    run.value_dim = tile.segments[0].value->shape[3];
    run.rotated = rotated_width(run.head_dim);
    run.key_dim = !run.scaled() ? run.head_dim : run.incoherent ? run.rotated : (run.head_dim + 3) / 4 * 4;
    run.block_q = problem.block_q;
    run.block_k = problem.block_k;
    if (run.scaled()) {
        run.q_blocks = (run.q_len + run.block_q - 1) / run.block_q;
        run.k_blocks = (run.kv_len + run.block_k - 1) / run.block_k;
    }
    run.scale = static_cast<float>(tile.scale);
    const double kept = tile.dropout > 0.0 ? static_cast<double>(dropout_scale(tile.dropout)) : 1.0;
    run.value_factor = static_cast<float>(run.weights == Format::e4m3 ? kept / 256.0 : kept);
    run.query_lengths = tile.query_lengths;
    run.key_lengths = tile.key_lengths;
    return run;
}

BoundRun take_bound(Workspace& space, const QuantisedRun& run, uint32_t workers) {
    BoundRun bound{};
    bound.run = &run;
    bound.slot_bytes = BoundRun::bytes_of_slot(run);
    bound.eps = space.take<float>(run.batch * run.q_heads * BoundRun::parts(run));
    bound.memory = space.take<char>(static_cast<int64_t>(bound.slot_bytes * workers));
    return bound;
}

// A number in words that are short and never say less than it is.
attend_status refuse_bound(const attend_quantised_problem& problem, double bound, attend_error* error) {
    char numbers[2][32];
    snprintf(numbers[0], sizeof numbers[0], "%.6g", problem.max_error);
    snprintf(numbers[1], sizeof numbers[1], "%.6g", bound * (1.0 + 1e-5));
    Message text;
    text << problem.name << ": option \"max_error\" is " << numbers[0] << "; accepted: 0 (no check), or at least "
         << numbers[1] << " (the bound of the errors for these tensors)";
    return text.fail(error, ATTEND_BAD_OPTION, "max_error");
}

attend_status refuse_wild(const attend_quantised_problem& problem, const QuantisedRun& run, attend_error* error) {
    constexpr const char* names[] = {"query", "key", "value"};
    for (int which = 0; which < 3; ++which) {
        if (run.not_finite[which] == 0) continue;
        Message text;
        text
            << problem.name << ": " << names[which]
            << " holds NaN or infinity, or numbers too large to rotate; accepted in a scaled precision: finite numbers "
               "within the lengths";
        return text.fail(error, ATTEND_NUMERIC, names[which]);
    }
    return ATTEND_OK;
}

}  // namespace
}  // namespace attend::ATTEND_ISA

using namespace attend::ATTEND_ISA;

extern "C" uint64_t ATTEND_KERNEL(attend_quantised_workspace)(const attend_quantised_problem* problem,
                                                              uint32_t max_workers) {
    QuantisedRun run = describe(*problem, nullptr);
    // Which processor will run the plan is not known here: room for what the best of this entry keeps.
    run.pairs = ATTEND_HAS_DOTS != 0;
    run.value_pairs = run.pairs && run.weights != Format::none && run.values != Format::none;
    Workspace space;
    const uint32_t workers = max_workers == 0 ? 1 : max_workers;
    QuantisedRun::take(space, run, workers);
    const uint64_t tiles = tiles_workspace(*problem->tile, run.key_dim, workers);
    Workspace bound;
    if (problem->max_error > 0.0) take_bound(bound, run, workers);
    return space.used() + (bound.used() > tiles ? bound.used() : tiles);
}

extern "C" attend_status ATTEND_KERNEL(attend_quantised_forward)(const attend_quantised_problem* problem,
                                                                 const attend_context* context) {
    const attend_status checked = check_tile_problem(*problem->tile, context->error);
    if (checked != ATTEND_OK) return checked;
    QuantisedRun run = describe(*problem, context->host != nullptr ? context->host->cpu : nullptr);
    const uint64_t needed = ATTEND_KERNEL(attend_quantised_workspace)(problem, worker_count(context));
    if (context->workspace_bytes < needed || (context->workspace == nullptr && needed > 0)) {
        Message text;
        text << "attend_quantised_forward: workspace has " << static_cast<int64_t>(context->workspace_bytes)
             << " bytes; accepted: at least " << static_cast<int64_t>(needed);
        return text.fail(context->error, ATTEND_WORKSPACE_TOO_SMALL, "workspace");
    }
    if (run.head_dim > most_rotated) {
        Message text;
        text << problem->name << ": head width " << run.head_dim << "; accepted: 1 to " << most_rotated;
        return text.fail(context->error, ATTEND_BAD_SHAPE, "query");
    }
    Workspace space(context->workspace);
    QuantisedRun::take(space, run, worker_count(context));
    const attend_status prepared = prepare(run, problem->hadamard_seed, context);
    if (prepared != ATTEND_OK) return prepared;
    const attend_status finite = run.scaled() ? refuse_wild(*problem, run, context->error) : ATTEND_OK;
    if (finite != ATTEND_OK) return finite;
    attend_context rest = *context;
    rest.workspace = static_cast<char*>(context->workspace) + space.used();
    rest.workspace_bytes = context->workspace_bytes - space.used();
    if (problem->max_error > 0.0) {
        Workspace room(rest.workspace);
        BoundRun bound = take_bound(room, run, worker_count(context));
        bound.dropout = problem->tile->dropout;
        double worst = 0.0;
        const attend_status found = find_bound(bound, context, worst);
        if (found != ATTEND_OK) return found;
        if (!(worst <= problem->max_error)) return refuse_bound(*problem, worst, context->error);
    }
    return tiles_forward(*problem->tile, &run, &rest);
}
