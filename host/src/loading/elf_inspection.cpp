// SPDX-License-Identifier: Apache-2.0
// Static inspection of a shared library: header, segments, note, dynamic section, symbols, needed versions.

#include "loading/elf_inspection.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <string_view>
#include <utility>

namespace attend {
namespace {

using Bytes = std::span<const std::byte>;

// Sizes and numbers of the ELF-64 format.
constexpr std::size_t header_bytes = 64;
constexpr std::size_t program_header_bytes = 56;
constexpr std::size_t section_header_bytes = 64;
constexpr std::size_t symbol_bytes = 24;
constexpr std::size_t note_payload_bytes = 32;
constexpr std::uint16_t type_shared = 3;
constexpr std::uint16_t machine_x86_64 = 62;
enum SegmentType : std::uint32_t {
    segment_load = 1,
    segment_dynamic = 2,
    segment_note = 4,
    segment_tls = 7,
    segment_stack = 0x6474E551,
};
enum DynamicTag : std::uint64_t {
    tag_end = 0,
    tag_needed = 1,
    tag_hash = 4,
    tag_strtab = 5,
    tag_symtab = 6,
    tag_strsz = 10,
    tag_syment = 11,
    tag_rpath = 15,
    tag_textrel = 22,
    tag_init_array = 25,
    tag_init_arraysz = 27,
    tag_runpath = 29,
    tag_flags = 30,
    tag_gnu_hash = 0x6FFFFEF5,
    tag_flags_1 = 0x6FFFFFFB,
    tag_verneed = 0x6FFFFFFE,
    tag_verneednum = 0x6FFFFFFF,
};
constexpr std::uint64_t flag_textrel = 0x4;
constexpr std::uint64_t flag_static_tls = 0x10;
constexpr std::uint64_t flag_1_pie = 0x08000000;
constexpr unsigned bind_global = 1, bind_weak = 2, bind_unique = 10;
constexpr unsigned type_function = 2, type_indirect_function = 10;

// A real plugin needs a handful of names; these bounds keep a hostile one from costing time or memory.
constexpr std::size_t max_name = 65536;
constexpr std::size_t max_names_total = std::size_t{16} << 20;
constexpr std::uint64_t max_version_records = 65536;

constexpr std::string_view entry_name = "attend_plugin_entry";

template <class T>
std::optional<T> read(Bytes bytes, std::uint64_t at) noexcept {
    if (at > bytes.size() || bytes.size() - at < sizeof(T)) return std::nullopt;
    T value;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    return value;
}

// Only for places that a check before has shown to be inside.
template <class T>
T at(Bytes bytes, std::size_t offset) noexcept {
    T value;
    std::memcpy(&value, bytes.data() + offset, sizeof value);
    return value;
}

std::string number(std::uint64_t value) { return std::to_string(value); }

std::string hex(std::uint64_t value) {
    std::array<char, 16> digits{};
    const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value, 16).ptr;
    return "0x" + std::string(digits.data(), end);
}

struct Segment {
    std::uint32_t type, flags;
    std::uint64_t offset, address, file_bytes, memory_bytes, alignment;
};

class Inspector {
public:
    explicit Inspector(Bytes file) : file_(file) {}

    std::variant<ElfFacts, InspectionFailure> run() {
        const bool readable = header() && segments() && section_table() && notes() &&
                              (!facts_.has_note || (dynamic() && symbols() && versions()));
        if (!readable) return std::move(failure_);
        return std::move(facts_);
    }

private:
    bool fail(const char* code, std::string sentence, std::string hint = {}) {
        failure_ = {code, std::move(sentence), std::move(hint)};
        return false;
    }
    bool truncated(const std::string& what, std::uint64_t end) {
        return fail("TRUNCATED",
                    what + " ends at byte " + number(end) + " of a file of " + number(file_.size()) +
                        " bytes; a complete file is needed",
                    "copy or build the file again");
    }
    bool malformed(const std::string& what) {
        return fail("WRONG_FORMAT", what + "; a well-formed shared library is needed");
    }

    // True if [offset, offset + bytes) lies in the file.
    [[nodiscard]] bool inside(std::uint64_t offset, std::uint64_t bytes) const noexcept {
        return offset <= file_.size() && bytes <= file_.size() - offset;
    }
    static std::uint64_t saturated_end(std::uint64_t offset, std::uint64_t bytes) noexcept {
        std::uint64_t end = 0;
        return __builtin_add_overflow(offset, bytes, &end) ? ~std::uint64_t{0} : end;
    }

    bool header() {
        constexpr std::string_view magic{
            "\x7F"
            "ELF",
            4};
        if (file_.empty()) return fail("WRONG_FORMAT", "the file is empty; a shared library is needed");
        if (file_.size() < magic.size() || std::memcmp(file_.data(), magic.data(), magic.size()) != 0) {
            return fail("WRONG_FORMAT", "the file does not begin with the ELF magic; a shared library is needed");
        }
        if (file_.size() < header_bytes) return truncated("the ELF header", header_bytes);
        if (const auto bits = at<std::uint8_t>(file_, 4); bits != 2) {
            return fail("WRONG_ARCH", std::string("built for ") + (bits == 1 ? "32 bits" : "an unknown word size") +
                                          "; a 64-bit library is needed");
        }
        if (at<std::uint8_t>(file_, 5) != 1) {
            return fail("WRONG_ARCH", "built for another byte order; a little-endian library is needed");
        }
        if (at<std::uint8_t>(file_, 6) != 1) return malformed("ELF version " + number(at<std::uint8_t>(file_, 6)));
        const auto type = at<std::uint16_t>(file_, 16);
        if (type != type_shared) {
            const char* what = type == 1   ? "the file is an object file"
                               : type == 2 ? "the file is an executable"
                               : type == 4 ? "the file is a core dump"
                                           : "the file is of unknown ELF type";
            return fail("WRONG_FORMAT", std::string(what) + " (type " + number(type) + "); a shared library is needed");
        }
        facts_.machine = at<std::uint16_t>(file_, 18);
        return true;
    }

    bool segments() {
        const auto table = at<std::uint64_t>(file_, 32);
        const std::uint64_t entry_bytes = at<std::uint16_t>(file_, 54);
        const std::uint64_t count = at<std::uint16_t>(file_, 56);
        if (count == 0 || count == 0xFFFF || entry_bytes != program_header_bytes) {
            return malformed(number(count) + " program headers of " + number(entry_bytes) + " bytes");
        }
        if (!inside(table, count * entry_bytes)) {
            return truncated("the program header table", saturated_end(table, count * entry_bytes));
        }
        bool has_stack = false;
        for (std::uint64_t index = 0; index < count; ++index) {
            const Bytes raw =
                file_.subspan(static_cast<std::size_t>(table + index * entry_bytes), program_header_bytes);
            const Segment segment{at<std::uint32_t>(raw, 0),  at<std::uint32_t>(raw, 4),  at<std::uint64_t>(raw, 8),
                                  at<std::uint64_t>(raw, 16), at<std::uint64_t>(raw, 32), at<std::uint64_t>(raw, 40),
                                  at<std::uint64_t>(raw, 48)};
            const std::string name = "segment " + number(index);
            const bool from_file = segment.type == segment_load || segment.type == segment_note ||
                                   segment.type == segment_dynamic || segment.type == segment_tls;
            if (from_file && !inside(segment.offset, segment.file_bytes)) {
                return truncated(name, saturated_end(segment.offset, segment.file_bytes));
            }
            if (segment.type == segment_load &&
                (segment.file_bytes > segment.memory_bytes ||
                 saturated_end(segment.address, segment.memory_bytes) == ~std::uint64_t{0})) {
                return malformed(name + " has " + number(segment.file_bytes) + " bytes in the file and " +
                                 number(segment.memory_bytes) + " in memory at " + hex(segment.address));
            }
            if (segment.type == segment_tls) facts_.tls_bytes = std::max(facts_.tls_bytes, segment.memory_bytes);
            if (segment.type == segment_stack) {
                has_stack = true;
                facts_.exec_stack = (segment.flags & 1U) != 0;
            }
            segments_.push_back(segment);
        }
        // Without the marker the loader of x86-64 makes the stack executable.
        if (!has_stack && facts_.machine == machine_x86_64) facts_.exec_stack = true;
        return true;
    }

    // The table comes last in the file, so a cut anywhere shows here even where the segments are complete.
    bool section_table() {
        const auto table = at<std::uint64_t>(file_, 40);
        if (table == 0) return true;
        const std::uint64_t entry_bytes = at<std::uint16_t>(file_, 58);
        std::uint64_t count = at<std::uint16_t>(file_, 60);
        if (entry_bytes != section_header_bytes)
            return malformed("section headers of " + number(entry_bytes) + " bytes");
        if (count == 0) {
            // More than 65279 sections: the number stands in the size of the first.
            const auto extended = read<std::uint64_t>(file_, saturated_end(table, 32));
            if (!extended) return truncated("the section table", saturated_end(table, section_header_bytes));
            count = *extended;
        }
        if (count > file_.size() || !inside(table, count * entry_bytes)) {
            std::uint64_t bytes = 0;
            if (__builtin_mul_overflow(count, entry_bytes, &bytes)) bytes = ~std::uint64_t{0};
            return truncated("the section table", saturated_end(table, bytes));
        }
        return true;
    }

    bool notes() {
        for (const Segment& segment : segments_) {
            if (segment.type != segment_note) continue;
            Bytes rest =
                file_.subspan(static_cast<std::size_t>(segment.offset), static_cast<std::size_t>(segment.file_bytes));
            const std::uint64_t padding = segment.alignment == 8 ? 7 : 3;
            while (!rest.empty()) {
                if (rest.size() < 12) return malformed("a note header of " + number(rest.size()) + " bytes");
                const std::uint64_t name_bytes = at<std::uint32_t>(rest, 0);
                const std::uint64_t payload_bytes = at<std::uint32_t>(rest, 4);
                const auto type = at<std::uint32_t>(rest, 8);
                const std::uint64_t payload_at = (12 + name_bytes + padding) & ~padding;
                if (payload_at > rest.size() || payload_bytes > rest.size() - payload_at) {
                    return malformed("a note of " + number(name_bytes) + " + " + number(payload_bytes) +
                                     " bytes in a segment with " + number(rest.size()) + " left");
                }
                if (name_bytes == 7 && type == 1 && std::memcmp(rest.data() + 12, "ATTEND", 7) == 0 &&
                    !take_note(
                        rest.subspan(static_cast<std::size_t>(payload_at), static_cast<std::size_t>(payload_bytes)))) {
                    return false;
                }
                // The last note may lack its padding.
                const std::uint64_t end = (payload_at + payload_bytes + padding) & ~padding;
                rest = end < rest.size() ? rest.subspan(static_cast<std::size_t>(end)) : Bytes{};
            }
        }
        return true;
    }

    bool take_note(Bytes payload) {
        if (facts_.has_note) return malformed("two ATTEND notes");
        if (payload.size() < note_payload_bytes) {
            return malformed("an ATTEND note of " + number(payload.size()) + " bytes instead of 32");
        }
        facts_.has_note = true;
        facts_.note = {at<std::uint32_t>(payload, 0),  at<std::uint32_t>(payload, 4),  at<std::uint16_t>(payload, 8),
                       at<std::uint16_t>(payload, 10), at<std::uint16_t>(payload, 12), at<std::uint16_t>(payload, 14),
                       at<std::uint64_t>(payload, 16)};
        return true;
    }

    // From a virtual address to the end of what its segment has in the file.
    [[nodiscard]] std::optional<Bytes> mapped(std::uint64_t address) const noexcept {
        for (const Segment& segment : segments_) {
            if (segment.type != segment_load || address < segment.address) continue;
            const std::uint64_t into = address - segment.address;
            if (into >= segment.file_bytes) continue;
            return file_.subspan(static_cast<std::size_t>(segment.offset + into),
                                 static_cast<std::size_t>(segment.file_bytes - into));
        }
        return std::nullopt;
    }

    // A text of the string table that ends inside it.
    [[nodiscard]] std::optional<std::string_view> text(std::uint64_t offset) const noexcept {
        if (offset >= strings_.size()) return std::nullopt;
        const Bytes rest = strings_.subspan(static_cast<std::size_t>(offset));
        const std::size_t limit = std::min(rest.size(), max_name);
        const void* end = std::memchr(rest.data(), 0, limit);
        if (end == nullptr) return std::nullopt;
        const auto* begin = reinterpret_cast<const char*>(rest.data());
        return std::string_view(begin, static_cast<std::size_t>(static_cast<const char*>(end) - begin));
    }

    bool keep_name(std::vector<std::string>& names, std::uint64_t offset, const char* what) {
        const auto name = text(offset);
        if (!name)
            return malformed(std::string(what) + " has its name at " + number(offset) + " outside the string table");
        names_total_ += name->size() + sizeof(std::string);
        if (names_total_ > max_names_total) return malformed("more than 16 MiB of names");
        names.emplace_back(*name);
        return true;
    }

    bool dynamic() {
        const auto segment = std::find_if(segments_.begin(), segments_.end(),
                                          [](const Segment& one) { return one.type == segment_dynamic; });
        if (segment == segments_.end()) return malformed("there is no dynamic segment");
        const Bytes table =
            file_.subspan(static_cast<std::size_t>(segment->offset), static_cast<std::size_t>(segment->file_bytes));
        std::vector<std::uint64_t> needed;
        std::optional<std::uint64_t> search_path;
        std::uint64_t strings_bytes = 0;
        std::optional<std::uint64_t> strings_address;
        bool ended = false;
        for (std::uint64_t entry = 0; !ended; entry += 16) {
            const auto tag = read<std::uint64_t>(table, entry);
            const auto value = read<std::uint64_t>(table, entry + 8);
            if (!tag || !value) return malformed("the dynamic segment has no end");
            switch (*tag) {
                case tag_end: ended = true; break;
                case tag_needed: needed.push_back(*value); break;
                case tag_hash: hash_address_ = *value; break;
                case tag_gnu_hash: gnu_hash_address_ = *value; break;
                case tag_strtab: strings_address = *value; break;
                case tag_strsz: strings_bytes = *value; break;
                case tag_symtab: symbols_address_ = *value; break;
                case tag_syment:
                    if (*value != symbol_bytes) return malformed("symbols of " + number(*value) + " bytes");
                    break;
                case tag_rpath:
                case tag_runpath: search_path = *value; break;
                case tag_textrel: facts_.text_relocations = true; break;
                case tag_init_arraysz: facts_.init_array_entries = *value / 8; break;
                case tag_flags:
                    facts_.text_relocations |= (*value & flag_textrel) != 0;
                    facts_.static_tls |= (*value & flag_static_tls) != 0;
                    break;
                case tag_flags_1:
                    if ((*value & flag_1_pie) != 0) {
                        return fail("WRONG_FORMAT",
                                    "the file is a position-independent executable; a shared library is needed");
                    }
                    break;
                case tag_verneed: versions_address_ = *value; break;
                case tag_verneednum: versions_count_ = *value; break;
                default: break;
            }
        }
        if (strings_address) {
            const auto strings = mapped(*strings_address);
            if (!strings || strings_bytes > strings->size()) {
                return malformed("a string table of " + number(strings_bytes) + " bytes at " + hex(*strings_address));
            }
            strings_ = strings->first(static_cast<std::size_t>(strings_bytes));
        }
        for (const std::uint64_t offset : needed) {
            if (!keep_name(facts_.needed_libraries, offset, "a needed library")) return false;
        }
        if (search_path) {
            const auto path = text(*search_path);
            if (!path) return malformed("the search path has its text outside the string table");
            facts_.rpath_or_runpath = *path;
        }
        return true;
    }

    // The dynamic section does not say how many symbols there are; the hash tables do.
    bool symbol_count(std::uint64_t& count) {
        if (hash_address_) {
            const auto table = mapped(*hash_address_);
            const auto chains = table ? read<std::uint32_t>(*table, 4) : std::nullopt;
            if (!chains) return malformed("a hash table at " + hex(*hash_address_) + " outside the file");
            count = std::max<std::uint64_t>(count, *chains);
        }
        if (gnu_hash_address_) {
            const auto table = mapped(*gnu_hash_address_);
            if (!table || table->size() < 16) {
                return malformed("a hash table at " + hex(*gnu_hash_address_) + " outside the file");
            }
            const std::uint64_t buckets = at<std::uint32_t>(*table, 0);
            const std::uint64_t first = at<std::uint32_t>(*table, 4);
            const std::uint64_t buckets_at = 16 + std::uint64_t{at<std::uint32_t>(*table, 8)} * 8;
            const std::uint64_t chains_at = buckets_at + buckets * 4;
            if (chains_at > table->size())
                return malformed("a hash table of " + number(buckets) + " buckets outside the file");
            std::uint64_t last = 0;
            for (std::uint64_t bucket = 0; bucket < buckets; ++bucket) {
                last = std::max<std::uint64_t>(
                    last, at<std::uint32_t>(*table, static_cast<std::size_t>(buckets_at + bucket * 4)));
            }
            if (last < first) {
                count = std::max(count, first);
                return true;
            }
            // The chain of the highest bucket ends with the last symbol; its end is marked by the low bit.
            for (;; ++last) {
                const auto chain = read<std::uint32_t>(*table, chains_at + (last - first) * 4);
                if (!chain) return malformed("a hash chain without end");
                if ((*chain & 1U) != 0) break;
            }
            count = std::max(count, last + 1);
        }
        return true;
    }

    bool symbols() {
        if (!symbols_address_) return true;
        std::uint64_t count = 0;
        if (!symbol_count(count)) return false;
        if (!hash_address_ && !gnu_hash_address_) return malformed("a symbol table without a hash table");
        const auto table = mapped(*symbols_address_);
        if (!table || count > table->size() / symbol_bytes) {
            return malformed(number(count) + " symbols at " + hex(*symbols_address_) + " outside the file");
        }
        for (std::size_t index = 1; index < count; ++index) {
            const Bytes symbol = table->subspan(index * symbol_bytes, symbol_bytes);
            const unsigned info = at<std::uint8_t>(symbol, 4);
            const unsigned visibility = at<std::uint8_t>(symbol, 5) & 3U;
            const unsigned bind = info >> 4;
            const bool defined = at<std::uint16_t>(symbol, 6) != 0;
            const bool visible = visibility == 0 || visibility == 3;
            if (!defined || !visible || (bind != bind_global && bind != bind_weak && bind != bind_unique)) continue;
            const std::uint64_t name = at<std::uint32_t>(symbol, 0);
            if (!keep_name(facts_.exported_symbols, name, "a symbol")) return false;
            if (bind == bind_unique && !keep_name(facts_.unique_symbols, name, "a symbol")) return false;
            const unsigned type = info & 15U;
            if (facts_.exported_symbols.back() == entry_name) {
                facts_.entry_is_function = type == type_function || type == type_indirect_function;
            }
        }
        return true;
    }

    bool versions() {
        if (!versions_address_ || versions_count_ == 0) return true;
        const auto table = mapped(*versions_address_);
        if (!table) return malformed("needed versions at " + hex(*versions_address_) + " outside the file");
        std::uint64_t records = 0;
        std::uint64_t file_at = 0;
        for (std::uint64_t file = 0; file < versions_count_; ++file) {
            const auto names = read<std::uint16_t>(*table, file_at + 2);
            const auto first = read<std::uint32_t>(*table, file_at + 8);
            const auto next_file = read<std::uint32_t>(*table, file_at + 12);
            if (!names || !first || !next_file) return malformed("needed versions outside the file");
            std::uint64_t name_at = file_at + *first;
            for (unsigned index = 0; index < *names; ++index) {
                const auto name = read<std::uint32_t>(*table, name_at + 8);
                const auto next = read<std::uint32_t>(*table, name_at + 12);
                const auto version = name ? text(*name) : std::nullopt;
                if (!next || !version) return malformed("needed versions outside the file");
                if (++records > max_version_records) return malformed("too many needed versions");
                keep_newest(facts_.newest_glibc, "GLIBC_", *version);
                keep_newest(facts_.newest_glibcxx, "GLIBCXX_", *version);
                if (*next == 0) break;
                name_at += *next;
            }
            if (++records > max_version_records) return malformed("too many needed versions");
            if (*next_file == 0) break;
            file_at += *next_file;
        }
        return true;
    }

    // Compares dotted numbers; GLIBC_PRIVATE and the like are no numbers.
    static void keep_newest(std::string& newest, std::string_view prefix, std::string_view version) {
        if (!version.starts_with(prefix)) return;
        const auto candidate = parts(version.substr(prefix.size()));
        if (candidate.empty() || version.size() > 64) return;
        if (newest.empty() || parts(std::string_view(newest).substr(prefix.size())) < candidate) newest = version;
    }
    static std::vector<std::uint64_t> parts(std::string_view dotted) {
        std::vector<std::uint64_t> result;
        const char* here = dotted.data();
        const char* const end = here + dotted.size();
        for (;;) {
            std::uint64_t value = 0;
            const auto [stop, error] = std::from_chars(here, end, value);
            if (error != std::errc{}) return {};
            result.push_back(value);
            if (stop == end) return result;
            if (*stop != '.') return {};
            here = stop + 1;
        }
    }

    Bytes file_;
    ElfFacts facts_;
    InspectionFailure failure_;
    std::vector<Segment> segments_;
    Bytes strings_;
    std::size_t names_total_{0};
    std::optional<std::uint64_t> hash_address_, gnu_hash_address_, symbols_address_, versions_address_;
    std::uint64_t versions_count_{0};
};

}  // namespace

std::variant<ElfFacts, InspectionFailure> inspect_elf(std::span<const std::byte> file) { return Inspector(file).run(); }

}  // namespace attend
