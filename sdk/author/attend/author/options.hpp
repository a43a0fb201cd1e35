// SPDX-License-Identifier: Apache-2.0
// Option tables: one row per option with name, default, accepted range and one line of help. The host parses, checks and
// completes values from this table; `attend describe`, the JSON Schema and the reference page are printed from it.
#pragma once

#include "attend/author/entry.hpp"

namespace attend::ATTEND_ISA {

using author::Field;
using author::IntList;
using author::OptionalInt;
using author::OptionalReal;
using author::OptionRow;

inline constexpr double no_limit = __builtin_huge_val();
inline constexpr double uint64_limit = 18446744073709551615.0;

struct Range {
    double min, max;
};

constexpr OptionRow option_row(uint32_t type, uint32_t flags, const char* name, const char* default_json, Range range,
                               const char* const* choices, const char* help, Field field, uint64_t offset,
                               const char* reads) {
    return OptionRow{attend_option{sizeof(attend_option), type, flags, 0, name, help, nullptr, default_json, nullptr,
                                   range.min, range.max, 0.0, choices, "1.0"},
                     field, static_cast<uint32_t>(offset), reads};
}

// `offset` is offsetof(Options, field); `reads` a guard such as "form=projected" (entry.hpp).
constexpr OptionRow option_bool(uint64_t offset, const char* name, bool initially, const char* help,
                                const char* reads = nullptr) {
    return option_row(ATTEND_TYPE_BOOL, 0, name, initially ? "true" : "false", {0, 1}, nullptr, help, Field::boolean,
                      offset, reads);
}
constexpr OptionRow option_int(uint64_t offset, const char* name, const char* default_json, Range range,
                               const char* help, const char* reads = nullptr) {
    return option_row(ATTEND_TYPE_INT, 0, name, default_json, range, nullptr, help, Field::integer, offset, reads);
}
constexpr OptionRow option_maybe_int(uint64_t offset, const char* name, Range range, const char* help,
                                     const char* reads = nullptr) {
    return option_row(ATTEND_TYPE_INT, 0, name, nullptr, range, nullptr, help, Field::optional_integer, offset, reads);
}
constexpr OptionRow option_real(uint64_t offset, const char* name, const char* default_json, Range range,
                                const char* help, const char* reads = nullptr) {
    return option_row(ATTEND_TYPE_FLOAT, 0, name, default_json, range, nullptr, help, Field::real, offset, reads);
}
constexpr OptionRow option_maybe_real(uint64_t offset, const char* name, Range range, const char* help,
                                      const char* reads = nullptr) {
    return option_row(ATTEND_TYPE_FLOAT, 0, name, nullptr, range, nullptr, help, Field::optional_real, offset, reads);
}
constexpr OptionRow option_enum(uint64_t offset, const char* name, const char* default_json, const char* const* choices,
                                const char* help, const char* reads = nullptr) {
    return option_row(ATTEND_TYPE_ENUM, 0, name, default_json, {0, 0}, choices, help, Field::enumeration, offset,
                      reads);
}
// Takes a list, and one bare number too (IntList::is_scalar tells).
constexpr OptionRow option_int_list(uint64_t offset, const char* name, const char* default_json, Range range,
                                    const char* help, const char* reads = nullptr) {
    return option_row(ATTEND_TYPE_INT_LIST, ATTEND_OPTION_SCALAR_OK, name, default_json, range, nullptr, help,
                      Field::integer_list, offset, reads);
}

// A list of lists of one length without a default; IntList has their number, then one after the other, or nothing.
constexpr OptionRow option_int_rows(uint64_t offset, const char* name, Range range, const char* help,
                                    const char* reads = nullptr) {
    return option_row(ATTEND_TYPE_INT_LIST, ATTEND_OPTION_ROWS, name, nullptr, range, nullptr, help,
                      Field::integer_list, offset, reads);
}

// Words of `choices`, each once or more; one bare word too. Arrives as their indices. `last` is the index of the last choice.
constexpr OptionRow option_word_list(uint64_t offset, const char* name, const char* default_json,
                                     const char* const* choices, int32_t last, const char* help,
                                     const char* reads = nullptr) {
    return option_row(ATTEND_TYPE_INT_LIST, ATTEND_OPTION_SCALAR_OK, name, default_json, {0, static_cast<double>(last)},
                      choices, help, Field::integer_list, offset, reads);
}

// Options that mean the same in every mechanism. The host resolves them into the plan description (flags,
// causal_offset, windows, scale, softcap, dropout) and the call (seed, rng_offset), so they have no field.
namespace common {

inline constexpr const char* alignments[] = {"bottom-right", "top-left", nullptr};
inline constexpr const char* forms[] = {"auto", "core", "projected", nullptr};

constexpr OptionRow resolved(uint32_t type, const char* name, const char* default_json, Range range, const char* help,
                             const char* const* choices = nullptr, const char* reads = nullptr) {
    return option_row(type, 0, name, default_json, range, choices, help, Field::none, 0, reads);
}
constexpr OptionRow causal(const char* initially = "false") {
    return resolved(ATTEND_TYPE_BOOL, "causal", initially, {0, 1}, "hide keys that come after the query");
}
constexpr OptionRow causal_alignment(const char* reads = "!causal_offset") {
    return resolved(ATTEND_TYPE_ENUM, "causal_alignment", "\"bottom-right\"", {0, 0},
                    "position of query i on the key axis: i + Nk - Nq (bottom-right) or i (top-left)", alignments,
                    reads);
}
constexpr OptionRow causal_offset(const char* reads = nullptr) {
    return resolved(ATTEND_TYPE_INT, "causal_offset", nullptr, {-9007199254740992.0, 9007199254740992.0},
                    "position of query 0 on the key axis; wins over causal_alignment", nullptr, reads);
}
constexpr OptionRow scale(const char* help = "factor before softmax; left out or 0: 1/sqrt(head width)") {
    return resolved(ATTEND_TYPE_FLOAT, "scale", nullptr, {-no_limit, no_limit}, help);
}
constexpr OptionRow softcap() {
    return resolved(ATTEND_TYPE_FLOAT, "softcap", "0", {0, no_limit},
                    "c > 0: scores become c * tanh(score / c); 0: off");
}
constexpr OptionRow window_size(const char* reads = nullptr) {
    return resolved(ATTEND_TYPE_INT, "window_size", "0", {0, 9007199254740992.0},
                    "keys seen on each side of the query, itself excluded (causal: to the left); 0: all", nullptr,
                    reads);
}
constexpr OptionRow window_left(const char* reads = nullptr) {
    return resolved(
        ATTEND_TYPE_INT, "window_left", "-1", {-1, 9007199254740992.0},
        "keys seen to the left; -1: unlimited; if either side is given as 0 or more, window_size is ignored", nullptr,
        reads);
}
constexpr OptionRow window_right(const char* reads = nullptr) {
    return resolved(ATTEND_TYPE_INT, "window_right", "-1", {-1, 9007199254740992.0},
                    "keys seen to the right; -1: unlimited", nullptr, reads);
}
constexpr OptionRow dropout() {
    return resolved(ATTEND_TYPE_FLOAT, "dropout", "0", {0, 0.99999999999999988},
                    "probability that a weight is dropped; at least 0, below 1");
}
constexpr OptionRow seed(const char* help = "seed of the dropout bits", const char* reads = "dropout") {
    return resolved(ATTEND_TYPE_INT, "seed", "0", {0, uint64_limit}, help, nullptr, reads);
}
constexpr OptionRow rng_offset() {
    return resolved(ATTEND_TYPE_INT, "rng_offset", "0", {0, 16777215},
                    "number of the call in the stream of random bits", nullptr, "dropout");
}
constexpr OptionRow weight_seed(const char* reads = "form=projected") {
    return resolved(ATTEND_TYPE_INT, "weight_seed", "0", {0, uint64_limit},
                    "seed of weights that the caller leaves out", nullptr, reads);
}
constexpr OptionRow form() {
    return resolved(
        ATTEND_TYPE_ENUM, "form", "\"auto\"", {0, 0},
        "core: ready-made heads; projected: with projections; auto: projected if a weight of that form is given",
        forms);
}

}  // namespace common

// Rows that stand together in the tables of most softmax mechanisms.
#define ATTEND_CAUSAL_OPTIONS common::causal(), common::causal_alignment(), common::causal_offset()
// The same where positions count for `causal`, for windows and, if `also` ("| rope!=none") says so, for what else.
#define ATTEND_VISIBILITY_OPTIONS(also)                                                                     \
    common::causal(), common::causal_alignment("!causal_offset & causal | !causal_offset & windowed" also), \
        common::causal_offset("causal | windowed" also)
#define ATTEND_WINDOW_OPTIONS common::window_size(), common::window_left(), common::window_right()
#define ATTEND_SCORE_OPTIONS common::scale(), common::softcap()
#define ATTEND_DROPOUT_OPTIONS common::dropout(), common::seed(), common::rng_offset()

// Port rows.
inline constexpr uint64_t length_types = ATTEND_I32 | ATTEND_I64;

constexpr attend_port input_port(uint32_t role, const char* name, const char* shape, const char* help,
                                 uint32_t flags = 0, uint64_t dtypes = ATTEND_F32) {
    return attend_port{sizeof(attend_port), role, ATTEND_INPUT | flags, 0, name, shape, help, nullptr, dtypes};
}
constexpr attend_port output_port(uint32_t role, const char* name, const char* shape, const char* help,
                                  uint32_t flags = 0, uint64_t dtypes = ATTEND_F32) {
    return attend_port{sizeof(attend_port), role, ATTEND_OUTPUT | flags, 0, name, shape, help, nullptr, dtypes};
}
constexpr attend_port weight_port(const char* name, const char* shape, const char* init, const char* help,
                                  uint32_t flags = 0) {
    return attend_port{sizeof(attend_port), 0, ATTEND_WEIGHT | flags, 0, name, shape, help, init, ATTEND_F32};
}
// What the engines read and write by themselves; arithmetic is float32, or bf16 dots where the processor has them.
inline constexpr uint64_t stored_floats = ATTEND_F32 | ATTEND_F16 | ATTEND_BF16;
constexpr attend_port stored(attend_port port) {
    port.dtypes = stored_floats;
    return port;
}

namespace common {

// The usual three. Keys that are left out are the queries, values that are left out the keys.
constexpr attend_port query_port(const char* help = "queries") {
    return input_port(ATTEND_Q, "query", "B,Hq,Nq,D", help);
}
constexpr attend_port key_port(const char* shape = "B,Hkv,Nk,D", const char* help = "keys; absent: query") {
    return attend_port{sizeof(attend_port), ATTEND_K, ATTEND_INPUT, 0, "key", shape, help, "query", ATTEND_F32};
}
constexpr attend_port value_port(const char* shape = "B,Hkv,Nk,Dv", const char* help = "values; absent: key") {
    return attend_port{sizeof(attend_port), ATTEND_V, ATTEND_INPUT, 0, "value", shape, help, "key", ATTEND_F32};
}
constexpr attend_port mask_port() {
    return input_port(ATTEND_MASK, "mask", "broadcast(B,Hq,Nq,Nk)", "non-zero: the pair may attend", ATTEND_OPTIONAL,
                      ATTEND_U8);
}
constexpr attend_port bias_port() {
    return input_port(ATTEND_BIAS, "bias", "broadcast(B,Hq,Nq,Nk)", "added to the scores; minus infinity hides",
                      ATTEND_OPTIONAL);
}
constexpr attend_port query_lengths_port() {
    return input_port(ATTEND_Q_LENGTHS, "query_lengths", "B", "valid queries of each item", ATTEND_OPTIONAL,
                      length_types);
}
constexpr attend_port key_lengths_port() {
    return input_port(ATTEND_K_LENGTHS, "key_lengths", "B", "valid keys of each item", ATTEND_OPTIONAL, length_types);
}

constexpr attend_port lse_port() {
    return output_port(ATTEND_LSE, "lse", "B,Hq,Nq", "log of the sum of exponentials of each row", ATTEND_OPTIONAL);
}
constexpr attend_port scores_port(const char* shape = "B,Hq,Nq,Nk") {
    return output_port(ATTEND_SCORES, "scores", shape, "weights after softmax, before dropout", ATTEND_OPTIONAL);
}

}  // namespace common

#define ATTEND_MASK_PORTS \
    common::mask_port(), common::bias_port(), common::query_lengths_port(), common::key_lengths_port()

// What every mechanism on the tile engine can do, and what those with positions of their own add.
inline constexpr uint64_t softmax_caps = ATTEND_CAP_MASK | ATTEND_CAP_BIAS | ATTEND_CAP_GQA | ATTEND_CAP_MQA |
                                         ATTEND_CAP_CROSS | ATTEND_CAP_SOFTCAP | ATTEND_CAP_LSE_OUT |
                                         ATTEND_CAP_SCORES_OUT | ATTEND_CAP_DROPOUT | ATTEND_CAP_DETERMINISTIC |
                                         ATTEND_CAP_STRIDED_IO | ATTEND_CAP_DV_DIFFERS;
inline constexpr uint64_t position_caps = ATTEND_CAP_CAUSAL | ATTEND_CAP_WINDOW | ATTEND_CAP_DECODE;

}  // namespace attend::ATTEND_ISA
