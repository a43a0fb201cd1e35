// SPDX-License-Identifier: Apache-2.0
// Reader and writer of stored zip members. What a local header says is only compared with the central directory.

#include "io/zip.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "io/text.hpp"

namespace attend::io {
namespace {

constexpr std::uint32_t local_signature = 0x04034B50;
constexpr std::uint32_t central_signature = 0x02014B50;
constexpr std::uint32_t end_signature = 0x06054B50;
constexpr std::size_t local_size = 30;
constexpr std::size_t central_size = 46;
constexpr std::size_t end_size = 22;
constexpr std::uint32_t zip64_mark = 0xFFFFFFFF;
constexpr std::uint16_t encrypted_flags = 0x2041;  // encrypted, strongly encrypted, masked headers
constexpr std::uint16_t descriptor_flag = 0x0008;  // CRC and sizes follow the data; the directory has them
constexpr std::uint16_t utf8_flag = 0x0800;

// Eight tables: one step of the loop takes eight bytes.
constexpr auto crc_tables = [] {
    std::array<std::array<std::uint32_t, 256>, 8> tables{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        std::uint32_t value = byte;
        for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1U) != 0 ? 0xEDB88320U : 0U);
        tables[0][byte] = value;
    }
    for (std::size_t table = 1; table < 8; ++table) {
        for (std::size_t byte = 0; byte < 256; ++byte) {
            const std::uint32_t before = tables[table - 1][byte];
            tables[table][byte] = (before >> 8) ^ tables[0][before & 0xFFU];
        }
    }
    return tables;
}();

std::uint16_t u16(std::span<const std::byte> bytes, std::size_t at) noexcept {
    return static_cast<std::uint16_t>(std::to_integer<unsigned>(bytes[at]) |
                                      (std::to_integer<unsigned>(bytes[at + 1]) << 8));
}

std::uint32_t u32(std::span<const std::byte> bytes, std::size_t at) noexcept {
    return static_cast<std::uint32_t>(u16(bytes, at)) | (static_cast<std::uint32_t>(u16(bytes, at + 2)) << 16);
}

std::string_view text_of(std::span<const std::byte> bytes) noexcept {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

template <class Int>
void append(std::string& out, Int value) {
    for (std::size_t byte = 0; byte < sizeof(Int); ++byte) {
        out += static_cast<char>(static_cast<std::uint64_t>(value) >> (8 * byte) & 0xFFU);
    }
}

// The last end record whose comment reaches exactly to the end of the file.
std::optional<std::size_t> find_end_record(std::span<const std::byte> bytes) noexcept {
    if (bytes.size() < end_size) return std::nullopt;
    const std::size_t last = bytes.size() - end_size;
    const std::size_t first = last > 0xFFFF ? last - 0xFFFF : 0;
    for (std::size_t at = last + 1; at-- > first;) {
        if (u32(bytes, at) == end_signature && u16(bytes, at + 20) == last - at) return at;
    }
    return std::nullopt;
}

struct Entry {
    std::string name;
    std::uint16_t flags;
    std::uint32_t crc, size, offset;
    std::size_t begin, end;  // of the whole member, header included
};

// Checks one directory entry at the start of `bytes` (already long enough) by itself.
std::optional<Error> check_central(std::span<const std::byte> bytes, const std::string& place) {
    const std::uint16_t flags = u16(bytes, 8);
    const std::uint16_t method = u16(bytes, 10);
    if ((flags & encrypted_flags) != 0) {
        return bad_input(place, "is encrypted", "accepted: plain members");
    }
    if (method != 0) {
        Error error = bad_input(
            place, (method == 8 ? "is deflated (method 8)" : "has compression method " + std::to_string(method)),
            "accepted: stored members (method 0)");
        error.hint = "write it with numpy.savez instead of numpy.savez_compressed";
        return error;
    }
    if (u32(bytes, 20) == zip64_mark || u32(bytes, 24) == zip64_mark || u32(bytes, 42) == zip64_mark) {
        return bad_input(place, "needs zip64", "accepted: members and archives below 4 GiB; use .safetensors for more");
    }
    if (u32(bytes, 20) != u32(bytes, 24)) {
        return bad_input(
            place,
            "stores " + std::to_string(u32(bytes, 20)) + " bytes for a size of " + std::to_string(u32(bytes, 24)),
            "both are the same in a stored member");
    }
    if (u16(bytes, 34) != 0) return bad_input(place, "lies on another disk", "accepted: archives in one piece");
    return std::nullopt;
}

// Sizes in a local header equal the directory's, or stand in the zip64 field that streaming writers reserve, or are
// zero because they follow the data.
bool local_agrees(std::span<const std::byte> local, const Entry& entry) noexcept {
    const bool later = (entry.flags & descriptor_flag) != 0;
    const auto same = [later](std::uint32_t value, std::uint32_t expected) {
        return value == expected || (later && value == 0);
    };
    return u16(local, 6) == entry.flags && u16(local, 8) == 0 && same(u32(local, 14), entry.crc) &&
           (same(u32(local, 18), entry.size) || u32(local, 18) == zip64_mark) &&
           (same(u32(local, 22), entry.size) || u32(local, 22) == zip64_mark);
}

// Finds the data of a member through its local header.
Result<ZipMember> open_member(std::span<const std::byte> bytes, Entry& entry, std::size_t limit,
                              const std::string& place) {
    const std::size_t begin = entry.offset;
    if (begin > limit || limit - begin < local_size || u32(bytes, begin) != local_signature) {
        return bad_input(place, "has no header at byte " + std::to_string(begin), "a complete archive is needed");
    }
    const auto local = bytes.subspan(begin, local_size);
    const std::size_t name_size = u16(local, 26);
    const std::size_t skip = local_size + name_size + u16(local, 28);
    if (limit - begin < skip || limit - begin - skip < entry.size) {
        return bad_input(place, "reaches beyond the data of the archive", "a complete archive is needed");
    }
    if (text_of(bytes.subspan(begin + local_size, name_size)) != entry.name || !local_agrees(local, entry)) {
        return bad_input(place, "differs between its own header and the directory", "both must say the same");
    }
    entry.begin = begin;
    entry.end = begin + skip + entry.size;
    const auto data = bytes.subspan(begin + skip, entry.size);
    if (const std::uint32_t crc = crc32(data); crc != entry.crc) {
        return bad_input(place,
                         "has CRC " + std::to_string(crc) + " where the directory says " + std::to_string(entry.crc),
                         "an undamaged file is needed");
    }
    return ZipMember{entry.name, data};
}

}  // namespace

std::uint32_t crc32(std::span<const std::byte> bytes, std::uint32_t previous) noexcept {
    std::uint32_t crc = ~previous;
    while (bytes.size() >= 8) {
        const std::uint32_t low = u32(bytes, 0) ^ crc;
        const std::uint32_t high = u32(bytes, 4);
        crc = crc_tables[7][low & 0xFFU] ^ crc_tables[6][low >> 8 & 0xFFU] ^ crc_tables[5][low >> 16 & 0xFFU] ^
              crc_tables[4][low >> 24] ^ crc_tables[3][high & 0xFFU] ^ crc_tables[2][high >> 8 & 0xFFU] ^
              crc_tables[1][high >> 16 & 0xFFU] ^ crc_tables[0][high >> 24];
        bytes = bytes.subspan(8);
    }
    for (const std::byte byte : bytes)
        crc = (crc >> 8) ^ crc_tables[0][(crc ^ std::to_integer<unsigned>(byte)) & 0xFFU];
    return ~crc;
}

Result<std::vector<ZipMember>> read_zip(std::span<const std::byte> bytes, const std::string& place) {
    const auto end_at = find_end_record(bytes);
    if (!end_at) {
        return bad_input(
            place, "is no zip archive or is cut off (no end record in " + std::to_string(bytes.size()) + " bytes)",
            "accepted: a complete .npz archive");
    }
    const auto end = bytes.subspan(*end_at, end_size);
    const std::uint16_t count = u16(end, 10);
    const std::uint32_t directory_size = u32(end, 12);
    const std::uint32_t directory_at = u32(end, 16);
    if (count == 0xFFFF || directory_size == zip64_mark || directory_at == zip64_mark) {
        return bad_input(place, "needs zip64", "accepted: archives below 4 GiB; use .safetensors for more");
    }
    if (u16(end, 4) != 0 || u16(end, 6) != 0 || u16(end, 8) != count) {
        return bad_input(place, "is split over several disks", "accepted: archives in one piece");
    }
    if (directory_at > *end_at || *end_at - directory_at < directory_size) {
        return bad_input(place,
                         "has its directory at bytes " + std::to_string(directory_at) + " to " +
                             std::to_string(std::uint64_t{directory_at} + directory_size) + ", beyond the end record",
                         "a complete archive is needed");
    }
    std::vector<ZipMember> members;
    std::vector<std::pair<std::size_t, std::size_t>> ranges;
    std::unordered_set<std::string> names;
    auto rest = bytes.subspan(directory_at, directory_size);
    for (std::uint32_t index = 0; index < count; ++index) {
        const std::string unnamed = place + ": member " + std::to_string(index);
        if (rest.size() < central_size || u32(rest, 0) != central_signature) {
            return bad_input(unnamed, "has no entry in the directory", "a complete archive is needed");
        }
        const std::size_t name_size = u16(rest, 28);
        const std::size_t entry_size = central_size + name_size + u16(rest, 30) + u16(rest, 32);
        if (rest.size() < entry_size) {
            return bad_input(unnamed, "has a cut entry in the directory", "a complete archive is needed");
        }
        Entry entry{std::string(text_of(rest.subspan(central_size, name_size))),
                    u16(rest, 8),
                    u32(rest, 16),
                    u32(rest, 24),
                    u32(rest, 42),
                    0,
                    0};
        const std::string named = place + ": member " + in_quotes(entry.name);
        if (auto error = check_central(rest, named)) return *error;
        if (!names.insert(entry.name).second) {
            return bad_input(named, "is there twice", "every name may occur once");
        }
        auto member = open_member(bytes, entry, directory_at, named);
        if (!member) return member.error();
        ranges.emplace_back(entry.begin, entry.end);
        members.push_back(std::move(*member));
        rest = rest.subspan(entry_size);
    }
    if (!rest.empty()) {
        return bad_input(place, "has " + std::to_string(rest.size()) + " surplus bytes in its directory",
                         "a directory of the announced entries is needed");
    }
    std::sort(ranges.begin(), ranges.end());
    for (std::size_t index = 1; index < ranges.size(); ++index) {
        if (ranges[index].first < ranges[index - 1].second) {
            return bad_input(place, "has members that overlap at byte " + std::to_string(ranges[index].first),
                             "every byte belongs to one member");
        }
    }
    return members;
}

Result<void> ZipWriter::add(const std::string& name, std::span<const std::span<const std::byte>> pieces) {
    std::uint64_t size = 0;
    std::uint32_t crc = 0;
    for (const auto& piece : pieces) {
        size += piece.size();
        crc = crc32(piece, crc);
    }
    const std::uint64_t end = offset_ + local_size + name.size() + size;
    if (name.size() > 0xFFFF || members_ == 0xFFFE || end >= zip64_mark) {
        return bad_input(place_ + ": member " + in_quotes(name), "does not fit an archive without zip64",
                         "accepted: archives below 4 GiB; use .safetensors for more");
    }
    // Version 2.0, UTF-8 name, stored, 1 January 1980: what both headers have in common.
    std::string common;
    append<std::uint16_t>(common, 20);
    append<std::uint16_t>(common, utf8_flag);
    append<std::uint16_t>(common, 0);
    append<std::uint16_t>(common, 0);
    append<std::uint16_t>(common, 0x21);
    append<std::uint32_t>(common, crc);
    append<std::uint32_t>(common, static_cast<std::uint32_t>(size));
    append<std::uint32_t>(common, static_cast<std::uint32_t>(size));
    append<std::uint16_t>(common, static_cast<std::uint16_t>(name.size()));
    append<std::uint16_t>(common, 0);

    std::string local;
    append<std::uint32_t>(local, local_signature);
    local += common + name;
    append<std::uint32_t>(directory_, central_signature);
    append<std::uint16_t>(directory_, 20);
    directory_ += common;
    append<std::uint16_t>(directory_, 0);  // comment
    append<std::uint16_t>(directory_, 0);  // disk
    append<std::uint16_t>(directory_, 0);  // internal attributes
    append<std::uint32_t>(directory_, 0);  // external attributes
    append<std::uint32_t>(directory_, static_cast<std::uint32_t>(offset_));
    directory_ += name;

    if (auto written = out_.write(local.data(), local.size()); !written) return written;
    for (const auto& piece : pieces) {
        if (auto written = out_.write(piece.data(), piece.size()); !written) return written;
    }
    offset_ = end;
    ++members_;
    return {};
}

Result<void> ZipWriter::finish() {
    if (offset_ + directory_.size() >= zip64_mark) {
        return bad_input(place_, "does not fit an archive without zip64",
                         "accepted: archives below 4 GiB; use .safetensors for more");
    }
    const auto size = static_cast<std::uint32_t>(directory_.size());
    append<std::uint32_t>(directory_, end_signature);
    append<std::uint32_t>(directory_, 0);  // disks
    append<std::uint16_t>(directory_, static_cast<std::uint16_t>(members_));
    append<std::uint16_t>(directory_, static_cast<std::uint16_t>(members_));
    append<std::uint32_t>(directory_, size);
    append<std::uint32_t>(directory_, static_cast<std::uint32_t>(offset_));
    append<std::uint16_t>(directory_, 0);  // comment
    return out_.write(directory_.data(), directory_.size());
}

}  // namespace attend::io
