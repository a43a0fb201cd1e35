// SPDX-License-Identifier: Apache-2.0
// Changes of a service that is in use: the next snapshot is built beside the one in force and swapped in.
#include "service/service_state.hpp"

namespace attend {
namespace {

bool same(const std::vector<MechanismConfig>& a, const std::vector<MechanismConfig>& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const MechanismConfig& x, const MechanismConfig& y) {
        return x.name == y.name && x.provider == y.provider;
    });
}

bool same(const PluginsConfig& a, const PluginsConfig& b) {
    return a.dirs == b.dirs && std::equal(a.settings.begin(), a.settings.end(), b.settings.begin(), b.settings.end(),
                                          [](const auto& x, const auto& y) {
                                              return x.first == y.first && write_json(x.second) == write_json(y.second);
                                          });
}

}  // namespace

std::vector<Error> AttentionService::config_problems(const Config& config) const {
    std::vector<Error> problems;
    const std::shared_ptr<const Config> before = state_->now().config;
    const std::string file = config.file.empty() ? "" : config.file + ": ";
    const auto fixed = [&](const char* path, const std::string& was, const std::string& wanted) {
        problems.push_back({ErrorCode::unsupported,
                            file + path + ": is " + wanted + " and the service was opened with " + was +
                                "; accepted: the same value, or a service of its own",
                            ""});
    };
    const auto quoted = [](const std::string& word) { return "\"" + word + "\""; };
    if (config.service.backend != before->service.backend)
        fixed("service.backend", quoted(before->service.backend), quoted(config.service.backend));
    if (config.service.threads != before->service.threads)
        fixed("service.threads", std::to_string(before->service.threads), std::to_string(config.service.threads));
    if (!same(config.plugins, before->plugins)) fixed("plugins", "others", "changed");
    if (!same(config.mechanisms, before->mechanisms)) fixed("mechanisms", "others", "changed");
    const auto snapshot = state_->registry.snapshot();
    auto more =
        check_rules(config, [&](const std::string& mechanism, const NamedValues& options, const std::string& place) {
            return check_rule(*snapshot, config, mechanism, options, place);
        });
    problems.insert(problems.end(), more.begin(), more.end());
    // What differs from now was wanted, wherever it comes from; defaults may name what is not there, as at opening.
    for (const MechanismReference& reference : mechanism_references(config)) {
        const auto known = mechanism_references(*before);
        const bool kept = std::any_of(known.begin(), known.end(), [&](const MechanismReference& other) {
            return other.path == reference.path && other.mechanism == reference.mechanism;
        });
        if (kept) continue;
        if (const auto found = snapshot->get(reference.mechanism, file + reference.path); !found)
            problems.push_back({ErrorCode::option, found.error().message, found.error().hint});
    }
    return problems;
}

Result<void> AttentionService::reconfigure(const Config& config) {
    const std::vector<Error> problems = config_problems(config);
    if (!problems.empty()) return problems.front();
    auto next = std::make_shared<const Config>(config);
    State::Now before;
    {
        const std::scoped_lock lock(state_->now_mutex);
        before = state_->current;
        state_->current = {next, before.epoch + 1, std::make_shared<PassedChecks>()};
    }
    state_->plans.clear();
    state_->results.limit(next->cache);
    const ServiceConfig &was = before.config->service, &is = next->service;
    if (was.precision != is.precision || was.deterministic != is.deterministic) state_->results.invalidate();
    return {};
}

Result<void> AttentionService::register_mechanism(const MechanismRecord& mechanism, bool replace) {
    const MechanismPtr before = state_->registry.snapshot()->find(mechanism.name);
    if (auto done = state_->registry.put(mechanism, replace); !done) return done;
    {
        const std::scoped_lock lock(state_->now_mutex);
        ++state_->current.epoch;
    }
    state_->plans.clear();
    if (before) state_->results.invalidate(before->qualified_name());
    return {};
}

}  // namespace attend
