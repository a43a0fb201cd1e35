// SPDX-License-Identifier: Apache-2.0
#include "loading/plugin_loader.hpp"

#define BOOST_DLL_USE_STD_FS
#include <boost/dll/shared_library.hpp>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
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

// The file as bytes, opened without blocking (a FIFO must not stop the scan); nothing if it is no regular file, and
// then `library` tells whether it could be one all the same.
std::optional<std::vector<std::byte>> read_file(const fs::path& path, std::string& why, bool& library) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (descriptor < 0) {
        library = errno != ENOENT && errno != ELOOP && errno != ENXIO;  // a link that leads nowhere; a socket
        why = "cannot be opened: " + std::string(std::strerror(errno));
        return std::nullopt;
    }
    std::vector<std::byte> bytes;
    struct stat facts {};
    const bool regular = ::fstat(descriptor, &facts) == 0 && S_ISREG(facts.st_mode);
    library = regular;
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
        constexpr std::array<unsigned char, 4> elf_magic{0x7F, 'E', 'L', 'F'};
        library =
            bytes.size() >= elf_magic.size() && std::memcmp(bytes.data(), elf_magic.data(), elf_magic.size()) == 0;
    }
    ::close(descriptor);
    if (!why.empty()) return std::nullopt;
    return bytes;
}

// Semantic versions: numbers between dots, then a version with a suffix ("-rc.1") before the one without.
int compare_versions(const std::string& a, const std::string& b) {
    const auto split = [](const std::string& text) {
        const std::size_t end = std::min(text.find_first_of("-+"), text.size());
        std::vector<std::string> parts;
        std::size_t begin = 0;
        while (begin <= end) {
            const std::size_t dot = std::min(text.find('.', begin), end);
            std::string part = text.substr(begin, dot - begin);
            part.erase(0, std::min(part.find_first_not_of('0'), part.size()));
            parts.push_back(std::move(part));
            begin = dot + 1;
        }
        while (!parts.empty() && parts.back().empty()) parts.pop_back();
        return parts;
    };
    const auto left = split(a), right = split(b);
    for (std::size_t at = 0; at < std::max(left.size(), right.size()); ++at) {
        const std::string x = at < left.size() ? left[at] : "", y = at < right.size() ? right[at] : "";
        if (x.size() != y.size()) return x.size() < y.size() ? -1 : 1;
        if (const int order = x.compare(y); order != 0) return order;
    }
    const bool early_a = a.find('-') < a.find('+'), early_b = b.find('-') < b.find('+');
    return early_a == early_b ? 0 : early_a ? -1 : 1;
}

// What the dynamic loader said, without what Boost.DLL puts around it and without the file's own path.
std::string loader_text(std::string text, const std::string& path) {
    if (const auto noise = text.find(": Bad file descriptor"); noise != std::string::npos) text.erase(noise);
    constexpr std::string_view before = "system message: ";
    if (const auto at = text.find(before); at != std::string::npos) {
        text.erase(0, at + before.size());
        if (text.ends_with(')')) text.pop_back();
    }
    if (text.starts_with(path + ": ")) text.erase(0, path.size() + 2);
    return text;
}

// Libraries stay mapped for the life of the process: code of a plugin may be in use wherever a plan is.
boost::dll::shared_library* keep_mapped(const fs::path& path, boost::dll::load_mode::type mode) {
    static auto& mapped = *new std::vector<std::unique_ptr<boost::dll::shared_library>>();
    mapped.push_back(std::make_unique<boost::dll::shared_library>(path, mode));
    return mapped.back().get();
}

std::string error_text(const std::array<char, 1024>& text) {
    return text[0] != '\0' ? std::string(text.data()) : std::string("no text");
}

}  // namespace

LoadedPlugin::~LoadedPlugin() {
    if (lib_ == nullptr) return;
    try {
        table_->close(lib_);
    } catch (...) {  // a plugin that throws in close has nothing left to lose
    }
}

PluginLoader::PluginLoader(std::shared_ptr<const Machine> machine,
                           std::map<std::string, std::map<std::string, std::string>> settings)
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
    if (!search.system_dir.empty() && search.system_dir != search.built_in_dir)
        scan(search.system_dir, "system", false, false);
    return candidates;
}

bool PluginLoader::inspect(const PluginCandidate& candidate, PluginReport& report) {
    std::string why;
    const auto bytes = read_file(candidate.path, why, report.library);
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
    if (const auto failure = judge(facts, HostFacts{ATTEND_ABI_MAJOR, ATTEND_ABI_MINOR, ATTEND_LAYOUT_TAG, machine,
                                                    machine_->isa, sanitizers})) {
        report.failure = {"inspect", failure->code, failure->sentence, failure->hint};
        if (failure->code == "NOT_A_PLUGIN") report.library = false;
        return false;
    }
    claims_ = NoteClaims{facts.note.min_host_minor, facts.note.required_isa};
    report.steps.push_back("inspect: plugin ABI " + std::to_string(facts.note.abi_major) + "." +
                           std::to_string(facts.note.abi_minor) + ", one exported symbol, no code has run");
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
    attend_entry_fn entry = nullptr;
    try {
        // The throwing overload: the other one loses the dynamic loader's text.
        boost::dll::shared_library* library =
            keep_mapped(candidate.path, boost::dll::load_mode::rtld_now | boost::dll::load_mode::rtld_local);
        if (!library->has(ATTEND_ENTRY))
            return refuse({"load", "MISSING_ENTRY", std::string("the symbol ") + ATTEND_ENTRY + " is missing", ""});
        entry =
            reinterpret_cast<attend_entry_fn>(&library->get<const attend_plugin*(const attend_hello*)>(ATTEND_ENTRY));
    } catch (const std::exception& error) {  // std::system_error or Boost's own, as Boost.DLL was configured
        const std::string text = loader_text(error.what(), candidate.path.string());
        const bool library_missing = text.find("cannot open shared object file") != std::string::npos;
        const bool unresolved = text.find("undefined symbol") != std::string::npos;
        return refuse({"load",
                       library_missing ? "MISSING_LIBRARY"
                       : unresolved    ? "UNRESOLVED"
                                       : "WRONG_FORMAT",
                       text, "see `ldd` on the file"});
    } catch (...) {
        return refuse({"load", "THREW", "a constructor of the library threw", ""});
    }
    try {
        table = entry(&hello);
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
    if (claims_ && (claims_->min_host_minor != table->min_host_minor || claims_->required_isa != facts.required_isa))
        return refuse({"audit", "BAD_DESCRIPTOR",
                       facts.id + ": note and table differ: least host minor " +
                           std::to_string(claims_->min_host_minor) + " and " + std::to_string(table->min_host_minor) +
                           ", instruction sets " + isa_names(claims_->required_isa) + " and " +
                           isa_names(facts.required_isa) + "; accepted: the same in both",
                       "ATTEND_PLUGIN takes both from ATTEND_MIN_HOST_MINOR and ATTEND_REQUIRED_ISA"});
    if ((facts.required_isa & machine_->isa) != facts.required_isa)
        return refuse(
            {"negotiate", "ISA_UNSUPPORTED",
             facts.id + " needs " + isa_names(facts.required_isa) + "; permitted here: " + isa_names(machine_->isa),
             ""});

    const auto found = settings_.find(facts.id);
    const std::shared_ptr<LoadedPlugin> plugin(new LoadedPlugin());
    plugin->services_ = std::make_unique<PluginServices>(
        machine_, facts.id, found == settings_.end() ? std::map<std::string, std::string>{} : found->second);
    plugin->table_ = table;
    std::array<char, 1024> text{};
    attend_error error{sizeof(attend_error), text.size(), ATTEND_OK, 0, text.data(), nullptr};
    attend_lib* lib = nullptr;
    try {
        if (table->score != nullptr && table->score(plugin->services_->table()->cpu) <= 0)
            return refuse({"negotiate", "SCORED_ZERO", facts.id + " says that it cannot run on this CPU", ""});
        const attend_status status = table->open(plugin->services_->table(), &lib, &error);
        if (status != ATTEND_OK || lib == nullptr)
            return refuse({"open", "OPEN_FAILED",
                           facts.id + ": open returned status " + std::to_string(status) + ": " + error_text(text),
                           ""});
        plugin->lib_ = lib;
        std::vector<MechanismRecord> records;
        const std::uint32_t count = table->mechanism_count(lib);
        if (count == 0 || count > 1024)
            return refuse({"audit", "BAD_DESCRIPTOR",
                           facts.id + ": " + std::to_string(count) + " mechanisms; accepted: 1 to 1024", ""});
        std::set<std::string> names;
        for (std::uint32_t at = 0; at < count; ++at) {
            MechanismRecord record;
            if (auto failure = audit_mechanism(table->mechanism_at(lib, at), lib, record)) return refuse(*failure);
            if (!names.insert(record.name).second)
                return refuse(
                    {"audit", "DUPLICATE_NAME", facts.id + ": lists the mechanism \"" + record.name + "\" twice", ""});
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
    struct InUse {
        std::size_t report, records;
    };
    std::vector<std::vector<MechanismRecord>> loaded;
    std::map<std::string, InUse> in_use;              // by plugin id
    std::map<std::string, std::size_t> no_libraries;  // by folder: files that are no plugins at all
    for (const PluginCandidate& candidate : enumerate(search)) {
        PluginReport report;
        report.path = candidate.path.string();
        report.origin = candidate.origin;
        claims_.reset();
        std::vector<MechanismRecord> records;
        if (inspect(candidate, report)) {
            // Built-in files came with the host and are probed by its own tests.
            const bool trusted = candidate.built_in || search.probe_program.empty();
            if (trusted || probe(candidate, search.probe_program, report)) records = load_file(candidate, report);
        }
        // What is no library, or a library without the note, is no plugin at all; that is worth a line only if somebody
        // named it.
        if (!report.library && !candidate.by_name) {
            ++no_libraries[candidate.path.parent_path().string()];
            continue;
        }
        if (!records.empty()) {
            if (const auto [at, fresh] = in_use.emplace(report.id, InUse{reports_.size(), loaded.size()}); !fresh) {
                PluginReport& other = reports_[at->second.report];
                // The higher version serves; of equal ones the first. What came with the host is not replaced.
                const bool newer =
                    !loaded[at->second.records].front().built_in && compare_versions(report.version, other.version) > 0;
                PluginReport& loser = newer ? other : report;
                const PluginReport& winner = newer ? report : other;
                loser.failure = {"names", "DUPLICATE_PLUGIN",
                                 "plugin " + loser.id + " " + loser.version + ": version " + winner.version +
                                     " is in use, from " + winner.path,
                                 "remove one of the two files"};
                loser.mechanisms.clear();
                if (newer) {
                    other.loaded = false;
                    loaded[at->second.records] = std::move(records);
                    at->second.report = reports_.size();
                    report.loaded = true;
                }
                records.clear();
            }
        }
        if (!records.empty()) {
            report.loaded = true;
            loaded.push_back(std::move(records));
        }
        reports_.push_back(std::move(report));
    }
    for (SearchedDir& dir : searched_) {
        const auto garbage = no_libraries.find((dir.path / "").parent_path().string());
        if (garbage != no_libraries.end() && garbage->second == dir.candidates && dir.note.empty())
            dir.note = "holds no plugin among its files ending in " + plugin_suffix();
    }
    return loaded;
}

}  // namespace attend
