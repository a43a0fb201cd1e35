#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the four mechanisms of mixtures of experts on random inputs and compares with published code, in float64 where it
runs in float64:

- switch-attention with SwitchTransformersSparseMLP of transformers, into which experts are put that attend, and with its
  two losses;
- moe-attention: routing with the routers of Mixtral, Qwen3-MoE, Llama 4 and DeepSeek-V3 and the loss of Mixtral; outputs
  with JetMoeAttention, the mixture of attention heads of transformers;
- soft-moe-attention with SoftMoE of soft_moe_pytorch, where that is installed;
- all four, expert-choice-attention among them, with dense formulas in float64: every expert on every token, then the rule.

  pip install torch==2.13.0 transformers==5.23.0 soft-moe-pytorch==0.1.9 numpy safetensors
  python3 tests/reference/compare_moe.py build/release/bin/attend

Prints the maximum difference of each comparison and ends with a line "N passed, N failed".
"""

import importlib
import importlib.util
import math
import sys
from types import SimpleNamespace

import support
from support import attend, attempt, finish, listed, report

support.need("numpy", "torch", "transformers", "safetensors")
import numpy as np
import torch
import transformers

rng = np.random.default_rng(21)


def model(name):
    return importlib.import_module(f"transformers.models.{name}.modeling_{name}")


def normal(*shape, scale=1.0):
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def tensor(array):
    return torch.from_numpy(np.ascontiguousarray(array)).double()


def parameter(array, dtype=torch.float64):
    return torch.nn.Parameter(tensor(array).to(dtype), requires_grad=False)


def distance(got, wanted):
    got, wanted = np.asarray(got, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    if got.shape != wanted.shape:
        raise ValueError(f"shape {got.shape}, expected {wanted.shape}")
    worst = float(np.max(np.abs(got - wanted), initial=0.0))
    return math.inf if math.isnan(worst) else worst  # max() may pass over NaN


def heads_of(x, heads):
    """[B,N,H*D] as [B,H,N,D]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def tokens_of(x):
    """[B,H,N,D] as [B,N,H*D]."""
    x = x.transpose(0, 2, 1, 3)
    return x.reshape(*x.shape[:2], -1)


def either(*of):
    return of[rng.integers(len(of))]


def between(low, high):
    return int(rng.integers(low, high + 1))


def experts_weights(experts, he, mq, mk, mv, de, ve, mo, shared=False):
    kv = 1 if shared else experts
    return {
        "wq": normal(experts, he, mq, de, scale=1.5 * mq**-0.5),
        "wk": normal(kv, he, mk, de, scale=1.5 * mk**-0.5),
        "wv": normal(kv, he, mv, ve, scale=mv**-0.5),
        "wo": normal(experts, he, ve, mo, scale=(he * ve) ** -0.5),
    }


def weights_in(weights):
    return {"weight." + name: value for name, value in weights.items()}


def padded(x, lengths):
    """NaN where there is no token."""
    x = x.copy()
    for b, length in enumerate(lengths):
        x[b, length:] = np.nan
    return x


def check_routing(name, got, side, members):
    """members: a dict (item, expert, token) to gate."""
    rows = sorted(members)
    found = got[f"routing.{side}.assignments"]
    same = np.array_equal(found, np.array(rows, dtype=np.int64).reshape(-1, 3))
    report(f"{name}: {side} assignments, {len(rows)}", 0 if same else math.inf, 0)
    if same:
        report(f"{name}: {side} gates", distance(got[f"routing.{side}.gates"], [members[row] for row in rows]))


def check_figures(name, got, side, wanted):
    """wanted: fields of the routing report, each with a row per item; floating-point ones relative to at least 1."""
    whole, worst = 0.0, 0.0
    for field, values in wanted.items():
        found, values = np.asarray(got[f"routing.{side}.{field}"], np.float64), np.asarray(values, np.float64)
        if field in ("counts", "capacity", "dropped", "unassigned", "empty_experts"):
            whole = max(whole, distance(found, values))
        else:
            scale = np.maximum(1, np.abs(values))
            worst = max(worst, distance(found / scale, values / scale))
    report(f"{name}: {side} {', '.join(wanted)}", max(worst, math.inf if whole else 0.0))


# ---- switch-attention: transformers ----


class AttentionExpert(torch.nn.Module):
    """What stands in for their feed-forward expert: attention among the tokens that it is given, [n,M] to [n,M]."""

    def __init__(self, wq, wk, wv, wo, causal):
        super().__init__()
        self.wq, self.wk, self.wv, self.wo, self.causal = *map(tensor, (wq, wk, wv, wo)), causal

    def forward(self, x):
        a = torch.nn.functional.scaled_dot_product_attention(*(x @ w for w in (self.wq, self.wk, self.wv)), is_causal=self.causal)
        return (a @ self.wo).sum(-3)


def switch_block(batch, heads, width, n, experts, he, de, ve, options, causal, bias, lengths):
    theirs, m = model("switch_transformers"), heads * width
    x, wr, br = normal(batch, n, m), normal(m, experts, scale=1.5 * m**-0.5), normal(experts, scale=0.5)
    weights = experts_weights(experts, he, m, m, m, de, ve, m)
    config = transformers.SwitchTransformersConfig(d_model=m, d_ff=8, num_experts=experts, expert_capacity=1, router_bias=bias)
    layer = theirs.SwitchTransformersSparseMLP(config).double().eval()
    layer.router.dtype = torch.float64
    layer.router.classifier.weight = parameter(wr.T)
    if bias:
        layer.router.classifier.bias = parameter(br)
    for e in range(experts):
        layer.experts[f"expert_{e}"] = AttentionExpert(*(weights[w][e] for w in ("wq", "wk", "wv", "wo")), causal)
    sizes = lengths or [n] * batch
    residual = options.get("residual", True)
    wanted, members = np.zeros((batch, n, m)), {}
    figures = {field: [] for field in ("balance_loss", "z_loss", "capacity", "dropped", "importance", "counts")}
    for b, size in enumerate(sizes):
        own = tensor(x[b : b + 1, :size])
        capacity = options.get("expert_capacity") or math.ceil(options["capacity_factor"] * size / experts)
        layer.router.expert_capacity = capacity
        kept, gates, logits = layer.router(own)
        for _, token, e in kept.nonzero().tolist():
            members[b, e, token] = float(gates[0, token, 0])
        wanted[b, :size] = (layer(own) + (own if residual else 0))[0].numpy()
        p = logits.softmax(-1)
        figures["balance_loss"].append(float(theirs.load_balancing_loss_func(p, p.argmax(-1))))
        figures["z_loss"].append(float(theirs.router_z_loss_func(logits)))
        figures["capacity"].append(capacity)
        figures["dropped"].append(size - int(kept.sum()))
        figures["importance"].append(p[0].mean(0).numpy())
        figures["counts"].append(np.bincount(p[0].argmax(-1), minlength=experts))
    tensors = {"query": heads_of(padded(x, sizes), heads)} | weights_in(weights | {"wr": wr} | ({"br": br} if bias else {}))
    if lengths:
        tensors |= {"query_lengths": np.array(lengths), "key_lengths": np.array(lengths)}
    got = attend("switch-attention", tensors, options=options | {"num_experts": experts, "expert_heads": he, "expert_dim": de,
                 "expert_value_dim": ve, "causal": causal, "router_bias": bias, "return_routing": True})
    name = f"SwitchTransformersSparseMLP, {batch}x{n} tokens of {m}, {experts} experts of {he}x{de}, {options}{', causal' if causal else ''}" \
           f"{', bias' if bias else ''}{f', lengths {lengths}' if lengths else ''}, {sum(figures['dropped'])} dropped"
    for side in ("query", "key"):
        check_routing(name, got, side, members)
        check_figures(name, got, side, figures)
    report(f"{name}: output", distance(tokens_of(got["output"]), wanted))


# ---- moe-attention: transformers ----


def router_of(peer, wr, top_k):
    """A function of tokens [n,M] to logits, experts [n,k] and gates [n,k]; our options."""
    m, experts = wr.shape
    config = SimpleNamespace(hidden_size=m, num_local_experts=experts, num_experts=experts, num_experts_per_tok=top_k, norm_topk_prob=False,
                             routed_scaling_factor=1.0, n_group=1, topk_group=1)
    if peer == "Mixtral":
        layer, options = model("mixtral").MixtralTopKRouter(config), {}
    elif peer == "Qwen3-MoE":
        layer, options = model("qwen3_moe").Qwen3MoeTopKRouter(config), {"gate_norm": "none"}
    elif peer == "Llama 4":
        layer, options = model("llama4").Llama4Router(config), {"gate": "sigmoid", "gate_norm": "none"}
    else:
        config.norm_topk_prob = True
        layer, options = model("deepseek_v3").DeepseekV3TopkRouter(config), {"gate": "sigmoid"}
    layer.weight = parameter(wr.T)

    def route(x):
        first, second, *third = layer(x)
        if peer == "Llama 4":  # gates of all experts, 0 where not chosen
            chosen = (first > 0).nonzero()[:, 1].view(-1, top_k)
            return second, chosen, first.gather(1, chosen)
        return first, third[0], second

    return route, options


def routers(peer, batch, heads, kv_heads, nq, nk, width, experts, top_k, lengths):
    mq, mk = heads * width, kv_heads * width
    sides = {"query": (normal(batch, nq, mq), normal(mq, experts, scale=1.5 * mq**-0.5), [nq] * batch)}
    sides["key"] = (normal(batch, nk, mk), normal(mk, experts, scale=1.5 * mk**-0.5), [nk] * batch)
    if lengths:
        sides = {side: (*sides[side][:2], own) for side, own in lengths.items()}
    tensors = {side: heads_of(padded(x, sizes), heads if side == "query" else kv_heads) for side, (x, _, sizes) in sides.items()}
    tensors |= {f"{side}_lengths": np.array(sizes) for side, (_, _, sizes) in sides.items()}
    tensors |= {"weight.wr": sides["query"][1], "weight.wr_k": sides["key"][1]}
    name = f"router of {peer}, {batch}x{nq}x{nk} tokens of {mq} and {mk}, {top_k} of {experts} experts{f', lengths {lengths}' if lengths else ''}"
    got = None
    for side, (x, wr, sizes) in sides.items():
        route, options = router_of(peer, wr, top_k)
        got = got or attend("moe-attention", tensors, options=options | {"num_experts": experts, "top_k": top_k, "return_routing": True})
        members, balance, z_loss = {}, [], []
        for b, size in enumerate(sizes):
            logits, chosen, gates = route(tensor(x[b, :size]))
            for token in range(size):
                for e, gate in zip(chosen[token].tolist(), gates[token].tolist(), strict=True):
                    members[b, e, token] = gate
            # Theirs does not divide the counts by k.
            balance.append(float(model("mixtral").load_balancing_loss_func((logits.double(),), experts, top_k)) / top_k)
            z_loss.append(float(model("switch_transformers").router_z_loss_func(logits[None])))
        check_routing(name, got, side, members)
        check_figures(name, got, side, {"balance_loss": balance, "z_loss": z_loss})


def jetmoe(batch, heads, n, experts, top_k, he, de, width, theta, lengths):
    theirs, m = model("jetmoe"), heads * width
    config = transformers.JetMoeConfig(hidden_size=m, num_local_experts=experts, num_experts_per_tok=top_k, kv_channels=de, num_key_value_heads=he,
                                       rope_parameters={"rope_type": "default", "rope_theta": theta}, attn_implementation="sdpa")
    layer, rotary = theirs.JetMoeAttention(config, 0).double().eval(), theirs.JetMoeRotaryEmbedding(config)
    x, wr = normal(batch, n, m), normal(m, experts, scale=1.5 * m**-0.5)
    weights = experts_weights(experts, he, m, m, m, de, de, m, shared=True)
    side_by_side = lambda w: w.transpose(0, 2, 1, 3).reshape(w.shape[0], w.shape[2], -1)  # noqa: E731 [E,he,M,de] to [E,M,he*de]
    layer.experts.router.layer.weight = parameter(wr.T)
    layer.experts.input_linear.weight = parameter(side_by_side(weights["wq"]).transpose(0, 2, 1))
    layer.experts.output_linear.weight = parameter(weights["wo"].reshape(experts, he * de, m).transpose(0, 2, 1))
    layer.experts.bias = parameter(np.zeros(m))
    layer.kv_proj.weight = parameter(np.concatenate([side_by_side(weights[w])[0].T for w in ("wk", "wv")]))
    sizes, wanted, members = lengths or [n] * batch, np.zeros((batch, n, m)), {}
    for b, size in enumerate(sizes):
        own = tensor(x[b : b + 1, :size])
        mask = torch.zeros(1, 1, size, size, dtype=torch.float64).masked_fill(~torch.ones(size, size, dtype=torch.bool).tril(), -math.inf)
        wanted[b, :size] = layer(own, mask, rotary(own, torch.arange(size)[None]))[0].numpy()[0]
        _, tokens, gates, counts, _ = layer.experts.router(own[0])
        for token, gate, e in zip(tokens.tolist(), gates.tolist(), np.repeat(np.arange(experts), counts).tolist(), strict=True):
            members[b, e, token] = gate
    tensors = {"query": heads_of(padded(x, sizes), heads)} | weights_in(weights | {"wr": wr})
    tensors |= {"query_lengths": np.array(sizes), "key_lengths": np.array(sizes)} if lengths else {}
    got = attend("moe-attention", tensors, "--causal", options={"num_experts": experts, "top_k": top_k, "scope": "global", "expert_heads": he,
                 "expert_dim": de, "expert_value_dim": de, "rope": "half", "rope_base": theta, "return_routing": True})
    name = f"JetMoeAttention, {batch}x{n} tokens of {m}, {top_k} of {experts} experts of {he}x{de}, theta {theta:g}" \
           f"{f', lengths {lengths}' if lengths else ''}"
    check_routing(name, got, "query", members)
    report(f"{name}: output", distance(tokens_of(got["output"]), wanted))


# ---- soft-moe-attention: soft_moe_pytorch ----


class SlotExperts(torch.nn.Module):
    """Attention among the slots of each expert, [B,E,s,M] to [B,E,s,M]."""

    def __init__(self, weights):
        super().__init__()
        self.weights = [tensor(weights[name]) for name in ("wq", "wk", "wv", "wo")]

    def forward(self, slots):
        q, k, v = (torch.einsum("besm,ehmf->behsf", slots, w) for w in self.weights[:3])
        return torch.einsum("behsf,ehfm->besm", torch.nn.functional.scaled_dot_product_attention(q, k, v), self.weights[3])


class SlotNames(torch.nn.Module):
    """An identity matrix in place of the slots' results, so that the layer returns its combine weights."""

    def forward(self, slots):
        b, e, s, _ = slots.shape
        return torch.eye(e * s, dtype=torch.float64).view(1, e, s, e * s).expand(b, -1, -1, -1)


def soft_layer(batch, heads, width, n, experts, slots, he, de, ve, normalize, lengths):
    from soft_moe_pytorch import SoftMoE

    m = heads * width
    layer = SoftMoE(dim=m, num_experts=experts, num_slots=slots).double().eval()
    layer.slot_embeds = parameter(normal(experts, slots, m))
    x, weights, scale = normal(batch, n, m), experts_weights(experts, he, m, m, m, de, ve, m), 3.5
    # Theirs mixes the tokens that it normalised, ours those of the input: so the input is tokens of the length that they get.
    length = 1.0 if normalize else 1.7
    x = (length * x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
    layer.norm.gamma = parameter(np.full(m, length * m**-0.5))
    layer.slot_norm.gamma = parameter(np.full(m, scale * m**-0.5) if normalize else normal(m))
    phi = layer.slot_embeds if normalize else layer.slot_norm(layer.slot_embeds)
    sizes = lengths or [n] * batch
    mask = torch.arange(n)[None] < torch.tensor(sizes)[:, None]
    layer.experts = SlotNames()
    combine = layer(tensor(x), mask=mask).numpy()
    layer.experts = SlotExperts(weights)
    wanted = (layer(tensor(x), mask=mask) * mask[..., None]).numpy()
    tensors = {"query": heads_of(padded(x, sizes), heads)} | weights_in(weights)
    tensors |= {"weight.phi": phi.numpy().transpose(2, 0, 1).astype(np.float32)}
    tensors |= {"weight.router_scale": np.array([scale], np.float32)} if normalize else {}
    tensors |= {"query_lengths": np.array(sizes), "key_lengths": np.array(sizes)} if lengths else {}
    got = attend("soft-moe-attention", tensors, options={"num_experts": experts, "slots_per_expert": slots, "expert_heads": he, "expert_dim": de,
                 "expert_value_dim": ve, "normalize_router": normalize, "return_routing": True})
    name = f"SoftMoE, {batch}x{n} tokens of {m}, {experts} experts of {he}x{de}, {slots} slots{', normalised' if normalize else ''}" \
           f"{f', lengths {lengths}' if lengths else ''}"
    own = [combine[b, :size] for b, size in enumerate(sizes)]
    importance = [c.reshape(len(c), experts, slots).sum(-1).mean(0) for c in own]
    check_figures(name, got, "query", {"importance": importance, "entropy": [-(c * np.log(c)).sum(-1).mean() for c in own]})
    report(f"{name}: output", distance(tokens_of(got["output"]), wanted))


# ---- dense float64 ----


def rotated(x, positions, options):
    """Rotary positions by complex numbers; x [he,L,de]."""
    layout, turned = options.get("rope", "none"), options.get("rope_dim") or x.shape[-1]
    if layout == "none":
        return x
    angles = positions[:, None] * options.get("rope_base", 10000.0) ** (-torch.arange(0, turned, 2, dtype=torch.float64) / turned)
    head, rest = x[..., :turned], x[..., turned:]
    pairs = head.unflatten(-1, (-1, 2)) if layout == "interleaved" else head.unflatten(-1, (2, -1)).transpose(-1, -2)
    turns = torch.view_as_real(torch.complex(pairs[..., 0], pairs[..., 1]) * torch.polar(torch.ones_like(angles), angles))
    turns = turns if layout == "interleaved" else turns.transpose(-1, -2)
    return torch.cat([turns.flatten(-2), rest], -1)


def every_expert(xq, xk, xv, weights, options, holds, extra):
    """F [E,Lq,Mo] of all experts on all queries; holds [Lk,E]: the keys of each; extra [Lq,Lk]: mask and bias."""
    q, k, v = (x @ weights[name] for x, name in ((xq, "wq"), (xk, "wk"), (xv, "wv")))  # [E or 1,he,L,de]
    offset = len(xk) - len(xq)
    at, keys = torch.arange(len(xq)) + offset, torch.arange(len(xk))
    q = torch.stack([rotated(part, at, options) for part in q])
    k = torch.stack([rotated(part, keys, options) for part in k])
    scores = q @ k.transpose(-1, -2) * (options.get("scale") or q.shape[-1] ** -0.5)
    cap = options.get("softcap", 0)
    scores = (cap * torch.tanh(scores / cap) if cap else scores) + extra
    apart = keys[None] - at[:, None]
    hidden = torch.zeros(apart.shape, dtype=torch.bool)
    if options.get("causal"):
        hidden |= apart > 0
    if "window_left" in options:
        hidden |= apart < -options["window_left"]
    scores = scores.masked_fill(hidden | ~holds.T[:, None, None, :], -math.inf)
    p = torch.nan_to_num(torch.softmax(scores, -1), nan=0.0) if len(xk) else scores
    return (p @ v @ weights["wo"]).sum(1)


def rule_moe(z, options):
    k = options["top_k"]
    every = z.sigmoid() if options.get("gate") == "sigmoid" else z.softmax(-1)
    chosen = torch.zeros_like(z, dtype=torch.bool).scatter(1, z.topk(k, -1).indices, True)
    gates = every * chosen
    if options.get("gate_norm", "topk") == "topk":
        gates = gates / gates.sum(-1, keepdim=True)
    return chosen, chosen, gates, 0


def rule_switch(z, options):
    n, experts = z.shape
    room = options.get("expert_capacity") or max(options.get("min_capacity", 1), math.ceil(options["capacity_factor"] * n / experts))
    p = z.softmax(-1)
    chosen = torch.nn.functional.one_hot(z.argmax(-1), experts).bool()
    order = p.amax(-1).argsort(descending=True) if options.get("priority") == "probability" else torch.arange(n)
    kept = torch.zeros_like(chosen)
    kept[order] = chosen[order] & (chosen[order].cumsum(0) <= room)
    return chosen, kept, p * chosen, room


def rule_expert_choice(z, options):
    n, experts = z.shape
    room = min(n, options.get("expert_capacity") or max(options.get("min_tokens", 1), math.ceil(options["capacity_factor"] * n / experts)))
    p = z.sigmoid() if options.get("gate") == "sigmoid" else z.softmax(-1)
    ranks = p.clone()
    if options.get("include_first"):
        ranks[:1] = 2
    chosen = torch.zeros_like(z, dtype=torch.bool).scatter(0, ranks.topk(room, 0).indices, True)
    return chosen, chosen, p * chosen, room


RULES = {"moe-attention": rule_moe, "switch-attention": rule_switch, "expert-choice-attention": rule_expert_choice}


def figures_of(z, chosen, kept, gates, room):
    n, experts = z.shape
    if n == 0:
        zero = np.zeros(experts)
        return {"counts": zero, "load": zero, "importance": zero} | dict.fromkeys(
            ("balance_loss", "cv2", "z_loss", "entropy", "max_load", "dropped_fraction", "capacity", "dropped", "unassigned", "empty_experts"), 0.0)
    p, counts = z.softmax(-1), chosen.double().sum(0)
    load, columns = counts / counts.sum(), gates.sum(0)
    dropped = float((chosen & ~kept).sum())
    return {
        "counts": counts.numpy(),
        "load": load.numpy(),
        "importance": p.mean(0).numpy(),
        "balance_loss": float(experts * load @ p.mean(0)),
        "cv2": float(columns.var() / columns.mean() ** 2),
        "z_loss": float((z.logsumexp(-1) ** 2).mean()),
        "entropy": float(torch.distributions.Categorical(logits=z).entropy().mean()),
        "max_load": float(counts.max() / counts.mean()),
        "dropped_fraction": dropped / float(counts.sum()),
        "capacity": room,
        "dropped": dropped,
        "unassigned": float((~chosen.any(-1)).sum()),
        "empty_experts": float((counts == 0).sum()),
    }


def drawn(experts, cross):
    """A random shape: tensors by tokens, lengths, weights of experts and options of all mechanisms."""
    batch, heads, width = between(1, 3), either(1, 2, 4), between(4, 10)
    kv_heads = either(*(h for h in (1, 2, 4) if heads % h == 0)) if cross else heads
    value_width = between(3, 9) if cross else width
    nq = between(6, 45)
    nk = between(6, 60) if cross else nq
    shape = SimpleNamespace(batch=batch, heads=heads, kv_heads=kv_heads, nq=nq, nk=nk, experts=experts, cross=cross, lengths=None)
    shape.q, shape.mo = normal(batch, nq, heads * width), heads * value_width
    shape.k, shape.v = (normal(batch, nk, kv_heads * width), normal(batch, nk, kv_heads * value_width)) if cross else (shape.q, shape.q)
    if rng.random() < 0.5:
        own = [between(0 if b else 1, nq) for b in range(batch)]
        shape.lengths = (own, [between(0 if b else 1, nk) for b in range(batch)] if cross else own)
    he, de, ve = between(1, 3), 2 * between(2, 5), between(3, 9)
    shape.options = {"num_experts": experts, "expert_heads": he, "expert_dim": de, "expert_value_dim": ve}
    shape.widths = (experts, he, shape.q.shape[-1], shape.k.shape[-1], shape.v.shape[-1], de, ve, shape.mo)
    return shape


def call(shape, mechanism, tensors, weights, options):
    sizes = shape.lengths or ([shape.nq] * shape.batch, [shape.nk] * shape.batch)
    tensors = tensors | weights_in(weights) | {"query": heads_of(padded(shape.q, sizes[0]), shape.heads)}
    if shape.cross:
        tensors |= {name: heads_of(padded(x, sizes[1]), shape.kv_heads) for name, x in (("key", shape.k), ("value", shape.v))}
    if shape.lengths:
        tensors |= {"query_lengths": np.array(sizes[0]), "key_lengths": np.array(sizes[1])}
    return attend(mechanism, tensors, options=options), sizes


def name_of(shape, mechanism, options):
    ours = ", ".join(f"{name} {value}" for name, value in options.items() if name not in ("num_experts", "return_routing"))
    return f"dense {mechanism}, {shape.batch}x{shape.heads}/{shape.kv_heads} heads, {shape.nq}x{shape.nk}, {shape.experts} experts, {ours}" \
           f"{f', lengths {shape.lengths}' if shape.lengths else ''}"


def dense(mechanism, experts, cross, chosen_options, shared=False):
    shape = drawn(experts, cross)
    options = shape.options | chosen_options | {"return_routing": True}
    weights = experts_weights(*shape.widths, shared=shared)
    routers = {"wr": normal(shape.q.shape[-1], experts, scale=1.5 * shape.q.shape[-1] ** -0.5)}
    scope = options.get("scope", "routed")
    if cross and scope == "routed":
        routers["wr_k"] = normal(shape.k.shape[-1], experts, scale=1.5 * shape.k.shape[-1] ** -0.5)
    if options.get("router_bias"):
        routers["br"] = normal(experts, scale=0.5)
    if options.get("residual", mechanism == "switch-attention") and shape.mo != shape.q.shape[-1]:
        options["residual"] = False
    extra, tensors = np.zeros((shape.batch, shape.nq, shape.nk)), {}
    if rng.random() < 0.4:
        tensors["bias"] = normal(shape.batch, 1, shape.nq, shape.nk)
        extra = extra + tensors["bias"][:, 0]
    if rng.random() < 0.4:
        tensors["mask"] = rng.random((shape.nq, shape.nk)) < 0.7
        extra = np.where(tensors["mask"], extra, -np.inf)
    got, sizes = call(shape, mechanism, tensors, weights | routers, options)
    rule, w = RULES[mechanism], {name: tensor(value) for name, value in (weights | routers).items()}
    wanted = np.zeros((shape.batch, shape.nq, shape.mo))
    members, figures = {"query": {}, "key": {}}, {"query": [], "key": []}
    for b, (lq, lk) in enumerate(zip(*sizes, strict=True)):
        xq, xk, xv = tensor(shape.q[b, :lq]), tensor(shape.k[b, :lk]), tensor(shape.v[b, :lk])
        routed = {}
        for side, x, router in (("query", xq, "wr"), ("key", xk, "wr_k" if "wr_k" in w else "wr")):
            if side == "key" and scope == "global":
                continue
            z = x @ w[router] + w.get("br", 0)
            chosen, kept, gates, room = rule(z, options)
            routed[side] = (kept, gates)
            figures[side].append(figures_of(z, chosen, kept, gates, room))
            for token, e in kept.nonzero().tolist():
                members[side][b, e, token] = float(gates[token, e])
        holds = routed["key"][0] if "key" in routed else torch.ones(lk, experts, dtype=torch.bool)
        f = every_expert(xq, xk, xv, w, options, holds, tensor(extra[b, :lq, :lk]))
        kept, gates = routed["query"]
        y = torch.einsum("ie,eim->im", gates * kept, f)
        wanted[b, :lq] = (y + xq if options.get("residual", mechanism == "switch-attention") else y).numpy()
    name = name_of(shape, mechanism, options) + "".join(f", {extra}" for extra in ("bias", "mask") if extra in tensors)
    for side, rows in figures.items():
        if rows:
            check_routing(name, got, side, members[side])
            check_figures(name, got, side, {field: [row[field] for row in rows] for field in rows[0]})
        else:
            report(f"{name}: no routing of keys", float(any(output.startswith("routing.key") for output in got)), 0)
    report(f"{name}: output", distance(tokens_of(got["output"]), wanted))


def dense_soft(experts, cross, chosen_options):
    """The paper's formula with matrices for dispatch and combine weights."""
    shape = drawn(experts, cross)
    options = shape.options | chosen_options | {"return_routing": True}
    weights = experts_weights(*shape.widths)
    widths = {"phi": shape.q.shape[-1], "phi_k": shape.k.shape[-1]}
    slots = {"phi": between(1, 6)}
    slots["phi_k"] = between(1, 6) if cross else slots["phi"]
    phis = {name: normal(widths[name], experts, slots[name]) for name in (("phi", "phi_k") if cross else ("phi",))}
    scale = float(rng.uniform(0.5, 6))
    if shape.mo != widths["phi"]:
        options["residual"] = False
    normalized = options.get("normalize_router", True)
    norm = (lambda x, axis: x / torch.sqrt((x * x).sum(axis, keepdim=True) + 1e-6)) if normalized else (lambda x, axis: x)
    got, sizes = call(shape, "soft-moe-attention", {"weight.router_scale": np.array([scale], np.float32)}, weights | phis, options)
    w = {name: tensor(value) for name, value in (weights | phis).items()}
    w.setdefault("phi_k", w["phi"])
    wanted, importance, entropy = np.zeros((shape.batch, shape.nq, shape.mo)), [], []
    for b, (lq, lk) in enumerate(zip(*sizes, strict=True)):
        xq, xk, xv = tensor(shape.q[b, :lq]), tensor(shape.k[b, :lk]), tensor(shape.v[b, :lk])
        z, zk = (float(np.float32(scale)) * torch.einsum("nm,mes->nes", norm(x, -1), norm(phi, 0)) for x, phi in ((xq, w["phi"]), (xk, w["phi_k"])))
        dispatch, dispatch_keys = z.softmax(0), zk.softmax(0)
        combine = z.flatten(1).softmax(-1)
        u, uk, uv = (torch.einsum("nes,nm->esm", weight, x) for weight, x in ((dispatch, xq), (dispatch_keys, xk), (dispatch_keys, xv)))
        q, k, v = (torch.einsum("esm,ehmf->ehsf", x, w[name]) for x, name in ((u, "wq"), (uk, "wk"), (uv, "wv")))
        scores = q @ k.transpose(-1, -2) * (options.get("scale") or q.shape[-1] ** -0.5)
        cap = options.get("softcap", 0)
        p = (cap * torch.tanh(scores / cap) if cap else scores).softmax(-1)
        r = (p @ v @ w["wo"]).sum(1).flatten(0, 1) * (lk > 0)
        y = combine @ r
        wanted[b, :lq] = (y + xq if options.get("residual") else y).numpy()
        importance.append(combine.view(lq, experts, -1).sum(-1).mean(0).numpy() if lq else np.zeros(experts))
        entropy.append(float(torch.special.entr(combine).sum(-1).mean()) if lq else 0.0)
    name = name_of(shape, "soft-moe-attention", options) + f", slots {slots}, scale of the router {scale:.2f}"
    check_figures(name, got, "query", {"importance": importance, "entropy": entropy})
    report(f"{name}: output", distance(tokens_of(got["output"]), wanted))


# ---- the comparisons ----


def of_transformers():
    for batch, heads, width, n, experts, he, de, ve, options, causal, bias, lengths in (
        (1, 2, 8, 24, 4, 1, 8, 8, {"capacity_factor": 1.25}, False, False, None),
        (2, 4, 6, 40, 8, 2, 5, 7, {"capacity_factor": 1.0}, True, False, None),
        (3, 1, 12, 33, 2, 1, 12, 4, {"capacity_factor": 0.7, "residual": False}, False, True, [33, 20, 5]),
        (2, 2, 16, 150, 16, 2, 8, 8, {"expert_capacity": 6}, True, True, [150, 77]),
        (1, 3, 5, 64, 3, 3, 4, 6, {"expert_capacity": 1}, False, False, None),
        (2, 2, 4, 31, 5, 1, 6, 6, {"capacity_factor": 5.0}, True, False, [9, 31]),
    ):
        attempt(switch_block, batch, heads, width, n, experts, he, de, ve, options, causal, bias, lengths)
    for peer in ("Mixtral", "Qwen3-MoE", "Llama 4", "DeepSeek-V3"):
        attempt(routers, peer, 2, 4, 2, 40, 27, 8, 8, 2, None)
        attempt(routers, peer, 3, 2, 2, 19, 50, 12, 16, 4, {"query": [19, 3, 11], "key": [50, 50, 1]})
        attempt(routers, peer, 1, 1, 1, 130, 90, 20, 2, 1, None)
    attempt(jetmoe, 1, 2, 30, 4, 2, 2, 8, 12, 10000.0, None)
    attempt(jetmoe, 3, 4, 45, 8, 3, 1, 6, 8, 500.0, [45, 17, 2])
    attempt(jetmoe, 2, 1, 70, 16, 1, 3, 10, 32, 10000.0, None)
    attempt(jetmoe, 2, 2, 21, 2, 2, 2, 4, 5, 100.0, [20, 21])


def of_formulas():
    for experts, cross, options in (
        (2, False, {"top_k": 1}),
        (8, False, {"top_k": 2, "causal": True}),
        (16, False, {"top_k": 5, "causal": True, "rope": "half"}),
        (6, True, {"top_k": 3, "causal": True, "gate": "sigmoid"}),
        (4, True, {"top_k": 2, "gate_norm": "none", "router_bias": True}),
        (3, True, {"top_k": 3, "gate": "sigmoid", "gate_norm": "none", "window_left": 4}),
        (12, False, {"top_k": 2, "residual": True, "rope": "interleaved", "rope_dim": 4, "rope_base": 50.0}),
        (5, True, {"top_k": 2, "softcap": 0.8, "scale": 0.9}),
    ):
        attempt(dense, "moe-attention", experts, cross, options)
        attempt(dense, "moe-attention", experts, cross, options | {"scope": "global"}, True)
        attempt(dense, "moe-attention", experts, cross, options | {"scope": "global", "share_kv": False})
        attempt(dense, "moe-attention", experts, cross, options | {"share_kv": True}, True)
    for experts, cross, options in (
        (2, False, {"capacity_factor": 1.25}),
        (8, False, {"capacity_factor": 1.0, "causal": True, "rope": "half"}),
        (16, True, {"capacity_factor": 0.9, "min_capacity": 3, "causal": True}),
        (4, True, {"expert_capacity": 4, "router_bias": True}),
        (5, True, {"capacity_factor": 0.8, "window_left": 6, "softcap": 0.7}),
        (3, False, {"capacity_factor": 0.6, "residual": False}),
    ):
        for priority in ("position", "probability"):
            attempt(dense, "switch-attention", experts, cross, options | {"priority": priority})
    for experts, cross, options in (
        (2, False, {"capacity_factor": 1.0}),
        (8, False, {"capacity_factor": 2.0, "causal": True, "allow_non_causal_routing": True, "rope": "half"}),
        (16, True, {"capacity_factor": 2.0, "min_tokens": 4}),
        (6, True, {"expert_capacity": 5, "causal": True, "allow_non_causal_routing": True}),
        (4, True, {"capacity_factor": 0.5, "include_first": True, "window_left": 9}),
        (3, False, {"expert_capacity": 1000, "residual": True}),
        (10, True, {"capacity_factor": 1.3, "router_bias": True, "softcap": 0.6}),
    ):
        for gate in ("softmax", "sigmoid"):
            attempt(dense, "expert-choice-attention", experts, cross, options | {"gate": gate})
    for experts, cross, options in (
        (2, False, {}),
        (8, False, {"residual": True}),
        (16, True, {"softcap": 0.5}),
        (5, True, {"scale": 1.1}),
        (3, True, {}),
        (4, False, {}),
    ):
        for normalize in (True, False):
            attempt(dense_soft, experts, cross, options | {"normalize_router": normalize})


def main():
    missing = {"moe-attention", "switch-attention", "expert-choice-attention", "soft-moe-attention"} - listed()
    if missing:
        print(f"skipped: the program has no {', '.join(sorted(missing))}")
        return finish()
    with torch.no_grad():
        of_transformers()
        if importlib.util.find_spec("soft_moe_pytorch") is None:
            print("skipped: the layer of soft_moe_pytorch, which is not installed; pip install soft-moe-pytorch==0.1.9")
        else:
            attempt(soft_layer, 1, 2, 8, 24, 4, 6, 1, 8, 8, True, None)
            attempt(soft_layer, 2, 4, 6, 37, 8, 3, 2, 5, 7, False, None)
            attempt(soft_layer, 3, 1, 12, 20, 2, 9, 3, 4, 4, True, [20, 7, 1])
            attempt(soft_layer, 2, 2, 16, 90, 16, 1, 2, 8, 6, False, [41, 90])
            attempt(soft_layer, 1, 3, 5, 50, 5, 10, 1, 6, 6, True, None)
        of_formulas()
    return finish()


if __name__ == "__main__":
    sys.exit(main())
