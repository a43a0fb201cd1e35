#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs graph-attention and hyperbolic-attention on random inputs. Graph attention is compared with the layers GATConv and
GATv2Conv of torch_geometric and with dense formulas in float64; hyperbolic attention with distances as arcosh of the
Minkowski product and of the Poincare formula, and with the midpoint by Lorentz factors in Klein coordinates, all in long
double.

  pip install torch==2.13.0 torch-geometric==2.8.1 numpy safetensors
  python3 tests/reference/compare_geometric.py build/release/bin/attend

The plugin of both is looked for in the tests' folder of the same build, unless ATTEND_PLUGIN_PATH is set. Prints the
maximum difference of each comparison and ends with a line "N passed, N failed".
"""

import importlib.util
import os
import pathlib
import sys

import support
from support import attend, attempt, finish, listed, report

support.need("numpy", "torch", "safetensors")
import numpy as np
import torch

os.environ.setdefault("ATTEND_PLUGIN_PATH", str(pathlib.Path(support.ATTEND).resolve().parent.parent / "tests/extra_plugins"))
rng = np.random.default_rng(8)
wide = np.longdouble


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def random_edges(nq, nk, count, repeated=False):
    """Sources and destinations, among them loops; node 0 gets many, the last none."""
    pairs, seen = [], set()
    while len(pairs) < count:
        edge = (int(rng.integers(nk)), int(rng.integers(max(nq - 1, 1))) if rng.random() < 0.7 else 0)
        if repeated or edge not in seen:
            pairs.append(edge)
        seen.add(edge)
        if len(seen) == nk * max(nq - 1, 1):
            break
    return np.array(pairs, dtype=np.int64).T.copy()


def distance(got, wanted):
    return float(np.max(np.abs(np.asarray(got, dtype=np.float64) - np.asarray(wanted, dtype=np.float64)), initial=0.0))


# ---- the layers of torch_geometric ----

def in_rows(edge_index, values):
    """Per-edge values [edges, heads] as [heads, edges], by destination, then source, parallel edges in their order."""
    order = sorted(range(edge_index.shape[1]), key=lambda e: (int(edge_index[1, e]), int(edge_index[0, e])))
    return np.asarray(values)[order].T, order


def layer(version, heads, width, nodes, count, loops, edge_dim, slope):
    from torch_geometric.nn import GATConv, GATv2Conv

    torch.manual_seed(count + heads)
    kind = GATConv if version == "gat" else GATv2Conv
    conv = kind(width + 3, width, heads=heads, add_self_loops=loops, negative_slope=slope, edge_dim=edge_dim, bias=False,
                fill_value="mean").double()
    x = torch.randn(nodes, width + 3, dtype=torch.float64)
    edges = random_edges(nodes, nodes, count)
    features = torch.randn(edges.shape[1], edge_dim, dtype=torch.float64) if edge_dim else None
    with torch.no_grad():
        wanted, (index, alpha) = conv(x, torch.tensor(edges), edge_attr=features, return_attention_weights=True)

        def heads_of(rows):
            return rows.view(-1, heads, width).transpose(0, 1)[None].numpy()

        tensors = {"input.edges": edges.astype(np.int32)}
        if version == "gat":
            own = heads_of(conv.lin(x))
            tensors.update(query=own, key=own, value=own)
            tensors["weight.att_dst"], tensors["weight.att_src"] = conv.att_dst[0].numpy(), conv.att_src[0].numpy()
            if edge_dim:
                tensors["input.edge_score"] = (conv.lin_edge(features).view(-1, heads, width) * conv.att_edge).sum(-1).numpy().T
        else:
            source = heads_of(conv.lin_l(x))
            tensors.update(query=heads_of(conv.lin_r(x)), key=source, value=source)
            tensors["weight.att"] = conv.att[0].numpy()
            if edge_dim:
                tensors["input.edge_vec"] = conv.lin_edge(features).view(-1, heads, width).numpy()
    tensors = {name: value if value.dtype.kind == "i" else value.astype(np.float32) for name, value in tensors.items()}
    got = attend("graph-attention", tensors, options={"version": version, "negative_slope": slope, "add_self_loops": loops,
                                                      "return_edge_weights": True})
    name = f"torch_geometric {kind.__name__}, {heads} heads of {width}, {nodes} nodes, {edges.shape[1]} edges" \
           f"{', loops' if loops else ''}{', edge features' if edge_dim else ''}, slope {slope}"
    report(name, distance(got["output"][0].transpose(1, 0, 2).reshape(nodes, -1), wanted.numpy()))
    wanted_alpha, order = in_rows(index, alpha.numpy())
    report(name + ": weights of edges", distance(got["edge_weights"][0], wanted_alpha))
    report(name + ": the graph", float(np.any(got["col_idx"] != index[0].numpy()[order])), 0)


# ---- dense float64 ----

def softmax_rows(scores, counts, value):
    """counts: how often each edge is there; scores [Nq,Nk]."""
    seen = counts > 0
    most = np.max(np.where(seen, scores, -np.inf), axis=1, keepdims=True, initial=-np.inf)
    weights = np.where(seen, counts * np.exp(scores - np.where(np.isfinite(most), most, 0.0)), 0.0)
    total = weights.sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = np.where(total[:, 0] > 0, most[:, 0] + np.log(np.where(total[:, 0] > 0, total[:, 0], 1)), -np.inf)
    return weights / np.where(total > 0, total, 1) @ value, lse


def dense_graph(version, batch, heads, kv_heads, nq, nk, width, value_width, count, options, flags=(), several=False, rows=False,
                lengths=None):
    q, k, v = normal(batch, heads, nq, width), normal(batch, kv_heads, nk, width), normal(batch, kv_heads, nk, value_width)
    repeated = options.get("allow_multi_edges", False)
    graphs = [random_edges(nq, nk, count, repeated) for _ in range(batch if several else 1)]
    tensors = {"query": q, "key": k, "value": v}
    if rows:
        graphs = [graph[:, np.lexsort((graph[0], graph[1]))] for graph in graphs]
        starts = np.array([np.searchsorted(graph[1], np.arange(nq + 1)) for graph in graphs])
        tensors["input.row_ptr"] = starts if several else starts[0].astype(np.int32)
        tensors["input.col_idx"] = np.concatenate([graph[0] for graph in graphs])
    elif several:
        edges = np.concatenate([np.vstack([graph, np.full((1, graph.shape[1]), item)]) for item, graph in enumerate(graphs)], axis=1)
        tensors["input.edges"] = edges[:, rng.permutation(edges.shape[1])].astype(np.int32)
    else:
        tensors["input.edges"] = graphs[0]
    att = {name: normal(heads, width) for name in {"gat": ("att_dst", "att_src"), "gatv2": ("att",), "dot": ()}[version]}
    tensors.update({"weight." + name: value for name, value in att.items()})
    queries, keys = lengths or ([nq] * batch, [nk] * batch)
    if lengths:
        tensors["query_lengths"], tensors["key_lengths"] = np.array(queries), np.array(keys)
    got = attend("graph-attention", tensors, "--lse", *flags, options={"version": version, "add_self_loops": False, **options})
    slope = options.get("negative_slope", 0.2)
    worst = worst_lse = 0.0
    for b in range(batch):
        counts = np.zeros((nq, nk))
        graph = graphs[b if several else 0]
        np.add.at(counts, (graph[1], graph[0]), 1)
        offset = keys[b] - queries[b] if lengths else nk - nq
        i, j = np.arange(nq)[:, None], np.arange(nk)[None]
        hidden = (i >= queries[b]) | (j >= keys[b])
        if "--causal" in flags:
            hidden = hidden | (j > i + offset)
        if "window_left" in options:
            hidden = hidden | (j < i + offset - options["window_left"])
        counts[hidden] = 0
        for h in range(heads):
            a, c = q[b, h].astype(np.float64), k[b, h * kv_heads // heads].astype(np.float64)
            if version == "dot":
                scores = options.get("scale", 1 / np.sqrt(width)) * a @ c.T
            elif version == "gat":
                scores = (a @ att["att_dst"][h])[:, None] + (c @ att["att_src"][h])[None]
                scores = np.where(scores >= 0, scores, slope * scores)
            else:
                sums = a[:, None] + c[None]
                scores = np.where(sums >= 0, sums, slope * sums) @ att["att"][h].astype(np.float64)
            o, lse = softmax_rows(scores, counts, v[b, h * kv_heads // heads].astype(np.float64))
            worst = max(worst, distance(got["output"][b, h], o))
            finite = np.isfinite(lse)
            same = np.array_equal(finite, np.isfinite(got["lse"][b, h]))
            worst_lse = max(worst_lse, distance(got["lse"][b, h][finite] / np.maximum(1, np.abs(lse[finite])),
                                                lse[finite] / np.maximum(1, np.abs(lse[finite]))) if same else np.inf)
    name = f"dense {version}, {batch}x{heads}/{kv_heads} heads, {nq}x{nk}, {options} {' '.join(flags)}" \
           f"{', a graph for each item' if several else ''}{', rows' if rows else ''}{', lengths' if lengths else ''}"
    report(name, worst / float(np.max(np.abs(v))))
    report(name + ": lse", worst_lse)


# ---- hyperbolic space, in coordinates ----

def to_poincare(x, kind, c):
    """Coordinates of a model as Poincare coordinates of curvature -1."""
    x = x.astype(wide) * np.sqrt(wide(c))
    if kind == "poincare":
        return x
    if kind == "klein":
        return x / (1 + np.sqrt(1 - np.sum(x * x, -1, keepdims=True)))
    return x[..., 1:] / (1 + x[..., :1])  # hyperboloid, seen from (-1, 0)


def from_klein(k, kind, c):
    root = np.sqrt(wide(c))
    gamma = 1 / np.sqrt(1 - np.sum(k * k, -1, keepdims=True))
    if kind == "klein":
        return k / root
    if kind == "poincare":
        return k * gamma / (1 + gamma) / root
    return np.concatenate([gamma, gamma * k], -1) / root


def hyperboloid(p):
    squares = np.sum(p * p, -1, keepdims=True)
    return np.concatenate([1 + squares, 2 * p], -1) / (1 - squares)


def points(*shape, kind, c):
    """Random points, at most about 3 radii of curvature away."""
    u = rng.standard_normal(shape)
    u *= np.tanh(rng.uniform(0, 1.5, shape[:-1] + (1,))) / np.linalg.norm(u, axis=-1, keepdims=True)
    if kind == "poincare":
        return (u / np.sqrt(c)).astype(np.float32)
    if kind == "klein":
        return (2 * u / (1 + np.sum(u * u, -1, keepdims=True)) / np.sqrt(c)).astype(np.float32)
    return (hyperboloid(u) / np.sqrt(c)).astype(np.float32)


def hyperbolic(kind, out, batch, heads, kv_heads, nq, nk, width, c, beta, weighting, by_product, masked=False):
    q, k, v = points(batch, heads, nq, width, kind=kind, c=c), points(batch, kv_heads, nk, width, kind=kind, c=c), \
        points(batch, kv_heads, nk, width, kind=kind, c=c)
    tensors = {"query": q, "key": k, "value": v}
    mask = rng.random((nq, nk)) < 0.6 if masked else np.ones((nq, nk), dtype=bool)
    if masked:
        mask[nq // 2] = False
        tensors["mask"] = mask
    got = attend("hyperbolic-attention", tensors, "--scores",
                 options={"input_map": kind, "output_map": out, "curvature": -c, "beta": beta, "weighting": weighting, "max_radius": 10})
    worst = worst_scores = 0.0
    for b in range(batch):
        for h in range(heads):
            kv = h * kv_heads // heads
            a, e, values = (to_poincare(x, kind, c) for x in (q[b, h], k[b, kv], v[b, kv]))
            if by_product:
                left, right = hyperboloid(a), hyperboloid(e)
                cosh = left[:, None, 0] * right[None, :, 0] - np.sum(left[:, None, 1:] * right[None, :, 1:], -1)
            else:
                apart = np.sum((a[:, None] - e[None]) ** 2, -1)
                cosh = 1 + 2 * apart / ((1 - np.sum(a * a, -1))[:, None] * (1 - np.sum(e * e, -1))[None])
            x = -beta * np.arccosh(np.maximum(cosh, 1)) / np.sqrt(wide(c))
            if weighting == "sigmoid":
                w = 1 / (1 + np.exp(-x))
            else:
                w = np.exp(x - np.max(np.where(mask, x, -np.inf), axis=1, initial=-1e9, keepdims=True))
            w = np.where(mask, w, 0)
            if weighting == "softmax":
                w = w / np.where(w.sum(1, keepdims=True) > 0, w.sum(1, keepdims=True), 1)
            klein = 2 * values / (1 + np.sum(values * values, -1, keepdims=True))
            gamma = w / np.sqrt(1 - np.sum(klein * klein, -1))[None]
            total = gamma.sum(1, keepdims=True)
            middle = gamma @ klein / np.where(total > 0, total, 1)
            worst = max(worst, distance(got["output"][b, h], from_klein(middle, out, c)))
            worst_scores = max(worst_scores, distance(got["scores"][b, h], w))
    name = f"hyperbolic {kind} to {out}, {batch}x{heads}/{kv_heads} heads, {nq}x{nk} of {width}, curvature {-c}, beta {beta}, {weighting}" \
           f"{', mask' if masked else ''}, distance by {'Minkowski product' if by_product else 'Poincare formula'}"
    # Coordinates grow with cosh of the distance.
    report(name, worst / float(np.max(np.abs(v))))
    report(name + ": weights", worst_scores)


def flat(batch, heads, nq, nk, width, value_width, curvature, beta):
    """Tangent vectors in nearly flat space: distances of Euclid."""
    q, k, v = normal(batch, heads, nq, width), normal(batch, heads, nk, width), normal(batch, heads, nk, value_width)
    got = attend("hyperbolic-attention", {"query": q, "key": k, "value": v}, options={"curvature": curvature, "beta": beta})
    d = torch.cdist(torch.tensor(q, dtype=torch.float64), torch.tensor(k, dtype=torch.float64)) / np.sqrt(width)
    wanted = torch.softmax(-beta * d, -1) @ torch.tensor(v, dtype=torch.float64)
    report(f"hyperbolic exp0 to tangent, {batch}x{heads} heads, {nq}x{nk}, curvature {curvature}: Euclid",
           distance(got["output"], wanted.numpy()) / float(np.max(np.abs(v))))


def main():
    if not {"graph-attention", "hyperbolic-attention"} <= listed():
        print(f"skipped: no plugin of graph-attention in {os.environ['ATTEND_PLUGIN_PATH']}; bash sdk/examples/geometric/install.sh")
        return finish()
    if importlib.util.find_spec("torch_geometric") is None:
        print("skipped: layers of torch_geometric, which is not installed; pip install torch-geometric==2.8.1")
    else:
        for version in ("gat", "gatv2"):
            attempt(layer, version, 1, 8, 12, 40, True, None, 0.2)
            attempt(layer, version, 3, 16, 50, 300, False, None, 0.2)
            attempt(layer, version, 2, 5, 30, 200, True, 4, 0.1)
            attempt(layer, version, 4, 7, 40, 150, False, 6, 0.0)
            attempt(layer, version, 2, 32, 700, 9000, True, 3, 0.3)
    for version in ("dot", "gat", "gatv2"):
        attempt(dense_graph, version, 2, 4, 2, 33, 33, 16, 9, 200, {})
        attempt(dense_graph, version, 1, 2, 2, 20, 31, 7, 12, 150, {"allow_multi_edges": True})
        attempt(dense_graph, version, 3, 2, 1, 17, 17, 8, 8, 90, {}, (), True)
        attempt(dense_graph, version, 2, 2, 2, 25, 19, 12, 12, 120, {}, (), True, True)
        attempt(dense_graph, version, 1, 3, 3, 40, 40, 8, 8, 500, {}, ("--causal",), False, True)
        attempt(dense_graph, version, 2, 2, 2, 40, 48, 8, 8, 600, {"window_left": 9}, (), False, False, ([40, 11], [30, 48]))
        attempt(dense_graph, version, 1, 1, 1, 2, 9000, 8, 8, 9000, {"allow_multi_edges": True})
    attempt(dense_graph, "dot", 1, 2, 2, 30, 30, 16, 16, 200, {"scale": 0.7})
    for at, kind in enumerate(("poincare", "klein", "hyperboloid")):
        for out in ("poincare", "klein", "hyperboloid"):
            attempt(hyperbolic, kind, out, 1, 2, 1, 20, 33, 5, 1.0, 1.5, "softmax", at % 2 == 0)
        attempt(hyperbolic, kind, kind, 2, 2, 2, 17, 40, 12, 0.3, 1.0, "sigmoid", at % 2 == 1)
        attempt(hyperbolic, kind, "klein", 1, 2, 2, 30, 70, 3, 4.0, 2.0, "softmax", at % 2 == 1, True)
    attempt(hyperbolic, "klein", "poincare", 1, 1, 1, 130, 200, 32, 1.0, 0.5, "sigmoid", True, True)
    attempt(flat, 2, 3, 40, 55, 16, 8, -1e-6, 1.5)
    attempt(flat, 1, 2, 70, 70, 8, 8, -1e-7, 4.0)
    return finish()


if __name__ == "__main__":
    sys.exit(main())
