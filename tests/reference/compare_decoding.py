#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs flash-decoding on random caches and compares with PyTorch's scaled_dot_product_attention on the CPU, with pages
gathered and codes widened by hand.

  pip install torch==2.13.0 numpy safetensors
  python3 tests/reference/compare_decoding.py build/release/bin/attend

Ends with a line "N passed, N failed".
"""

import itertools
import subprocess
import sys

import support
from support import ATTEND, WORK, attempt, finish, report

support.need("numpy", "torch", "safetensors")
import torch
from safetensors.torch import load_file, save_file

torch.manual_seed(5)
E4M3 = torch.float8_e4m3fn


def decode(tensors, *flags, **options):
    """Output and log-sum-exp of one call."""
    save_file({name: value.contiguous() for name, value in tensors.items()}, WORK / "in.safetensors")
    command = [ATTEND, "compute", "flash-decoding", "--quiet", "--lse", "--input", str(WORK / "in.safetensors"), "--output", str(WORK / "out.safetensors")]
    for name, value in options.items():
        command += ["--set", f"{name}={value}"]
    done = subprocess.run(command + [str(flag) for flag in flags], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    out = load_file(WORK / "out.safetensors")
    return out["output"], out["lse"]


def expected(q, k, v, lengths, causal=True, left=-1, scale=None, softcap=0.0):
    """Item by item on the cut cache; float64. Without softcap the output is PyTorch's own."""
    q, k, v = q.double(), k.double(), v.double()
    outputs, logs = [], []
    for item, length in enumerate(lengths):
        group = q.shape[1] // k.shape[1]
        keys, values = (x[item, :, :length].repeat_interleave(group, 0) for x in (k, v))
        i, j = torch.arange(q.shape[2])[:, None] + length - q.shape[2], torch.arange(length)[None]
        seen = torch.ones(q.shape[2], length, dtype=torch.bool)
        if causal:
            seen &= j <= i
        if left >= 0:
            seen &= j >= i - left
        scores = q[item] @ keys.transpose(1, 2) * (scale or q.shape[3] ** -0.5)
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
            output = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1).nan_to_num(0.0) @ values
        else:
            output = torch.nn.functional.scaled_dot_product_attention(q[item], keys, values, attn_mask=seen, scale=scale)
            output = torch.where(seen.any(1)[None, :, None], output, 0.0)
        outputs.append(output)
        logs.append(torch.logsumexp(scores.masked_fill(~seen, -torch.inf), -1))
    return torch.stack(outputs), torch.stack(logs)


def compare(name, got, wanted, limit=1e-5):
    output, lse = got
    report(name, (output.double() - wanted[0]).abs().max().item() / max(1.0, wanted[0].abs().max().item()), limit)
    infinite = torch.isinf(wanted[1])
    if not torch.equal(infinite, torch.isinf(lse)):
        raise RuntimeError("rows without a key differ")
    report(f"{name}, lse", ((lse.double() - wanted[1]) / (1 + wanted[1].abs()))[~infinite].abs().max().item(), 2e-5)


def paged(dense, lengths, size, fill):
    """Pages in random order, unused slots and entries poisoned; and the table."""
    batch, heads, _, width = dense.shape
    needed = [(item, at) for item, length in enumerate(lengths) for at in range(-(-length // size))]
    pages = torch.full((len(needed) + 2, heads, size, width), fill).to(dense.dtype)
    return needed, pages


def in_pages(k, v, lengths, size, fill=float("nan")):
    needed, key_pages = paged(k, lengths, size, fill)
    _, value_pages = paged(v, lengths, size, fill)
    order = torch.randperm(len(key_pages))
    table = torch.full((len(lengths), -(-max(lengths) // size) + 1), -1, dtype=torch.int32)
    for number, (item, at) in enumerate(needed):
        page, end = order[number].item(), min(lengths[item], (at + 1) * size)
        table[item, at] = page
        for pages, dense in ((key_pages, k), (value_pages, v)):
            pages[page, :, : end - at * size] = dense[item, :, at * size : end]
    return {"input.key_pages": key_pages, "input.value_pages": value_pages, "input.block_table": table, "key_lengths": torch.tensor(lengths, dtype=torch.int32)}


def caches(heads, kv_heads, queries, size):
    lengths = [257, 3, 100]
    q = torch.randn(3, heads, queries, 24)
    k, v = torch.randn(3, kv_heads, 257, 24), torch.randn(3, kv_heads, 257, 16)
    lens = {"key_lengths": torch.tensor(lengths)}
    name = f"{heads}/{kv_heads} heads, {queries} queries"
    wanted = expected(q, k, v, lengths)
    compare(name, decode({"query": q, "key": k, "value": v} | lens), wanted)
    compare(f"{name}, splits", decode({"query": q, "key": k, "value": v} | lens, num_splits=5, block_kv=16), wanted)
    pages = {"query": q} | in_pages(k, v, lengths, size)
    compare(f"{name}, pages of {size}", decode(pages), wanted)
    compare(f"{name}, pages of {size}, window, scale", decode(pages, "--scale", 0.4, window_left=20), expected(q, k, v, lengths, left=20, scale=0.4))
    compare(f"{name}, pages of {size}, softcap", decode(pages, "--softcap", 2, causal="false"), expected(q, k, v, lengths, causal=False, softcap=2.0))


def narrow(dtype, size, queries_too):
    lengths = [200, 64]
    q = torch.randn(2, 8, 1, 64)
    k, v = torch.randn(2, 2, 200, 64).to(dtype), torch.randn(2, 2, 200, 64).to(dtype)
    if queries_too:
        q = q.to(dtype)
    tensors = {"query": q} | (in_pages(k, v, lengths, size) if size else {"key": k, "value": v, "key_lengths": torch.tensor(lengths)})
    limit = 1e-5 if not queries_too else 1e-2 if dtype == torch.bfloat16 else 2e-3
    name = f"{dtype} cache, {'the same' if queries_too else 'float32'} queries, {f'pages of {size}' if size else 'contiguous'}"
    compare(name, decode(tensors), expected(q, k, v, lengths), limit)


def rounded(dtype, word):
    q, k, v = torch.randn(1, 4, 2, 32), torch.randn(1, 4, 90, 32), torch.randn(1, 4, 90, 32)
    compare(f"kv_dtype {word}", decode({"query": q, "key": k, "value": v}, kv_dtype=word), expected(q, k.to(dtype), v.to(dtype), [90]))


def codes(dtype, size, queries):
    lengths = [300, 47]
    q = torch.randn(2, 6, queries, 32)
    group = size or 64
    dense, tensors = [], {}
    for name in ("key", "value"):
        x = torch.randn(2, 2, 300, 32)
        if dtype == torch.int8:
            made = (x * 40).round().clamp(-127, 127).to(torch.int8)
        else:
            made = (x * 50).to(E4M3)
        tensors[name] = made
    if size:
        pages = in_pages(tensors["key"], tensors["value"], lengths, size, 0.0)
        scales = {name: 0.01 + torch.rand(len(pages["input.key_pages"]), 2, 1) * 0.02 for name in ("key", "value")}
        table = pages["input.block_table"].clamp(0)
        for name in ("key", "value"):
            wide = pages[f"input.{name}_pages"].float() * scales[name][..., None]
            whole = wide[table.long()].transpose(1, 2).flatten(2, 3)  # [B, Hkv, pages * S, D]
            dense.append(whole)
        inputs = pages
    else:
        scales = {name: 0.01 + torch.rand(2, 2, -(-300 // group)) * 0.02 for name in ("key", "value")}
        for name in ("key", "value"):
            dense.append(tensors[name].float() * scales[name].repeat_interleave(group, 2)[:, :, :300, None])
        inputs = tensors | {"key_lengths": torch.tensor(lengths)}
    inputs = {"query": q} | inputs | {f"input.{name}_scale": scales[name] for name in ("key", "value")}
    compare(f"{dtype} codes, {f'pages of {size}' if size else 'contiguous'}, {queries} queries", decode(inputs, block_kv=group if not size else 128), expected(q, *dense, lengths))


def main():
    for (heads, kv_heads), queries, size in itertools.product(((4, 4), (8, 2), (6, 1)), (1, 2, 5), (1, 16, 64)):
        attempt(caches, heads, kv_heads, queries, size)
    for dtype, size, queries_too in itertools.product((torch.bfloat16, torch.float16), (0, 1, 16, 64), (False, True)):
        attempt(narrow, dtype, size, queries_too)
    attempt(rounded, torch.bfloat16, "bf16")
    attempt(rounded, torch.float16, "fp16")
    for dtype, size, queries in itertools.product((torch.int8, E4M3), (0, 16, 40), (1, 4)):
        attempt(codes, dtype, size, queries)
    return finish()


if __name__ == "__main__":
    sys.exit(main())
