// SPDX-License-Identifier: Apache-2.0
// Scores made from each query alone or from tables, in double precision: one function of (head, query, position, key) for
// each component, mixed by the softmax of mix_logits.
#include <algorithm>

#include "specs/spec.hpp"

namespace {

using specs::Call;
using specs::Expected;

std::size_t size(std::int64_t n) { return static_cast<std::size_t>(n); }

std::vector<std::string> components_of(const Call& call) {
    const attend::Json* given = call.options.find("components");
    std::vector<std::string> names;
    if (given == nullptr || given->is_string()) return {given == nullptr ? "dense" : given->as_string()};
    for (const attend::Json& word : given->as_array()) names.push_back(word.as_string());
    return names;
}

class Synthesizer {
public:
    explicit Synthesizer(const Call& call)
        : call_(call), q_{&call.inputs->query}, names_(components_of(call)), heads_(call.inputs->query.shape[1]) {
        const attend::Tensor& query = call.inputs->query;
        const attend::Tensor& value = call.inputs->value ? *call.inputs->value : *call.inputs->key;
        width_ = query.shape[3];
        keys_ = value.shape[2];
        local_ = static_cast<std::int64_t>(call.number("local_context", 0));
        length_ = static_cast<std::int64_t>(call.number("max_length", static_cast<double>(keys_)));
        rank_ = static_cast<std::int64_t>(call.number("rank", 8));
        tables_ = call.flag("shared_heads") ? 1 : heads_;
        a_ = std::max<std::int64_t>(1, static_cast<std::int64_t>(std::ceil(std::sqrt(static_cast<double>(length_)))));
        b_ = std::max<std::int64_t>(1, (length_ + a_ - 1) / a_);
        if (const attend::Json* factors = call.options.find("factors");
            factors != nullptr && factors->is_array() && factors->size() == 2) {
            a_ = factors->as_array()[0].as_int64();
            b_ = factors->as_array()[1].as_int64();
        }
        const std::int64_t rows = local_ > 0 ? local_ : length_;
        const double linear = 1.0 / std::sqrt(static_cast<double>(width_));
        const auto xavier = [](std::int64_t in, std::int64_t out) {
            return std::sqrt(6.0 / static_cast<double>(in + out));
        };
        dense_w_ = weight("dense_w", "denseW", rows * width_, linear);
        dense_b_ = weight("dense_b", "denseB", rows, 0.0);
        random_ = weight("random_r", "randomR", length_ * length_, xavier(length_, length_));
        r1_ = weight("fact_r1", "factR1", length_ * rank_, xavier(length_, rank_));
        r2_ = weight("fact_r2", "factR2", length_ * rank_, xavier(length_, rank_));
        fact_a_ = weight("fact_a", "factA", a_ * width_, linear);
        fact_ab_ = weight("fact_ab", "factAb", a_, 0.0);
        fact_b_ = weight("fact_b", "factB", b_ * width_, linear);
        fact_bb_ = weight("fact_bb", "factBb", b_, 0.0);
        const std::vector<double> logits =
            specs::weight_of(call, "mix_logits", "synthesizer-attention/mixLogits", names_.size(), 0.0);
        double sum = 0.0;
        for (const double logit : logits) sum += std::exp(logit);
        for (const double logit : logits) shares_.push_back(names_.size() == 1 ? 1.0 : std::exp(logit) / sum);
    }

    double score(const specs::Place& at) const {
        double sum = 0.0;
        for (std::size_t n = 0; n < names_.size(); ++n) sum += shares_[n] * logit(names_[n], at);
        return sum;
    }

    bool inside(const specs::Place& at) const {
        return local_ == 0 || std::abs(at.j - at.position) <= (local_ - 1) / 2;
    }

private:
    std::vector<double> weight(const char* name, const char* seeded, std::int64_t per_head, double bound) const {
        return specs::weight_of(call_, name, std::string("synthesizer-attention/") + seeded, size(tables_ * per_head),
                                bound);
    }
    double feature(const specs::Place& at, std::int64_t d) const { return std::max(0.0, q_(at.b, at.h, at.i, d)); }
    double row(const std::vector<double>& w, const std::vector<double>& b, std::int64_t at,
               const specs::Place& place) const {
        double sum = b[size(at)];
        for (std::int64_t d = 0; d < width_; ++d) sum += w[size(at * width_ + d)] * feature(place, d);
        return sum;
    }
    double logit(const std::string& name, const specs::Place& at) const {
        const std::int64_t head = tables_ == 1 ? 0 : at.h;
        if (name == "dense") {
            const std::int64_t rows = local_ > 0 ? local_ : length_,
                               index = local_ > 0 ? at.j - at.position + (local_ - 1) / 2 : at.j;
            return row(dense_w_, dense_b_, head * rows + index, at);
        }
        if (name == "random") return random_[size((head * length_ + at.position) * length_ + at.j)];
        if (name == "factorized-random") {
            double sum = 0.0;
            for (std::int64_t k = 0; k < rank_; ++k)
                sum += r1_[size((head * length_ + at.position) * rank_ + k)] *
                       r2_[size((head * length_ + at.j) * rank_ + k)];
            return sum;
        }
        if (name == "factorized-dense") {
            const std::int64_t second = call_.word("tiling") == "tile" ? at.j % b_ : at.j / a_;
            return row(fact_a_, fact_ab_, head * a_ + at.j % a_, at) * row(fact_b_, fact_bb_, head * b_ + second, at);
        }
        const attend::Tensor& key = *call_.inputs->key;
        const oracle::View k{&key};
        const double given = call_.number("scale", 0.0);
        double sum = 0.0;
        for (std::int64_t d = 0; d < width_; ++d)
            sum += q_(at.b, at.h, at.i, d) * k(at.b, at.h * key.shape[1] / heads_, at.j, d);
        return sum * (given == 0.0 ? 1.0 / std::sqrt(static_cast<double>(width_)) : given);
    }

    const Call& call_;
    oracle::View q_;
    std::vector<std::string> names_;
    std::int64_t heads_, width_{}, keys_{}, local_{}, length_{}, rank_{}, tables_{}, a_{}, b_{};
    std::vector<double> dense_w_, dense_b_, random_, r1_, r2_, fact_a_, fact_ab_, fact_b_, fact_bb_, shares_;
};

Expected synthesizer(const Call& call) {
    const attend::ForwardInputs& in = *call.inputs;
    const attend::Tensor& value = in.value ? *in.value : *in.key;
    const oracle::View v{&value};
    const Synthesizer scores(call);
    const std::int64_t batch = in.query.shape[0], heads = in.query.shape[1], nq = in.query.shape[2],
                       nk = value.shape[2], width = value.shape[3];
    const double cap = call.number("softcap", 0.0), minus = -std::numeric_limits<double>::infinity();
    Expected out;
    out.o.assign(size(batch * heads * nq * width), 0.0);
    out.lse.assign(size(batch * heads * nq), minus);
    out.p.assign(size(batch * heads * nq * nk), 0.0);
    for (std::int64_t b = 0; b < batch; ++b)
        for (std::int64_t h = 0; h < heads; ++h)
            for (std::int64_t i = 0; i < nq; ++i) {
                const std::int64_t row = (b * heads + h) * nq + i;
                std::vector<double> s(size(nk), minus);
                double largest = minus, sum = 0.0;
                for (std::int64_t j = 0; j < nk; ++j) {
                    const specs::Place at{b, h, i, j, i + specs::offset_of(call, b)};
                    const double bias = specs::bias_at(call, at);
                    if (!specs::common_visible(call, at, true, true) || bias == minus || !scores.inside(at)) continue;
                    double x = scores.score(at);
                    if (cap > 0.0) x = cap * std::tanh(x / cap);
                    s[size(j)] = x + bias;
                    largest = std::max(largest, s[size(j)]);
                }
                if (largest == minus) continue;
                for (const double x : s) sum += std::exp(x - largest);
                out.lse[size(row)] = largest + std::log(sum);
                for (std::int64_t j = 0; j < nk; ++j) {
                    if (s[size(j)] == minus) continue;
                    const double p = std::exp(s[size(j)] - largest) / sum,
                                 kept = p * specs::dropout_at(call, b * heads + h, i, j);
                    out.p[size(row * nk + j)] = p;
                    for (std::int64_t d = 0; d < width; ++d)
                        out.o[size(row * width + d)] += kept * v(b, h * value.shape[1] / heads, j, d);
                }
            }
    return out;
}

attend::Json words(std::initializer_list<const char*> names) {
    attend::Json list = attend::Json::array();
    for (const char* name : names) list.push(name);
    return list;
}
attend::Json pair(std::int64_t a, std::int64_t b) { return attend::Json::array().push(a).push(b); }

const specs::Registration spec(
    {.mechanism = "synthesizer-attention",
     .oracle = synthesizer,
     .variants = {{{"components", "random"}},
                  {{"components", "factorized-random"}, {"rank", 3}},
                  {{"components", "factorized-dense"}},
                  {{"components", "factorized-dense"}, {"factors", pair(7, 8)}, {"tiling", "tile"}},
                  {{"components", "factorized-dense"}, {"factors", pair(60, 1)}, {"shared_heads", true}},
                  {{"components", "dot"}},
                  {{"components", words({"dense", "dot"})}},
                  {{"components", words({"dot", "random", "factorized-dense"})}, {"scale", 0.3}},
                  {{"components", words({"factorized-random", "dense", "factorized-dense"})}, {"causal", true}},
                  {{"components", words({"random", "factorized-random", "dot", "dense", "factorized-dense"})},
                   {"shared_heads", true}},
                  {{"max_length", 64}},
                  {{"max_length", 64}, {"components", "random"}, {"causal", true}, {"causal_offset", 3}},
                  {{"shared_heads", true}, {"causal", true}},
                  {{"local_context", 5}},
                  {{"local_context", 9}, {"causal", true}},
                  {{"local_context", 101}, {"window_left", 3}, {"shared_heads", true}},
                  {{"window_size", 4}, {"components", words({"random", "factorized-dense"})}},
                  {{"weight_seed", 7}, {"softcap", 0.6}},
                  {{"softcap", 0.5}, {"components", words({"random", "dot"})}},
                  {{"dropout", 0.3}, {"seed", 4}}}});

}  // namespace
