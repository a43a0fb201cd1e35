#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the program on random inputs and compares with the attention of torch and of models in transformers: tiny layers
with seeded weights, nothing is downloaded. Code that runs in float64 must agree to 1e-5, other code to 1e-4.

  pip install torch==2.13.0 transformers==5.23.0 numpy safetensors
  python3 tests/reference/compare_transformers.py build/release/bin/attend

Prints the maximum difference of each comparison and ends with a line "N passed, N failed".
"""

import functools
import importlib
import itertools
import math
import sys

import support
from support import attend, counts, finish, listed

support.need("numpy", "torch", "transformers", "safetensors")
import numpy as np
import torch
import transformers

rng = np.random.default_rng(11)


def model(name, *attributes):
    """Attributes of transformers.models.<name>.modeling_<name>."""
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    return [getattr(module, attribute) for attribute in attributes]


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def tensor(array, dtype=torch.float64):
    return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)


def array(value):
    return value.detach().numpy().astype(np.float32)


def seeded(layer, dtype=torch.float64, seed=3):
    """The layer with normal weights that keep vectors at unit scale. float32 holds them exactly, so that both sides
    compute with the same ones."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.5))
    return layer.to(dtype).eval()


def split(x, heads):
    """[B,N,H*D] to [B,H,N,D]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def joined(x):
    x = x.transpose(0, 2, 1, 3)
    return x.reshape(*x.shape[:2], -1)


def check(name, got, expected, dtype=torch.float64):
    got, expected = np.asarray(got, np.float64), np.asarray(expected.detach() if torch.is_tensor(expected) else expected, np.float64)
    limit = 1e-5 if dtype == torch.float64 else 1e-4
    if got.shape != expected.shape:
        good, text = False, f"shape {got.shape}, expected {expected.shape}"
    else:
        difference = np.max(np.abs(got - expected), initial=0.0)
        good, text = bool(difference < limit), f"maximum difference {difference:.1e}, below {limit:.0e}"
    counts[good] += 1
    print(f"{'' if good else 'FAILED '}{name}, {str(dtype).removeprefix('torch.')}: {text}")


def run(mechanisms, function, *arguments):
    """One comparison, if the program has the mechanisms; a failure of one must not hide the others."""
    missing = [name for name in mechanisms if name not in listed()]
    if missing:
        print(f"skipped {function.__name__}: the program has no {', '.join(missing)}")
        return
    try:
        with torch.no_grad():
            function(*arguments)
    except Exception as problem:  # noqa: BLE001
        counts[False] += 1
        print(f"FAILED {function.__name__}{arguments}: {problem}")


def additive(visible):
    """What eager attention adds to scores: 0 where a pair may attend, else minus infinity."""
    return torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -math.inf)


def causal(nq, nk):
    return torch.ones(nq, nk, dtype=torch.bool).tril(nk - nq)


def sdpa(mechanism, heads, kv_heads, nq, nk, d, dv):
    q, k, v = normal(2, heads, nq, d), normal(2, kv_heads, nk, d), normal(2, kv_heads, nk, dv)
    base = {"query": q, "key": k, "value": v}
    compute = functools.partial(torch.nn.functional.scaled_dot_product_attention, *map(tensor, (q, k, v)), enable_gqa=kv_heads != heads)
    name = f"scaled_dot_product_attention against {mechanism}, {heads}/{kv_heads} heads, {nq}x{nk}x{d}x{dv}"
    check(name, attend(mechanism, base)["output"], compute())
    # Boolean masks of scaled_dot_product_attention say what may be seen.
    mask = rng.random((2, 1, nq, nk)) < 0.7
    mask[..., 0] = True
    check(name + ", mask", attend(mechanism, base | {"mask": mask})["output"], compute(attn_mask=torch.from_numpy(mask)))
    bias = normal(1, heads, nq, nk)
    check(
        name + ", bias, scale",
        attend(mechanism, base | {"bias": bias}, options={"scale": 0.21})["output"],
        compute(attn_mask=tensor(bias), scale=0.21),
    )
    if mechanism != "cross-attention":  # is_causal is aligned with the first key
        got = attend(mechanism, base, options={"causal": True, "causal_alignment": "top-left"})["output"]
        check(name + ", is_causal", got, compute(is_causal=True))


def multi_head(heads, width, kdim, vdim, bias_kv, zero, mask, dtype):
    layer = seeded(
        torch.nn.MultiheadAttention(width, heads, add_bias_kv=bias_kv, add_zero_attn=zero, kdim=kdim, vdim=vdim, batch_first=True), dtype=dtype
    )
    nq, nk = 7, 12
    query, key, value = normal(2, nq, width), normal(2, nk, kdim or width), normal(2, nk, vdim or width)
    if layer.in_proj_weight is not None:
        wq, wk, wv = array(layer.in_proj_weight).reshape(3, width, width)
    else:
        wq, wk, wv = (array(w) for w in (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight))
    bq, bk, bv = array(layer.in_proj_bias).reshape(3, width)
    tensors = {
        "query": query,
        "key": key,
        "value": value,
        "weight.wq": wq,
        "weight.wk": wk,
        "weight.wv": wv,
        "weight.bq": bq,
        "weight.bk": bk,
        "weight.bv": bv,
    }
    tensors |= {"weight.wo": array(layer.out_proj.weight), "weight.bo": array(layer.out_proj.bias)}
    options = {"heads": heads, "add_bias_kv": bias_kv, "add_zero_attn": zero, "average_weights": True}
    options |= {name: value for name, value in (("kdim", kdim), ("vdim", vdim)) if value}
    if bias_kv:
        tensors |= {"weight.bias_k": array(layer.bias_k).reshape(width), "weight.bias_v": array(layer.bias_v).reshape(width)}
    arguments = {}
    if mask:  # boolean masks of MultiheadAttention say what is hidden
        hidden, padding = rng.random((nq, nk)) < 0.3, np.arange(nk) >= np.array([[nk], [nk - 4]])
        hidden[:, 0] = False
        arguments = {"attn_mask": torch.from_numpy(hidden), "key_padding_mask": torch.from_numpy(padding)}
        tensors |= {"mask": ~hidden, "key_lengths": np.array([nk, nk - 4], np.int64)}
    output, weights = layer(*(tensor(x, dtype) for x in (query, key, value)), **arguments)
    got = attend("standard-mha", tensors, "--scores", options=options)
    name = f"MultiheadAttention, {heads} heads of {width // heads}, kdim {kdim}, vdim {vdim}, bias_kv {bias_kv}, zero {zero}, masks {mask}"
    check(name, got["output"], output, dtype)
    check(name + ", weights", got["scores"], weights, dtype)


def rope_options(rope):
    """Our options for their rope parameters, most of which have the same names."""
    theirs = {"rope_theta": "base", "rope_type": "scaling", "factor": "scaling_factor", "original_max_position_embeddings": "original_max_position"}
    options = {theirs.get(name, name): value for name, value in rope.items()}
    options["scaling"] = {"dynamic": "dynamicNtk", "default": "none"}.get(rope["rope_type"], rope["rope_type"])
    return options


def llama(heads, kv_heads, width, start, rope):
    attention, rotary = model("llama", "LlamaAttention", "LlamaRotaryEmbedding")
    longest = rope.get("original_max_position_embeddings", 64)
    config = transformers.LlamaConfig(
        hidden_size=heads * width,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=width,
        num_hidden_layers=1,
        max_position_embeddings=longest,
        rope_parameters=dict(rope),
        attn_implementation="eager",
    )
    layer, n = seeded(attention(config, 0)), 21
    layer.o_proj = torch.nn.Identity()
    x = tensor(normal(2, n, heads * width))
    positions = torch.arange(start, start + n)[None].expand(2, n)
    angles = rotary(config)(x, positions)  # of float32, which limits how far positions may go
    expected, weights = layer(x, angles, additive(causal(n, n)))
    q, k, v = (split(array(project(x)), count) for project, count in ((layer.q_proj, heads), (layer.k_proj, kv_heads), (layer.v_proj, kv_heads)))
    got = attend(
        "rotary-mha", {"query": q, "key": k, "value": v}, "--scores", options={"causal": True, "position_offset": start} | rope_options(rope)
    )
    name = f"LlamaAttention, {heads}/{kv_heads} heads of {width}, from position {start}, {rope['rope_type']}"
    check(name, joined(got["output"]), expected)
    check(name + ", weights", got["scores"], weights)


def rotary_functions(layout, width, turned, start):
    """Their rotation in float64 with exact angles, at positions where angles of float32 would be off."""
    n = 17
    q, k, v = (normal(1, 2, n, width) for _ in range(3))
    angle = torch.arange(start, start + n, dtype=torch.float64)[:, None] * 10000.0 ** (-torch.arange(0, turned, 2, dtype=torch.float64) / turned)
    if layout == "half":
        (apply,) = model("llama", "apply_rotary_pos_emb")
        cos, sin = (torch.cat((part, part), -1)[None] for part in (angle.cos(), angle.sin()))
        turn = lambda x: apply(x, x, cos, sin)[0]  # noqa: E731
    else:
        (apply,) = model("gptj", "apply_rotary_pos_emb")
        turn = lambda x: apply(x.transpose(1, 2), angle.sin()[None], angle.cos()[None]).transpose(1, 2)  # noqa: E731
    tq, tk = (torch.cat((turn(x[..., :turned]), x[..., turned:]), -1) for x in map(tensor, (q, k)))
    expected = torch.nn.functional.scaled_dot_product_attention(tq, tk, tensor(v))
    options = {"layout": layout, "rotary_dim": turned, "position_offset": start}
    got = attend("rotary-mha", {"query": q, "key": k, "value": v}, options=options)["output"]
    check(f"apply_rotary_pos_emb, {layout}, {turned} of {width} channels, from position {start}", got, expected)


def gptj(heads, width, turned, start):
    (attention,) = model("gptj", "GPTJAttention")
    size = heads * width
    config = transformers.GPTJConfig(n_embd=size, n_head=heads, n_positions=128, n_layer=1, rotary_dim=turned, attn_pdrop=0.0, resid_pdrop=0.0)
    layer, n = seeded(attention(config, 0)), 19
    layer.out_proj = torch.nn.Identity()
    x = tensor(normal(2, n, size))
    expected, weights = layer(x, attention_mask=additive(causal(n, n)), position_ids=torch.arange(start, start + n)[None].expand(2, n))
    q, k, v = (split(array(project(x)), heads) for project in (layer.q_proj, layer.k_proj, layer.v_proj))
    options = {"layout": "interleaved", "rotary_dim": turned, "causal": True, "position_offset": start}
    got = attend("rotary-mha", {"query": q, "key": k, "value": v}, "--scores", options=options)
    name = f"GPTJAttention, {heads} heads of {width}, {turned} channels turned, from position {start}"
    check(name, joined(got["output"]), expected)  # scores and softmax in float32 there
    check(name + ", weights", got["scores"], weights)


def bloom(heads, width, past, padding):
    attention, build = model("bloom", "BloomAttention", "build_alibi_tensor")
    size, n = heads * width, 23
    config = transformers.BloomConfig(hidden_size=size, n_head=heads, n_layer=1, attention_dropout=0.0, hidden_dropout=0.0)
    layer = seeded(attention(config, 0))
    layer.dense = torch.nn.Identity()
    x = tensor(normal(2, n, size))
    tokens = torch.ones(2, n, dtype=torch.long)
    tokens[1, :padding] = 0
    # Their bias m j differs from ours by a constant of the row, as long as no later key counts its distance twice.
    visible = tokens[:, None, None, :].bool() & (causal(n, n) if past else torch.ones(n, n, dtype=torch.bool))
    alibi = build(tokens, heads, torch.float64)
    # Rows of padding see nothing, and only the lowest finite number lets them through without NaN.
    hidden = additive(visible).clamp(min=torch.finfo(torch.float64).min)
    expected, weights = layer(x, torch.zeros_like(x), alibi, hidden)
    q, k, v = (array(part) for part in layer._reshape(layer.query_key_value(x)))
    # They count positions in tokens, without the padding.
    positions = ((tokens.cumsum(-1) - 1) * tokens).numpy().astype(np.int64)
    tensors = {
        "query": q,
        "key": k,
        "value": v,
        "input.positions_q": positions,
        "input.positions_k": positions,
        "mask": np.broadcast_to(tokens.bool().numpy()[:, None, None, :], (2, 1, 1, n)),
    }
    got = attend("alibi-mha", tensors, "--scores", options={"causal": True} if past else {"causal": False, "distance": "signed"})
    name = f"BloomAttention, {heads} heads of {width}, causal {past}, {padding} tokens of padding"
    rows = tokens.bool().numpy()
    check(name, joined(got["output"])[rows], expected.numpy()[rows])
    check(name + ", weights", got["scores"].transpose(0, 2, 1, 3)[rows], weights.numpy().transpose(0, 2, 1, 3)[rows])


def t5(heads, width, buckets, distance, decoder, nq, nk):
    (attention,) = model("t5", "T5Attention")
    config = transformers.T5Config(
        d_model=24,
        d_kv=width,
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=distance,
        dropout_rate=0.0,
        is_decoder=decoder,
        attn_implementation="eager",
    )
    layer = seeded(attention(config, has_relative_attention_bias=True, layer_idx=0))
    layer.o = torch.nn.Identity()
    x, memory = tensor(normal(2, nq, 24)), tensor(normal(2, nk, 24))
    bias = layer.compute_bias(nq, nk, past_seen_tokens=nk - nq)
    mask = additive(causal(nq, nk)) if decoder else None
    expected, _, weights = layer(x, mask, key_value_states=memory, position_bias=bias)
    q, k, v = (split(array(project(source)), heads) for project, source in ((layer.q, x), (layer.k, memory), (layer.v, memory)))
    tensors = {"query": q, "key": k, "value": v, "weight.rel_bias": array(layer.relative_attention_bias.weight)}
    options = {"mode": "t5", "num_buckets": buckets, "max_distance": distance, "causal": decoder, "bidirectional": not decoder, "scale": 1.0}
    got = attend("relative-position-attention", tensors, "--scores", options=options)
    name = f"T5Attention, {heads} heads of {width}, {buckets} buckets to {distance}, decoder {decoder}, {nq}x{nk}"
    check(name, joined(got["output"]), expected)
    check(name + ", weights", got["scores"], weights)


def deberta(heads, width, buckets, distance, terms, shared, normed, n):
    attention, encoder_type = model("deberta_v2", "DisentangledSelfAttention", "DebertaV2Encoder")
    size = heads * width
    config = transformers.DebertaV2Config(
        vocab_size=16,
        hidden_size=size,
        num_attention_heads=heads,
        num_hidden_layers=1,
        intermediate_size=size,
        relative_attention=True,
        position_buckets=buckets,
        max_relative_positions=distance,
        pos_att_type=terms,
        share_att_key=shared,
        norm_rel_ebd="layer_norm" if normed else "none",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-7,
    )
    encoder = seeded(encoder_type(config))
    encoder.rel_embeddings.weight.copy_(tensor(normal(*encoder.rel_embeddings.weight.shape)))
    layer = encoder.layer[0].attention.self
    assert isinstance(layer, attention)
    x, table = tensor(normal(2, n, size)), encoder.get_rel_embedding()
    visible = rng.random((2, 1, n, n)) < 0.8
    visible |= np.eye(n, dtype=bool)
    expected, weights = layer(x, torch.from_numpy(visible), output_attentions=True, rel_embeddings=table)
    tensors = {"query": array(x), "mask": visible, "weight.rel_emb": array(encoder.rel_embeddings.weight)}
    if normed:
        tensors |= {"weight.rel_norm_w": array(encoder.LayerNorm.weight), "weight.rel_norm_b": array(encoder.LayerNorm.bias)}
    projections = {"q": layer.query_proj, "k": layer.key_proj, "v": layer.value_proj}
    for letter, project in projections.items():
        tensors |= {f"weight.w{letter}": array(project.weight), f"weight.b{letter}": array(project.bias)}
    for term, letter, name in (("c2p", "k", "pos_key_proj"), ("p2c", "q", "pos_query_proj")):
        if term in terms and not shared:
            project = getattr(layer, name)
            tensors |= {f"weight.pos_w{letter}": array(project.weight), f"weight.pos_b{letter}": array(project.bias)}
    options = {
        "heads": heads,
        "position_buckets": max(buckets, 0),
        "max_relative_positions": distance,
        "share_att_key": shared,
        "norm_rel_emb": normed,
    }
    options |= {"c2p": "c2p" in terms, "p2c": "p2c" in terms}
    got = attend("disentangled-attention", tensors, "--scores", options=options)
    name = (
        f"DisentangledSelfAttention, {heads} heads of {width}, {buckets} buckets to {distance}, {'+'.join(terms)}, shared {shared}, normed {normed}"
    )
    check(name, got["output"], expected)
    check(name + ", weights", got["scores"], weights)


def diffllama(heads, kv_heads, width, depth, eps):
    attention, rotary, turn = model("diffllama", "DiffLlamaAttention", "DiffLlamaRotaryEmbedding", "apply_rotary_pos_emb")
    config = transformers.DiffLlamaConfig(
        hidden_size=heads * width,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=width,
        num_hidden_layers=1,
        rms_norm_eps=eps,
        attention_dropout=0.0,
        attn_implementation="eager",
    )
    layer, n = seeded(attention(config, depth)), 18
    layer.o_proj = torch.nn.Identity()
    x = tensor(normal(2, n, heads * width))
    angles = rotary(config)(x, torch.arange(n)[None].expand(2, n))
    expected, _ = layer(x, angles, additive(causal(n, n)))
    q, k, v = (
        tensor(split(array(project(x)), count)) for project, count in ((layer.q_proj, heads), (layer.k_proj, kv_heads), (layer.v_proj, kv_heads))
    )
    q, k = turn(q, k, *angles)
    # A head's value is the head of the first half of the value heads, then that of the second.
    value = np.concatenate(np.split(array(v), 2, 1), -1)
    tensors = {"query": array(q), "key": array(k), "value": value}
    tensors |= {f"weight.{name}": array(getattr(layer, name)) for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")}
    tensors["weight.norm_weight"] = np.ones(2 * width, np.float32)
    got = attend("differential-attention", tensors, options={"pairing": "split", "depth": depth, "norm_eps": eps})["output"]
    check(f"DiffLlamaAttention, {heads}/{kv_heads} heads of {width}, layer {depth}, eps {eps}", joined(got), expected)


def perceiver_weights(prefix, layer):
    attention = layer.attention.self
    parts = {
        "norm_q": attention.layernorm1,
        "norm_kv": attention.layernorm2,
        "norm_mlp": layer.layernorm,
        "q": attention.query,
        "k": attention.key,
        "v": attention.value,
        "o": layer.attention.output.dense,
        "1": layer.mlp.dense1,
        "2": layer.mlp.dense2,
    }
    weights = {}
    for name, part in parts.items():
        if isinstance(part, torch.nn.Identity):
            continue  # self layers have one norm
        names = (f"{name}.gamma", f"{name}.beta") if "norm" in name else (f"w{name}", f"b{name}")
        weights |= {f"weight.{prefix}.{name}": array(value) for name, value in zip(names, (part.weight, part.bias), strict=True)}
    return weights


def perceiver_cross(residual, widening, heads, qk, v):
    """One cross layer that reads into the queries: their layer as our encoder."""
    (layer_type,) = model("perceiver", "PerceiverLayer")
    config = transformers.PerceiverConfig(attention_probs_dropout_prob=0.0)
    layer = seeded(
        layer_type(
            config,
            is_cross_attention=True,
            qk_channels=qk,
            v_channels=v,
            num_heads=heads,
            q_dim=16,
            kv_dim=12,
            widening_factor=widening,
            use_query_residual=residual,
        )
    )
    latents, inputs = normal(5, 16), normal(2, 14, 12)
    lengths = np.array([14, 9], np.int64)
    hidden = additive(torch.from_numpy(np.arange(14) < lengths[:, None])[:, None, None, :])
    queries = tensor(latents)[None].expand(2, 5, 16)
    expected = layer(queries, inputs=tensor(inputs), inputs_mask=hidden)[0]
    tensors = {"key": inputs, "key_lengths": lengths, "weight.latents": latents} | perceiver_weights("e", layer)
    options = {"cross_heads": heads, "cross_widening": widening, "encoder_residual": residual, "gelu": "erf"}
    options |= {name: value for name, value in (("qk_channels", qk), ("v_channels", v)) if value}
    name = f"PerceiverLayer, {heads} heads, qk {qk}, v {v}, widening {widening}, residual {residual}"
    check(name, attend("perceiver-attention", tensors, options=options)["output"], expected)
    if residual:
        # The attention alone: with a feed-forward of zeros nothing is added to it.
        for part in (layer.mlp.dense2.weight, layer.mlp.dense2.bias):
            part.zero_()
        expected = layer.attention(queries, inputs=tensor(inputs), inputs_mask=hidden)[0]
        tensors |= perceiver_weights("e", layer)
        check(name.replace("Layer", "Attention"), attend("perceiver-attention", tensors, options=options)["output"], expected)


def perceiver_module(layers, blocks, cross_heads, self_heads, decoder, decoder_residual):
    """Encoder, self layers and decoder."""
    encoder_type, layer_type = model("perceiver", "PerceiverEncoder", "PerceiverLayer")
    config = transformers.PerceiverConfig(
        num_latents=6,
        d_latents=16,
        d_model=12,
        num_blocks=blocks,
        num_self_attends_per_block=layers,
        num_self_attention_heads=self_heads,
        num_cross_attention_heads=cross_heads,
        self_attention_widening_factor=2,
        cross_attention_widening_factor=1,
        attention_probs_dropout_prob=0.0,
    )
    encoder = seeded(encoder_type(config, kv_dim=12))
    latents, inputs = normal(6, 16), normal(2, 20, 12)
    expected = encoder(tensor(latents)[None].expand(2, 6, 16), inputs=tensor(inputs)).last_hidden_state
    tensors = {"key": inputs, "weight.latents": latents} | perceiver_weights("e", encoder.cross_attention)
    for number, layer in enumerate(encoder.self_attends, 1):
        tensors |= perceiver_weights(f"s_{number}", layer)
    if decoder:
        reader = seeded(
            layer_type(
                config, is_cross_attention=True, num_heads=cross_heads, q_dim=10, kv_dim=16, widening_factor=1, use_query_residual=decoder_residual
            ),
            seed=5,
        )
        tensors["query"] = normal(2, 9, 10)
        expected = reader(tensor(tensors["query"]), inputs=expected)[0]
        tensors |= perceiver_weights("d", reader)
    options = {"self_layers": layers, "blocks": blocks, "cross_heads": cross_heads, "self_heads": self_heads, "self_widening": 2, "gelu": "erf"}
    if decoder:
        options["decoder_residual"] = decoder_residual
    name = (
        f"PerceiverEncoder, {layers} layers {blocks} times, {cross_heads} and {self_heads} heads, decoder {decoder}, its residual {decoder_residual}"
    )
    check(name, attend("perceiver-attention", tensors, options=options)["output"], expected)


# fmt: off
SDPA = [("standard-mha", 4), ("flash-attention-v2", 2), ("grouped-query-attention", 2), ("multi-query-attention", 1), ("cross-attention", 4)]
MULTI_HEAD = [(False, False, False), (False, False, True), (True, False, False), (False, True, True), (True, True, True)]
ROPE = [
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 16},
    {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64},
    {"rope_type": "yarn", "rope_theta": 500.0, "factor": 8.0, "original_max_position_embeddings": 32, "beta_fast": 8.0, "beta_slow": 2.0,
     "attention_factor": 0.8},
    {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64, "low_freq_factor": 1.0,
     "high_freq_factor": 4.0},
]
ROTATION = [(16, 16, 0), (24, 8, 0), (64, 64, 30000), (20, 12, -7)]
GPTJ = [(4, 16, 8, 0), (3, 12, 12, 40), (2, 32, 6, 11)]
BLOOM = [(8, 8, True, 0), (12, 6, True, 0), (3, 16, True, 7), (6, 8, False, 0), (16, 4, False, 5)]
T5 = [
    (3, 8, 32, 128, False, 15, 15), (4, 6, 32, 128, True, 15, 15), (2, 16, 32, 128, True, 1, 60), (2, 8, 10, 30, False, 40, 40),
    (2, 8, 32, 128, False, 150, 150), (2, 8, 32, 128, True, 20, 190), (2, 8, 12, 50, True, 33, 33),
]
BOTH = ["c2p", "p2c"]
DEBERTA = [
    (3, 8, 8, 24, BOTH, True, True, 20), (2, 16, -1, 24, BOTH, True, False, 20), (4, 8, 8, 40, BOTH, False, True, 33),
    (2, 8, 8, 24, ["c2p"], False, False, 17), (2, 8, 8, 24, ["p2c"], False, True, 17), (2, 8, 256, 512, BOTH, True, True, 150),
    (3, 8, 6, 64, ["p2c"], True, True, 60),
]
DIFFLLAMA = [(4, 4, 8, 0, 1e-5), (8, 4, 8, 3, 1e-5), (4, 2, 16, 7, 1e-3), (12, 2, 6, 1, 1e-6)]
PERCEIVER = [(True, 1, 1, None, None), (True, 2, 2, None, None), (False, 1, 4, 8, None), (True, 3, 2, 8, 20)]
PERCEIVER_MODULE = [(1, 1, 1, 4, False, False), (2, 3, 2, 8, False, False), (2, 1, 1, 2, True, False), (1, 2, 4, 4, True, True)]
# fmt: on


def main():
    for mechanism, kv_heads in SDPA:
        run([mechanism], sdpa, mechanism, 4, kv_heads, 11, 11, 16, 16)
        run([mechanism], sdpa, mechanism, 4, kv_heads, 9, 37, 24, 10)
    for dtype in (torch.float64, torch.float32):
        for case in MULTI_HEAD:
            run(["standard-mha"], multi_head, 3, 24, None, None, *case, dtype)
        run(["standard-mha"], multi_head, 4, 32, 10, 14, False, False, True, dtype)
    for heads, kv_heads, width, start in ((4, 4, 8, 0), (4, 2, 16, 0), (6, 1, 10, 30)):
        run(["rotary-mha"], llama, heads, kv_heads, width, start, ROPE[0])
    for rope in ROPE[1:]:
        run(["rotary-mha"], llama, 4, 2, 32, 5, rope)
    for layout, case in itertools.product(("half", "interleaved"), ROTATION):
        run(["rotary-mha"], rotary_functions, layout, *case)
    for mechanism, comparison, cases in (
        ("rotary-mha", gptj, GPTJ),
        ("alibi-mha", bloom, BLOOM),
        ("relative-position-attention", t5, T5),
        ("disentangled-attention", deberta, DEBERTA),
        ("differential-attention", diffllama, DIFFLLAMA),
        ("perceiver-attention", perceiver_cross, PERCEIVER),
        ("perceiver-attention", perceiver_module, PERCEIVER_MODULE),
    ):
        for case in cases:
            run([mechanism], comparison, *case)
    return finish()


if __name__ == "__main__":
    sys.exit(main())
