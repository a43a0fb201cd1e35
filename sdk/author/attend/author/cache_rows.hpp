// SPDX-License-Identifier: Apache-2.0
// Rows of keys and values on their way into a cache (author/key_cache.hpp): copied, rounded to nearest even, or as int8 codes
// with one scale for each row (symmetric, largest magnitude 127). A mechanism offers attend.kv-cache/1 with
// About{.write_rows = write_cache_rows}.
#pragma once

#include "attend/author/entry.hpp"
#include "attend/toolkit/tile/storage.hpp"

namespace attend::ATTEND_ISA {

// Codes of one row; false: it holds NaN or infinity.
inline bool encode_row(const StoredView& from, const char* at, int64_t width, int8_t* codes, float* scale) {
    constexpr int64_t piece = 256;
    float wide[piece], largest = 0.0f;
    const auto each_piece = [&](auto visit) {
        for (int64_t c = 0; c < width; c += piece) {
            const int64_t some = width - c < piece ? width - c : piece;
            widen_row(from.storage, at + c * from.strides[3], from.step(), some, wide);
            visit(c, some);
        }
    };
    bool finite = true;
    each_piece([&](int64_t, int64_t some) {
        for (int64_t c = 0; c < some; ++c) {
            const float size = __builtin_fabsf(wide[c]);
            finite &= size <= 0x1.fffffep127f;
            largest = size > largest ? size : largest;
        }
    });
    if (!finite) return false;
    const bool tiny = largest < 0x1p-100f;
    *scale = tiny ? 1.0f : largest / 127.0f;
    const float inverse = tiny ? 0.0f : 127.0f / largest;
    each_piece([&](int64_t first, int64_t some) {
        for (int64_t c = 0; c < some; ++c) wide[c] *= inverse;
        // The product is rounded before the sum: no multiply-add across this line.
        __asm__ volatile("" : : "r"(wide) : "memory");
        // Adding 1.5 * 2^23 leaves the nearest whole number, ties to even.
        for (int64_t c = 0; c < some; ++c)
            codes[first + c] = static_cast<int8_t>(static_cast<int32_t>((wide[c] + 0x1.8p23f) - 0x1.8p23f));
    });
    return true;
}

inline bool write_cache_rows(const author::CacheRows& rows) {
    constexpr int64_t piece = 256;
    const StoredView from = stored_view(rows.from);
    const int64_t width = rows.from->shape[3];
    const Storage kept = rows.dtype == ATTEND_BF16  ? Storage::bf16
                         : rows.dtype == ATTEND_F16 ? Storage::f16
                                                    : Storage::f32;
    const int64_t bytes = rows.dtype == ATTEND_I8 ? 1 : storage_bytes(kept);
    float wide[piece];
    for (int64_t row = 0; row < rows.count; ++row) {
        const char* at = from.at(rows.item, rows.head, rows.first + row);
        char* to = static_cast<char*>(rows.to) + row * width * bytes;
        if (rows.dtype == ATTEND_I8) {
            if (!encode_row(from, at, width, reinterpret_cast<int8_t*>(to), rows.scales + row)) return false;
        } else if (from.storage == kept && from.step() == 1) {
            __builtin_memcpy(to, at, static_cast<uint64_t>(width * bytes));
        } else {
            for (int64_t c = 0; c < width; c += piece) {
                const int64_t some = width - c < piece ? width - c : piece;
                widen_row(from.storage, at + c * from.strides[3], from.step(), some, wide);
                narrow_row(kept, wide, some, to + c * bytes, 1);
            }
        }
    }
    return true;
}

}  // namespace attend::ATTEND_ISA
