// SPDX-License-Identifier: Apache-2.0
// Seeded mutations of rules, JSON and configurations: whatever the text, there is a value or an error, never a crash.
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "attend/config/config.hpp"
#include "attend/config/names.hpp"
#include "support/catch.hpp"

using namespace attend;

namespace {

class Mutator {
public:
    explicit Mutator(unsigned seed) : random_(seed) {}

    std::string mutate(std::string text, std::string_view alphabet) {
        for (std::size_t edits = 1 + below(4); edits > 0; --edits) {
            const std::size_t at = below(text.size() + 1);
            switch (below(5)) {
                case 0: text.insert(at, 1, alphabet[below(alphabet.size())]); break;
                case 1:
                    if (at < text.size()) text.erase(at, 1 + below(4));
                    break;
                case 2:
                    if (at < text.size()) text[at] = static_cast<char>(below(256));
                    break;
                case 3: text.insert(at, text.substr(below(text.size() + 1), below(12))); break;
                default: text.resize(at);
            }
        }
        return text;
    }
    std::size_t below(std::size_t limit) { return limit == 0 ? 0 : random_() % limit; }

private:
    std::mt19937 random_;
};

}  // namespace

TEST_CASE("mutations: rules") {
    const std::vector<std::string> seeds{
        "seqLen > 8Ki and not causal", "max(seqLen, seqLenK) * 2 % 7 in [1, 2.5e3, 4Ki]",
        "not (graph or moe) && precision not in ['fp16', \"bf16\"]", "-abs(-seqLen) < sqrt(log2(headDim)) || default",
        "density == 0.5 and scoreBytes / memoryBudget >= 1"};
    Mutator mutator(1);
    const RuleVariables request = *RuleVariables::make({{"seqLen", 4096.0}}, {});
    std::size_t compiled = 0;
    for (int i = 0; i < 10000; ++i) {
        const std::string text =
            mutator.mutate(seeds[mutator.below(seeds.size())], "()[]<>=!&|+-*/%,.'\"eKiMG019 aZ_\t\n");
        const auto condition = Condition::compile(text, "f: rules[0].condition");
        if (condition.ok()) {
            ++compiled;
            const auto result = condition->evaluate(request);
            if (!result.ok()) CHECK(result.error().code == ErrorCode::rule);
            continue;
        }
        const std::string& message = condition.error().message;
        const std::string prefix = "f: rules[0].condition: column ";
        const bool has_place = message.rfind(prefix, 0) == 0;
        CHECK(has_place);
        const std::string& hint = condition.error().hint;
        CHECK(hint.size() == text.size() + 1 + static_cast<std::size_t>(std::stoul(message.substr(prefix.size()))));
    }
    CHECK(compiled > 100);
}

TEST_CASE("mutations: JSON") {
    const std::vector<std::string> seeds{
        R"({"a":[1,-2.5e-3,true,null,"x\u00e9\n"],"b":{"c":{}},"d":18446744073709551615})",
        R"([[[[{"k":"\ud83d\ude00"}]]],0.1,1e308,-0,"\"\\\/"])"};
    Mutator mutator(2);
    std::size_t parsed = 0;
    for (int i = 0; i < 10000; ++i) {
        const std::string text =
            mutator.mutate(seeds[mutator.below(seeds.size())], "{}[]\",:0123456789eE+-.\\untrfalse \n");
        const auto value = parse_json(text, "f");
        if (!value.ok()) {
            CHECK(value.error().code == ErrorCode::input);
            continue;
        }
        ++parsed;
        const auto again = parse_json(write_json(*value), "f");
        REQUIRE(again.ok());
        CHECK(*again == *value);
    }
    CHECK(parsed > 100);
}

TEST_CASE("mutations: configurations") {
    Mutator mutator(3);
    const std::string seed(default_config_text());
    for (int i = 0; i < 2000; ++i) {
        const LoadedConfig result = load_config(mutator.mutate(seed, "{}[]\",:0123456789abc_ "), "f");
        for (const Error& problem : result.problems) CHECK(problem.message.rfind("f: ", 0) == 0);
        CHECK(config_to_json(result.config, true).is_object());
    }
}

TEST_CASE("mutations: names") {
    Mutator mutator(4);
    const std::vector<std::string> names{"window_size", "num_global", "causal", "dropout"};
    for (int i = 0; i < 5000; ++i) {
        const std::string name = mutator.mutate("windowSizeKV2", "aZ_.09-");
        CHECK(fold_name(fold_name(name)) == fold_name(name));
        CHECK(nearest_names(name, names).size() <= 3);
    }
}
