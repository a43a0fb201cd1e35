// SPDX-License-Identifier: Apache-2.0
// Router and assignment: logits, gates, top-k, counting sort, statistics.
#include <math.h>

#include "attend/toolkit/core/rng.hpp"
#include "attend/toolkit/routing.h"
#include "attend/toolkit/simd/isa.hpp"

namespace attend::ATTEND_ISA {
namespace {

constexpr int64_t most_experts = 1024;

// exp of a float in float32 arithmetic of the C library: the same bits in every instruction set.
float exp_of(float x) { return static_cast<float>(::exp(static_cast<double>(x))); }

// z[e] of one token. The products are summed in double, ascending, so the result is the same for every entry.
void token_logits(const attend_router& router, int64_t item, int64_t token, float* z, double* sum) {
    const attend_tensor& x = *router.tokens;
    const attend_tensor& w = *router.weight;
    const int64_t heads = x.shape[1], width = x.shape[3], experts = router.experts;
    for (int64_t e = 0; e < experts; ++e) sum[e] = 0.0;
    const float* row = static_cast<const float*>(x.data) + item * x.strides[0] + token * x.strides[2];
    RandomWords noise{};
    for (int64_t head = 0, m = 0; head < heads; ++head)
        for (int64_t d = 0; d < width; ++d, ++m) {
            float value = row[head * x.strides[1] + d * x.strides[3]];
            if (router.noise > 0.0) {
                if (m % 4 == 0)
                    noise = philox(router.seed, static_cast<uint32_t>(m / 4), static_cast<uint32_t>(token),
                                   static_cast<uint32_t>(item), counter_tail(RandomDomain::router, router.side));
                const double u = static_cast<double>(uniform01(noise.word[m % 4]));
                value = static_cast<float>(static_cast<double>(value) * (1.0 - router.noise + 2.0 * router.noise * u));
            }
            const float* weights = static_cast<const float*>(w.data) + m * w.strides[0];
            const double wide = static_cast<double>(value);
            for (int64_t e = 0; e < experts; ++e) sum[e] += wide * static_cast<double>(weights[e * w.strides[1]]);
        }
    for (int64_t e = 0; e < experts; ++e) {
        const double bias =
            router.bias ? static_cast<double>(static_cast<const float*>(router.bias->data)[e * router.bias->strides[0]])
                        : 0.0;
        z[e] = static_cast<float>(sum[e] + bias);
    }
}

// The same for `count` tokens, 4 of them and 8 experts at a time: a row of weights is then read once for 4 tokens. Products of
// floats are exact in double, so vectors, fused or not, give the bits of the loop above.
constexpr int64_t token_group = 4, expert_group = 8, most_packed = 4096;
typedef float FloatLanes __attribute__((vector_size(32)));
typedef double DoubleLanes __attribute__((vector_size(64)));

void pack_weights(const attend_tensor& w, int64_t first, int64_t count, float* to) {
    const float* from = static_cast<const float*>(w.data) + first * w.strides[1];
    for (int64_t m = 0; m < w.shape[0]; ++m)
        for (int64_t e = 0; e < expert_group; ++e)
            to[m * expert_group + e] = e < count ? from[m * w.strides[0] + e * w.strides[1]] : 0.0f;
}

void group_logits(const attend_router& router, int64_t item, int64_t token, int64_t tokens, const float* packed,
                  int64_t first, float* logits) {
    const attend_tensor& x = *router.tokens;
    const float* rows[token_group];
    for (int64_t t = 0; t < token_group; ++t)
        rows[t] =
            static_cast<const float*>(x.data) + item * x.strides[0] + (token + (t < tokens ? t : 0)) * x.strides[2];
    DoubleLanes sum[token_group] = {};
    for (int64_t head = 0; head < x.shape[1]; ++head)
        for (int64_t d = 0; d < x.shape[3]; ++d, packed += expert_group) {
            FloatLanes weights;
            __builtin_memcpy(&weights, packed, sizeof weights);
            const DoubleLanes wide = __builtin_convertvector(weights, DoubleLanes);
            const int64_t at = head * x.strides[1] + d * x.strides[3];
            ATTEND_UNROLL
            for (int64_t t = 0; t < token_group; ++t) sum[t] += static_cast<double>(rows[t][at]) * wide;
        }
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t e = 0; e < expert_group && first + e < router.experts; ++e) {
            const double bias = router.bias ? static_cast<double>(static_cast<const float*>(
                                                  router.bias->data)[(first + e) * router.bias->strides[0]])
                                            : 0.0;
            logits[(token + t) * router.experts + first + e] = static_cast<float>(sum[t][e] + bias);
        }
}

// Logits of all tokens, split among the workers.
struct LogitJob {
    const attend_router* router;
    int64_t item, num_tokens;
    float* logits;

    static constexpr int64_t piece = 128;
    static attend_status run(void* user, uint64_t begin, uint64_t end, uint32_t) noexcept {
        const LogitJob& job = *static_cast<const LogitJob*>(user);
        for (auto at = static_cast<int64_t>(begin); at < static_cast<int64_t>(end); ++at)
            job.tokens(at * piece, (at + 1) * piece < job.num_tokens ? (at + 1) * piece : job.num_tokens);
        return ATTEND_OK;
    }
    void tokens(int64_t begin, int64_t end) const {
        const int64_t experts = router->experts;
        if (router->noise > 0.0 || router->weight->shape[0] > most_packed) {
            double sum[most_experts];
            for (int64_t token = begin; token < end; ++token)
                token_logits(*router, item, token, logits + token * experts, sum);
            return;
        }
        float packed[most_packed * expert_group];
        for (int64_t first = 0; first < experts; first += expert_group) {
            pack_weights(*router->weight, first, experts - first < expert_group ? experts - first : expert_group,
                         packed);
            for (int64_t token = begin; token < end; token += token_group)
                group_logits(*router, item, token, end - token < token_group ? end - token : token_group, packed, first,
                             logits);
        }
    }
};

// Softmax over experts in float32; returns logsumexp.
double softmax(const float* z, int64_t experts, float* p) {
    float largest = z[0];
    for (int64_t e = 1; e < experts; ++e) largest = z[e] > largest ? z[e] : largest;
    float sum = 0.0f;
    for (int64_t e = 0; e < experts; ++e) sum += p[e] = exp_of(z[e] - largest);
    for (int64_t e = 0; e < experts; ++e) p[e] /= sum;
    return static_cast<double>(largest) + ::log(static_cast<double>(sum));
}

// The same in double, rounded once: what experts rank tokens by must not depend on the order of a sum in float32.
void precise_softmax(const float* z, int64_t experts, float* p) {
    double largest = static_cast<double>(z[0]), sum = 0.0;
    for (int64_t e = 1; e < experts; ++e)
        largest = static_cast<double>(z[e]) > largest ? static_cast<double>(z[e]) : largest;
    for (int64_t e = 0; e < experts; ++e) sum += ::exp(static_cast<double>(z[e]) - largest);
    for (int64_t e = 0; e < experts; ++e) p[e] = static_cast<float>(::exp(static_cast<double>(z[e]) - largest) / sum);
}

float sigmoid(float z) { return 1.0f / (1.0f + exp_of(-z)); }

// Unsigned numbers in the order of the floats; no NaN.
uint32_t rank_of(float x) {
    uint32_t bits;
    x = x == 0.0f ? 0.0f : x;  // the zeros are one
    __builtin_memcpy(&bits, &x, sizeof bits);
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

// Of `count` ranks the one such that `wanted` are at least as large, byte by byte from the top: O(count), whatever the
// ranks. `above` is how many are larger. 1 <= wanted <= count.
uint32_t rank_at(const uint32_t* ranks, int64_t count, int64_t wanted, int64_t& above) {
    uint32_t prefix = 0;
    above = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        int64_t bins[256] = {};
        for (int64_t at = 0; at < count; ++at)
            if (shift == 24 || ranks[at] >> (shift + 8) == prefix >> (shift + 8)) ++bins[ranks[at] >> shift & 255u];
        uint32_t bin = 255;
        for (; above + bins[bin] < wanted; --bin) above += bins[bin];
        prefix |= bin << shift;
    }
    return prefix;
}

// Calls take(position) for the `wanted` largest ranks in ascending position, ties to the lower one.
template <class Take>
void largest_ranks(const uint32_t* ranks, int64_t count, int64_t wanted, Take take) {
    if (wanted <= 0) return;
    int64_t above = 0;
    const uint32_t limit = rank_at(ranks, count, wanted, above);
    int64_t equal = wanted - above;
    for (int64_t at = 0; at < count; ++at)
        if (ranks[at] > limit || (ranks[at] == limit && equal-- > 0)) take(at);
}

// The top_k experts of a token, best first.
void choose(const float* z, int64_t experts, int64_t top_k, int32_t* chosen) {
    bool taken[most_experts];
    for (int64_t e = 0; e < experts; ++e) taken[e] = false;
    for (int64_t rank = 0; rank < top_k; ++rank) {
        int64_t best = -1;
        for (int64_t e = 0; e < experts; ++e)
            if (!taken[e] && (best < 0 || z[e] > z[best])) best = e;
        taken[best] = true;
        chosen[rank] = static_cast<int32_t>(best);
    }
}

// Pass 1 counts, pass 2 places: tokens ascend within each expert because they are visited in order.
void tokens_choose(const attend_router& router, attend_assignment& to) {
    const int64_t experts = router.experts, top_k = router.top_k;
    int32_t next[most_experts + 1], chosen[most_experts];
    float p[most_experts];
    for (int64_t token = 0; token < to.num_tokens; ++token) {
        choose(to.logits + token * experts, experts, top_k, chosen);
        for (int64_t rank = 0; rank < top_k; ++rank) ++to.counts[chosen[rank]];
    }
    for (int64_t e = 0; e < experts; ++e) to.first[e + 1] = to.first[e] + to.counts[e];
    for (int64_t e = 0; e < experts; ++e) next[e] = to.first[e];
    for (int64_t token = 0; token < to.num_tokens; ++token) {
        const float* z = to.logits + token * experts;
        choose(z, experts, top_k, chosen);
        if (router.gate == ATTEND_GATE_SOFTMAX)
            softmax(z, experts, p);
        else
            for (int64_t e = 0; e < experts; ++e) p[e] = sigmoid(z[e]);
        float total = 0.0f;
        for (int64_t rank = 0; rank < top_k; ++rank) total += p[chosen[rank]];
        for (int64_t rank = 0; rank < top_k; ++rank) {
            const int32_t e = chosen[rank];
            const float gate = !router.normalise_gates ? p[e]
                               : total > 0.0f          ? p[e] / total
                                                       : 1.0f / static_cast<float>(top_k);
            to.members[next[e]] = static_cast<int32_t>(token);
            to.gates[next[e]++] = gate;
        }
    }
}

// Keeps at most `capacity` members of each expert, in place.
void drop(const attend_router& router, attend_assignment& to) {
    int32_t kept = 0;
    for (int64_t e = 0; e < router.experts; ++e) {
        const int32_t begin = to.first[e], count = to.counts[e];
        to.first[e] = kept;
        const int64_t wanted = count < router.capacity ? count : router.capacity;
        const auto keep = [&](int64_t at) {
            to.members[kept] = to.members[begin + at];
            to.gates[kept++] = to.gates[begin + at];
        };
        if ((router.flags & ATTEND_ROUTER_KEEP_LARGEST) != 0) {
            for (int32_t at = 0; at < count; ++at) to.scratch[at] = rank_of(to.gates[begin + at]);
            largest_ranks(to.scratch, count, wanted, keep);
        } else {
            for (int64_t at = 0; at < wanted; ++at) keep(at);
        }
    }
    to.first[router.experts] = kept;
}

void experts_choose(const attend_router& router, attend_assignment& to) {
    const int64_t experts = router.experts, tokens = to.num_tokens;
    const int64_t wanted = router.capacity < tokens ? router.capacity : tokens;
    const bool soft = router.gate == ATTEND_GATE_SOFTMAX;
    float p[most_experts];
    // Gates of all pairs lie where the members' gates will: expert e writes its `wanted` behind what it has read.
    for (int64_t token = 0; token < tokens; ++token) {
        const float* z = to.logits + token * experts;
        if (soft) precise_softmax(z, experts, p);
        for (int64_t e = 0; e < experts; ++e) to.gates[e * tokens + token] = soft ? p[e] : sigmoid(z[e]);
    }
    int32_t next = 0;
    for (int64_t e = 0; e < experts; ++e) {
        const float* gates = to.gates + e * tokens;
        for (int64_t token = 0; token < tokens; ++token)
            to.scratch[token] = rank_of(soft ? gates[token] : to.logits[token * experts + e]);
        if ((router.flags & ATTEND_ROUTER_FIRST_TOKEN) != 0 && tokens > 0) to.scratch[0] = ~0u;
        to.first[e] = next;
        largest_ranks(to.scratch, tokens, wanted, [&](int64_t token) {
            to.members[next] = static_cast<int32_t>(token);
            to.gates[next++] = gates[token];
        });
        to.counts[e] = next - to.first[e];
    }
    to.first[experts] = next;
}

}  // namespace
}  // namespace attend::ATTEND_ISA

using namespace attend::ATTEND_ISA;

extern "C" attend_status ATTEND_KERNEL(attend_route)(const attend_router* router, int64_t item, int64_t num_tokens,
                                                     attend_assignment* to, const attend_context* context) {
    const int64_t experts = router->experts;
    attend_error* error = context->error;
    if (experts < 1 || experts > most_experts || router->top_k < 1 || router->top_k > experts)
        return attend_fail(error, ATTEND_BAD_OPTION, "experts must be 1 to 1024 and top_k 1 to experts", "top_k");
    to->num_tokens = num_tokens;
    LogitJob job{router, item, num_tokens, to->logits};
    const auto pieces = static_cast<uint64_t>((num_tokens + LogitJob::piece - 1) / LogitJob::piece);
    if (const attend_status status =
            context->host->parallel_for(context->host, context->call, pieces, 1, 0, LogitJob::run, &job))
        return status;
    for (int64_t at = 0; at < num_tokens * experts; ++at)
        if (to->logits[at] - to->logits[at] != 0.0f)
            return attend_fail(error, ATTEND_NUMERIC,
                               "a router logit is not finite; accepted: tokens and router weights whose products "
                               "are finite",
                               "wr");
    for (int64_t e = 0; e < experts; ++e) to->counts[e] = 0;
    to->first[0] = 0;
    if (router->choice == ATTEND_EXPERTS_CHOOSE)
        experts_choose(*router, *to);
    else
        tokens_choose(*router, *to);
    for (int64_t e = 0; e < experts; ++e) {
        double total = 0.0;
        for (int32_t at = to->first[e]; at < to->first[e + 1]; ++at) total += static_cast<double>(to->gates[at]);
        to->gate_sums[e] = total;
    }
    if (router->choice == ATTEND_TOKENS_CHOOSE && router->capacity > 0) drop(*router, *to);
    return ATTEND_OK;
}

extern "C" void ATTEND_KERNEL(attend_report_routing)(const attend_router* router, const attend_assignment* assignment,
                                                     attend_routing_report* report) {
    const int64_t experts = router->experts, tokens = assignment->num_tokens;
    const auto n = static_cast<double>(tokens);
    double importance[most_experts];
    float p[most_experts];
    double z_loss = 0.0, entropy = 0.0, total = 0.0, largest = 0.0, kept = 0.0;
    for (int64_t e = 0; e < experts; ++e) importance[e] = 0.0;
    for (int64_t token = 0; token < tokens; ++token) {
        const double lse = softmax(assignment->logits + token * experts, experts, p);
        z_loss += lse * lse;
        for (int64_t e = 0; e < experts; ++e) {
            const auto probability = static_cast<double>(p[e]);
            importance[e] += probability;
            if (probability > 0.0) entropy -= probability * ::log(probability);
        }
    }
    report->empty_experts = 0;
    double balance = 0.0, mean_gate = 0.0, variance = 0.0;
    for (int64_t e = 0; e < experts; ++e) {
        const int32_t count = assignment->counts[e];
        report->counts[e] = count;
        kept += assignment->first[e + 1] - assignment->first[e];
        total += count;
        largest = count > largest ? count : largest;
        if (tokens > 0 && count == 0) ++report->empty_experts;
    }
    double columns[most_experts];
    for (int64_t e = 0; e < experts; ++e) {
        const double share = total > 0.0 ? report->counts[e] / total : 0.0;
        importance[e] = tokens > 0 ? importance[e] / n : 0.0;
        report->load[e] = static_cast<float>(share);
        report->importance[e] = static_cast<float>(importance[e]);
        balance += share * importance[e];
        columns[e] = assignment->gate_sums[e];
        mean_gate += columns[e] / static_cast<double>(experts);
    }
    for (int64_t e = 0; e < experts && experts > 1; ++e)
        variance += (columns[e] - mean_gate) * (columns[e] - mean_gate) / static_cast<double>(experts - 1);
    report->balance_loss = static_cast<float>(static_cast<double>(experts) * balance);
    report->cv2 = mean_gate > 0.0 ? static_cast<float>(variance / (mean_gate * mean_gate)) : 0.0f;
    report->z_loss = tokens > 0 ? static_cast<float>(z_loss / n) : 0.0f;
    report->entropy = tokens > 0 ? static_cast<float>(entropy / n) : 0.0f;
    report->max_load = total > 0.0 ? static_cast<float>(largest * static_cast<double>(experts) / total) : 0.0f;
    report->capacity = static_cast<int32_t>(router->capacity < 0x7FFFFFFF ? router->capacity : 0x7FFFFFFF);
    if (tokens == 0) report->capacity = 0;
    report->dropped = static_cast<int32_t>(total - kept);
    report->dropped_fraction = total > 0.0 ? static_cast<float>((total - kept) / total) : 0.0f;
    report->unassigned = 0;
    if (router->choice != ATTEND_EXPERTS_CHOOSE) return;
    for (int64_t token = 0; token < tokens; ++token) assignment->scratch[token] = 0;
    for (int32_t at = 0; at < assignment->first[experts]; ++at) assignment->scratch[assignment->members[at]] = 1;
    for (int64_t token = 0; token < tokens; ++token) report->unassigned += assignment->scratch[token] == 0 ? 1 : 0;
}
