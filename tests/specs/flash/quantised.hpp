// SPDX-License-Identifier: Apache-2.0
// flash-attention-v3 by its text: what rounding makes of queries, keys and values, scores from that, and the bound of
// the errors. Codes are found in float32 where the text says so, everything behind them is double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "specs/spec.hpp"

namespace specs::quantised {

inline float as_float(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline std::uint32_t bits_of(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline float bf16(float x) {
    const std::uint32_t bits = bits_of(x);
    return std::isnan(x) ? x : as_float((bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u);
}
inline float e4m3(float x) {
    const float size = std::abs(x);
    if (std::isnan(x)) return x;
    if (size >= 448.0f) return std::copysign(448.0f, x);
    const int exponent = std::max(size > 0.0f ? std::ilogb(size) : -6, -6);
    const float step = std::ldexp(1.0f, exponent - 3);
    return std::copysign(std::nearbyint(size / step) * step, x);
}

struct Group {
    float scale{1.0f}, inverse{0.0f};
    static Group of(float amax, float largest) {
        return amax < 0x1p-100f ? Group{} : Group{amax / largest, largest / amax};
    }
};

struct Formats {
    std::string precision, weights, values;
    bool smooth, incoherent, smooth_values;
    std::int64_t block_q, block_k;
    std::uint64_t seed;
    bool scaled() const { return precision == "int8" || precision == "fp8"; }

    explicit Formats(const Call& call)
        : precision(call.word("precision")), weights(call.word("p_precision")), values(call.word("v_precision")) {
        if (precision.empty()) precision = "bf16";
        // A choice may come back as a word or as what it reads like.
        const auto on = [&](const char* name) { return scaled() && call.word(name) != "false" && !off(call, name); };
        smooth = on("smooth_k");
        incoherent = on("incoherent");
        smooth_values = call.flag("smooth_v");
        block_q = static_cast<std::int64_t>(call.number("quant_block_q", 128));
        block_k = static_cast<std::int64_t>(call.number("quant_block_k", 64));
        seed = static_cast<std::uint64_t>(call.number("hadamard_seed", 0));
        if (weights.empty() || weights == "auto") weights = precision == "fp32" ? "fp32" : "bf16";
        if (values.empty() || values == "auto")
            values = precision == "fp32" ? "fp32" : precision == "fp8" ? "e4m3" : "bf16";
    }
    static bool off(const Call& call, const char* name) {
        const Json* value = call.options.find(name);
        return value != nullptr && value->is_bool() && !value->as_bool();
    }
    static double unit(const std::string& format) {
        return format == "bf16" ? 0x1p-8 : format == "e4m3" ? 0x1p-4 : 0.0;
    }
};

using Row = std::vector<float>;

// R of the text: padded, signs, Sylvester's matrix by sums and differences, 1 / sqrt(m).
inline Row rotated(Row x, std::uint64_t seed) {
    const std::size_t width = (x.size() + 15) / 16 * 16;
    x.resize(width, 0.0f);
    std::size_t order = 1;
    while (width % (2 * order) == 0) order *= 2;
    for (std::size_t d = 0; d < width; ++d)
        if (oracle::philox_word(seed, static_cast<std::uint32_t>(d / 4), 0, 0, 6u << 24, static_cast<int>(d % 4)) >> 31)
            x[d] = -x[d];
    for (std::size_t step = 1; step < order; step *= 2)
        for (std::size_t d = 0; d < width; ++d)
            if ((d & step) == 0) {
                const float a = x[d], b = x[d + step];
                x[d] = a + b;
                x[d + step] = a - b;
            }
    const auto unit = static_cast<float>(1.0 / std::sqrt(static_cast<double>(order)));
    for (float& element : x) element *= unit;
    return x;
}

struct Head {
    std::vector<Row> turned, decoded;  // q' or k', and what its codes stand for (without scale)
    std::vector<float> scale;          // of each row
};

// Rows of a head in blocks: codes and scales; bf16: the rounded rows.
inline Head quantise(const std::vector<Row>& rows, const Formats& formats, std::int64_t block) {
    Head head;
    for (const Row& row : rows) head.turned.push_back(formats.incoherent ? rotated(row, formats.seed) : row);
    head.scale.assign(rows.size(), 1.0f);
    head.decoded = head.turned;
    if (!formats.scaled()) {
        for (Row& row : head.decoded)
            for (float& x : row) x = formats.precision == "bf16" ? bf16(x) : x;
        return head;
    }
    const bool int8 = formats.precision == "int8";
    for (std::size_t first = 0; first < rows.size(); first += static_cast<std::size_t>(block)) {
        const std::size_t end = std::min(rows.size(), first + static_cast<std::size_t>(block));
        float amax = 0.0f;
        for (std::size_t at = first; at < end; ++at)
            for (const float x : head.turned[at]) amax = std::max(amax, std::abs(x));
        const Group group = Group::of(amax, int8 ? 127.0f : 448.0f);
        for (std::size_t at = first; at < end; ++at) {
            head.scale[at] = group.scale;
            for (float& x : head.decoded[at])
                x = int8 ? std::clamp(std::nearbyint(x * group.inverse), -127.0f, 127.0f) : e4m3(x * group.inverse);
        }
    }
    return head;
}

// Everything of a call that follows from rounding.
struct Rounded {
    Formats formats;
    std::int64_t batch, q_heads, kv_heads, q_len, kv_len, head_dim, value_dim;
    float scale;
    std::vector<Head> query, key;      // [B * Hq], [B * Hkv]; rows within the lengths
    std::vector<Row> key_mean;         // [B * Hkv]
    std::vector<double> score, shift;  // [B, Hq, Nq, Nk] without the shift, [B, Hq, Nq]
    std::vector<double> value, mean;   // [B, Hkv, Nk, Dv] as products see them, and what outputs get back
    std::vector<float> value_scale;    // [B, Hkv, Dv], of e4m3

    std::size_t row(std::int64_t b, std::int64_t h, std::int64_t i) const {
        return static_cast<std::size_t>((b * q_heads + h) * q_len + i);
    }
    std::size_t key_head(std::int64_t b, std::int64_t h) const {
        return static_cast<std::size_t>(b * kv_heads + h * kv_heads / q_heads);
    }
    double score_at(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
        return score[row(b, h, i) * static_cast<std::size_t>(kv_len) + static_cast<std::size_t>(j)];
    }

    explicit Rounded(const Call& call) : formats(call) {
        const ForwardInputs& in = *call.inputs;
        const Tensor &q = in.query, &k = in.key ? *in.key : q, &v = in.value ? *in.value : k;
        batch = q.shape[0], q_heads = q.shape[1], q_len = q.shape[2], head_dim = q.shape[3];
        kv_heads = k.shape[1], kv_len = k.shape[2], value_dim = v.shape[3];
        const double given = call.number("scale", 0.0);
        scale = static_cast<float>(given == 0.0 ? 1.0 / std::sqrt(static_cast<double>(head_dim)) : given);
        const auto rows_of = [](const Tensor& from, std::int64_t b, std::int64_t h, std::int64_t count) {
            std::vector<Row> rows(static_cast<std::size_t>(count), Row(static_cast<std::size_t>(from.shape[3])));
            const oracle::View view{&from};
            for (std::int64_t n = 0; n < count; ++n)
                for (std::int64_t d = 0; d < from.shape[3]; ++d)
                    rows[static_cast<std::size_t>(n)][static_cast<std::size_t>(d)] =
                        static_cast<float>(view(b, h, n, d));
            return rows;
        };
        const auto mean_of = [](const std::vector<Row>& rows, std::size_t width) {
            Row of_columns(width, 0.0f);
            for (std::size_t d = 0; d < width && !rows.empty(); ++d) {
                double sum = 0.0;
                for (const Row& one : rows) sum += static_cast<double>(one[d]);
                of_columns[d] = static_cast<float>(sum / static_cast<double>(rows.size()));
            }
            return of_columns;
        };
        for (std::int64_t b = 0; b < batch; ++b)
            for (std::int64_t h = 0; h < kv_heads; ++h) {
                // Formats without scales may meet NaN behind a mask, the scaled ones look at valid rows alone.
                const std::int64_t valid = formats.scaled() ? length_of(in.key_lengths, b, kv_len) : kv_len;
                std::vector<Row> keys = rows_of(k, b, h, valid);
                key_mean.push_back(formats.smooth ? mean_of(keys, static_cast<std::size_t>(head_dim))
                                                  : Row(static_cast<std::size_t>(head_dim), 0.0f));
                for (Row& one : keys)
                    for (std::size_t d = 0; d < one.size(); ++d) one[d] -= key_mean.back()[d];
                key.push_back(quantise(keys, formats, formats.block_k));
                add_values(rows_of(v, b, h, valid), mean_of);
            }
        score.assign(static_cast<std::size_t>(batch * q_heads * q_len * kv_len), 0.0);
        shift.assign(static_cast<std::size_t>(batch * q_heads * q_len), 0.0);
        for (std::int64_t b = 0; b < batch; ++b)
            for (std::int64_t h = 0; h < q_heads; ++h) {
                const std::vector<Row> rows =
                    rows_of(q, b, h, formats.scaled() ? length_of(in.query_lengths, b, q_len) : q_len);
                query.push_back(quantise(rows, formats, formats.block_q));
                find_scores(b, h, rows);
            }
    }

    // The bound of |O - exact| for a row and channel, over the keys that `allowed` names; sum: of the row's weights
    // relative to the largest.
    double eps(std::int64_t b, std::int64_t h, std::int64_t i, const std::vector<std::int64_t>& allowed) const {
        const Head &qs = query[static_cast<std::size_t>(b * q_heads + h)], &ks = key[key_head(b, h)];
        const Row &q = qs.turned[static_cast<std::size_t>(i)], &q_hat = qs.decoded[static_cast<std::size_t>(i)];
        const double sq = static_cast<double>(qs.scale[static_cast<std::size_t>(i)]);
        double worst = 0.0, q_two = 0.0, k_two = 0.0;
        for (const float x : q) q_two += static_cast<double>(x) * static_cast<double>(x);
        for (const std::int64_t j : allowed) {
            const Row &k = ks.turned[static_cast<std::size_t>(j)], &k_hat = ks.decoded[static_cast<std::size_t>(j)];
            const double sk = static_cast<double>(ks.scale[static_cast<std::size_t>(j)]);
            double off = 0.0, two = 0.0;
            for (std::size_t d = 0; d < q.size(); ++d) {
                const double x = std::abs(static_cast<double>(q[d])), y = std::abs(static_cast<double>(k[d]));
                const double decoded = std::abs(static_cast<double>(k_hat[d])) * sk;
                two += y * y;
                if (formats.precision == "int8") off += sk / 2 * x + sq / 2 * decoded;
                if (formats.precision == "fp8")
                    off += std::max(0x1p-4 * y, sk * 0x1p-10) * x + std::max(0x1p-4 * x, sq * 0x1p-10) * decoded;
                if (formats.precision == "bf16") off += x * y * (0x1p-7 + 0x1p-13);
            }
            worst = std::max(worst, off);
            k_two = std::max(k_two, two);
        }
        (void)q_hat;
        const double size = std::abs(static_cast<double>(scale));
        if (!formats.scaled()) return size * worst;
        return size * worst * (1 + 0x1p-12) + 0x1p-18 * size * std::sqrt(q_two) * std::sqrt(k_two);
    }

private:
    template <class MeanOf>
    void add_values(const std::vector<Row>& rows, MeanOf mean_of) {
        const auto width = static_cast<std::size_t>(value_dim);
        const Row nu = formats.smooth_values ? mean_of(rows, width) : Row(width, 0.0f);
        Row amax(width, 0.0f);
        for (const Row& one : rows)
            for (std::size_t c = 0; c < width; ++c) amax[c] = std::max(amax[c], std::abs(one[c] - nu[c]));
        std::vector<Group> groups;
        for (std::size_t c = 0; c < width; ++c) {
            groups.push_back(Group::of(amax[c], 448.0f));
            value_scale.push_back(groups[c].scale);
            mean.push_back(static_cast<double>(nu[c]));
        }
        for (std::size_t j = 0; j < static_cast<std::size_t>(kv_len); ++j)
            for (std::size_t c = 0; c < width; ++c) {
                const float x = j < rows.size() ? rows[j][c] - nu[c] : 0.0f;
                value.push_back(formats.values == "bf16"   ? static_cast<double>(bf16(x))
                                : formats.values == "e4m3" ? static_cast<double>(e4m3(x * groups[c].inverse)) *
                                                                 static_cast<double>(groups[c].scale)
                                                           : static_cast<double>(x));
            }
    }
    void find_scores(std::int64_t b, std::int64_t h, const std::vector<Row>& rows) {
        const Head &qs = query.back(), &ks = key[key_head(b, h)];
        for (std::size_t i = 0; i < rows.size(); ++i) {
            const std::size_t at = row(b, h, static_cast<std::int64_t>(i));
            double part = 0.0;
            for (std::size_t d = 0; d < rows[i].size(); ++d)
                part += static_cast<double>(rows[i][d]) * static_cast<double>(key_mean[key_head(b, h)][d]);
            shift[at] = static_cast<double>(static_cast<float>(static_cast<double>(scale) * part));
            for (std::size_t j = 0; j < ks.decoded.size(); ++j) {
                double n = 0.0;
                for (std::size_t d = 0; d < ks.decoded[j].size(); ++d)
                    n += static_cast<double>(qs.decoded[i][d]) * static_cast<double>(ks.decoded[j][d]);
                const float factor = (scale * qs.scale[i]) * ks.scale[j];
                score[at * static_cast<std::size_t>(kv_len) + j] = static_cast<double>(factor) * n;
            }
        }
    }
};

// The call's problem with rounded scores and values: weights are exact from there on.
inline oracle::Dense problem_of_rounded(const Call& call, const Rounded& rounded) {
    oracle::Dense x = problem_of(call, everywhere, true, true);
    const double scale = x.scale;
    const bool adds = rounded.formats.smooth && x.softcap > 0;
    x.q = [](std::int64_t, std::int64_t, std::int64_t, std::int64_t) { return 0.0; };
    x.k = x.q;
    x.content = [&rounded, scale, adds](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
        return (rounded.score_at(b, h, i, j) + (adds ? rounded.shift[rounded.row(b, h, i)] : 0.0)) / scale;
    };
    x.v = [&rounded](std::int64_t b, std::int64_t h, std::int64_t j, std::int64_t c) {
        return rounded
            .value[static_cast<std::size_t>(((b * rounded.kv_heads + h) * rounded.kv_len + j) * rounded.value_dim + c)];
    };
    return x;
}

inline Expected solved_rounded(const Call& call, const Rounded& rounded) {
    const oracle::Dense problem = problem_of_rounded(call, rounded);
    Expected out = solved(problem);
    const bool in_lse = rounded.formats.smooth && !(problem.softcap > 0);
    for (std::size_t row = 0; row < out.lse.size(); ++row) {
        if (std::isinf(out.lse[row])) continue;
        if (in_lse) out.lse[row] += rounded.shift[row];
        const auto width = static_cast<std::size_t>(rounded.value_dim);
        const auto head = static_cast<std::int64_t>(row) / rounded.q_len;
        const std::size_t first = rounded.key_head(head / rounded.q_heads, head % rounded.q_heads) * width;
        for (std::size_t c = 0; c < width; ++c) out.o[row * width + c] += rounded.mean[first + c];
    }
    return out;
}

}  // namespace specs::quantised
