// SPDX-License-Identifier: Apache-2.0
#include "attend/attention_service.hpp"

#include <dlfcn.h>

#include <algorithm>

#include "attend/config/names.hpp"
#include "service/projections.hpp"
#include "service/service_state.hpp"

namespace attend {
namespace {

namespace fs = std::filesystem;

// The folder of the program or library that this code is part of.
fs::path own_folder() {
    Dl_info info{};
    static const int anchor = 0;
    if (dladdr(&anchor, &info) == 0 || info.dli_fname == nullptr) return {};
    std::error_code status;
    fs::path self = fs::canonical(info.dli_fname, status);
    if (status || info.dli_fname[0] != '/') self = fs::read_symlink("/proc/self/exe", status);
    return self.parent_path();
}

fs::path first_existing(std::initializer_list<fs::path> candidates) {
    std::error_code status;
    for (const fs::path& candidate : candidates)
        if (fs::exists(candidate, status)) return fs::weakly_canonical(candidate, status);
    return {};
}

std::map<std::string, std::map<std::string, std::string>> plugin_settings(const PluginsConfig& plugins) {
    std::map<std::string, std::map<std::string, std::string>> settings;
    for (const auto& [id, value] : plugins.settings)
        if (value.is_object())
            for (const auto& [key, entry] : value.as_object())
                settings[id][key] = entry.is_string() ? entry.as_string() : write_json(entry);
    return settings;
}

// A tensor's extents as B, H, N, D for the rules, whatever its rank; the mechanism's own layout comes later.
struct Extents {
    std::int64_t batch{1}, heads{1}, length{1}, width{1};
};
Extents extents_of(const Tensor& tensor, std::int64_t heads) {
    const auto& shape = tensor.shape;
    switch (shape.size()) {
        case 1: return {1, 1, 1, shape[0]};
        case 2: return {1, 1, shape[0], shape[1]};
        case 3:
            return {shape[0], std::max<std::int64_t>(heads, 1), shape[1], shape[2] / std::max<std::int64_t>(heads, 1)};
        case 4: return {shape[0], shape[1], shape[2], shape[3]};
        default: return {};
    }
}

const Json* find_option(const NamedValues& options, const char* name) {
    const auto at =
        std::find_if(options.begin(), options.end(), [&](const auto& entry) { return fold_name(entry.first) == name; });
    return at == options.end() ? nullptr : &at->second;
}

}  // namespace

const Tensor* edges_of(const ForwardInputs& inputs) {
    for (const auto& [name, tensor] : inputs.extra)
        if (fold_name(name) == "edges" || fold_name(name) == "col_idx") return &tensor;
    return nullptr;
}

AttentionService::AttentionService(std::unique_ptr<State> state) : state_(std::move(state)) {}
AttentionService::~AttentionService() = default;

Result<std::unique_ptr<AttentionService>> AttentionService::open(ServiceSettings settings) {
    auto state = std::make_unique<State>();
    state->machine = std::make_shared<Machine>();
    state->machine->facts = detect_cpu();
    const Result<std::uint64_t> isa = limit_isa(state->machine->facts, settings.config.service.backend);
    if (!isa) return isa.error();
    state->machine->isa = *isa;
    const std::int64_t threads = settings.config.service.threads;
    state->machine->pool =
        std::make_shared<WorkerPool>(threads > 0 ? static_cast<std::uint32_t>(std::min<std::int64_t>(threads, 1024))
                                                 : state->machine->facts.threads);

    const fs::path here = own_folder();
    PluginSearch search;
    search.files = settings.plugin_files;
    search.dirs = settings.plugin_dirs;
    for (const std::string& dir : settings.config.plugins.dirs) search.config_dirs.emplace_back(dir);
    search.environment_path = settings.plugin_path;
    search.user_dir = settings.user_plugin_dir;
    search.built_in_dir = settings.built_in_dir.value_or(first_existing(
        {here / ATTEND_RELATIVE_PLUGIN_DIR, here / ATTEND_PLUGIN_DIR_OF_LIBRARY, here.parent_path() / "plugins"}));
    if (settings.probe)
        search.probe_program = first_existing({here / ATTEND_RELATIVE_PROBE, here / ATTEND_PROBE_OF_LIBRARY,
                                               here.parent_path() / "libexec/attend/attend-probe"});
    search.system_dir = ATTEND_SYSTEM_PLUGIN_DIR;
    state->loader = std::make_unique<PluginLoader>(state->machine, plugin_settings(settings.config.plugins));
    std::vector<std::pair<std::string, std::string>> providers;
    for (const MechanismConfig& entry : settings.config.mechanisms) providers.emplace_back(entry.name, entry.provider);
    // Built-in names are reserved: they are registered first, whatever the search order.
    auto loaded = state->loader->load(search);
    std::stable_partition(loaded.begin(), loaded.end(), [](const auto& records) { return records.front().built_in; });
    for (auto& records : loaded)
        if (auto done = state->registry.add(std::move(records), providers); !done) return done.error();
    state->settings = std::move(settings);
    state->current = {std::make_shared<const Config>(state->settings.config), 0, std::make_shared<PassedChecks>()};
    state->results.limit(state->settings.config.cache);
#if defined(NDEBUG)
    state->handles.set_checked(state->settings.check_handles.value_or(false));
#else
    state->handles.set_checked(state->settings.check_handles.value_or(true));
#endif

    const auto snapshot = state->registry.snapshot();
    const auto problems =
        check_rules(state->settings.config,
                    [&](const std::string& mechanism, const NamedValues& options, const std::string& place) {
                        return check_rule(*snapshot, state->settings.config, mechanism, options, place);
                    });
    if (!problems.empty()) return problems.front();
    return std::unique_ptr<AttentionService>(new AttentionService(std::move(state)));
}

Result<RuleVariables> AttentionService::State::variables_of(const Config& config, const ForwardInputs& inputs,
                                                            const ForwardOptions& options) const {
    RequestFacts facts = options.facts;
    const auto supply = [&](const char* name, RuleValue value) {
        const RuleVariableInfo* info = find_rule_variable(name);
        const bool given = std::any_of(facts.begin(), facts.end(), [&](const auto& fact) {
            const auto* other = find_rule_variable(fact.first);
            return other != nullptr && other->id == info->id;
        });
        if (!given) facts.emplace(name, std::move(value));
    };
    const Extents query = extents_of(inputs.query, options.heads);
    const Tensor& key_tensor = inputs.key ? *inputs.key : inputs.query;
    const Extents key = extents_of(key_tensor, inputs.key && options.kv_heads > 0 ? options.kv_heads : options.heads);
    const Extents value =
        inputs.value ? extents_of(*inputs.value, options.kv_heads > 0 ? options.kv_heads : options.heads) : key;
    supply("seqLen", static_cast<double>(query.length));
    supply("seqLenK", static_cast<double>(key.length));
    supply("batchSize", static_cast<double>(query.batch));
    supply("heads", static_cast<double>(query.heads));
    supply("kvHeads", static_cast<double>(key.heads));
    supply("headDim", static_cast<double>(query.width));
    supply("valueDim", static_cast<double>(value.width));
    const Json* causal = find_option(options.options, "causal");
    supply("causal", causal != nullptr && causal->is_bool() && causal->as_bool());
    supply("hasMask", inputs.mask.has_value());
    supply("hasBias", inputs.bias.has_value());
    const Json* dropout = find_option(options.options, "dropout");
    supply("hasDropout", dropout != nullptr && dropout->is_number() && dropout->as_double() > 0);
    supply("needLse", options.lse);
    supply("needScores", options.scores);
    const Json* window = find_option(options.options, "window_size");
    supply("windowSize", window != nullptr && window->is_number() ? std::max(0.0, window->as_double()) : 0.0);
    if (const Tensor* edges = edges_of(inputs)) {
        supply("graph", true);
        supply("numEdges", static_cast<double>(edges->shape.empty() ? 0 : edges->shape.back()));
    }
    if (!options.precision.empty()) supply("precision", options.precision);
    if (config.service.memory_budget) supply("memoryBudget", static_cast<double>(*config.service.memory_budget));
    RuleDefaults rule_defaults = defaults(config);
    rule_defaults.key_is_query = !inputs.key.has_value() || inputs.key->data == inputs.query.data;
    return RuleVariables::make(facts, rule_defaults);
}

Result<Selection> AttentionService::State::choose(const Config& config, PassedChecks& passed,
                                                  const ForwardInputs& inputs, const ForwardOptions& options) const {
    const auto snapshot = registry.snapshot();
    if (options.mechanism != "auto") {
        Result<MechanismPtr> found = snapshot->get(options.mechanism, "");
        if (!found) return found.error();
        Selection selection;
        selection.mechanism = std::move(*found);
        selection.options = options.options;
        selection.reason = "named by the caller";
        return selection;
    }
    Result<RuleVariables> variables = variables_of(config, inputs, options);
    if (!variables) return variables.error();
    const MechanismSelector selector(snapshot, config, machine->pool->workers(), &passed);
    Result<Selection> selection = selector.select(*variables, options.options, edges_of(inputs) != nullptr);
    if (!selection) return selection.error();
    if (!selection->mechanism) {
        std::string reasons;
        for (const std::string& refusal : selection->refusals) reasons += (reasons.empty() ? "" : "; ") + refusal;
        return Error{ErrorCode::unsupported, "auto: no mechanism serves this request: " + reasons, ""};
    }
    for (const std::string& refusal : selection->refusals) selection->reason += "; skipped " + refusal;
    return selection;
}

Result<std::optional<ForwardInputs>> AttentionService::State::with_projections(const ForwardInputs& inputs,
                                                                               const ForwardOptions& options) const {
    std::optional<ForwardInputs> changed;
    if (inputs.weights.empty() && !keeps_projections) return changed;
    const MechanismPtr mechanism = registry.snapshot()->find(options.mechanism);
    if (mechanism == nullptr) return changed;
    if (!inputs.weights.empty()) {
        Result<std::optional<NamedTensors>> unpacked = unpack_projections(*mechanism, inputs.weights);
        if (!unpacked) return unpacked.error();
        if (*unpacked) {
            changed = inputs;
            changed->weights = std::move(**unpacked);
        }
        return changed;
    }
    for (const auto& [name, value] : options.options)
        if (fold_name(name) == "form" && value.is_string() && value.as_string() == "core") return changed;
    const std::scoped_lock lock(projections_mutex);
    if (const auto kept = projections.find(mechanism->qualified_name()); kept != projections.end()) {
        changed = inputs;
        changed->weights = *kept->second;
    }
    return changed;
}

Result<std::shared_ptr<CallPlan>> AttentionService::State::plan_of(const ForwardInputs& inputs,
                                                                   const ForwardOptions& options) const {
    const Result<MechanismPtr> mechanism = registry.snapshot()->get(options.mechanism, "projections");
    if (!mechanism) return mechanism.error();
    CallRequest request{options.options, options.heads, options.kv_heads, false, false, "fp32", false, {}};
    const Result<CallForm> form = choose_form(**mechanism, &inputs, request);
    if (!form) return form.error();
    Result<CallTypes> types = choose_types(**mechanism, inputs, request, *form);
    if (!types) return types.error();
    request.types = *types;
    const Result<ForwardInputs> converted = convert_inputs(**mechanism, inputs, *types);
    if (!converted) return converted.error();
    return build_call(*mechanism, *converted, request, *form, machine->pool->workers());
}

Result<void> AttentionService::set_projections(const ForwardInputs& like, const ForwardOptions& options) {
    const Result<MechanismPtr> mechanism = state_->registry.snapshot()->get(options.mechanism, "projections");
    if (!mechanism) return mechanism.error();
    const std::string place = (*mechanism)->qualified_name();
    if (like.weights.empty()) {
        const std::scoped_lock lock(state_->projections_mutex);
        state_->projections.erase(place);
        state_->keeps_projections = !state_->projections.empty();
        return {};
    }
    const Result<std::optional<ForwardInputs>> changed = state_->with_projections(like, options);
    if (!changed) return changed.error();
    const ForwardInputs& call = *changed ? **changed : like;
    if (const auto plan = state_->plan_of(call, options); !plan) return plan.error();
    Result<NamedTensors> own = copied(call.weights);
    if (!own) return own.error();
    const std::scoped_lock lock(state_->projections_mutex);
    state_->projections[place] = std::make_shared<const NamedTensors>(std::move(*own));
    state_->keeps_projections = true;
    return {};
}

Result<NamedTensors> AttentionService::get_projections(const ForwardInputs& like, const ForwardOptions& options) {
    const Result<std::optional<ForwardInputs>> changed = state_->with_projections(like, options);
    if (!changed) return changed.error();
    const auto plan = state_->plan_of(*changed ? **changed : like, options);
    if (!plan) return plan.error();
    return copied((*plan)->weights);
}

Result<std::int64_t> AttentionService::param_count(const ForwardInputs& like, const ForwardOptions& options) {
    const Result<std::optional<ForwardInputs>> changed = state_->with_projections(like, options);
    if (!changed) return changed.error();
    const auto plan = state_->plan_of(*changed ? **changed : like, options);
    if (!plan) return plan.error();
    std::int64_t count = 0;
    for (const auto& [name, tensor] : (*plan)->weights) count += tensor.size();
    return count;
}

Json ForwardResult::options() const { return plan ? options_in_force(*plan->mechanism, plan->values) : Json::object(); }

Result<void> AttentionService::visit_pattern(const std::string& mechanism, const CallSizes& sizes,
                                             const NamedValues& options, const PatternRows& rows,
                                             const PatternVisitor& visit) const {
    Result<MechanismPtr> found = state_->registry.snapshot()->get(mechanism, "pattern");
    if (!found) return found.error();
    if (rows.head < 0 || rows.head >= sizes.heads || rows.first < 0 || rows.count < 0 || rows.at_once < 0 ||
        rows.first + rows.count > sizes.q_len)
        return Error{ErrorCode::shape,
                     "pattern: rows " + std::to_string(rows.first) + " to " + std::to_string(rows.first + rows.count) +
                         " of head " + std::to_string(rows.head) + "; accepted: rows up to " +
                         std::to_string(sizes.q_len) + " of heads below " + std::to_string(sizes.heads),
                     ""};
    const SizeRequest request{sizes.batch,  sizes.heads,    sizes.kv_heads, sizes.q_len,
                              sizes.kv_len, sizes.head_dim, sizes.head_dim};
    return attend::visit_pattern(*found, request, options, rows, visit);
}

std::shared_ptr<const RegistrySnapshot> AttentionService::registry() const { return state_->registry.snapshot(); }
const std::vector<PluginReport>& AttentionService::plugin_reports() const { return state_->loader->reports(); }
const std::vector<SearchedDir>& AttentionService::searched_dirs() const { return state_->loader->searched(); }
const CpuFacts& AttentionService::cpu() const { return state_->machine->facts; }
std::uint64_t AttentionService::isa() const { return state_->machine->isa; }
std::uint32_t AttentionService::threads() const { return state_->machine->pool->workers(); }
Config AttentionService::config() const { return *state_->now().config; }
AttentionService::PlanCacheFacts AttentionService::plan_cache() const { return state_->plans.facts(); }
AttentionService::ResultCacheFacts AttentionService::result_cache() const { return state_->results.facts(); }

}  // namespace attend
