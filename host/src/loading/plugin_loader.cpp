// SPDX-License-Identifier: Apache-2.0
#include "loading/plugin_loader.hpp"

#define BOOST_DLL_USE_STD_FS
#include <boost/dll/shared_library.hpp>
#include <boost/system/system_error.hpp>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <set>

#include "loading/elf_inspection.hpp"
#include "loading/probe.hpp"

namespace attend {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t largest_plugin_bytes = std::uint64_t{1} << 30;

// All loads of the process happen one after the other: loaders are not concurrent everywhere.
std::mutex& load_mutex() {
    static std::mutex mutex;
    return mutex;
}

std::string plugin_suffix() { return boost::dll::shared_library::suffix().string(); }

// The file as bytes, opened without blocking (a FIFO must not stop the scan); nothing if it is no regular file.
std::optional<std::vector<std::byte>> read_file(const fs::path& path, std::string& why) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (descriptor < 0) {
        why = "cannot be opened";
        return std::nullopt;
    }
    std::vector<std::byte> bytes;
    struct stat facts {};
    const bool regular = ::fstat(descriptor, &facts) == 0 && S_ISREG(facts.st_mode);
    if (!regular) {
        why = "is not a regular file";
    } else if (static_cast<std::uint64_t>(facts.st_size) > largest_plugin_bytes) {
        why = "is larger than 1 GiB";
    } else {
        bytes.resize(static_cast<std::size_t>(facts.st_size));
        std::size_t got = 0;
        while (got < bytes.size()) {
            const ssize_t now = ::read(descriptor, bytes.data() + got, bytes.size() - got);
            if (now <= 0) break;
            got += static_cast<std::size_t>(now);
        }
        bytes.resize(got);
    }
    ::close(descriptor);
    if (!why.empty()) return std::nullopt;
    return bytes;
}

std::string error_text(const std::array<char, 1024>& text) { return text[0] != '\0' ? std::string(text.data()) : std::string("no text"); }

}  // namespace

LoadedPlugin::~LoadedPlugin() {
    if (lib_ == nullptr) return;
    try {
        table_->close(lib_);
    } catch (...) {  // a plugin that throws in close has nothing left to lose
    }
}

PluginLoader::PluginLoader(std::shared_ptr<const Machine> machine, std::map<std::string, std::map<std::string, std::string>> settings)
    : machine_(std::move(machine)), settings_(std::move(settings)) {}

std::vector<PluginCandidate> PluginLoader::enumerate(const PluginSearch& search) {
    std::vector<PluginCandidate> candidates;
    std::set<fs::path> seen;
    std::error_code status;
    const auto add = [&](const fs::path& path, const std::string& origin, bool built_in, bool by_name) {
        fs::path real = fs::weakly_canonical(path, status);
        if (!seen.insert(real.empty() ? path : real).second) return;
        candidates.push_back({path, origin, built_in, by_name});
    };
    const auto scan = [&](const fs::path& dir, const std::string& origin, bool asked_for, bool built_in) {
        SearchedDir entry{dir, origin, "", 0};
        if (!dir.is_absolute()) {
            entry.note = "is not an absolute path; not searched";
        } else if (!fs::is_directory(dir, status)) {
            entry.note = fs::exists(dir, status) ? "is not a folder" : "does not exist";
        } else {
            std::vector<fs::path> files;
            for (fs::directory_iterator at(dir, status), end; !status && at != end; at.increment(status))
                if (at->path().extension() == plugin_suffix()) files.push_back(at->path());
            if (status) entry.note = "cannot be read: " + status.message();
            std::sort(files.begin(), files.end());
            entry.candidates = files.size();
            for (const fs::path& file : files) add(file, origin, built_in, false);
            if (files.empty() && entry.note.empty()) entry.note = "holds no file ending in " + plugin_suffix();
        }
        if (asked_for || entry.note.empty()) searched_.push_back(entry);
    };
    for (const fs::path& file : search.files) add(fs::absolute(file, status), "--plugin", false, true);
    for (const fs::path& dir : search.dirs) scan(fs::absolute(dir, status), "--plugin-dir", true, false);
    for (const fs::path& dir : search.config_dirs) scan(dir, "config", true, false);
    std::size_t begin = 0;
    const std::string& environment = search.environment_path;
    while (begin < environment.size()) {
        const std::size_t end = std::min(environment.find(':', begin), environment.size());
        if (end > begin) scan(environment.substr(begin, end - begin), "ATTEND_PLUGIN_PATH", true, false);
        begin = end + 1;
    }
    if (!search.user_dir.empty()) scan(search.user_dir, "user", false, false);
    if (!search.built_in_dir.empty()) scan(search.built_in_dir, "built-in", true, true);
    if (!search.system_dir.empty() && search.system_dir != search.built_in_dir) scan(search.system_dir, "system", false, false);
    return candidates;
}

bool PluginLoader::inspect(const PluginCandidate& candidate, PluginReport& report) {
    std::string why;
    const auto bytes = read_file(candidate.path, why);
    if (!bytes) {
        report.failure = {"enumerate", "WRONG_FORMAT", "the file " + why, ""};
        return false;
    }
    const auto outcome = inspect_elf(*bytes);
    if (const auto* failure = std::get_if<InspectionFailure>(&outcome)) {
        report.failure = {"inspect", failure->code, failure->sentence, failure->hint};
        return false;
    }
    const auto& facts = std::get<ElfFacts>(outcome);
#if defined(__x86_64__)
    constexpr std::uint16_t machine = 62;
#else
    constexpr std::uint16_t machine = 183;
#endif
#if defined(__SANITIZE_ADDRESS__)
    constexpr std::uint16_t sanitizers = ATTEND_NOTE_ASAN;
#elif defined(__SANITIZE_THREAD__)
    constexpr std::uint16_t sanitizers = ATTEND_NOTE_TSAN;
#else
    constexpr std::uint16_t sanitizers = 0;
#endif
    if (const auto failure = judge(facts, HostFacts{ATTEND_ABI_MAJOR, ATTEND_ABI_MINOR, ATTEND_LAYOUT_TAG, machine, machine_->isa, sanitizers})) {
        report.failure = {"inspect", failure->code, failure->sentence, failure->hint};
        return false;
    }
    report.steps.push_back("inspect: plugin ABI " + std::to_string(facts.note.abi_major) + "." + std::to_string(facts.note.abi_minor) +
                           ", one exported symbol, no code has run");
    return true;
}

bool PluginLoader::probe(const PluginCandidate& candidate, const fs::path& program, PluginReport& report) {
    const ProbeVerdict verdict = run_probe(program, candidate.path);
    if (!verdict.ok) {
        report.failure = verdict.failure;
        return false;
    }
    report.steps.push_back("probe: loaded, opened and closed in a child process");
    return true;
}

std::vector<MechanismRecord> PluginLoader::load_file(const PluginCandidate& candidate, PluginReport& report) {
    const std::scoped_lock lock(load_mutex());
    const auto refuse = [&](LoadFailure failure) {
        report.failure = std::move(failure);
        return std::vector<MechanismRecord>{};
    };
    const attend_plugin* table = nullptr;
    attend_hello hello{};
    hello.struct_size = sizeof hello;
    hello.abi_major = ATTEND_ABI_MAJOR;
    hello.abi_minor = ATTEND_ABI_MINOR;
    hello.layout_tag = ATTEND_LAYOUT_TAG;
    hello.host_name = "attend";
    hello.host_version = ATTEND_VERSION;
    try {
        // The throwing overload: the other one loses the dynamic loader's text. Mapped for the life of the process.
        auto* library = new boost::dll::shared_library(candidate.path, boost::dll::load_mode::rtld_now | boost::dll::load_mode::rtld_local);
        if (!library->has(ATTEND_ENTRY)) return refuse({"load", "MISSING_ENTRY", std::string("the symbol ") + ATTEND_ENTRY + " is missing", ""});
        const auto entry = reinterpret_cast<attend_entry_fn>(&library->get<const attend_plugin*(const attend_hello*)>(ATTEND_ENTRY));
        table = entry(&hello);
    } catch (const boost::system::system_error& error) {
        std::string text = error.what();
        if (const auto noise = text.find(": Bad file descriptor"); noise != std::string::npos) text.erase(noise);
        const bool library_missing = text.find("cannot open shared object file") != std::string::npos;
        const bool unresolved = text.find("undefined symbol") != std::string::npos;
        return refuse({"load", library_missing ? "MISSING_LIBRARY" : unresolved ? "UNRESOLVED" : "WRONG_FORMAT", text, "see `ldd` on the file"});
    } catch (const std::exception& error) {
        return refuse({"negotiate", "THREW", std::string("the entry threw: ") + error.what(), ""});
    } catch (...) {
        return refuse({"negotiate", "THREW", "the entry threw", ""});
    }
    PluginFacts facts;
    const auto audit_failure = audit_plugin(table, facts);
    report.id = facts.id;
    report.version = facts.version;
    if (audit_failure) return refuse(*audit_failure);
    report.summary = facts.summary;
    report.license = facts.license;
    report.vendor = facts.vendor;
    if ((facts.required_isa & machine_->isa) != facts.required_isa)
        return refuse({"negotiate", "ISA_UNSUPPORTED", facts.id + " needs " + isa_names(facts.required_isa) + "; permitted here: " + isa_names(machine_->isa), ""});

    const auto found = settings_.find(facts.id);
    const std::shared_ptr<LoadedPlugin> plugin(new LoadedPlugin());
    plugin->services_ = std::make_unique<PluginServices>(machine_, facts.id, found == settings_.end() ? std::map<std::string, std::string>{} : found->second);
    plugin->table_ = table;
    std::array<char, 1024> text{};
    attend_error error{sizeof(attend_error), text.size(), ATTEND_OK, 0, text.data(), nullptr};
    attend_lib* lib = nullptr;
    try {
        if (table->score != nullptr && table->score(plugin->services_->table()->cpu) <= 0)
            return refuse({"negotiate", "SCORED_ZERO", facts.id + " says that it cannot run on this CPU", ""});
        const attend_status status = table->open(plugin->services_->table(), &lib, &error);
        if (status != ATTEND_OK || lib == nullptr)
            return refuse({"open", "OPEN_FAILED", facts.id + ": open returned status " + std::to_string(status) + ": " + error_text(text), ""});
        plugin->lib_ = lib;
        std::vector<MechanismRecord> records;
        const std::uint32_t count = table->mechanism_count(lib);
        if (count == 0 || count > 1024)
            return refuse({"audit", "BAD_DESCRIPTOR", facts.id + ": " + std::to_string(count) + " mechanisms; accepted: 1 to 1024", ""});
        std::set<std::string> names;
        for (std::uint32_t at = 0; at < count; ++at) {
            MechanismRecord record;
            if (auto failure = audit_mechanism(table->mechanism_at(lib, at), record)) return refuse(*failure);
            if (!names.insert(record.name).second)
                return refuse({"audit", "DUPLICATE_NAME", facts.id + ": lists the mechanism \"" + record.name + "\" twice", ""});
            record.plugin_id = facts.id;
            record.plugin_version = facts.version;
            record.plugin_path = candidate.path.string();
            record.built_in = candidate.built_in;
            record.lib = lib;
            record.library = plugin;
            // What the plugin's dispatch makes of this word; a plan tells the path that it really takes.
            record.backend = facts.variant.empty() ? entry_name(machine_->isa) : facts.variant;
            report.mechanisms.push_back(record.name);
            records.push_back(std::move(record));
        }
        report.backend = records.front().backend;
        report.steps.push_back("load, negotiate, open, audit: " + std::to_string(records.size()) + " mechanism(s)");
        return records;
    } catch (const std::exception& thrown) {
        return refuse({"open", "THREW", facts.id + ": threw through the boundary: " + thrown.what(), ""});
    } catch (...) {
        return refuse({"open", "THREW", facts.id + ": threw through the boundary", ""});
    }
}

std::vector<std::vector<MechanismRecord>> PluginLoader::load(const PluginSearch& search) {
    std::vector<std::vector<MechanismRecord>> loaded;
    std::map<std::string, std::string> versions;  // plugin id -> path of the one in use
    for (const PluginCandidate& candidate : enumerate(search)) {
        PluginReport report;
        report.path = candidate.path.string();
        report.origin = candidate.origin;
        std::vector<MechanismRecord> records;
        if (inspect(candidate, report)) {
            // Built-in files came with the host and are probed by its own tests.
            const bool trusted = candidate.built_in || search.probe_program.empty();
            if (trusted || probe(candidate, search.probe_program, report)) records = load_file(candidate, report);
        }
        // A library without the note is no plugin at all; that is worth a line only if somebody named it.
        if (report.failure.code == "NOT_A_PLUGIN" && !candidate.by_name) continue;
        if (!records.empty()) {
            if (const auto [at, fresh] = versions.emplace(report.id, report.path); !fresh) {
                report.failure = {"names", "DUPLICATE_PLUGIN", "plugin " + report.id + " is already loaded from " + at->second, "remove one of the two files"};
                records.clear();
                report.mechanisms.clear();
            }
        }
        report.loaded = !records.empty();
        if (report.loaded) loaded.push_back(std::move(records));
        reports_.push_back(std::move(report));
    }
    return loaded;
}

}  // namespace attend
