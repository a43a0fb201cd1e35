// SPDX-License-Identifier: Apache-2.0
// Router and assignment: logits, gates, top-k, counting sort, statistics.
#include <math.h>

#include "attend/toolkit/core/rng.hpp"
#include "attend/toolkit/routing.h"

namespace attend::ATTEND_ISA {
namespace {

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
                    noise = philox(router.seed, static_cast<uint32_t>(m / 4), static_cast<uint32_t>(token), static_cast<uint32_t>(item),
                                   counter_tail(RandomDomain::router, router.side));
                const double u = static_cast<double>(uniform01(noise.word[m % 4]));
                value = static_cast<float>(static_cast<double>(value) * (1.0 - router.noise + 2.0 * router.noise * u));
            }
            const float* weights = static_cast<const float*>(w.data) + m * w.strides[0];
            const double wide = static_cast<double>(value);
            for (int64_t e = 0; e < experts; ++e) sum[e] += wide * static_cast<double>(weights[e * w.strides[1]]);
        }
    for (int64_t e = 0; e < experts; ++e) {
        const double bias = router.bias ? static_cast<double>(static_cast<const float*>(router.bias->data)[e * router.bias->strides[0]]) : 0.0;
        z[e] = static_cast<float>(sum[e] + bias);
    }
}

// Softmax over experts in float32; returns logsumexp.
double softmax(const float* z, int64_t experts, float* p) {
    float largest = z[0];
    for (int64_t e = 1; e < experts; ++e) largest = z[e] > largest ? z[e] : largest;
    float sum = 0.0f;
    for (int64_t e = 0; e < experts; ++e) sum += p[e] = exp_of(z[e] - largest);
    for (int64_t e = 0; e < experts; ++e) p[e] /= sum;
    return static_cast<double>(largest) + ::log(static_cast<double>(sum));
}

constexpr int64_t most_experts = 1024;

}  // namespace
}  // namespace attend::ATTEND_ISA

using namespace attend::ATTEND_ISA;

extern "C" attend_status ATTEND_KERNEL(attend_route)(const attend_router* router, int64_t item, int64_t num_tokens,
                                                     attend_assignment* to, attend_error* error) {
    const int64_t experts = router->experts, top_k = router->top_k;
    if (experts < 1 || experts > most_experts || top_k < 1 || top_k > experts)
        return attend_fail(error, ATTEND_BAD_OPTION, "experts must be 1 to 1024 and top_k 1 to experts", "top_k");
    double sum[most_experts];
    float p[most_experts];
    bool taken[most_experts];
    to->num_tokens = num_tokens;
    for (int64_t e = 0; e <= experts; ++e) to->first[e] = 0;
    // Pass 1 counts, pass 2 places: tokens ascend within each expert because they are visited in order.
    for (int64_t token = 0; token < num_tokens; ++token) {
        float* z = to->logits + token * experts;
        token_logits(*router, item, token, z, sum);
        for (int64_t e = 0; e < experts; ++e)
            if (z[e] - z[e] != 0.0f) return attend_fail(error, ATTEND_NUMERIC, "a router logit is not finite; accepted: tokens and router weights whose products are finite", "wr");
    }
    int32_t next[most_experts + 1];
    for (int pass = 0; pass < 2; ++pass) {
        if (pass == 1) {
            for (int64_t e = 0; e < experts; ++e) to->first[e + 1] += to->first[e];
            for (int64_t e = 0; e < experts; ++e) next[e] = to->first[e];
        }
        for (int64_t token = 0; token < num_tokens; ++token) {
            const float* z = to->logits + token * experts;
            int32_t chosen[most_experts];
            for (int64_t e = 0; e < experts; ++e) taken[e] = false;
            for (int64_t rank = 0; rank < top_k; ++rank) {
                int64_t best = -1;
                for (int64_t e = 0; e < experts; ++e)
                    if (!taken[e] && (best < 0 || z[e] > z[best])) best = e;
                taken[best] = true;
                chosen[rank] = static_cast<int32_t>(best);
            }
            if (pass == 0) {
                for (int64_t rank = 0; rank < top_k; ++rank) ++to->first[chosen[rank] + 1];
                continue;
            }
            if (router->gate == ATTEND_GATE_SOFTMAX) softmax(z, experts, p);
            else
                for (int64_t e = 0; e < experts; ++e) p[e] = 1.0f / (1.0f + exp_of(-z[e]));
            float total = 0.0f;
            for (int64_t rank = 0; rank < top_k; ++rank) total += p[chosen[rank]];
            for (int64_t rank = 0; rank < top_k; ++rank) {
                const int32_t e = chosen[rank];
                to->members[next[e]] = static_cast<int32_t>(token);
                to->gates[next[e]] = !router->normalise_gates ? p[e] : total > 0.0f ? p[e] / total : 1.0f / static_cast<float>(top_k);
                ++next[e];
            }
        }
    }
    return ATTEND_OK;
}

extern "C" void ATTEND_KERNEL(attend_report_routing)(const attend_router* router, const attend_assignment* assignment,
                                                     attend_routing_report* report) {
    const int64_t experts = router->experts, tokens = assignment->num_tokens;
    const auto n = static_cast<double>(tokens);
    double importance[most_experts];
    float p[most_experts];
    double z_loss = 0.0, entropy = 0.0, total = 0.0, largest = 0.0;
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
        const int32_t count = assignment->first[e + 1] - assignment->first[e];
        report->counts[e] = count;
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
        columns[e] = 0.0;
        for (int32_t at = assignment->first[e]; at < assignment->first[e + 1]; ++at) columns[e] += static_cast<double>(assignment->gates[at]);
        mean_gate += columns[e] / static_cast<double>(experts);
    }
    for (int64_t e = 0; e < experts && experts > 1; ++e) variance += (columns[e] - mean_gate) * (columns[e] - mean_gate) / static_cast<double>(experts - 1);
    report->balance_loss = static_cast<float>(static_cast<double>(experts) * balance);
    report->cv2 = mean_gate > 0.0 ? static_cast<float>(variance / (mean_gate * mean_gate)) : 0.0f;
    report->z_loss = tokens > 0 ? static_cast<float>(z_loss / n) : 0.0f;
    report->entropy = tokens > 0 ? static_cast<float>(entropy / n) : 0.0f;
    report->max_load = total > 0.0 ? static_cast<float>(largest * static_cast<double>(experts) / total) : 0.0f;
}
