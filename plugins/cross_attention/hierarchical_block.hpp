// SPDX-License-Identifier: Apache-2.0
// The whole block of hierarchical-cross-attention on tokens x and a document: word attention in every segment, sentence
// attention over the summaries of a token, a feed-forward layer, and a gate between x and what was read.
//
//   S_tj = MHA_word(LN(x_t), tokens of segment j);  m_t = MHA_sent(LN'(x_t), LN(S_t));  d = m + W2 relu(W1 LN(m) + b1) + b2
//   g = sigmoid(Wg [x; d] + bg);  y = LN((1 - g) x + g d)
#pragma once

#include <math.h>
#include <stdio.h>

#include "attend/author/block.hpp"
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

// Rows of x that go through the block together, and what they keep meanwhile.
struct HierarchicalPieces {
    int64_t rows, segments, width, keys;
    float *word_keys, *word_values, *normed, *query, *words, *summaries, *sent_keys, *sent_values, *joined, *read,
        *both, *gate, *lse;
    uint8_t* seen;

    HierarchicalPieces(const attend_plan_desc& desc, int64_t num_segments, Scratch& scratch)
        : segments(num_segments), width(desc.num_q_heads * desc.head_dim), keys(desc.kv_len) {
        rows = (int64_t{1} << 19) / (segments * width + 1);
        rows = rows < 1 ? 1 : rows > 64 ? 64 : rows;
        rows = rows > desc.q_len ? larger(desc.q_len, 1) : rows;
        word_keys = scratch.take(keys * width);
        word_values = scratch.take(keys * width);
        for (float** piece : {&normed, &query, &joined, &read, &gate}) *piece = scratch.take(rows * width);
        both = scratch.take(rows * 2 * width);
        for (float** piece : {&words, &summaries, &sent_keys, &sent_values})
            *piece = scratch.take(rows * segments * width);
        lse = scratch.take(desc.num_q_heads * rows);
        seen = scratch.space.take<uint8_t>(rows * segments);
    }
};

inline attend_plan_desc sub_plan(const attend_plan_desc& desc, int64_t batch, int64_t q_len, int64_t kv_len) {
    attend_plan_desc part = desc;
    part.batch = batch, part.q_len = q_len, part.kv_len = kv_len;
    part.num_kv_heads = part.num_q_heads, part.value_dim = part.head_dim;
    return part;
}

inline uint64_t hierarchical_block_workspace(const HierarchicalOptions& options, const attend_plan_desc& desc) {
    const attend_tensor* offsets = attend_find_name(&desc.bindings, "segment_offsets");
    const int64_t segments = offsets ? offsets->shape[offsets->ndim - 1] - 1
                                     : (desc.kv_len + options.segment_size - 1) / options.segment_size;
    Scratch scratch(nullptr);
    const HierarchicalPieces pieces(desc, segments, scratch);
    const int64_t e = pieces.width, rows = pieces.rows;
    const uint32_t workers = desc.max_workers;
    uint64_t most = feed_forward_workspace(1, rows, e, 4 * e, workers);
    for (const uint64_t bytes :
         {layer_workspace(1, desc.kv_len, e, e, workers), layer_workspace(1, rows * segments, e, e, workers),
          layer_workspace(1, rows, e, e, workers), layer_workspace(1, rows, 2 * e, e, workers),
          tile_workspace(sub_plan(desc, 1, rows, desc.kv_len)), tile_workspace(sub_plan(desc, 1, rows, 64)),
          tile_workspace(sub_plan(desc, rows, 1, segments))})
        most = larger_bytes(most, bytes);
    return scratch.space.used() + most;
}

// One portion of rows of an item.
class HierarchicalBlock {
public:
    HierarchicalBlock(const ForwardArgs& args, const KeySegments& segments, const Context& context)
        : args_(args),
          desc_(*args.desc),
          segments_(segments),
          scratch_(context.workspace),
          pieces_(desc_, segments.count, scratch_),
          context_(scratch_.rest(context)),
          heads_(desc_.num_q_heads) {}

    attend_status run() {
        for (int64_t b = 0; b < desc_.batch; ++b) {
            Part document(*args_.key), keys(pieces_.word_keys, 1, pieces_.keys, pieces_.width),
                values(pieces_.word_values, 1, pieces_.keys, pieces_.width);
            document.cut(0, b, 1);
            attend_status status = linear("word.wk", "word.bk", document.tensor, keys.tensor);
            if (status == ATTEND_OK) status = linear("word.wv", "word.bv", document.tensor, values.tensor);
            for (int64_t row = 0; row < desc_.q_len && status == ATTEND_OK; row += pieces_.rows)
                status = portion(b, row, desc_.q_len - row < pieces_.rows ? desc_.q_len - row : pieces_.rows);
            if (status != ATTEND_OK) return status;
        }
        return ATTEND_OK;
    }

private:
    const attend_tensor* weight(const char* name) const { return attend_find_name(args_.weights, name); }
    attend_status linear(const char* w, const char* b, const attend_tensor& from, const attend_tensor& to) const {
        return layer(&context_, &from, weight(w), weight(b), &to);
    }
    attend_status norm(const char* gamma, const char* beta, const attend_tensor& from, const attend_tensor& to) const {
        return layer_norm(&context_, &from, weight(gamma), weight(beta), &to);
    }

    attend_status portion(int64_t b, int64_t row, int64_t rows) {
        const int64_t e = pieces_.width, s = pieces_.segments;
        Part x(*args_.query), y(*args_.output);
        x.cut(0, b, 1).cut(1, row, rows);
        y.cut(0, b, 1).cut(1, row, rows);
        Part normed(pieces_.normed, 1, rows, e), query(pieces_.query, 1, rows, e), joined(pieces_.joined, 1, rows, e),
            read(pieces_.read, 1, rows, e), both(pieces_.both, 1, rows, 2 * e), gate(pieces_.gate, 1, rows, e);
        Part words(pieces_.words, 1, rows * s, e), summaries(pieces_.summaries, 1, rows * s, e),
            keys(pieces_.sent_keys, 1, rows * s, e), values(pieces_.sent_values, 1, rows * s, e);

        attend_status status = norm("norm_word_query.gamma", "norm_word_query.beta", x.tensor, normed.tensor);
        if (status == ATTEND_OK) status = linear("word.wq", "word.bq", normed.tensor, query.tensor);
        if (status == ATTEND_OK) status = read_words(b, row, rows);
        if (status == ATTEND_OK) status = linear("word.wo", "word.bo", words.tensor, summaries.tensor);
        if (status == ATTEND_OK)
            status = norm("norm_segment.gamma", "norm_segment.beta", summaries.tensor, words.tensor);
        if (status == ATTEND_OK) status = linear("sent.wk", "sent.bk", words.tensor, keys.tensor);
        if (status == ATTEND_OK) status = linear("sent.wv", "sent.bv", words.tensor, values.tensor);
        if (status == ATTEND_OK)
            status = norm("norm_sent_query.gamma", "norm_sent_query.beta", x.tensor, normed.tensor);
        if (status == ATTEND_OK) status = linear("sent.wq", "sent.bq", normed.tensor, query.tensor);
        if (status == ATTEND_OK) status = read_sentences(rows);
        if (status == ATTEND_OK) status = linear("sent.wo", "sent.bo", joined.tensor, read.tensor);
        if (status != ATTEND_OK) return status;
        const FeedForward forward{weight("ffn_norm.gamma"),
                                  weight("ffn_norm.beta"),
                                  weight("w1"),
                                  weight("b1"),
                                  weight("w2"),
                                  weight("b2"),
                                  Activation::relu,
                                  Gate{}};
        status = feed_forward(&context_, forward, &read.tensor, &read.tensor);
        if (status != ATTEND_OK) return status;
        const TensorView<const float, 3> from = view_of<const float, 3>(&x.tensor);
        for (int64_t at = 0; at < rows; ++at)
            for (int64_t c = 0; c < e; ++c) {
                pieces_.both[at * 2 * e + c] = *from.at(0, at, c);
                pieces_.both[at * 2 * e + e + c] = pieces_.read[at * e + c];
            }
        status = linear("wg", "bg", both.tensor, gate.tensor);
        if (status != ATTEND_OK) return status;
        for (int64_t at = 0; at < rows; ++at)
            for (int64_t c = 0; c < e; ++c) {
                const float g = static_cast<float>(1.0 / (1.0 + ::exp(-static_cast<double>(pieces_.gate[at * e + c]))));
                pieces_.gate[at * e + c] =
                    (1.0f - g) * pieces_.both[at * 2 * e + c] + g * pieces_.both[at * 2 * e + e + c];
            }
        return norm("norm_out.gamma", "norm_out.beta", gate.tensor, y.tensor);
    }

    // The joined heads of every (row, segment), and which segments a row sees a token of.
    attend_status read_words(int64_t b, int64_t row, int64_t rows) {
        const int64_t e = pieces_.width, d = desc_.head_dim, s = pieces_.segments;
        const int64_t length = args_.key_lengths ? integer_at(args_.key_lengths, b) : desc_.kv_len,
                      valid = args_.query_lengths ? integer_at(args_.query_lengths, b) : desc_.q_len;
        const auto mask = broadcast_view_of<const uint8_t, 4>(args_.mask);
        OwnTensor query, key, value, output, lse, shown;
        describe(query, pieces_.query, 1, heads_, rows, d);
        strides(query, {rows * e, d, e, 1});
        describe(lse, pieces_.lse, 1, heads_, rows, 1);
        lse.tensor.ndim = 3;
        strides(lse, {heads_ * rows, rows, 1, 1});
        for (int64_t segment = 0; segment < s; ++segment) {
            const int64_t begin = segments_.begin(b, segment);
            int64_t end = segments_.begin(b, segment + 1);
            end = end < length ? end : length;
            const int64_t tokens = end > begin ? end - begin : 0;
            describe(key, pieces_.word_keys + begin * e, 1, heads_, tokens, d);
            describe(value, pieces_.word_values + begin * e, 1, heads_, tokens, d);
            describe(output, pieces_.words + segment * e, 1, heads_, rows, d);
            strides(key, {0, d, e, 1});
            strides(value, {0, d, e, 1});
            strides(output, {rows * s * e, d, s * e, 1});
            attend_tile_problem problem{};
            const attend_key_segment all{&key.tensor, &value.tensor, 0, 0, nullptr};
            problem.query = &query.tensor;
            problem.segments = &all;
            problem.num_segments = 1;
            problem.output = &output.tensor;
            problem.lse = &lse.tensor;
            problem.scale = resolved_scale(desc_);
            problem.window_left = problem.window_right = -1;
            if (mask.present) {
                describe(shown, *args_.mask, {1, heads_, rows, tokens}, {0, 0, mask.strides[2], mask.strides[3]});
                shown.tensor.data = const_cast<uint8_t*>(mask.at(b, 0, row, begin));
                problem.mask = &shown.tensor;
            }
            const attend_status status = ATTEND_KERNEL(attend_tile_forward)(&problem, &context_);
            if (status != ATTEND_OK) return status;
            for (int64_t at = 0; at < rows; ++at)
                pieces_.seen[at * s + segment] = row + at < valid && pieces_.lse[at] != -infinity ? 1 : 0;
        }
        return ATTEND_OK;
    }

    // Every row is an item of its own: its summaries are its keys.
    attend_status read_sentences(int64_t rows) {
        const int64_t e = pieces_.width, d = desc_.head_dim, s = pieces_.segments;
        OwnTensor query, key, value, output, shown;
        describe(query, pieces_.query, rows, heads_, 1, d);
        describe(output, pieces_.joined, rows, heads_, 1, d);
        describe(key, pieces_.sent_keys, rows, heads_, s, d);
        describe(value, pieces_.sent_values, rows, heads_, s, d);
        strides(key, {s * e, d, e, 1});
        strides(value, {s * e, d, e, 1});
        describe(shown, nullptr, rows, heads_, 1, s);
        strides(shown, {s, 0, 0, 1});
        shown.tensor.data = pieces_.seen;
        shown.tensor.dtype_code = ATTEND_CODE_UINT;
        shown.tensor.dtype_bits = 8;
        attend_tile_problem problem{};
        const attend_key_segment all{&key.tensor, &value.tensor, 0, 0, nullptr};
        problem.query = &query.tensor;
        problem.segments = &all;
        problem.num_segments = 1;
        problem.output = &output.tensor;
        problem.mask = &shown.tensor;
        problem.scale = resolved_scale(desc_);
        problem.window_left = problem.window_right = -1;
        return ATTEND_KERNEL(attend_tile_forward)(&problem, &context_);
    }

    static void strides(OwnTensor& tensor, const int64_t (&steps)[4]) {
        for (int axis = 0; axis < 4; ++axis) tensor.strides[axis] = steps[axis];
    }

    const ForwardArgs& args_;
    const attend_plan_desc& desc_;
    const KeySegments& segments_;
    Scratch scratch_;
    HierarchicalPieces pieces_;
    Context context_;
    int64_t heads_;
};

inline attend_status run_hierarchical_block(const HierarchicalOptions&, const ForwardArgs& args,
                                            const KeySegments& segments, const Context& context) {
    return HierarchicalBlock(args, segments, context).run();
}

inline void hierarchical_block_cost(const attend_plan_desc& desc, int64_t segments, attend_cost& cost) {
    const auto e = static_cast<double>(desc.num_q_heads * desc.head_dim),
               rows = static_cast<double>(desc.batch * desc.q_len),
               keys = static_cast<double>(desc.batch * desc.kv_len), s = static_cast<double>(segments);
    cost.flops += 2.0 * e * e * (2.0 * keys + rows * (3.0 * s + 13.0)) + 4.0 * rows * s * e;
    cost.bytes += 4.0 * 18.0 * e * e;
}

}  // namespace
}  // namespace attend::ATTEND_ISA
