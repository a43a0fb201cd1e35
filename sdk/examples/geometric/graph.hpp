// SPDX-License-Identifier: Apache-2.0
// The graph of a call: for each destination the edges that come in, ascending by source, self-loops settled. Built from
// an edge list by two stable counting sorts, or from rows that are checked, in time O(edges + nodes).
#pragma once

#include "attend/author/mechanism.hpp"
#include "attend/toolkit/core/message.hpp"
#include "attend/toolkit/core/tensor_view.hpp"
#include "attend/toolkit/core/workspace.hpp"

namespace attend::ATTEND_ISA {

// Rows with more edges are shared out among workers in pieces of so many.
constexpr int64_t hub_edges = 4096;
constexpr int64_t most_edges = 2147483647;

// Inputs by name. Outputs have the names row_ptr and col_idx, too; inputs are bound first.
struct GraphTensors {
    const attend_tensor *edges{}, *row_ptr{}, *col_idx{}, *score{}, *vec{};
    GraphTensors() = default;
    GraphTensors(const attend_array& bindings, bool returned)
        : edges(attend_find_name(&bindings, "edges")),
          row_ptr(input(bindings, "row_ptr", returned)),
          col_idx(input(bindings, "col_idx", returned)),
          score(attend_find_name(&bindings, "edge_score")),
          vec(attend_find_name(&bindings, "edge_vec")) {}
    static const attend_tensor* input(const attend_array& bindings, const char* name, bool returned) {
        const attend_tensor* first = nullptr;
        int count = 0;
        for (uint32_t at = 0; at < bindings.count; ++at) {
            const attend_binding& binding = *attend_binding_at(&bindings, at);
            if (!attend_text_equal(binding.name, name)) continue;
            if (count++ == 0) first = binding.tensor;
        }
        return count > (returned ? 1 : 0) ? first : nullptr;
    }
    bool present() const { return edges || (row_ptr && col_idx); }
    bool per_item() const { return edges ? edges->shape[0] == 3 : row_ptr && row_ptr->ndim == 2; }
    int64_t count() const { return edges ? edges->shape[1] : col_idx ? col_idx->shape[0] : 0; }
};

struct GraphSizes {
    int64_t items, rows, sources, given, capacity;  // items: graphs; rows and sources: of each; edges: given, at most
    bool loops, repeated;
    GraphSizes(const GraphTensors& from, const attend_plan_desc& desc, bool add_loops, bool allow_repeated)
        : items(from.per_item() ? desc.batch : 1),
          rows(desc.q_len),
          sources(desc.kv_len),
          given(from.count()),
          capacity(given + (add_loops ? items * desc.q_len : 0)),
          loops(add_loops),
          repeated(allow_repeated) {}
    int64_t all_rows() const { return items * rows; }
    int64_t most_pieces() const { return 2 * (capacity / hub_edges) + 1; }
};

// A part of a row with many edges: edges [begin, end) of the row's, which is the `of`th such row.
struct HubPiece {
    int64_t row, begin, end;
};
struct Hub {
    int64_t row, first_piece, num_pieces;
};

class Graph {
public:
    Graph(const GraphSizes& sizes, Workspace& memory) : sizes_(sizes) {
        first = memory.take<int64_t>(sizes.all_rows() + 1);
        source = memory.take<int32_t>(sizes.capacity);
        edge = memory.take<int32_t>(sizes.capacity);
        pieces = memory.take<HubPiece>(sizes.most_pieces());
        hubs = memory.take<Hub>(sizes.capacity / hub_edges + 1);
        raw_first_ = memory.take<int64_t>(sizes.all_rows() + 1);
        raw_source_ = memory.take<int32_t>(sizes.given);
        raw_edge_ = memory.take<int32_t>(sizes.given);
        order_ = memory.take<int32_t>(sizes.given);
        next_ = memory.take<int64_t>((sizes.sources > sizes.all_rows() ? sizes.sources : sizes.all_rows()) + 1);
    }

    attend_status build(const GraphTensors& from, attend_error* error) {
        const attend_status status = from.edges ? sort_edges(*from.edges, error) : take_rows(from, error);
        if (status != ATTEND_OK) return status;
        if (!sizes_.repeated)
            if (const attend_status found = find_repeated(error)) return found;
        settle_loops();
        list_hubs();
        return ATTEND_OK;
    }

    int64_t edges() const { return first[sizes_.all_rows()]; }
    const GraphSizes& sizes() const { return sizes_; }

    int64_t* first;   // of each row, all items one after the other, and the end
    int32_t* source;  // of each edge
    int32_t* edge;    // its place in the caller's order; -1: a loop that was added
    HubPiece* pieces;
    Hub* hubs;
    int64_t num_pieces{0}, num_hubs{0};

private:
    static int64_t entry(const attend_tensor& from, int64_t row, int64_t column) {
        const int64_t at = from.ndim == 2 ? row * from.strides[0] + column * from.strides[1] : column * from.strides[0];
        return from.dtype_bits == 64 ? static_cast<const int64_t*>(from.data)[at]
                                     : static_cast<const int32_t*>(from.data)[at];
    }

    attend_status sort_edges(const attend_tensor& edges, attend_error* error) {
        static const char* const meanings[] = {"source", "destination", "item"};
        const int64_t ends[] = {sizes_.sources, sizes_.rows, sizes_.items};
        const int64_t num_fields = edges.shape[0];
        for (int64_t field = 0; field < num_fields; ++field)
            for (int64_t e = 0; e < sizes_.given; ++e)
                if (const int64_t value = entry(edges, field, e); value < 0 || value >= ends[field])
                    return (Message() << "edges[" << field << "][" << e << "], a " << meanings[field] << ", is "
                                      << value << "; accepted: 0 to " << ends[field] - 1)
                        .fail(error, ATTEND_BAD_SHAPE, "edges");
        const auto row_of = [&](int64_t e) {
            return (num_fields == 3 ? entry(edges, 2, e) * sizes_.rows : 0) + entry(edges, 1, e);
        };
        for (int64_t j = 0; j <= sizes_.sources; ++j) next_[j] = 0;
        for (int64_t e = 0; e < sizes_.given; ++e) ++next_[entry(edges, 0, e)];
        starts_of_counts(sizes_.sources);
        for (int64_t e = 0; e < sizes_.given; ++e) order_[next_[entry(edges, 0, e)]++] = static_cast<int32_t>(e);
        const int64_t rows = sizes_.all_rows();
        for (int64_t row = 0; row <= rows; ++row) next_[row] = 0;
        for (int64_t e = 0; e < sizes_.given; ++e) ++next_[row_of(e)];
        starts_of_counts(rows);
        for (int64_t row = 0; row <= rows; ++row) raw_first_[row] = next_[row];
        for (int64_t at = 0; at < sizes_.given; ++at) {
            const int32_t e = order_[at];
            const int64_t place = next_[row_of(e)]++;
            raw_source_[place] = static_cast<int32_t>(entry(edges, 0, e));
            raw_edge_[place] = e;
        }
        return ATTEND_OK;
    }
    // Counts of n buckets become the buckets' beginnings; the entry behind them the end.
    void starts_of_counts(int64_t n) {
        int64_t sum = 0;
        for (int64_t at = 0; at <= n; ++at) {
            const int64_t count = at < n ? next_[at] : 0;
            next_[at] = sum;
            sum += count;
        }
    }

    attend_status take_rows(const GraphTensors& from, attend_error* error) {
        const attend_tensor &row_ptr = *from.row_ptr, &col_idx = *from.col_idx;
        const bool several = row_ptr.ndim == 2;
        const auto place = [&](int64_t item, int64_t row) {
            Message text;
            text << "row_ptr[";
            if (several) text << item << "][";
            return text << row << "]";
        };
        int64_t base = 0;
        for (int64_t item = 0; item < sizes_.items; ++item) {
            for (int64_t row = 0; row <= sizes_.rows; ++row) {
                const int64_t value = entry(row_ptr, item, row), before = row ? entry(row_ptr, item, row - 1) : 0;
                if (row == 0 && value != 0)
                    return (place(item, 0) << " is " << value << "; accepted: 0")
                        .fail(error, ATTEND_BAD_SHAPE, "row_ptr");
                if (value < before)
                    return (place(item, row)
                            << " is " << value << " after " << before << "; accepted: values that do not decrease")
                        .fail(error, ATTEND_BAD_SHAPE, "row_ptr");
                if (value > sizes_.given - base)
                    return (place(item, row) << " is " << value << ", but col_idx has " << sizes_.given - base
                                             << " entries here; accepted: as many entries as the rows have")
                        .fail(error, ATTEND_BAD_SHAPE, "row_ptr");
                raw_first_[item * sizes_.rows + row] = base + value;
            }
            base += entry(row_ptr, item, sizes_.rows);
        }
        if (sizes_.items == 0) raw_first_[0] = 0;
        if (base != sizes_.given)
            return (place(sizes_.items - 1, sizes_.rows)
                    << " ends the rows at entry " << base << ", but col_idx has " << sizes_.given
                    << " entries; accepted: as many entries as the rows have")
                .fail(error, ATTEND_BAD_SHAPE, "row_ptr");
        for (int64_t row = 0; row < sizes_.all_rows(); ++row)
            for (int64_t e = raw_first_[row]; e < raw_first_[row + 1]; ++e) {
                const int64_t j = entry(col_idx, 0, e);
                if (j < 0 || j >= sizes_.sources)
                    return (Message() << "col_idx[" << e << "] is " << j << "; accepted: 0 to " << sizes_.sources - 1)
                        .fail(error, ATTEND_BAD_SHAPE, "col_idx");
                if (e > raw_first_[row] && j < raw_source_[e - 1])
                    return (Message() << "col_idx[" << e << "] is " << j << " after " << int64_t{raw_source_[e - 1]}
                                      << " in row " << row % sizes_.rows
                                      << "; accepted: columns of a row in ascending order")
                        .fail(error, ATTEND_BAD_SHAPE, "col_idx");
                raw_source_[e] = static_cast<int32_t>(j);
                raw_edge_[e] = static_cast<int32_t>(e);
            }
        return ATTEND_OK;
    }

    attend_status find_repeated(attend_error* error) const {
        for (int64_t row = 0; row < sizes_.all_rows(); ++row)
            for (int64_t e = raw_first_[row] + 1; e < raw_first_[row + 1]; ++e)
                if (raw_source_[e] == raw_source_[e - 1])
                    return (Message() << "the edge from " << int64_t{raw_source_[e]} << " to " << row % sizes_.rows
                                      << " is there twice; accepted: each edge once, or allow_multi_edges")
                        .fail(error, ATTEND_BAD_SHAPE, "edges");
        return ATTEND_OK;
    }

    // Loops of the caller go, and each node gets one, among its sources in order.
    void settle_loops() {
        int64_t at = 0;
        for (int64_t row = 0; row < sizes_.all_rows(); ++row) {
            const auto self = static_cast<int32_t>(row % sizes_.rows);
            bool placed = !sizes_.loops;
            first[row] = at;
            const auto put = [&](int32_t from, int32_t id) {
                source[at] = from;
                edge[at] = id;
                ++at;
            };
            for (int64_t e = raw_first_[row]; e < raw_first_[row + 1]; ++e) {
                if (sizes_.loops && raw_source_[e] == self) continue;
                if (!placed && raw_source_[e] > self) put(self, -1), placed = true;
                put(raw_source_[e], raw_edge_[e]);
            }
            if (!placed) put(self, -1);
        }
        first[sizes_.all_rows()] = at;
    }

    void list_hubs() {
        for (int64_t row = 0; row < sizes_.all_rows(); ++row) {
            if (first[row + 1] - first[row] <= hub_edges) continue;
            Hub& hub = hubs[num_hubs++] = {row, num_pieces, 0};
            for (int64_t e = first[row]; e < first[row + 1]; e += hub_edges, ++hub.num_pieces) {
                const int64_t end = e + hub_edges < first[row + 1] ? e + hub_edges : first[row + 1];
                pieces[num_pieces++] = {row, e, end};
            }
        }
    }

    GraphSizes sizes_;
    int64_t* raw_first_;
    int32_t *raw_source_, *raw_edge_, *order_;
    int64_t* next_;
};

}  // namespace attend::ATTEND_ISA
