// SPDX-License-Identifier: Apache-2.0
// The side of a plugin that reads a call: typed values into the Options struct, sizes checked, and a warning for every option
// that the mode in force does not read. Part of plugin.hpp.
#pragma once

#include "attend/author/entry.hpp"
#include "attend/author/guard.hpp"

namespace attend::author {

struct Message {
    char text[512];
    uint32_t length = 0;
    Message& operator<<(const char* word) {
        while (word && *word && length + 1 < sizeof text) text[length++] = *word++;
        text[length] = '\0';
        return *this;
    }
    Message& operator<<(int64_t number) {
        char digits[24];
        uint32_t n = 0;
        const bool negative = number < 0;
        uint64_t rest = negative ? 0 - static_cast<uint64_t>(number) : static_cast<uint64_t>(number);
        do digits[n++] = static_cast<char>('0' + rest % 10);
        while (rest /= 10);
        if (negative) digits[n++] = '-';
        while (n > 0 && length + 1 < sizeof text) text[length++] = digits[--n];
        text[length] = '\0';
        return *this;
    }
};

inline attend_status fail(attend_error* error, attend_status status, const Message& message, const char* where) {
    return attend_fail(error, status, message.text, where);
}

inline const OptionRow* find_row(const MechanismEntry& entry, const char* name) {
    for (uint32_t at = 0; at < entry.option_count; ++at)
        if (attend_text_equal(entry.options[at].row.name, name)) return &entry.options[at];
    return nullptr;
}

inline bool takes_arguments(const attend_option& row) {
    for (uint32_t at = 0; row.type == ATTEND_TYPE_INT_LIST && row.choices && row.choices[at]; ++at)
        for (const char* letter = row.choices[at]; *letter; ++letter)
            if (*letter == '(') return true;
    return false;
}

// Puts typed values into the Options struct. A host checks ranges before; this side does not rely on it.
inline attend_status read_options(const MechanismEntry& entry, const attend_array& values, void* options,
                                  attend_error* error) {
    for (uint32_t at = 0; at < entry.option_count; ++at) {
        const OptionRow& row = entry.options[at];
        if (row.field == Field::none) continue;
        const attend_value* value = attend_find_option(&values, row.row.name);
        char* place = static_cast<char*>(options) + row.offset;
        const bool present = value && value->type != 0;
        const bool optional = row.field == Field::optional_integer || row.field == Field::optional_real ||
                              (row.field == Field::integer_list && row.row.default_json == nullptr);
        if (!present && !optional)
            return fail(error, ATTEND_BAD_OPTION,
                        Message{} << entry.name << ": option \"" << row.row.name
                                  << "\" has no value; the host completes options with their defaults",
                        row.row.name);
        if (present && value->type != row.row.type)
            return fail(error, ATTEND_BAD_OPTION,
                        Message{} << entry.name << ": option \"" << row.row.name << "\" arrived with type "
                                  << int64_t{value->type} << "; accepted: " << int64_t{row.row.type},
                        row.row.name);
        const bool unsigned_64 = row.row.max >= 9223372036854775808.0;
        auto in_range = [&](double number) { return number >= row.row.min && number <= row.row.max; };
        bool good = true;
        switch (row.field) {
            case Field::none: break;
            case Field::boolean: *reinterpret_cast<int32_t*>(place) = value->u.i != 0; break;
            case Field::enumeration: {
                int64_t choices = 0;
                while (row.row.choices[choices]) ++choices;
                good = value->u.i >= 0 && value->u.i < choices;
                *reinterpret_cast<int32_t*>(place) = static_cast<int32_t>(value->u.i);
                break;
            }
            case Field::integer:
                good = unsigned_64 || in_range(static_cast<double>(value->u.i));
                *reinterpret_cast<int64_t*>(place) = value->u.i;
                break;
            case Field::optional_integer:
                good = !present || unsigned_64 || in_range(static_cast<double>(value->u.i));
                *reinterpret_cast<OptionalInt*>(place) = {present ? value->u.i : 0, present ? 1 : 0};
                break;
            case Field::real:
                good = in_range(value->u.f);
                *reinterpret_cast<double*>(place) = value->u.f;
                break;
            case Field::optional_real:
                good = !present || in_range(value->u.f);
                *reinterpret_cast<OptionalReal*>(place) = {present ? value->u.f : 0.0, present ? 1 : 0};
                break;
            case Field::integer_list: {
                if (!present) {
                    *reinterpret_cast<IntList*>(place) = {};
                    break;
                }
                // Choices with arguments: three numbers for each element, of which the first is the index.
                const uint32_t step = takes_arguments(row.row) ? 3 : 1;
                good = value->count % step == 0;
                for (uint32_t item = 0; item < value->count; item += step)
                    good = good && in_range(static_cast<double>(value->u.is[item]));
                *reinterpret_cast<IntList*>(place) = {value->u.is, value->count,
                                                      (value->flags & ATTEND_VALUE_SCALAR) ? 1u : 0u};
                break;
            }
        }
        if (!good)
            return fail(error, ATTEND_BAD_OPTION,
                        Message{} << entry.name << ": option \"" << row.row.name << "\" is outside its range",
                        row.row.name);
    }
    return ATTEND_OK;
}

inline attend_status check_sizes(const MechanismEntry& entry, const attend_plan_desc& desc, attend_error* error) {
    const struct {
        const char* name;
        int64_t value, least;
    } sizes[] = {{"B", desc.batch, 0},     {"Hq", desc.num_q_heads, 1}, {"Hkv", desc.num_kv_heads, 1},
                 {"Nq", desc.q_len, 0},    {"Nk", desc.kv_len, 0},      {"D", desc.head_dim, 1},
                 {"Dv", desc.value_dim, 1}};
    for (const auto& size : sizes) {
        if (size.value < size.least)
            return fail(error, ATTEND_BAD_SHAPE,
                        Message{} << entry.name << ": " << size.name << " is " << size.value << "; accepted: at least "
                                  << size.least,
                        size.name);
        if (size.value > 2147483647)
            return fail(
                error, ATTEND_LIMIT,
                Message{} << entry.name << ": " << size.name << " is " << size.value << "; accepted: up to 2147483647",
                size.name);
    }
    if (desc.num_q_heads % desc.num_kv_heads != 0)
        return fail(error, ATTEND_BAD_SHAPE,
                    Message{} << entry.name << ": num_q_heads " << desc.num_q_heads
                              << " is not a multiple of num_kv_heads " << desc.num_kv_heads,
                    "num_q_heads");
    if (!(desc.scale - desc.scale == 0.0))
        return attend_fail(error, ATTEND_BAD_OPTION, "scale is not finite; accepted: a finite number", "scale");
    if (!(desc.softcap >= 0.0) || !(desc.softcap - desc.softcap == 0.0))
        return attend_fail(error, ATTEND_BAD_OPTION, "softcap is negative or not finite; accepted: 0 or more",
                           "softcap");
    if (!(desc.dropout >= 0.0) || !(desc.dropout < 1.0))
        return attend_fail(error, ATTEND_BAD_OPTION, "dropout is outside [0, 1)", "dropout");
    if (desc.window_left < -1 || desc.window_right < -1)
        return attend_fail(error, ATTEND_BAD_OPTION, "window is below -1; accepted: -1 (unlimited) or more",
                           "window_left");
    return ATTEND_OK;
}

// Adds a line for every option that was set to something other than its default and is not read in this mode.
inline void write_warnings(const MechanismEntry& entry, const attend_array& values, const attend_array& bindings,
                           char* text, uint64_t room) {
    uint64_t used = 0;
    auto put = [&](const char* word) {
        while (*word && used + 1 < room) text[used++] = *word++;
    };
    for (uint32_t at = 0; at < entry.option_count; ++at) {
        const OptionRow& row = entry.options[at];
        const attend_value* value = attend_find_option(&values, row.row.name);
        if (!row.reads || !value || !(value->flags & ATTEND_VALUE_GIVEN) || value->type == 0) continue;
        if (guard_holds(row.reads, entry, values, bindings) || is_default(row, *value)) continue;
        if (used) put("\n");
        put("option \"");
        put(row.row.name);
        put("\" is not read here; it is read with ");
        put(row.reads);
    }
    if (room) text[used] = '\0';
}

inline uint64_t warnings_room(const MechanismEntry& entry) {
    uint64_t room = 1;
    for (uint32_t at = 0; at < entry.option_count; ++at)
        room += 64 + attend_text_length(entry.options[at].row.name) + attend_text_length(entry.options[at].reads);
    return room;
}

}  // namespace attend::author
