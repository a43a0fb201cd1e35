// SPDX-License-Identifier: Apache-2.0
// attend benchmark through the program: its reports and files, its refusals, and a planted wrong answer. Nothing here
// depends on how fast anything is.
#include <fstream>
#include <iterator>
#include <set>

#include "program.hpp"

using attend::Json;
using cli_test::check_error;
using cli_test::contains;
using cli_test::Folder;
using cli_test::Run;
using cli_test::run_attend;

namespace {

std::string text_of(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

const Json& at(const Json& object, const char* key) {
    const Json* value = object.find(key);
    INFO("key " << key);
    REQUIRE(value != nullptr);
    return *value;
}

Run bench(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"benchmark", "--threads", "1"});
    return run_attend(arguments);
}

}  // namespace

TEST_CASE("benchmark: the quick suite measures every mechanism and checks it first") {
    const Run run = bench({"--suite", "quick", "--sequence-length", "48", "--heads", "2", "--json"});
    INFO(run.err);
    CHECK(run.status == 0);
    const Json report = run.json();
    CHECK(at(report, "suite").as_string() == "quick");
    CHECK(at(report, "passed").as_bool());
    for (const char* key : {"commit", "compiler", "cpu", "command", "threads", "backend", "version"})
        CHECK(at(report, "environment").find(key) != nullptr);
    const Json& peak = at(report, "peaks").as_array().front();
    CHECK(at(peak, "fma_gflops").as_double() > 0);
    CHECK(at(peak, "memory_read_gbps").as_double() > 0);
    std::set<std::string> measured, listed;
    for (const Json& row : at(report, "rows").as_array()) {
        measured.insert(at(row, "mechanism").as_string());
        INFO(attend::write_json(row));
        if (at(row, "status").as_string() != "measured") continue;
        CHECK(at(row, "runs").to_int64().value_or(0) >= 10);
        CHECK(at(row, "median_ms").as_double() > 0);
        CHECK(at(row, "lower_quartile_ms").as_double() <= at(row, "upper_quartile_ms").as_double());
        CHECK(!at(row, "checked_against").as_string().empty());
        // Products of bf16 unless an option says otherwise.
        const bool rounds = at(row, "mechanism").as_string() == "flash-attention-v3";
        CHECK(at(row, "check_error").as_double() < (rounds ? 2e-2 : 1e-3));
        CHECK(at(row, "bytes_moved").as_double() > 0);
        CHECK(at(row, "peak_resident_bytes").as_double() > 0);
    }
    const Json list = run_attend({"list", "--json"}).json();
    for (const Json& mechanism : at(list, "mechanisms").as_array()) listed.insert(at(mechanism, "name").as_string());
    CHECK(measured == listed);
}

TEST_CASE("benchmark: bench is the same command, with text for people") {
    const Run run = run_attend({"bench", "--threads", "1", "--mechanism", "flash-attention-v2", "--sequence-length",
                                "32,64", "--dim", "16", "--heads", "4", "--kv-heads", "2", "--causal"});
    INFO(run.err);
    CHECK(run.status == 0);
    CHECK(contains(run.out, "flash-attention-v2  B1 H4/2 N32 D16 causal"));
    CHECK(contains(run.out, "float64 softmax"));
    CHECK(contains(run.out, "passed in"));
}

TEST_CASE("benchmark: reports as files") {
    const Folder folder;
    for (const char* name : {"report.json", "report.html", "report.csv"}) {
        const std::string path = folder / name;
        const Run run = bench({"--mechanism", "flash-attention-v2", "--mechanism", "linear-attention",
                               "--sequence-length", "32,64", "--heads", "1", "--output", path});
        INFO(run.err);
        CHECK(run.status == 0);
        const std::string text = text_of(path);
        REQUIRE(!text.empty());
        if (path.ends_with(".json")) {
            const auto report = attend::parse_json(text, "report");
            REQUIRE(report.ok());
            CHECK(at(*report, "rows").size() == 4);
            CHECK(contains(at(at(*report, "environment"), "command").as_string(), "--mechanism flash-attention-v2"));
        } else if (path.ends_with(".html")) {
            CHECK(contains(text, "<svg"));
            CHECK(contains(text, "Time against length: flash"));
            CHECK(contains(text, "Distance from exact attention against time at 64 keys"));
            CHECK(contains(text, "prefers-color-scheme:dark"));
            CHECK(!contains(text, "http"));
            CHECK(!contains(text, " src="));
        } else {
            CHECK(cli_test::lines(text) == 5);
            CHECK(text.starts_with("name,mechanism,category,backend,precision,threads"));
        }
    }
    CHECK(std::distance(std::filesystem::directory_iterator(std::filesystem::path(folder / "report.csv").parent_path()),
                        std::filesystem::directory_iterator()) == 3);
}

TEST_CASE("benchmark: wrong use") {
    check_error(bench({"--suite", "targts"}), 2, {"--suite: unknown suite \"targts\"", "targets"});
    check_error(bench({"--category", "flsh"}), 2, {"--category: unknown category \"flsh\"", "flash"});
    check_error(bench({"--mechanism", "flash-attention-v1"}), 2, {"flash-attention-v1", "flash-attention-v2"});
    check_error(bench({"--sequence-length", "64,many"}), 2,
                {"--sequence-length: is \"64,many\"", "integers of at least 1"});
    check_error(bench({"--precision", "bf61"}), 2, {"--precision: unknown precision \"bf61\"", "bf16"});
    check_error(bench({"--repeat", "3"}), 2, {"--repeat: is \"3\"", "at least 10"});
    check_error(bench({"--kv-heads", "3"}), 2, {"--kv-heads: is 3", "a divisor of --heads"});
    check_error(bench({"--all", "--category", "flash"}), 2, {"--all stands beside", "one of them"});
    check_error(bench({"--seconds", "3"}), 2, {"--seconds", "--suite stress"});
    check_error(bench({"--rows", "decode"}), 2, {"--rows", "--suite targets"});
    check_error(bench({"--output", "report.txt"}), 2, {"--output: is \"report.txt\"", ".json, .html or .csv"});
    check_error(bench({"--suite", "targets", "--rows", "no such row"}), 2, {"no row of the table of targets"});
    check_error(bench({"--suit", "quick"}), 2, {"unknown flag \"--suit\"", "--suite"});
}

TEST_CASE("benchmark: a report that cannot be written") {
    const Run run = bench({"--mechanism", "linear-attention", "--sequence-length", "16", "--heads", "1", "--output",
                           "/nonexistent/report.json"});
    check_error(run, 4, {"/nonexistent/report.json: cannot be written", "an existing, writable folder is needed"});
}

TEST_CASE("benchmark: a wrong answer has an error and no time") {
    const Run run = bench({"--plugin", cli_test::plugin("wrong"), "--mechanism", "wrong-attention", "--sequence-length",
                           "64", "--heads", "2", "--json"});
    INFO(run.err);
    CHECK(run.status == 1);
    const Json report = run.json();
    CHECK(!at(report, "passed").as_bool());
    const Json& row = at(report, "rows").as_array().front();
    CHECK(at(row, "status").as_string() == "wrong");
    CHECK(contains(at(row, "note").as_string(), "wrong answer: relative error"));
    CHECK(at(row, "check_error").as_double() > 0.01);
    CHECK(at(row, "median_ms").is_null());
    CHECK(at(row, "gflops").is_null());
    CHECK(at(row, "runs") == Json(0));
}

TEST_CASE("benchmark: rows of targets that say nothing here say so") {
    const Run run = run_attend({"benchmark", "--suite", "targets", "--rows", "thread scaling", "--threads", "2",
                                "--sequence-length", "512", "--backend", "baseline", "--json"});
    INFO(run.err);
    CHECK(run.status == 0);
    const Json report = run.json();
    for (const Json& row : at(report, "rows").as_array()) {
        CHECK(at(row, "status").as_string() == "not_run");
        CHECK(at(at(row, "target"), "result").as_string() == "not_applicable");
        CHECK(!at(row, "note").as_string().empty());
        CHECK(at(at(row, "target"), "measured").is_null());
    }
    CHECK(at(report, "rows").size() == 1);
    CHECK(contains(at(report, "notes").as_array().back().as_string(), "1 rows were not measured"));
}

TEST_CASE("benchmark: stress checks random calls and finds no drift") {
    const Run run = bench({"--suite", "stress", "--seconds", "2", "--json"});
    INFO(run.err << run.out);
    CHECK(run.status == 0);
    CHECK(contains(at(run.json(), "notes").as_array().front().as_string(), "calls; resident memory grew by"));
}

TEST_CASE("benchmark: memory holds tiles against stored scores") {
    const Run run = bench({"--suite", "memory", "--sequence-length", "512", "--json"});
    INFO(run.err);
    CHECK(run.status == 0);
    std::set<std::string> names;
    const Json report = run.json();
    for (const Json& row : at(report, "rows").as_array()) {
        names.insert(at(row, "name").as_string());
        CHECK(at(row, "extra_bytes").as_double() >= 0);
    }
    CHECK(names.count("materialised") == 1);
    CHECK(names.count("flash-attention-v2") == 1);
}

TEST_CASE("benchmark: every row of the table of targets is complete") {
    const auto table = attend::parse_json(text_of(TARGETS_FILE), "targets.json");
    REQUIRE(table.ok());
    const std::set<std::string> metrics{"share_of_fma", "share_of_bf16", "share_of_memory", "kv_gbps",
                                        "time_us",      "scaling",       "overhead_us",     "workspace_mb_per_thread"};
    const std::set<std::string> lower{"time_us", "overhead_us", "workspace_mb_per_thread"};
    CHECK(at(*table, "rows").size() >= 20);
    for (const Json& row : at(*table, "rows").as_array()) {
        INFO(attend::write_json(row));
        CHECK(!at(row, "name").as_string().empty());
        CHECK(!at(row, "mechanism").as_string().empty());
        const std::string metric = at(row, "metric").as_string();
        CHECK(metrics.count(metric) == 1);
        const double must = at(row, "must").as_double(), aim = at(row, "aim").as_double();
        CHECK(must > 0);
        CHECK((lower.count(metric) == 1 ? aim < must : aim > must));
        CHECK(at(row, "sequence_length").size() > 0);
        CHECK(at(row, "dim").size() > 0);
    }
}

TEST_CASE("suite precision has a row for each precision, with its own peak") {
    const attend::Json report =
        bench({"--suite", "precision", "--sequence-length", "256", "--dim", "32", "--heads", "2", "--json"}).json();
    std::string found;
    for (const Json& row : at(report, "rows").as_array()) {
        CHECK(at(row, "status").as_string() == "measured");
        CHECK(at(row, "median_ms").as_double() > 0);
        const std::string precision = at(row, "precision").as_string();
        found += at(row, "mechanism").as_string().back() + precision + " ";
        if (precision == "fp32") CHECK(at(row, "peak_kind").as_string() == "fma");
        if (precision == "int8") CHECK(at(row, "peak_kind").as_string() == "int8 and bf16");
        if (precision == "int8" || precision == "fp8") CHECK(at(row, "error_against_exact").as_double() > 1e-3);
    }
    CHECK(found == "2fp32 2bf16 3fp32 3bf16 3int8 3fp8 ");
    const attend::Json one = bench({"--suite", "precision", "--mechanism", "flash-attention-v3", "--precision", "int8",
                                    "--sequence-length", "64", "--heads", "2", "--json"})
                                 .json();
    CHECK(at(one, "rows").as_array().size() == 1);
}

TEST_CASE("suite scaling says how time grows with the length") {
    const attend::Json report = run_attend({"benchmark", "--suite", "scaling", "--mechanism", "local-attention",
                                            "--sequence-length", "512,256", "--json"})
                                    .json();
    const auto& rows = report.find("rows")->as_array();
    REQUIRE(rows.size() == 2);
    CHECK(rows[0].find("kv_len")->as_int64() == 256);
    CHECK(rows[0].find("growth")->is_null());
    CHECK(rows[1].find("growth")->as_double() > 0.0);
    CHECK(rows[1].find("growth")->as_double() ==
          rows[1].find("median_ms")->as_double() / rows[0].find("median_ms")->as_double());
}

TEST_CASE("suite decode measures caches of every kind against the read rate") {
    const attend::Json report = run_attend({"benchmark", "--suite", "decode", "--sequence-length", "300", "--dim", "32",
                                            "--heads", "8", "--kv-heads", "2", "--threads", "1", "--json"})
                                    .json();
    std::set<std::string> kinds;
    for (const attend::Json& row : report.find("rows")->as_array()) {
        CHECK(row.find("status")->as_string() == "measured");
        CHECK(row.find("mechanism")->as_string() == "flash-decoding");
        CHECK(row.find("peak_kind")->as_string() == "memory");
        CHECK(row.find("check_error")->as_double() < 1e-2);
        const std::string shape = row.find("shape")->as_string();
        kinds.insert(row.find("precision")->as_string() + shape.substr(std::min(shape.size(), shape.find(" pages"))));
    }
    CHECK(kinds == std::set<std::string>{"fp32", "bf16", "int8", "fp32 pages of 64", "bf16 pages of 16",
                                         "bf16 pages of 64", "bf16 pages of 256", "int8 pages of 64"});
}
