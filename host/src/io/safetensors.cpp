// SPDX-License-Identifier: Apache-2.0
// safetensors reader and writer. Nothing of the header is believed before it is compared with the size of the file.

#include "io/safetensors.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

#include "attend/config/json.hpp"
#include "io/text.hpp"

namespace attend::io {
namespace {

constexpr std::uint64_t max_header = 100'000'000;
constexpr std::string_view metadata_key = "__metadata__";

struct Entry {
    std::string name;
    DType dtype{};
    std::vector<std::int64_t> shape;
    std::uint64_t begin{0};
    std::uint64_t end{0};
};

std::string dtype_list() {
    std::string list;
    for (const DType dtype : all_dtypes) {
        if (!list.empty()) list += ", ";
        list += dtype_name(dtype);
    }
    return list;
}

std::string shown(const Json& value) { return in_quotes(write_json(value)); }

// Only what was written as an integer counts: 4.0 and 4e0 are refused.
std::optional<std::uint64_t> non_negative(const Json& value) {
    if (!value.is_integer()) return std::nullopt;
    return value.to_uint64();
}

Result<void> parse_metadata(const Json& value, const std::string& path, TensorFile& file) {
    const std::string place = path + ": " + std::string(metadata_key);
    if (!value.is_object()) {
        return bad_input(place, std::string("is ") + value.kind(), "accepted: an object of text to text");
    }
    for (const auto& [key, text] : value.as_object()) {
        if (!text.is_string()) {
            return bad_input(place + ": " + in_quotes(key), std::string("is ") + text.kind(), "accepted: text");
        }
        file.metadata.emplace_back(key, text.as_string());
    }
    return {};
}

Result<std::vector<std::int64_t>> parse_shape(const Json& value, const std::string& place) {
    constexpr const char* accepted = "accepted: at most 8 non-negative integers written without fraction";
    if (!value.is_array()) return bad_input(place, std::string("shape is ") + value.kind(), accepted);
    if (value.size() > max_rank) {
        return bad_input(place, "shape has rank " + std::to_string(value.size()), accepted);
    }
    std::vector<std::int64_t> shape;
    for (const Json& element : value.as_array()) {
        const auto extent = non_negative(element);
        if (!extent) return bad_input(place, "shape has the extent " + shown(element), accepted);
        if (*extent > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
            return bad_input(place, "shape has the extent " + std::to_string(*extent), "accepted: below 2^63");
        }
        shape.push_back(static_cast<std::int64_t>(*extent));
    }
    return shape;
}

Result<Entry> parse_entry(const std::string& name, const Json& value, std::uint64_t data_size,
                          const std::string& place) {
    constexpr const char* members = "accepted: exactly dtype, shape, data_offsets";
    if (!value.is_object()) return bad_input(place, std::string("is ") + value.kind(), members);
    for (const auto& [key, member] : value.as_object()) {
        if (key != "dtype" && key != "shape" && key != "data_offsets") {
            return bad_input(place, "has the unknown key " + in_quotes(key), members);
        }
    }
    const Json* dtype = value.find("dtype");
    const Json* shape = value.find("shape");
    const Json* offsets = value.find("data_offsets");
    for (const auto& [member, key] : {std::pair{dtype, "dtype"}, {shape, "shape"}, {offsets, "data_offsets"}}) {
        if (member == nullptr) return bad_input(place, std::string("has no ") + key, members);
    }
    Entry entry;
    entry.name = name;
    const auto known = dtype->is_string() ? dtype_from_name(dtype->as_string()) : std::nullopt;
    if (!known) return bad_input(place, "dtype is " + shown(*dtype), "accepted: " + dtype_list());
    entry.dtype = *known;
    auto extents = parse_shape(*shape, place);
    if (!extents) return extents.error();
    entry.shape = std::move(*extents);

    constexpr const char* two = "accepted: two non-negative integers written without fraction";
    if (!offsets->is_array() || offsets->size() != 2) {
        return bad_input(place, "data_offsets is " + shown(*offsets), two);
    }
    const auto begin = non_negative(offsets->as_array()[0]);
    const auto end = non_negative(offsets->as_array()[1]);
    if (!begin || !end) return bad_input(place, "data_offsets is " + shown(*offsets), two);
    entry.begin = *begin;
    entry.end = *end;
    const std::string range = "data_offsets [" + std::to_string(*begin) + ", " + std::to_string(*end) + "]";
    if (*begin > *end) return bad_input(place, range + " begins after its end", "begin <= end is needed");
    if (*end > data_size) {
        return bad_input(place, range + " ends outside the data",
                         "the file has " + std::to_string(data_size) + " bytes of data");
    }
    const auto size = checked_byte_size(entry.shape, dtype_size(entry.dtype));
    if (!size) {
        return bad_input(place, "shape " + shape_text(entry.shape) + " of " + dtype_name(entry.dtype) + " overflows",
                         "accepted: products below 2^63 bytes");
    }
    if (static_cast<std::uint64_t>(*size) != *end - *begin) {
        return bad_input(place,
                         range + " holds " + std::to_string(*end - *begin) + " bytes where shape " +
                             shape_text(entry.shape) + " of " + dtype_name(entry.dtype) + " needs " +
                             std::to_string(*size),
                         "both must agree");
    }
    return entry;
}

// Sorted by begin, the ranges must follow each other from the first byte of the data to the last.
Result<void> check_layout(const std::vector<Entry>& entries, std::uint64_t data_size, const std::string& path) {
    std::vector<const Entry*> order;
    order.reserve(entries.size());
    for (const Entry& entry : entries) order.push_back(&entry);
    std::sort(order.begin(), order.end(),
              [](const Entry* a, const Entry* b) { return std::pair(a->begin, a->end) < std::pair(b->begin, b->end); });
    std::uint64_t covered = 0;
    for (const Entry* entry : order) {
        if (entry->begin != covered) {
            return bad_input(path + ": tensor " + in_quotes(entry->name),
                             "begins at byte " + std::to_string(entry->begin) + " of the data, " +
                                 (entry->begin < covered ? "inside another tensor that ends" : "leaving a hole") +
                                 " at byte " + std::to_string(covered),
                             "tensors must cover the data without overlap and holes");
        }
        covered = entry->end;
    }
    if (covered != data_size) {
        return bad_input(path,
                         "has " + std::to_string(data_size - covered) +
                             " bytes of data after the last tensor, which ends "
                             "at byte " +
                             std::to_string(covered),
                         "tensors must cover the data without overlap and holes");
    }
    return {};
}

}  // namespace

Result<TensorFile> read_safetensors(const std::string& path) {
    auto mapped = map_file(path);
    if (!mapped) return mapped.error();
    const auto bytes = mapped->bytes;
    if (bytes.size() < 8) {
        return bad_input(path, "is " + std::to_string(bytes.size()) + " bytes long",
                         "a safetensors file begins with 8 bytes of header length");
    }
    std::uint64_t length = 0;
    for (std::size_t byte = 8; byte-- > 0;) length = length << 8 | std::to_integer<std::uint64_t>(bytes[byte]);
    if (length > max_header) {
        return bad_input(path, "header length is " + std::to_string(length), "accepted: at most 100000000 bytes");
    }
    if (length > bytes.size() - 8) {
        return bad_input(path,
                         "header length " + std::to_string(length) + " exceeds the " +
                             std::to_string(bytes.size() - 8) + " bytes that follow",
                         "a complete file is needed");
    }
    std::string_view text(reinterpret_cast<const char*>(bytes.data()) + 8, static_cast<std::size_t>(length));
    const auto data = bytes.subspan(8 + static_cast<std::size_t>(length));
    if (text.empty() || text.front() != '{') {
        return bad_input(path + ": header",
                         text.empty() ? std::string("is empty") : "begins with " + in_quotes(text.substr(0, 1)),
                         "it begins with '{'");
    }
    text = text.substr(0, text.find_last_not_of(' ') + 1);
    JsonLimits limits;
    limits.allow_trailing_space = false;  // blanks have been cut, and nothing else may follow
    auto header = parse_json(text, path + ": header", limits);
    if (!header) return header.error();

    TensorFile file;
    std::vector<Entry> entries;
    for (const auto& [name, value] : header->as_object()) {
        if (name == metadata_key) {
            if (auto parsed = parse_metadata(value, path, file); !parsed) return parsed.error();
            continue;
        }
        auto entry = parse_entry(name, value, data.size(), path + ": tensor " + in_quotes(name));
        if (!entry) return entry.error();
        entries.push_back(std::move(*entry));
    }
    if (auto checked = check_layout(entries, data.size(), path); !checked) return checked.error();
    for (Entry& entry : entries) {
        const auto part =
            data.subspan(static_cast<std::size_t>(entry.begin), static_cast<std::size_t>(entry.end - entry.begin));
        auto tensor = adopt_bytes(entry.dtype, std::move(entry.shape), part, mapped->storage,
                                  path + ": tensor " + in_quotes(entry.name));
        if (!tensor) return tensor.error();
        file.tensors.emplace_back(std::move(entry.name), std::move(*tensor));
    }
    return file;
}

Result<void> write_safetensors(OutputFile& out, const TensorFile& file, const std::string& place) {
    Json header = Json::object();
    if (!file.metadata.empty()) {
        Json metadata = Json::object();
        for (const auto& [key, text] : file.metadata) {
            if (!valid_utf8(key) || !valid_utf8(text)) {
                return bad_input(place + ": " + std::string(metadata_key) + ": " + in_quotes(key), "is not UTF-8",
                                 "accepted: text");
            }
            if (metadata.find(key) != nullptr) {
                return bad_input(place + ": " + std::string(metadata_key) + ": " + in_quotes(key), "is there twice",
                                 "every name may occur once");
            }
            metadata.set(key, text);
        }
        header.set(metadata_key, std::move(metadata));
    }
    std::vector<const std::pair<std::string, Tensor>*> order;
    order.reserve(file.tensors.size());
    for (const auto& named : file.tensors) order.push_back(&named);
    std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
        return dtype_size(a->second.dtype) > dtype_size(b->second.dtype);
    });
    std::uint64_t offset = 0;
    Json::Object& members = header.as_object();
    for (const auto* named : order) {
        const auto& [name, tensor] = *named;
        if (name == metadata_key) {
            return bad_input(place + ": tensor " + in_quotes(name), "has the name of the metadata", "any other name");
        }
        Json shape = Json::array();
        for (const std::int64_t extent : tensor.shape) shape.push(extent);
        Json offsets = Json::array();
        offsets.push(offset);
        offset += tensor.byte_size();
        offsets.push(offset);
        Json entry = Json::object();
        entry.set("dtype", dtype_name(tensor.dtype))
            .set("shape", std::move(shape))
            .set("data_offsets", std::move(offsets));
        members.emplace_back(name, std::move(entry));
    }
    std::string text = write_json(header);
    text.resize((text.size() + 7) / 8 * 8, ' ');
    if (text.size() > max_header) {
        return bad_input(place, "needs a header of " + std::to_string(text.size()) + " bytes",
                         "accepted: at most 100000000 bytes");
    }
    std::string length;
    for (std::size_t byte = 0; byte < 8; ++byte) length += static_cast<char>(text.size() >> (8 * byte) & 0xFFU);
    text.insert(0, length);
    if (auto written = out.write(text.data(), text.size()); !written) return written;
    for (const auto* named : order) {
        const auto tensor = contiguous_copy(named->second);
        if (!tensor) return tensor.error();
        if (auto written = out.write(tensor->data, tensor->byte_size()); !written) return written;
    }
    return {};
}

}  // namespace attend::io
