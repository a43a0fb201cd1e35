// SPDX-License-Identifier: Apache-2.0
// The plan description of a call: its sizes, what the host resolves of its options, and the options as the ABI has them.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <utility>

#include "service/call_layout.hpp"

namespace attend {

class CallDescription : protected CallLayout {
protected:
    using CallLayout::CallLayout;

    // Of a call that has no tensors.
    Result<void> describe_sizes(const SizeRequest& sizes, std::uint32_t max_workers) {
        for (const auto& [name, value] :
             std::initializer_list<std::pair<const char*, std::int64_t>>{{"B", sizes.batch},
                                                                         {"Hq", sizes.heads},
                                                                         {"Hkv", sizes.kv_heads},
                                                                         {"Nq", sizes.q_len},
                                                                         {"Nk", sizes.kv_len},
                                                                         {"D", sizes.head_dim},
                                                                         {"Dv", sizes.value_dim}})
            scope_.symbols[name] = static_cast<double>(value);
        return describe(max_workers);
    }

    std::int64_t size_of(const char* symbol, std::int64_t otherwise) const {
        const auto at = scope_.symbols.find(symbol);
        return at == scope_.symbols.end() ? otherwise : static_cast<std::int64_t>(at->second);
    }

    // The plan description: sizes, and the options that the host resolves.
    Result<void> describe(std::uint32_t max_workers) {
        attend_plan_desc& desc = plan_->desc;
        desc.struct_size = sizeof desc;
        desc.batch = size_of("B", 1);
        desc.num_q_heads = size_of("Hq", size_of("Hkv", 1));
        desc.num_kv_heads = size_of("Hkv", desc.num_q_heads);
        desc.q_len = size_of("Nq", 0);
        desc.kv_len = size_of("Nk", desc.q_len);
        desc.head_dim = size_of("D", 1);
        desc.value_dim = size_of("Dv", desc.head_dim);
        if (desc.num_q_heads < 1 || desc.num_kv_heads < 1)
            return fail(ErrorCode::shape, "a tensor has no heads; accepted: at least one");
        if (desc.head_dim < 1 || desc.value_dim < 1)
            return fail(ErrorCode::shape, "the head width is " +
                                              std::to_string(std::min(desc.head_dim, desc.value_dim)) +
                                              "; accepted: at least 1");
        if (desc.num_q_heads % desc.num_kv_heads != 0)
            return fail(ErrorCode::shape,
                        "num_q_heads " + std::to_string(desc.num_q_heads) + " is not a multiple of num_kv_heads " +
                            std::to_string(desc.num_kv_heads) + "; accepted: key heads that divide the query heads");
        plan_->types = request_.types;
        desc.io_dtype = static_cast<std::uint32_t>(find_dtype(request_.types.query)->bit);
        desc.acc_dtype = static_cast<std::uint32_t>(ATTEND_F32);
        desc.max_workers = max_workers;
        desc.flags = ATTEND_PLAN_DETERMINISTIC;
        const bool causal = option_true("causal");
        if (causal) desc.flags |= ATTEND_PLAN_CAUSAL;
        const bool top_left = [&] {
            const OptionValue* alignment = scope_.option("causal_alignment");
            return alignment != nullptr && std::holds_alternative<std::int64_t>(alignment->value) &&
                   std::get<std::int64_t>(alignment->value) == 1;
        }();
        const std::optional<double> offset = option_number("causal_offset");
        desc.causal_offset = offset ? static_cast<std::int64_t>(*offset) : top_left ? 0 : desc.kv_len - desc.q_len;
        const auto is_bound = [&](std::uint32_t role) {
            return std::any_of(plan_->inputs.begin(), plan_->inputs.end(),
                               [role](const BoundInput& bound) { return bound.port->role == role; });
        };
        if (!offset && !top_left && is_bound(ATTEND_Q_LENGTHS) && is_bound(ATTEND_K_LENGTHS))
            desc.flags |= ATTEND_PLAN_OFFSET_PER_ITEM;
        desc.window_left = static_cast<std::int64_t>(option_number("window_left").value_or(-1));
        desc.window_right = static_cast<std::int64_t>(option_number("window_right").value_or(-1));
        const auto window = static_cast<std::int64_t>(option_number("window_size").value_or(0));
        if (desc.window_left < 0 && desc.window_right < 0 && window > 0) {
            desc.window_left = window;
            desc.window_right = causal ? 0 : window;
        }
        desc.scale = option_number("scale").value_or(0.0);
        desc.softcap = option_number("softcap").value_or(0.0);
        desc.dropout = option_number("dropout").value_or(0.0);
        const auto bits = [&](const char* name) {
            const OptionValue* value = scope_.option(name);
            return value != nullptr && std::holds_alternative<std::int64_t>(value->value)
                       ? static_cast<std::uint64_t>(std::get<std::int64_t>(value->value))
                       : 0u;
        };
        plan_->seed = bits("seed");
        plan_->rng_offset = bits("rng_offset");
        weight_seed_ = bits("weight_seed");
        want_lse_ = request_.lse || option_true("return_lse");
        if (want_lse_) desc.flags |= ATTEND_PLAN_NEED_LSE;
        if (request_.scores) desc.flags |= ATTEND_PLAN_NEED_SCORES;
        return {};
    }

    std::vector<attend_value> abi_values() const {
        static constexpr std::uint32_t types[] = {0,
                                                  ATTEND_TYPE_BOOL,
                                                  ATTEND_TYPE_INT,
                                                  ATTEND_TYPE_FLOAT,
                                                  ATTEND_TYPE_STRING,
                                                  ATTEND_TYPE_ENUM,
                                                  ATTEND_TYPE_INT_LIST,
                                                  ATTEND_TYPE_FLOAT_LIST};
        std::vector<attend_value> values;
        for (std::size_t at = 0; at < mechanism_->own_options; ++at) {  // the host's own come behind, and stay here
            const OptionValue& from = plan_->values[at];
            attend_value to{};
            to.struct_size = sizeof to;
            to.type = types[static_cast<std::size_t>(from.type)];
            to.name = mechanism_->options[at].name.c_str();
            to.flags = (from.given ? ATTEND_VALUE_GIVEN : 0) | (from.scalar ? ATTEND_VALUE_SCALAR : 0);
            if (const bool* flag = std::get_if<bool>(&from.value))
                to.u.i = *flag ? 1 : 0;
            else if (const auto* integer = std::get_if<std::int64_t>(&from.value))
                to.u.i = *integer;
            else if (const double* real = std::get_if<double>(&from.value))
                to.u.f = *real;
            else if (const auto* text = std::get_if<std::string>(&from.value))
                to.u.s = text->c_str(), to.count = static_cast<std::uint32_t>(text->size());
            else if (const auto* integers = std::get_if<std::vector<std::int64_t>>(&from.value))
                to.u.is = integers->data(), to.count = static_cast<std::uint32_t>(integers->size());
            else if (const auto* reals = std::get_if<std::vector<double>>(&from.value))
                to.u.fs = reals->data(), to.count = static_cast<std::uint32_t>(reals->size());
            values.push_back(to);
        }
        return values;
    }

    bool want_lse_{false};
    std::uint64_t weight_seed_{};
};

}  // namespace attend
