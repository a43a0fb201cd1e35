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

bool common_visible(const Call& call, const Place& at, bool causal, bool window) {
    const ForwardInputs& in = *call.inputs;
    if (in.query_lengths && at.i >= length_of(in.query_lengths, at.b, 0)) return false;
    if (in.key_lengths && at.j >= length_of(in.key_lengths, at.b, 0)) return false;
    if (in.mask && broadcast_at<std::uint8_t>(*in.mask, at) == 0.0) return false;
    const bool is_causal = causal && call.flag("causal");
    if (is_causal && at.j > at.position) return false;
    if (!window) return true;
    auto left = static_cast<std::int64_t>(call.number("window_left", -1));
    auto right = static_cast<std::int64_t>(call.number("window_right", -1));
    const auto both = static_cast<std::int64_t>(call.number("window_size", 0));
    if (left < 0 && right < 0 && both > 0) left = both, right = is_causal ? 0 : both;
    return (left < 0 || at.j >= at.position - left) && (right < 0 || at.j <= at.position + right);
}

double bias_at(const Call& call, const Place& at) {
    return call.inputs->bias ? broadcast_at<float>(*call.inputs->bias, at) : 0.0;
}

double dropout_at(const Call& call, std::int64_t row_head, std::int64_t i, std::int64_t j) {
    const double rate = call.number("dropout", 0.0);
    if (rate <= 0.0) return 1.0;
    const double threshold = std::min(std::nearbyint(rate * 4294967296.0), 4294967295.0);
    const std::uint32_t tail = (1u << 24) | static_cast<std::uint32_t>(call.number("rng_offset", 0.0));
    const std::uint32_t word = oracle::philox_word(static_cast<std::uint64_t>(call.number("seed", 0.0)),
                                                   static_cast<std::uint32_t>(j / 4), static_cast<std::uint32_t>(i),
                                                   static_cast<std::uint32_t>(row_head), tail, static_cast<int>(j % 4));
    return static_cast<double>(word) >= threshold ? 1.0 / (1.0 - rate) : 0.0;
}

std::vector<double> weight_of(const Call& call, const std::string& name, const std::string& seeded_name,
                              std::size_t count, double bound) {
    std::vector<double> weight(count);
    for (const auto& [given, tensor] : call.inputs->weights)
        if (given == name) {
            const Tensor flat = attend::contiguous_copy(tensor).value();
            for (std::size_t at = 0; at < count; ++at) weight[at] = static_cast<double>(flat.as<const float>()[at]);
            return weight;
        }
    std::uint32_t hash = 2166136261u;
    for (const char c : seeded_name) hash = (hash ^ static_cast<std::uint8_t>(c)) * 16777619u;
    const auto seed = static_cast<std::uint64_t>(call.number("weight_seed", 0.0));
    const auto a = static_cast<float>(-bound), b = static_cast<float>(bound);
    for (std::size_t at = 0; at < count; ++at) {
        const std::uint32_t word =
            oracle::philox_word(seed, static_cast<std::uint32_t>(at / 4), 0, hash, 2u << 24, static_cast<int>(at % 4));
        weight[at] = static_cast<double>(a + (b - a) * (static_cast<float>(word >> 8) * 0x1p-24f));
    }
    return weight;
}

oracle::Dense problem_of(const Call& call, std::function<bool(const Place&)> pattern, bool common_causal,
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
    x.visible = [&call, pattern = std::move(pattern), common_causal, common_window](std::int64_t b, std::int64_t h,
                                                                                    std::int64_t i, std::int64_t j) {
        const Place at{b, h, i, j, i + offset_of(call, b)};
        return common_visible(call, at, common_causal, common_window) && pattern(at);
    };
    if (in.bias)
        x.bias = [&call](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
            return bias_at(call, Place{b, h, i, j, 0});
        };
    return x;
}

Expected solved(const oracle::Dense& problem) {
    oracle::Result r = oracle::attention(problem);
    return {std::move(r.o), std::move(r.lse), std::move(r.p)};
}

Expected dense(const Call& call, const std::function<bool(const Place&)>& pattern, bool common_causal,
               bool common_window) {
    return solved(problem_of(call, pattern, common_causal, common_window));
}

}  // namespace specs
