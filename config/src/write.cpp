// SPDX-License-Identifier: Apache-2.0
// attend::Json to text: reports, `--json`, files.
#include <charconv>
#include <cmath>

#include "attend/config/json.hpp"

namespace attend {
namespace {

// Length of the UTF-8 sequence that starts at text[at], or 0 if the bytes there are none (overlong forms,
// surrogates and values above U+10FFFF are none).
std::size_t utf8_length(std::string_view text, std::size_t at) {
    const auto byte = [&](std::size_t i) -> unsigned {
        return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U;
    };
    const auto tail = [&](std::size_t i) { return (byte(i) & 0xC0U) == 0x80U; };
    const unsigned lead = byte(at);
    if (lead < 0x80U) return 1;
    if (lead >= 0xC2U && lead <= 0xDFU) return tail(at + 1) ? 2 : 0;
    const unsigned second = byte(at + 1);
    if (lead >= 0xE0U && lead <= 0xEFU) {
        if (!tail(at + 1) || !tail(at + 2)) return 0;
        if ((lead == 0xE0U && second < 0xA0U) || (lead == 0xEDU && second > 0x9FU)) return 0;
        return 3;
    }
    if (lead >= 0xF0U && lead <= 0xF4U) {
        if (!tail(at + 1) || !tail(at + 2) || !tail(at + 3)) return 0;
        if ((lead == 0xF0U && second < 0x90U) || (lead == 0xF4U && second > 0x8FU)) return 0;
        return 4;
    }
    return 0;
}

void write_string(std::string& out, std::string_view text) {
    constexpr const char* digits = "0123456789abcdef";
    out += '"';
    for (std::size_t at = 0; at < text.size();) {
        const auto byte = static_cast<unsigned char>(text[at]);
        const std::size_t length = utf8_length(text, at);
        if (length == 0) {
            out += "\\ufffd";
            ++at;
            continue;
        }
        if (length > 1) {
            out.append(text.substr(at, length));
            at += length;
            continue;
        }
        switch (byte) {
            case '"': out += "\\\""; break;
            case '\\': out += "\\\\"; break;
            case '\n': out += "\\n"; break;
            case '\r': out += "\\r"; break;
            case '\t': out += "\\t"; break;
            case '\b': out += "\\b"; break;
            case '\f': out += "\\f"; break;
            default:
                if (byte < 0x20U || byte == 0x7FU) {
                    out += "\\u00";
                    out += digits[byte >> 4U];
                    out += digits[byte & 15U];
                } else {
                    out += static_cast<char>(byte);
                }
        }
        ++at;
    }
    out += '"';
}

void write_double(std::string& out, double value) {
    if (!std::isfinite(value)) {
        out += "null";
        return;
    }
    char buffer[40];
    const auto [end, status] = std::to_chars(buffer, buffer + sizeof buffer, value);
    const std::string_view text(buffer, static_cast<std::size_t>(end - buffer));
    out += text;
    // A double that happens to be whole stays a double when it is read again.
    if (text.find_first_of(".e") == std::string_view::npos) out += ".0";
}

class Writer {
public:
    Writer(std::string& out, bool pretty) : out_(out), pretty_(pretty) {}

    void write(const Json& value) {
        if (value.is_null()) {
            out_ += "null";
        } else if (value.is_bool()) {
            out_ += value.as_bool() ? "true" : "false";
        } else if (value.is_int64()) {
            out_ += std::to_string(value.as_int64());
        } else if (value.is_uint64()) {
            out_ += std::to_string(*value.to_uint64());
        } else if (value.is_double()) {
            write_double(out_, value.as_double());
        } else if (value.is_string()) {
            write_string(out_, value.as_string());
        } else if (value.is_array()) {
            write_array(value.as_array());
        } else {
            write_object(value.as_object());
        }
    }

private:
    void line() {
        if (!pretty_) return;
        out_ += '\n';
        out_.append(2 * level_, ' ');
    }
    void write_array(const Json::Array& elements) {
        // Lists of plain values stay on one line also in pretty output.
        bool plain = true;
        for (const Json& element : elements) plain = plain && !element.is_array() && !element.is_object();
        out_ += '[';
        ++level_;
        bool first = true;
        for (const Json& element : elements) {
            if (!first) out_ += pretty_ && plain ? ", " : ",";
            first = false;
            if (!plain) line();
            write(element);
        }
        --level_;
        if (!plain) line();
        out_ += ']';
    }
    void write_object(const Json::Object& members) {
        out_ += '{';
        ++level_;
        bool first = true;
        for (const auto& [key, member] : members) {
            if (!first) out_ += ',';
            first = false;
            line();
            write_string(out_, key);
            out_ += pretty_ ? ": " : ":";
            write(member);
        }
        --level_;
        if (!members.empty()) line();
        out_ += '}';
    }

    std::string& out_;
    bool pretty_;
    std::size_t level_{0};
};

}  // namespace

std::string write_json(const Json& value, bool pretty) {
    std::string out;
    Writer(out, pretty).write(value);
    return out;
}

}  // namespace attend
