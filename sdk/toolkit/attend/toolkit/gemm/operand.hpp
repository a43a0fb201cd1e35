// SPDX-License-Identifier: Apache-2.0
// Matrices of float32, bf16 or f16 with any strides as operands of the register-tile products: a panel of rows becomes
// lanes (transposed, converted), a block of rows is copied where the products cannot read it as it lies, and finished
// tiles go back to memory with one rounding.
#pragma once

#include "attend/toolkit/core/tensor_view.hpp"
#include "attend/toolkit/gemm/pair_kernel.hpp"

namespace attend::ATTEND_ISA {

enum class Element : int { f32, bf16, f16 };

template <Element>
struct Stored;
template <>
struct Stored<Element::f32> {
    using Type = float;
    static Batch read(const float* from) { return load(from); }
    static float read_one(float x) { return x; }
    static void write(float* to, const Batch& x) { store(to, x); }
    static float write_one(float x) { return x; }
};
template <>
struct Stored<Element::bf16> {
    using Type = uint16_t;
    static Batch read(const uint16_t* from) { return load_bf16(from); }
    static float read_one(uint16_t x) { return bf16_to_float(x); }
    static void write(uint16_t* to, const Batch& x) { store_bf16(to, x); }
    static uint16_t write_one(float x) { return float_to_bf16(x); }
};
template <>
struct Stored<Element::f16> {
    using Type = uint16_t;
    static Batch read(const uint16_t* from) { return load_f16(from); }
    static float read_one(uint16_t x) { return f16_to_float(x); }
    static void write(uint16_t* to, const Batch& x) { store_f16(to, x); }
    static uint16_t write_one(float x) { return float_to_f16(x); }
};

// Whether the tensor's type is one of them, and which.
inline bool element_of(const attend_tensor* tensor, Element& element) {
    if (tensor->dtype_lanes > 1) return false;
    if (tensor->dtype_code == ATTEND_CODE_FLOAT && tensor->dtype_bits == 32)
        element = Element::f32;
    else if (tensor->dtype_code == ATTEND_CODE_FLOAT && tensor->dtype_bits == 16)
        element = Element::f16;
    else if (tensor->dtype_code == ATTEND_CODE_BFLOAT && tensor->dtype_bits == 16)
        element = Element::bf16;
    else
        return false;
    return true;
}

// A matrix of rows x count numbers. Rows may come in groups (batch items): row r lies at
// (r / group) * group_stride + (r % group) * row_stride. Strides count elements.
struct Operand {
    unsigned char* data{nullptr};
    Element element{Element::f32};
    int64_t rows{0}, group{1}, group_stride{0}, row_stride{0}, inner_stride{0};

    int64_t element_bytes() const { return element == Element::f32 ? 4 : 2; }
    bool evenly_spaced() const { return rows <= group || group_stride == group * row_stride; }
    void* at(int64_t row, int64_t inner) const {
        return data + (row / group * group_stride + row % group * row_stride + inner * inner_stride) * element_bytes();
    }
};

// The product's panel: to[t][lane] = element first + t of row lane; `rows` has V * batch_lanes pointers.
template <int V, Element element>
__attribute__((noinline)) inline void float_panel(const void* const* rows, int64_t stride, int64_t count, float* to) {
    using Format = Stored<element>;
    using Type = typename Format::Type;
    constexpr int64_t lanes = V * batch_lanes;
    for (int v = 0; v < V; ++v) {
        const void* const* from = rows + v * batch_lanes;
        float* target = to + v * batch_lanes;
        int64_t t = 0;
        if (stride == 1) {
            for (; t + batch_lanes <= count; t += batch_lanes) {
                Batch block[batch_lanes];
                ATTEND_UNROLL
                for (int lane = 0; lane < batch_lanes; ++lane)
                    block[lane] = Format::read(static_cast<const Type*>(from[lane]) + t);
                transpose(block);
                ATTEND_UNROLL
                for (int lane = 0; lane < batch_lanes; ++lane) store(target + (t + lane) * lanes, block[lane]);
            }
        }
        for (; t < count; ++t)
            for (int lane = 0; lane < batch_lanes; ++lane)
                target[t * lanes + lane] = Format::read_one(static_cast<const Type*>(from[lane])[t * stride]);
    }
}

// The panel of a matrix whose rows lie next to each other: nothing to transpose. The first `used` lanes are rows, the
// others repeat the last.
template <int V, Element element>
__attribute__((noinline)) inline void adjacent_panel(const void* first, int64_t used, int64_t stride, int64_t count,
                                                     float* to) {
    using Format = Stored<element>;
    constexpr int64_t lanes = V * batch_lanes;
    const auto* from = static_cast<const typename Format::Type*>(first);
    for (int64_t t = 0; t < count; ++t, from += stride, to += lanes) {
        int64_t lane = 0;
        for (; lane + batch_lanes <= used; lane += batch_lanes) store(to + lane, Format::read(from + lane));
        for (; lane < lanes; ++lane) to[lane] = Format::read_one(from[lane < used ? lane : used - 1]);
    }
}

// Rows [first, first + used) of the operand, numbers [begin, begin + count) of each, as lanes: floats, or with `dots` bf16
// pairs. Lanes past `used` repeat the last row.
template <int V>
inline void pack_panel(const Operand& from, int64_t first, int64_t used, int64_t begin, int64_t count, bool dots,
                       float* to) {
    constexpr int64_t lanes = V * batch_lanes;
    if (!dots && from.row_stride == 1 && from.evenly_spaced()) {
        const void* row = from.at(first, begin);
        if (from.element == Element::f32)
            adjacent_panel<V, Element::f32>(row, used, from.inner_stride, count, to);
        else if (from.element == Element::bf16)
            adjacent_panel<V, Element::bf16>(row, used, from.inner_stride, count, to);
        else
            adjacent_panel<V, Element::f16>(row, used, from.inner_stride, count, to);
        return;
    }
    const void* rows[size_t{lanes}];
    const uint16_t* halves[size_t{lanes}];
    for (int64_t lane = 0; lane < lanes; ++lane) {
        rows[lane] = from.at(first + (lane < used ? lane : used - 1), begin);
        halves[lane] = static_cast<const uint16_t*>(rows[lane]);
    }
    if (dots)
        load_lane_pairs<V>(halves, from.inner_stride, count, reinterpret_cast<uint32_t*>(to));
    else if (from.element == Element::f32)
        float_panel<V, Element::f32>(rows, from.inner_stride, count, to);
    else if (from.element == Element::bf16)
        float_panel<V, Element::bf16>(rows, from.inner_stride, count, to);
    else
        float_panel<V, Element::f16>(rows, from.inner_stride, count, to);
}

// Rows one behind the other: to[row][t], floats whatever the operand holds.
template <Element element>
__attribute__((noinline)) inline void stage_row(const void* row, int64_t stride, int64_t count, float* to) {
    using Format = Stored<element>;
    const auto* from = static_cast<const typename Format::Type*>(row);
    int64_t t = 0;
    if (stride == 1)
        for (; t + batch_lanes <= count; t += batch_lanes) store(to + t, Format::read(from + t));
    for (; t < count; ++t) to[t] = Format::read_one(from[t * stride]);
}
inline void stage_floats(const Operand& from, int64_t row, int64_t begin, int64_t count, float* to) {
    const void* at = from.at(row, begin);
    if (from.element == Element::f32)
        stage_row<Element::f32>(at, from.inner_stride, count, to);
    else if (from.element == Element::bf16)
        stage_row<Element::bf16>(at, from.inner_stride, count, to);
    else
        stage_row<Element::f16>(at, from.inner_stride, count, to);
}
inline void stage_halves(const Operand& from, int64_t row, int64_t begin, int64_t count, uint16_t* to) {
    const auto* at = static_cast<const uint16_t*>(from.at(row, begin));
    for (int64_t t = 0; t < count; ++t) to[t] = at[t * from.inner_stride];
}

// Row `row` of the operand = the first `used` of V vectors, from element `begin` on.
template <int V, Element element>
ATTEND_ALWAYS_INLINE void write_row(const Operand& to, int64_t row, int64_t begin, int64_t used, const Batch* values) {
    using Format = Stored<element>;
    auto* at = static_cast<typename Format::Type*>(to.at(row, begin));
    if (to.inner_stride == 1 && used == V * batch_lanes) {
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) Format::write(at + v * batch_lanes, values[v]);
        return;
    }
    float whole[size_t{V} * batch_lanes];
    ATTEND_UNROLL
    for (int v = 0; v < V; ++v) store(whole + v * batch_lanes, values[v]);
    for (int64_t lane = 0; lane < used; ++lane) at[lane * to.inner_stride] = Format::write_one(whole[lane]);
}

// tile is [rows][V vectors]: rows [first_row, first_row + rows) of the operand, columns [first_column, first_column + used),
// each plus addend[lane].
template <int V, Element element>
__attribute__((noinline)) inline void write_tile(const float* tile, const float* addend, int64_t first_row,
                                                 int64_t rows, int64_t first_column, int64_t used, const Operand& to) {
    constexpr int64_t lanes = V * batch_lanes;
    Batch add[size_t{V}];
    for (int v = 0; v < V; ++v) add[v] = load(addend + v * batch_lanes);
    for (int64_t row = 0; row < rows; ++row, tile += lanes) {
        Batch values[size_t{V}];
        ATTEND_UNROLL
        for (int v = 0; v < V; ++v) values[v] = load(tile + v * batch_lanes) + add[v];
        write_row<V, element>(to, first_row + row, first_column, used, values);
    }
}

// The same with rows and columns exchanged: tile is [columns][V vectors of rows], and addend has one number per column.
template <int V, Element element>
__attribute__((noinline)) inline void write_turned_tile(const float* tile, const float* addend, int64_t first_row,
                                                        int64_t used, int64_t first_column, int64_t columns,
                                                        const Operand& to) {
    using Format = Stored<element>;
    using Type = typename Format::Type;
    constexpr int64_t lanes = V * batch_lanes;
    for (int64_t first = 0; first < used; first += batch_lanes) {
        const int64_t rows = used - first < batch_lanes ? used - first : batch_lanes;
        int64_t column = 0;
        if (to.inner_stride == 1) {
            for (; column + batch_lanes <= columns; column += batch_lanes) {
                Batch block[batch_lanes];
                ATTEND_UNROLL
                for (int at = 0; at < batch_lanes; ++at)
                    block[at] = load(tile + (column + at) * lanes + first) + Batch(addend[column + at]);
                transpose(block);
                for (int64_t row = 0; row < rows; ++row)
                    Format::write(static_cast<Type*>(to.at(first_row + first + row, first_column + column)),
                                  block[row]);
            }
        }
        for (; column < columns; ++column)
            for (int64_t row = 0; row < rows; ++row)
                *static_cast<Type*>(to.at(first_row + first + row, first_column + column)) =
                    Format::write_one(tile[column * lanes + first + row] + addend[column]);
    }
}

template <int V>
inline void write_tile(const float* tile, const float* addend, int64_t first_row, int64_t rows, int64_t first_column,
                       int64_t columns, const Operand& to, bool turned) {
    const auto write = [&](auto direct, auto over) {
        if (turned)
            over(tile, addend, first_row, rows, first_column, columns, to);
        else
            direct(tile, addend, first_row, rows, first_column, columns, to);
    };
    if (to.element == Element::f32)
        write(write_tile<V, Element::f32>, write_turned_tile<V, Element::f32>);
    else if (to.element == Element::bf16)
        write(write_tile<V, Element::bf16>, write_turned_tile<V, Element::bf16>);
    else
        write(write_tile<V, Element::f16>, write_turned_tile<V, Element::f16>);
}

}  // namespace attend::ATTEND_ISA
