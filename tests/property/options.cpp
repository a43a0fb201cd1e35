// SPDX-License-Identifier: Apache-2.0
// No option is read and ignored. Beside every set of options that a spec lists, each further option, set to something other
// than its default, changes what comes out, or is refused, or is named by a warning.
#include <cstdlib>
#include <iostream>
#include <map>
#include <set>

#include "specs/inputs.hpp"
#include "support/calls.hpp"

namespace {

using namespace support;
using attend::ForwardInputs;
using attend::Json;
using attend::NamedValues;
using attend::OptionSpec;
using attend::OptionType;
using attend::Tensor;

bool lists(const NamedValues& options, const std::string& name) {
    for (const auto& [given, value] : options)
        if (given == name) return true;
    return false;
}

Json array(Json::Array items) { return Json(std::move(items)); }

// Values to try. Of numbers one must have an effect, of words and truth values each one.
std::vector<Json> candidates(const OptionSpec& option) {
    const auto is_default = [&](const Json& value) {
        return option.default_value && attend::write_json(*option.default_value) == attend::write_json(value);
    };
    std::vector<Json> list;
    const auto add = [&](Json value) {
        if (!is_default(value)) list.push_back(std::move(value));
    };
    switch (option.type) {
        case OptionType::boolean: add(true), add(false); break;
        case OptionType::enumeration:
            for (const std::string& choice : option.choices) add(choice);
            break;
        case OptionType::integer:
            for (const std::int64_t value : {3, 1, 2, 4, 5, 8, 16})
                if (static_cast<double>(value) >= option.min && static_cast<double>(value) <= option.max) add(value);
            break;
        case OptionType::real:
            for (const double value : {0.25, 0.75, 1.5, 3.0, 8.0, 20.0})
                if (value >= option.min && value <= option.max) add(value);
            break;
        case OptionType::integer_list:
            if (option.rows) {
                list.push_back(array({array({Json(1), Json(0)})}));
                list.push_back(array({array({Json(0), Json(2)})}));
            } else if (!option.choices.empty()) {
                for (const std::string& choice : option.choices) add(array({Json(choice.substr(0, choice.find('(')))}));
            } else {
                for (const std::int64_t value : {1, 2, 3, 4}) add(array({Json(value)}));
                add(array({Json(1), Json(3)}));
            }
            break;
        default: break;
    }
    return list;
}

struct Outcome {
    bool refused{false};
    std::string text;  // the error, or all warnings
    std::vector<std::vector<float>> numbers;
};

Outcome outcome(const ForwardInputs& inputs, const attend::MechanismRecord& mechanism, const NamedValues& options,
                bool lse) {
    attend::ForwardOptions call;
    call.mechanism = mechanism.name;
    call.options = options;
    call.lse = lse;
    const auto result = service("auto", 1).forward(inputs, call);
    Outcome out;
    out.refused = !result.ok();
    if (out.refused) {
        out.text = result.error().message;
        return out;
    }
    for (const std::string& warning : result->warnings) out.text += warning + "\n";
    out.numbers.push_back(values(result->output));
    if (result->lse) out.numbers.push_back(values(*result->lse));
    for (const auto& [name, tensor] : result->extra)
        if (tensor.dtype == attend::DType::f32) out.numbers.push_back(values(tensor));
    return out;
}

bool same(const Outcome& a, const Outcome& b) {
    if (a.numbers.size() != b.numbers.size()) return false;
    for (std::size_t at = 0; at < a.numbers.size(); ++at)
        if (a.numbers[at].size() != b.numbers[at].size() ||
            std::memcmp(a.numbers[at].data(), b.numbers[at].data(), a.numbers[at].size() * sizeof(float)) != 0)
            return false;
    return true;
}

// What may do nothing in a call that reads it, and why. mechanism "": any; beside: a part of the other options, as JSON.
struct Reason {
    const char *mechanism, *option, *beside, *why;
};
constexpr Reason reasons[] = {
    {"", "weight_seed", "", "the calls of a spec bring every weight"},
    {"", "window_right", "\"causal\":true", "keys to the right are hidden already"},
    {"alibi-mha", "window_right", "", "causal unless switched off, so that keys to the right are hidden already"},
    {"differential-attention", "window_right", "", "as alibi-mha"},
    {"flash-decoding", "window_right", "", "as alibi-mha"},
    {"memory-attention", "window_right", "", "as alibi-mha"},
    {"sparse-transformer-attention", "window_right", "", "as alibi-mha"},
    {"memory-attention", "local_causal", "\"causal\":false", "two names of one option"},
    {"memory-attention", "causal_alignment", "\"causal\":false", "positions count for causal rows and windows"},
    {"memory-attention", "causal_offset", "\"causal\":false", "positions count for causal rows and windows"},
    {"mixture-attention", "gate_mode", "[\"global\"]", "one pattern has all of the gate"},
    {"mixture-attention", "causal_alignment", "[\"global\"]", "one pattern that knows no positions"},
    {"mixture-attention", "causal_offset", "[\"global\"]", "one pattern that knows no positions"},
    {"rotary-mha", "scaling", "", "its factor is 1 unless given"},
    {"rotary-mha", "causal_alignment", "\"query_offset\"", "positions of the rotation are given"},
    {"rotary-mha", "causal_offset", "\"query_offset\"", "positions of the rotation are given"},
    {"bidirectional-self-attention", "zero_padded_queries", "{}", "lengths already leave padded queries zero"},
    {"disentangled-attention", "causal_alignment", "\"c2p\":false,\"p2c\":false", "no position terms"},
    {"disentangled-attention", "causal_offset", "\"c2p\":false,\"p2c\":false", "no position terms"},
    {"synthesizer-attention", "tiling", "\"factors\":[60,1]", "both tilings of one column are the same"},
    {"synthesizer-attention", "causal_alignment", "\"causal_offset\"", "the offset wins, as documented"},
    {"talking-heads-attention", "mix_bias", "", "biases left out are zero"},
    {"talking-heads-attention", "causal", "\"window_right\":0", "keys to the right are hidden already"},
    {"bigbird-attention", "seed", "\"num_random_blocks\":0", "nothing is drawn"},
    {"bigbird-attention", "head_shared", "\"num_random_blocks\":0", "nothing is drawn"},
    {"bigbird-attention", "", "\"num_random_blocks\":100", "all blocks are drawn"},
    {"bigbird-attention", "window_size", "", "less than a block is the window of a block"},
    {"bigbird-attention", "causal_alignment", "", "positions count for causal rows and windows"},
    {"bigbird-attention", "causal_offset", "", "positions count for causal rows and windows"},
    {"blockwise-attention", "causal_alignment", "", "positions count for causal rows and windows"},
    {"blockwise-attention", "causal_offset", "", "positions count for causal rows and windows"},
    {"blockwise-attention", "pattern", "\"query_chunk\":1", "there is one block"},
    {"blockwise-attention", "query_chunk", "", "chunks are for speed"},
    {"blockwise-attention", "key_chunk", "", "chunks are for speed"},
    {"local-attention", "global_rows", "", "there are no global tokens, or their rows are global by default"},
    {"local-attention", "causal", "\"window_size\":0", "a row sees itself alone"},
    {"local-attention", "window_size", "\"window_left\"", "the sides win, as documented"},
    {"longformer-attention", "global_projection", "", "without global tokens nothing is projected"},
    {"longformer-attention", "causal_alignment", "{}", "every key is in reach"},
    {"random-attention", "causal_alignment", "", "positions count for causal rows and windows"},
    {"random-attention", "causal_offset", "", "positions count for causal rows and windows"},
    {"sparse-transformer-attention", "factor", "\"stride\":1", "a stride of 1 makes both factors full"},
    {"star-attention", "num_hosts", "", "the hosts share the work, not the result"},
    {"strided-attention", "phase", "", "every key is in reach"},
    {"strided-attention", "causal_alignment", "", "every key is in reach"},
    {"strided-attention", "causal_offset", "", "every key is in reach"},
    {"cosformer-attention", "causal_alignment", "\"query_offset\"", "positions of the weights are given"},
    {"cosformer-attention", "causal_alignment", "", "positions count for causal rows"},
    {"cosformer-attention", "causal_offset", "", "positions count for causal rows"},
    {"linear-attention", "kernel_type", "", "another name of feature_map"},
    {"linear-attention", "causal_alignment", "", "positions count for causal rows"},
    {"linear-attention", "causal_offset", "", "positions count for causal rows"},
    {"performer-attention", "causal_alignment", "", "positions count for causal rows"},
    {"performer-attention", "causal_offset", "", "positions count for causal rows"},
    {"performer-attention", "stabilizer", "\"trig\"", "these features need none"},
    {"rfa-attention", "causal_alignment", "", "positions count for causal rows"},
    {"rfa-attention", "causal_offset", "", "positions count for causal rows"},
    {"linformer-attention", "length_policy", "", "the calls have the length of the projection"},
    {"nystrom-attention", "pinv_iterations", "\"num_landmarks\":1", "one landmark, or all rows, need no inverse"},
    {"nystrom-attention", "pinv_init", "\"num_landmarks\":1", "one landmark, or all rows, need no inverse"},
    {"flash-attention-v2", "return_lse", "", "the calls ask for lse"},
    {"flash-attention-v2", "deterministic", "", "every order of work gives the same bits"},
    {"flash-attention-v2", "validate", "", "good inputs pass every check"},
    {"flash-attention-v3", "return_lse", "", "the calls ask for lse"},
    {"flash-attention-v3", "deterministic", "", "every order of work gives the same bits"},
    {"flash-attention-v3", "validate", "", "good inputs pass every check"},
    {"flash-attention-v3", "pipeline_stages", "", "the processor overlaps the work, and no bit depends on it"},
    {"flash-attention-v3", "max_error", "", "a check, which changes nothing where it passes"},
    {"flash-decoding", "num_splits", "", "parts change the order of sums alone"},
    {"flash-decoding", "block_kv", "", "parts change the order of sums alone"},
    {"flash-decoding", "pack_gqa", "", "heads change the order of work alone"},
    {"flash-decoding", "return_lse", "", "the calls ask for lse"},
    {"flash-decoding", "deterministic", "", "every order of work gives the same bits"},
    {"flash-decoding", "validate", "", "good inputs pass every check"},
    {"moe-attention", "router_bias", "", "biases left out are zero"},
    {"soft-moe-attention", "", "\"slots_per_expert\":1", "a softmax over one slot is one"},
    {"switch-attention", "router_bias", "", "biases left out are zero"},
    {"expert-choice-attention", "router_bias", "", "biases left out are zero"},
    {"expert-choice-attention", "allow_non_causal_routing", "", "a permission, which calls that are causal need"},
    {"expert-choice-attention", "", "\"num_experts\":1", "one expert has every token and all of the gate"},
    {"expert-choice-attention", "include_first", "\"expert_capacity\":100000", "every token is chosen"},
    {"switch-attention", "", "\"num_experts\":1", "one expert has room for every token and all of the gate"},
    {"switch-attention", "min_capacity", "\"capacity_factor\":4", "no expert is full"},
    {"switch-attention", "priority", "\"capacity_factor\":4", "no expert is full"},
    {"moe-attention", "", "\"num_experts\":1", "one expert has all of the gate"},
    {"graph-attention", "allow_multi_edges", "", "a permission, which graphs with parallel edges need"},
    {"graph-attention", "add_self_loops", "",
     "refused where queries and keys differ in number; every other graph changes"},
};

bool excused(const std::string& mechanism, const std::string& option, const std::string& beside) {
    return std::any_of(std::begin(reasons), std::end(reasons), [&](const Reason& reason) {
        return (reason.mechanism == mechanism || *reason.mechanism == '\0') &&
               (reason.option == option || *reason.option == '\0') && beside.find(reason.beside) != std::string::npos;
    });
}

// One mechanism beside one set of options.
class Beside {
public:
    Beside(const specs::Spec& spec, const attend::MechanismRecord& mechanism, NamedValues options)
        : mechanism_(mechanism), options_(std::move(options)) {
        lse_ = mechanism.has(ATTEND_CAP_LSE_OUT) && (!spec.has_lse || spec.has_lse(options_));
        std::vector<Shape> shapes{{1, 2, 2, 6, 40, 16, 16},   {2, 4, 4, 24, 24, 16, 16}, {1, 2, 2, 40, 9, 8, 8},
                                  {2, 2, 2, 90, 150, 16, 16}, {1, 2, 2, 150, 150, 8, 8}, {1, 2, 2, 500, 500, 8, 8}};
        for (const Shape& shape : shapes) {
            if (shape.q_len != shape.kv_len && !spec.cross) continue;
            if (spec.rows_on_axis && shape.q_len > shape.kv_len) continue;
            if (spec.fits && !spec.fits(options_, shape.q_len, shape.kv_len)) continue;
            Random random(41);
            ForwardInputs inputs = specs::completed(spec, specs::make_inputs(spec, random, shape), options_);
            if (spec.lengths && shape.batch > 1) {
                inputs.query_lengths = lengths({shape.q_len, shape.q_len - 3});
                inputs.key_lengths = lengths({shape.kv_len, shape.kv_len - 2});
            }
            Outcome base = outcome(inputs, mechanism_, options_, lse_);
            if (base.refused) continue;
            calls_.push_back({std::move(inputs), std::move(base)});
        }
    }
    bool any() const { return !calls_.empty(); }

    // Whether the option has an effect or is spoken of, with this value.
    bool tells(const OptionSpec& option, const Json& value, bool& refused) const {
        NamedValues options = options_;
        options.emplace_back(option.name, value);
        refused = true;
        for (const auto& [inputs, base] : calls_) {
            const Outcome got = outcome(inputs, mechanism_, options, lse_);
            if (got.refused) continue;
            refused = false;
            if (got.text.find("\"" + option.name + "\"") != std::string::npos || !same(got, base)) return true;
        }
        return refused;
    }

    void check() const {
        Json object = Json::object();
        for (const auto& [name, value] : options_) object.set(name, value);
        const std::string beside = attend::write_json(object);
        for (const OptionSpec& option : mechanism_.options) {
            if (lists(options_, option.name) || excused(mechanism_.name, option.name, beside)) continue;
            const bool each = option.type == OptionType::enumeration || option.type == OptionType::boolean;
            // Without a default, or with one that is worked out, one of the values is what the call does anyway.
            const bool open = !option.default_value || attend::write_json(*option.default_value) == "\"auto\"";
            std::size_t quiet = 0;
            bool one = false;
            std::string silent;
            for (const Json& value : candidates(option)) {
                bool refused = false;
                const bool told = tells(option, value, refused);
                one = one || told;
                if (!told) silent += " " + attend::write_json(value), ++quiet;
                if (one && !each) break;
            }
            INFO(mechanism_.name << " with " << beside << ": option \"" << option.name << "\" is read and ignored at"
                                 << silent);
            CHECK((quiet == 0 || (one && !each) || (each && open && quiet == 1)));
        }
    }

private:
    struct Call {
        ForwardInputs inputs;
        Outcome base;
    };
    const attend::MechanismRecord& mechanism_;
    NamedValues options_;
    bool lse_{false};
    std::vector<Call> calls_;
};

}  // namespace

TEST_CASE("no option is read and ignored beside any other") {
    const char* only = std::getenv("ATTEND_TEST_MECHANISM");
    for (const auto& mechanism : service().registry()->list()) {
        if (only != nullptr && mechanism->name != only) continue;
        const specs::Spec& spec = specs::spec_of(mechanism->name);
        std::vector<NamedValues> sets{{}};
        sets.insert(sets.end(), spec.variants.begin(), spec.variants.end());
        std::size_t ran = 0;
        for (const NamedValues& options : sets) {
            const Beside beside(spec, *mechanism, options);
            ran += beside.any() ? 1u : 0u;
            if (beside.any()) beside.check();
        }
        INFO(mechanism->name);
        CHECK(ran > 0);
    }
}
