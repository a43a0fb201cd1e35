// SPDX-License-Identifier: Apache-2.0
// Every member of the zoo beside a good plugin: it is refused with the right stage, code and reason, in every report
// that names files, and neither the good plugin nor the built-in ones notice.
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "../cli/program.hpp"

using namespace cli_test;
namespace fs = std::filesystem;

namespace {

enum class Runs { all, one };

std::string zoo(const std::string& sin) { return std::string(ZOO_FOLDER) + "/" + sin + ".so"; }

std::string bytes_of(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

const attend::Json* row_of(const attend::Json& list, const std::string& key, const std::string& value) {
    for (const attend::Json& row : list.as_array())
        if (row.find(key) != nullptr && row.find(key)->is_string() && row.find(key)->as_string() == value) return &row;
    return nullptr;
}

std::size_t count_of(const std::string& text, const std::string& part) {
    std::size_t count = 0;
    for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
    return count;
}

void check_others(const attend::Json& plugins) {
    const attend::Json* neighbour = row_of(plugins, "id", "org.example.mean");
    REQUIRE(neighbour != nullptr);
    CHECK(neighbour->find("loaded")->as_bool());
    const attend::Json* built_in = row_of(plugins, "id", "attend.flash");
    REQUIRE(built_in != nullptr);
    CHECK(built_in->find("loaded")->as_bool());
}

// The file at `path`, in a folder with the neighbour.
void check_refused_file(const std::string& folder, const std::string& path, const std::string& stage,
                        const std::string& code, const std::string& part, Runs runs = Runs::all) {
    const Run list = run_attend({"plugins", "list", "--plugin-dir", folder, "--json"});
    INFO(list.out << list.err);
    REQUIRE(list.status == 0);
    CHECK(list.err.empty());
    const attend::Json json = list.json(), plugins = *json.find("plugins");
    const attend::Json* row = row_of(plugins, "path", path);
    REQUIRE(row != nullptr);
    CHECK_FALSE(row->find("loaded")->as_bool());
    REQUIRE(row->find("refused") != nullptr);
    const attend::Json& refused = *row->find("refused");
    CHECK(refused.find("stage")->as_string() == stage);
    CHECK(refused.find("code")->as_string() == code);
    CHECK(contains(refused.find("sentence")->as_string(), part));
    CHECK(row->find("mechanisms")->size() == 0);
    check_others(plugins);
    if (runs == Runs::one) return;

    const Run names = run_attend({"list", "--plugin-dir", folder, "--json"});
    INFO(names.out << names.err);
    CHECK(names.status == 0);
    (void)names.json();
    CHECK(contains(names.out, "mean-attention"));
    CHECK(contains(names.out, "flash-attention-v2"));
    CHECK(lines(names.err) == 1);
    CHECK(count_of(names.err, path) == 1);
    for (const std::string& word : {stage, code, part}) CHECK(contains(names.err, word));

    const Run why = run_attend({"plugins", "why", fs::path(path).filename().string(), "--plugin-dir", folder});
    INFO(why.out << why.err);
    CHECK(why.status == 0);
    for (const std::string& word : {path, stage, "refused, " + code, part}) CHECK(contains(why.out, word));

    // Named by the user, it is an error.
    check_error(run_attend({"list", "--plugin", path}), 3, {path, stage, code, part});
}

void check_refused(const std::string& sin, const std::string& stage, const std::string& code, const std::string& part,
                   Runs runs = Runs::all) {
    const Folder folder;
    const std::string path = folder / (sin + ".so");
    fs::copy(zoo(sin), path);
    fs::copy(ZOO_NEIGHBOUR, folder / "neighbour.so");
    check_refused_file(folder / "", path, stage, code, part, runs);
}

// Not a plugin at all: no word about it in a folder, an error when named.
void check_ignored_file(const Folder& folder, const std::string& path, const std::string& stage,
                        const std::string& code, const std::string& part) {
    fs::copy(ZOO_NEIGHBOUR, folder / "neighbour.so");
    const Run list = run_attend({"plugins", "list", "--plugin-dir", folder / "", "--json"});
    INFO(list.out << list.err);
    REQUIRE(list.status == 0);
    const attend::Json json = list.json();
    CHECK(row_of(*json.find("plugins"), "path", path) == nullptr);
    check_others(*json.find("plugins"));
    CHECK(run_attend({"list", "--plugin-dir", folder / ""}).err.empty());
    check_error(run_attend({"list", "--plugin", path}), 3, {path, stage, code, part});
}

std::string status_note(const Run& status, const std::string& path) {
    const attend::Json json = status.json();
    const attend::Json* row = row_of(*json.find("search_path"), "path", path);
    REQUIRE(row != nullptr);
    return row->find("note")->as_string();
}

}  // namespace

#define SIN(sin, stage, code, part) \
    TEST_CASE("zoo: " #sin) { check_refused(#sin, stage, code, part); }

TEST_CASE("zoo: the good one loads, and so does the neighbour") {
    const Folder folder;
    fs::copy(zoo("good"), folder / "good.so");
    fs::copy(ZOO_NEIGHBOUR, folder / "neighbour.so");
    const attend::Json json = run_attend({"plugins", "list", "--plugin-dir", folder / "", "--json"}).json();
    const attend::Json* row = row_of(*json.find("plugins"), "id", "org.zoo.good");
    REQUIRE(row != nullptr);
    CHECK(row->find("loaded")->as_bool());
    check_others(*json.find("plugins"));
}

// ---- before any code runs ----
TEST_CASE("zoo: no_note") {
    const Folder folder;
    fs::copy(zoo("no_note"), folder / "no_note.so");
    check_ignored_file(folder, folder / "no_note.so", "inspect", "NOT_A_PLUGIN", "no ATTEND note");
}
TEST_CASE("zoo: note_magic") {
    const Folder folder;
    fs::copy(zoo("note_magic"), folder / "note_magic.so");
    check_ignored_file(folder, folder / "note_magic.so", "inspect", "NOT_A_PLUGIN", "0x12345678");
}
SIN(note_major, "inspect", "ABI_MAJOR", "plugin ABI 2")
SIN(note_layout, "inspect", "LAYOUT", "0x4040104")
SIN(newer_host, "inspect", "NEEDS_NEWER_HOST", "1.7")
SIN(needs_sve, "inspect", "ISA_UNSUPPORTED", "SVE")
SIN(missing_entry, "inspect", "MISSING_ENTRY", "attend_plugin_entry")
SIN(extra_export, "inspect", "EXTRA_EXPORTS", "zoo_helper")
SIN(executable_stack, "inspect", "EXEC_STACK", "executable stack")
SIN(static_tls, "inspect", "STATIC_TLS", "thread-local")
SIN(relative_path, "inspect", "MISSING_LIBRARY", "lib/beside")

// ---- the loader ----
SIN(unresolved, "load", "UNRESOLVED", "zoo_exists_nowhere")
SIN(missing_library, "load", "MISSING_LIBRARY", "libzoo_helper.so")

// ---- crashes, exits, exceptions: in the child ----
SIN(throws_in_entry, "negotiate", "THREW", "the entry threw")
SIN(throws_in_open, "open", "THREW", "out of open")
SIN(throws_no_exception, "open", "THREW", "threw through the boundary")
SIN(aborts_in_constructor, "probe", "LOAD_CRASHED", "signal 6")
SIN(exits_in_constructor, "probe", "LOAD_EXITED", "status 0")
SIN(prints_and_exits, "probe", "LOAD_EXITED", "status 0")
SIN(closes_and_crashes, "probe", "LOAD_CRASHED", "signal 6")
#if !defined(__SANITIZE_ADDRESS__)  // which turns the signal into an exit of its own
SIN(segfaults, "probe", "LOAD_CRASHED", "signal 11")
#endif
SIN(crashes_at_end, "probe", "LOAD_CRASHED", "signal 6")
SIN(floods, "probe", "LOAD_CRASHED", "signal 13")
TEST_CASE("zoo: loops", "[slow]") { check_refused("loops", "probe", "LOAD_TIMEOUT", "10 s", Runs::one); }

// ---- what belongs to the process ----
SIN(prints, "probe", "CHANGED_PROCESS_STATE", "printed by a plugin")
SIN(prints_at_end, "probe", "CHANGED_PROCESS_STATE", "printed at the end")
SIN(changes_locale, "probe", "CHANGED_PROCESS_STATE", "the locale")
SIN(changes_rounding, "probe", "CHANGED_PROCESS_STATE", "the floating-point mode")
SIN(changes_folder, "probe", "CHANGED_PROCESS_STATE", "the working folder")
SIN(changes_mask, "probe", "CHANGED_PROCESS_STATE", "the file mask")
SIN(changes_signal, "probe", "CHANGED_PROCESS_STATE", "a signal handler")
SIN(changes_environment, "probe", "CHANGED_PROCESS_STATE", "the environment")
SIN(leaves_thread, "probe", "CHANGED_PROCESS_STATE", "a thread")
SIN(leaves_file, "probe", "CHANGED_PROCESS_STATE", "a file left open")

// ---- the table ----
SIN(null_table, "negotiate", "ABI_MAJOR", "no table")
SIN(table_major, "negotiate", "ABI_MAJOR", "org.zoo.table_major 1.0.0 was built for plugin ABI 2")
SIN(table_magic, "negotiate", "BAD_DESCRIPTOR", "not a plugin table")
SIN(table_layout, "negotiate", "LAYOUT", "data layout")
SIN(table_short, "audit", "BAD_DESCRIPTOR", "shorter than that of ABI 1.0")
SIN(table_minor, "audit", "BAD_DESCRIPTOR", "note and table differ")
SIN(score_zero, "negotiate", "SCORED_ZERO", "cannot run on this CPU")
SIN(null_open, "audit", "BAD_DESCRIPTOR", "is NULL")
SIN(capital_id, "audit", "BAD_DESCRIPTOR", "Org.Zoo")
SIN(empty_id, "audit", "BAD_DESCRIPTOR", "no id")
SIN(open_fails, "open", "OPEN_FAILED", "needs a licence file")
SIN(open_null, "open", "OPEN_FAILED", "org.zoo.open_null")

// ---- mechanisms ----
SIN(no_mechanism, "audit", "BAD_DESCRIPTOR", "0 mechanisms")
SIN(too_many, "audit", "BAD_DESCRIPTOR", "1000000 mechanisms")
SIN(null_mechanism, "audit", "BAD_DESCRIPTOR", "mechanism_at returned NULL")
SIN(short_mechanism, "audit", "BAD_DESCRIPTOR", "struct_size is 100")
SIN(duplicate_mechanism, "audit", "DUPLICATE_NAME", "zoo-attention")
SIN(capital_name, "audit", "BAD_DESCRIPTOR", "Zoo-Attention")
SIN(bad_utf8, "audit", "BAD_DESCRIPTOR", "UTF-8")
SIN(bad_category, "audit", "BAD_DESCRIPTOR", "fast")
SIN(bad_numerics, "audit", "BAD_DESCRIPTOR", "numerics 9")
SIN(no_float, "audit", "BAD_DESCRIPTOR", "float32")
SIN(null_plan, "audit", "BAD_DESCRIPTOR", "is NULL")

// ---- options and ports ----
SIN(duplicate_option, "audit", "BAD_DESCRIPTOR", "listed twice")
SIN(default_outside, "audit", "BAD_DESCRIPTOR", "9; accepted: integer from 0 to 8")
SIN(default_no_json, "audit", "BAD_DESCRIPTOR", "default")
SIN(empty_range, "audit", "BAD_DESCRIPTOR", "range is empty")
SIN(enum_without_choices, "audit", "BAD_DESCRIPTOR", "without choices")
SIN(option_type, "audit", "BAD_DESCRIPTOR", "type 8")
SIN(option_name, "audit", "BAD_DESCRIPTOR", "Window")
SIN(option_unnamed, "audit", "BAD_DESCRIPTOR", "no name")
SIN(option_stride, "audit", "BAD_DESCRIPTOR", "stride 88")
SIN(port_both, "audit", "BAD_DESCRIPTOR", "exactly one of INPUT, OUTPUT, WEIGHT")
SIN(port_neither, "audit", "BAD_DESCRIPTOR", "exactly one of INPUT, OUTPUT, WEIGHT")
SIN(port_role, "audit", "BAD_DESCRIPTOR", "role 13")
SIN(port_shape, "audit", "BAD_DESCRIPTOR", "table")
SIN(duplicate_port, "audit", "BAD_DESCRIPTOR", "listed twice")
SIN(no_output, "audit", "BAD_DESCRIPTOR", "no output port")
SIN(output_is_input, "audit", "BAD_DESCRIPTOR", "accepted: OUTPUT with this role")
SIN(port_stride, "audit", "BAD_DESCRIPTOR", "stride 60")
SIN(port_size, "audit", "BAD_DESCRIPTOR", "struct_size 48")

// ---- files ----
#define TRUNCATED(percent)                                                                              \
    TEST_CASE("zoo: cut at " #percent " %") {                                                           \
        const Folder folder;                                                                            \
        const std::string whole = bytes_of(zoo("good"));                                                \
        const std::string path = folder.write("cut.so", whole.substr(0, whole.size() * percent / 100)); \
        fs::copy(ZOO_NEIGHBOUR, folder / "neighbour.so");                                               \
        check_refused_file(folder / "", path, "inspect", "TRUNCATED", "");                              \
    }
TRUNCATED(25)
TRUNCATED(50)
TRUNCATED(75)
TRUNCATED(90)
TRUNCATED(99)

TEST_CASE("zoo: another processor") {
    const Folder folder;
    std::string bytes = bytes_of(zoo("good"));
    bytes[18] = static_cast<char>(243);  // e_machine: RISC-V
    bytes[19] = 0;
    const std::string path = folder.write("machine.so", bytes);
    fs::copy(ZOO_NEIGHBOUR, folder / "neighbour.so");
    check_refused_file(folder / "", path, "inspect", "WRONG_ARCH", "RISC-V");
}
TEST_CASE("zoo: a 32-bit library") {
    const Folder folder;
    std::string bytes = bytes_of(zoo("good"));
    bytes[4] = 1;  // ELFCLASS32
    const std::string path = folder.write("small.so", bytes);
    fs::copy(ZOO_NEIGHBOUR, folder / "neighbour.so");
    check_refused_file(folder / "", path, "inspect", "WRONG_ARCH", "32");
}
TEST_CASE("zoo: a text file") {
    const Folder folder;
    check_ignored_file(folder, folder.write("text.so", "no library at all\n"), "inspect", "WRONG_FORMAT", "");
}
TEST_CASE("zoo: an empty file") {
    const Folder folder;
    check_ignored_file(folder, folder.write("empty.so", ""), "inspect", "", "");
}
TEST_CASE("zoo: a FIFO") {
    const Folder folder;
    const std::string path = folder / "fifo.so";
    REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
    check_ignored_file(folder, path, "enumerate", "WRONG_FORMAT", "not a regular file");
}
TEST_CASE("zoo: a dangling link") {
    const Folder folder;
    fs::create_symlink(folder / "nothing.so", folder / "link.so");
    check_ignored_file(folder, folder / "link.so", "enumerate", "WRONG_FORMAT", "cannot be opened");
}
TEST_CASE("zoo: a link to itself") {
    const Folder folder;
    fs::create_symlink(folder / "link.so", folder / "link.so");
    check_ignored_file(folder, folder / "link.so", "enumerate", "WRONG_FORMAT", "cannot be opened");
}
TEST_CASE("zoo: a folder named like a library") {
    const Folder folder;
    fs::create_directory(folder / "folder.so");
    check_ignored_file(folder, folder / "folder.so", "enumerate", "WRONG_FORMAT", "not a regular file");
}

// ---- conflicts ----
TEST_CASE("zoo: the same id and version twice, the first wins") {
    const Folder folder;
    fs::copy(zoo("good"), folder / "a.so");
    fs::copy(zoo("same_id"), folder / "b.so");
    fs::copy(ZOO_NEIGHBOUR, folder / "neighbour.so");
    check_refused_file(folder / "", folder / "b.so", "names", "DUPLICATE_PLUGIN", folder / "a.so", Runs::one);
    CHECK(contains(run_attend({"list", "--plugin-dir", folder / ""}).out, "zoo-attention"));
}
TEST_CASE("zoo: the same id in two versions, the higher wins") {
    const Folder folder;
    fs::copy(zoo("good"), folder / "a.so");
    fs::copy(zoo("same_id_newer"), folder / "b.so");
    fs::copy(ZOO_NEIGHBOUR, folder / "neighbour.so");
    check_refused_file(folder / "", folder / "a.so", "names", "DUPLICATE_PLUGIN", "version 1.10.0 is in use",
                       Runs::one);
    const Run list = run_attend({"list", "--plugin-dir", folder / ""});
    CHECK(contains(list.out, "zoo-second"));
    CHECK_FALSE(contains(list.out, "zoo-attention"));
}
TEST_CASE("zoo: a built-in short name stays with the built-in") {
    const Folder folder;
    fs::copy(zoo("repeats_name"), folder / "repeats.so");
    const std::string dir = folder / "";
    CHECK(contains(run_attend({"describe", "flash-attention-v2", "--plugin-dir", dir}).out, "attend.flash"));
    const Run other = run_attend({"describe", "org.zoo.repeats_name/flash-attention-v2", "--plugin-dir", dir});
    INFO(other.out << other.err);
    CHECK(other.status == 0);
    CHECK(contains(other.out, "A member of the zoo"));
    CHECK(contains(run_attend({"plugins", "why", "repeats.so", "--plugin-dir", dir}).out,
                   "the short name belongs to attend.flash"));
}

// ---- all of them at once ----
// Nothing is wrong with the file, so it loads; what it says is used to address memory, and is not believed.
TEST_CASE("zoo: key patterns outside the call") {
    for (const char* sin : {"stray_pattern", "stray_rows_pattern"}) {
        const std::vector<std::vector<std::string>> questions = {
            {"heatmap", "--pattern", "zoo-attention", "--sequence-length", "9", "--plugin", zoo(sin)},
            {"describe", "zoo-attention", "--plan", "--sequence-length", "9", "--plugin", zoo(sin)}};
        for (const std::vector<std::string>& question : questions) {
            const Run run = run_attend(question);
            INFO(sin << ": " << run.out << run.err);
            CHECK(run.status != 0);
            CHECK(run.out.empty());
            CHECK(contains(run.err,
                           "zoo-attention: its key pattern names rows or keys outside the call; accepted: "
                           "rows that were asked for, keys up to 9"));
        }
    }
}

TEST_CASE("zoo: the whole zoo in one folder beside a good plugin", "[slow]") {
    const Folder folder;
    std::size_t members = 0;
    for (const fs::directory_entry& entry : fs::directory_iterator(ZOO_FOLDER)) {
        if (entry.path().extension() != ".so" || entry.path().stem() == "loops") continue;
        fs::copy(entry.path(), folder / entry.path().filename().string());
        ++members;
    }
    REQUIRE(members > 70);
    fs::copy(ZOO_NEIGHBOUR, folder / "neighbour.so");
    const Run run = run_attend(
        {"compute", "mean-attention", "--sequence-length", "8", "--dim", "16", "--plugin-dir", folder / "", "--json"});
    INFO(run.out << run.err);
    CHECK(run.status == 0);
    (void)run.json();
    CHECK_FALSE(contains(run.out, "printed"));
    const attend::Json json = run_attend({"status", "--plugin-dir", folder / "", "--json"}).json();
    // Loaded: good or its newer version, repeats_name, stray_pattern, stray_rows_pattern, neighbour; not plugins: no_note,
    // note_magic.
    CHECK(json.find("refused")->size() == members - 6);
}

// ---- folders ----
TEST_CASE("zoo: a folder that does not exist is said once") {
    const Run run = run_attend({"list", "--plugin-dir", "/nonexistent/zoo"});
    CHECK(run.status == 0);
    CHECK(lines(run.err) == 1);
    CHECK(count_of(run.err, "/nonexistent/zoo") == 1);
    CHECK(contains(run.err, "does not exist"));
    CHECK(contains(run.out, "flash-attention-v2"));
    CHECK(
        contains(status_note(run_attend({"status", "--plugin-dir", "/nonexistent/zoo", "--json"}), "/nonexistent/zoo"),
                 "does not exist"));
}
TEST_CASE("zoo: a file in place of a folder is said once") {
    const Folder folder;
    const std::string path = folder.write("file", "text");
    const Run run = run_attend({"list", "--plugin-dir", path});
    CHECK(run.status == 0);
    CHECK(lines(run.err) == 1);
    CHECK(contains(run.err, path + " (--plugin-dir): is not a folder"));
}
TEST_CASE("zoo: an empty folder is said once") {
    const Folder folder;
    const std::string dir = fs::path(folder / "x").parent_path().string();
    const Run run = run_attend({"list", "--plugin-dir", dir});
    CHECK(run.status == 0);
    CHECK(contains(run.out, "flash-attention-v2"));
    CHECK(contains(status_note(run_attend({"status", "--plugin-dir", dir, "--json"}), dir),
                   "holds no file ending in .so"));
}
TEST_CASE("zoo: a folder of garbage is said once") {
    const Folder folder;
    const std::string dir = fs::path(folder.write("text.so", "text")).parent_path().string();
    folder.write("noise.so", std::string(4096, '\x5a'));
    folder.write("readme.txt", "text");
    fs::copy(zoo("no_note"), folder / "no_note.so");
    const Run run = run_attend({"list", "--plugin-dir", dir});
    CHECK(run.status == 0);
    CHECK(count_of(run.err, dir) == 1);
    CHECK(contains(run.err, "holds no plugin among its files"));
    CHECK(contains(run.out, "flash-attention-v2"));
    const Run status = run_attend({"status", "--plugin-dir", dir});
    CHECK(status.status == 0);
    CHECK(count_of(status.out, dir) == 1);
    CHECK(contains(status_note(run_attend({"status", "--plugin-dir", dir, "--json"}), dir),
                   "holds no plugin among its files"));
}
