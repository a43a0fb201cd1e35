// SPDX-License-Identifier: Apache-2.0
// soft-moe-attention from explicit dispatch and combine matrices, in double precision.
#include "specs/moe/experts.hpp"

namespace {

using specs::Call;
using specs::Expected;
using specs::Tensor;
using Row = std::vector<double>;
using Matrix = std::vector<Row>;

std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

std::size_t slots_of(const Call& call, std::int64_t tokens, double experts) {
    const double given = call.number("slots_per_expert", 0);
    const double even = call.number("capacity_factor", 1) * static_cast<double>(tokens) / experts;
    return static_cast<std::size_t>(given > 0 ? given : std::max(1.0, std::nearbyint(even)));
}

Matrix rows_of(const Tensor& tensor, std::int64_t b, std::int64_t count) {
    Matrix rows;
    for (std::int64_t n = 0; n < count; ++n) {
        rows.emplace_back();
        for (std::int64_t h = 0; h < tensor.shape[1]; ++h)
            for (std::int64_t c = 0; c < tensor.shape[3]; ++c) rows.back().push_back(oracle::View{&tensor}(b, h, n, c));
    }
    return rows;
}

double length(const Row& row) {
    double sum = 1e-6;
    for (const double x : row) sum += x * x;
    return std::sqrt(sum);
}

// z[i][slot] with phi [M][E * s].
Matrix logits(const Call& call, const Matrix& tokens, const std::vector<float>& phi, std::size_t slots) {
    const std::size_t width = slots == 0 ? 0 : phi.size() / slots;
    const bool normal = call.flag("normalize_router");
    Matrix z(tokens.size(), Row(slots, 0.0));
    for (std::size_t s = 0; s < slots; ++s) {
        Row direction;
        for (std::size_t m = 0; m < width; ++m) direction.push_back(static_cast<double>(phi[m * slots + s]));
        const double unit = normal ? length(direction) : 1.0;
        for (std::size_t i = 0; i < tokens.size(); ++i) {
            for (std::size_t m = 0; m < width; ++m) z[i][s] += tokens[i][m] * direction[m] / unit;
            if (normal) z[i][s] /= length(tokens[i]);
        }
    }
    return z;
}

Row softmax(Row x) {
    double largest = -std::numeric_limits<double>::infinity(), total = 0;
    for (const double v : x) largest = std::max(largest, v);
    for (double& v : x) total += v = std::exp(v - largest);
    for (double& v : x) v /= total;
    return x;
}

// Each slot's mixture of the values of all tokens.
Matrix mixed(const Matrix& z, const Matrix& values, std::size_t slots, std::size_t width) {
    Matrix out(slots, Row(width, 0.0));
    for (std::size_t s = 0; s < slots && !z.empty(); ++s) {
        Row column;
        for (const Row& row : z) column.push_back(row[s]);
        column = softmax(column);
        for (std::size_t i = 0; i < z.size(); ++i)
            for (std::size_t m = 0; m < width; ++m) out[s][m] += column[i] * values[i][m];
    }
    return out;
}

Row times(const Row& row, const std::vector<float>& w, std::size_t at, std::size_t width) {
    Row out(width, 0.0);
    for (std::size_t m = 0; m < row.size(); ++m)
        for (std::size_t c = 0; c < width; ++c) out[c] += row[m] * static_cast<double>(w[at + m * width + c]);
    return out;
}

Expected soft(const Call& call) {
    const specs::ForwardInputs& in = *call.inputs;
    const Tensor &query = in.query, &key = in.key ? *in.key : query, &value = in.value ? *in.value : key;
    const std::int64_t batch = query.shape[0], hq = query.shape[1], nq = query.shape[2], nk = key.shape[2],
                       dv = value.shape[3];
    const std::size_t mq = size(hq * query.shape[3]), mk = size(key.shape[1] * key.shape[3]),
                      mv = size(value.shape[1] * dv), mo = size(hq * dv);
    const auto experts = static_cast<std::size_t>(call.number("num_experts", 8)),
               heads = static_cast<std::size_t>(call.number("expert_heads", 1));
    const auto de = static_cast<std::size_t>(call.number("expert_dim", static_cast<double>(query.shape[3]))),
               ve = static_cast<std::size_t>(call.number("expert_value_dim", static_cast<double>(dv)));
    const std::size_t sq = slots_of(call, nq, static_cast<double>(experts)),
                      sk = slots_of(call, nk, static_cast<double>(experts)), q_slots = experts * sq,
                      k_slots = experts * sk;
    const auto seed = static_cast<std::uint64_t>(call.number("weight_seed", 0));
    const std::string name = "soft-moe-attention/";
    const auto xavier = [](std::size_t a, std::size_t b, double gain) {
        return gain * std::sqrt(6.0 / static_cast<double>(a + b));
    };
    using specs::moe::normal_weight;
    using specs::moe::uniform_weight;
    const auto phi = normal_weight(name + "Phi", mq * q_slots, 1.0 / std::sqrt(static_cast<double>(mq)), seed);
    const auto phi_k = mk == mq && sk == sq
                           ? phi
                           : normal_weight(name + "PhiK", mk * k_slots, 1.0 / std::sqrt(static_cast<double>(mk)), seed);
    const auto wq = uniform_weight(name + "Wq", experts * heads * mq * de, xavier(mq, de, 1), seed),
               wk = uniform_weight(name + "Wk", experts * heads * mk * de, xavier(mk, de, 1), seed),
               wv = uniform_weight(name + "Wv", experts * heads * mv * ve, xavier(mv, ve, 1), seed),
               wo = uniform_weight(name + "Wo", experts * heads * ve * mo,
                                   xavier(ve, mo, 1.0 / std::sqrt(static_cast<double>(heads))), seed);
    const double scale =
                     call.number("scale", 0) == 0 ? 1.0 / std::sqrt(static_cast<double>(de)) : call.number("scale", 0),
                 cap = call.number("softcap", 0);
    Expected expected;
    expected.o.assign(size(batch * hq * nq * dv), 0.0);
    for (std::int64_t b = 0; b < batch; ++b) {
        const std::int64_t lq = specs::length_of(in.query_lengths, b, nq), lk = specs::length_of(in.key_lengths, b, nk);
        const Matrix xq = rows_of(query, b, lq), xk = rows_of(key, b, lk), xv = rows_of(value, b, lk);
        const Matrix zq = logits(call, xq, phi, q_slots), zk = logits(call, xk, phi_k, k_slots);
        const Matrix u = mixed(zq, xq, q_slots, mq), uk = mixed(zk, xk, k_slots, mk), uv = mixed(zk, xv, k_slots, mv);
        Matrix r(q_slots, Row(mo, 0.0));
        for (std::size_t e = 0; e < experts && lk > 0; ++e)
            for (std::size_t a = 0; a < heads; ++a) {
                const std::size_t head = e * heads + a;
                for (std::size_t s = 0; s < sq; ++s) {
                    const Row q = times(u[e * sq + s], wq, head * mq * de, de);
                    Row x;
                    for (std::size_t t = 0; t < sk; ++t) {
                        const Row k = times(uk[e * sk + t], wk, head * mk * de, de);
                        double dot = 0;
                        for (std::size_t c = 0; c < de; ++c) dot += q[c] * k[c];
                        x.push_back(cap > 0 ? cap * std::tanh(scale * dot / cap) : scale * dot);
                    }
                    const Row p = softmax(x);
                    Row attended(ve, 0.0);
                    for (std::size_t t = 0; t < sk; ++t) {
                        const Row v = times(uv[e * sk + t], wv, head * mv * ve, ve);
                        const double kept = specs::dropout_at(
                            call, b * static_cast<std::int64_t>(experts * heads) + static_cast<std::int64_t>(head),
                            static_cast<std::int64_t>(s), static_cast<std::int64_t>(t));
                        for (std::size_t c = 0; c < ve; ++c) attended[c] += kept * p[t] * v[c];
                    }
                    const Row f = times(attended, wo, head * ve * mo, mo);
                    for (std::size_t m = 0; m < mo; ++m) r[e * sq + s][m] += f[m];
                }
            }
        for (std::int64_t i = 0; i < lq; ++i) {
            const Row c = softmax(zq[size(i)]);
            for (std::size_t m = 0; m < mo; ++m) {
                double y = call.flag("residual") ? xq[size(i)][m] : 0.0;
                for (std::size_t s = 0; s < q_slots; ++s) y += c[s] * r[s][m];
                const auto h = static_cast<std::int64_t>(m) / dv, d = static_cast<std::int64_t>(m) % dv;
                expected.o[size(((b * hq + h) * nq + i) * dv + d)] = y;
            }
        }
    }
    return expected;
}

const specs::Registration spec({.mechanism = "soft-moe-attention",
                                .oracle = soft,
                                .variants = {{{"num_experts", 1}},
                                             {{"num_experts", 3}, {"slots_per_expert", 1}},
                                             {{"num_experts", 2}, {"slots_per_expert", 5}},
                                             {{"num_experts", 4}, {"capacity_factor", 2}},
                                             {{"num_experts", 3}, {"capacity_factor", 0.3}},
                                             {{"normalize_router", false}},
                                             {{"residual", true}},
                                             {{"expert_heads", 2}, {"expert_dim", 4}, {"expert_value_dim", 3}},
                                             {{"softcap", 0.5}},
                                             {{"weight_seed", 99}}},
                                .masks = false,
                                .key_masks = false,
                                .biases = false,
                                .causal = false,
                                .exempt = specs::moe::exempt,
                                .tolerance = 1e-5});

}  // namespace
