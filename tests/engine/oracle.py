"""DeepSeek's decoder once more, in float64, written from the papers and read straight from `config.json`.

The judge of the numeric traps: no batching, no cache, no code of the engine. Heads, tokens and experts are loops.
Sources: DeepSeek-V2 (arXiv 2405.04434) section 2.1, DeepSeek-V3 (arXiv 2412.19437) section 2.1, YaRN (arXiv 2309.00071)
section 3, and the released `inference/model.py`. N positions; everything is `[N, size]`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Config = dict[str, Any]
LATENT_EPS = 1e-6


@dataclass
class Trace:
    """What a run leaves behind: hidden states `[N, X]` after the last norm, logits `[N, V]`, per layer the cached rows,
    per layer and token the routing."""

    hidden: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    cached: list[Tensor] = field(default_factory=list)
    routed: list[list[dict[int, float]]] = field(default_factory=list)


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def yarn(c: Config) -> dict[str, float] | None:
    scaling = c.get("rope_scaling")
    return scaling if scaling and scaling["type"] == "yarn" else None


def frequencies(c: Config) -> Tensor:
    """The angle of each pair at position 1. YaRN slows pairs that turn too seldom in the old context."""
    size, base = c["qk_rope_head_dim"], c["rope_theta"]
    plain = [base ** (-2 * i / size) for i in range(size // 2)]
    y = yarn(c)
    if y is None:
        return torch.tensor(plain, dtype=torch.float64)

    def pair_turning(times: float) -> float:
        return size * math.log(y["original_max_position_embeddings"] / (times * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_turning(y["beta_fast"])), 0)
    high = min(math.ceil(pair_turning(y["beta_slow"])), size - 1)
    ramp = [min(max((i - low) / (high - low or 0.001), 0.0), 1.0) for i in range(size // 2)]
    slowed = [f * (1 - r) + f / y["factor"] * r for f, r in zip(plain, ramp, strict=True)]
    return torch.tensor(slowed, dtype=torch.float64)


def turn(c: Config, x: Tensor) -> Tensor:
    """Rotates each pair (2i, 2i+1), seen as a complex number, by its position's angle."""
    y = yarn(c)
    length = mscale(y["factor"], y["mscale"]) / mscale(y["factor"], y["mscale_all_dim"]) if y else 1.0
    angle = torch.outer(torch.arange(len(x), dtype=torch.float64), frequencies(c))
    turned = torch.view_as_complex(x.reshape(len(x), -1, 2).contiguous()) * torch.polar(
        torch.full_like(angle, length), angle
    )
    return torch.view_as_real(turned).flatten(1)


def softmax_scale(c: Config) -> float:
    scale = (c["qk_nope_head_dim"] + c["qk_rope_head_dim"]) ** -0.5
    y = yarn(c)
    return scale * mscale(y["factor"], y["mscale_all_dim"]) ** 2 if y else scale


def attention(c: Config, w: dict[str, Tensor], x: Tensor, trace: Trace) -> Tensor:
    """V2 equations 9-19, head by head; the cache would hold `[normed latent | turned key]`."""
    nope, rope, value, rank = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"], c["kv_lora_rank"]
    if c["q_lora_rank"]:
        q = rms(x @ w["q_a_proj.weight"].T, w["q_a_layernorm.weight"], LATENT_EPS) @ w["q_b_proj.weight"].T
    else:
        q = x @ w["q_proj.weight"].T
    down = x @ w["kv_a_proj_with_mqa.weight"].T
    latent = rms(down[:, :rank], w["kv_a_layernorm.weight"], LATENT_EPS)
    key_turned = turn(c, down[:, rank:])
    trace.cached.append(torch.cat((latent, key_turned), 1))
    out = []
    for h in range(c["num_attention_heads"]):
        mine = q[:, h * (nope + rope) : (h + 1) * (nope + rope)]
        up = w["kv_b_proj.weight"][h * (nope + value) : (h + 1) * (nope + value)]
        keys, values = latent @ up[:nope].T, latent @ up[nope:].T
        scores = (mine[:, :nope] @ keys.T + turn(c, mine[:, nope:]) @ key_turned.T) * softmax_scale(c)
        future = torch.ones_like(scores).triu(1).bool()
        out.append(scores.masked_fill(future, -math.inf).softmax(-1) @ values)
    return torch.cat(out, 1) @ w["o_proj.weight"].T


def gated(x: Tensor, w: dict[str, Tensor], prefix: str = "") -> Tensor:
    gate, up, down = (w[f"{prefix}{n}_proj.weight"] for n in ("gate", "up", "down"))
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def route(c: Config, logits: list[float], bias: list[float]) -> dict[int, float]:
    """The experts of one token and their weights (V3 equations 12-16). The lowest number wins a tie."""
    if c["scoring_func"] == "sigmoid":
        scores = [1 / (1 + math.exp(-v)) for v in logits]
    else:
        total = math.fsum(math.exp(v - max(logits)) for v in logits)
        scores = [math.exp(v - max(logits)) / total for v in logits]
    choice = [s + b for s, b in zip(scores, bias, strict=True)]
    allowed = set(range(len(scores)))
    if c["topk_method"] != "greedy":
        size = len(scores) // c["n_group"]
        best = 2 if c["topk_method"] == "noaux_tc" else 1
        groups = [range(g * size, (g + 1) * size) for g in range(c["n_group"])]
        groups.sort(key=lambda g: -math.fsum(sorted((choice[e] for e in g), reverse=True)[:best]))
        allowed = {e for g in groups[: c["topk_group"]] for e in g}
    chosen = sorted(allowed, key=lambda e: (-choice[e], e))[: c["num_experts_per_tok"]]
    total = math.fsum(scores[e] for e in chosen) + 1e-20 if c["norm_topk_prob"] else 1.0
    return {e: scores[e] / total * c["routed_scaling_factor"] for e in chosen}


def experts(c: Config, w: dict[str, Tensor], x: Tensor, trace: Trace) -> Tensor:
    """V3 equation 12: each token's experts by weight, and the shared expert."""
    bias = w.get("gate.e_score_correction_bias", torch.zeros(c["n_routed_experts"])).tolist()
    routed = [route(c, row, bias) for row in (x @ w["gate.weight"].T).tolist()]
    trace.routed.append(routed)
    rows = []
    for n, weights in enumerate(routed):
        row = gated(x[n : n + 1], w, "shared_experts.") if c["n_shared_experts"] else torch.zeros_like(x[n : n + 1])
        for e, weight in weights.items():
            row = row + weight * gated(x[n : n + 1], w, f"experts.{e}.")
        rows.append(row)
    return torch.cat(rows)


def run(c: Config, weights: dict[str, Tensor], ids: list[int]) -> Trace:
    """The whole decoder over one sequence. Prediction layers, past the last layer, play no part."""
    w, trace, eps = {n: t.double() for n, t in weights.items()}, Trace(), c["rms_norm_eps"]
    x = w["model.embed_tokens.weight"][ids]
    for i in range(c["num_hidden_layers"]):
        x = layer(c, w, i, x, trace)
    head = w["model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"]
    trace.hidden = rms(x, w["model.norm.weight"], eps)
    trace.logits = trace.hidden @ head.T
    return trace


def layer(c: Config, w: dict[str, Tensor], i: int, x: Tensor, trace: Trace) -> Tensor:
    p, eps = f"model.layers.{i}.", c["rms_norm_eps"]
    attn = {n.removeprefix(p + "self_attn."): t for n, t in w.items() if n.startswith(p + "self_attn.")}
    mlp = {n.removeprefix(p + "mlp."): t for n, t in w.items() if n.startswith(p + "mlp.")}
    x = x + attention(c, attn, rms(x, w[p + "input_layernorm.weight"], eps), trace)
    y = rms(x, w[p + "post_attention_layernorm.weight"], eps)
    sparse = i >= c["first_k_dense_replace"] and i % c["moe_layer_freq"] == 0
    return x + (experts(c, mlp, y, trace) if sparse else gated(y, mlp))


def predict(c: Config, weights: dict[str, Tensor], hidden: Tensor, next_ids: list[int]) -> tuple[Tensor, Tensor]:
    """The prediction layer over one sequence: rows of the last norm's hidden states and the tokens that follow them, to
    its own hidden states after its norm and the logits of the tokens after those (V3 equations 21 to 23).

    Position 0 has no embedding, as vLLM runs it. For a second guess the row after the last is the layer's own state.
    """
    w, trace, eps = {n: t.double() for n, t in weights.items()}, Trace(), c["rms_norm_eps"]
    p = f"model.layers.{c['num_hidden_layers']}."
    embedded = w[p + "embed_tokens.weight"][next_ids]
    embedded[0] = 0
    halves = rms(embedded, w[p + "enorm.weight"], eps), rms(hidden, w[p + "hnorm.weight"], eps)
    x = layer(c, w, c["num_hidden_layers"], torch.cat(halves, 1) @ w[p + "eh_proj.weight"].T, trace)
    out = rms(x, w[p + "shared_head.norm.weight"], eps)
    return out, out @ w[p + "shared_head.head.weight"].T
