// SPDX-License-Identifier: Apache-2.0
// One query tile from its queries to its outputs: block by block of keys, product, modifiers, softmax update, value
// product. A second pass with the final state writes the weights.
//
// The tile's lanes fill one to three vectors. Where causal or a window cut the keys of a block, vectors of lanes that see
// none of some keys take no part in their products: on the diagonal a tile works like three narrower ones.
#pragma once

#include "attend/toolkit/tile/dropout.hpp"
#include "attend/toolkit/tile/key_block.hpp"
#include "attend/toolkit/tile/pipeline.hpp"
#include "attend/toolkit/tile/quantised_queries.hpp"
#include "attend/toolkit/tile/state.hpp"
#include "attend/toolkit/tile/tile_lanes.hpp"

namespace attend::ATTEND_ISA {

enum class Pass { forward, weights, add_weights };

class TileWorker {
public:
    TileWorker(const TileRun& run, const TileScratch& scratch, const TileState& state, const TileRows& rows)
        : run_(&run), problem_(run.problem), scratch_(&scratch), state_(state), rows_(rows) {
        vectors_ = static_cast<int>(divide_up(rows.end - rows.begin, batch_lanes));
        lanes_ = vectors_ * batch_lanes;
        const int64_t offset = offset_of(run, rows.batch);
        fill_lanes(run, rows, state_, lanes_, offset, tile_);
        limit_keys(run, state_, tile_, vectors_, offset, limits_);
    }

    const attend_query_tile& tile() const { return tile_; }
    // Nobody wants the tile's rows; it is there for the blocks of keys, which must be cut as they are with it.
    bool idle() const { return rows_.idle; }
    // Main keys that any lane sees, by causal, window and length.
    int64_t hull_begin() const { return limits_.hull_begin; }
    int64_t hull_end() const { return limits_.hull_end; }

    // Query rows arrive while another tile's are being transposed.
    void fetch_queries() const {
        const StoredView query = queries();
        if (query.step() != 1) return;
        const int64_t bytes = run_->sizes.head_dim * storage_bytes(query.storage);
        for (int64_t lane = 0; lane < tile_.num_lanes; ++lane) {
            const char* row = query.at(rows_.batch, state_.head[lane], row_of(lane));
            for (int64_t at = 0; at < bytes; at += Ahead::line) __builtin_prefetch(row + at);
        }
    }

    // The tile that takes this one's place in the group behind.
    void comes_next(const TileRows& rows) { next_ = rows; }

    // Before the first block.
    void start() {
        by_vectors(vectors_, [&](auto v) { start_softmax<decltype(v)::count>(state_.softmax); });
        load_queries();
        started_ = fetched_ = false;
        if (run_->takes_state) {
            take_state(*run_, *scratch_, state_, rows_.batch, vectors_);
            started_ = true;
        }
        tile_.queries = run_->dots || run_->quantised != nullptr ? nullptr : state_.queries;
        tile_.memory = state_.memory;
        if (run_->hooks->queries != nullptr) run_->hooks->queries(run_->hooks->user, &tile_);
    }

    // A block of keys: of the main ones what lies in the tile's hull, or all of an always-visible one.
    void visit(KeyBlock& block, Pass pass, bool main, bool partial) {
        if (rows_.idle) return;
        int64_t begin = block.first(), end = begin + block.count();
        if (main) {
            begin = greater(begin, limits_.hull_begin);
            end = lesser(end, limits_.hull_end);
            if (block.pairs()) begin -= (begin - block.first()) % 2;  // pairs of keys stay together
        }
        if (begin >= end) return;
        const int64_t reach = run_->sizes.key_tile;
        if (pass == Pass::forward && !fetched_ && end + reach >= limits_.hull_end &&
            (limits_.hull_end - limits_.hull_begin > reach || run_->sizes.few_keys))
            fetch_ahead(end - begin);
        score_tile(block, begin, end - begin, pass, main, partial);
    }

    // After the last block.
    void finish() {
        if (run_->leaves_state) {
            leave_state(*run_, state_, rows_.batch, tile_.num_lanes);
            settled_ = true;
            return write_output();
        }
        if (run_->lse.present)
            for (int64_t lane = 0; lane < tile_.num_lanes; ++lane)
                *run_->lse.at(rows_.batch, state_.head[lane], row_of(lane)) =
                    finish_lse(state_.softmax, lane, run_->factor) + lse_shift(lane);
        if (run_->output.present) write_output();
    }

    // The same in two steps, for hooks: what there is becomes outputs in place; what they became is stored.
    void settle() {
        const int64_t rows = run_->sizes.value_dim, sums = run_->sizes.sums;
        for (int64_t lane = 0; lane < lanes_; ++lane) {
            scratch_->factor[lane] = finish_factor(state_.softmax.row_sum[lane], 1.0f);
            if (run_->needs_lse) state_.lse[lane] = finish_lse(state_.softmax, lane, run_->factor);
        }
        if (!started_) {  // no score tile at all
            fill_rows(state_.acc, rows);
            fill_rows(state_.sums, sums);
        }
        scale_rows(state_.acc, rows);
        scale_rows(state_.sums, sums);
    }
    void restart() {
        by_vectors(vectors_, [&](auto v) { start_softmax<decltype(v)::count>(state_.softmax); });
        started_ = false;
    }
    void store_settled() {
        const attend_tensor* own = run_->hooks->maps != nullptr ? run_->hooks->maps[rows_.map].lse : nullptr;
        const TensorView<float, 3> lse = own != nullptr ? view_of<float, 3>(own) : run_->lse;
        if (lse.present && (own != nullptr || rows_.map == 0))
            for (int64_t lane = 0; lane < tile_.num_lanes; ++lane)
                *lse.at(rows_.batch, state_.head[lane], row_of(lane)) = state_.lse[lane];
        if (!run_->output.present || rows_.map != 0) return;
        settled_ = started_ = true;
        write_output();
    }
    float* values() const { return state_.acc; }
    float* sums() const { return state_.sums; }
    float* lse() const { return state_.lse; }

    // Factors of the weights, before the second pass.
    void start_weights() {
        for (int64_t lane = 0; lane < lanes_; ++lane)
            state_.softmax.rescale[lane] = finish_factor(state_.softmax.row_sum[lane], 1.0f);
        if (run_->hooks->map_share == nullptr) return;
        float* share = scratch_->factor;
        run_->hooks->map_share(run_->hooks->user, &tile_, share);
        for (int64_t lane = 0; lane < lanes_; ++lane) state_.softmax.rescale[lane] *= share[lane];
    }

private:
    int64_t row_of(int64_t lane) const { return state_.row[lane]; }
    // Rows ascend with the lanes.
    bool shows(int64_t lane) const { return row_of(lane) >= run_->row_begin && row_of(lane) < run_->row_end; }

    StoredView queries() const {
        return run_->hooks->maps == nullptr ? run_->query : stored_view(run_->hooks->maps[rows_.map].query);
    }
    void fill_rows(float* to, int64_t rows) const {
        for (int64_t at = 0; at < rows * lanes_; ++at) to[at] = 0.0f;
    }
    // A row without keys is zero whatever its sums hold.
    void scale_rows(float* to, int64_t rows) const {
        for (int64_t lane = 0; lane < lanes_; lane += batch_lanes) {
            const Batch factor = load(scratch_->factor + lane);
            const Mask empty = load(state_.softmax.row_sum + lane) == Batch(0.0f);
            for (int64_t row = 0; row < rows; ++row) {
                float* at = to + row * lanes_ + lane;
                store(at, choose(empty, Batch(0.0f), load(at) * factor));
            }
        }
    }

    float lse_shift(int64_t lane) const {
        const QuantisedRun* const run = run_->quantised;
        return run != nullptr && run->smooth_keys && !run->adds_shift ? state_.lane_shift[lane] : 0.0f;
    }

    void load_queries() {
        if (run_->quantised != nullptr) return load_quantised_queries(*run_, *scratch_, state_, rows_, vectors_);
        const StoredView query = queries();
        const int64_t head_dim = run_->sizes.head_dim;
        if (run_->dots) {
            for (int64_t lane = 0; lane < lanes_; ++lane)
                scratch_->rows[lane] =
                    reinterpret_cast<const float*>(query.at(rows_.batch, state_.head[lane], row_of(lane)));
            by_vectors(vectors_, [&](auto v) {
                load_lane_pairs<decltype(v)::count>(reinterpret_cast<const uint16_t* const*>(scratch_->rows),
                                                    query.step(), head_dim,
                                                    reinterpret_cast<uint32_t*>(state_.queries));
            });
            return;
        }
        const bool narrow = query.storage != Storage::f32;
        for (int64_t lane = 0; lane < lanes_; ++lane) {
            const char* row = query.at(rows_.batch, state_.head[lane], row_of(lane));
            float* wide = scratch_->stage + lane * head_dim;
            if (narrow) widen_row(query.storage, row, query.step(), head_dim, wide);
            scratch_->rows[lane] = narrow ? wide : reinterpret_cast<const float*>(row);
        }
        by_vectors(vectors_, [&](auto v) {
            load_lanes<decltype(v)::count>(scratch_->rows, narrow ? 1 : query.step(), head_dim, run_->load_scale,
                                           state_.queries);
        });
    }

    // Output rows of this tile, and the query rows that its place has next, arrive while the last blocks are computed.
    void fetch_ahead(int64_t keys) {
        fetched_ = true;
        ahead_ = Ahead();
        const StoredView &output = run_->output, &query = run_->query;
        if (output.present && output.step() == 1) {
            const char** rows = scratch_->fetch_rows;
            for (int64_t lane = 0; lane < tile_.num_lanes; ++lane)
                rows[lane] = output.at(rows_.batch, state_.head[lane], row_of(lane));
            ahead_.add(rows, tile_.num_lanes, run_->sizes.value_dim * storage_bytes(output.storage), true);
        }
        if (next_.begin < next_.end && run_->hooks->maps == nullptr && query.step() == 1) {
            const char** rows = scratch_->fetch_rows + lanes_;
            int64_t row = next_.begin / next_.pack, member = next_.begin % next_.pack;
            for (int64_t v = next_.begin; v < next_.end; ++v) {
                rows[v - next_.begin] = query.at(next_.batch, next_.first_head + member, row);
                if (++member < next_.pack) continue;
                member = 0;
                ++row;
            }
            ahead_.add(rows, next_.end - next_.begin, run_->sizes.head_dim * storage_bytes(query.storage), false);
        }
        ahead_.share(keys / tile_rows + run_->sizes.value_dim / tile_rows);
    }

    template <class T>
    bool same_for_all_lanes(const TensorView<T, 4>& view) const {
        return view.strides[2] == 0 && (view.strides[1] == 0 || rows_.pack == 1);
    }

    // Keys of a block by the vectors of lanes that see them: visit(begin, end, first vector, number of vectors), counted
    // from `first`. Steps of 8 keys, which full register tiles and pairs of keys want.
    template <class Visit>
    ATTEND_ALWAYS_INLINE void each_run(int64_t first, int64_t keys, bool main, Visit visit) const {
        if (!main || (first >= limits_.full_begin && first + keys <= limits_.full_end)) {
            visit(int64_t{0}, keys, 0, vectors_);
            return;
        }
        constexpr int64_t step = 8;
        int64_t low[size_t{max_vectors}], high[size_t{max_vectors}];
        for (int v = 0; v < vectors_; ++v) {
            low[v] = clamp(limits_.vector_begin[v] - first, 0, keys) / step * step;
            high[v] = lesser(round_up(clamp(limits_.vector_end[v] - first, 0, keys), step), keys);
        }
        for (int64_t begin = 0; begin < keys;) {
            // Both limits rise with the lanes, so the vectors of a key follow each other.
            int64_t end = keys;
            int lowest = vectors_, count = 0;
            for (int v = 0; v < vectors_; ++v) {
                if (low[v] <= begin && begin < high[v]) {
                    lowest = lowest == vectors_ ? v : lowest;
                    count = v - lowest + 1;
                    end = lesser(end, high[v]);
                } else if (begin < low[v] && low[v] < high[v]) {
                    end = lesser(end, low[v]);
                }
            }
            visit(begin, end, lowest, count);
            begin = end;
        }
    }

    void score_tile(KeyBlock& block, int64_t first, int64_t keys, Pass pass, bool main, bool partial) {
        float* scores = scratch_->scores;
        const int32_t* key_index = main && problem_->key_index != nullptr ? problem_->key_index + first : nullptr;
        const attend_tile_hooks& hooks = *run_->hooks;
        const attend_score_tile stored{
            &tile_,           scores, first, keys, key_index, problem_->hooks != nullptr ? &block.described() : nullptr,
            scratch_->scratch};
        if (main && hooks.map_keys != nullptr) {
            const uint32_t seen = hooks.map_keys(hooks.user, &tile_, first, first + keys);
            if (seen == ATTEND_KEYS_NONE) return;
            partial = partial || seen == ATTEND_KEYS_SOME;
        }
        bool hides = false;
        if (run_->shares_scores) {
            SharedScores& shared = *scratch_->shared;
            const size_t bytes = static_cast<size_t>(keys * lanes_) * sizeof(float);
            if (!shared.computed) {
                shared.computed = true;
                shared.hides = false;
                shared.nothing = !find_scores(block, stored, main, shared.hides);
                if (!shared.nothing && later_map_sees(first, first + keys))
                    __builtin_memcpy(scratch_->shared_scores, scores, bytes);
            } else if (!shared.nothing) {
                __builtin_memcpy(scores, scratch_->shared_scores, bytes);
            }
            if (shared.nothing) return;
            hides = shared.hides;
        } else if (!find_scores(block, stored, main, hides)) {
            return;
        }
        if (partial && problem_->keep != nullptr) {
            hides = true;
            problem_->keep(problem_->keep_user, &stored);
        }

        if (pass == Pass::forward)
            accumulate(block, stored, main, hides);
        else
            write_weights(first, keys, pass);
    }

    // Scores are kept only where they are read again.
    bool later_map_sees(int64_t begin, int64_t end) const {
        const attend_tile_hooks& hooks = *run_->hooks;
        if (hooks.map_keys == nullptr) return true;
        attend_query_tile other = tile_;
        for (other.map = tile_.map + 1; other.map < run_->sizes.maps; ++other.map)
            if (hooks.map_keys(hooks.user, &other, begin, end) != ATTEND_KEYS_NONE) return true;
        return false;
    }

    // All of the pipeline up to the pattern of the keep hook. False: the tile sees none of the keys.
    bool find_scores(KeyBlock& block, const attend_score_tile& stored, bool main, bool& hides) {
        float* scores = stored.scores;
        const int64_t first = stored.first_key, keys = stored.num_keys;
        const attend_tile_hooks& hooks = *run_->hooks;
        bool masked = false;
        if (main && run_->mask.present) {
            const Visible visible =
                gather_mask(scratch_->mask, lanes_, first, keys, state_.mask_rows, run_->mask.strides[3],
                            same_for_all_lanes(run_->mask), stored.key_index);
            if (visible == Visible::none) return false;
            masked = visible == Visible::some;
        }

        each_run(first, keys, main, [&](int64_t begin, int64_t end, int lowest, int count) {
            float* rows = scores + begin * lanes_;
            if (count < vectors_)
                for (int64_t at = 0; at < (end - begin) * lanes_; at += batch_lanes) store(rows + at, Batch(-infinity));
            if (count == 0) return;
            by_vectors(count, [&](auto v) {
                block.scores<decltype(v)::count>(
                    first - block.first() + begin, end - begin, state_.queries + lowest * batch_lanes,
                    run_->quantised != nullptr ? state_.lane_scale + lowest * batch_lanes : nullptr, lanes_,
                    rows + lowest * batch_lanes, &ahead_);
            });
        });
        if (run_->rescores) scale_scores(scores, keys * lanes_, run_->scale);
        if (run_->quantised != nullptr && run_->quantised->adds_shift) shift_scores(scores, keys);
        if (hooks.content != nullptr) hooks.content(hooks.user, &stored);
        if (run_->softcap > 0.0f) cap_scores(scores, keys * lanes_, run_->softcap);
        if (problem_->score != nullptr) problem_->score(problem_->score_user, &stored);

        hides = masked || (problem_->score != nullptr && (problem_->flags & ATTEND_TILE_SCORE_HIDES) != 0);
        if (main && run_->bias.present)
            by_vectors(vectors_, [&](auto v) {
                hides |= add_bias<decltype(v)::count>(scores, first, keys, state_.bias_rows, run_->bias.strides[3],
                                                      same_for_all_lanes(run_->bias), stored.key_index, scratch_->extra,
                                                      scratch_->rows);
            });
        if (masked) apply_mask(scores, keys * lanes_, scratch_->mask);
        if (main && (first < limits_.full_begin || first + keys > limits_.full_end)) {
            hides = true;
            limit_scores(first, keys);
        }
        return true;
    }

    void shift_scores(float* scores, int64_t keys) const {
        for (int64_t key = 0; key < keys; ++key)
            for (int64_t lane = 0; lane < lanes_; lane += batch_lanes) {
                float* const at = scores + key * lanes_ + lane;
                store(at, load(at) + load(state_.lane_shift + lane));
            }
    }

    void limit_scores(int64_t first, int64_t keys) {
        for (int64_t lane = 0; lane < lanes_; ++lane) {
            scratch_->limit_low[lane] = static_cast<float>(clamp(state_.key_begin[lane] - first, 0, keys));
            scratch_->limit_high[lane] = static_cast<float>(clamp(state_.key_end[lane] - first, 0, keys));
        }
        by_vectors(vectors_, [&](auto v) {
            apply_limits<decltype(v)::count>(scratch_->scores, keys, scratch_->limit_low, scratch_->limit_high,
                                             limits_.full_begin - first, limits_.full_end - first);
        });
    }

    void accumulate(KeyBlock& block, const attend_score_tile& stored, bool main, bool hides) {
        float* scores = stored.scores;
        const int64_t first = stored.first_key, keys = stored.num_keys;
        const int32_t* key_index = stored.key_index;
        const bool output = run_->values;
        const int64_t begin = first - block.first();
        const bool dropout = run_->dropout && (block.segment().flags & ATTEND_SEGMENT_NO_DROPOUT) == 0;
        bool wild = false;
        const QuantisedRun* const low = run_->quantised;
        const bool looks = low == nullptr || !low->scaled();  // scaled formats have refused what is not finite
        // Kept values have zeros in place of what is not finite, whether it is hidden or not.
        if (output && looks)
            wild = hides || block.keeps_values() ? block.find_wild(begin, begin + keys)
                                                 : block.wild_in(begin, begin + keys);
        if (wild) __builtin_memcpy(scratch_->extra, scores, static_cast<size_t>(keys * lanes_) * sizeof(float));
        by_vectors(vectors_, [&](auto v) {
            constexpr int count = decltype(v)::count;
            if (run_->pairs && !dropout && (low == nullptr || low->weights == Format::bf16))
                update_softmax_pairs<count>(scores, keys, run_->factor, state_.softmax, run_->precise);
            else
                update_softmax<count>(scores, keys, run_->factor, state_.softmax);
        });
        if (!output) return;
        if (dropout) {
            TileDropout drop(*run_, tile_, lanes_);
            for (int64_t key = 0; key < keys; ++key)
                drop.apply(scores + key * lanes_, key_index != nullptr ? key_index[key] : first + key);
            if (run_->dots) pair_weights(scores, keys);
        }
        if (low != nullptr && (dropout || !run_->pairs || low->weights != Format::bf16)) {
            if (low->weights == Format::e4m3) round_weights_e4m3(scores, keys * lanes_);
            if (low->weights == Format::bf16 && !run_->pairs) round_weights_bf16(scores, keys * lanes_);
            if (run_->pairs) pair_weights(scores, keys);
        }
        if (run_->hooks->weights != nullptr) add_sums_of(stored);
        const Into into = started_ ? Into::rescale : Into::overwrite;
        started_ = true;
        // The keys that all vectors see go first, since they rescale; without such keys all are treated so.
        int64_t whole_begin = 0, whole_end = 0;
        each_run(first, keys, main, [&](int64_t from, int64_t to, int, int count) {
            if (count == vectors_) {
                whole_begin = from;
                whole_end = to;
            }
        });
        if (whole_begin == whole_end) whole_end = keys;
        add_values(block, begin, whole_begin, whole_end, 0, vectors_, into);
        if (whole_begin != 0 || whole_end != keys)
            each_run(first, keys, main, [&](int64_t from, int64_t to, int lowest, int count) {
                if (count > 0 && count < vectors_) add_values(block, begin, from, to, lowest, count, Into::add);
            });
        if (wild) block.add_wild(begin, begin + keys, scores, scratch_->extra, lanes_, state_.acc);
    }

    void pair_weights(float* scores, int64_t keys) const {
        by_vectors(vectors_, [&](auto v) {
            round_rows<decltype(v)::count, block_dots>(scores, keys, reinterpret_cast<uint32_t*>(scores));
        });
    }

    void add_sums_of(const attend_score_tile& stored) {
        const int64_t count = run_->sizes.sums * lanes_;
        if (started_)
            for (int64_t at = 0; at < count; at += batch_lanes)
                store(state_.sums + at, load(state_.sums + at) * load(state_.softmax.rescale + at % lanes_));
        else
            fill_rows(state_.sums, run_->sizes.sums);
        run_->hooks->weights(run_->hooks->user, &stored, state_.sums);
    }

    void add_values(KeyBlock& block, int64_t begin, int64_t from, int64_t to, int lowest, int count, Into into) {
        const int64_t row = run_->pairs ? from / 2 : from, lane = lowest * batch_lanes;
        by_vectors(count, [&](auto v) {
            block.values<decltype(v)::count>(begin + from, to - from, scratch_->scores + row * lanes_ + lane, lanes_,
                                             state_.acc + lane, into, state_.softmax.rescale + lane, &ahead_);
        });
    }

    // Outputs of low precision: scales of weights and of channels go back in, and the mean of the values.
    void finish_quantised() {
        const QuantisedRun& run = *run_->quantised;
        const int64_t width = run.value_dim, first = (rows_.batch * run.kv_heads + rows_.kv_head) * width;
        for (int64_t lane = 0; lane < lanes_; ++lane)
            scratch_->factor[lane] = finish_factor(state_.softmax.row_sum[lane], run.value_factor);
        for (int64_t c = 0; c < width; ++c) {
            const Batch scale(run.value_scales != nullptr ? run.value_scales[first + c] : 1.0f);
            const Batch mean(run.smooth_values ? run.value_mean[first + c] : 0.0f);
            for (int64_t lane = 0; lane < lanes_; lane += batch_lanes) {
                float* const at = state_.acc + c * lanes_ + lane;
                const Mask empty = load(state_.softmax.row_sum + lane) == Batch(0.0f);
                store(at, choose(empty, Batch(0.0f), fma(load(at) * load(scratch_->factor + lane), scale, mean)));
            }
        }
        settled_ = true;
    }

    void write_output() {
        const StoredView& output = run_->output;
        const int64_t value_dim = run_->sizes.value_dim;
        if (run_->quantised != nullptr && started_) finish_quantised();
        const bool narrow = output.storage != Storage::f32;
        for (int64_t lane = 0; lane < lanes_; ++lane) {
            char* row = output.at(rows_.batch, state_.head[lane], row_of(lane));
            scratch_->factor[lane] = settled_ ? 1.0f : finish_factor(state_.softmax.row_sum[lane], 1.0f);
            scratch_->out_rows[lane] = narrow ? scratch_->stage + lane * value_dim : reinterpret_cast<float*>(row);
        }
        if (!started_)  // no score tile at all
            for (int64_t at = 0; at < value_dim * lanes_; ++at) state_.acc[at] = 0.0f;
        if (narrow && output.step() == 1) {
            for (int64_t lane = 0; lane < lanes_; ++lane)
                scratch_->out_rows[lane] =
                    reinterpret_cast<float*>(output.at(rows_.batch, state_.head[lane], row_of(lane)));
            uint16_t* const* rows = reinterpret_cast<uint16_t* const*>(scratch_->out_rows);
            by_vectors(vectors_, [&](auto v) {
                constexpr int count = decltype(v)::count;
                if (output.storage == Storage::bf16)
                    narrow_lanes<count, Storage::bf16>(state_.acc, value_dim, scratch_->factor, rows, tile_.num_lanes);
                else
                    narrow_lanes<count, Storage::f16>(state_.acc, value_dim, scratch_->factor, rows, tile_.num_lanes);
            });
            return;
        }
        by_vectors(vectors_, [&](auto v) {
            store_lanes<decltype(v)::count>(state_.acc, value_dim, scratch_->factor, scratch_->out_rows,
                                            narrow ? 1 : output.step(), tile_.num_lanes);
        });
        if (!narrow) return;
        for (int64_t lane = 0; lane < tile_.num_lanes; ++lane)
            narrow_row(output.storage, scratch_->out_rows[lane], value_dim,
                       output.at(rows_.batch, state_.head[lane], row_of(lane)), output.step());
    }

    void write_weights(int64_t first, int64_t keys, Pass pass) {
        if (run_->logits) {
            if (run_->lacks_scale) scale_scores(scratch_->scores, keys * lanes_, run_->scale);
            if (run_->quantised != nullptr && run_->quantised->smooth_keys && !run_->quantised->adds_shift)
                shift_scores(scratch_->scores, keys);
        } else {
            by_vectors(vectors_, [&](auto v) {
                normalise_scores<decltype(v)::count>(scratch_->scores, keys, run_->factor, state_.softmax,
                                                     state_.softmax.rescale);
            });
        }
        if (pass == Pass::weights && run_->sizes.maps > 1) {
            for (int64_t lane = 0; lane < tile_.num_lanes; ++lane) {
                if (!shows(lane)) continue;
                float* sum = run_->scores.at(rows_.batch, state_.head[lane], row_of(lane), first);
                for (int64_t key = 0; key < keys; ++key)
                    sum[key * run_->scores.strides[3]] += scratch_->scores[key * lanes_ + lane];
            }
            return;
        }
        if (pass == Pass::weights && !(shows(0) && shows(tile_.num_lanes - 1))) {
            for (int64_t lane = 0; lane < tile_.num_lanes; ++lane) {
                if (!shows(lane)) continue;
                float* to = run_->scores.at(rows_.batch, state_.head[lane], row_of(lane), first);
                for (int64_t key = 0; key < keys; ++key)
                    to[key * run_->scores.strides[3]] = scratch_->scores[key * lanes_ + lane];
            }
            return;
        }
        if (pass == Pass::weights) {
            for (int64_t lane = 0; lane < lanes_; ++lane) {
                scratch_->out_rows[lane] = run_->scores.at(rows_.batch, state_.head[lane], row_of(lane), first);
                scratch_->factor[lane] = 1.0f;
            }
            by_vectors(vectors_, [&](auto v) {
                store_lanes<decltype(v)::count>(scratch_->scores, keys, scratch_->factor, scratch_->out_rows,
                                                run_->scores.strides[3], tile_.num_lanes);
            });
            return;
        }
        for (int64_t lane = 0; lane < tile_.num_lanes; ++lane) {
            if (!shows(lane)) continue;
            float* sum = run_->average.at(rows_.batch, row_of(lane), first);
            for (int64_t key = 0; key < keys; ++key)
                sum[key * run_->average.strides[2]] += scratch_->scores[key * lanes_ + lane];
        }
    }

    const TileRun* run_;
    const attend_tile_problem* problem_;
    const TileScratch* scratch_;
    TileState state_;
    TileRows rows_;
    attend_query_tile tile_{};
    int vectors_{1};
    int64_t lanes_{0};
    KeyLimits limits_;
    bool started_{false}, fetched_{false}, settled_{false};
    Ahead ahead_;
    TileRows next_{};
};

}  // namespace attend::ATTEND_ISA
