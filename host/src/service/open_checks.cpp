// SPDX-License-Identifier: Apache-2.0
#include "service/open_checks.hpp"

#include "loading/plugin_loader.hpp"

namespace attend {

Error refusal(const PluginReport& report) {
    return {ErrorCode::plugin,
            report.path + ": refused at stage " + report.failure.stage + ", " + report.failure.code + ": " +
                report.failure.sentence,
            report.failure.hint};
}

std::vector<Error> reference_problems(const Config& config, const RegistrySnapshot& registry) {
    std::vector<Error> problems;
    for (const MechanismReference& reference : mechanism_references(config)) {
        // Paths of list entries carry an index; the origin is kept for the list.
        const std::string path = reference.path.substr(0, reference.path.find('['));
        const bool listed = path.starts_with("targets") || path.starts_with("mechanisms.");
        if (!listed && config.origin_of(path).kind == Origin::Kind::default_value) continue;
        Result<MechanismPtr> found = registry.get(reference.mechanism, config.file + ": " + reference.path);
        if (!found) problems.push_back(Error{ErrorCode::option, found.error().message, found.error().hint});
    }
    return problems;
}

}  // namespace attend
