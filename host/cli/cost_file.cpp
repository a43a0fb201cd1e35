// SPDX-License-Identifier: Apache-2.0
#include "cost_file.hpp"

#include "attend/cost_table.hpp"
#include "errors.hpp"

namespace attend::cli {

namespace fs = std::filesystem;

fs::path cost_file() {
    const fs::path folder = user_folder("XDG_CACHE_HOME", ".cache");
    return folder.empty() ? fs::path() : folder / "attend" / "costs.json";
}

void use_cost_table(Session& session, bool quiet) {
    const fs::path path = cost_file();
    std::error_code status;
    if (path.empty() || !fs::exists(path, status)) return;
    Result<CostTable> table = CostTable::load(path.string());
    if (!table) {
        warn(quiet, table.error().message + "; times are not predicted, `attend tune` writes a new table");
        return;
    }
    const std::string difference =
        table->keys().difference(cost_keys(*session.service, product_version(), build_commit()));
    if (!difference.empty()) {
        warn(quiet, path.string() + ": " + difference + "; times are not predicted, `attend tune` writes a new table");
        return;
    }
    session.service->use_costs(std::make_shared<const CostTable>(std::move(*table)));
}

}  // namespace attend::cli
