// SPDX-License-Identifier: Apache-2.0
// What a mechanism means, in terms of an oracle. A spec says for a call (tensors and options) what must come out, which
// options are worth running, and which general properties do not hold and why. Specs share no code with the toolkit.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "attend/attention_service.hpp"
#include "oracle/dense.hpp"

namespace specs {

using attend::ForwardInputs;
using attend::Json;
using attend::NamedValues;
using attend::Tensor;

// A call in core form: tensors [B,H,N,D] and the options by name (defaults completed by the service).
struct Call {
    const ForwardInputs* inputs;
    Json options;  // in force, as the service reports them
    bool optional_given(const char* name) const { return options.find(name) != nullptr; }
    double number(const char* name, double otherwise) const {
        const Json* value = options.find(name);
        return value != nullptr && value->is_number() ? value->as_double() : otherwise;
    }
    bool flag(const char* name) const {
        const Json* value = options.find(name);
        return value != nullptr && value->is_bool() && value->as_bool();
    }
    std::string word(const char* name) const {
        const Json* value = options.find(name);
        return value != nullptr && value->is_string() ? value->as_string() : "";
    }
};

struct Expected {
    std::vector<double> o, lse, p;  // lse and p may be empty: not defined
};

struct Spec {
    std::string mechanism;
    std::function<Expected(const Call&)> oracle;
    std::vector<NamedValues> variants{};  // option sets to run; {} is always run
    bool masks{true};                     // takes mask and bias per pair
    bool key_masks{true};                 // takes masks per key
    bool lengths{true};
    bool gqa{true};
    std::int64_t kv_heads{0};             // key heads that it takes; 0: any that divide the query heads
    bool cross{true};                             // Nq != Nk
    bool causal{true};                            // takes causal = true
    std::map<std::string, std::string> exempt{};  // property -> reason
    double tolerance{3e-6};                       // of max |V|, unit-scale inputs
};

// Registers at start-up; the property suite looks specs up by name and fails for a mechanism without one.
const std::vector<Spec>& all();
void add(Spec spec);
struct Registration {
    explicit Registration(Spec spec) { add(std::move(spec)); }
};

// The dense problem that belongs to a core call: tensors, scale, softcap, dropout, mask, bias, lengths. `pattern` is
// what the mechanism itself sees; causal and window of the common rules come with it if `common` is set.
struct Place {
    std::int64_t b, h, i, j;
    std::int64_t position;  // of the query on the key axis
};
Expected dense(const Call& call, const std::function<bool(const Place&)>& pattern, bool common_causal,
               bool common_window);

// Position offset of an item: explicit, top-left, per item from both lengths, or Nk - Nq.
std::int64_t offset_of(const Call& call, std::int64_t item);
std::int64_t length_of(const std::optional<Tensor>& lengths, std::int64_t item, std::int64_t extent);

}  // namespace specs
