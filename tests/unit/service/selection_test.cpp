// SPDX-License-Identifier: Apache-2.0
// Answers about requests: what would admit a rejected mechanism, tasks, explanations of calls, predicted times.
#include <set>

#include "attend/cost_table.hpp"
#include "service/documents.hpp"
#include "service/selector.hpp"
#include "support/calls.hpp"

using namespace support;
using attend::Candidate;
using attend::Change;
using attend::Config;
using attend::Json;
using attend::Recommendation;
using attend::RequestFacts;

namespace {

attend::RuleValue value_of(const Json& value) {
    if (value.is_bool()) return value.as_bool();
    if (value.is_number()) return value.as_double();
    return value.as_string() == "infinity" ? attend::RuleValue(std::numeric_limits<double>::infinity())
                                           : attend::RuleValue(value.as_string());
}

RequestFacts changed(RequestFacts facts, const std::vector<Change>& changes) {
    for (const Change& change : changes) facts[change.variable] = value_of(change.value);
    return facts;
}

RequestFacts random_request(Random& random) {
    const std::int64_t heads = 1 + random.below(4);
    RequestFacts facts{
        {"seqLen", double(1 + random.below(200))}, {"heads", double(heads)}, {"headDim", double(1 + random.below(40))}};
    const auto sometimes = [&](const char* name, attend::RuleValue value) {
        if (random.below(4) == 0) facts.emplace(name, std::move(value));
    };
    sometimes("seqLenK", double(1 + random.below(200)));
    sometimes("batchSize", double(1 + random.below(3)));
    sometimes("kvHeads", double(random.below(2) == 0 ? 1 : heads));
    sometimes("valueDim", double(1 + random.below(40)));
    for (const char* flag : {"causal", "hasMask", "hasBias", "hasDropout", "needLse", "needScores", "graph"})
        sometimes(flag, true);
    sometimes("windowSize", double(random.below(20)));
    sometimes("memoryBudget", double(random.below(1 << 20)));
    sometimes("maxError", double(random.below(2)) * 0.01);
    sometimes("precision", std::string(random.below(2) == 0 ? "bf16" : "int8"));
    return facts;
}

const Candidate* named(const std::vector<Candidate>& list, const std::string& name) {
    const auto found =
        std::find_if(list.begin(), list.end(), [&](const Candidate& candidate) { return candidate.mechanism == name; });
    return found == list.end() ? nullptr : &*found;
}

// A configuration whose only rule is for this mechanism.
Config only(const std::string& mechanism) {
    Config config;
    attend::CompiledRules rules =
        attend::compile_rules("test", std::vector<attend::RuleSource>{{"default", mechanism, {}}});
    REQUIRE(rules.problems.empty());
    config.rules = std::move(rules.rules);
    return config;
}

}  // namespace

TEST_CASE("selection: what would admit a rejected mechanism does") {
    Random random(21);
    std::set<std::string> checks;
    std::size_t promises = 0;
    for (int request = 0; request < 60; ++request) {
        const RequestFacts facts = random_request(random);
        const auto answer = service().recommend(facts);
        REQUIRE(answer.ok());
        for (const Candidate& candidate : answer->rejected) {
            INFO(candidate.mechanism << " failed " << candidate.check << ": " << candidate.reasons.front());
            CHECK_FALSE(candidate.supported);
            REQUIRE_FALSE(candidate.admit.empty());
            checks.insert(candidate.check);
            ++promises;
            std::string said;
            for (const Change& change : candidate.admit) said += attend::change_text(change) + ", ";
            INFO("promised: " << said);
            const auto variables = attend::RuleVariables::make(changed(facts, candidate.admit), attend::RuleDefaults{});
            REQUIRE(variables.ok());
            // A candidate that is causal by default was considered with that switched off, where the request is not.
            Config config = only(candidate.mechanism);
            if (!variables->flag(attend::RuleVariable::causal)) config.rules.front().options = candidate.options;
            const attend::MechanismSelector selector(service().registry(), config, service().threads());
            const auto selection = selector.select(*variables, {});
            REQUIRE(selection.ok());
            INFO((selection->trace.empty() ? "" : selection->trace.front().skipped_because));
            REQUIRE(selection->mechanism != nullptr);
            CHECK(selection->mechanism->name == candidate.mechanism);
            CHECK(selection->rule == "0");
        }
    }
    CHECK(promises > 800);
    for (const char* check : {"causal", "mask", "bias", "window", "dropout", "lse", "scores", "gqa", "graph", "dtype",
                              "memory", "maxError"})
        CHECK(checks.count(check) == 1);
}

TEST_CASE("selection: a rejected candidate carries its check with both values, cost and numerics") {
    const auto answer = service().recommend({{"seqLen", 100.0}, {"heads", 2.0}, {"memoryBudget", 1000.0}});
    REQUIRE(answer.ok());
    const Candidate* flash = named(answer->rejected, "flash-attention-v2");
    REQUIRE(flash != nullptr);
    CHECK(flash->check == "memory");
    CHECK(flash->reasons.front().find("the budget is 1000") != std::string::npos);
    CHECK(flash->exactness == "exact");
    CHECK(flash->est_flops.value_or(0) > 0);
    CHECK(flash->est_bytes.value_or(0) > 0);
    CHECK(flash->est_workspace.has_value());
    REQUIRE(flash->admit.size() == 1);
    CHECK(flash->admit[0].variable == "memoryBudget");
    CHECK(flash->admit[0].value.as_int64() >= 100 * 2 * 64 * 4);
    const auto shape = service().recommend({{"seqLen", 100.0}, {"heads", 4.0}, {"kvHeads", 2.0}});
    const Candidate* talking = named(shape->rejected, "talking-heads-attention");
    REQUIRE(talking != nullptr);
    CHECK(talking->check == "gqa");
    CHECK(talking->reasons.front() == "needs as many key heads as query heads, 4, the request has 2");
    CHECK(attend::change_text(talking->admit.at(0)) == "kvHeads = 4");
    const attend::Json json = attend::recommendation_json(*answer);
    const Json& first = json.find("rejected")->as_array().front();
    REQUIRE(first.find("admit") != nullptr);
    CHECK(first.find("admit")->as_array().front().find("variable")->as_string() == "memoryBudget");
}

TEST_CASE("selection: tasks have mechanisms of their own, which come first where they pass") {
    const std::pair<const char*, const char*> table[] = {{"code-analysis", "hierarchical-cross-attention"},
                                                         {"memory-retrieval", "memory-attention"},
                                                         {"long-context", "longformer-attention"},
                                                         {"swarm-coordination", "star-attention"},
                                                         {"gardening", "flash-attention-v2"},
                                                         {"", "flash-attention-v2"}};
    for (const auto& [task, mechanism] : table) {
        const auto answer = service().recommend_for_task(task);
        REQUIRE(answer.ok());
        CHECK(answer->selected == std::string(mechanism));
        REQUIRE_FALSE(answer->recommendations.empty());
        const Candidate& first = answer->recommendations.front();
        CHECK(first.mechanism == mechanism);
        CHECK(first.rule == "task");
        CHECK(first.supported);
        CHECK(answer->recommendations.size() <= 5);
    }
    const auto causal = service().recommend_for_task("code-analysis", {{"seqLen", 64.0}, {"causal", true}});
    REQUIRE(causal.ok());
    REQUIRE(named(causal->rejected, "hierarchical-cross-attention") != nullptr);
    CHECK(named(causal->rejected, "hierarchical-cross-attention")->rule == "task");
    CHECK(causal->selected == service().recommend({{"seqLen", 64.0}, {"causal", true}})->selected);
    CHECK_FALSE(service().recommend_for_task("x", {{"seqLn", 1.0}}).ok());
}

TEST_CASE("selection: a call is explained with every candidate, the first one that which it used") {
    Random random(22);
    for (int call = 0; call < 40; ++call) {
        attend::ForwardInputs inputs = make_inputs(random, {1, 2, 2, 1 + random.below(40), 1 + random.below(40), 8, 8});
        attend::ForwardOptions options;
        if (call % 2 == 0) options.options = {{"causal", true}};
        const auto result = service().forward(inputs, options);
        const auto why = service().explain(inputs, options);
        REQUIRE(why.ok());
        REQUIRE(result.ok());
        CHECK(why->selected == result->mechanism);
        CHECK(why->recommendations.front().mechanism == result->mechanism);
        CHECK(result->reason.find(why->recommendations.front().reasons.back()) != std::string::npos);
        CHECK_FALSE(why->rejected.empty());
    }
}

TEST_CASE("selection: the name alone is what the whole answer selects") {
    Random random(23);
    attend::PassedChecks passed;
    const attend::LoadedConfig loaded = attend::load_default_config();
    const attend::MechanismSelector fast(service().registry(), loaded.config, 2, &passed),
        plain(service().registry(), loaded.config, 2);
    for (int request = 0; request < 300; ++request) {
        RequestFacts facts = random_request(random);
        if (request % 3 == 0) facts["seqLen"] = double(random.below(50000));
        const auto variables = attend::RuleVariables::make(facts, attend::RuleDefaults{});
        REQUIRE(variables.ok());
        const auto expected = plain.select(*variables, {});
        REQUIRE(expected.ok());
        for (int again = 0; again < 2; ++again) CHECK(fast.pick(*variables).value() == expected->mechanism);
        CHECK(fast.select(*variables, {})->mechanism == expected->mechanism);
    }
    // What was remembered for one request does not serve another that differs in one thing alone.
    const std::pair<const char*, attend::RuleValue> differences[] = {
        {"causal", true},     {"hasMask", true},        {"hasBias", true},   {"hasDropout", true},
        {"needLse", true},    {"needScores", true},     {"kvHeads", 2.0},    {"valueDim", 8.0},
        {"seqLenK", 70.0},    {"maxError", 0.1},        {"windowSize", 4.0}, {"headDim", 3.0},
        {"batchSize", 100.0}, {"memoryBudget", 4096.0}, {"heads", 400.0},    {"precision", std::string("bf16")}};
    for (const char* mechanism : {"nystrom-attention", "linear-attention", "talking-heads-attention"}) {
        const Config config = only(mechanism);
        attend::PassedChecks own;
        const attend::MechanismSelector remembers(service().registry(), config, 2, &own),
            forgets(service().registry(), config, 2);
        RequestFacts facts{{"seqLen", 50.0}, {"heads", 4.0}, {"memoryBudget", 1e6}};
        const auto pick = [&](const RequestFacts& request) {
            const auto variables = attend::RuleVariables::make(request, attend::RuleDefaults{});
            REQUIRE(variables.ok());
            CHECK(remembers.pick(*variables).value() == forgets.select(*variables, {})->mechanism);
        };
        for (const auto& [name, value] : differences) {
            INFO(mechanism << " with another " << name);
            pick(facts);
            RequestFacts other = facts;
            other[name] = value;
            pick(other);
        }
    }
}

TEST_CASE("selection: predicted times follow the table, and order what no rule orders") {
    // 1 GFLOP/s at length 64, 10 at 1024, on one thread; twice that on two.
    std::vector<attend::MechanismCosts> costs;
    for (const std::uint32_t threads : {1u, 2u})
        costs.push_back({"flash-attention-v2",
                         threads,
                         {{{1, 64, 64}, 1e6, 1e3, 1.0 / threads}, {{1, 1024, 64}, 1e8, 1e5, 10.0 / threads}}});
    const attend::CostTable table({}, costs);
    const auto at = [&](double length, std::uint32_t threads, double flops) {
        return table.predict("flash-attention-v2", threads, {1, length, 64}, flops, 0).value();
    };
    CHECK(at(64, 1, 1e6) == Approx(1));
    CHECK(at(16, 1, 1e6) == Approx(1));
    CHECK(at(1024, 1, 1e8) == Approx(10));
    CHECK(at(256, 1, 1e6) == Approx(1 / std::sqrt(10.0)));
    CHECK(at(64, 2, 1e6) == Approx(0.5));
    CHECK(at(64, 16, 1e6) == Approx(0.5));
    CHECK(table.predict("flash-attention-v2", 1, {1, 64, 64}, 1, 1e6).value() == Approx(100));  // by the bytes
    // Half the rate where half the pairs are hidden.
    std::vector<attend::MechanismCosts> masked = costs;
    masked.front().samples.push_back({{8, 64, 64, true}, 1e6, 1e3, 2.0});
    CHECK(attend::CostTable({}, masked).predict("flash-attention-v2", 1, {1, 64, 32, true}, 1e6, 0).value() ==
          Approx(2));
    CHECK(attend::CostTable({}, masked).predict("flash-attention-v2", 1, {1, 64, 32}, 1e6, 0).value() == Approx(1));
    CHECK_FALSE(table.predict("flash-attention-v3", 1, {1, 64, 64}, 1e6, 0).has_value());
    const auto parsed = attend::CostTable::parse(attend::write_json(table.json()), "here");
    REQUIRE(parsed.ok());
    CHECK(parsed->json() == table.json());

    auto opened = attend::AttentionService::open([] {
        attend::ServiceSettings settings;
        settings.config.service.threads = 1;
        settings.built_in_dir = ATTEND_BINARY_DIR "/plugins";
        return settings;
    }());
    REQUIRE(opened.ok());
    const RequestFacts facts{{"seqLen", 64.0}};
    CHECK_FALSE((*opened)->recommend(facts)->recommendations.front().est_time_ms.has_value());
    std::vector<attend::MechanismCosts> all = costs;
    all.push_back({"performer-attention", 1, {{{1, 64, 64}, 1e12, 1, 1.0}}});
    (*opened)->use_costs(std::make_shared<const attend::CostTable>(attend::CostKeys{}, all));
    const auto answer = (*opened)->recommend(facts);
    CHECK(answer->recommendations.at(0).mechanism == "flash-attention-v2");
    CHECK(answer->recommendations.at(0).est_time_ms.value_or(0) > 0);
    CHECK(answer->recommendations.at(2).mechanism == "performer-attention");  // behind default and fallback
    CHECK(answer->recommendations.at(2).est_time_ms.has_value());
    CHECK_FALSE(answer->recommendations.at(3).est_time_ms.has_value());
}

TEST_CASE("selection: a table of costs is refused where it is damaged, and says what differs where it is stale") {
    using attend::CostTable;
    const auto refuses = [](const std::string& text, const std::string& part) {
        const auto parsed = CostTable::parse(text, "costs.json");
        REQUIRE_FALSE(parsed.ok());
        INFO(parsed.error().message);
        CHECK(parsed.error().message.starts_with("costs.json: "));
        CHECK(parsed.error().message.find(part) != std::string::npos);
    };
    refuses("[]", "is an array");
    refuses("{", "line 1");
    refuses(R"({"version": 2})", "version is 2");
    refuses(R"({"version": 1, "cpu": "x", "isa": 3, "build": {"version": "1", "commit": "2"}, "plugins": [],
                "mechanisms": []})",
            "isa is a number");
    refuses(R"({"version": 1, "cpu": "x", "isa": "y", "build": {"version": "1", "commit": "2"}, "plugins": [],
                "mechanisms": [{"mechanism": "m", "threads": 1, "samples": []}]})",
            "samples are none");
    refuses(R"({"version": 1, "cpu": "x", "isa": "y", "build": {"version": "1", "commit": "2"}, "plugins": [],
                "mechanisms": [{"mechanism": "m", "threads": 1, "samples": [{"heads": 1, "length": 1, "head_dim": 1, "causal": false,
                "flops": 1, "bytes": 1, "ms": -1}]}]})",
            "ms is -1");
    const attend::CostKeys now = attend::cost_keys(service(), "0.1", "abc");
    CHECK(now.difference(now).empty());
    CHECK_FALSE(now.plugins.empty());
    for (std::string attend::CostKeys::*key :
         {&attend::CostKeys::cpu, &attend::CostKeys::isa, &attend::CostKeys::version, &attend::CostKeys::commit}) {
        attend::CostKeys old = now;
        old.*key = "another";
        const std::string said = old.difference(now);
        INFO(said);
        CHECK(said.find("another") != std::string::npos);
        CHECK(said.find(now.*key) != std::string::npos);
    }
    attend::CostKeys old = now;
    old.plugins.front().second = "9.9";
    CHECK(old.difference(now).find(old.plugins.front().first) != std::string::npos);
}
