// SPDX-License-Identifier: Apache-2.0
// describe --plan and heatmap --pattern: counts against the closed formulas of a sliding window; compare against numbers
// that are known.
#include <filesystem>
#include <fstream>
#include <iterator>

#include "program.hpp"

using namespace cli_test;

TEST_CASE("describe --plan counts the pairs of a window") {
    const attend::Json plan = run_attend({"describe", "local-attention", "--plan", "--sequence-length", "200", "--set",
                                          "window_size=7", "--heads", "2", "--json"})
                                  .json();
    CHECK(plan.find("pairs")->as_double() == 2.0 * (200 * 15 - 7 * 8));
    CHECK(plan.find("row_keys")->find("least")->as_int64() == 8);
    CHECK(plan.find("row_keys")->find("most")->as_int64() == 15);
    const attend::Json& computed = *plan.find("computed");
    CHECK(computed.find("pairs")->as_double() >= plan.find("pairs")->as_double());
    CHECK(computed.find("skipped")->as_double() > 0.5);
    CHECK(computed.find("partial_ranges")->as_int64() > 0);

    const attend::Json causal = run_attend({"describe", "local-attention", "--plan", "--sequence-length", "200",
                                            "--set", "window_size=7", "--causal", "--json"})
                                    .json();
    CHECK(causal.find("pairs")->as_double() == 200 * 8 - 7 * 8 / 2.0);
    CHECK(contains(run_attend({"describe", "local-attention", "--plan", "--sequence-length", "200"}).out, "density"));
}

TEST_CASE("describe --plan says why there is no plan") {
    const Run dense = run_attend({"describe", "flash-attention-v2", "--plan", "--sequence-length", "200"});
    CHECK(dense.status == 2);
    CHECK(contains(dense.err, "flash-attention-v2: has no key pattern"));
    CHECK(run_attend({"describe", "local-attention", "--plan"}).status == 2);
    for (const std::vector<std::string>& flags : std::vector<std::vector<std::string>>{
             {"--sequence-length", "200"}, {"--heads", "2"}, {"--set", "window_size=3"}, {"--causal"}}) {
        std::vector<std::string> words{"describe", "local-attention"};
        words.insert(words.end(), flags.begin(), flags.end());
        const Run without = run_attend(words);
        CHECK(without.status == 2);
        CHECK(contains(without.err, "without --plan"));
    }
    CHECK(run_attend({"describe", "local-attention", "--plan", "--sequence-length", "x"}).status == 2);
}

TEST_CASE("heatmap --pattern draws what rows see") {
    const attend::Json picture = run_attend({"heatmap", "--pattern", "local-attention", "--sequence-length", "48",
                                             "--set", "window_size=5", "--causal", "--json"})
                                     .json();
    const auto& rows = picture.find("shares")->as_array();
    REQUIRE(rows.size() == 48);
    for (std::size_t row = 0; row < 48; ++row)
        for (std::size_t key = 0; key < 48; ++key)
            CHECK(rows[row].as_array()[key].as_double() == (key <= row && key + 5 >= row ? 1.0 : 0.0));

    const std::filesystem::path file = std::filesystem::temp_directory_path() / "attend_pattern_test.svg";
    std::filesystem::remove(file);
    const Run drawn =
        run_attend({"heatmap", "--pattern", "local-attention", "--sequence-length", "1000", "--output", file.string()});
    CHECK(drawn.status == 0);
    std::ifstream stream(file);
    const std::string text{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
    CHECK(text.starts_with("<svg"));
    CHECK(contains(text, "</svg>"));
    std::filesystem::remove(file);
    CHECK(
        run_attend({"heatmap", "--pattern", "local-attention", "--sequence-length", "9", "--output", "x.gif"}).status ==
        2);
    CHECK(run_attend({"heatmap", "--pattern", "local-attention", "--sequence-length", "9", "--head", "1"}).status == 2);
    CHECK(run_attend({"heatmap"}).status == 2);
}

TEST_CASE("compare measures distance from exact attention") {
    const attend::Json same = run_attend({"compare", "standard-mha", "local-attention", "--sequence-length", "64",
                                          "--heads", "2", "--set", "window_size=100", "--json"})
                                  .json();
    const auto& rows = same.find("rows")->as_array();
    REQUIRE(rows.size() == 3);
    for (const attend::Json& row : rows) {
        CHECK(row.find("relative_l2")->as_double() < 1e-6);
        CHECK(row.find("cosine")->as_double() > 0.999999);
        CHECK(std::abs(row.find("kl")->as_double()) < 1e-6);
    }
    const attend::Json narrow = run_attend({"compare", "local-attention", "linear-attention", "--sequence-length", "64",
                                            "--set", "local-attention:window_size=2", "--causal", "--json"})
                                    .json();
    CHECK(narrow.find("rows")->as_array()[1].find("relative_l2")->as_double() > 0.1);
    CHECK(narrow.find("rows")->as_array()[1].find("kl")->as_double() > 0.1);
    CHECK(narrow.find("rows")->as_array()[2].find("kl")->is_null());
    CHECK(run_attend({"compare", "--sequence-length", "64"}).status == 2);
    const Run unknown = run_attend({"compare", "local-attention", "--sequence-length", "64", "--set", "windowsize_=3"});
    CHECK(unknown.status == 2);
    CHECK(run_attend({"compare", "local-attention", "--sequence-length", "64", "--set", "star:window_size=3"}).status ==
          2);
    const Run inexact =
        run_attend({"compare", "local-attention", "--sequence-length", "64", "--reference", "linear-attention"});
    CHECK(inexact.status == 2);
    CHECK(contains(inexact.err, "not exact attention"));
}
