// SPDX-License-Identifier: Apache-2.0
// status, plugins list and plugins why; plugins that are refused.
#include "program.hpp"

#include <fstream>

using namespace cli_test;

namespace {

const attend::Json* row_of(const attend::Json& list, const std::string& key, const std::string& value) {
    for (const attend::Json& row : list.as_array())
        if (row.find(key) != nullptr && row.find(key)->is_string() && row.find(key)->as_string() == value) return &row;
    return nullptr;
}

}  // namespace

TEST_CASE("status shows machine, plugins, search path and configuration") {
    const attend::Json json = run_attend({"status", "--json"}).json();
    for (const char* key : {"version", "plugin_abi", "commit", "cpu", "instruction_sets", "backend", "threads",
                            "plugins", "refused", "search_path", "config", "plan_cache", "metrics"})
        CHECK(json.find(key) != nullptr);
    CHECK(json.find("refused")->size() == 0);
    CHECK(row_of(*json.find("plugins"), "id", "attend.flash") != nullptr);
    CHECK(json.find("config")->find("origin")->as_string() == "built-in default");
    const Run text = run_attend({"status"});
    for (const char* part : {"CPU", "permitted", "Plugins loaded", "Plugins refused", "Search path", "attend.flash"})
        CHECK(contains(text.out, part));
}

TEST_CASE("a plugin given by file is loaded") {
    const attend::Json json = run_attend({"plugins", "list", "--plugin", plugin("echo"), "--json"}).json();
    const attend::Json* row = row_of(*json.find("plugins"), "id", "org.test.echo");
    REQUIRE(row != nullptr);
    CHECK(row->find("loaded")->as_bool());
    CHECK(row->find("version")->as_string() == "1.2.3");
    CHECK(row->find("origin")->as_string() == "--plugin");
}

TEST_CASE("plugins are found in folders: flag, environment, configuration, per user") {
    const Folder folder;
    const auto loaded = [&](const std::vector<std::string>& more, const Environment& environment) {
        std::vector<std::string> words{"list", "--from", "org.test.echo", "--json"};
        words.insert(words.end(), more.begin(), more.end());
        return run_attend(words, environment).status == 0;
    };
    CHECK(loaded({"--plugin-dir", plugin_folder("echo")}, {}));
    CHECK(loaded({}, {{"ATTEND_PLUGIN_PATH", "/nonexistent:" + plugin_folder("echo")}}));
    CHECK(loaded({"--config", folder.write("c.json", R"({"version": 1, "plugins": {"dirs": [")" +
                                                         plugin_folder("echo") + R"("]}})")},
                 {}));
    const std::string data = folder / "data";
    std::filesystem::create_directories(data + "/attend/plugins/abi-1");
    std::filesystem::copy(plugin("echo"), data + "/attend/plugins/abi-1/echo.so");
    CHECK(loaded({}, {{"XDG_DATA_HOME", data}}));
    CHECK_FALSE(loaded({}, {}));
}

TEST_CASE("a refused plugin named by --plugin stops with status 3, stage and code") {
    const Folder folder;
    const std::string text = folder.write("text.so", "no library at all");
    check_error(run_attend({"list", "--plugin", text}), 3, {text, "inspect", "WRONG_FORMAT"});
    check_error(run_attend({"list", "--plugin", folder / "none.so"}), 3, {"none.so"});
    check_error(run_attend({"compute", "flash-attention-v2", "--sequence-length", "4", "--plugin", plugin("closed")}),
                3, {"OPEN_FAILED", "not today"});
    check_error(run_attend({"list", "--plugin", plugin("crash")}), 3, {"LOAD_CRASHED"});
}

TEST_CASE("a truncated plugin is refused before any of its code runs") {
    const Folder folder;
    std::ifstream stream(plugin("echo"), std::ios::binary);
    const std::string whole{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
    const std::string cut = folder.write("cut.so", whole.substr(0, whole.size() * 9 / 10));
    check_error(run_attend({"list", "--plugin", cut}), 3, {"inspect"});
}

TEST_CASE("a refused plugin in a folder is a warning, and the others go on") {
    const Run run = run_attend({"list", "--plugin-dir", plugin_folder("crash"), "--plugin-dir", plugin_folder("echo")});
    CHECK(run.status == 0);
    CHECK(contains(run.out, "echo-attention"));
    CHECK(contains(run.err, "attend: warning: "));
    CHECK(contains(run.err, "LOAD_CRASHED"));
    CHECK(lines(run.err) == 1);
    CHECK(run_attend({"list", "--plugin-dir", plugin_folder("crash"), "--quiet"}).err.empty());
}

TEST_CASE("a folder that does not exist is a warning") {
    const Run run = run_attend({"list", "--plugin-dir", "/nonexistent/folder"});
    CHECK(run.status == 0);
    CHECK(contains(run.err, "/nonexistent/folder"));
}

TEST_CASE("a mechanism of a refused plugin, asked for by its qualified name") {
    const std::string folder = plugin_folder("closed");
    const Run run = run_attend(
        {"compute", "org.test.closed/closed-attention", "--sequence-length", "4", "--plugin-dir", folder, "--quiet"});
    check_error(run, 3, {"OPEN_FAILED", "not today"});
}

TEST_CASE("status and plugins report refused files instead of stopping") {
    const attend::Json status = run_attend({"status", "--plugin", plugin("crash"), "--json"}).json();
    const attend::Json* refused = row_of(*status.find("refused"), "path", plugin("crash"));
    REQUIRE(refused != nullptr);
    CHECK(refused->find("code")->as_string() == "LOAD_CRASHED");
    CHECK(refused->find("stage")->is_string());
    CHECK(refused->find("sentence")->is_string());
    CHECK(contains(run_attend({"plugins", "list", "--plugin", plugin("crash")}).out, "refused: LOAD_CRASHED"));
}

TEST_CASE("plugins why: by id, mechanism, file name, path") {
    for (const std::string& name :
         {std::string("org.test.echo"), std::string("echo-attention"), std::string("libattend_cli_echo.so"),
          plugin("echo"), std::string("org.test.echo/echo-attention")}) {
        const Run run = run_attend({"plugins", "why", name, "--plugin", plugin("echo")});
        INFO(name << run.err);
        CHECK(run.status == 0);
        for (const char* part : {"org.test.echo 1.2.3", "enumerate", "inspect", "probe", "publish", "echo-attention"})
            CHECK(contains(run.out, part));
    }
    const attend::Json json = run_attend({"plugins", "why", "attend.flash", "--json"}).json();
    CHECK(json.find("plugins")->size() == 1);
    CHECK(json.find("plugins")->as_array().front().find("steps")->size() >= 2);
}

TEST_CASE("plugins why: of refused files and of names in conflict") {
    const Run refused = run_attend({"plugins", "why", "libattend_cli_closed.so", "--plugin", plugin("closed")});
    CHECK(refused.status == 0);
    CHECK(contains(refused.out, "OPEN_FAILED"));
    const Run conflict = run_attend({"plugins", "why", "flash-attention-v2", "--plugin", plugin("shadow")});
    CHECK(conflict.status == 0);
    CHECK(contains(conflict.out, "the short name belongs to attend.flash"));
    CHECK(contains(conflict.out, "reserved for the built-in one"));
}

TEST_CASE("plugins why: a name that nothing has") {
    check_error(run_attend({"plugins", "why", "attend.flsh"}), 2, {"unknown", "did you mean \"attend.flash\""});
    check_error(run_attend({"plugins", "why"}), 2, {"nothing is named"});
}

TEST_CASE("the same plugin from two places is loaded once, the second is a duplicate") {
    const Folder folder;
    const std::string copy = folder / "copy.so";
    std::filesystem::copy(plugin("echo"), copy);
    const attend::Json json = run_attend({"status", "--plugin", plugin("echo"), "--plugin", copy, "--json"}).json();
    const attend::Json* refused = row_of(*json.find("refused"), "path", copy);
    REQUIRE(refused != nullptr);
    CHECK(refused->find("code")->as_string() == "DUPLICATE_PLUGIN");
}

TEST_CASE("a provider in the configuration gives a plugin the short name") {
    const Folder folder;
    const std::string file = folder.write(
        "c.json", R"({"version": 1, "mechanisms": {"flash-attention-v2": {"provider": "org.test.shadow"}}})");
    CHECK(run_attend({"describe", "flash-attention-v2", "--plugin", plugin("shadow"), "--config", file, "--json"})
              .json()
              .find("category")
              ->as_string() == "extra");
}
