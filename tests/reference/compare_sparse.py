#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the sparse mechanisms on random inputs and compares with dense scaled_dot_product_attention of torch in float64
under a boolean mask, which is built here from the definition of each pattern, and with the Longformer and BigBird layers
of transformers.

  pip install torch==2.13.0 transformers==5.23.0 numpy safetensors
  python3 tests/reference/compare_sparse.py build/release/bin/attend

Prints the maximum difference of each comparison and ends with a line "N passed, N failed".
"""

import math
import sys

import support
from support import attend, attempt, finish, listed, report

support.need("numpy", "torch", "transformers", "safetensors")
import numpy as np
import torch

rng = np.random.default_rng(5)


# ---- the generator of random patterns: Philox 4x32-10 and partial Fisher-Yates ----

def philox(counter, key):
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for round_ in range(10):
        if round_:
            k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
        low, high = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (high >> 32) ^ c1 ^ k0, high & 0xFFFFFFFF, (low >> 32) ^ c3 ^ k1, low & 0xFFFFFFFF
    return c0, c1, c2, c3


assert philox((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)


def subset(seed, aux, row, head, n, k):
    """k of 0..n-1 without replacement, sorted."""
    if k >= n:
        return list(range(max(n, 0)))
    items = list(range(n))
    key = (seed & 0xFFFFFFFF, seed >> 32)
    for d in range(k):
        word = philox((d // 4, row, head, (4 << 24) | aux), key)[d % 4]
        other = d + (word * (n - d) >> 32)
        items[d], items[other] = items[other], items[d]
    return sorted(items[:k])


assert subset(0, 0, 0, 0, 32, 4) == [13, 15, 17, 23] and subset(0, 0, 0, 1, 32, 4) == [11, 19, 24, 30]


# ---- the patterns: sets of keys of query row i, at position p, of head h; Nk keys, kv_len of them visible ----

def local(o, h, i, p, nk, kv_len, causal):
    width = o["window_size"]
    tokens = o.get("global_tokens", 0)
    chosen = set(range(min(tokens, nk))) if isinstance(tokens, int) else set(tokens)
    if p in chosen and o.get("global_rows", True):
        return set(range(nk))
    if o.get("mode") == "block":
        back, ahead = o.get("look_backward", 1), o.get("look_forward", 0 if causal else 1)
        keys = {j for j in range(nk) if p // width - back <= j // width <= p // width + ahead}
    else:
        left, right = o.get("window_left", width), o.get("window_right", width)
        keys = {j for j in range(nk) if (left < 0 or j >= p - left) and (right < 0 or j <= p + right)}
    return keys | chosen


def longformer(o, h, i, p, nk, kv_len, causal):
    chosen = set(o.get("global_tokens", []))
    if p in chosen:
        return set(range(nk))
    step = o.get("dilation", 1)
    step = step[h] if isinstance(step, list) else step
    w = o["window_size"]
    return {j for j in (p + t * step for t in range(-w, w + 1)) if 0 <= j < nk} | chosen


def bigbird(o, h, i, p, nk, kv_len, causal):
    b, w, r = o["block_size"], o["num_window_blocks"], o["num_random_blocks"]
    left, right = o["global_left"], o["global_right"]
    blocks = -(-nk // b)
    everywhere = {x for x in [*range(left), *range(blocks - right, blocks)] if 0 <= x < blocks}
    own = p // b
    if own in everywhere:
        return set(range(nk))
    reach = (w - 1) // 2
    window = {x for x in range(own - reach, own + reach + 1) if 0 <= x < blocks}
    eligible = [x for x in range(blocks) if x not in window | everywhere and not (causal and x >= own - reach)]
    picked = subset(o["seed"], 1, own, 0 if o.get("head_shared") else h, len(eligible), min(r, len(eligible)))
    chosen = window | everywhere | {eligible[t] for t in picked}
    return {j for j in range(nk) if j // b in chosen}


def ceil_root(n):
    root = math.isqrt(n)
    return root if root * root == n else root + 1


def strided(o, h, i, p, nk, kv_len, causal):
    step = o.get("stride", 0) or ceil_root(nk)
    taps = o.get("max_taps", 0)
    if o.get("phase", "relative") == "relative":
        keys = {j for j in range(nk) if (j - p) % step == 0 and (taps == 0 or abs(j - p) <= taps * step)}
    else:
        members = [j for j in range(nk) if j % step == o.get("offset", 0)]
        keys = set(members)
        if taps:
            keys = set([j for j in members if j <= p][-taps:] + [j for j in members if j > p][:taps])
    return keys | {j for j in range(nk) if abs(j - p) <= o.get("local_window", 0)} if o.get("local_window", 0) else keys


def sparse_transformer(o, h, i, p, nk, kv_len, causal):
    step = o.get("stride", 0) or ceil_root(nk)
    c = o.get("summary", 0) or max(1, step // 16)
    factor, verts = o.get("factor", "merged"), o.get("num_verts", 1)
    if o.get("pattern", "strided") == "strided":
        first = {j for j in range(nk) if abs(p - j) < step}
        second = {j for j in range(nk) if (p - j) % step == 0}
    else:
        v = (h // 2 if factor == "heads" else h) % verts
        first = {j for j in range(nk) if j // step == p // step}
        second = {j for j in range(nk) if step - (v + 1) * c <= j % step < step - v * c}
    if factor == "merged":
        return first | second
    return first if factor == "first" or (factor == "heads" and h % 2 == 0) else second


def star(o, h, i, p, nk, kv_len, causal):
    if o.get("mode", "hub") == "anchor":
        length = o.get("context_length", nk)
        b = o.get("block_size", 0) or max(1, -(-length // 4))
        a = o.get("anchor_size", 0) or b
        if p >= length:
            return set(range(nk))
        return {j for j in range(length) if j // b == p // b} | set(range(max(a, 0)))
    hubs = min(o.get("num_hubs", 1), nk)
    if p < hubs:
        return set(range(nk))
    n, radius = nk - hubs, o.get("ring_radius", 1)
    cyclic = o.get("cyclic", not causal)

    def near(j):
        distance = abs(j - p)
        return distance <= radius or (cyclic and n - distance <= radius)
    return {j for j in range(hubs, nk) if near(j)} | set(range(hubs))


def blockwise(o, h, i, p, nk, kv_len, causal):
    n = o.get("num_blocks", 1)
    if o.get("pattern", "full") == "full":
        return set(range(nk))
    edges = [t * nk // n for t in range(n + 1)]
    own = next(t for t in range(n) if edges[t] <= p < edges[t + 1])
    if o["pattern"] == "diagonal":
        other = own
    elif "permutations" in o:
        other = o["permutations"][h][own]
    else:
        other = (own + o.get("block_shifts", {h: h % n})[h]) % n
    return set(range(edges[other], edges[other + 1]))


def random_keys(o, h, i, p, nk, kv_len, causal):
    g = o.get("query_block", 1)
    first = i // g * g
    m = min(kv_len, first + p - i + 1 if causal else nk)
    if m <= 0:
        return set()
    head = h if o.get("per_head", True) else 0
    k = o["num_keys"]
    if o.get("include_self") and 0 <= p < m:
        return {p} | {x + (x >= p) for x in subset(o["seed"], 0, i, head, m - 1, min(k, m) - 1)}
    return set(subset(o["seed"], 0, first, head, m, min(k, m)))


# ---- one call against the dense form ----

def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def dense(mechanism, keys_of, options, causal=False, q_len=None):
    if mechanism not in listed():
        return
    batch, heads, kv_heads = 2, 4, int(rng.choice([1, 2, 4]))
    if isinstance(options.get("dilation"), list) or "permutations" in options or "block_shifts" in options:
        kv_heads = 2
    nk, d, dv = int(rng.integers(33, 120)), int(rng.choice([8, 20])), int(rng.choice([8, 12]))
    nk = options.pop("_keys", nk)
    nq = nk if q_len is None else min(q_len, nk)
    tensors = {"query": normal(batch, heads, nq, d), "key": normal(batch, kv_heads, nk, d), "value": normal(batch, kv_heads, nk, dv)}
    lengths = np.array([nk, int(rng.integers(1, nk + 1))], np.int32)
    with_lengths, with_mask, with_bias = rng.random(3) < [0.5, 0.4, 0.4]
    mask = np.ones((batch, 1, nq, nk), bool)
    if with_lengths:
        tensors["key_lengths"] = lengths
    else:
        lengths[:] = nk
    if with_mask:
        mask = rng.random((batch, 1, nq, nk)) < 0.8
        tensors["mask"] = mask
    bias = normal(1, heads, nq, nk) if with_bias else np.zeros((1, heads, nq, nk), np.float32)
    if with_bias:
        tensors["bias"] = bias
    got = attend(mechanism, tensors, "--lse", options={**options, "causal": causal})
    visible = np.zeros((batch, heads, nq, nk), bool)
    for b in range(batch):
        for h in range(heads):
            for i in range(nq):
                p = i + nk - nq
                for j in keys_of(options, h, i, p, nk, int(lengths[b]), causal):
                    visible[b, h, i, j] = j < lengths[b] and (not causal or j <= p)
    visible &= mask
    q, k, v = (torch.from_numpy(tensors[name]).double() for name in ("query", "key", "value"))
    k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
    seen = torch.from_numpy(visible)
    extra = torch.from_numpy(bias).double().expand(batch, heads, nq, nk).masked_fill(~seen, -math.inf)
    empty = ~seen.any(-1, keepdim=True)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=extra.masked_fill(empty, 0.0)).masked_fill(empty, 0.0)
    lse = torch.logsumexp(q @ k.transpose(-1, -2) / math.sqrt(d) + extra, -1).numpy()
    largest = float(np.abs(tensors["value"]).max())
    difference = float(np.abs(got["output"] - expected.numpy()).max()) / largest
    same = np.isneginf(lse) == np.isneginf(got["lse"])
    finite = np.isfinite(lse)
    difference_lse = float(np.abs(got["lse"][finite] - lse[finite]).max(initial=0.0)) if same.all() else math.inf
    text = ", ".join(f"{key}={value}" for key, value in options.items())
    report(f"{mechanism} ({text}) causal={causal} Nq={nq} Nk={nk}", max(difference, difference_lse / 10), 2e-6)


def patterns():
    for causal in (False, True):
        for _ in range(3):
            q_len = int(rng.integers(1, 40)) if rng.random() < 0.4 else None
            w = int(rng.integers(0, 20))
            dense("local-attention", local, {"window_size": w, "global_tokens": [3, 0, 17]}, causal, q_len)
            dense("local-attention", local, {"window_size": w + 1, "mode": "block", "global_tokens": 2}, causal, q_len)
            dense("local-attention", local, {"window_size": w, "window_left": 2 * w, "global_rows": False, "global_tokens": 3}, causal, q_len)
            dense("longformer-attention", longformer, {"window_size": w, "global_tokens": [0, 20, 7]}, causal, q_len)
            dense("longformer-attention", longformer, {"window_size": 3, "dilation": [1, 2, 3, 5], "global_tokens": [5]}, causal, q_len)
            dense("bigbird-attention", bigbird, {"block_size": int(rng.integers(1, 9)), "num_window_blocks": int(rng.choice([1, 3])),
                                                 "num_random_blocks": int(rng.integers(0, 4)), "global_left": 1, "global_right": int(rng.integers(0, 2)),
                                                 "seed": int(rng.integers(0, 1 << 40)), "head_shared": bool(rng.random() < 0.3)}, causal, q_len)
            dense("strided-attention", strided, {"stride": int(rng.integers(0, 9)), "max_taps": int(rng.integers(0, 4)), "local_window": int(rng.integers(0, 3))}, causal, q_len)
            dense("strided-attention", strided, {"stride": 7, "phase": "absolute", "offset": int(rng.integers(0, 7)), "max_taps": int(rng.integers(0, 3))}, causal, q_len)
            dense("sparse-transformer-attention", sparse_transformer, {"stride": int(rng.integers(0, 12)), "factor": str(rng.choice(["merged", "heads", "first", "second"]))}, causal, q_len)
            dense("sparse-transformer-attention", sparse_transformer, {"pattern": "fixed", "stride": 11, "summary": 2, "num_verts": int(rng.integers(1, 4)),
                                                                       "factor": str(rng.choice(["merged", "heads", "first", "second"]))}, causal, q_len)
            dense("star-attention", star, {"num_hubs": int(rng.integers(0, 4)), "ring_radius": int(rng.integers(0, 5)), "cyclic": bool(rng.random() < 0.5)}, causal, q_len)
            dense("blockwise-attention", blockwise, {"pattern": "permutation", "num_blocks": 5}, causal, q_len)
            dense("blockwise-attention", blockwise, {"pattern": "permutation", "num_blocks": 3, "permutations": [[2, 0, 1], [0, 1, 2], [1, 0, 2], [2, 1, 0]]}, causal, q_len)
            dense("blockwise-attention", blockwise, {"query_chunk": int(rng.integers(1, 30)), "key_chunk": int(rng.integers(1, 30))}, causal, q_len)
            dense("random-attention", random_keys, {"num_keys": int(rng.integers(1, 12)), "seed": int(rng.integers(0, 1 << 60)), "include_self": bool(rng.random() < 0.5),
                                                    "per_head": bool(rng.random() < 0.7)}, causal, q_len)
            dense("random-attention", random_keys, {"num_keys": 9, "seed": 3, "query_block": int(rng.integers(2, 20))}, causal, q_len)
    for _ in range(4):
        dense("star-attention", star, {"mode": "anchor", "block_size": int(rng.integers(5, 20)), "anchor_size": int(rng.choice([-1, 1, 4])),
                                       "context_length": int(rng.integers(10, 33)), "num_hosts": int(rng.integers(1, 4))}, True)


# ---- layers of transformers ----

def split(x, heads):
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2).contiguous()


def seeded(layer):
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5))
    return layer.double().eval()


def longformer_layer(window, tokens):
    from transformers.models.longformer.modeling_longformer import LongformerConfig, LongformerSelfAttention
    batch, length, heads, width = 2, 8 * window, 4, 32
    config = LongformerConfig(hidden_size=width, num_attention_heads=heads, attention_window=[2 * window], num_hidden_layers=1, attention_probs_dropout_prob=0.0)
    layer = seeded(LongformerSelfAttention(config, 0))
    hidden = torch.from_numpy(normal(batch, length, width)).double()
    mask = torch.zeros(batch, length, dtype=torch.double)
    chosen = torch.zeros(batch, length, dtype=torch.bool)
    chosen[:, tokens] = True
    mask[chosen] = 10000.0
    expected = layer(hidden, mask, is_index_masked=mask < 0, is_index_global_attn=chosen, is_global_attn=bool(tokens))[0]
    names = {"query": layer.query, "key": layer.key, "value": layer.value}
    tensors = {name: split(linear(hidden), heads) for name, linear in names.items()}
    if tokens:
        tensors.update({f"input.global_{name}": split(getattr(layer, f"{name}_global")(hidden), heads) for name in names})
    got = attend("longformer-attention", {name: x.detach().float().numpy() for name, x in tensors.items()},
                 options={"window_size": window, "global_tokens": tokens})["output"]
    want = split(expected, heads).detach().numpy()
    report(f"LongformerSelfAttention window={window} global={tokens}", float(np.abs(got - want).max()), 1e-5)


def bigbird_layer(blocks, random_blocks, seed):
    from transformers.models.big_bird import modeling_big_bird as big_bird
    batch, heads, width, b = 2, 4, 32, 8
    length = blocks * b
    config = big_bird.BigBirdConfig(hidden_size=width, num_attention_heads=heads, block_size=b, num_random_blocks=random_blocks,
                                    attention_type="block_sparse", max_position_embeddings=length, attention_probs_dropout_prob=0.0)
    layer = seeded(big_bird.BigBirdBlockSparseAttention(config, seed=0))
    layer.train()  # random blocks are drawn in training alone; ours are put in their place
    options = {"block_size": b, "num_window_blocks": 3, "num_random_blocks": random_blocks, "global_left": 1, "global_right": 1, "seed": seed}

    def drawn(head):
        rows = []
        for own in range(1, blocks - 1):
            keys = bigbird(options, head, 0, own * b, length, length, False)
            plain = bigbird({**options, "num_random_blocks": 0}, head, 0, own * b, length, length, False)
            rows.append(sorted({j // b for j in keys - plain}))
        return rows
    picked = [np.array(drawn(head), np.int32) for head in range(heads)]
    for name in ("_bigbird_block_rand_mask_with_head", "_bigbird_block_rand_mask"):
        if hasattr(layer, name):
            setattr(layer, name, lambda *_, **__: picked)
    layer._bigbird_block_rand_mask = lambda *_, **__: picked[0]
    layer._bigbird_block_rand_mask_with_head = lambda *_, **__: picked
    hidden = torch.from_numpy(normal(batch, length, width)).double()
    ones = torch.ones(batch, length, dtype=torch.double)
    blocked = ones.view(batch, blocks, b)
    band = torch.einsum("blq,blk->blqk", blocked[:, 2:-2], torch.cat([blocked[:, 1:-3], blocked[:, 2:-2], blocked[:, 3:-1]], dim=2)).unsqueeze(1)
    calls = []
    original = layer.bigbird_block_sparse_attention
    layer.bigbird_block_sparse_attention = lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)
    expected = layer(hidden, band_mask=band, from_mask=ones.view(batch, 1, length, 1), to_mask=ones.view(batch, 1, 1, length),
                     from_blocked_mask=blocked, to_blocked_mask=blocked)[0]
    assert calls
    tensors = {name: split(linear(hidden), heads).detach().float().numpy() for name, linear in
               {"query": layer.query, "key": layer.key, "value": layer.value}.items()}
    got = attend("bigbird-attention", tensors, options=options)["output"]
    want = split(expected.view(batch, length, width), heads).detach().numpy()
    report(f"BigBirdBlockSparseAttention blocks={blocks} random={random_blocks}", float(np.abs(got - want).max()), 1e-5)


def layers():
    cases = [("longformer-attention", longformer_layer, (8, [])), ("longformer-attention", longformer_layer, (8, [0, 1, 40])),
             ("longformer-attention", longformer_layer, (16, [5])), ("bigbird-attention", bigbird_layer, (12, 2, 0)),
             ("bigbird-attention", bigbird_layer, (16, 3, 12345))]
    for mechanism, function, arguments in cases:
        if mechanism not in listed():
            continue
        attempt(function, *arguments)


if __name__ == "__main__":
    patterns()
    layers()
    sys.exit(finish())
