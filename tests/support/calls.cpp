// SPDX-License-Identifier: Apache-2.0
#include "support/calls.hpp"

#include <cstdlib>
#include <limits>
#include <utility>

#include "plugin_services/cpu.hpp"
#include "support/effort.hpp"

namespace support {
namespace {
// Where the example with mechanisms of its own lies; the test run names the place of one built out of tree.
std::string extra_plugins() {
    const char* named = std::getenv("ATTEND_TEST_PLUGINS");
    return named != nullptr ? named : ATTEND_BINARY_DIR "/tests/extra_plugins";
}
}  // namespace

attend::AttentionService& service(const std::string& backend, int threads) {
    static std::map<std::pair<std::string, int>, std::unique_ptr<attend::AttentionService>> services;
    auto& slot = services[{backend, threads}];
    if (!slot) {
        attend::ServiceSettings settings;
        settings.config = attend::load_default_config().config;
        settings.config.service.backend = backend;
        settings.config.service.threads = threads;
        settings.config.service.enable_cache = false;  // a second call is to compute, too
        settings.built_in_dir = std::filesystem::path(ATTEND_BINARY_DIR) / "plugins";
        settings.plugin_path = extra_plugins();
        auto opened = attend::AttentionService::open(std::move(settings));
        if (!opened) FAIL(opened.error().message);
        slot = std::move(*opened);
    }
    return *slot;
}

const std::vector<std::string>& backends() {
    static const std::vector<std::string> known = [] {
        std::vector<std::string> names;
        for (const char* name : {
#if defined(__aarch64__)
                 "neon"
#else
                 "baseline", "avx2", "avx512"
#endif
             })
            // Sanitizers do not instrument avx2 (AttendPlugin.cmake).
            if (!(support::watched && std::string_view(name) == "avx2") &&
                attend::limit_isa(attend::detect_cpu(), name))
                names.emplace_back(name);
        return names;
    }();
    return known;
}

attend::Tensor normal(Random& random, std::vector<std::int64_t> shape) {
    attend::Tensor tensor = attend::Tensor::allocate(attend::DType::f32, std::move(shape)).value();
    for (std::int64_t at = 0; at < tensor.size(); ++at) tensor.as<float>()[at] = random.normal();
    return tensor;
}

attend::Tensor lengths(std::vector<std::int64_t> values) {
    attend::Tensor tensor =
        attend::Tensor::allocate(attend::DType::i64, {static_cast<std::int64_t>(values.size())}).value();
    std::copy(values.begin(), values.end(), tensor.as<std::int64_t>());
    return tensor;
}

attend::ForwardInputs make_inputs(Random& random, const Shape& s) {
    attend::ForwardInputs inputs;
    inputs.query = normal(random, {s.batch, s.heads, s.q_len, s.head_dim});
    inputs.key = normal(random, {s.batch, s.kv_heads, s.kv_len, s.head_dim});
    inputs.value = normal(random, {s.batch, s.kv_heads, s.kv_len, s.value_dim});
    return inputs;
}

attend::ForwardResult run(attend::AttentionService& service, const attend::ForwardInputs& inputs,
                          const std::string& mechanism, attend::NamedValues options, bool lse, bool scores) {
    attend::ForwardOptions call;
    call.mechanism = mechanism;
    call.options = std::move(options);
    call.lse = lse;
    call.scores = scores;
    auto result = service.forward(inputs, call);
    if (!result) FAIL(mechanism << ": " << result.error().message);
    return std::move(*result);
}

std::vector<float> values(const attend::Tensor& tensor) {
    const auto flat = attend::contiguous_copy(tensor).value();
    return {flat.as<const float>(), flat.as<const float>() + flat.size()};
}

bool same_bits(const attend::Tensor& a, const attend::Tensor& b) {
    const auto x = values(a), y = values(b);
    return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
}

double difference(const std::vector<float>& got, const std::vector<double>& expected, std::size_t* where) {
    if (got.size() != expected.size()) return std::numeric_limits<double>::infinity();
    double worst = 0.0;
    for (std::size_t at = 0; at < got.size(); ++at) {
        const double g = static_cast<double>(got[at]);
        double now = g == expected[at] ? 0.0 : std::abs(g - expected[at]);
        if (std::isnan(now)) now = std::numeric_limits<double>::infinity();
        if (now > worst) {
            worst = now;
            if (where != nullptr) *where = at;
        }
    }
    return worst;
}

double largest(const std::vector<float>& data) {
    double most = 0.0;
    for (const float x : data) most = std::max(most, static_cast<double>(std::abs(x)));
    return most;
}

}  // namespace support
