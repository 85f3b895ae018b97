"""A trainable DeepSeek-V3: dense causal attention, differentiable routing, parameters named as in the checkpoint.

Owns the training form of the architecture (no cache, whole sequences). Serving has its own form in `engine/models`;
a test holds the two together. Experts are kept stacked, `[expert, out, in]`, and unstacked when exported.

Shape suffixes: B batch, T time, D hidden, H heads, E experts, K experts per token, N = B*T tokens.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The architecture, in the field names of a DeepSeek-V3 `config.json`."""

    vocab_size: int = 1024
    hidden_size: int = 192
    intermediate_size: int = 512
    moe_intermediate_size: int = 128
    num_hidden_layers: int = 4
    first_k_dense_replace: int = 1
    num_attention_heads: int = 4
    q_lora_rank: int = 128
    kv_lora_rank: int = 64
    qk_nope_head_dim: int = 32
    qk_rope_head_dim: int = 16
    v_head_dim: int = 32
    n_routed_experts: int = 16
    n_shared_experts: int = 1
    num_experts_per_tok: int = 2
    n_group: int = 4
    topk_group: int = 2
    routed_scaling_factor: float = 1.5
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 1024
    num_nextn_predict_layers: int = 1

    def to_dict(self) -> dict[str, float | int]:
        return asdict(self)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def linear(rows_in: int, rows_out: int) -> nn.Linear:
    layer = nn.Linear(rows_in, rows_out, bias=False)
    nn.init.normal_(layer.weight, std=0.7 / math.sqrt(rows_in))
    return layer


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates interleaved pairs (2i, 2i+1) of the last dimension; cos and sin are `[T, size/2]`."""
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Attention(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        head = s.qk_nope_head_dim + s.qk_rope_head_dim
        self.q_a_proj = linear(s.hidden_size, s.q_lora_rank)
        self.q_a_layernorm = RMSNorm(s.q_lora_rank, s.rms_norm_eps)
        self.q_b_proj = linear(s.q_lora_rank, s.num_attention_heads * head)
        self.kv_a_proj_with_mqa = linear(s.hidden_size, s.kv_lora_rank + s.qk_rope_head_dim)
        self.kv_a_layernorm = RMSNorm(s.kv_lora_rank, s.rms_norm_eps)
        self.kv_b_proj = linear(s.kv_lora_rank, s.num_attention_heads * (s.qk_nope_head_dim + s.v_head_dim))
        self.o_proj = linear(s.num_attention_heads * s.v_head_dim, s.hidden_size)

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        s = self.s
        batch, time, _ = x_BTD.shape

        def heads(y: Tensor) -> Tensor:
            return y.view(batch, time, s.num_attention_heads, -1).transpose(1, 2)

        q_nope, q_pe = heads(self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD)))).split(
            [s.qk_nope_head_dim, s.qk_rope_head_dim], -1
        )
        latent, k_pe = self.kv_a_proj_with_mqa(x_BTD).split([s.kv_lora_rank, s.qk_rope_head_dim], -1)
        k_nope, v = heads(self.kv_b_proj(self.kv_a_layernorm(latent))).split([s.qk_nope_head_dim, s.v_head_dim], -1)
        k_pe = rotate(k_pe[:, None], cos, sin).expand(-1, s.num_attention_heads, -1, -1)
        q, k = torch.cat((q_nope, rotate(q_pe, cos, sin)), -1), torch.cat((k_nope, k_pe), -1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, time, -1))


class MLP(nn.Module):
    def __init__(self, hidden: int, inner: int):
        super().__init__()
        self.gate_proj, self.up_proj = linear(hidden, inner), linear(hidden, inner)
        self.down_proj = linear(inner, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    def __init__(self, s: Shape):
        super().__init__()
        experts, hidden, inner = s.n_routed_experts, s.hidden_size, s.moe_intermediate_size
        self.gate_proj = nn.Parameter(torch.randn(experts, inner, hidden) * 0.7 / math.sqrt(hidden))
        self.up_proj = nn.Parameter(torch.randn(experts, inner, hidden) * 0.7 / math.sqrt(hidden))
        self.down_proj = nn.Parameter(torch.randn(experts, hidden, inner) * 0.7 / math.sqrt(inner))

    def forward(self, x_ND: Tensor, chosen_NK: Tensor, weight_NK: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted sum over each token's experts, and how many tokens each expert saw."""
        flat = chosen_NK.flatten()
        by_expert = flat.argsort(stable=True)
        load_E = flat.bincount(minlength=len(self.gate_proj))
        token = by_expert // chosen_NK.shape[1]
        gates, ups, downs = self.gate_proj.unbind(), self.up_proj.unbind(), self.down_proj.unbind()
        parts = [
            F.linear(F.silu(F.linear(x, gates[e])) * F.linear(x, ups[e]), downs[e])
            for e, x in enumerate(x_ND[token].split(load_E.tolist()))
        ]
        scaled = torch.cat(parts) * weight_NK.flatten()[by_expert, None]
        return torch.zeros_like(x_ND).index_add(0, token, scaled), load_E


class Gate(nn.Module):
    e_score_correction_bias: Tensor

    def __init__(self, s: Shape):
        super().__init__()
        self.s = s
        self.weight = nn.Parameter(torch.randn(s.n_routed_experts, s.hidden_size) / math.sqrt(s.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(s.n_routed_experts))

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Group-limited sigmoid routing: chosen by the biased score, weighted by the unbiased one."""
        s = self.s
        score_NE = F.linear(x_ND, self.weight).sigmoid()
        with torch.no_grad():
            biased = score_NE + self.e_score_correction_bias
            group = biased.view(len(x_ND), s.n_group, -1).topk(2, -1).values.sum(-1)
            kept = torch.zeros_like(group).scatter_(1, group.topk(s.topk_group, -1).indices, 1).bool()
            per_group = s.n_routed_experts // s.n_group
            chosen_NK = (
                biased.masked_fill(~kept.repeat_interleave(per_group, 1), -math.inf)
                .topk(s.num_experts_per_tok, -1)
                .indices
            )
        weight_NK = score_NE.gather(1, chosen_NK)
        weight_NK = weight_NK / (weight_NK.sum(-1, keepdim=True) + 1e-20) * s.routed_scaling_factor
        return chosen_NK, weight_NK


class MoE(nn.Module):
    load: Tensor

    def __init__(self, s: Shape):
        super().__init__()
        self.gate, self.experts = Gate(s), Experts(s)
        self.shared_experts = MLP(s.hidden_size, s.moe_intermediate_size * s.n_shared_experts)
        self.register_buffer("load", torch.zeros(s.n_routed_experts), persistent=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        routed, load_E = self.experts(x_ND, *self.gate(x_ND))
        if self.training:
            self.load += load_E
        return (routed + self.shared_experts(x_ND)).view_as(x_BTD)


class Layer(nn.Module):
    def __init__(self, s: Shape, index: int):
        super().__init__()
        self.input_layernorm = RMSNorm(s.hidden_size, s.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(s.hidden_size, s.rms_norm_eps)
        self.self_attn = Attention(s)
        dense = index < s.first_k_dense_replace
        self.mlp: nn.Module = MLP(s.hidden_size, s.intermediate_size) if dense else MoE(s)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Predictor(Layer):
    """The multi-token-prediction layer: from a final hidden state and the next token to the token after it."""

    def __init__(self, s: Shape):
        super().__init__(s, s.num_hidden_layers)
        self.enorm, self.hnorm = RMSNorm(s.hidden_size, s.rms_norm_eps), RMSNorm(s.hidden_size, s.rms_norm_eps)
        self.eh_proj = linear(2 * s.hidden_size, s.hidden_size)
        self.shared_head = nn.ModuleDict({"norm": RMSNorm(s.hidden_size, s.rms_norm_eps)})


class DeepseekV3(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = s = shape
        self.embed_tokens = nn.Embedding(s.vocab_size, s.hidden_size)
        nn.init.normal_(self.embed_tokens.weight, std=0.5)
        self.layers = nn.ModuleList(Layer(s, i) for i in range(s.num_hidden_layers))
        self.norm = RMSNorm(s.hidden_size, s.rms_norm_eps)
        self.lm_head = linear(s.hidden_size, s.vocab_size)
        self.predictor = Predictor(s)

    def _rope(self, time: int) -> tuple[Tensor, Tensor]:
        size = self.shape.qk_rope_head_dim
        frequency = self.shape.rope_theta ** -(torch.arange(0, size, 2).float() / size)
        angle = torch.outer(torch.arange(time).float(), frequency)
        return angle.cos(), angle.sin()

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """The final hidden states `[B, T, D]`, after the last norm."""
        x, rope = self.embed_tokens(ids_BT), self._rope(ids_BT.shape[1])
        for layer in self.layers:
            x = layer(x, *rope)
        return self.norm(x)

    def forward(self, ids_BT: Tensor) -> Tensor:
        return self.lm_head(self.hidden(ids_BT))

    def predict_second(self, hidden_BTD: Tensor, next_ids_BT: Tensor) -> Tensor:
        """Logits of the token after next, `[B, T, V]`; embedding and head are the main model's, unchanged."""
        p = self.predictor
        joined = torch.cat((p.enorm(self.embed_tokens(next_ids_BT)), p.hnorm(hidden_BTD)), -1)
        out = p(p.eh_proj(joined), *self._rope(next_ids_BT.shape[1]))
        return self.lm_head(p.shared_head["norm"](out))

    def checkpoint(self) -> dict[str, Tensor]:
        """The weights under their published names, one tensor per expert."""
        last = self.shape.num_hidden_layers
        out: dict[str, Tensor] = {}
        for name, value in self.state_dict().items():
            name = name.replace("predictor.", f"layers.{last}.")
            name = name if name.startswith("lm_head") else f"model.{name}"
            head, _, tail = name.partition(".experts.")
            if tail:
                out |= {f"{head}.experts.{e}.{tail}.weight": w.clone() for e, w in enumerate(value)}
            else:
                out[name] = value.clone()
        out[f"model.layers.{last}.embed_tokens.weight"] = self.embed_tokens.weight.detach().clone()
        out[f"model.layers.{last}.shared_head.head.weight"] = self.lm_head.weight.detach().clone()
        return out
