// SPDX-License-Identifier: Apache-2.0
#include "specs/spec.hpp"

namespace specs {
namespace {
std::vector<Spec>& mutable_specs() {
    static std::vector<Spec> list;
    return list;
}
// A broadcast tensor [..] right-aligned to [B,H,Nq,Nk] (rank 3: [B,Nq,Nk]) at a place.
template <class T>
double broadcast_at(const Tensor& tensor, const Place& at) {
    const std::int64_t index4[4] = {at.b, at.h, at.i, at.j}, index3[3] = {at.b, at.i, at.j};
    const std::size_t rank = tensor.shape.size();
    std::int64_t offset = 0;
    for (std::size_t axis = 0; axis < rank; ++axis) {
        const std::int64_t index = rank == 3 ? index3[axis] : index4[4 - rank + axis];
        if (tensor.shape[axis] != 1) offset += index * tensor.strides[axis];
    }
    return static_cast<double>(tensor.as<const T>()[offset]);
}
}  // namespace

const std::vector<Spec>& all() { return mutable_specs(); }
void add(Spec spec) { mutable_specs().push_back(std::move(spec)); }

std::int64_t length_of(const std::optional<Tensor>& lengths, std::int64_t item, std::int64_t extent) {
    if (!lengths) return extent;
    return lengths->dtype == attend::DType::i32 ? lengths->as<const std::int32_t>()[item * lengths->strides[0]]
                                                : lengths->as<const std::int64_t>()[item * lengths->strides[0]];
}

std::int64_t offset_of(const Call& call, std::int64_t item) {
    const ForwardInputs& in = *call.inputs;
    const std::int64_t nq = in.query.shape[2], nk = (in.key ? *in.key : in.query).shape[2];
    if (call.optional_given("causal_offset")) return static_cast<std::int64_t>(call.number("causal_offset", 0));
    if (call.word("causal_alignment") == "top-left") return 0;
    if (in.query_lengths && in.key_lengths)
        return length_of(in.key_lengths, item, nk) - length_of(in.query_lengths, item, nq);
    return nk - nq;
}

Expected dense(const Call& call, const std::function<bool(const Place&)>& pattern, bool common_causal,
               bool common_window) {
    const ForwardInputs& in = *call.inputs;
    const Tensor& query = in.query;
    const Tensor& key = in.key ? *in.key : query;
    const Tensor& value = in.value ? *in.value : key;
    oracle::Dense x;
    x.batch = query.shape[0];
    x.q_heads = query.shape[1];
    x.kv_heads = key.shape[1];
    x.q_len = query.shape[2];
    x.kv_len = key.shape[2];
    x.head_dim = query.shape[3];
    x.value_dim = value.shape[3];
    x.q = oracle::View{&query};
    x.k = oracle::View{&key};
    x.v = oracle::View{&value};
    const double scale = call.number("scale", 0.0);
    x.scale = scale == 0.0 ? 1.0 / std::sqrt(static_cast<double>(x.head_dim)) : scale;
    x.softcap = call.number("softcap", 0.0);
    x.dropout = call.number("dropout", 0.0);
    x.seed = static_cast<std::uint64_t>(call.number("seed", 0.0));
    x.rng_offset = static_cast<std::uint64_t>(call.number("rng_offset", 0.0));
    const bool causal = common_causal && call.flag("causal");
    std::int64_t left = -1, right = -1;
    if (common_window) {
        left = static_cast<std::int64_t>(call.number("window_left", -1));
        right = static_cast<std::int64_t>(call.number("window_right", -1));
        const auto both = static_cast<std::int64_t>(call.number("window_size", 0));
        if (left < 0 && right < 0 && both > 0) left = both, right = call.flag("causal") ? 0 : both;
    }
    x.visible = [&, causal, left, right](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
        const Place at{b, h, i, j, i + offset_of(call, b)};
        if (i >= length_of(in.query_lengths, b, x.q_len) || j >= length_of(in.key_lengths, b, x.kv_len)) return false;
        if (in.mask && broadcast_at<std::uint8_t>(*in.mask, at) == 0.0) return false;
        if (causal && j > at.position) return false;
        if ((left >= 0 && j < at.position - left) || (right >= 0 && j > at.position + right)) return false;
        return pattern(at);
    };
    if (in.bias)
        x.bias = [&](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
            return broadcast_at<float>(*in.bias, Place{b, h, i, j, 0});
        };
    oracle::Result r = oracle::attention(x);
    return {std::move(r.o), std::move(r.lse), std::move(r.p)};
}

}  // namespace specs
