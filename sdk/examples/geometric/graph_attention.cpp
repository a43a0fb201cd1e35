// SPDX-License-Identifier: Apache-2.0
// graph-attention: every node attends to the nodes that have an edge to it.
//
// Paper    Velickovic et al. 2018, "Graph Attention Networks", arXiv:1710.10903; Brody, Alon, Yahav 2021, "How Attentive
//          are Graph Attention Networks?", arXiv:2105.14491
// Formula  L(x) = x for x >= 0, negative_slope x otherwise; for an edge from j to i
//          gat e = L(attDst . q_i + attSrc . k_j + edge_score);  gatv2 e = att . L(q_i + k_j + edge_vec)
//          dot e = scale q_i . k_j + edge_score;  o_i = sum over the edges of softmax_j(e_ij) v_j
// Cost     gat O(n d + edges dv) per head, gatv2 and dot O(edges (d + dv)); no adjacency matrix, no gathered features
// Differs  duplicate edges are refused unless allow_multi_edges; nothing is added to the sum of weights

#include "attend/author/dynamic_rows.hpp"
#include "graph_rows.hpp"

#include <stdio.h>

namespace attend::ATTEND_ISA {
namespace {

struct Options {
    double negative_slope;
    int32_t version, add_self_loops, allow_multi_edges, return_edge_weights;
};

constexpr const char* versions[] = {"gatv2", "gat", "dot", nullptr};
constexpr OptionRow option_table[] = {
    option_enum(ATTEND_FIELD(version), "\"gatv2\"", versions,
                "score of an edge: gatv2 att.L(q + k), gat L(attDst.q + attSrc.k), dot scale q.k"),
    option_real(ATTEND_FIELD(negative_slope), "0.2", {0, 1}, "slope of L below 0", "version!=dot"),
    option_bool(ATTEND_FIELD(add_self_loops), true, "existing loops go, each node gets one; needs Nq = Nk"),
    option_bool(ATTEND_FIELD(allow_multi_edges), false, "an edge may be given several times, each with a weight"),
    option_bool(ATTEND_FIELD(return_edge_weights), false, "return the weights of the edges, and the graph with loops"),
    common::scale("factor of q.k, with version dot alone; left out or 0: 1/sqrt(head width)"),
    ATTEND_VISIBILITY_OPTIONS(""),
    ATTEND_WINDOW_OPTIONS,
    ATTEND_DROPOUT_OPTIONS,
    common::weight_seed("version!=dot"),
};

#define OF_GRAPH(one, several)                                                                           \
    "return_edge_weights & edge_rows=3: " several " | return_edge_weights & given(items,0)!=0: " several \
    " | return_edge_weights: " one
#define EDGES_OF(items) "upto(given(nnz,0)+add_self_loops*" items "*Nq)"
constexpr attend_port port_table[] = {
    stored(input_port(ATTEND_Q, "query", "B,Hq,Nq,D", "features of the destination nodes, projected")),
    stored(common::key_port("B,Hkv,Nk,D", "features of the source nodes, projected; absent: query")),
    stored(common::value_port("B,Hkv,Nk,Dv", "messages of the source nodes; absent: key")),
    common::query_lengths_port(),
    common::key_lengths_port(),
    input_port(0, "edges", "edge_rows,nnz",
               "the graph: row 0 sources, row 1 destinations, row 2, if the graphs of the items differ, items",
               ATTEND_OPTIONAL, length_types),
    input_port(0, "row_ptr", "Nq+1 | items,Nq+1",
               "instead of edges: where each destination's entries of col_idx begin; for each item from 0",
               ATTEND_OPTIONAL, length_types),
    input_port(0, "col_idx", "nnz", "with row_ptr: sources, ascending for each destination, item after item",
               ATTEND_OPTIONAL, length_types),
    input_port(0, "edge_score", "nnz | Hq,nnz", "added to the scores, in the order in which edges are given (gat, dot)",
               ATTEND_OPTIONAL),
    input_port(0, "edge_vec", "nnz,Hq,D", "features of the edges, in the order in which they are given (gatv2)",
               ATTEND_OPTIONAL),
    weight_port("att", "version=gatv2: Hq,D", "xavierUniform as att", "vector that scores leaky sums"),
    weight_port("att_dst", "version=gat: Hq,D", "xavierUniform as attDst", "vector that scores destinations"),
    weight_port("att_src", "version=gat: Hq,D", "xavierUniform as attSrc", "vector that scores sources"),
    stored(output_port(ATTEND_OUT, "output", "B,Hq,Nq,Dv", "result")),
    common::lse_port(),
    output_port(0, "edge_weights", OF_GRAPH("B,Hq," EDGES_OF("1"), "Hq," EDGES_OF("B")),
                "weight of each edge of row_ptr and col_idx, before dropout; 0 where it is hidden"),
    output_port(0, "row_ptr", OF_GRAPH("Nq+1", "B,Nq+1"), "where each destination's entries of col_idx begin", 0,
                ATTEND_I64),
    output_port(0, "col_idx", OF_GRAPH(EDGES_OF("1"), EDGES_OF("B")), "sources of the edges with loops", 0, ATTEND_I32),
};
#undef OF_GRAPH
#undef EDGES_OF

attend_status refuse(attend_error* error, attend_status status, const char* where, const char* text) {
    return attend_fail(error, status, text, where);
}

attend_status check(const Options& options, const PlanArgs& args, attend_error* error) {
    const attend_plan_desc& desc = *args.desc;
    const GraphTensors graph(desc.bindings, options.return_edge_weights != 0);
    const auto version = static_cast<GraphVersion>(options.version);
    if (version != GraphVersion::dot && was_given(*args.values, "scale")) {
        char text[160];
        ::snprintf(text, sizeof text, "option \"scale\" is %g, but version is %s; accepted: scale with version dot",
                   attend_find_option(args.values, "scale")->u.f, versions[options.version]);
        return refuse(error, ATTEND_BAD_OPTION, "scale", text);
    }
    if (options.add_self_loops && desc.q_len != desc.kv_len)
        return (Message() << "option \"add_self_loops\" is true, but there are " << desc.q_len << " queries and "
                          << desc.kv_len << " keys; accepted: as many keys as queries, or add_self_loops = false")
            .fail(error, ATTEND_BAD_OPTION, "add_self_loops");
    if (graph.vec && version != GraphVersion::gatv2)
        return (Message() << "input \"edge_vec\" is not read with version " << versions[options.version]
                          << "; accepted: edge_score, or version gatv2")
            .fail(error, ATTEND_BAD_OPTION, "edge_vec");
    if (graph.score && version == GraphVersion::gatv2)
        return refuse(error, ATTEND_BAD_OPTION, "edge_score",
                      "input \"edge_score\" is not read with version gatv2; accepted: edge_vec, or version gat or dot");
    if (graph.edges && (graph.row_ptr || graph.col_idx))
        return refuse(error, ATTEND_BAD_OPTION, "edges",
                      "both edges and row_ptr with col_idx are given; accepted: one of the two");
    if (!graph.row_ptr != !graph.col_idx)
        return refuse(error, ATTEND_BAD_SHAPE, graph.row_ptr ? "col_idx" : "row_ptr",
                      graph.row_ptr ? "input \"row_ptr\" is given without \"col_idx\"; accepted: both"
                                    : "input \"col_idx\" is given without \"row_ptr\"; accepted: both");
    if (graph.edges && graph.edges->shape[0] != 2 && graph.edges->shape[0] != 3)
        return (Message() << "edges has " << graph.edges->shape[0]
                          << " rows; accepted: 2 (sources, destinations) or 3 (and items)")
            .fail(error, ATTEND_BAD_SHAPE, "edges");
    if (graph.row_ptr && graph.per_item() && graph.row_ptr->shape[0] != desc.batch)
        return (Message() << "row_ptr has " << graph.row_ptr->shape[0] << " rows; accepted: " << desc.batch
                          << " (one for each item), or rank 1")
            .fail(error, ATTEND_BAD_SHAPE, "row_ptr");
    const GraphSizes sizes(graph, desc, options.add_self_loops != 0, options.allow_multi_edges != 0);
    if (sizes.capacity >= most_edges || desc.kv_len > most_edges)
        return (Message() << "the graph may have " << sizes.capacity << " edges among " << desc.kv_len
                          << " sources; accepted: less than 2147483647")
            .fail(error, ATTEND_LIMIT, "edges");
    return ATTEND_OK;
}

// Lays out the workspace; without memory it only counts.
GraphRun prepared(const Options& options, const attend_plan_desc& desc, const GraphTensors& from, Graph& graph,
                  Workspace& memory) {
    GraphRun run{};
    run.version = static_cast<GraphVersion>(options.version);
    run.slope = static_cast<float>(options.negative_slope);
    run.scale = static_cast<float>(resolved_scale(desc));
    run.graph = &graph;
    run.from = from;
    run.batch = desc.batch, run.heads = desc.num_q_heads, run.kv_heads = desc.num_kv_heads;
    run.q_len = desc.q_len, run.kv_len = desc.kv_len, run.width = desc.head_dim, run.value_width = desc.value_dim;
    run.causal = (desc.flags & ATTEND_PLAN_CAUSAL) != 0;
    run.offset_per_item = (desc.flags & ATTEND_PLAN_OFFSET_PER_ITEM) != 0;
    run.offset = desc.causal_offset, run.window_left = desc.window_left, run.window_right = desc.window_right;
    run.dropout = desc.dropout;
    const int64_t vectors = run.heads * padded(run.width);
    if (run.version != GraphVersion::dot) run.att_src = memory.take<float>(vectors);
    if (run.version == GraphVersion::gat) {
        run.att_dst = memory.take<float>(vectors);
        run.of_query = memory.take<float>(run.batch * run.heads * run.q_len);
        run.of_key = memory.take<float>(run.batch * run.heads * run.kv_len);
    }
    const int64_t parts = (graph.sizes().items == 1 ? run.batch : 1) * run.heads *
                          (graph.sizes().capacity > hub_edges ? graph.sizes().most_pieces() : 0);
    run.partial = memory.take<EdgeSoftmax>(parts);
    run.partial_values = memory.take<float>(parts * run.value_width);
    run.room_floats = room_floats_of(run.width, run.value_width);
    const uint32_t workers = desc.max_workers == 0 ? 1 : desc.max_workers;
    run.rooms = memory.take<float>(run.room_floats * static_cast<int64_t>(workers));
    return run;
}

uint64_t workspace(const Options& options, const PlanArgs& args) {
    const GraphTensors from(args.desc->bindings, options.return_edge_weights != 0);
    Workspace count;
    Graph graph({from, *args.desc, options.add_self_loops != 0, options.allow_multi_edges != 0}, count);
    prepared(options, *args.desc, from, graph, count);
    return count.used();
}

// The work in three rounds: scalars of the nodes (gat), rows and pieces of long rows, long rows put together.
template <void (*body)(const GraphRun&, GraphWorker&, int64_t)>
attend_status in_parallel(const GraphRun& run, const Context& context, int64_t count) {
    struct Loop {
        static attend_status call(void* user, uint64_t begin, uint64_t end, uint32_t slot) noexcept {
            const GraphRun& shared = *static_cast<const GraphRun*>(user);
            GraphWorker worker(shared, slot);
            for (uint64_t at = begin; at < end; ++at) body(shared, worker, static_cast<int64_t>(at));
            return ATTEND_OK;
        }
    };
    return parallel_items(&context, static_cast<uint64_t>(count), Loop::call, const_cast<GraphRun*>(&run));
}
void node_scalars(const GraphRun& run, GraphWorker& worker, int64_t at) {
    const int64_t b = at / run.heads, h = at % run.heads, vector = h * padded(run.width);
    worker.products(run.query, b, h, run.q_len, run.att_dst + vector, run.of_query + at * run.q_len);
    worker.products(run.key, b, run.kv_head(h), run.kv_len, run.att_src + vector, run.of_key + at * run.kv_len);
}
void rows_of_block(const GraphRun& run, GraphWorker& worker, int64_t at) {
    const int64_t blocks = (run.q_len + rows_of_a_task - 1) / rows_of_a_task;
    const int64_t b = at / blocks / run.heads, h = at / blocks % run.heads, first = at % blocks * rows_of_a_task;
    for (int64_t i = first; i < run.q_len && i < first + rows_of_a_task; ++i) {
        const int64_t row = run.row_of(b, i);
        if (run.graph->first[row + 1] - run.graph->first[row] <= hub_edges) worker.whole_row(b, h, i);
    }
}
// The item of a piece or hub is that of its row; of a graph for all items each has a turn.
void piece_of_hub(const GraphRun& run, GraphWorker& worker, int64_t at) {
    const int64_t piece = at % run.graph->num_pieces, h = at / run.graph->num_pieces % run.heads;
    const bool shared = run.graph->sizes().items == 1;
    const int64_t item = at / run.graph->num_pieces / run.heads;
    worker.hub_piece(shared ? item : run.graph->pieces[piece].row / run.q_len, h, piece);
}
void whole_hub(const GraphRun& run, GraphWorker& worker, int64_t at) {
    const Hub& hub = run.graph->hubs[at % run.graph->num_hubs];
    const int64_t h = at / run.graph->num_hubs % run.heads, item = at / run.graph->num_hubs / run.heads;
    worker.merge_hub(run.graph->sizes().items == 1 ? item : hub.row / run.q_len, h, hub);
}

void copy_vectors(const attend_tensor& from, int64_t heads, int64_t width, float* to) {
    for (int64_t h = 0; h < heads; ++h)
        for (int64_t d = 0; d < padded(width); ++d)
            to[h * padded(width) + d] =
                d < width ? static_cast<const float*>(from.data)[h * from.strides[0] + d * from.strides[1]] : 0.0f;
}

const attend_tensor* output_of(const attend_array& bindings, const char* name) {
    const attend_tensor* last = nullptr;
    for (uint32_t at = 0; at < bindings.count; ++at)
        if (attend_text_equal(attend_binding_at(&bindings, at)->name, name))
            last = attend_binding_at(&bindings, at)->tensor;
    return last;
}
void return_graph(const Graph& graph, const ForwardArgs& args) {
    const attend_tensor &row_ptr = *output_of(*args.bindings, "row_ptr"),
                        &col_idx = *output_of(*args.bindings, "col_idx");
    const int64_t rows = graph.sizes().rows;
    for (int64_t item = 0; item < graph.sizes().items; ++item)
        for (int64_t row = 0; row <= rows; ++row)
            static_cast<int64_t*>(row_ptr.data)[row_ptr.ndim == 2 ? item * row_ptr.strides[0] + row * row_ptr.strides[1]
                                                                  : row * row_ptr.strides[0]] =
                graph.first[item * rows + row] - graph.first[item * rows];
    for (int64_t e = 0; e < graph.edges(); ++e)
        static_cast<int32_t*>(col_idx.data)[e * col_idx.strides[0]] = graph.source[e];
    set_rows(args, "col_idx", graph.edges());
    set_rows(args, "edge_weights", graph.edges());
}

attend_status forward(const Options& options, const ForwardArgs& args, const Context& context) {
    const GraphTensors from(*args.bindings, options.return_edge_weights != 0);
    if (!from.present())
        return refuse(context.error, ATTEND_BAD_SHAPE, "edges",
                      "the graph is missing; accepted: input edges [2,nnz] or [3,nnz], or row_ptr with col_idx");
    const attend_plan_desc& desc = *args.desc;
    Workspace memory(context.workspace);
    Graph graph({from, desc, options.add_self_loops != 0, options.allow_multi_edges != 0}, memory);
    GraphRun run = prepared(options, desc, from, graph, memory);
    attend_status status = graph.build(from, context.error);
    if (status != ATTEND_OK) return status;
    run.query = stored_view(args.query), run.key = stored_view(args.key ? args.key : args.query);
    run.value = stored_view(args.value ? args.value : args.key ? args.key : args.query);
    run.output = stored_view(args.output);
    run.lse = view_of<float, 3>(args.lse);
    run.query_lengths = args.query_lengths, run.key_lengths = args.key_lengths;
    run.seed = args.exec->seed, run.rng_offset = args.exec->rng_offset;
    if (options.return_edge_weights) {
        return_graph(graph, args);
        run.returned = attend_find_name(args.bindings, "edge_weights");
    }
    if (run.version != GraphVersion::dot)
        copy_vectors(*attend_find_name(args.weights, run.version == GraphVersion::gat ? "att_src" : "att"), run.heads,
                     run.width, run.att_src);
    const int64_t heads = run.batch * run.heads;
    if (run.version == GraphVersion::gat) {
        copy_vectors(*attend_find_name(args.weights, "att_dst"), run.heads, run.width, run.att_dst);
        status = in_parallel<node_scalars>(run, context, heads);
    }
    if (status == ATTEND_OK)
        status = in_parallel<rows_of_block>(run, context, heads * ((run.q_len + rows_of_a_task - 1) / rows_of_a_task));
    const int64_t turns = graph.sizes().items == 1 ? heads : run.heads;
    if (status == ATTEND_OK) status = in_parallel<piece_of_hub>(run, context, turns * graph.num_pieces);
    if (status == ATTEND_OK) status = in_parallel<whole_hub>(run, context, turns * graph.num_hubs);
    return status;
}

void cost(const Options& options, const PlanArgs& args, attend_cost& cost) {
    const attend_plan_desc& desc = *args.desc;
    const GraphTensors from(desc.bindings, options.return_edge_weights != 0);
    const GraphSizes sizes(from, desc, options.add_self_loops != 0, options.allow_multi_edges != 0);
    const auto real = [](int64_t n) { return static_cast<double>(n); };
    const double turns = real(sizes.items == 1 ? desc.batch : 1) * real(desc.num_q_heads);
    // Nothing is known of a graph that is not there yet: all pairs.
    const double edges =
        from.present() ? real(sizes.capacity)
                       : real(desc.batch) / real(sizes.items ? sizes.items : 1) * real(desc.q_len) * real(desc.kv_len);
    const double d = real(desc.head_dim), dv = real(desc.value_dim), nq = real(desc.q_len), nk = real(desc.kv_len);
    const bool gat = options.version == static_cast<int32_t>(GraphVersion::gat),
               dot = options.version == static_cast<int32_t>(GraphVersion::dot);
    const double nodes = gat ? 2.0 * d * (nq + nk) * real(desc.batch) * real(desc.num_q_heads) : 0.0;
    cost.flops = nodes + turns * edges * ((gat ? 3.0 : dot ? 2.0 * d : 5.0 * d) + 2.0 * dv);
    const double width = desc.io_dtype == ATTEND_F32 ? 4.0 : 2.0;
    cost.bytes = 12.0 * edges + width * real(desc.batch) * (real(desc.num_q_heads) * nq * (d + dv)) +
                 width * turns * edges * ((gat ? 0.0 : d) + dv);
}

}  // namespace

ATTEND_MECHANISM(
    graph,
    described<check, workspace, forward, cost>(
        {.name = "graph-attention",
         .category = "extra",
         .title = "Graph attention",
         .summary = "Every node attends to the nodes that have an edge to it: GATv2, GAT or scaled dot products.",
         .reference = "Velickovic et al. 2018, arXiv:1710.10903; Brody et al. 2021, arXiv:2105.14491",
         .time = "O(edges (d + dv))",
         .space = "O(n + edges)",
         .caps = ATTEND_CAP_GQA | ATTEND_CAP_MQA | ATTEND_CAP_CROSS | ATTEND_CAP_CAUSAL | ATTEND_CAP_WINDOW |
                 ATTEND_CAP_LSE_OUT | ATTEND_CAP_DROPOUT | ATTEND_CAP_DETERMINISTIC | ATTEND_CAP_STRIDED_IO |
                 ATTEND_CAP_DV_DIFFERS | ATTEND_CAP_GRAPH_INPUT,
         .numerics = ATTEND_OWN_DEFINITION,
         .formula = "L(x) = x for x >= 0, negative_slope x otherwise; for an edge from node j to node i\n"
                    "gatv2: e_ij = att . L(q_i + k_j + edge_vec_ij)\n"
                    "gat:   e_ij = L(att_dst . q_i + att_src . k_j + edge_score_ij)\n"
                    "dot:   e_ij = scale q_i . k_j + edge_score_ij\n"
                    "output_i = sum over the edges into i of softmax_j(e_ij) v_j",
         .cost = "Grows with the number of edges, never with the number of pairs. gat needs two numbers for each node "
                 "and is the cheapest; gatv2 and dot read a key for each edge.",
         .use = "When you know which nodes concern which: molecules, citations, road and social networks, parse trees. "
                "gatv2 lets each node rank its neighbours in its own way; gat ranks them alike for all, at less cost. "
                "For sets and sequences without a graph choose softmax attention or a sparse mechanism.",
         .example = "attend compute graph-attention --input sdk/examples/geometric/caffeine.safetensors --set version=gat"},
        option_table, port_table))

}  // namespace attend::ATTEND_ISA
