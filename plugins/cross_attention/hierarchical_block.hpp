// SPDX-License-Identifier: Apache-2.0
// The whole block of hierarchical-cross-attention on tokens x and a document: word attention in every segment, sentence
// attention over the summaries of a token, a feed-forward layer, and a gate between x and what was read.
//
//   S_tj = MHA_word(LN(x_t), tokens of segment j);  m_t = MHA_sent(LN'(x_t), LN(S_t));  d = m + W2 relu(W1 LN(m) + b1) + b2
//   g = sigmoid(Wg [x; d] + bg);  y = LN((1 - g) x + g d)
//
// Memory is bounded: a portion of rows walks over tiles of the document, which are projected as they come. The sentence
// level works on the summaries s = LN(S_tj) themselves, since <q, Wk s + bk> = <Wk^T q, s> + a number that is the same for
// all segments, and sum_j beta_j (Wv s_j + bv) = Wv (sum_j beta_j s_j) + bv: a running softmax over the segments of a tile
// after the other, without a key and a value for every row and segment.
#pragma once

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "attend/author/block.hpp"
#include "attend/toolkit/block/merge.hpp"
#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/tile/segment_softmax.hpp"

#define ATTEND_HIERARCHICAL_HEADS(level)                                                                            \
    weight_port(level ".wq", "block: E,E", "kaimingUniform as " level ".Wq", level "-level query projection"),      \
        weight_port(level ".wk", "block: E,E", "kaimingUniform as " level ".Wk", level "-level key projection"),    \
        weight_port(level ".wv", "block: E,E", "kaimingUniform as " level ".Wv", level "-level value projection"),  \
        weight_port(level ".wo", "block: E,E", "kaimingUniform as " level ".Wo", level "-level output projection"), \
        weight_port(level ".bq", "block: E", "zeros", "its bias"),                                                  \
        weight_port(level ".bk", "block: E", "zeros", "its bias"),                                                  \
        weight_port(level ".bv", "block: E", "zeros", "its bias"),                                                  \
        weight_port(level ".bo", "block: E", "zeros", "its bias")
#define ATTEND_HIERARCHICAL_NORM(name, help) \
    weight_port(name ".gamma", "block: E", "ones", help), weight_port(name ".beta", "block: E", "zeros", help)
#define ATTEND_HIERARCHICAL_BLOCK_PORTS                                                             \
    ATTEND_HIERARCHICAL_HEADS("word"), ATTEND_HIERARCHICAL_HEADS("sent"),                           \
        ATTEND_HIERARCHICAL_NORM("norm_word_query", "norm of x towards tokens"),                    \
        ATTEND_HIERARCHICAL_NORM("norm_sent_query", "norm of x towards segments"),                  \
        ATTEND_HIERARCHICAL_NORM("norm_segment", "norm of summaries"),                              \
        ATTEND_HIERARCHICAL_NORM("ffn_norm", "norm before the feed-forward layer"),                 \
        ATTEND_HIERARCHICAL_NORM("norm_out", "norm of the result"),                                 \
        weight_port("w1", "block: 4*E,E", "kaimingUniform as W1", "feed-forward, in"),              \
        weight_port("b1", "block: 4*E", "zeros", "its bias"),                                       \
        weight_port("w2", "block: E,4*E", "kaimingUniform as W2", "feed-forward, out"),             \
        weight_port("b2", "block: E", "zeros", "its bias"),                                         \
        weight_port("wg", "block: E,2*E", "kaimingUniform as Wg", "gate from x and what was read"), \
        weight_port("bg", "block: E", "zeros", "its bias")

namespace attend::ATTEND_ISA {
namespace {

struct HierarchicalOptions {
    int64_t segment_size, heads;
    int32_t segment_score, segment_norm, block;
    OptionalInt segment_dim;
    OptionalReal segment_scale;
};

inline void fill_segments(const attend_tensor& tensor, float value) {
    const TensorView<float, 4> view = view_of<float, 4>(&tensor);
    for (int64_t b = 0; b < view.shape[0]; ++b)
        for (int64_t h = 0; h < view.shape[1]; ++h)
            for (int64_t i = 0; i < view.shape[2]; ++i)
                for (int64_t s = 0; s < view.shape[3]; ++s) *view.at(b, h, i, s) = value;
}

inline attend_status check_segments(const KeySegments& segments, int64_t batch, attend_error* error) {
    if (segments.offsets == nullptr) return ATTEND_OK;
    const int64_t lists = segments.offsets->ndim == 2 ? batch : 1;
    for (int64_t b = 0; b < lists; ++b) {
        int64_t last = 0;
        for (int64_t s = 0; s <= segments.count; ++s) {
            const int64_t now = segments.begin(b, s);
            if (now < last || now > segments.num_keys)
                return (Message() << "hierarchical-cross-attention: input \"segment_offsets\" has " << now << " after "
                                  << last << "; accepted: numbers that do not decrease, from 0 to " << segments.num_keys
                                  << " (the number of keys)")
                    .fail(error, ATTEND_BAD_SHAPE, "segment_offsets");
            last = now;
        }
    }
    return ATTEND_OK;
}

// "option <name> <text> <value>; accepted: <accepted>".
inline attend_status refuse_real(const char* name, const char* text, double value, const char* accepted,
                                 attend_error* error) {
    char number[32];
    ::snprintf(number, sizeof number, " %g; accepted: ", value);
    return (Message() << "hierarchical-cross-attention: option \"" << name << "\" " << text << number << accepted)
        .fail(error, ATTEND_BAD_OPTION, name);
}

inline attend_status check_hierarchical_block(const HierarchicalOptions&, const attend_plan_desc& desc,
                                              attend_error* error) {
    if (desc.softcap != 0.0) return refuse_real("softcap", "with block true is", desc.softcap, "0", error);
    if (desc.dropout != 0.0) return refuse_real("dropout", "with block true is", desc.dropout, "0", error);
    if (attend_find(&desc.bindings, ATTEND_BIAS) != nullptr)
        return (Message() << "hierarchical-cross-attention: input \"bias\" is given with block true; accepted: none")
            .fail(error, ATTEND_BAD_OPTION, "bias");
    const attend_tensor* mask = attend_find(&desc.bindings, ATTEND_MASK);
    if (mask && mask->shape[1] != 1)
        return (Message() << "hierarchical-cross-attention: mask has " << mask->shape[1]
                          << " heads with block true; accepted: 1 (heads are mixed between the levels)")
            .fail(error, ATTEND_BAD_SHAPE, "mask");
    return ATTEND_OK;
}

// What stands in memory for a portion of rows of an item.
struct HierarchicalSizes {
    int64_t width, heads, head_dim;
    int64_t rows, tokens;     // of a portion; of a tile of the document
    int64_t step, summaries;  // rows that read a tile together; (row, segment) pairs that they hold at a time

    HierarchicalSizes(const attend_plan_desc& desc, int64_t segments)
        : width(larger(desc.num_q_heads * desc.head_dim, 1)), heads(desc.num_q_heads), head_dim(desc.head_dim) {
        const auto within = [](int64_t value, int64_t least, int64_t most) {
            return value < least ? least : value > most ? most : value;
        };
        // 2 MiB each of keys and of values, 8 MiB of what the heads of the rows have read, 2 MiB of summaries.
        tokens = within(within((int64_t{1} << 19) / width, 64, 2048), 1, larger(desc.kv_len, 1));
        rows = within(within((int64_t{1} << 21) / (width * heads), 64, 512), 1, larger(desc.q_len, 1));
        step = rows < 64 ? rows : 64;
        const int64_t most = tokens < segments ? tokens : larger(segments, 1);
        summaries = within((int64_t{1} << 19) / width, 2 * step, 1024);
        summaries = summaries < step * most ? summaries : step * most;
    }
};

struct HierarchicalPieces {
    float *word_keys, *word_values, *joined, *query, *sent_query, *normed, *words, *folded, *read, *read_lse, *part,
        *part_lse, *open, *open_lse, *open_part, *word_lse;
    float *both, *deep, *gate;  // of the steps behind the heads: they lie where those above from `query` on lay
    uint8_t* seen;
    uint64_t reading, closing;  // bytes taken while rows read, and behind that

    HierarchicalPieces(const HierarchicalSizes& sizes, void* memory) {
        Scratch scratch(memory);
        const int64_t e = sizes.width, rows = sizes.rows, step = sizes.step;
        word_keys = scratch.take(sizes.tokens * e);
        word_values = scratch.take(sizes.tokens * e);
        joined = scratch.take(rows * e);
        Scratch behind = scratch;
        for (float** piece : {&query, &sent_query, &open}) *piece = scratch.take(rows * e);
        for (float** piece : {&normed, &words}) *piece = scratch.take(larger(sizes.summaries, step) * e);
        for (float** piece : {&folded, &part}) *piece = scratch.take(step * sizes.heads * e);
        read = scratch.take(rows * sizes.heads * e);
        for (float** piece : {&read_lse, &open_lse}) *piece = scratch.take(rows * sizes.heads);
        part_lse = scratch.take(step * sizes.heads);
        open_part = scratch.take(step * e);
        word_lse = scratch.take(larger(sizes.summaries, step) * sizes.heads);
        seen = scratch.space.take<uint8_t>(larger(sizes.summaries, step));
        reading = scratch.space.used();
        both = behind.take(rows * 2 * e);
        for (float** piece : {&deep, &gate}) *piece = behind.take(rows * e);
        closing = behind.space.used();
    }
};

inline attend_plan_desc sub_plan(const attend_plan_desc& desc, int64_t batch, int64_t kv_heads, int64_t q_len,
                                 int64_t kv_len, int64_t width) {
    attend_plan_desc part = desc;
    part.batch = batch, part.q_len = q_len, part.kv_len = kv_len;
    part.num_kv_heads = kv_heads, part.head_dim = part.value_dim = width;
    return part;
}

inline int64_t segments_of_block(const HierarchicalOptions& options, const attend_plan_desc& desc) {
    const attend_tensor* offsets = attend_find_name(&desc.bindings, "segment_offsets");
    return offsets ? offsets->shape[offsets->ndim - 1] - 1
                   : (desc.kv_len + options.segment_size - 1) / options.segment_size;
}

inline uint64_t hierarchical_block_workspace(const HierarchicalOptions& options, const attend_plan_desc& desc) {
    const HierarchicalSizes sizes(desc, segments_of_block(options, desc));
    const HierarchicalPieces pieces(sizes, nullptr);
    const int64_t e = sizes.width, d = sizes.head_dim, heads = sizes.heads;
    const uint32_t workers = desc.max_workers;
    uint64_t reading = 0, closing = feed_forward_workspace(1, sizes.rows, e, 4 * e, workers);
    for (const uint64_t bytes :
         {layer_workspace(1, sizes.tokens, e, e, workers), layer_workspace(1, sizes.rows, e, e, workers),
          layer_workspace(1, larger(sizes.summaries, sizes.step), e, e, workers),
          layer_workspace(1, sizes.step, d, e, workers), layer_workspace(1, sizes.rows, e, d, workers),
          tile_workspace(sub_plan(desc, sizes.step, 1, 1, sizes.summaries, e))})
        reading = larger_bytes(reading, bytes);
    // Fewer rows may make wider tiles.
    for (int64_t rows = 1; rows <= sizes.step; ++rows)
        reading = larger_bytes(reading, tile_workspace(sub_plan(desc, sizes.summaries, heads, rows, sizes.tokens, d)));
    for (const uint64_t bytes :
         {layer_workspace(1, sizes.rows, e, e, workers), layer_workspace(1, sizes.rows, 2 * e, e, workers)})
        closing = larger_bytes(closing, bytes);
    return larger_bytes(pieces.reading + reading, pieces.closing + closing);
}

inline int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }

// Items of a call, one portion of rows after the other.
class HierarchicalBlock {
public:
    HierarchicalBlock(const ForwardArgs& args, const KeySegments& segments, const Context& context)
        : args_(args),
          desc_(*args.desc),
          segments_(segments),
          sizes_(desc_, segments.count),
          pieces_(sizes_, context.workspace),
          reading_(behind(context, pieces_.reading)),
          closing_(behind(context, pieces_.closing)),
          mask_(broadcast_view_of<const uint8_t, 4>(args.mask)) {}

    attend_status run() {
        for (item_ = 0; item_ < desc_.batch; ++item_) {
            tile_begin_ = tile_end_ = 0;
            const int64_t length = args_.key_lengths ? integer_at(args_.key_lengths, item_) : desc_.kv_len;
            last_ = least_of(segments_.begin(item_, segments_.count), length);
            valid_ = args_.query_lengths ? integer_at(args_.query_lengths, item_) : desc_.q_len;
            for (row_ = 0; row_ < desc_.q_len; row_ += sizes_.rows) {
                rows_ = least_of(desc_.q_len - row_, sizes_.rows);
                attend_status status = queries();
                if (status == ATTEND_OK) status = document();
                if (status == ATTEND_OK) status = join_heads();
                if (status == ATTEND_OK) status = close();
                if (status != ATTEND_OK) return status;
            }
        }
        return ATTEND_OK;
    }

private:
    static Context behind(const Context& context, uint64_t bytes) {
        Context rest = context;
        rest.workspace = static_cast<char*>(context.workspace) + bytes;
        rest.workspace_bytes = context.workspace_bytes > bytes ? context.workspace_bytes - bytes : 0;
        return rest;
    }
    const attend_tensor* weight(const char* name) const { return attend_find_name(args_.weights, name); }
    attend_status linear(const Context& context, const char* w, const char* b, const attend_tensor& from,
                         const attend_tensor& to) const {
        return layer(&context, &from, weight(w), weight(b), &to);
    }
    attend_status norm(const Context& context, const char* gamma, const char* beta, const attend_tensor& from,
                       const attend_tensor& to) const {
        return layer_norm(&context, &from, weight(gamma), weight(beta), &to);
    }

    // Queries of both levels; nothing has been read yet. `open` is free until the first tile.
    attend_status queries() {
        const int64_t e = sizes_.width;
        Part x(*args_.query), normed(pieces_.open, 1, rows_, e), words(pieces_.query, 1, rows_, e),
            sentences(pieces_.sent_query, 1, rows_, e);
        x.cut(0, item_, 1).cut(1, row_, rows_);
        for (int64_t n = 0; n < rows_ * sizes_.heads; ++n) pieces_.read_lse[n] = -infinity;
        ::memset(pieces_.read, 0, static_cast<size_t>(rows_ * sizes_.heads * e) * sizeof(float));
        attend_status status = norm(reading_, "norm_word_query.gamma", "norm_word_query.beta", x.tensor, normed.tensor);
        if (status == ATTEND_OK) status = linear(reading_, "word.wq", "word.bq", normed.tensor, words.tensor);
        if (status == ATTEND_OK)
            status = norm(reading_, "norm_sent_query.gamma", "norm_sent_query.beta", x.tensor, normed.tensor);
        if (status == ATTEND_OK) status = linear(reading_, "sent.wq", "sent.bq", normed.tensor, sentences.tensor);
        return status;
    }

    // Tiles hold whole segments, or a piece of one segment that is longer than a tile.
    attend_status document() {
        int64_t segment = 0, begin = segments_.begin(item_, 0);
        while (begin < last_) {
            while (segments_.begin(item_, segment + 1) <= begin) ++segment;
            int64_t end = least_of(begin + sizes_.tokens, last_), behind_tile = segment;
            while (behind_tile < segments_.count && segment_end(behind_tile) <= end) ++behind_tile;
            const bool whole = behind_tile > segment && begin == segments_.begin(item_, segment);
            if (whole)
                end = segment_end(behind_tile - 1);
            else if (segment_end(segment) < end)
                end = segment_end(segment);
            attend_status status = project_tile(begin, end);
            for (int64_t row = 0; row < rows_ && status == ATTEND_OK; row += sizes_.step) {
                const int64_t rows = least_of(rows_ - row, sizes_.step);
                status = fold_queries(row, rows);
                if (status != ATTEND_OK) return status;
                status = whole ? read_segments(row, rows, segment, behind_tile) : read_piece(row, rows, segment);
            }
            if (status != ATTEND_OK) return status;
            begin = end;
        }
        return ATTEND_OK;
    }
    int64_t segment_end(int64_t segment) const { return least_of(segments_.begin(item_, segment + 1), last_); }

    attend_status project_tile(int64_t begin, int64_t end) {
        if (begin == tile_begin_ && end == tile_end_) return ATTEND_OK;
        Part tokens(*args_.key), keys(pieces_.word_keys, 1, end - begin, sizes_.width),
            values(pieces_.word_values, 1, end - begin, sizes_.width);
        tokens.cut(0, item_, 1).cut(1, begin, end - begin);
        tile_begin_ = begin, tile_end_ = end;
        const attend_status status = linear(reading_, "word.wk", "word.bk", tokens.tensor, keys.tensor);
        return status == ATTEND_OK ? linear(reading_, "word.wv", "word.bv", tokens.tensor, values.tensor) : status;
    }

    // Wk^T q of every head: [rows, heads, E].
    attend_status fold_queries(int64_t row, int64_t rows) const {
        const int64_t e = sizes_.width, d = sizes_.head_dim;
        const attend_tensor& wk = *weight("sent.wk");
        for (int64_t head = 0; head < sizes_.heads; ++head) {
            Part from(pieces_.sent_query + row * e, 1, rows, e), turned(wk),
                to(pieces_.folded, 1, rows, sizes_.heads * e);
            from.cut(2, head * d, d);
            to.cut(2, head * e, e);
            turned.cut(0, head * d, d);
            turned.shape[0] = e, turned.shape[1] = d;
            turned.strides[0] = wk.strides[1], turned.strides[1] = wk.strides[0];
            const attend_status status = layer(&reading_, &from.tensor, &turned.tensor, nullptr, &to.tensor);
            if (status != ATTEND_OK) return status;
        }
        return ATTEND_OK;
    }

    // `count` runs of `tokens` keys from `begin` on, each with a softmax of its own: to[i * row_step + run * run_step].
    attend_status attend_words(int64_t row, int64_t rows, int64_t begin, int64_t tokens, int64_t count, float* to,
                               int64_t row_step, int64_t run_step, float* logs) const {
        const int64_t e = sizes_.width, d = sizes_.head_dim, h = sizes_.heads;
        OwnTensor query, key, value, output, lse, shown;
        describe(query, pieces_.query + row * e, count, h, rows, d);
        strides(query, {0, d, e, 1});
        describe(key, pieces_.word_keys + (begin - tile_begin_) * e, count, h, tokens, d);
        describe(value, pieces_.word_values + (begin - tile_begin_) * e, count, h, tokens, d);
        strides(key, {tokens * e, d, e, 1});
        strides(value, {tokens * e, d, e, 1});
        describe(output, to, count, h, rows, d);
        strides(output, {run_step, d, row_step, 1});
        describe(lse, logs, count, h, rows, 1);
        lse.tensor.ndim = 3;
        attend_tile_problem problem{};
        const attend_key_segment all{&key.tensor, &value.tensor, 0, 0, nullptr};
        problem.query = &query.tensor;
        problem.segments = &all;
        problem.num_segments = 1;
        problem.output = &output.tensor;
        problem.lse = &lse.tensor;
        problem.scale = resolved_scale(desc_);
        problem.window_left = problem.window_right = -1;
        if (mask_.present) {
            describe(shown, *args_.mask, {count, h, rows, tokens},
                     {tokens * mask_.strides[3], 0, mask_.strides[2], mask_.strides[3]});
            shown.tensor.data = const_cast<uint8_t*>(mask_.at(item_, 0, row_ + row, begin));
            problem.mask = &shown.tensor;
        }
        return ATTEND_KERNEL(attend_tile_forward)(&problem, &reading_);
    }

    // Segments [from, to) of a tile, so many at a time as there is room for; an empty one is not there.
    attend_status read_segments(int64_t row, int64_t rows, int64_t from, int64_t to) const {
        const int64_t room = larger(sizes_.summaries / rows, 1), e = sizes_.width;
        for (int64_t segment = from; segment < to;) {
            int64_t group = 0, behind = segment;
            for (; behind < to && group < room; ++behind) group += segment_end(behind) > begin_of(behind) ? 1 : 0;
            for (int64_t at = 0; segment < behind;) {
                const int64_t begin = begin_of(segment), tokens = segment_end(segment) - begin;
                if (tokens == 0) {
                    ++segment;
                    continue;
                }
                int64_t runs = 1;
                while (segment + runs < behind && segment_end(segment + runs) - begin_of(segment + runs) == tokens)
                    ++runs;
                const attend_status status = attend_words(row, rows, begin, tokens, runs, pieces_.words + at * e,
                                                          group * e, e, pieces_.word_lse);
                if (status != ATTEND_OK) return status;
                for (int64_t run = 0; run < runs; ++run)
                    note_seen(row, rows, pieces_.word_lse + run * sizes_.heads * rows, group, at + run);
                at += runs;
                segment += runs;
            }
            if (group == 0) continue;
            const attend_status status = read_summaries(row, rows, group, pieces_.words);
            if (status != ATTEND_OK) return status;
        }
        return ATTEND_OK;
    }
    int64_t begin_of(int64_t segment) const { return least_of(segments_.begin(item_, segment), last_); }
    void note_seen(int64_t row, int64_t rows, const float* logs, int64_t group, int64_t at) const {
        for (int64_t i = 0; i < rows; ++i)
            pieces_.seen[i * group + at] = row_ + row + i < valid_ && logs[i] != -infinity ? 1 : 0;
    }

    // A tile inside one long segment: its rows stay open until the segment ends.
    attend_status read_piece(int64_t row, int64_t rows, int64_t segment) const {
        const int64_t e = sizes_.width, h = sizes_.heads;
        const bool first = tile_begin_ == segments_.begin(item_, segment);
        float *open = pieces_.open + row * e, *logs = pieces_.open_lse + row * h;
        attend_status status = attend_words(row, rows, tile_begin_, tile_end_ - tile_begin_, 1,
                                            first ? open : pieces_.open_part, e, 0, first ? logs : pieces_.word_lse);
        if (status == ATTEND_OK && !first) {
            Part values(open, 1, rows, e), part(pieces_.open_part, 1, rows, e), lse(logs, 1, h, rows),
                part_lse(pieces_.word_lse, 1, h, rows);
            status = merge_parts(&reading_, &values.split_heads(h).tensor, &lse.tensor, &part.split_heads(h).tensor,
                                 &part_lse.tensor);
        }
        if (status != ATTEND_OK || tile_end_ < segment_end(segment)) return status;
        note_seen(row, rows, logs, 1, 0);
        return read_summaries(row, rows, 1, open);
    }

    // The sentence level over `group` summaries of every row, from their joined heads; what was read before has its share.
    attend_status read_summaries(int64_t row, int64_t rows, int64_t group, float* joined) const {
        const int64_t e = sizes_.width, h = sizes_.heads;
        Part words(joined, 1, rows * group, e), mixed(pieces_.normed, 1, rows * group, e),
            normed(pieces_.words, 1, rows * group, e);
        attend_status status = linear(reading_, "word.wo", "word.bo", words.tensor, mixed.tensor);
        if (status == ATTEND_OK)
            status = norm(reading_, "norm_segment.gamma", "norm_segment.beta", mixed.tensor, normed.tensor);
        if (status != ATTEND_OK) return status;
        OwnTensor query, summaries, output, lse, shown, read, read_lse;
        describe(query, pieces_.folded, rows, h, 1, e);
        describe(summaries, pieces_.words, rows, 1, group, e);
        describe(output, pieces_.part, rows, h, 1, e);
        describe(lse, pieces_.part_lse, rows, h, 1, 1);
        describe(read, pieces_.read + row * h * e, rows, h, 1, e);
        describe(read_lse, pieces_.read_lse + row * h, rows, h, 1, 1);
        lse.tensor.ndim = read_lse.tensor.ndim = 3;
        describe(shown, nullptr, rows, h, 1, group);
        strides(shown, {group, 0, 0, 1});
        shown.tensor.data = pieces_.seen;
        shown.tensor.dtype_code = ATTEND_CODE_UINT;
        shown.tensor.dtype_bits = 8;
        attend_tile_problem problem{};
        const attend_key_segment all{&summaries.tensor, &summaries.tensor, 0, 0, nullptr};
        problem.query = &query.tensor;
        problem.segments = &all;
        problem.num_segments = 1;
        problem.output = &output.tensor;
        problem.lse = &lse.tensor;
        problem.mask = &shown.tensor;
        problem.scale = resolved_scale(desc_);
        problem.window_left = problem.window_right = -1;
        status = ATTEND_KERNEL(attend_tile_forward)(&problem, &reading_);
        if (status != ATTEND_OK) return status;
        return merge_parts(&reading_, &read.tensor, &read_lse.tensor, &output.tensor, &lse.tensor);
    }

    // Wv of what every head has read; a row that saw no segment has read nothing, not even the bias.
    attend_status join_heads() const {
        const int64_t e = sizes_.width, d = sizes_.head_dim, h = sizes_.heads;
        for (int64_t head = 0; head < h; ++head) {
            Part from(pieces_.read, 1, rows_, h * e), w(*weight("sent.wv")), b(*weight("sent.bv")),
                to(pieces_.joined, 1, rows_, e);
            from.cut(2, head * e, e);
            w.cut(0, head * d, d);
            b.cut(0, head * d, d);
            to.cut(2, head * d, d);
            const attend_status status = layer(&reading_, &from.tensor, &w.tensor, &b.tensor, &to.tensor);
            if (status != ATTEND_OK) return status;
        }
        for (int64_t row = 0; row < rows_; ++row)
            if (pieces_.read_lse[row * h] == -infinity)
                ::memset(pieces_.joined + row * e, 0, static_cast<size_t>(e) * sizeof(float));
        return ATTEND_OK;
    }

    attend_status close() const {
        const int64_t e = sizes_.width;
        Part x(*args_.query), y(*args_.output), joined(pieces_.joined, 1, rows_, e), deep(pieces_.deep, 1, rows_, e),
            both(pieces_.both, 1, rows_, 2 * e), gate(pieces_.gate, 1, rows_, e);
        x.cut(0, item_, 1).cut(1, row_, rows_);
        y.cut(0, item_, 1).cut(1, row_, rows_);
        attend_status status = linear(closing_, "sent.wo", "sent.bo", joined.tensor, deep.tensor);
        if (status != ATTEND_OK) return status;
        const FeedForward forward{weight("ffn_norm.gamma"),
                                  weight("ffn_norm.beta"),
                                  weight("w1"),
                                  weight("b1"),
                                  weight("w2"),
                                  weight("b2"),
                                  Activation::relu,
                                  Gate{}};
        status = feed_forward(&closing_, forward, &deep.tensor, &deep.tensor);
        if (status != ATTEND_OK) return status;
        const TensorView<const float, 3> from = view_of<const float, 3>(&x.tensor);
        for (int64_t at = 0; at < rows_; ++at)
            for (int64_t c = 0; c < e; ++c) {
                pieces_.both[at * 2 * e + c] = *from.at(0, at, c);
                pieces_.both[at * 2 * e + e + c] = pieces_.deep[at * e + c];
            }
        status = linear(closing_, "wg", "bg", both.tensor, gate.tensor);
        if (status != ATTEND_OK) return status;
        for (int64_t at = 0; at < rows_; ++at)
            for (int64_t c = 0; c < e; ++c) {
                const float g = static_cast<float>(1.0 / (1.0 + ::exp(-static_cast<double>(pieces_.gate[at * e + c]))));
                pieces_.gate[at * e + c] =
                    (1.0f - g) * pieces_.both[at * 2 * e + c] + g * pieces_.both[at * 2 * e + e + c];
            }
        return norm(closing_, "norm_out.gamma", "norm_out.beta", gate.tensor, y.tensor);
    }

    static void strides(OwnTensor& tensor, const int64_t (&steps)[4]) {
        for (int axis = 0; axis < 4; ++axis) tensor.strides[axis] = steps[axis];
    }

    const ForwardArgs& args_;
    const attend_plan_desc& desc_;
    const KeySegments& segments_;
    HierarchicalSizes sizes_;
    HierarchicalPieces pieces_;
    Context reading_, closing_;
    TensorView<const uint8_t, 4> mask_;
    int64_t item_{}, row_{}, rows_{};    // the portion
    int64_t last_{}, valid_{};           // keys and queries of the item
    int64_t tile_begin_{}, tile_end_{};  // tokens whose keys and values are there
};

inline attend_status run_hierarchical_block(const HierarchicalOptions&, const ForwardArgs& args,
                                            const KeySegments& segments, const Context& context) {
    return HierarchicalBlock(args, segments, context).run();
}

inline void hierarchical_block_cost(const attend_plan_desc& desc, int64_t segments, attend_cost& cost) {
    const auto real = [](int64_t n) { return static_cast<double>(n); };
    const HierarchicalSizes sizes(desc, segments);
    const double e = real(sizes.width), rows = real(desc.batch * desc.q_len), s = real(segments),
                 tiles = real((desc.kv_len + sizes.tokens - 1) / sizes.tokens),
                 portions = tiles > 1.0 ? real((desc.q_len + sizes.rows - 1) / sizes.rows) : 1.0,
                 keys = real(desc.batch * desc.kv_len) * portions;
    cost.flops += 2.0 * e * e * (2.0 * keys + rows * (s + tiles + 14.0)) + 4.0 * rows * s * e * real(sizes.heads);
    cost.bytes += 4.0 * 18.0 * e * e;
}

}  // namespace
}  // namespace attend::ATTEND_ISA
