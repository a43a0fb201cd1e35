// SPDX-License-Identifier: Apache-2.0
// What names a call for the result cache: a canonical byte string of everything that its result depends on, hashed.
#include <algorithm>
#include <numeric>

#include "attend/config/names.hpp"
#include "service/forward_call.hpp"
#include "service/result_cache.hpp"

namespace attend {
namespace {

// Grows when the bytes below change their meaning.
constexpr std::string_view format = "attend result 1";

void add_value(ContentHasher& to, const OptionValue& option) {
    to.text(option.name);
    to.number(option.scalar ? 1 : 0);
    to.number(static_cast<std::int64_t>(option.value.index()));
    std::visit(
        [&](const auto& value) {
            using Value = std::decay_t<decltype(value)>;
            if constexpr (std::is_same_v<Value, bool> || std::is_same_v<Value, std::int64_t>)
                to.number(static_cast<std::int64_t>(value));
            else if constexpr (std::is_same_v<Value, double>)
                to.bytes(&value, sizeof value);
            else if constexpr (std::is_same_v<Value, std::string>)
                to.text(value);
            else if constexpr (!std::is_same_v<Value, std::monostate>) {
                to.number(static_cast<std::int64_t>(value.size()));
                to.bytes(value.data(), value.size() * sizeof value[0]);
            }
        },
        option.value);
}

// The seed of dropout where there is none: the host resolves it, or the plugin says that this plan does not read it.
bool is_idle_seed(const CallPlan& plan, std::size_t at) {
    const std::string& name = plan.values[at].name;
    if (plan.desc.dropout > 0 || (name != "seed" && name != "rng_offset")) return false;
    if (at >= plan.mechanism->own_options) return true;
    const std::string said = "option \"" + name + "\" is not read";
    return std::any_of(plan.warnings.begin(), plan.warnings.end(),
                       [&](const std::string& warning) { return warning.find(said) != std::string::npos; });
}

// Every option in force, sorted. An idle seed counts as its default, whatever it is set to.
void add_options(ContentHasher& to, const CallPlan& plan) {
    std::vector<std::size_t> order(plan.values.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(),
              [&](std::size_t a, std::size_t b) { return plan.values[a].name < plan.values[b].name; });
    to.number(static_cast<std::int64_t>(order.size()));
    for (const std::size_t at : order) {
        OptionValue value = plan.values[at];
        const std::optional<Json>& initial = plan.mechanism->options[at].default_value;
        if (is_idle_seed(plan, at) && initial && initial->is_int64()) value.value = initial->as_int64();
        add_value(to, value);
    }
}

}  // namespace

NamedTensors inputs_by_role(const ForwardInputs& inputs) {
    NamedTensors roles;
    if (inputs.query.data != nullptr || !inputs.query.shape.empty()) roles.emplace_back("query", inputs.query);
    const auto add = [&](const char* role, const std::optional<Tensor>& tensor) {
        if (tensor) roles.emplace_back(role, *tensor);
    };
    add("key", inputs.key);
    add("value", inputs.value);
    add("mask", inputs.mask);
    add("bias", inputs.bias);
    add("query_lengths", inputs.query_lengths);
    add("key_lengths", inputs.key_lengths);
    const auto add_all = [&](const char* prefix, const NamedTensors& list) {
        const std::size_t first = roles.size();
        for (const auto& [name, tensor] : list) roles.emplace_back(prefix + fold_name(name), tensor);
        std::sort(roles.begin() + static_cast<std::ptrdiff_t>(first), roles.end(),
                  [](const auto& a, const auto& b) { return a.first < b.first; });
    };
    if (!inputs.extra.empty()) add_all("input.", inputs.extra);
    if (!inputs.weights.empty()) add_all("weight.", inputs.weights);
    return roles;
}

CacheQuery cache_query(const ForwardCall& call, const NamedTensors& roles, const Machine& machine) {
    const CallPlan& plan = *call.plan;
    const MechanismRecord& mechanism = *plan.mechanism;
    const ForwardOptions& options = *call.options;
    CacheQuery query;
    query.mechanism = mechanism.qualified_name();
    query.handles = call.handles;
    ContentHasher to;
    to.text(format);
    to.text(query.mechanism);
    to.text(mechanism.plugin_version);
    to.number(mechanism.revision);
    to.number(static_cast<std::int64_t>(mechanism.replacements));
    add_options(to, plan);
    to.text(plan.variant);
    to.text(mechanism.backend);
    to.number(static_cast<std::int64_t>(machine.isa));
    to.text(options.precision.empty() ? call.config->service.precision : options.precision);
    to.number(static_cast<std::int64_t>(plan.types.query));
    to.number(static_cast<std::int64_t>(plan.types.key_value));
    const bool deterministic = call.config->service.deterministic;
    to.number(deterministic ? 0 : 1 + static_cast<std::int64_t>(machine.pool->workers()));
    to.number((options.lse ? 1 : 0) + (options.scores ? 2 : 0));
    to.number(options.heads);
    to.number(options.kv_heads);
    to.number(static_cast<std::int64_t>(roles.size()));
    for (const auto& [role, tensor] : roles) {
        query.shapes += role + " " + dtype_name(tensor.dtype) + shape_text(tensor.shape) + ";";
        to.text(role);
        to.number(static_cast<std::int64_t>(tensor.dtype));
        to.number(tensor.rank());
        for (const std::int64_t extent : tensor.shape) to.number(extent);
        const auto use = std::find_if(call.handles.begin(), call.handles.end(), [&](const HandleUse& known) {
            return known.role == role || (role.find('.') != std::string::npos && fold_name(known.role) == role);
        });
        if (use != call.handles.end()) {
            to.number(1);
            to.number(static_cast<std::int64_t>(use->handle));
            to.number(static_cast<std::int64_t>(use->generation));
        } else {
            to.number(0);
            to.elements(tensor);
        }
    }
    query.key = to.finish();
    return query;
}

}  // namespace attend
