#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the linear and low-rank mechanisms on random inputs and compares with their explicit quadratic forms in float64
(numpy) and with the Nystromformer layer of transformers.

  pip install torch==2.13.0 transformers==5.23.0 numpy safetensors
  python3 tests/reference/compare_linear.py build/release/bin/attend

Prints the maximum difference of each comparison and ends with a line "N passed, N failed".
"""

import math
import sys

import support
from support import attend, attempt, finish, listed, report

support.need("numpy", "torch", "transformers", "safetensors")
import numpy as np
import torch

rng = np.random.default_rng(9)


def normal(*shape, size=1.0):
    return (size * rng.standard_normal(shape)).astype(np.float32)


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def relu(x):
    return np.maximum(x, 0.0)


# ---- features: rows of queries [..., Nq, D] and keys [..., Nk, D] to the matrix A of one head, without masks ----

def linear_elu(q, k, o, w):
    def phi(x):
        return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))
    return phi(q) @ phi(k).T


def linear_relu(q, k, o, w):
    return relu(q) @ relu(k).T


def linear_dpfp(q, k, o, w):
    def phi(x):
        r = np.concatenate([relu(x), relu(-x)], -1)
        return np.concatenate([r * np.roll(r, n, -1) for n in range(1, o["nu"] + 1)], -1)
    return phi(q) @ phi(k).T


def performer(q, k, o, w):
    omega, scale = w["projection"].astype(np.float64), 1 / math.sqrt(q.shape[-1])
    q, k = math.sqrt(scale) * q, math.sqrt(scale) * k
    uq, uk = q @ omega.T, k @ omega.T
    dq, dk = (q * q).sum(-1, keepdims=True) / 2, (k * k).sum(-1, keepdims=True) / 2
    m = omega.shape[0]
    if o["kernel"] == "hyperbolic":
        uq, uk = np.concatenate([uq, -uq], -1), np.concatenate([uk, -uk], -1)
        m *= 2
    if o["kernel"] == "trig":
        return np.exp(dq) @ np.exp(dk).T * (np.cos(uq) @ np.cos(uk).T + np.sin(uq) @ np.sin(uk).T) / m
    return np.exp(uq - dq) @ np.exp(uk - dk).T / m


def cosformer(q, k, o, w):
    most = o["max_len"]
    distance = np.arange(q.shape[0])[:, None] + o["offset"] - np.arange(k.shape[0])[None]
    return relu(q) @ relu(k).T * np.cos(math.pi * distance / (2 * most))


def rfa(q, k, o, w):
    omega = w["projection"].astype(np.float64) / o["tau"]
    q, k = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6) for x in (q, k))
    uq, uk = q @ omega.T, k @ omega.T
    if o["features"] == "arccos":
        return relu(uq) @ relu(uk).T / omega.shape[0]
    return (np.sin(uq) @ np.sin(uk).T + np.cos(uq) @ np.cos(uk).T) / omega.shape[0]


def kernel_form(mechanism, weights_of, options, guard, causal, projected=0, told=None, lse=True, gates=False):
    """O = A V / guard(sum A) over visible keys, for every head."""
    if mechanism not in listed():
        return
    batch, heads, kv_heads = 2, 4, int(rng.choice([1, 2, 4]))
    nk, d, dv = int(rng.integers(20, 90)), int(rng.choice([6, 16])), int(rng.choice([5, 8]))
    nq = int(rng.integers(1, nk + 1)) if rng.random() < 0.5 else nk
    size = 0.5 if mechanism == "performer-attention" else 1.0
    tensors = {"query": normal(batch, heads, nq, d, size=size), "key": normal(batch, kv_heads, nk, d, size=size),
               "value": normal(batch, kv_heads, nk, dv)}
    lengths = np.full(batch, nk, np.int32)
    if rng.random() < 0.5:
        lengths[1] = rng.integers(1, nk + 1)
        tensors["key_lengths"] = lengths
    mask, bias = np.ones((batch, 1, 1, nk), bool), np.zeros((batch, 1, 1, nk), np.float32)
    if rng.random() < 0.5:
        mask = rng.random((batch, 1, 1, nk)) < 0.8
        tensors["mask"] = mask
    if rng.random() < 0.5:
        bias = normal(batch, 1, 1, nk, size=0.3)
        tensors["bias"] = bias
    weights = {}
    if projected:
        weights["projection"] = normal(projected, d)
        tensors["weight.projection"] = weights["projection"]
    gate = np.zeros((batch, kv_heads, nk))
    if gates:
        gate = rng.random((batch, kv_heads, nk)).astype(np.float32)
        tensors["input.gates"] = gate
    offset = nk - nq
    known = {**options, "offset": offset if causal else 0, "max_len": options.get("max_len", nk)}
    got = attend(mechanism, tensors, *(["--lse"] if lse else []), options={**options, "causal": causal})
    worst = 0.0
    for b in range(batch):
        for h in range(heads):
            kv = h * kv_heads // heads
            q, k, v = (tensors["query"][b, h].astype(np.float64), tensors["key"][b, kv].astype(np.float64), tensors["value"][b, kv].astype(np.float64))
            a = weights_of(q, k, known, weights) * np.exp(bias[b, 0, 0].astype(np.float64))
            position = np.arange(nq) + offset
            seen = (np.arange(nk) < lengths[b]) & mask[b, 0, 0]
            seen = seen[None] & ((np.arange(nk)[None] <= position[:, None]) if causal else np.ones((nq, 1), bool))
            mass = np.exp(bias[b, 0, 0].astype(np.float64))[None] * np.ones((nq, 1))
            if gates:
                # A hidden key leaves the past as it is.
                g = np.where((np.arange(nk) < lengths[b]) & mask[b, 0, 0], gate[b, kv].astype(np.float64), 1.0)
                log = np.cumsum(np.log(np.maximum(g, np.exp(-87.0))))
                decay = np.exp(np.minimum(log[np.minimum(position, nk - 1)][:, None] - log[None], 0.0)) * (1 - g)[None]
                a, mass = a * decay, mass * decay
            a, mass = np.where(seen, a, 0.0), np.where(seen, mass, 0.0)
            den = a.sum(-1)
            safe = guard(den, mass.sum(-1))
            expected = np.where((safe != 0)[:, None] & seen.any(-1, keepdims=True), (a @ v) / np.where(safe == 0, 1.0, safe)[:, None], 0.0)
            largest = np.abs(tensors["value"]).max()
            worst = max(worst, float(np.abs(got["output"][b, h] - expected).max()) / largest)
            if lse:
                with np.errstate(divide="ignore"):
                    want = np.log(den)
                finite = np.isfinite(want)
                if (np.isneginf(want) != np.isneginf(got["lse"][b, h])).any():
                    worst = math.inf
                worst = max(worst, float(np.abs(got["lse"][b, h][finite] - want[finite]).max(initial=0.0)) / 5)
    text = ", ".join(f"{key}={value}" for key, value in {**options, **(told or {})}.items())
    report(f"{mechanism} ({text}) causal={causal} Nq={nq} Nk={nk}", worst, 2e-5)


def kernels():
    for causal in (False, True):
        for _ in range(4):
            def added(eps):
                return lambda den, mass: den + eps
            kernel_form("linear-attention", linear_elu, {"eps": 1e-4}, added(1e-4), causal)
            kernel_form("linear-attention", linear_relu, {"feature_map": "relu", "eps": 1e-2}, added(1e-2), causal)
            kernel_form("linear-attention", linear_dpfp, {"feature_map": "dpfp", "nu": int(rng.integers(1, 4)), "eps": 1e-2}, added(1e-2), causal)
            for kernel in ("softmax", "hyperbolic"):
                kernel_form("performer-attention", performer, {"kernel": kernel, "stabilizer": "exact"}, lambda den, mass: den, causal, projected=int(rng.integers(3, 40)))
            kernel_form("performer-attention", performer, {"kernel": "trig", "stabilizer": "exact"}, lambda den, mass: den, causal, projected=200, lse=False)
            kernel_form("cosformer-attention", cosformer, {"eps": 1e-3, "max_len": 128}, lambda den, mass: np.maximum(den, 1e-3), causal)
            kernel_form("cosformer-attention", cosformer, {"eps": 1e-3}, lambda den, mass: np.maximum(den, 1e-3), causal)
            kernel_form("rfa-attention", rfa, {"features": "arccos", "tau": 1.5}, lambda den, mass: np.maximum(den, 1e-6), causal, projected=64)
            kernel_form("rfa-attention", rfa, {"features": "sincos", "tau": 1.2}, lambda den, mass: np.maximum(den, mass * math.exp(-2 / 1.2**2)), causal, projected=48, lse=False)
            if causal:
                kernel_form("rfa-attention", rfa, {"features": "sincos", "tau": 1.2, "gating": "tensor"}, lambda den, mass: np.maximum(den, mass * math.exp(-2 / 1.2**2)),
                            causal, projected=48, lse=False, gates=True)


# ---- low rank ----

def linformer(options, sharing, lengths_given):
    if "linformer-attention" not in listed():
        return
    batch, heads, kv_heads, nk, d, dv, rows = 2, 4, 2, 61, 8, 6, 9
    longest = nk + int(rng.integers(0, 5))
    tensors = {"query": normal(batch, heads, 33, d), "key": normal(batch, kv_heads, nk, d), "value": normal(batch, kv_heads, nk, dv)}
    shape = (kv_heads, rows, longest) if sharing == "none" else (rows, longest)
    tensors["weight.e"] = normal(*shape, size=0.3)
    if sharing != "kv":
        tensors["weight.f"] = normal(*shape, size=0.3)
    lengths = np.array([nk, nk - 20], np.int32)
    if lengths_given:
        tensors["key_lengths"] = lengths
    else:
        lengths[:] = nk
    got = attend("linformer-attention", tensors, options={"sharing": sharing, **options})["output"]
    e, f = tensors["weight.e"].astype(np.float64), tensors.get("weight.f", tensors["weight.e"]).astype(np.float64)
    worst = 0.0
    for b in range(batch):
        for h in range(heads):
            kv = h * kv_heads // heads
            seen = (np.arange(nk) < lengths[b])[:, None]
            k, v = tensors["key"][b, kv] * seen, tensors["value"][b, kv] * seen
            eh, fh = (e[kv], f[kv]) if sharing == "none" else (e, f)
            s = tensors["query"][b, h].astype(np.float64) @ (eh[:, :nk] @ k).T / math.sqrt(d)
            cap = options.get("softcap", 0.0)
            s = cap * np.tanh(s / cap) if cap else s
            worst = max(worst, float(np.abs(got[b, h] - softmax(s) @ (fh[:, :nk] @ v)).max()))
    report(f"linformer-attention sharing={sharing} {options} lengths={lengths_given}", worst, 2e-5)


def linformer_cases():
    for sharing in ("none", "headwise", "kv"):
        for lengths_given in (False, True):
            linformer({}, sharing, lengths_given)
    linformer({"softcap": 2.0}, "headwise", True)


def nystrom_layer(length, landmarks, kernel, original):
    from transformers.models.nystromformer.modeling_nystromformer import NystromformerConfig, NystromformerSelfAttention
    batch, heads, width = 2, 4, 32
    config = NystromformerConfig(hidden_size=width, num_attention_heads=heads, num_landmarks=landmarks, segment_means_seq_len=length,
                                 conv_kernel_size=kernel or 3, attention_probs_dropout_prob=0.0)
    config.inv_coeff_init_option = False
    layer = NystromformerSelfAttention(config)
    if not kernel:
        layer.conv_kernel_size = None
    layer.init_option = "original" if original else "exact"
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (width ** -0.5 if parameter.ndim == 2 else 0.5))
    layer = layer.double().eval()
    hidden = torch.from_numpy(normal(batch, length, width)).double()
    expected = layer(hidden)[0].reshape(batch, length, heads, -1).transpose(1, 2).detach().numpy()
    tensors = {name: linear(hidden).reshape(batch, length, heads, -1).transpose(1, 2).detach().float().numpy()
               for name, linear in {"query": layer.query, "key": layer.key, "value": layer.value}.items()}
    options = {"num_landmarks": landmarks, "pinv_init": "batch" if original else "matrix"}
    if kernel:
        options["residual_kernel"] = kernel
        tensors["weight.conv_weight"] = layer.conv.weight.detach().float().numpy().reshape(heads, kernel)
    got = attend("nystrom-attention", tensors, options=options)["output"]
    report(f"NystromformerSelfAttention length={length} landmarks={landmarks} kernel={kernel} original={original}", float(np.abs(got - expected).max()), 2e-5)


def layers():
    if "nystrom-attention" not in listed():
        return
    for arguments in ((64, 8, 0, True), (96, 16, 5, True), (64, 8, 3, False), (48, 48, 3, True)):
        attempt(nystrom_layer, *arguments)


if __name__ == "__main__":
    kernels()
    linformer_cases()
    layers()
    sys.exit(finish())
