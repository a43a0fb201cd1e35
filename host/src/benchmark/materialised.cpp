// SPDX-License-Identifier: Apache-2.0
#include "benchmark/materialised.hpp"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <thread>

#include "attend/abi.h"
#include "benchmark/materialised_head.hpp"
#include "benchmark/oracle.hpp"

namespace attend {

#if defined(__x86_64__)
namespace peak_baseline {
void materialised(const benchmark::MaterialisedHead& head);
}
namespace peak_avx2 {
void materialised(const benchmark::MaterialisedHead& head);
}
namespace peak_avx512 {
void materialised(const benchmark::MaterialisedHead& head);
}
#else
namespace peak_neon {
void materialised(const benchmark::MaterialisedHead& head);
}
#endif

namespace benchmark {

Result<void> materialised_attention(const MaterialisedCall& call, std::uint64_t isa, std::uint32_t threads) {
    auto* kernel =
#if defined(__x86_64__)
        (isa & ATTEND_ISA_X86_V4) != 0   ? peak_avx512::materialised
        : (isa & ATTEND_ISA_X86_V3) != 0 ? peak_avx2::materialised
                                         : peak_baseline::materialised;
#else
        peak_neon::materialised;
    (void)isa;
#endif
    const std::int64_t heads = call.batch * call.heads, workers = std::max<std::int64_t>(threads, 1);
    // Whole heads where there are enough for everybody, else parts of their rows.
    const std::int64_t pieces = heads % workers == 0 ? 1 : std::min(workers, std::max<std::int64_t>(call.q_len, 1));
    const std::int64_t items = heads * pieces, key_floats = call.dim * (call.kv_len + most_panel),
                       value_floats = call.kv_len * (call.dim + most_panel);
    Result<Tensor> panels = Tensor::allocate(DType::f32, {workers, key_floats + value_floats}, Tensor::Fill::none);
    if (!panels) return panels.error();
    const auto work = [&](std::int64_t worker) {
        float* const own = panels->as<float>() + worker * (key_floats + value_floats);
        for (std::int64_t item = worker; item < items; item += workers) {
            const std::int64_t bh = item / pieces, piece = item % pieces;
            const std::int64_t kv = bh / call.heads * call.kv_heads + bh % call.heads * call.kv_heads / call.heads;
            const std::int64_t first = piece * call.q_len / pieces, last = (piece + 1) * call.q_len / pieces;
            kernel({call.query + (bh * call.q_len + first) * call.dim, call.key + kv * call.kv_len * call.dim,
                    call.value + kv * call.kv_len * call.dim, call.scores + (bh * call.q_len + first) * call.kv_len,
                    call.output + (bh * call.q_len + first) * call.dim, own, own + key_floats, last - first,
                    call.kv_len, call.dim, static_cast<float>(1.0 / std::sqrt(static_cast<double>(call.dim)))});
        }
    };
    std::vector<std::thread> others;
    for (std::int64_t worker = 1; worker < workers; ++worker) others.emplace_back(work, worker);
    work(0);
    for (std::thread& other : others) other.join();
    return {};
}

namespace {

Result<void> attention(const ForwardInputs& inputs, const CallSpec& spec, Tensor& scores, Tensor& output,
                       std::uint64_t isa) {
    return materialised_attention({inputs.query.as<const float>(), inputs.key->as<const float>(),
                                   inputs.value->as<const float>(), scores.as<float>(), output.as<float>(), spec.batch,
                                   spec.heads, spec.kv_heads, spec.q_len, spec.kv_len, spec.dim},
                                  isa, spec.threads);
}

double available_bytes() {
    return static_cast<double>(::sysconf(_SC_AVPHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
}

}  // namespace

BenchmarkRow measure_materialised(Bench& bench, const CallSpec& spec) {
    BenchmarkRow row = bench.describe(spec);
    row.name = row.mechanism = "materialised";
    row.category = "reference";
    row.backend = "two products";
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
    const std::uint64_t isa = (*service)->isa();
    if (auto done = attention(*few, small, *small_scores, *small_output, isa); !done)
        return fail("failed", done.error().message);
    attend_plan_desc desc{};
    desc.window_left = desc.window_right = -1;
    row.checked_against = "float64 softmax";
    row.check_error = relative_error(*small_output, dense_attention(*few, desc));
    if (*row.check_error > tolerance(small, DType::f32))
        return fail("wrong", "wrong answer of the products themselves");

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
        if (auto done = attention(*inputs, plain, *scores, *output, isa); !done)
            return fail("failed", done.error().message);
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

}  // namespace benchmark
}  // namespace attend
