// SPDX-License-Identifier: Apache-2.0
// Whether a mechanism can serve a request: its capabilities, its plugin's own check, memory, error bound. And what of the
// request would have to be different where it cannot.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "attend/attention_service.hpp"
#include "attend/registry/mechanism_registry.hpp"
#include "service/call_plan.hpp"

namespace attend {

// What a request needs of a mechanism. Derived from rule variables, so that a described request (recommend) and a real
// one (forward) with the same variables get the same answer.
struct RequestNeeds {
    SizeRequest sizes;
    bool causal{}, mask{}, bias{}, window{}, dropout{}, lse{}, scores{}, graph{};
    std::int64_t window_size{};
    double memory_budget{}, max_error{};
    std::string precision{"fp32"};
};
[[nodiscard]] RequestNeeds needs_of(const RuleVariables& variables);

struct Verdict {
    std::string check, reason;  // empty: passes
    std::optional<Estimate> estimate;
};
[[nodiscard]] Verdict check_candidate(const MechanismPtr& mechanism, const RequestNeeds& needs,
                                      const NamedValues& options, std::uint32_t max_workers);

// The options of a mechanism that nobody named: causal by default is another function than the one asked for, unless it can
// be switched off.
[[nodiscard]] NamedValues unasked_options(const MechanismRecord& mechanism, const RequestNeeds& needs,
                                          NamedValues options);

// Changes of the request under which the mechanism passes every check, found by making them; empty: none of those known.
// unasked: nobody named the mechanism, so its options follow the request.
[[nodiscard]] std::vector<Change> changes_to_admit(const MechanismPtr& mechanism, const RequestNeeds& needs,
                                                   const NamedValues& options, bool unasked, std::uint32_t max_workers);

// "12345678", "unbounded": six digits.
[[nodiscard]] std::string shown_number(double number);

// Requests whose check a mechanism passed with the options of a rule, or with none. The check depends on nothing else.
class PassedChecks {
public:
    [[nodiscard]] bool contains(const RegistrySnapshot& registry, const MechanismRecord& mechanism, std::ptrdiff_t rule,
                                const RequestNeeds& needs);
    void add(const RegistrySnapshot& registry, const MechanismPtr& mechanism, std::ptrdiff_t rule,
             const RequestNeeds& needs);

private:
    using Key = std::array<std::uint64_t, 14>;
    struct Entry {
        Key key{};
        std::weak_ptr<const MechanismRecord> mechanism;  // its address is in the key and stays its own while this lives
    };
    static Key key_of(const MechanismRecord& mechanism, std::ptrdiff_t rule, const RequestNeeds& needs);
    Entry& place(const Key& key);

    std::mutex mutex_;
    std::uint64_t generation_{0};
    std::array<Entry, 64> entries_;
};

}  // namespace attend
