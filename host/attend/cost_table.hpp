// SPDX-License-Identifier: Apache-2.0
// What calls cost on one machine: rates measured per mechanism, number of threads and class of shape, from which the time of
// other shapes is predicted. `attend tune` writes such a table, `attend recommend` reads it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "attend/config/json.hpp"
#include "attend/error.hpp"

namespace attend {

class AttentionService;

// What a table holds for: where one of these differs, its times do not.
struct CostKeys {
    std::string cpu, isa, version, commit;
    std::vector<std::pair<std::string, std::string>> plugins;  // id and version, sorted

    // "" if they agree, else what differs, with both values.
    [[nodiscard]] std::string difference(const CostKeys& now) const;
};
// Of an open service; version and commit are those of the program.
[[nodiscard]] CostKeys cost_keys(const AttentionService& service, std::string version, std::string commit);

// The size of a call, for the choice of the rate.
struct CostPoint {
    double heads{1};   // batch times query heads
    double length{1};  // sqrt(queries * keys)
    double head_dim{64};
    bool causal{false};
    bool operator==(const CostPoint&) const = default;
};

struct CostSample {
    CostPoint point;
    double flops{}, bytes{};  // by the mechanism's own formula
    double ms{};
};

struct MechanismCosts {
    std::string mechanism;
    std::uint32_t threads{1};
    std::vector<CostSample> samples;
};

class CostTable {
public:
    CostTable() = default;
    CostTable(CostKeys keys, std::vector<MechanismCosts> mechanisms);

    // Errors: not JSON, another version, values out of range; `place` begins the message.
    [[nodiscard]] static Result<CostTable> parse(std::string_view text, const std::string& place);
    [[nodiscard]] static Result<CostTable> load(const std::string& path);
    [[nodiscard]] Json json() const;

    [[nodiscard]] const CostKeys& keys() const noexcept { return keys_; }
    [[nodiscard]] const std::vector<MechanismCosts>& mechanisms() const noexcept { return mechanisms_; }

    // max(flops / rateF, bytes / rateB) in milliseconds, with the rates of the nearest measured number of threads; rateF between
    // measured shapes by interpolation of logarithms, beyond them that of the nearest. Nothing: the mechanism was not measured.
    [[nodiscard]] std::optional<double> predict(std::string_view mechanism, std::uint32_t threads,
                                                const CostPoint& point, double flops, double bytes) const;

private:
    [[nodiscard]] const MechanismCosts* find(std::string_view mechanism, std::uint32_t threads) const;

    CostKeys keys_;
    std::vector<MechanismCosts> mechanisms_;
};

}  // namespace attend
