// SPDX-License-Identifier: Apache-2.0
// JSON text to attend::Json. Boost.JSON does the grammar and the UTF-8 check and is compiled into this file; what
// it leaves open (duplicate keys, exact doubles, the place of an error) is done by the handler below.
#include <boost/json/basic_parser_impl.hpp>
#include <boost/json/src.hpp>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <exception>
#include <new>
#include <unordered_set>

#include "attend/config/json.hpp"

namespace attend {
namespace {

namespace bj = boost::json;
using boost::system::error_code;

// Objects with few keys are searched, others get a set of their names, so that no input makes parsing quadratic.
constexpr std::size_t linear_search_limit = 16;

enum class Refusal { none, duplicate_key, number_range };

class Builder {
public:
    static constexpr std::size_t max_array_size = static_cast<std::size_t>(-1);
    static constexpr std::size_t max_object_size = static_cast<std::size_t>(-1);
    static constexpr std::size_t max_string_size = static_cast<std::size_t>(-1);
    static constexpr std::size_t max_key_size = static_cast<std::size_t>(-1);

    explicit Builder(bool reject_duplicates) : reject_duplicates_(reject_duplicates) {}

    bool on_document_begin(error_code&) { return true; }
    bool on_document_end(error_code&) { return true; }
    bool on_array_begin(error_code&) {
        open_.emplace_back(Json::array());
        return true;
    }
    bool on_array_end(std::size_t, error_code&) { return close(); }
    bool on_object_begin(error_code&) {
        open_.emplace_back(Json::object());
        return true;
    }
    bool on_object_end(std::size_t, error_code&) { return close(); }

    bool on_string_part(bj::string_view part, std::size_t, error_code&) {
        text_.append(part.data(), part.size());
        return true;
    }
    bool on_string(bj::string_view part, std::size_t, error_code&) {
        text_.append(part.data(), part.size());
        return add(Json(std::exchange(text_, {})));
    }
    bool on_key_part(bj::string_view part, std::size_t, error_code&) {
        text_.append(part.data(), part.size());
        return true;
    }
    bool on_key(bj::string_view part, std::size_t, error_code& ec) {
        text_.append(part.data(), part.size());
        Open& object = open_.back();
        if (reject_duplicates_ && !object.remember(text_)) return refuse(Refusal::duplicate_key, ec);
        object.value.as_object().emplace_back(std::exchange(text_, {}), Json());
        return true;
    }

    bool on_number_part(bj::string_view part, error_code&) {
        text_.append(part.data(), part.size());
        return true;
    }
    bool on_int64(std::int64_t value, bj::string_view, error_code&) {
        text_.clear();
        return add(Json(value));
    }
    bool on_uint64(std::uint64_t value, bj::string_view, error_code&) {
        text_.clear();
        return add(Json(value));
    }
    // Boost 1.81 rounds doubles to within an ulp only; the text of the number is converted again, exactly.
    bool on_double(double approximate, bj::string_view part, error_code& ec) {
        text_.append(part.data(), part.size());
        double value = 0.0;
        const auto [end, status] = std::from_chars(text_.data(), text_.data() + text_.size(), value);
        if (status == std::errc::result_out_of_range) {
            // Too small is zero, too large is an error: the approximate value tells which.
            const bool tiny = std::abs(approximate) < 1.0;
            if (!tiny) return refuse(Refusal::number_range, ec);
            value = text_.front() == '-' ? -0.0 : 0.0;
        }
        text_.clear();
        return add(Json(value));
    }
    bool on_bool(bool value, error_code&) { return add(Json(value)); }
    bool on_null(error_code&) { return add(Json()); }
    bool on_comment_part(bj::string_view, error_code&) { return true; }
    bool on_comment(bj::string_view, error_code&) { return true; }

    [[nodiscard]] Json take() { return std::move(root_); }
    [[nodiscard]] Refusal refusal() const noexcept { return refusal_; }
    [[nodiscard]] const std::string& text() const noexcept { return text_; }

private:
    struct Open {
        explicit Open(Json container) : value(std::move(container)) {}
        // False if the object has the key already.
        bool remember(const std::string& key) {
            const Json::Object& members = value.as_object();
            if (members.size() < linear_search_limit) return value.find(key) == nullptr;
            if (names.empty()) {
                for (const Json::Member& member : members) names.insert(member.first);
            }
            return names.insert(key).second;
        }
        Json value;
        std::unordered_set<std::string> names;
    };

    bool add(Json value) {
        if (open_.empty()) {
            root_ = std::move(value);
        } else if (open_.back().value.is_array()) {
            open_.back().value.as_array().push_back(std::move(value));
        } else {
            open_.back().value.as_object().back().second = std::move(value);
        }
        return true;
    }
    bool close() {
        Json value = std::move(open_.back().value);
        open_.pop_back();
        return add(std::move(value));
    }
    bool refuse(Refusal why, error_code& ec) {
        refusal_ = why;
        ec = bj::make_error_code(bj::error::syntax);
        return false;
    }

    bool reject_duplicates_;
    Refusal refusal_{Refusal::none};
    std::vector<Open> open_;
    std::string text_;
    Json root_;
};

std::string position(std::string_view text, std::size_t offset) {
    offset = std::min(offset, text.size());
    const std::string_view before = text.substr(0, offset);
    const auto line = 1 + std::count(before.begin(), before.end(), '\n');
    const std::size_t line_start = before.rfind('\n') == std::string_view::npos ? 0 : before.rfind('\n') + 1;
    // Columns count characters: bytes that continue a UTF-8 sequence do not count.
    const auto column = 1 + std::count_if(before.begin() + static_cast<std::ptrdiff_t>(line_start), before.end(),
                                          [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U; });
    return "line " + std::to_string(line) + ", column " + std::to_string(column) + " (byte " + std::to_string(offset) +
           ")";
}

std::string seen(std::string_view text, std::size_t offset) {
    if (offset >= text.size()) return "the text ends here";
    const auto byte = static_cast<unsigned char>(text[offset]);
    if (byte > 0x20 && byte < 0x7F) return std::string("unexpected '") + static_cast<char>(byte) + "'";
    constexpr const char* digits = "0123456789abcdef";
    return std::string("unexpected byte 0x") + digits[byte >> 4U] + digits[byte & 15U];
}

Error failure(const std::string& place, std::string_view text, std::size_t offset, const std::string& what) {
    return Error{ErrorCode::input, place + ": " + position(text, offset) + ": " + what, {}};
}

// A piece of the input as a message shows it: whole if short.
std::string shown(const std::string& text) {
    constexpr std::size_t longest = 60;
    if (text.size() <= longest) return text;
    std::size_t end = longest;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U) --end;
    return text.substr(0, end) + "...";
}

std::string reason(const error_code& ec, const Builder& builder, std::string_view text, std::size_t offset,
                   const JsonLimits& limits) {
    switch (builder.refusal()) {
        case Refusal::duplicate_key:
            return "key \"" + shown(builder.text()) + "\" is given twice; each key may stand once";
        case Refusal::number_range: return "number " + shown(builder.text()) + " is too large; accepted: up to 1.8e308";
        case Refusal::none: break;
    }
    if (ec == bj::error::too_deep) {
        return "nested too deeply; accepted: up to " + std::to_string(limits.max_depth) + " levels";
    }
    if (ec == bj::error::incomplete) return "the text ends in the middle of a value; accepted: one complete JSON value";
    if (ec == bj::error::exponent_overflow) return "the exponent of a number is out of range; accepted: up to 308";
    if (ec == bj::error::illegal_leading_surrogate || ec == bj::error::illegal_trailing_surrogate ||
        ec == bj::error::expected_utf16_escape) {
        return "an escape in a string is half of a surrogate pair; accepted: \\uXXXX\\uXXXX pairs";
    }
    return seen(text, offset) + "; accepted: strict JSON in UTF-8, without comments or trailing commas";
}

}  // namespace

Result<Json> parse_json(std::string_view text, const std::string& place, const JsonLimits& limits) {
    try {
        bj::parse_options options;
        options.max_depth = limits.max_depth;
        bj::basic_parser<Builder> parser(options, limits.reject_duplicates);
        error_code ec;
        const char* data = text.empty() ? "" : text.data();
        std::size_t used = parser.write_some(false, data, text.size(), ec);
        if (ec) return failure(place, text, used, reason(ec, parser.handler(), text, used, limits));
        // The parser stops behind the value, or behind the blanks that follow it.
        if (!limits.allow_trailing_space) {
            const std::size_t last = text.find_last_not_of(" \t\r\n");
            if (last + 1 < text.size()) {
                return failure(place, text, last + 1, "blanks after the value; accepted: nothing after the value");
            }
        }
        while (used < text.size() && std::string_view(" \t\r\n").find(text[used]) != std::string_view::npos) ++used;
        if (used < text.size()) {
            return failure(place, text, used, "more text after the value; accepted: exactly one JSON value");
        }
        return parser.handler().take();
    } catch (const std::bad_alloc&) {
        return Error{ErrorCode::memory,
                     place + ": not enough memory for " + std::to_string(text.size()) +
                         " bytes of JSON; a smaller file is needed",
                     {}};
    } catch (const std::exception& error) {
        return Error{ErrorCode::input, place + ": " + error.what() + "; accepted: one strict JSON value", {}};
    }
}

}  // namespace attend
