// SPDX-License-Identifier: Apache-2.0
// Graphs of calls to graph-attention, by plain lists: what tests of it share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "specs/spec.hpp"

namespace specs::graph {

struct Edge {
    std::int64_t source, target, item, id;  // id: place in the caller's order, -1 for an added loop
};

inline std::int64_t at(const Tensor& tensor, std::vector<std::int64_t> index) {
    std::int64_t offset = 0;
    for (std::size_t axis = 0; axis < index.size(); ++axis) offset += index[axis] * tensor.strides[axis];
    return tensor.dtype == attend::DType::i32 ? tensor.as<const std::int32_t>()[offset]
                                              : tensor.as<const std::int64_t>()[offset];
}
inline const Tensor* input(const ForwardInputs& inputs, const std::string& name) {
    for (const auto& [given, tensor] : inputs.extra)
        if (given == name) return &tensor;
    return nullptr;
}
inline Tensor ints(std::vector<std::int64_t> shape, const std::vector<std::int64_t>& numbers, bool wide = true) {
    Tensor tensor = Tensor::allocate(wide ? attend::DType::i64 : attend::DType::i32, std::move(shape)).value();
    for (std::size_t n = 0; n < numbers.size(); ++n) {
        if (wide)
            tensor.as<std::int64_t>()[n] = numbers[n];
        else
            tensor.as<std::int32_t>()[n] = static_cast<std::int32_t>(numbers[n]);
    }
    return tensor;
}

// Edges as input "edges"; with the items as a third row if there are several graphs.
inline Tensor edge_list(const std::vector<Edge>& edges, bool items, bool wide = true) {
    std::vector<std::int64_t> numbers;
    for (const Edge& e : edges) numbers.push_back(e.source);
    for (const Edge& e : edges) numbers.push_back(e.target);
    if (items)
        for (const Edge& e : edges) numbers.push_back(e.item);
    return ints({items ? 3 : 2, static_cast<std::int64_t>(edges.size())}, numbers, wide);
}

// Edges in the order of rows: by item, target, source.
inline void sort(std::vector<Edge>& edges) {
    std::stable_sort(edges.begin(), edges.end(), [](const Edge& a, const Edge& b) {
        return a.item != b.item ? a.item < b.item : a.target != b.target ? a.target < b.target : a.source < b.source;
    });
}
inline std::vector<std::int64_t> row_starts(const std::vector<Edge>& edges, std::int64_t items, std::int64_t rows) {
    std::vector<std::int64_t> starts;
    for (std::int64_t item = 0; item < items; ++item)
        for (std::int64_t row = 0; row <= rows; ++row)
            starts.push_back(std::count_if(edges.begin(), edges.end(),
                                           [&](const Edge& e) { return e.item == item && e.target < row; }));
    return starts;
}

// The graph that a call gives, in the order of rows; of one graph for all items, item 0.
inline std::vector<Edge> given_edges(const ForwardInputs& inputs) {
    std::vector<Edge> edges;
    if (const Tensor* list = input(inputs, "edges")) {
        for (std::int64_t e = 0; e < list->shape[1]; ++e)
            edges.push_back({at(*list, {0, e}), at(*list, {1, e}), list->shape[0] == 3 ? at(*list, {2, e}) : 0, e});
    } else {
        const Tensor &starts = *input(inputs, "row_ptr"), &sources = *input(inputs, "col_idx");
        const bool several = starts.shape.size() == 2;
        std::int64_t base = 0;
        for (std::int64_t item = 0; item < (several ? starts.shape[0] : 1); ++item) {
            const auto start = [&](std::int64_t row) { return several ? at(starts, {item, row}) : at(starts, {row}); };
            const std::int64_t rows = starts.shape.back() - 1;
            for (std::int64_t row = 0; row < rows; ++row)
                for (std::int64_t e = start(row); e < start(row + 1); ++e)
                    edges.push_back({at(sources, {base + e}), row, item, base + e});
            base += start(rows);
        }
    }
    sort(edges);
    return edges;
}
inline bool per_item(const ForwardInputs& inputs) {
    const Tensor *list = input(inputs, "edges"), *starts = input(inputs, "row_ptr");
    return list != nullptr ? list->shape[0] == 3 : starts->shape.size() == 2;
}
// With loops settled.
inline std::vector<Edge> settled_edges(const ForwardInputs& inputs, bool loops) {
    std::vector<Edge> edges = given_edges(inputs);
    if (!loops) return edges;
    std::erase_if(edges, [](const Edge& e) { return e.source == e.target; });
    for (std::int64_t item = 0; item < (per_item(inputs) ? inputs.query.shape[0] : 1); ++item)
        for (std::int64_t i = 0; i < inputs.query.shape[2]; ++i) edges.push_back({i, i, item, -1});
    sort(edges);
    return edges;
}

}  // namespace specs::graph
