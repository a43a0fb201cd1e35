// SPDX-License-Identifier: Apache-2.0
// What a mechanism means, in terms of an oracle. A spec says for a call (tensors and options) what must come out, which
// options are worth running, and which general properties do not hold and why. Specs share no code with the toolkit.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <random>
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

// Seeded numbers for what a spec adds to a call.
struct Numbers {
    std::mt19937_64 engine;
    explicit Numbers(std::uint64_t seed) : engine(seed) {}
    std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(engine() % static_cast<std::uint64_t>(n)); }
    Tensor normal(std::vector<std::int64_t> shape) {
        Tensor tensor = Tensor::allocate(attend::DType::f32, std::move(shape)).value();
        std::normal_distribution<float> draw;
        for (std::int64_t at = 0; at < tensor.size(); ++at) tensor.as<float>()[at] = draw(engine);
        return tensor;
    }
};

struct Spec {
    std::string mechanism;
    std::function<Expected(const Call&)> oracle;
    std::vector<NamedValues> variants{};  // option sets to run; {} is always run
    bool masks{true};                     // takes mask and bias per pair
    bool key_masks{true};                 // takes masks per key
    bool biases{true};                    // takes what it takes as masks as biases, too
    bool lengths{true};
    bool gqa{true};
    std::int64_t kv_heads{0};                     // key heads that it takes; 0: any that divide the query heads
    bool cross{true};                             // Nq != Nk
    bool causal{true};                            // takes causal = true
    bool rows_on_axis{false};                     // positions of queries must be positions of keys
    bool own_window{false};                       // window options are the mechanism's own: variants set them
    bool odd_width{true};                         // takes an odd head width
    bool adds_token{false};                       // adds the query to its result unless residual is false
    std::map<std::string, std::string> exempt{};  // property -> reason
    double tolerance{3e-6};                       // of max |V|, unit-scale inputs
    // Adds inputs without which there is no call: a graph.
    std::function<void(ForwardInputs& inputs)> needs{};
    // Adds the mechanism's own inputs and weights to a call that is compared with the oracle.
    std::function<void(ForwardInputs& inputs, const NamedValues& options, Numbers& numbers)> more{};
    std::int64_t maps{1};  // query and key have so many times the heads of output and value
    std::function<bool(const NamedValues& options)> has_lse{};  // empty: whenever the capability says so
    // Whether options may meet so many queries and keys; empty: always.
    std::function<bool(const NamedValues& options, std::int64_t nq, std::int64_t nk)> fits{};
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
// The same before it is computed, for specs that change some of it. It refers to `call`.
oracle::Dense problem_of(const Call& call, std::function<bool(const Place&)> pattern, bool common_causal,
                         bool common_window);
Expected solved(const oracle::Dense& problem);
inline bool everywhere(const Place&) { return true; }

// Whether the common rules show a pair: lengths, mask, and causal and window where the mechanism has them.
bool common_visible(const Call& call, const Place& at, bool causal, bool window);
// The bias of a pair, 0 without one; minus infinity hides.
double bias_at(const Call& call, const Place& at);
// What dropout multiplies a weight by; row_head is the batch index times the heads that draw, plus the head.
double dropout_at(const Call& call, std::int64_t row_head, std::int64_t i, std::int64_t j);
// A weight without gaps: that of the call, or else uniform in [-bound, bound) as its seeded initialiser says, under the name
// "<mechanism>/<weight>" of the weights table.
std::vector<double> weight_of(const Call& call, const std::string& name, const std::string& seeded_name,
                              std::size_t count, double bound);

// Position offset of an item: explicit, top-left, per item from both lengths, or Nk - Nq.
std::int64_t offset_of(const Call& call, std::int64_t item);
std::int64_t length_of(const std::optional<Tensor>& lengths, std::int64_t item, std::int64_t extent);

}  // namespace specs
