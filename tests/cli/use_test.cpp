// SPDX-License-Identifier: Apache-2.0
// Words, flags and help: what is taken, what is refused, and in which words.
#include "program.hpp"

using namespace cli_test;

TEST_CASE("flag --version names product, plugin ABI and commit") {
    const Run run = run_attend({"--version"});
    CHECK(run.status == 0);
    CHECK(run.out.starts_with("attend 0."));
    CHECK(contains(run.out, "plugin ABI 1."));
    CHECK(contains(run.out, "commit "));
    CHECK(run.err.empty());
    CHECK(run_attend({"--version", "--json"}).json().find("plugin_abi") != nullptr);
}

TEST_CASE("flag --help lists the commands that exist and no others") {
    const Run run = run_attend({"--help"});
    CHECK(run.status == 0);
    for (const char* command : {"list", "describe", "compute", "compare", "heatmap", "benchmark,", "recommend",
                                "rerank", "tune", "status", "plugins", "config", "completion"})
        CHECK(contains(run.out, std::string("\n  ") + command + " "));
    for (const char* command : {"embed", "mcp"}) CHECK_FALSE(contains(run.out, command));
}

TEST_CASE("every command's help holds two worked examples") {
    const std::vector<std::vector<std::string>> commands{{"list"},
                                                         {"describe"},
                                                         {"compute"},
                                                         {"compare"},
                                                         {"heatmap"},
                                                         {"benchmark"},
                                                         {"recommend"},
                                                         {"status"},
                                                         {"plugins"},
                                                         {"plugins", "list"},
                                                         {"plugins", "why"},
                                                         {"config"},
                                                         {"config", "check"},
                                                         {"config", "show"},
                                                         {"config", "schema"},
                                                         {"completion"},
                                                         {"rerank"},
                                                         {"tune"}};
    for (std::vector<std::string> words : commands) {
        const std::string name = words.back();
        words.emplace_back("--help");
        const Run run = run_attend(words);
        INFO(name << "\n" << run.out << run.err);
        CHECK(run.status == 0);
        const std::size_t examples = run.out.find("Examples:\n");
        REQUIRE(examples != std::string::npos);
        std::size_t count = 0;
        for (std::size_t at = run.out.find("attend ", examples); at != std::string::npos;
             at = run.out.find("attend ", at + 1))
            ++count;
        CHECK(count >= 2);
    }
}

TEST_CASE("no command, an unknown one, a mistyped one") {
    check_error(run_attend({}), 2, {"no command", "accepted: list, describe"});
    check_error(run_attend({"lst"}), 2, {"unknown command \"lst\"", "did you mean \"list\""});
    check_error(run_attend({"recomend", "--sequence-length", "4"}), 2, {"did you mean \"recommend\""});
    check_error(run_attend({"plugins"}), 2, {"plugins: no command", "list, why"});
    check_error(run_attend({"config", "chek"}), 2, {"config: unknown command \"chek\"", "did you mean \"check\""});
}

TEST_CASE("commands that are not built are unknown") {
    for (const char* command : {"embed", "index", "search", "memory", "mcp", "verify", "new-plugin"})
        check_error(run_attend({command}), 2, {std::string("unknown command \"") + command + "\""});
    check_error(run_attend({"plugins", "verify", "x.so"}), 2, {"unknown command \"verify\""});
}

TEST_CASE("an unknown flag gets the nearest names") {
    check_error(run_attend({"list", "--categry", "flash"}), 2,
                {"list: unknown flag \"--categry\"", "did you mean \"--category\""});
    check_error(run_attend({"list", "--categry=flash"}), 2, {"unknown flag \"--categry\""});
    check_error(run_attend({"--jsn", "list"}), 2, {"did you mean \"--json\""});
}

TEST_CASE("flags with a missing, repeated or wrong value") {
    check_error(run_attend({"list", "--threads"}), 2, {"--threads: has no value"});
    check_error(run_attend({"list", "--threads", "1", "--threads", "2"}), 2, {"--threads: is given more than once"});
    check_error(run_attend({"list", "--threads", "many"}), 2, {"--threads: is \"many\"", "accepted: integer from 0"});
    check_error(run_attend({"list", "--threads", "-1"}), 2, {"--threads: is -1"});
    check_error(run_attend({"list", "--backend", "sse"}), 2, {"--backend: is \"sse\"", "avx512"});
    check_error(run_attend({"list", "--log-level", "loud"}), 2,
                {"--log-level: is \"loud\"", "trace, debug, info, warn, error, off"});
}

TEST_CASE("too many words are refused") {
    check_error(run_attend({"list", "flash"}), 2, {"list: unexpected argument \"flash\""});
    check_error(run_attend({"describe", "flash-attention-v2", "linear-attention"}), 2,
                {"unexpected argument \"linear-attention\""});
    check_error(run_attend({"list", "describe"}), 2, {"unexpected argument \"describe\""});
}

TEST_CASE("global flags stand before or behind the command") {
    CHECK(run_attend({"--json", "list"}).json().find("mechanisms") != nullptr);
    CHECK(run_attend({"list", "--json"}).json().find("mechanisms") != nullptr);
    CHECK(run_attend({"plugins", "list", "--json"}).json().find("plugins") != nullptr);
}

TEST_CASE("an error is one line, and control characters in it are escaped") {
    const Run run = run_attend({"describe", "a\nb\tc"});
    check_error(run, 2, {"a\\nb\\x09c"});
    CHECK(lines(run.err) == 1);
}

TEST_CASE("output that cannot be written is a failure of the machine") {
    const Run run = run_attend({"list"}, {}, "/dev/full");
    CHECK(run.status == 4);
    CHECK(contains(run.err, "standard output: cannot be written"));
}

TEST_CASE("no colour where standard output is no terminal") {
    CHECK_FALSE(contains(run_attend({"status"}).out, "\033"));
}

TEST_CASE("completion scripts name every command") {
    for (const char* shell : {"bash", "zsh", "fish"}) {
        const Run run = run_attend({"completion", shell});
        CHECK(run.status == 0);
        for (const char* word : {"list", "describe", "compute", "recommend", "rerank", "tune", "status", "plugins",
                                 "config", "completion", "sequence-length", "plugin-dir"})
            CHECK(contains(run.out, word));
    }
    check_error(run_attend({"completion"}), 2, {"no shell"});
    check_error(run_attend({"completion", "tcsh"}), 2, {"unknown shell \"tcsh\""});
}
