// SPDX-License-Identifier: Apache-2.0
#include "compute_options.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>

#include "attend/config/names.hpp"
#include "errors.hpp"

namespace attend::cli {
namespace {

const Json* find(const NamedValues& values, const std::string& folded) {
    const auto at =
        std::find_if(values.begin(), values.end(), [&](const auto& entry) { return fold_name(entry.first) == folded; });
    return at == values.end() ? nullptr : &at->second;
}

Json read_value(const MechanismRecord* mechanism, const std::string& name, const std::string& text) {
    const OptionSpec* spec = mechanism != nullptr ? mechanism->find_option(fold_name(name)) : nullptr;
    return spec != nullptr ? parse_option_text(*spec, text) : parse_bare_value(text);
}

Result<NamedValues> read_file(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    std::string text{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
    if (!stream.good() && !stream.eof()) return wrong_use(path + ": cannot be read; accepted: a JSON file of options");
    Result<Json> json = parse_json(text, path);
    if (!json) return json.error();
    if (!json->is_object())
        return wrong_use(path + ": is " + json->kind() + "; accepted: an object of options by name");
    NamedValues values;
    for (const auto& [name, value] : json->as_object()) {
        if (find(values, fold_name(name)) != nullptr)
            return wrong_use(path + ": option \"" + fold_name(name) + "\" is given twice; accepted: every option once");
        values.emplace_back(name, value);
    }
    return values;
}

Result<std::string> precision_name(const std::string& text) {
    if (text == "f32") return std::string("fp32");
    if (text == "f16") return std::string("fp16");
    for (const char* known : {"fp32", "bf16", "fp16", "int8", "fp8"})
        if (text == known) return text;
    const std::vector<std::string> known{"fp32", "bf16", "fp16", "int8", "fp8"};
    return wrong_use("--precision: is \"" + text + "\"; accepted: " + join_names(known));
}

}  // namespace

Result<CallOptions> collect_options(const OptionFlags& flags, const MechanismRecord* mechanism) {
    CallOptions call;
    NamedValues written;  // by --set and shorthands; each option once
    const auto write = [&](const std::string& place, const std::string& name, Json value) -> Result<void> {
        const Json* before = find(written, fold_name(name));
        if (before == nullptr)
            written.emplace_back(name, std::move(value));
        else if (!(*before == value))
            return wrong_use(place + ": option \"" + fold_name(name) + "\" is given twice, as " + shown_value(*before) +
                             " and " + shown_value(value) + "; accepted: every option once");
        return {};
    };
    for (const std::string& set : flags.sets) {
        const std::size_t equals = set.find('=');
        if (equals == std::string::npos || equals == 0)
            return wrong_use("--set: is \"" + set + "\"; accepted: name=value");
        const std::string name = set.substr(0, equals);
        if (auto done = write("--set", name, read_value(mechanism, name, set.substr(equals + 1))); !done)
            return done.error();
    }
    if (flags.causal)
        if (auto done = write("--causal", "causal", true); !done) return done.error();
    struct Shorthand {
        const char *flag, *option;
        const std::optional<std::string>* text;
    };
    for (const Shorthand& shorthand :
         {Shorthand{"--scale", "scale", &flags.scale}, Shorthand{"--softcap", "softcap", &flags.softcap},
          Shorthand{"--window-size", "window_size", &flags.window_size},
          Shorthand{"--dropout", "dropout", &flags.dropout},
          Shorthand{"--weight-seed", "weight_seed", &flags.weight_seed}})
        if (*shorthand.text)
            if (auto done =
                    write(shorthand.flag, shorthand.option, read_value(mechanism, shorthand.option, **shorthand.text));
                !done)
                return done.error();
    if (flags.seed) {
        const Result<std::uint64_t> seed = parse_seed("--seed", *flags.seed);
        if (!seed) return seed.error();
        call.data_seed = *seed;
        if (const Json* before = find(written, "seed"); before != nullptr && !(*before == Json(*seed)))
            return wrong_use("--seed: option \"seed\" is given twice, as " + shown_value(*before) + " and " +
                             std::to_string(*seed) + "; accepted: every option once");
        call.if_taken.emplace_back("seed", *seed);
    }
    if (flags.precision) {
        const Result<std::string> precision = precision_name(*flags.precision);
        if (!precision) return precision.error();
        // Some mechanisms define their low-precision modes themselves.
        if (mechanism != nullptr && mechanism->find_option("precision") != nullptr) {
            if (auto done = write("--precision", "precision", *precision); !done) return done.error();
        } else {
            call.precision = *precision;
        }
    }
    if (flags.file) {
        Result<NamedValues> from_file = read_file(*flags.file);
        if (!from_file) return from_file.error();
        for (auto& [name, value] : *from_file)
            if (find(written, fold_name(name)) == nullptr) call.options.emplace_back(name, std::move(value));
    }
    call.options.insert(call.options.end(), written.begin(), written.end());
    return call;
}

bool add_taken(const CallOptions& call, const MechanismRecord& mechanism, NamedValues& options) {
    bool added = false;
    for (const auto& [name, value] : call.if_taken) {
        if (mechanism.find_option(name) == nullptr || find(options, name) != nullptr) continue;
        options.emplace_back(name, value);
        added = true;
    }
    return added;
}

}  // namespace attend::cli
