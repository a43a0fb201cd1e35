// SPDX-License-Identifier: Apache-2.0
// From files to mechanisms. Each stage can only refuse the file at hand; the report says stage, code and sentence, and
// the others go on: enumerate -> inspect (no code runs) -> probe (in a child process, for files that are not built in)
// -> load -> negotiate -> audit -> open.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "loading/descriptor_audit.hpp"
#include "plugin_services/services.hpp"

namespace attend {

struct PluginCandidate {
    std::filesystem::path path;
    std::string origin;  // "--plugin", "--plugin-dir", "config", "ATTEND_PLUGIN_PATH", "user", "built-in", "system"
    bool built_in{false};
    bool by_name{false};  // named explicitly: not being a plugin is then an error
};

// Where plugins are looked for, in order; earlier wins ties.
struct PluginSearch {
    std::vector<std::filesystem::path> files;  // --plugin
    std::vector<std::filesystem::path> dirs;   // --plugin-dir
    std::vector<std::filesystem::path> config_dirs;
    std::string environment_path;    // ATTEND_PLUGIN_PATH, colon-separated
    std::filesystem::path user_dir;  // empty: none
    std::filesystem::path built_in_dir;
    std::filesystem::path system_dir;
    std::filesystem::path probe_program;  // empty: no probing
};

struct SearchedDir {
    std::filesystem::path path;
    std::string origin;
    std::string note;  // why it was not searched, or empty
    std::size_t candidates{0};
};

struct PluginReport {
    std::string path, origin, id, version, summary, license, vendor, backend;
    bool loaded{false};
    bool library{true};  // false: no library at all, or none that calls itself a plugin
    std::vector<std::string> mechanisms;
    std::vector<std::string> steps;  // one line per stage passed
    LoadFailure failure;
};

// A plugin in use: open until the last reference goes, and mapped until the process ends.
class LoadedPlugin {
public:
    ~LoadedPlugin();
    LoadedPlugin(const LoadedPlugin&) = delete;
    LoadedPlugin& operator=(const LoadedPlugin&) = delete;
    [[nodiscard]] const PluginServices& services() const noexcept { return *services_; }

private:
    friend class PluginLoader;
    LoadedPlugin() = default;
    std::unique_ptr<PluginServices> services_;
    const attend_plugin* table_{};
    attend_lib* lib_{};
};

class PluginLoader {
public:
    PluginLoader(std::shared_ptr<const Machine> machine,
                 std::map<std::string, std::map<std::string, std::string>> settings);

    // Everything that the search finds. Fills reports and searched dirs; returns the records of the plugins that
    // loaded, plugin after plugin in search order.
    std::vector<std::vector<MechanismRecord>> load(const PluginSearch& search);

    [[nodiscard]] const std::vector<PluginReport>& reports() const noexcept { return reports_; }
    [[nodiscard]] std::vector<PluginReport>& reports() noexcept { return reports_; }
    [[nodiscard]] const std::vector<SearchedDir>& searched() const noexcept { return searched_; }

    // Loads one file in this process, without probing and without inspection. For the probe program, which does it
    // where a crash costs nothing.
    std::vector<MechanismRecord> load_file(const PluginCandidate& candidate, PluginReport& report);

private:
    [[nodiscard]] std::vector<PluginCandidate> enumerate(const PluginSearch& search);
    [[nodiscard]] bool inspect(const PluginCandidate& candidate, PluginReport& report);
    bool probe(const PluginCandidate& candidate, const std::filesystem::path& program, PluginReport& report);
    // What the note of the file inspected last said, where its table must say the same.
    struct NoteClaims {
        std::uint16_t min_host_minor{};
        std::uint64_t required_isa{};
    };

    std::shared_ptr<const Machine> machine_;
    std::map<std::string, std::map<std::string, std::string>> settings_;
    std::vector<PluginReport> reports_;
    std::vector<SearchedDir> searched_;
    std::optional<NoteClaims> claims_;
};

}  // namespace attend
