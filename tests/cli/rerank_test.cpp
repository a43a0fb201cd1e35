// SPDX-License-Identifier: Apache-2.0
// attend rerank: candidates of a file in the order of attention.
#include "program.hpp"

using namespace cli_test;

namespace {

std::string three_candidates(const Folder& folder) {
    save(folder / "in.safetensors",
         {{"query", floats({2}, {1, 0})}, {"candidates", floats({3, 2}, {-1, 0, 1, 0, 0.5f, 0.5f})}});
    return folder / "in.safetensors";
}

}  // namespace

TEST_CASE("rerank prints the candidates best first, with the keys of the contract") {
    const Folder folder;
    const std::string input = three_candidates(folder);
    const std::string ids = folder.write("ids.txt", "far\nnear\nmiddle\n");
    const Run run = run_attend({"rerank", "--input", input, "--ids", ids, "--json"});
    INFO(run.err);
    REQUIRE(run.status == 0);
    const attend::Json json = run.json();
    std::vector<std::string> keys;
    for (const auto& [key, value] : json.as_object()) keys.push_back(key);
    CHECK(keys == std::vector<std::string>{"mechanism", "results"});
    CHECK(json.find("mechanism")->as_string() == "memory-attention");
    const auto& results = json.find("results")->as_array();
    REQUIRE(results.size() == 3);
    double sum = 0;
    const char* names[] = {"near", "middle", "far"};
    for (std::size_t r = 0; r < 3; ++r) {
        std::vector<std::string> entry;
        for (const auto& [key, value] : results[r].as_object()) entry.push_back(key);
        CHECK(entry == std::vector<std::string>{"index", "id", "score", "logit", "rank"});
        CHECK(results[r].find("id")->as_string() == names[r]);
        CHECK(results[r].find("rank")->as_int64() == static_cast<std::int64_t>(r));
        sum += results[r].find("score")->as_double();
    }
    CHECK(sum == Approx(1).epsilon(1e-12));
    CHECK(results[0].find("index")->as_int64() == 1);
    CHECK(results[0].find("logit")->as_double() == Approx(20).epsilon(1e-5));
    const Run text = run_attend({"rerank", "--input", input, "--ids", ids});
    CHECK(text.status == 0);
    CHECK(text.out.find("near") < text.out.find("middle"));
    CHECK(text.out.find("middle") < text.out.find("far"));
}

TEST_CASE("rerank takes the mechanism, heads, scale, normalize and top-k from flags") {
    const Folder folder;
    const std::string input = three_candidates(folder);
    const attend::Json json = run_attend({"rerank", "--input", input, "--mechanism", "standard-mha", "--scale", "2",
                                          "--normalize", "false", "--top-k", "1", "--heads", "1", "--json"})
                                  .json();
    REQUIRE(json.find("results")->size() == 1);
    const attend::Json& best = json.find("results")->as_array().front();
    CHECK(best.find("id") == nullptr);
    CHECK(best.find("logit")->as_double() == 2);
    CHECK(best.find("score")->as_double() ==
          Approx(std::exp(2) / (std::exp(2) + std::exp(1) + std::exp(-2))).epsilon(1e-12));
    const attend::Json window =
        run_attend({"rerank", "--input", input, "--mechanism", "local-attention", "--set", "window_size=1", "--json"})
            .json();
    const attend::Json& last = window.find("results")->as_array().back();
    CHECK(last.find("index")->as_int64() == 0);
    CHECK(last.find("score")->as_double() == 0);
    CHECK(last.find("logit")->is_null());
    save(folder / "scaled.safetensors", {{"query", floats({2}, {1, 0})},
                                         {"candidates", floats({1, 2}, {3, 0})},
                                         {"weight.attn_scale", floats({1}, {7})}});
    CHECK(run_attend({"rerank", "--input", folder / "scaled.safetensors", "--json"})
              .json()
              .find("results")
              ->as_array()[0]
              .find("logit")
              ->as_double() == Approx(7).epsilon(1e-5));
}

TEST_CASE("rerank refuses wrong use with status 2") {
    const Folder folder;
    const std::string input = three_candidates(folder);
    check_error(run_attend({"rerank"}), 2, {"--input is missing"});
    check_error(run_attend({"rerank", "--input", folder / "none.safetensors"}), 2, {"none.safetensors"});
    check_error(run_attend({"rerank", "--input", input, "--heads", "3"}), 2, {"heads is 3", "width 2"});
    check_error(run_attend({"rerank", "--input", input, "--heads", "0"}), 2, {"--heads"});
    check_error(run_attend({"rerank", "--input", input, "--scale", "wide"}), 2, {"--scale: is \"wide\""});
    check_error(run_attend({"rerank", "--input", input, "--normalize", "maybe"}), 2, {"auto, true, false"});
    check_error(run_attend({"rerank", "--input", input, "--top-k", "-1"}), 2, {"--top-k"});
    check_error(run_attend({"rerank", "--input", input, "--mechanism", "memory"}), 2, {"unknown mechanism \"memory\""});
    check_error(run_attend({"rerank", "--input", input, "--mechanism", "moe-attention"}), 2,
                {"moe-attention has no weight for each key"});
    check_error(run_attend({"rerank", "--input", input, "--ids", folder.write("two", "a\nb\n")}), 2,
                {"ids are 2 for 3 candidates"});
    check_error(run_attend({"rerank", "--input", input, "--ids", folder.write("no", "")}), 2, {"is empty"});
    check_error(run_attend({"rerank", "--input", input, "--ids", folder / "nowhere"}), 2, {"cannot read"});
    save(folder / "extra.safetensors",
         {{"query", floats({1}, {1})}, {"candidates", floats({1, 1}, {1})}, {"value", floats({1}, {1})}});
    check_error(run_attend({"rerank", "--input", folder / "extra.safetensors"}), 2,
                {"unknown tensor \"value\"", "candidates"});
    save(folder / "half.safetensors", {{"query", floats({1}, {1})}});
    check_error(run_attend({"rerank", "--input", folder / "half.safetensors"}), 2, {"\"candidates\" is missing"});
    save(folder / "nan.safetensors", {{"query", floats({1}, {1})}, {"candidates", floats({1, 1}, {std::nanf("")})}});
    check_error(run_attend({"rerank", "--input", folder / "nan.safetensors"}), 2, {"candidate 0", "NaN"});
}

TEST_CASE("rerank of no candidates is an empty list") {
    const Folder folder;
    save(folder / "in.safetensors", {{"query", floats({2}, {1, 0})}, {"candidates", floats({0, 2}, {})}});
    const Run run = run_attend({"rerank", "--input", folder / "in.safetensors", "--json"});
    REQUIRE(run.status == 0);
    CHECK(run.json().find("results")->size() == 0);
}
