// SPDX-License-Identifier: Apache-2.0
// .npy and .npz. The header is a literal of one shape only, so its parser is a page long and accepts nothing else.

#include "io/npy.hpp"

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

#include "io/text.hpp"
#include "io/zip.hpp"

namespace attend::io {
namespace {

constexpr std::string_view magic{"\x93NUMPY", 6};
constexpr const char* accepted_types =
    "accepted: '<f4', '<f8', '<f2', '|i1', '|u1', '|b1', '<i2', '<u2', '<i4', '<u4', '<i8', '<u8'";

// The spelling of a dtype without its byte order; empty where .npy has none.
constexpr std::string_view npy_type(DType dtype) noexcept {
    switch (dtype) {
        case DType::f32: return "f4";
        case DType::f64: return "f8";
        case DType::f16: return "f2";
        case DType::i8: return "i1";
        case DType::u8: return "u1";
        case DType::boolean: return "b1";
        case DType::i16: return "i2";
        case DType::u16: return "u2";
        case DType::i32: return "i4";
        case DType::u32: return "u4";
        case DType::i64: return "i8";
        case DType::u64: return "u8";
        case DType::bf16:
        case DType::f8_e4m3:
        case DType::f8_e5m2: return {};
    }
    return {};
}

std::optional<DType> dtype_of(std::string_view descr) noexcept {
    if (descr.size() != 3) return std::nullopt;
    for (const DType dtype : all_dtypes) {
        if (npy_type(dtype) != descr.substr(1)) continue;
        // A single byte has no order, and writers say so with '|'; '<' does no harm.
        if (descr[0] == '<' || (descr[0] == '|' && dtype_size(dtype) == 1)) return dtype;
    }
    return std::nullopt;
}

// Why a descr is refused, for the sentence.
std::string refusal(std::string_view descr) {
    const std::string shown = "descr " + in_quotes(descr);
    if (!descr.empty() && (descr[0] == '>' || descr[0] == '!')) return shown + " is big-endian";
    const char kind = descr.size() > 1 ? descr[1] : '?';
    switch (kind) {
        case 'O': return shown + " holds objects (pickle)";
        case 'c': return shown + " is complex";
        case 'U':
        case 'S':
        case 'a': return shown + " is text";
        case 'V': return shown + " is structured or raw";
        case 'M':
        case 'm': return shown + " is a date or time";
        default: return shown + " is not a known type";
    }
}

struct Header {
    std::string_view descr;
    bool fortran_order{false};
    std::vector<std::int64_t> shape;
};

// { 'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), } in any order, with blanks between tokens.
class HeaderParser {
public:
    HeaderParser(std::string_view text, const std::string& place) : text_(text), place_(place) {}

    Result<Header> parse() {
        Header header;
        bool seen_descr = false;
        bool seen_order = false;
        bool seen_shape = false;
        if (!take('{')) return wrong("does not begin with '{'");
        while (!take('}')) {
            std::string_view key;
            if (!string(key)) return wrong("has no quoted key");
            bool* seen = key == "descr"           ? &seen_descr
                         : key == "fortran_order" ? &seen_order
                         : key == "shape"         ? &seen_shape
                                                  : nullptr;
            if (seen == nullptr) return wrong("has the unknown key " + in_quotes(key));
            if (*seen) return wrong("has the key " + in_quotes(key) + " twice");
            *seen = true;
            if (!take(':')) return wrong("has no ':' after the key " + in_quotes(key));
            if (seen == &seen_descr) {
                if (peek() == '[') return wrong("has a structured descr (a list)", accepted_types);
                if (!string(header.descr)) return wrong("has a descr that is no quoted text", accepted_types);
            } else if (seen == &seen_order) {
                if (!boolean(header.fortran_order)) return wrong("has a fortran_order other than True or False");
            } else if (auto failure = shape(header.shape)) {
                return *failure;
            }
            if (!take(',') && peek() != '}')
                return wrong("has neither ',' nor '}' after the value of " + in_quotes(key));
        }
        skip_blanks();
        if (at_ != text_.size()) return wrong("goes on after the closing '}'");
        if (!seen_descr) return wrong("has no descr");
        if (!seen_order) return wrong("has no fortran_order");
        if (!seen_shape) return wrong("has no shape");
        return header;
    }

private:
    Error wrong(const std::string& what,
                const char* accepted = "accepted: a literal with exactly descr, fortran_order and shape") const {
        return bad_input(place_, "header, byte " + std::to_string(at_) + ": " + what, accepted);
    }

    void skip_blanks() noexcept {
        while (at_ < text_.size() &&
               (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r'))
            ++at_;
    }

    char peek() noexcept {
        skip_blanks();
        return at_ < text_.size() ? text_[at_] : '\0';
    }

    bool take(char expected) noexcept {
        skip_blanks();
        if (at_ == text_.size() || text_[at_] != expected) return false;
        ++at_;
        return true;
    }

    bool word(std::string_view expected) noexcept {
        skip_blanks();
        if (text_.substr(at_, expected.size()) != expected) return false;
        at_ += expected.size();
        return true;
    }

    bool boolean(bool& value) noexcept {
        value = word("True");
        return value || word("False");
    }

    // Single or double quotes. A backslash would need the rules of another language, so it is refused.
    bool string(std::string_view& value) noexcept {
        const char quote = peek();
        if (quote != '\'' && quote != '"') return false;
        const std::size_t begin = at_ + 1;
        const std::size_t end = text_.find(quote, begin);
        if (end == std::string_view::npos) return false;
        value = text_.substr(begin, end - begin);
        if (value.find_first_of("\\\n") != std::string_view::npos) return false;
        at_ = end + 1;
        return true;
    }

    std::optional<Error> shape(std::vector<std::int64_t>& extents) {
        constexpr const char* accepted = "accepted: a tuple of at most 8 non-negative integers";
        if (!take('(')) return wrong("has a shape that is no tuple", accepted);
        bool comma = true;
        while (!take(')')) {
            const char first = peek();
            if (first == '-') return wrong("has a negative extent", accepted);
            if (!comma || first < '0' || first > '9')
                return wrong("has a shape with something else than integers", accepted);
            std::int64_t extent = 0;
            const std::size_t begin = at_;
            for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
                if (__builtin_mul_overflow(extent, 10, &extent) ||
                    __builtin_add_overflow(extent, text_[at_] - '0', &extent)) {
                    return wrong("has an extent beyond 63 bits", accepted);
                }
            }
            if (first == '0' && at_ - begin > 1) return wrong("has an extent with a leading zero", accepted);
            extents.push_back(extent);
            if (extents.size() > max_rank) return wrong("has a shape of rank above 8", accepted);
            comma = take(',');
        }
        // (3) is a number in parentheses; the tuple of one is (3,).
        if (extents.size() == 1 && !comma) return wrong("has a shape that is no tuple", accepted);
        return std::nullopt;
    }

    std::string_view text_;
    const std::string& place_;
    std::size_t at_{0};
};

std::string shape_literal(const std::vector<std::int64_t>& shape) {
    std::string text = "(";
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
        text += std::to_string(shape[axis]);
        if (axis + 1 < shape.size()) text += ", ";
    }
    return text + (shape.size() == 1 ? ",)" : ")");
}

// Magic, version 1, length and literal, filled with blanks so that the data begins at a multiple of 64.
Result<std::string> header_of(const Tensor& tensor, const std::string& place) {
    const std::string_view type = npy_type(tensor.dtype);
    if (type.empty()) {
        return Error{ErrorCode::dtype,
                     place + ": .npy has no type for " + dtype_name(tensor.dtype) +
                         "; accepted: F32, F64, F16, I8, U8, BOOL, I16, U16, I32, U32, I64, U64, or use .safetensors",
                     {}};
    }
    std::string literal = "{'descr': '";
    literal += dtype_size(tensor.dtype) == 1 ? '|' : '<';
    literal += type;
    literal += "', 'fortran_order': False, 'shape': " + shape_literal(tensor.shape) + ", }";
    constexpr std::size_t prefix = 10;
    const std::size_t total = (prefix + literal.size() + 1 + 63) / 64 * 64;
    literal.resize(total - prefix - 1, ' ');
    literal += '\n';
    std::string header(magic);
    header += '\1';
    header += '\0';
    header += static_cast<char>(literal.size() & 0xFF);
    header += static_cast<char>(literal.size() >> 8);
    return header + literal;
}

std::span<const std::byte> bytes_of(const Tensor& tensor) noexcept {
    return {static_cast<const std::byte*>(tensor.data), tensor.byte_size()};
}

}  // namespace

Result<Tensor> parse_npy(std::span<const std::byte> bytes, const std::shared_ptr<const void>& storage,
                         const std::string& place) {
    if (bytes.size() < 10 || std::memcmp(bytes.data(), magic.data(), magic.size()) != 0) {
        return bad_input(place,
                         bytes.size() < 10 ? "is " + std::to_string(bytes.size()) + " bytes long"
                                           : std::string("does not begin with \\x93NUMPY"),
                         "accepted: .npy version 1, 2 or 3");
    }
    const auto byte_at = [bytes](std::size_t at) { return std::to_integer<std::size_t>(bytes[at]); };
    const std::size_t major = byte_at(6);
    const std::size_t minor = byte_at(7);
    if (major < 1 || major > 3 || minor != 0) {
        return bad_input(place, "is .npy version " + std::to_string(major) + "." + std::to_string(minor),
                         "accepted: versions 1.0, 2.0, 3.0");
    }
    const std::size_t prefix = major == 1 ? 10 : 12;
    if (bytes.size() < prefix) {
        return bad_input(place, "ends inside its header length", "a complete file is needed");
    }
    std::size_t length = byte_at(8) | byte_at(9) << 8;
    if (major > 1) length |= byte_at(10) << 16 | byte_at(11) << 24;
    if (length > bytes.size() - prefix) {
        return bad_input(place,
                         "header length " + std::to_string(length) + " exceeds the " +
                             std::to_string(bytes.size() - prefix) + " bytes that follow",
                         "a complete file is needed");
    }
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + prefix, length);
    auto header = HeaderParser(text, place).parse();
    if (!header) return header.error();
    const auto dtype = dtype_of(header->descr);
    if (!dtype) return bad_input(place, refusal(header->descr), accepted_types);
    if (header->fortran_order) {
        Error error = bad_input(place, "fortran_order is True", "accepted: C order");
        error.hint = "write it with numpy.ascontiguousarray";
        return error;
    }
    const auto size = checked_byte_size(header->shape, dtype_size(*dtype));
    if (!size) {
        return bad_input(place, "shape " + shape_text(header->shape) + " overflows", "accepted: below 2^63 bytes");
    }
    const auto data = bytes.subspan(prefix + length);
    if (data.size() != static_cast<std::size_t>(*size)) {
        return bad_input(
            place,
            "has " + std::to_string(data.size()) + " bytes of data where shape " + shape_text(header->shape) + " of " +
                dtype_name(*dtype) + " needs " + std::to_string(*size),
            data.size() < static_cast<std::size_t>(*size) ? "the data is cut off" : "there is surplus data");
    }
    return adopt_bytes(*dtype, std::move(header->shape), data, storage, place);
}

Result<TensorFile> read_npy(const std::string& path) {
    auto mapped = map_file(path);
    if (!mapped) return mapped.error();
    auto tensor = parse_npy(mapped->bytes, mapped->storage, path);
    if (!tensor) return tensor.error();
    TensorFile file;
    file.tensors.emplace_back("query", std::move(*tensor));
    return file;
}

Result<TensorFile> read_npz(const std::string& path) {
    auto mapped = map_file(path);
    if (!mapped) return mapped.error();
    auto members = read_zip(mapped->bytes, path);
    if (!members) return members.error();
    TensorFile file;
    for (const ZipMember& member : *members) {
        const std::string place = path + ": member " + in_quotes(member.name);
        constexpr std::string_view suffix = ".npy";
        if (!member.name.ends_with(suffix) || member.name.size() == suffix.size() || !valid_utf8(member.name)) {
            return bad_input(place, "is not called <tensor>.npy", "accepted: .npy members with UTF-8 names");
        }
        auto tensor = parse_npy(member.data, mapped->storage, place);
        if (!tensor) return tensor.error();
        file.tensors.emplace_back(member.name.substr(0, member.name.size() - suffix.size()), std::move(*tensor));
    }
    return file;
}

Result<void> write_npy(OutputFile& out, const TensorFile& file, const std::string& place) {
    if (file.tensors.size() != 1) {
        return bad_input(place, ".npy holds one tensor, not " + std::to_string(file.tensors.size()),
                         "accepted for several: .safetensors, .npz");
    }
    const auto tensor = contiguous_copy(file.tensors.front().second);
    if (!tensor) return tensor.error();
    const auto header = header_of(*tensor, place + ": tensor " + in_quotes(file.tensors.front().first));
    if (!header) return header.error();
    if (auto written = out.write(header->data(), header->size()); !written) return written;
    return out.write(tensor->data, tensor->byte_size());
}

Result<void> write_npz(OutputFile& out, const TensorFile& file, const std::string& place) {
    ZipWriter zip(out, place);
    for (const auto& [name, any_tensor] : file.tensors) {
        if (name.empty() || name.find('\0') != std::string::npos) {
            return bad_input(place + ": tensor " + in_quotes(name), "has no name that a member can have",
                             "accepted: text without NUL");
        }
        const auto tensor = contiguous_copy(any_tensor);
        if (!tensor) return tensor.error();
        const auto header = header_of(*tensor, place + ": tensor " + in_quotes(name));
        if (!header) return header.error();
        const std::array pieces{std::as_bytes(std::span(*header)), bytes_of(*tensor)};
        if (auto added = zip.add(name + ".npy", pieces); !added) return added;
    }
    return zip.finish();
}

}  // namespace attend::io
