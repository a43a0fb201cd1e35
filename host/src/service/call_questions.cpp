// SPDX-License-Identifier: Apache-2.0
// Questions about calls that have sizes and no tensors: what they would cost, and which keys their rows would read.
#include <array>
#include <limits>

#include "service/call_description.hpp"
#include "service/status.hpp"

namespace attend {
namespace {

class CallQuestions : private CallDescription {
public:
    CallQuestions(const MechanismPtr& mechanism, const CallRequest& request, const CallForm& form)
        : CallDescription(mechanism, request, form) {}

    Result<void> visit_pattern(const SizeRequest& sizes, const PatternRows& rows, const PatternVisitor& visit) {
        if (auto done = describe_sizes(sizes, 1); !done) return done.error();
        const attend_mechanism& functions = *mechanism_->functions;
        const auto* pattern = functions.get_extension == nullptr
                                  ? nullptr
                                  : static_cast<const attend_pattern_extension*>(
                                        functions.get_extension(mechanism_->lib, ATTEND_EXT_PATTERN));
        if (pattern == nullptr || pattern->struct_size < sizeof *pattern || pattern->visit == nullptr)
            return Error{ErrorCode::unsupported,
                         mechanism_->name +
                             ": has no key pattern to show; accepted: a mechanism that chooses its keys by position",
                         "those of category sparse do"};
        std::array<char, 512> text{};
        attend_error error{sizeof error, text.size(), ATTEND_OK, 0, text.data(), nullptr};
        std::vector<attend_value> values = abi_values();
        plan_->desc.options = {values.data(), static_cast<std::uint32_t>(values.size()), sizeof(attend_value)};
        // What a plugin says is used to address memory: ranges outside the call go no further.
        struct Bounds {
            const PatternRows& asked;
            std::int64_t keys;
            const PatternVisitor& next;
            bool strayed;
        } bounds{rows, sizes.kv_len, visit, false};
        const attend_status status = pattern->visit(
            mechanism_->lib, &plan_->desc, rows.head, rows.first, rows.count, rows.at_once,
            [](void* visitor, int64_t first, int64_t count, const attend_pattern_keys* keys) noexcept {
                Bounds& self = *static_cast<Bounds*>(visitor);
                const std::int64_t end = self.asked.first + self.asked.count;
                if (first < self.asked.first || first >= end || count < 1 || count > end - first || keys == nullptr ||
                    keys->step < 1 || keys->begin < 0 || keys->end > self.keys) {
                    self.strayed = true;
                    return;
                }
                self.next(
                    {first, count, keys->begin, keys->end, keys->step, (keys->flags & ATTEND_PATTERN_PARTIAL) != 0});
            },
            &bounds, &error);
        if (status != ATTEND_OK) return plugin_error(*mechanism_, status, text.data());
        if (bounds.strayed)
            return Error{ErrorCode::plugin,
                         mechanism_->name +
                             ": its key pattern names rows or keys outside the call; accepted: rows that were "
                             "asked for, keys up to " +
                             std::to_string(sizes.kv_len),
                         ""};
        return {};
    }

    Result<Estimate> estimate(const SizeRequest& sizes, std::uint32_t max_workers) {
        if (auto done = describe_sizes(sizes, max_workers); !done) return done.error();
        if (sizes.lse) plan_->desc.flags |= ATTEND_PLAN_NEED_LSE;
        if (sizes.scores) plan_->desc.flags |= ATTEND_PLAN_NEED_SCORES;
        // A request says that it has a mask, not of which kind, so the general one is assumed: per pair, for all heads alike.
        const Shape pairs{sizes.batch, 1, sizes.q_len, sizes.kv_len}, pair_strides = compact_strides(pairs);
        std::array<CallTensor, 2> given;
        std::vector<attend_binding> bindings;
        given[0].describe(pairs, pair_strides, DType::u8, nullptr);
        given[1].describe(pairs, pair_strides, DType::f32, nullptr);
        if (sizes.mask) bindings.push_back({sizeof(attend_binding), ATTEND_MASK, "mask", &given[0].tensor});
        if (sizes.bias) bindings.push_back({sizeof(attend_binding), ATTEND_BIAS, "bias", &given[1].tensor});
        plan_->desc.bindings = {bindings.data(), static_cast<std::uint32_t>(bindings.size()), sizeof(attend_binding)};
        Estimate result;
        const attend_mechanism& functions = *mechanism_->functions;
        std::array<char, 512> text{};
        attend_error error{sizeof error, text.size(), ATTEND_OK, 0, text.data(), nullptr};
        std::vector<attend_value> values = abi_values();
        plan_->desc.options = {values.data(), static_cast<std::uint32_t>(values.size()), sizeof(attend_value)};
        if (functions.check != nullptr)
            if (const attend_status status = functions.check(mechanism_->lib, &plan_->desc, &error);
                status != ATTEND_OK)
                return plugin_error(*mechanism_, status, text.data());
        if (functions.get_extension != nullptr) {
            if (const auto* cost = static_cast<const attend_cost_extension*>(
                    functions.get_extension(mechanism_->lib, ATTEND_EXT_COST))) {
                attend_cost predicted{};
                predicted.struct_size = sizeof predicted;
                if (cost->predict(mechanism_->lib, &plan_->desc, &predicted) == ATTEND_OK) {
                    result.flops = predicted.flops;
                    result.bytes = predicted.bytes;
                    result.workspace = predicted.workspace_bytes;
                }
            }
        }
        result.error_bound = mechanism_->numerics == ATTEND_EXACT ? 0.0 : std::numeric_limits<double>::infinity();
        if (functions.get_extension != nullptr)
            if (const auto* tolerance = static_cast<const attend_tolerance_extension*>(
                    functions.get_extension(mechanism_->lib, ATTEND_EXT_TOLERANCE)))
                result.error_bound = tolerance->error_bound(mechanism_->lib, &plan_->desc);
        return result;
    }
};

}  // namespace

Result<Estimate> estimate_call(const MechanismPtr& mechanism, const SizeRequest& sizes, const NamedValues& options,
                               std::uint32_t max_workers) {
    CallRequest request;
    request.options = options;
    const Result<CallForm> form = choose_form(*mechanism, nullptr, request);
    if (!form) return form.error();
    return CallQuestions(mechanism, request, *form).estimate(sizes, max_workers);
}

Result<void> visit_pattern(const MechanismPtr& mechanism, const SizeRequest& sizes, const NamedValues& options,
                           const PatternRows& rows, const PatternVisitor& visit) {
    CallRequest request;
    request.options = options;
    const Result<CallForm> form = choose_form(*mechanism, nullptr, request);
    if (!form) return form.error();
    return CallQuestions(mechanism, request, *form).visit_pattern(sizes, rows, visit);
}

}  // namespace attend
