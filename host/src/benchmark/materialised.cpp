// SPDX-License-Identifier: Apache-2.0
#include "benchmark/materialised.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "benchmark/oracle.hpp"

namespace attend::benchmark {
namespace {

// output[b,h] = softmax(scale q k^T) v, scores [B,H,Nq,Nk] of the caller.
void attention(const ForwardInputs& inputs, const CallSpec& spec, float* scores, float* output) {
    const std::int64_t nq = spec.q_len, nk = spec.kv_len, d = spec.dim;
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(d)));
    for (std::int64_t bh = 0; bh < spec.batch * spec.heads; ++bh) {
        const std::int64_t kv = bh / spec.heads * spec.kv_heads + bh % spec.heads * spec.kv_heads / spec.heads;
        const float *query = inputs.query.as<const float>() + bh * nq * d,
                    *key = inputs.key->as<const float>() + kv * nk * d,
                    *value = inputs.value->as<const float>() + kv * nk * d;
        float *p = scores + bh * nq * nk, *out = output + bh * nq * d;
        for (std::int64_t i = 0; i < nq; ++i) {
            float largest = -INFINITY, sum = 0.0f;
            for (std::int64_t j = 0; j < nk; ++j) {
                float dot = 0.0f;
                for (std::int64_t c = 0; c < d; ++c) dot += query[i * d + c] * key[j * d + c];
                p[i * nk + j] = scale * dot;
                largest = std::max(largest, p[i * nk + j]);
            }
            for (std::int64_t j = 0; j < nk; ++j) {
                p[i * nk + j] = std::exp(p[i * nk + j] - largest);
                sum += p[i * nk + j];
            }
            for (std::int64_t j = 0; j < nk; ++j) p[i * nk + j] /= sum;
        }
        for (std::int64_t i = 0; i < nq; ++i) {
            std::fill(out + i * d, out + (i + 1) * d, 0.0f);
            for (std::int64_t j = 0; j < nk; ++j)
                for (std::int64_t c = 0; c < d; ++c) out[i * d + c] += p[i * nk + j] * value[j * d + c];
        }
    }
}

double available_bytes() {
    return static_cast<double>(::sysconf(_SC_AVPHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

}  // namespace

BenchmarkRow measure_materialised(Bench& bench, const CallSpec& spec) {
    BenchmarkRow row = bench.describe(spec);
    row.name = row.mechanism = "materialised";
    row.category = "reference";
    row.backend = "plain loops";
    row.threads = 1;
    bench.progress("materialised " + row.shape);
    const auto fail = [&](const char* status, const std::string& note) {
        row.status = status;
        row.note = note;
        return row;
    };
    const double pairs = static_cast<double>(spec.batch * spec.heads) * static_cast<double>(spec.q_len) *
                         static_cast<double>(spec.kv_len);
    if (4.0 * pairs > 0.7 * available_bytes())
        return fail("not_run", "the scores would not fit into memory that is free");
    Result<AttentionService*> service = bench.service(spec.backend, spec.threads);
    if (!service) return fail("not_run", service.error().message);
    const MechanismPtr mechanism = (*service)->registry()->find("flash-attention-v2");
    if (!mechanism) return fail("not_run", "flash-attention-v2, whose inputs it takes, is not loaded");
    CallSpec plain = spec;
    plain.mechanism = mechanism->name;
    plain.causal = plain.bias = plain.mask = plain.alibi = false;
    plain.options.clear();
    plain.dtype = DType::f32;

    const CallSpec small = plain.small();
    const Result<ForwardInputs> few = make_inputs(small, *mechanism, 1);
    if (!few) return fail("failed", few.error().message);
    Result<Tensor> small_scores = Tensor::allocate(DType::f32, {small.batch, small.heads, small.q_len, small.kv_len}),
                   small_output = Tensor::allocate(DType::f32, {small.batch, small.heads, small.q_len, small.dim});
    if (!small_scores || !small_output) return fail("failed", "no memory");
    attention(*few, small, small_scores->as<float>(), small_output->as<float>());
    attend_plan_desc desc{};
    desc.window_left = desc.window_right = -1;
    row.checked_against = "float64 softmax";
    row.check_error = relative_error(*small_output, dense_attention(*few, desc));
    if (*row.check_error > tolerance(small, DType::f32)) return fail("wrong", "wrong answer of the loops themselves");

    const Result<ForwardInputs> inputs = make_inputs(plain, *mechanism, bench.settings().seed);
    if (!inputs) return fail("failed", inputs.error().message);
    reset_peak_resident();
    const std::uint64_t before = resident_bytes();
    Result<Tensor> scores = Tensor::allocate(DType::f32, {spec.batch, spec.heads, spec.q_len, spec.kv_len},
                                             Tensor::Fill::none),
                   output = Tensor::allocate(DType::f32, {spec.batch, spec.heads, spec.q_len, spec.dim});
    if (!scores || !output) return fail("failed", "no memory for the scores");
    std::vector<double> samples;
    // A second for each run would make minutes of ten of them: beyond 2 s the one run gives memory and no time.
    do {
        const auto begin = std::chrono::steady_clock::now();
        attention(*inputs, plain, scores->as<float>(), output->as<float>());
        samples.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
    } while (samples.size() < bench.settings().repeat && samples.front() < 2000.0);
    row.peak_resident_bytes = peak_resident_bytes();
    row.extra_bytes = row.peak_resident_bytes > before ? row.peak_resident_bytes - before : 0;
    row.workspace_bytes = scores->byte_size();
    row.flops = 4.0 * pairs * static_cast<double>(spec.dim);
    row.bytes_moved = static_cast<double>(inputs->query.byte_size() + inputs->key->byte_size() +
                                          inputs->value->byte_size() + output->byte_size()) +
                      3.0 * 4.0 * pairs;
    if (samples.size() < bench.settings().repeat) {
        row.note = "one run, for its memory: " + std::to_string(static_cast<int>(samples.front())) + " ms";
        return row;
    }
    const Timing timing = summarise(samples, samples.size());
    row.runs = timing.runs;
    row.median_ms = timing.median_ms;
    row.lower_ms = timing.lower_ms;
    row.upper_ms = timing.upper_ms;
    row.fastest_ms = timing.fastest_ms;
    row.gflops = row.flops / (row.median_ms * 1e6);
    row.gbps = row.bytes_moved / (row.median_ms * 1e6);
    return row;
}

}  // namespace attend::benchmark
