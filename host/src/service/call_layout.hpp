// SPDX-License-Identifier: Apache-2.0
// First half of building a call: tensors laid out as the ports want them, sizes solved.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "attend/config/names.hpp"
#include "service/call_form.hpp"

namespace attend {

using Shape = std::vector<std::int64_t>;

// What a request comes to for one mechanism. Errors name the mechanism, the tensor or option, and what is accepted.
class CallLayout {
protected:
    CallLayout(const MechanismPtr& mechanism, const CallRequest& request, CallForm form)
        : mechanism_(mechanism), request_(request), plan_(new CallPlan()), projected_(form.projected) {
        plan_->mechanism = mechanism;
        plan_->values = std::move(form.values);
        scope_.specs = &mechanism->options;
        scope_.values = &plan_->values;
        for (const PortRecord& port : mechanism_->ports)
            if (port.flags & ATTEND_INPUT) scope_.inputs[port.name] = false;
    }

    Error fail(ErrorCode code, const std::string& what) const { return {code, mechanism_->name + ": " + what, ""}; }

    std::optional<double> option_number(std::string_view name) const {
        const OptionValue* value = scope_.option(name);
        if (value == nullptr) return std::nullopt;
        PortScope only;
        only.values = scope_.values;
        return only.number(name);
    }
    bool option_true(std::string_view name) const { return option_number(name).value_or(0.0) != 0.0; }
    bool option_given(std::string_view name) const {
        const OptionValue* value = scope_.option(name);
        return value != nullptr && value->given;
    }

    // ForwardInputs always has a query; one without extents and memory stands for none.
    static bool is_absent(const Tensor& query) { return query.data == nullptr && query.shape.empty(); }

    // One tensor of the request and the port that takes it.
    Result<void> add_input(const PortRecord& port, Source source, std::size_t index, const Tensor& tensor) {
        BoundInput bound{&port, source, index, tensor.dtype, tensor.shape, tensor.strides};
        const DTypeBit* row = find_dtype(tensor.dtype);
        if (row == nullptr || (port.dtypes & row->bit) == 0)
            return fail(ErrorCode::dtype, port.name + " has data type " + dtype_name(tensor.dtype) +
                                              "; accepted: " + port_dtypes(port.dtypes));
        plan_->inputs.push_back(std::move(bound));
        return {};
    }

    const PortRecord* port_of_role(std::uint32_t role) const {
        const auto found = std::find_if(mechanism_->ports.begin(), mechanism_->ports.end(),
                                        [role](const PortRecord& port) { return port.role == role; });
        return found == mechanism_->ports.end() ? nullptr : &*found;
    }

    Result<void> lay_out(const ForwardInputs& inputs) {
        struct Given {
            std::uint32_t role;
            const char* name;
            Source source;
            const Tensor* tensor;
        };
        const auto pointer = [](const std::optional<Tensor>& tensor) { return tensor ? &*tensor : nullptr; };
        const Given given[] = {
            {ATTEND_Q, "query", Source::query, is_absent(inputs.query) ? nullptr : &inputs.query},
            {ATTEND_K, "key", Source::key, pointer(inputs.key)},
            {ATTEND_V, "value", Source::value, pointer(inputs.value)},
            {ATTEND_MASK, "mask", Source::mask, pointer(inputs.mask)},
            {ATTEND_BIAS, "bias", Source::bias, pointer(inputs.bias)},
            {ATTEND_Q_LENGTHS, "query_lengths", Source::query_lengths, pointer(inputs.query_lengths)},
            {ATTEND_K_LENGTHS, "key_lengths", Source::key_lengths, pointer(inputs.key_lengths)}};
        for (const Given& entry : given)
            if (entry.tensor != nullptr) scope_.inputs[entry.name] = true;
        for (const auto& [name, tensor] : inputs.extra) scope_.inputs[fold_name(name)] = true;
        for (const Given& entry : given) {
            const PortRecord* port = port_of_role(entry.role);
            if (port == nullptr && entry.role <= ATTEND_V) {
                // Not read by the mechanism, but sizes come from it all the same.
                if (auto done = size_up(entry.role, entry.source,
                                        entry.tensor != nullptr                ? *entry.tensor
                                        : inputs.key && entry.role == ATTEND_V ? *inputs.key
                                                                               : inputs.query);
                    !done)
                    return done;
                continue;
            }
            const ShapeAlternative* shape = port == nullptr ? nullptr : chosen(*port);
            if (shape == nullptr) {
                if (entry.tensor == nullptr || entry.source == Source::query) continue;
                return fail(ErrorCode::unsupported, std::string(entry.name) + " is not taken" +
                                                        (port == nullptr ? "" : " in this form or mode"));
            }
            const Tensor* tensor = entry.tensor;
            Source source = entry.source;
            // Absent values are the keys, absent keys the queries, where the ports say so.
            std::string stands_in = tensor == nullptr ? port->init : std::string();
            if (stands_in == "key") {
                const PortRecord* key = port_of_role(ATTEND_K);
                if (inputs.key)
                    tensor = &*inputs.key, source = Source::key;
                else
                    stands_in = key != nullptr ? key->init : "query";
            }
            if (stands_in == "query" && !is_absent(inputs.query)) tensor = &inputs.query, source = Source::query;
            if (tensor == nullptr) {
                if (port->flags & ATTEND_OPTIONAL) continue;
                return fail(ErrorCode::shape,
                            std::string(entry.name) + " is missing; accepted: a tensor [" + shape->text + "]");
            }
            if (auto done = add_input(*port, source, 0, *tensor); !done) return done;
            if (shape->broadcast) {
                if (auto done = align_broadcast(plan_->inputs.back()); !done) return done;
            } else if (entry.role <= ATTEND_V) {
                const ShapeAlternative* fitting = chosen(*port, tensor->shape.size());
                if (auto done = align_rank(plan_->inputs.back(), fitting->dims.size(), entry.role == ATTEND_Q); !done)
                    return done;
            }
        }
        for (std::size_t index = 0; index < inputs.extra.size(); ++index) {
            const std::string name = fold_name(inputs.extra[index].first);
            const PortRecord* port = mechanism_->find_port(name);
            if (port == nullptr || (port->flags & ATTEND_INPUT) == 0 || port->role != 0) {
                std::vector<std::string> known;
                for (const PortRecord& record : mechanism_->ports)
                    if ((record.flags & ATTEND_INPUT) && record.role == 0) known.push_back(record.name);
                return fail(ErrorCode::not_found, "unknown input \"" + inputs.extra[index].first + "\"" +
                                                      did_you_mean(name, known) + "; accepted: " + join_names(known));
            }
            if (chosen(*port) == nullptr)
                return fail(ErrorCode::unsupported, "input \"" + name +
                                                        "\" is not taken in this form or mode; accepted: a call "
                                                        "without it, or the form or mode that reads it");
            if (auto done = add_input(*port, Source::extra, index, inputs.extra[index].second); !done) return done;
        }
        for (const PortRecord& port : mechanism_->ports) {
            if ((port.flags & ATTEND_INPUT) == 0 || (port.flags & ATTEND_OPTIONAL) || port.role != 0 ||
                chosen(port) == nullptr)
                continue;
            if (std::none_of(plan_->inputs.begin(), plan_->inputs.end(),
                             [&](const BoundInput& bound) { return bound.port == &port; }))
                return fail(ErrorCode::shape,
                            "input \"" + port.name + "\" is missing; accepted: a tensor [" + chosen(port)->text + "]");
        }
        return {};
    }

    // Tensors of the usual three for which the mechanism has no port.
    Result<void> size_up(std::uint32_t role, Source source, const Tensor& tensor) {
        static const PortRecord usual[] = {{"query", "B,Hq,Nq,D", "", "", ATTEND_Q, ATTEND_INPUT, 0, ATTEND_F32},
                                           {"key", "B,Hkv,Nk,D", "", "", ATTEND_K, ATTEND_INPUT, 0, ATTEND_F32},
                                           {"value", "B,Hkv,Nk,Dv", "", "", ATTEND_V, ATTEND_INPUT, 0, ATTEND_F32}};
        sized_.push_back({&usual[role - ATTEND_Q], source, 0, tensor.dtype, tensor.shape, tensor.strides});
        return align_rank(sized_.back(), 4, role == ATTEND_Q);
    }

    const ShapeAlternative* chosen(const PortRecord& port, std::optional<std::size_t> rank = std::nullopt) {
        auto [at, fresh] = shapes_.try_emplace(&port);
        if (fresh)
            if (Result<PortShape> parsed = PortShape::parse(port.shape)) at->second = std::move(*parsed);
        return at->second.choose(scope_, rank);
    }

    // [N,D] and [D] are promoted; rank 3 where rank 4 is wanted is packed [B,N,H*D].
    Result<void> align_rank(BoundInput& bound, std::size_t wanted, bool is_query) {
        const std::size_t rank = bound.shape.size();
        if (is_query) query_rank_ = rank;
        const std::string& name = bound.port->name;
        const auto prepend = [&](std::size_t axes) {
            bound.shape.insert(bound.shape.begin(), axes, 1);
            bound.strides.insert(bound.strides.begin(), axes, 0);
        };
        if (rank == wanted) return {};
        if (wanted == 4 && (rank == 2 || rank == 1)) {
            prepend(4 - rank);
            return {};
        }
        if (wanted == 3 && rank == 2) {
            if (const ShapeAlternative* query = chosen(*bound.port); query != nullptr && query->text.starts_with("N")) {
                bound.shape.insert(bound.shape.begin() + 1, 1);  // [N, B, E]
                bound.strides.insert(bound.strides.begin() + 1, 0);
            } else {
                prepend(1);
            }
            return {};
        }
        if (wanted == 4 && rank == 3) {
            // A default number of heads counts for packed tensors only where heads mean nothing else.
            const bool may_default = !has_forms(*mechanism_);
            const auto option_heads = [&](const char* option) {
                return may_default || option_given(option)
                           ? static_cast<std::int64_t>(option_number(option).value_or(0))
                           : 0;
            };
            std::int64_t heads = request_.heads > 0 ? request_.heads : option_heads("heads");
            if (heads <= 0)
                return fail(
                    ErrorCode::shape,
                    name + " " + shape_text(bound.shape) +
                        " has rank 3: packed [B,N,H*D], which needs heads; accepted: heads given, or rank 4 [B,H,N,D]");
            if (!is_query) {
                const std::int64_t kv = request_.kv_heads > 0 ? request_.kv_heads : option_heads("kv_heads");
                if (kv > 0) heads = kv;
            }
            if (bound.shape[2] % heads != 0)
                return fail(ErrorCode::shape, name + " has width " + std::to_string(bound.shape[2]) +
                                                  ", which is not a multiple of " + std::to_string(heads) +
                                                  " heads; accepted: a width that the number of heads divides");
            if (is_query) packed_ = true;
            const std::int64_t width = bound.shape[2] / heads, step = bound.strides[2];
            bound.shape = {bound.shape[0], heads, bound.shape[1], width};
            bound.strides = {bound.strides[0], width * step, bound.strides[1], step};
            return {};
        }
        return fail(ErrorCode::shape, name + " " + shape_text(bound.shape) + " has rank " + std::to_string(rank) +
                                          "; accepted: " +
                                          (wanted == 4   ? "[B,H,N,D], packed [B,N,H*D] with heads, [N,D] or [D]"
                                           : wanted == 3 ? "[" + chosen(*bound.port)->text + "] or [N,E]"
                                                         : "rank " + std::to_string(wanted)));
    }

    // Masks and biases: rank 4 with extents 1 or full; rank 3 is [B,Nq,Nk].
    Result<void> align_broadcast(BoundInput& bound) {
        const std::size_t rank = bound.shape.size();
        if (rank > 4 || rank == 0)
            return fail(ErrorCode::mask, bound.port->name + " " + shape_text(bound.shape) + " has rank " +
                                             std::to_string(rank) + "; accepted: broadcastable to [B,H,Nq,Nk]");
        if (rank == 3) {
            bound.shape.insert(bound.shape.begin() + 1, 1);
            bound.strides.insert(bound.strides.begin() + 1, 0);
        } else {
            bound.shape.insert(bound.shape.begin(), 4 - rank, 1);
            bound.strides.insert(bound.strides.begin(), 4 - rank, 0);
        }
        return {};
    }

    Result<void> solve_inputs(const ForwardInputs&) {
        const PortRecord* query_port = port_of_role(ATTEND_Q);
        const bool own_sizes = query_port != nullptr && (query_port->flags & ATTEND_OPTIONAL) != 0;
        if (projected_ && !own_sizes) {
            const auto query = std::find_if(plan_->inputs.begin(), plan_->inputs.end(),
                                            [](const BoundInput& bound) { return bound.port->role == ATTEND_Q; });
            const std::int64_t width = query->shape.back();
            const std::optional<double> heads = option_number("heads");
            if (!heads)
                return fail(ErrorCode::option,
                            "option \"heads\" is not given; accepted: an integer of 1 or more (required in the "
                            "projected form)");
            scope_.symbols["Hq"] = *heads;
            const double kv = option_number("kv_heads").value_or(*heads);
            scope_.symbols["Hkv"] = kv;
            if (static_cast<std::int64_t>(*heads) % static_cast<std::int64_t>(kv) != 0)
                return fail(ErrorCode::shape, "num_q_heads " + std::to_string(static_cast<std::int64_t>(*heads)) +
                                                  " is not a multiple of num_kv_heads " +
                                                  std::to_string(static_cast<std::int64_t>(kv)) +
                                                  "; accepted: key heads that divide the query heads");
            const std::optional<double> head_dim = option_number("head_dim");
            if (!head_dim && (width == 0 || width % static_cast<std::int64_t>(*heads) != 0))
                return fail(ErrorCode::shape, "the width of query is " + std::to_string(width) +
                                                  ", which is not a multiple of heads " +
                                                  std::to_string(static_cast<std::int64_t>(*heads)) +
                                                  (mechanism_->find_option("head_dim") != nullptr
                                                       ? "; accepted: head_dim given, or a width that heads divides"
                                                       : "; accepted: a width that heads divides"));
            scope_.symbols["D"] = head_dim.value_or(static_cast<double>(width) / *heads);
            scope_.symbols["Dv"] = scope_.symbols["D"];
        }
        for (const BoundInput& bound : sized_)
            if (auto done = match(bound.port->name, bound.shape, *chosen(*bound.port), ErrorCode::shape); !done)
                return done;
        for (const BoundInput& bound : plan_->inputs) {
            const ShapeAlternative& wanted = *chosen(*bound.port, bound.shape.size());
            if (wanted.broadcast) continue;
            if (auto done = match(bound.port->name, bound.shape, wanted, ErrorCode::shape); !done) return done;
        }
        const auto number = [&](const char* name) {
            const auto at = scope_.symbols.find(name);
            return at == scope_.symbols.end() ? std::optional<double>() : at->second;
        };
        if (!number("Nk") && number("T") && number("n"))
            scope_.symbols["Nk"] = *number("T") * *number("n");
        else if (!number("Nk") && number("Nq"))
            scope_.symbols["Nk"] = *number("Nq") + number("Np").value_or(0);
        if (!projected_ && own_sizes && !number("Hq"))
            if (const std::optional<double> heads = option_number("heads")) scope_.symbols["Hq"] = *heads;
        return {};
    }

    Result<void> check_broadcasts() {
        for (const BoundInput& bound : plan_->inputs) {
            const ShapeAlternative& wanted = *chosen(*bound.port);
            if (!wanted.broadcast) continue;
            for (std::size_t axis = 0; axis < 4; ++axis) {
                const auto full = static_cast<std::int64_t>(wanted.dims[axis].evaluate(scope_).value_or(-1));
                if (bound.shape[axis] != 1 && bound.shape[axis] != full)
                    return fail(ErrorCode::mask, bound.port->name + " " + shape_text(bound.shape) + " has " +
                                                     std::to_string(bound.shape[axis]) + " at axis " +
                                                     wanted.dims[axis].text() + "; accepted: 1 or " +
                                                     std::to_string(full) + " (broadcastable to [B,H,Nq,Nk])");
            }
        }
        return {};
    }

    Result<void> match(const std::string& name, const Shape& shape, const ShapeAlternative& wanted, ErrorCode code) {
        if (shape.size() != wanted.dims.size())
            return fail(code, name + " " + shape_text(shape) + " has rank " + std::to_string(shape.size()) +
                                  "; accepted: [" + wanted.text + "]");
        // Plain names first: an extent such as 2*E may come before the E that binds it.
        for (std::size_t axis = 0; axis < shape.size(); ++axis)
            if (!wanted.dims[axis].evaluate(scope_, true))
                if (const auto symbol = wanted.dims[axis].bindable(scope_))
                    scope_.symbols[*symbol] = static_cast<double>(shape[axis]);
        for (std::size_t axis = 0; axis < shape.size(); ++axis) {
            const Expression& dim = wanted.dims[axis];
            if (const auto expected = dim.evaluate(scope_, true)) {
                if (static_cast<double>(shape[axis]) != *expected)
                    return fail(code, name + " " + shape_text(shape) + " has " + std::to_string(shape[axis]) +
                                          " at axis " + std::to_string(axis) +
                                          "; accepted: " + std::to_string(static_cast<std::int64_t>(*expected)) + " (" +
                                          dim.text() + " of [" + wanted.text + "])");
            } else if (const auto symbol = dim.bindable(scope_)) {
                scope_.symbols[*symbol] = static_cast<double>(shape[axis]);
            } else {
                return fail(code, name + ": the extent " + dim.text() + " has no value here");
            }
        }
        return {};
    }

    MechanismPtr mechanism_;
    const CallRequest& request_;
    std::shared_ptr<CallPlan> plan_;
    PortScope scope_;
    std::size_t query_rank_{4};
    bool projected_{false}, packed_{false};

private:
    std::map<const PortRecord*, PortShape> shapes_;
    std::vector<BoundInput> sized_;
};

}  // namespace attend
