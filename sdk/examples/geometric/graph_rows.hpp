// SPDX-License-Identifier: Apache-2.0
// Softmax over the incoming edges of nodes: scores of up to hub_edges edges in one buffer, then their weights, then the
// weighted messages. Rows with more edges are computed piece by piece, by any worker, and merged in the pieces' order,
// so that the bits depend on the graph alone.
#pragma once

#include "attend/author/tile.hpp"
#include "attend/toolkit/core/parallel.hpp"
#include "attend/toolkit/core/rng.hpp"
#include "attend/toolkit/simd/math.hpp"
#include "attend/toolkit/simd/transpose.hpp"
#include "attend/toolkit/tile/storage.hpp"
#include "graph.hpp"

namespace attend::ATTEND_ISA {

enum class GraphVersion : int32_t { gatv2, gat, dot };

constexpr int64_t rows_of_a_task = 32;
constexpr int64_t messages_at_once = 8;

inline int64_t padded(int64_t width) { return (width + batch_lanes - 1) / batch_lanes * batch_lanes; }

// A softmax over some of a row's edges: weights relative to exp(most), their sum, messages times weights.
struct EdgeSoftmax {
    float most, sum;
};

// Everything that the workers share.
struct GraphRun {
    GraphVersion version;
    float slope, scale;
    Graph* graph;
    GraphTensors from;
    int64_t batch, heads, kv_heads, q_len, kv_len, width, value_width;
    StoredView query, key, value, output;
    TensorView<float, 3> lse;
    const attend_tensor *returned, *query_lengths, *key_lengths;
    bool causal, offset_per_item;
    int64_t offset, window_left, window_right;
    double dropout;
    uint64_t seed, rng_offset;
    // Workspace.
    float *att_dst, *att_src;  // [Hq][padded D]; gatv2 has its vector in att_src
    float *of_query, *of_key;  // gat: attDst . Q_i and attSrc . K_j, [B][Hq][N]
    EdgeSoftmax* partial;      // [B or 1][Hq][pieces], and the pieces' messages behind
    float* partial_values;
    float* rooms;  // one of room_floats for each worker
    int64_t room_floats;

    int64_t kv_head(int64_t h) const { return h * kv_heads / heads; }
    int64_t row_of(int64_t b, int64_t i) const { return (graph->sizes().items == 1 ? 0 : b * q_len) + i; }
    int64_t slot(int64_t b, int64_t h, int64_t piece) const {
        return ((graph->sizes().items == 1 ? b * heads : 0) + h) * graph->num_pieces + piece;
    }
};

inline int64_t room_floats_of(int64_t width, int64_t value_width) {
    // Scores, weights; query, mean of edge vectors, keys, edge vectors; messages' sum, messages.
    return 2 * padded(hub_edges) + (2 + 2 * batch_lanes) * padded(width) + (1 + messages_at_once) * padded(value_width);
}

class GraphWorker {
public:
    GraphWorker(const GraphRun& run, uint32_t slot) : run_(run) {
        float* at = run.rooms + static_cast<int64_t>(slot) * run.room_floats;
        const auto take = [&](int64_t count) { return at += count, at - count; };
        const int64_t width = padded(run.width), value_width = padded(run.value_width);
        scores_ = take(padded(hub_edges));
        weights_ = take(padded(hub_edges));
        query_ = take(width);
        mean_ = take(width);
        keys_ = take(batch_lanes * width);
        vectors_ = take(batch_lanes * width);
        sum_ = take(value_width);
        messages_ = take(messages_at_once * value_width);
        for (int64_t d = 0; d < width; ++d) query_[d] = 0.0f;
    }

    // vector . row for rows [0, count) of a head; the vector is padded with zeros.
    void products(const StoredView& rows, int64_t b, int64_t h, int64_t count, const float* vector, float* to) {
        for (int64_t first = 0; first < count; first += batch_lanes) {
            const int64_t used = count - first < batch_lanes ? count - first : batch_lanes;
            Batch sums[batch_lanes];
            for (int64_t n = 0; n < batch_lanes; ++n)
                sums[n] = n < used ? product(vector, row(rows, b, h, first + n, run_.width, keys_)) : Batch(0.0f);
            store_lanes(sums, used, to + first);
        }
    }

    void whole_row(int64_t b, int64_t h, int64_t i) {
        const int64_t row = run_.row_of(b, i), begin = run_.graph->first[row], end = run_.graph->first[row + 1];
        const EdgeSoftmax of = piece(b, h, i, begin, end);
        write(b, h, i, of, sum_);
        if (run_.returned && of.sum != 0.0f) scale_returned(b, h, begin, end, 1.0f / of.sum);
    }

    void hub_piece(int64_t b, int64_t h, int64_t at) {
        const HubPiece& part = run_.graph->pieces[at];
        const int64_t slot = run_.slot(b, h, at);
        run_.partial[slot] = piece(b, h, part.row % run_.q_len, part.begin, part.end);
        float* values = run_.partial_values + slot * run_.value_width;
        for (int64_t d = 0; d < run_.value_width; ++d) values[d] = sum_[d];
    }

    // Parts [0, n) as one, into the first: one after the other, more than 16 as a balanced tree.
    void merge_hub(int64_t b, int64_t h, const Hub& hub) {
        EdgeSoftmax* parts = run_.partial + run_.slot(b, h, hub.first_piece);
        float* values = run_.partial_values + run_.slot(b, h, hub.first_piece) * run_.value_width;
        float* bases = scores_;  // what the weights of each part are relative to
        for (int64_t at = 0; at < hub.num_pieces; ++at) bases[at] = parts[at].most;
        if (hub.num_pieces <= 16)
            for (int64_t at = 1; at < hub.num_pieces; ++at) merge(parts, values, 0, at);
        else
            for (int64_t step = 1; step < hub.num_pieces; step *= 2)
                for (int64_t at = 0; at + step < hub.num_pieces; at += 2 * step) merge(parts, values, at, at + step);
        write(b, h, hub.row % run_.q_len, parts[0], values);
        if (!run_.returned || parts[0].sum == 0.0f) return;
        for (int64_t at = 0; at < hub.num_pieces; ++at) {
            const HubPiece& part = run_.graph->pieces[hub.first_piece + at];
            const float factor = bases[at] == -infinity ? 0.0f : ::expf(bases[at] - parts[0].most) / parts[0].sum;
            scale_returned(b, h, part.begin, part.end, factor);
        }
    }

private:
    // A row as floats: where it lies, or widened into a room.
    static const float* row(const StoredView& of, int64_t b, int64_t h, int64_t n, int64_t width, float* room) {
        const char* at = of.at(b, h, n);
        if (of.storage == Storage::f32 && of.step() == 1) return reinterpret_cast<const float*>(at);
        widen_row(of.storage, at, of.step(), width, room);
        return room;
    }
    // Lane sums of a product of a padded vector with a row.
    Batch product(const float* vector, const float* with) const {
        Batch sum(0.0f);
        int64_t d = 0;
        for (; d + batch_lanes <= run_.width; d += batch_lanes) sum = fma(load(vector + d), load(with + d), sum);
        if (d < run_.width) sum = fma(load(vector + d), load_tail(with + d, run_.width - d), sum);
        return sum;
    }
    // att . L(q + k + v), v or NULL: edge vectors.
    template <bool with_vector>
    Batch leaky_product(const float* att, const float* with, const float* vector) const {
        const Batch slope(run_.slope);
        Batch sum(0.0f);
        int64_t d = 0;
        const auto step = [&](const Batch& key, const Batch& extra) {
            const Batch x = with_vector ? load(query_ + d) + key + extra : load(query_ + d) + key;
            sum = fma(load(att + d), max(slope * x, x), sum);
        };
        for (; d + batch_lanes <= run_.width; d += batch_lanes)
            step(load(with + d), with_vector ? load(vector + d) : Batch(0.0f));
        if (d < run_.width)
            step(load_tail(with + d, run_.width - d),
                 with_vector ? load_tail(vector + d, run_.width - d) : Batch(0.0f));
        return sum;
    }
    // The sum over the lanes of each vector, next to each other.
    static void store_lanes(Batch (&sums)[batch_lanes], int64_t used, float* to) {
        transpose(sums);
        Batch total = sums[0];
        ATTEND_UNROLL
        for (int lane = 1; lane < batch_lanes; ++lane) total = total + sums[lane];
        used == batch_lanes ? store(to, total) : store_tail(to, total, used);
    }

    // The edges [begin, end) of a row that lengths, causal and window leave, which are neighbours of each other.
    void cut(int64_t b, int64_t i, int64_t& begin, int64_t& end) const {
        const int64_t queries = run_.query_lengths ? integer_at(run_.query_lengths, b) : run_.q_len;
        const int64_t keys = run_.key_lengths ? integer_at(run_.key_lengths, b) : run_.kv_len;
        const int64_t position = i + (run_.offset_per_item ? keys - queries : run_.offset);
        int64_t low = 0, high = keys;
        if (run_.causal && position + 1 < high) high = position + 1;
        if (run_.window_left >= 0 && position - run_.window_left > low) low = position - run_.window_left;
        if (run_.window_right >= 0 && position < high - run_.window_right) high = position + run_.window_right + 1;
        if (i >= queries) high = low;
        begin = first_not_below(low, begin, end);
        end = high > low ? first_not_below(high, begin, end) : begin;
    }
    int64_t first_not_below(int64_t bound, int64_t begin, int64_t end) const {
        while (begin < end) {
            const int64_t middle = begin + (end - begin) / 2;
            if (run_.graph->source[middle] < bound)
                begin = middle + 1;
            else
                end = middle;
        }
        return begin;
    }

    float score_of(int64_t h, int64_t edge) const {
        const attend_tensor& score = *run_.from.score;
        const float* of_head = static_cast<const float*>(score.data) + (score.ndim == 2 ? h * score.strides[0] : 0);
        return of_head[edge * score.strides[score.ndim - 1]];
    }
    // Data of an added loop: the mean over the other edges of the node, whether they are hidden or not.
    float mean_score(int64_t h, int64_t row) const {
        double sum = 0.0;
        int64_t count = 0;
        for (int64_t e = run_.graph->first[row]; e < run_.graph->first[row + 1]; ++e)
            if (run_.graph->edge[e] >= 0) sum += static_cast<double>(score_of(h, run_.graph->edge[e])), ++count;
        return count ? static_cast<float>(sum / static_cast<double>(count)) : 0.0f;
    }
    const float* vector_of(int64_t h, int64_t edge, float* room) const {
        const attend_tensor& vec = *run_.from.vec;
        const float* at = static_cast<const float*>(vec.data) + edge * vec.strides[0] + h * vec.strides[1];
        if (vec.strides[2] == 1) return at;
        for (int64_t d = 0; d < run_.width; ++d) room[d] = at[d * vec.strides[2]];
        return room;
    }
    void mean_vector(int64_t h, int64_t row) {
        for (int64_t d = 0; d < run_.width; ++d) mean_[d] = 0.0f;
        int64_t count = 0;
        for (int64_t e = run_.graph->first[row]; e < run_.graph->first[row + 1]; ++e) {
            if (run_.graph->edge[e] < 0) continue;
            const float* vector = vector_of(h, run_.graph->edge[e], vectors_);
            for (int64_t d = 0; d < run_.width; ++d) mean_[d] += vector[d];
            ++count;
        }
        for (int64_t d = 0; count && d < run_.width; ++d) mean_[d] /= static_cast<float>(count);
    }

    // Scores of edges [begin, end) of row i.
    void score(int64_t b, int64_t h, int64_t i, int64_t begin, int64_t end) {
        const Graph& graph = *run_.graph;
        const int64_t row = run_.row_of(b, i), count = end - begin;
        if (run_.version == GraphVersion::gat) {
            const float of_query = run_.of_query[(b * run_.heads + h) * run_.q_len + i];
            const float* of_key = run_.of_key + (b * run_.heads + h) * run_.kv_len;
            for (int64_t n = 0; n < count; ++n) scores_[n] = of_query + of_key[graph.source[begin + n]];
        } else {
            score_by_vectors(b, h, i, begin, end);
        }
        if (run_.from.score)
            for (int64_t n = 0; n < count; ++n) {
                const int64_t edge = graph.edge[begin + n];
                scores_[n] += edge < 0 ? mean_score(h, row) : score_of(h, edge);
            }
        // Minus infinity hides an edge, with a slope of 0, too.
        if (run_.version == GraphVersion::gat)
            for (int64_t n = 0; n < count; ++n)
                if (scores_[n] < 0.0f && scores_[n] != -infinity) scores_[n] *= run_.slope;
    }
    void score_by_vectors(int64_t b, int64_t h, int64_t i, int64_t begin, int64_t end) {
        const Graph& graph = *run_.graph;
        widen_row(run_.query.storage, run_.query.at(b, h, i), run_.query.step(), run_.width, query_);
        bool looped = false;
        for (int64_t e = begin; run_.from.vec && e < end; ++e) looped = looped || graph.edge[e] < 0;
        if (looped) mean_vector(h, run_.row_of(b, i));
        const float* att = run_.att_src ? run_.att_src + h * padded(run_.width) : nullptr;
        for (int64_t first = begin; first < end; first += batch_lanes) {
            const int64_t used = end - first < batch_lanes ? end - first : batch_lanes;
            Batch sums[batch_lanes];
            for (int64_t n = 0; n < batch_lanes; ++n) {
                if (n >= used) {
                    sums[n] = Batch(0.0f);
                    continue;
                }
                const int64_t room = n * padded(run_.width), edge = graph.edge[first + n];
                const float* key = row(run_.key, b, run_.kv_head(h), graph.source[first + n], run_.width, keys_ + room);
                if (run_.version == GraphVersion::dot)
                    sums[n] = product(query_, key);
                else if (!run_.from.vec)
                    sums[n] = leaky_product<false>(att, key, nullptr);
                else
                    sums[n] = leaky_product<true>(att, key, edge < 0 ? mean_ : vector_of(h, edge, vectors_ + room));
            }
            store_lanes(sums, used, scores_ + (first - begin));
        }
        if (run_.version == GraphVersion::dot)
            for (int64_t n = 0; n < end - begin; ++n) scores_[n] *= run_.scale;
    }

    // The softmax over a piece of a row; the messages' sum is left in sum_, the weights in the output of weights.
    EdgeSoftmax piece(int64_t b, int64_t h, int64_t i, int64_t first, int64_t last) {
        for (int64_t d = 0; d < padded(run_.value_width); ++d) sum_[d] = 0.0f;
        if (run_.returned)
            for (int64_t e = first; e < last; ++e) *returned(b, h, e) = 0.0f;
        int64_t begin = first, end = last;
        cut(b, i, begin, end);
        const int64_t count = end - begin;
        if (count == 0) return {-infinity, 0.0f};
        score(b, h, i, begin, end);
        float most = -infinity;
        for (int64_t n = 0; n < count; ++n) most = scores_[n] > most ? scores_[n] : most;
        // Nothing but minus infinity, and perhaps NaN, which shall stay.
        const float base = most == -infinity ? 0.0f : most;
        for (int64_t n = count; n < padded(count); ++n) scores_[n] = -infinity;
        Batch total(0.0f);
        for (int64_t n = 0; n < count; n += batch_lanes) {
            const Batch weight = exp_nonpositive(load(scores_ + n) - Batch(base));
            store(scores_ + n, weight);
            total = total + weight;
        }
        if (run_.returned)
            for (int64_t n = 0; n < count; ++n) *returned(b, h, begin + n) = scores_[n];
        const float* weights = scores_;
        if (run_.dropout > 0.0) weights = drop(b, h, i, begin, count);
        add_messages(b, run_.kv_head(h), begin, count, weights);
        return {most, reduce_add(total)};
    }
    const float* drop(int64_t b, int64_t h, int64_t i, int64_t begin, int64_t count) {
        const uint32_t threshold = dropout_threshold(run_.dropout);
        const float scale = dropout_scale(run_.dropout);
        const auto row_head = static_cast<uint32_t>(b * run_.heads + h);
        int64_t drawn = -1;
        RandomWords words{};
        for (int64_t n = 0; n < count; ++n) {
            const int64_t j = run_.graph->source[begin + n];
            if (j / 4 != drawn)
                words = dropout_words(run_.seed, static_cast<uint32_t>(run_.rng_offset), row_head,
                                      static_cast<uint32_t>(i), static_cast<uint32_t>(drawn = j / 4));
            weights_[n] = words.word[j % 4] >= threshold ? scores_[n] * scale : 0.0f;
        }
        return weights_;
    }
    void add_messages(int64_t b, int64_t kv_head, int64_t begin, int64_t count, const float* weights) {
        const int64_t room = padded(run_.value_width), tail = run_.value_width % batch_lanes;
        for (int64_t first = 0; first < count; first += messages_at_once) {
            const float* rows[messages_at_once];
            Batch factors[messages_at_once];
            for (int64_t n = 0; n < messages_at_once; ++n) {
                const int64_t at = first + n < count ? first + n : count - 1;
                rows[n] =
                    row(run_.value, b, kv_head, run_.graph->source[begin + at], run_.value_width, messages_ + n * room);
                factors[n] = Batch(weights[at]);
            }
            const int64_t used = count - first < messages_at_once ? count - first : messages_at_once;
            int64_t d = 0;
            if (used == messages_at_once) {
                for (; d + batch_lanes <= run_.value_width; d += batch_lanes) {
                    Batch sum = load(sum_ + d);
                    ATTEND_UNROLL
                    for (int64_t n = 0; n < messages_at_once; ++n) sum = fma(factors[n], load(rows[n] + d), sum);
                    store(sum_ + d, sum);
                }
            } else {
                for (; d + batch_lanes <= run_.value_width; d += batch_lanes) {
                    Batch sum = load(sum_ + d);
                    for (int64_t n = 0; n < used; ++n) sum = fma(factors[n], load(rows[n] + d), sum);
                    store(sum_ + d, sum);
                }
            }
            if (tail == 0) continue;
            Batch sum = load(sum_ + d);
            for (int64_t n = 0; n < used; ++n) sum = fma(factors[n], load_tail(rows[n] + d, tail), sum);
            store(sum_ + d, sum);
        }
    }

    // Into part a: that of a and b. Values are not yet divided by the sums, so only the bases must meet.
    void merge(EdgeSoftmax* parts, float* values, int64_t a, int64_t b) const {
        if (parts[b].sum == 0.0f) return;
        const bool empty = parts[a].sum == 0.0f;
        const float most = empty || parts[b].most > parts[a].most ? parts[b].most : parts[a].most;
        const float of_a = empty ? 0.0f : ::expf(parts[a].most - most), of_b = ::expf(parts[b].most - most);
        parts[a] = {most, empty ? of_b * parts[b].sum : of_a * parts[a].sum + of_b * parts[b].sum};
        float* to = values + a * run_.value_width;
        const float* more = values + b * run_.value_width;
        for (int64_t d = 0; d < run_.value_width; ++d) to[d] = empty ? of_b * more[d] : of_a * to[d] + of_b * more[d];
    }

    void write(int64_t b, int64_t h, int64_t i, const EdgeSoftmax& of, float* values) const {
        const bool empty = of.sum == 0.0f;
        const float factor = 1.0f / of.sum;
        for (int64_t d = 0; d < run_.value_width; ++d) values[d] = empty ? 0.0f : values[d] * factor;
        narrow_row(run_.output.storage, values, run_.value_width, run_.output.at(b, h, i), run_.output.step());
        if (run_.lse.present) *run_.lse.at(b, h, i) = empty ? -infinity : of.most + ::logf(of.sum);
    }

    // The weight of an edge: [B,Hq,edges], with a graph for each item [Hq,edges of all].
    float* returned(int64_t b, int64_t h, int64_t e) const {
        const attend_tensor& to = *run_.returned;
        float* data = static_cast<float*>(to.data);
        return to.ndim == 3 ? data + b * to.strides[0] + h * to.strides[1] + e * to.strides[2]
                            : data + h * to.strides[0] + e * to.strides[1];
    }
    void scale_returned(int64_t b, int64_t h, int64_t begin, int64_t end, float factor) const {
        for (int64_t e = begin; e < end; ++e) *returned(b, h, e) *= factor;
    }

    const GraphRun& run_;
    float *scores_, *weights_, *query_, *mean_, *keys_, *vectors_, *sum_, *messages_;
};

}  // namespace attend::ATTEND_ISA
