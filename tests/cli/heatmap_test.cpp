// SPDX-License-Identifier: Apache-2.0
// attend heatmap MECHANISM: the picture files by their structure, the numbers of --json, and what is refused.
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "program.hpp"

using namespace cli_test;

namespace {

std::string content(const std::filesystem::path& file) {
    std::ifstream stream(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}
std::uint32_t big_endian(const std::string& bytes, std::size_t at) {
    std::uint32_t word = 0;
    for (std::size_t n = 0; n < 4; ++n) word = word << 8 | static_cast<std::uint8_t>(bytes.at(at + n));
    return word;
}

struct Picture {
    std::filesystem::path file;
    explicit Picture(const char* name) : file(std::filesystem::temp_directory_path() / name) {
        std::filesystem::remove(file);
    }
    ~Picture() { std::filesystem::remove(file); }
};

}  // namespace

TEST_CASE("heatmap: a png has its chunks and at least 512 pixels a side") {
    const Picture picture("attend_heatmap_test.png");
    const Run drawn = run_attend({"heatmap", "flash-attention-v2", "--sequence-length", "60", "--sequence-length-k",
                                  "120", "--heads", "2", "--head", "1", "--output", picture.file.string()});
    CHECK(drawn.status == 0);
    CHECK(contains(drawn.out, "60 queries, 120 keys, head 1"));
    const std::string bytes = content(picture.file);
    REQUIRE(bytes.starts_with("\x89PNG\r\n\x1a\n"));
    CHECK(bytes.substr(12, 4) == "IHDR");
    CHECK(big_endian(bytes, 16) == 480);
    CHECK(big_endian(bytes, 20) == 240);
    std::string last;
    std::size_t at = 8;
    while (at < bytes.size()) {
        last = bytes.substr(at + 4, 4);
        at += 12 + big_endian(bytes, at);
    }
    CHECK(at == bytes.size());
    CHECK(last == "IEND");
}

TEST_CASE("heatmap: a large call becomes at most 1024 cells a side") {
    const Picture picture("attend_heatmap_large.png");
    CHECK(run_attend({"heatmap", "local-attention", "--sequence-length", "1500", "--set", "window_size=20", "--dim",
                      "8", "--output", picture.file.string()})
              .status == 0);
    const std::string bytes = content(picture.file);
    CHECK(big_endian(bytes, 16) == 1024);
    CHECK(big_endian(bytes, 20) == 1024);
}

TEST_CASE("heatmap: svg and html are whole and name both axes") {
    for (const char* name : {"attend_heatmap_test.svg", "attend_heatmap_test.html"}) {
        const Picture picture(name);
        CHECK(run_attend(
                  {"heatmap", "standard-mha", "--sequence-length", "33", "--causal", "--output", picture.file.string()})
                  .status == 0);
        const std::string text = content(picture.file);
        CHECK(text.starts_with(picture.file.extension() == ".svg" ? "<svg" : "<!DOCTYPE html>"));
        for (const char* part : {"query row", ">key<", ">weight (share of row)<", "prefers-color-scheme", "data:image/png;base64,",
                                 "standard-mha, 33 queries, 33 keys, head 0", "</svg>"})
            CHECK(contains(text, part));
        CHECK_FALSE(contains(text, "https://"));
    }
}

TEST_CASE("heatmap: numbers follow from the weights") {
    // One key: every weight is 1. Equal queries of one item and another are not the same call.
    const attend::Json one = run_attend({"heatmap", "standard-mha", "--sequence-length", "5", "--sequence-length-k",
                                         "1", "--batch", "2", "--json"})
                                 .json();
    CHECK(one.find("largest")->as_double() == 1.0);
    CHECK(one.find("rows")->as_int64() == 5);
    CHECK(one.find("columns")->as_int64() == 1);
    CHECK(one.find("batch")->as_int64() == 2);
    const attend::Json mean =
        run_attend({"heatmap", "standard-mha", "--sequence-length", "128", "--pool", "mean", "--json"}).json();
    const attend::Json most = run_attend({"heatmap", "standard-mha", "--sequence-length", "128", "--json"}).json();
    CHECK(mean.find("largest")->as_double() < most.find("largest")->as_double());
    const Run text = run_attend({"heatmap", "standard-mha", "--sequence-length", "3", "--causal"});
    CHECK(text.status == 0);
    CHECK(contains(text.out, "█··\n"));
}

TEST_CASE("heatmap: what cannot be drawn is refused") {
    const auto refused = [](std::vector<std::string> words, const char* says) {
        words.insert(words.begin(), "heatmap");
        const Run run = run_attend(words);
        INFO(run.err);
        CHECK(run.status == 2);
        CHECK(contains(run.err, says));
    };
    refused({"linear-attention", "--sequence-length", "9"}, "linear-attention: no score matrix");
    refused({"standard-mha", "--sequence-length", "9", "--output", "x.gif"}, ".png, .svg or .html");
    refused({"standard-mha", "--sequence-length", "9", "--head", "1"}, "--head is 1; accepted: 0 to 0");
    refused({"standard-mha", "--sequence-length", "9", "--head", "-1"}, "--head");
    refused({"standard-mha"}, "--sequence-length N");
    refused({"standard-mha", "--sequence-length", "9", "--pool", "median"}, "accepted: largest, mean");
    refused({"standard-mha", "--sequence-length", "9", "--colours", "red"}, "accepted: log, linear");
    refused({"standard-mha", "--pattern", "local-attention", "--sequence-length", "9"}, "accepted: one mechanism");
    refused({"--pattern", "local-attention", "--sequence-length", "9", "--pool", "mean"}, "--pool");
    refused({"standard-mha", "--input", "/nowhere.safetensors"}, "nowhere");
    CHECK(run_attend({"heatmap", "standard-mha", "--sequence-length", "9", "--output", "/nowhere/x.png"}).status != 0);
}
