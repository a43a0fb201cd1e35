#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the program on random inputs and compares with PyTorch on the CPU and with float64 NumPy.

  pip install torch==2.13.0 numpy safetensors
  python3 tests/reference/compare_torch.py build/release/bin/attend

Ends with a line "N passed, N failed".
"""

import itertools
import math
import sys

import support
from support import attend

support.need("numpy", "torch", "safetensors")
import numpy as np
import torch

rng = np.random.default_rng(7)
results = []


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def check(name, got, expected, tolerance=1e-5):
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    if got.shape != expected.shape:
        results.append((name, False, f"shape {got.shape}, expected {expected.shape}"))
        return
    same_infinity = np.isinf(expected) & (got == expected)
    with np.errstate(invalid="ignore"):
        relative = np.where(same_infinity, 0.0, np.abs(got - expected) / (1.0 + np.where(np.isinf(expected), 0, np.abs(expected))))
    error = 0.0 if got.size == 0 else np.max(relative)
    results.append((name, bool(error <= tolerance), f"error {error:.2e}"))


def run(name, function):
    try:
        function()
    except Exception as problem:  # noqa: BLE001 - a failure of one case must not hide the others
        results.append((name, False, str(problem)))


def softmax_attention(q, k, v, visible=None, bias=None, scale=None, softcap=0.0):
    """float64, [B,H,N,D]; grouped heads; returns output, lse, weights."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    s = (scale if scale is not None else 1 / math.sqrt(q.shape[-1])) * np.einsum("bhid,bhjd->bhij", q, k)
    if softcap:
        s = softcap * np.tanh(s / softcap)
    if bias is not None:
        s = s + bias
    if visible is not None:
        s = np.where(visible, s, -np.inf)
    top = np.max(s, -1, keepdims=True, initial=-np.inf)
    safe = np.where(np.isinf(top), 0, top)
    e = np.exp(s - safe)
    total = e.sum(-1, keepdims=True)
    p = np.where(total > 0, e / np.where(total > 0, total, 1), 0)
    with np.errstate(divide="ignore"):
        lse = np.where(total[..., 0] > 0, safe[..., 0] + np.log(total[..., 0]), -np.inf)
    return np.einsum("bhij,bhjd->bhid", p, v), lse, p


def sdpa():
    q, k, v = normal(2, 4, 33, 16), normal(2, 4, 33, 16), normal(2, 4, 33, 16)
    for causal in (False, True):
        expected = torch.nn.functional.scaled_dot_product_attention(*map(torch.from_numpy, (q, k, v)), is_causal=causal).numpy()
        for mechanism in ("flash-attention-v2", "standard-mha"):
            check(f"{mechanism} against sdpa, causal={causal}", attend(mechanism, {"query": q, "key": k, "value": v}, options={"causal": causal})["output"], expected)
    expected = torch.nn.functional.scaled_dot_product_attention(*map(torch.from_numpy, (q, k, v)), is_causal=True).numpy()
    check("causal-self-attention against sdpa", attend("causal-self-attention", {"query": q, "key": k, "value": v})["output"], expected)


def mha(bias, kdim, vdim, add_bias_kv, add_zero_attn, causal, average):
    name = f"standard-mha projected bias={bias} kdim={kdim} vdim={vdim} bias_kv={add_bias_kv} zero={add_zero_attn} causal={causal} average={average}"
    e, h, b, nq, nk = 24, 3, 2, 9, 9 if causal else 13
    layer = torch.nn.MultiheadAttention(e, h, bias=bias, add_bias_kv=add_bias_kv, add_zero_attn=add_zero_attn, kdim=kdim, vdim=vdim, batch_first=True)
    torch.manual_seed(3)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    query, key, value = normal(b, nq, e), normal(b, nk, kdim or e), normal(b, nk, vdim or e)
    if layer.in_proj_weight is not None:
        wq, wk, wv = layer.in_proj_weight.detach().numpy().reshape(3, e, e)
    else:
        wq, wk, wv = (w.detach().numpy() for w in (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight))
    weights = {"weight.wq": wq, "weight.Wk": wk, "weight.wv": wv, "weight.wo": layer.out_proj.weight.detach().numpy()}
    if bias:
        bq, bk, bv = layer.in_proj_bias.detach().numpy().reshape(3, e)
        weights |= {"weight.bq": bq, "weight.bk": bk, "weight.bv": bv, "weight.bo": layer.out_proj.bias.detach().numpy()}
    if add_bias_kv:
        weights |= {"weight.bias_k": layer.bias_k.detach().numpy().reshape(e), "weight.biasV": layer.bias_v.detach().numpy().reshape(e)}
    mask = torch.triu(torch.ones(nq, nk, dtype=torch.bool), 1) if causal else None
    with torch.no_grad():
        expected, expected_weights = layer(*map(torch.from_numpy, (query, key, value)), attn_mask=mask, average_attn_weights=average)
    options = {"heads": h, "bias": bias, "add_bias_kv": add_bias_kv, "add_zero_attn": add_zero_attn, "causal": causal, "averageWeights": average}
    if kdim:
        options["kdim"] = kdim
    if vdim:
        options["vdim"] = vdim
    got = attend("standard-mha", {"query": query, "key": key, "value": value} | weights, "--scores", "--lse", options=options)
    check(name, got["output"], expected.numpy())
    check(name + " weights", got["scores"], expected_weights.numpy())


def mha_time_first():
    e, h = 16, 4
    layer = torch.nn.MultiheadAttention(e, h)
    query, key = normal(7, 2, e), normal(5, 2, e)
    wq, wk, wv = layer.in_proj_weight.detach().numpy().reshape(3, e, e)
    with torch.no_grad():
        expected = layer(torch.from_numpy(query), torch.from_numpy(key), torch.from_numpy(key))[0].numpy()
    got = attend("standard-mha", {"query": query, "key": key, "weight.wq": wq, "weight.wk": wk, "weight.wv": wv, "weight.wo": layer.out_proj.weight.detach().numpy()},
                 options={"heads": h, "batch_first": False})
    check("standard-mha batch_first=false", got["output"], expected)


def linear(x, w, b=None):
    y = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    return y if b is None else y + b


def heads_of(x, heads):
    b, n, width = x.shape
    return x.reshape(b, n, heads, width // heads).transpose(0, 2, 1, 3)


def joined(x):
    b, h, n, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b, n, h * d)


def causal_projected(kv_heads, past, window, prefix):
    e, h, b, n, d = 24, 4, 2, 11, 6
    x, wqkv, bqkv, wo, bo = normal(b, n, e), normal((h + 2 * kv_heads) * d, e) * 0.3, normal((h + 2 * kv_heads) * d), normal(e, h * d) * 0.3, normal(e)
    tensors = {"query": x, "weight.wqkv": wqkv, "weight.bqkv": bqkv, "weight.wo": wo, "weight.bo": bo}
    qkv = linear(x, wqkv, bqkv)
    q, k, v = heads_of(qkv[..., : h * d], h), heads_of(qkv[..., h * d : (h + kv_heads) * d], kv_heads), heads_of(qkv[..., (h + kv_heads) * d :], kv_heads)
    if past:
        pk, pv = normal(b, kv_heads, past, d), normal(b, kv_heads, past, d)
        tensors |= {"input.past_key": pk, "input.past_value": pv}
        k, v = np.concatenate([pk, k], 2), np.concatenate([pv, v], 2)
    position, j = np.arange(n)[:, None] + past, np.arange(n + past)[None]
    visible = (j <= position) & ((j >= position - window) if window >= 0 else True) | (j < prefix)
    o, lse, p = softmax_attention(q, k, v, visible)
    got = attend("causal-self-attention", tensors, "--lse", "--scores", options={"heads": h, "kv_heads": kv_heads, "window_left": window, "prefix_length": prefix})
    name = f"causal-self-attention projected kv_heads={kv_heads} past={past} window={window} prefix={prefix}"
    check(name, got["output"], linear(joined(o), wo, bo))
    check(name + " lse", got["lse"], lse)
    check(name + " scores", got["scores"], p)


def cross_projected(kv_heads, head_dim, output_dim, out_bias, value):
    e, ek, ev, h, b, nq, nk = 24, 10, 14, 3, 2, 5, 8
    d = head_dim or e // h
    x, context, other = normal(b, nq, e), normal(b, nk, ek), normal(b, nk, ev)
    wv_in, source = (ev, other) if value else (ek, context)
    wq, wk, wv, wo = normal(h * d, e) * 0.3, normal(kv_heads * d, ek) * 0.3, normal(kv_heads * d, wv_in) * 0.3, normal(output_dim or e, h * d) * 0.3
    bq, bk, bv, bo = normal(h * d), normal(kv_heads * d), normal(kv_heads * d), normal(output_dim or e)
    tensors = {"query": x, "key": context, "weight.wq": wq, "weight.wk": wk, "weight.wv": wv, "weight.wo": wo, "weight.bq": bq, "weight.bk": bk, "weight.bv": bv}
    options = {"heads": h, "kv_heads": kv_heads, "key_dim": ek, "outBias": out_bias}
    if out_bias:
        tensors["weight.bo"] = bo
    if value:
        tensors["value"] = other
        options["value_dim"] = ev
    if head_dim:
        options["head_dim"] = head_dim
    if output_dim:
        options["output_dim"] = output_dim
    lengths = np.array([nk, 0], np.int64)
    visible = (np.arange(nk)[None, :] < lengths[:, None])[:, None, None, :]
    o, lse, _ = softmax_attention(heads_of(linear(x, wq, bq), h), heads_of(linear(context, wk, bk), kv_heads), heads_of(linear(source, wv, bv), kv_heads), visible)
    got = attend("cross-attention", tensors | {"key_lengths": lengths}, "--lse", options=options)
    name = f"cross-attention projected kv_heads={kv_heads} head_dim={head_dim} output_dim={output_dim} out_bias={out_bias} value={value}"
    check(name, got["output"], linear(joined(o), wo, bo if out_bias else None))
    check(name + " lse", got["lse"], lse)


def flash_inputs():
    b, h, hkv, nq, nk, d, dv = 2, 4, 2, 19, 26, 8, 5
    q, k, v = normal(b, h, nq, d), normal(b, hkv, nk, d), normal(b, hkv, nk, dv)
    base = {"query": q, "key": k, "value": v}
    i, j = np.arange(nq)[:, None] + nk - nq, np.arange(nk)[None]
    slopes = np.abs(normal(h))
    o, lse, p = softmax_attention(q, k, v, j <= i, bias=-(slopes[:, None, None] * np.abs(i - j)), softcap=2.0)
    got = attend("flash-attention-v2", base | {"input.alibi_slopes": slopes}, "--lse", "--scores", "--causal", "--softcap", 2)
    check("flash-attention-v2 alibi", got["output"], o)
    check("flash-attention-v2 alibi lse", got["lse"], lse)
    check("flash-attention-v2 alibi scores", got["scores"], p)
    slopes = np.abs(normal(b, h))
    o, _, _ = softmax_attention(q, k, v, None, bias=-(slopes[:, :, None, None] * np.abs(i - j)))
    check("flash-attention-v2 alibi per item", attend("flash-attention-v2", base | {"input.alibi_slopes": slopes})["output"], o)
    for lead in ((1, 1), (b, h), (1, h), (b, 1)):
        pattern = rng.integers(0, 2, (*lead, -(-nq // 4), -(-nk // 7))).astype(np.uint8)
        full = np.repeat(np.repeat(pattern, 4, 2), 7, 3)[:, :, :nq, :nk].astype(bool)
        o, lse, _ = softmax_attention(q, k, v, np.broadcast_to(full, (b, h, nq, nk)))
        got = attend("flash-attention-v2", base | {"input.block_pattern": pattern}, "--lse", options={"pattern_block_q": 4, "pattern_block_k": 7})
        check(f"flash-attention-v2 block_pattern {lead}", got["output"], o)
        check(f"flash-attention-v2 block_pattern {lead} lse", got["lse"], lse)
    mask = rng.integers(0, 2, (b, nq, nk)).astype(bool)
    bias = normal(h, 1, nk)
    o, lse, _ = softmax_attention(q, k, v, mask[:, None], bias=bias[:, 0][:, None, :][None])
    got = attend("flash-attention-v2", base | {"mask": mask, "bias": bias.reshape(1, h, 1, nk)}, "--lse")
    check("flash-attention-v2 mask rank 3, bias per head", got["output"], o)
    packed = q.transpose(0, 2, 1, 3).reshape(b, nq, h * d)
    pk, pv = k.transpose(0, 2, 1, 3).reshape(b, nk, hkv * d), v.transpose(0, 2, 1, 3).reshape(b, nk, hkv * dv)
    o, lse, _ = softmax_attention(q, k, v)
    got = attend("flash-attention-v2", {"query": packed, "key": pk, "value": pv}, "--heads", h, "--kv-heads", hkv, "--lse")
    check("flash-attention-v2 packed", got["output"], joined(o))
    check("flash-attention-v2 packed lse", got["lse"], lse)
    flat = normal(9, 8)
    o, _, _ = softmax_attention(flat[None, None], flat[None, None], flat[None, None])
    check("flash-attention-v2 rank 2, self", attend("flash-attention-v2", {"query": flat})["output"], o[0, 0])
    for dtype, tolerance in ((np.float64, 1e-5), (np.float16, 2e-3)):
        got = attend("flash-attention-v2", {name: value.astype(dtype) for name, value in base.items()})["output"]
        assert got.dtype == dtype, got.dtype
        rounded = [value.astype(dtype).astype(np.float64) for value in (q, k, v)]
        check(f"flash-attention-v2 {np.dtype(dtype).name}", got, softmax_attention(*rounded)[0], tolerance)


def main():
    run("sdpa", sdpa)
    for bias, (kdim, vdim), bias_kv, zero, causal, average in itertools.product((True, False), ((None, None), (10, 14)), (False, True), (False, True), (False, True), (False, True)):
        run("standard-mha projected", lambda: mha(bias, kdim, vdim, bias_kv, zero, causal, average))
    run("standard-mha batch_first=false", mha_time_first)
    for kv_heads, past, window, prefix in itertools.product((4, 2, 1), (0, 3), (-1, 2), (0, 5)):
        run("causal-self-attention projected", lambda: causal_projected(kv_heads, past, window, prefix))
    for kv_heads, head_dim, output_dim, out_bias, value in itertools.product((3, 1), (None, 5), (None, 7), (True, False), (True, False)):
        run("cross-attention projected", lambda: cross_projected(kv_heads, head_dim, output_dim, out_bias, value))
    run("flash-attention-v2 inputs", flash_inputs)
    for name, good, text in results:
        if not good:
            print(f"FAILED {name}: {text}")
    failed = sum(not good for _, good, _ in results)
    print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
