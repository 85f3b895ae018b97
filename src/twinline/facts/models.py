"""What a model is: its architecture read from `config.json`, in one normal form for all families.

Owns the reading of Hugging Face configurations, both spellings of the rope fields included. No torch, no weights.
Every family ends in the same `ModelSpec`; the engine builds from it and never looks at the raw file again.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Config = dict[str, Any]
MOST_LAYERS = 10_000


class UnsupportedModel(ValueError):
    """The checkpoint is not something that can be served; the message says why, in one line."""


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: base, rotated size, pairing, and how the context was stretched.

    `scaling` holds the numbers of the kind: YaRN's or Llama 3's fields, or a linear factor.
    """

    theta: float
    size: int
    interleaved: bool
    kind: Literal["default", "linear", "yarn", "llama3"]
    scaling: tuple[tuple[str, float], ...] = ()

    def __getitem__(self, name: str) -> float:
        return dict(self.scaling)[name]


@dataclass(frozen=True)
class GroupedQuery:
    """Grouped-query attention: the cache holds keys and values per KV head."""

    heads: int
    kv_heads: int
    head_size: int
    qkv_bias: bool
    out_bias: bool

    @property
    def scale(self) -> float:
        return self.head_size**-0.5


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, section 2.1): the cache holds one latent and one rotated key."""

    heads: int
    q_rank: int | None
    kv_rank: int
    nope: int
    rope: int
    value: int
    scale: float
    bias: bool


@dataclass(frozen=True)
class Experts:
    """Routed and shared experts. `limit` is how a group is scored: the sum of its two best, its best, or no groups."""

    count: int
    per_token: int
    groups: int
    groups_kept: int
    score: Literal["sigmoid", "softmax"]
    limit: Literal["top2", "max", "none"]
    correction_bias: bool
    normalise: bool
    scale: float
    inner: int
    shared_inner: int


@dataclass(frozen=True)
class ModelSpec:
    family: Literal["deepseek", "llama"]
    architecture: str
    vocab: int
    hidden: int
    inner: int
    layers: int
    norm_eps: float
    context: int
    rope: Rope
    attention: GroupedQuery | Latent
    experts: Experts | None
    expert_layers: frozenset[int]
    tied: bool
    dtype: str
    predictor_layers: int

    @property
    def kv_values(self) -> int:
        """Values in the cache per token, over all layers."""
        a = self.attention
        row = a.kv_rank + a.rope if isinstance(a, Latent) else 2 * a.kv_heads * a.head_size
        return row * self.layers


LARGEST = 2**40  # no count of a model comes near; keeps what is derived within 64 bits


def _need(config: Config, name: str, least: int = 1) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= LARGEST:
        kind = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise UnsupportedModel(f"config.json: {name} should be {kind}, not {value!r:.60}")
    return value


def _count(config: Config, name: str, default: int, least: int = 1) -> int:
    """An optional count: `default` where the field is absent or null."""
    return default if config.get(name) is None else _need(config, name, least)


def _real(config: Config, name: str, default: float, above: float = 0.0) -> float:
    """An optional number, finite and greater than `above`."""
    value = config.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not above < value < 1e30:
        raise UnsupportedModel(f"config.json: {name} should be a number greater than {above:g}, not {value!r:.60}")
    return float(value)


def _rope_fields(config: Config) -> Config:
    """Both spellings in one: `rope_theta` + `rope_scaling`, and transformers 5's `rope_parameters`."""
    fields: Config = {}
    for name in ("rope_scaling", "rope_parameters"):
        found = config.get(name)
        if found is not None and not isinstance(found, dict):
            raise UnsupportedModel(f"config.json: {name} should be an object, not {found!r:.60}")
        fields |= found or {}
    fields.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    fields["kind"] = fields.get("rope_type") or fields.get("type") or "default"
    return fields


def _rope(config: Config, size: int, *, interleaved: bool) -> Rope:
    fields = _rope_fields(config)
    kind, theta = fields["kind"], _real(fields, "rope_theta", 10000.0)
    if size % 2:
        raise UnsupportedModel(f"config.json: {size} rotated values cannot be paired")
    if kind == "default":
        return Rope(theta, size, interleaved, "default")
    wanted: dict[str, dict[str, float | None]] = {
        "linear": {"factor": None},
        "yarn": {"factor": None, "original_max_position_embeddings": None, "beta_fast": 32.0, "beta_slow": 1.0,
                 "mscale": 0.0, "mscale_all_dim": 0.0, "attention_factor": 0.0, "truncate": 1.0},
        "llama3": {"factor": None, "low_freq_factor": None, "high_freq_factor": None,
                   "original_max_position_embeddings": None},
    }  # fmt: skip
    if kind not in wanted:
        raise UnsupportedModel(
            f"config.json: rope kind {kind!r} is not supported (supported: default, {', '.join(wanted)})"
        )
    numbers = []
    for name, default in wanted[kind].items():
        if fields.get(name) is None and default is None:
            raise UnsupportedModel(f"config.json: rope kind {kind!r} needs {name}")
        given = default if fields.get(name) is None else fields[name]
        # Factors and lengths must be above 0; DeepSeek's mscale fields may be 0, for "not there".
        numbers.append((name, _real({name: given}, name, 0.0, above=0.0 if default is None else -1e-9)))
    return Rope(theta, size, interleaved, kind, tuple(numbers))


def _yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _llama(config: Config, architecture: str) -> ModelSpec:
    heads = _need(config, "num_attention_heads")
    hidden = _need(config, "hidden_size")
    if config.get("use_sliding_window"):
        raise UnsupportedModel("config.json: sliding-window attention is not supported")
    if config.get("mlp_bias"):
        raise UnsupportedModel("config.json: mlp_bias is not supported")
    qwen = architecture == "Qwen2ForCausalLM"
    if config.get("head_dim") is None and hidden % heads:
        raise UnsupportedModel(f"config.json: hidden_size {hidden} is no multiple of {heads} heads; set head_dim")
    head_size = _count(config, "head_dim", hidden // heads)
    attention = GroupedQuery(
        heads=heads,
        kv_heads=_count(config, "num_key_value_heads", heads),
        head_size=head_size,
        qkv_bias=qwen or bool(config.get("attention_bias", False)),
        out_bias=not qwen and bool(config.get("attention_bias", False)),
    )
    if heads % attention.kv_heads:
        raise UnsupportedModel(f"config.json: {heads} heads cannot share {attention.kv_heads} KV heads evenly")
    return _spec("llama", architecture, config, attention, _rope(config, head_size, interleaved=False), None)


def _deepseek(config: Config, architecture: str) -> ModelSpec:
    third = architecture == "DeepseekV3ForCausalLM"
    nope, rope_size = _need(config, "qk_nope_head_dim"), _need(config, "qk_rope_head_dim")
    fields = _rope_fields(config)
    scale = (nope + rope_size) ** -0.5
    if fields["kind"] == "yarn" and fields.get("mscale_all_dim"):
        # DeepSeek folds YaRN's temperature into the softmax scale, at every length (engines.md 3.7).
        scale *= _yarn_mscale(float(fields["factor"]), float(fields["mscale_all_dim"])) ** 2
    attention = Latent(
        heads=_need(config, "num_attention_heads"),
        q_rank=_count(config, "q_lora_rank", 0, least=0) or None,
        kv_rank=_need(config, "kv_lora_rank"),
        nope=nope,
        rope=rope_size,
        value=_need(config, "v_head_dim"),
        scale=scale,
        bias=bool(config.get("attention_bias", False)),
    )
    experts = _experts(config, third) if _count(config, "n_routed_experts", 0, least=0) else None
    rope = _rope(config, rope_size, interleaved=bool(config.get("rope_interleave", True)))
    return _spec("deepseek", architecture, config, attention, rope, experts)


def _experts(config: Config, third: bool) -> Experts:
    count = _need(config, "n_routed_experts")
    method = config.get("topk_method") or ("noaux_tc" if third else "greedy")
    limits: dict[str, Literal["top2", "max", "none"]] = {
        "noaux_tc": "top2",
        "group_limited_greedy": "max",
        "greedy": "none",
    }
    scores: dict[str, Literal["sigmoid", "softmax"]] = {"sigmoid": "sigmoid", "softmax": "softmax"}
    score = config.get("scoring_func") or ("sigmoid" if third else "softmax")
    if method not in limits or score not in scores:
        raise UnsupportedModel(f"config.json: routing {method!r} with {score!r} scores is not supported")
    groups = _count(config, "n_group", 1)
    kept = _count(config, "topk_group", groups)
    if count % groups:
        raise UnsupportedModel(f"config.json: {count} experts do not divide into {groups} groups")
    if kept > groups:
        raise UnsupportedModel(f"config.json: topk_group {kept} is more than n_group {groups}")
    chosen = _need(config, "num_experts_per_tok")
    reach = count if limits[method] == "none" else count // groups * kept
    if chosen > reach:
        raise UnsupportedModel(f"config.json: {chosen} experts for each token where {reach} can be chosen")
    inner = _need(config, "moe_intermediate_size")
    return Experts(
        count=count,
        per_token=chosen,
        groups=groups,
        groups_kept=kept,
        score=scores[score],
        limit=limits[method],
        correction_bias=method == "noaux_tc",
        normalise=bool(config.get("norm_topk_prob", third)),
        scale=_real(config, "routed_scaling_factor", 1.0),
        inner=inner,
        shared_inner=inner * _count(config, "n_shared_experts", 0, least=0),
    )


def _spec(
    family: Literal["deepseek", "llama"],
    architecture: str,
    config: Config,
    attention: GroupedQuery | Latent,
    rope: Rope,
    experts: Experts | None,
) -> ModelSpec:
    layers = _need(config, "num_hidden_layers")
    if layers > MOST_LAYERS:
        raise UnsupportedModel(f"config.json: num_hidden_layers {layers} cannot be meant (the limit is {MOST_LAYERS})")
    if config.get("hidden_act", "silu") != "silu":
        raise UnsupportedModel(f"config.json: hidden_act {config['hidden_act']!r} is not supported (supported: silu)")
    first, every = _count(config, "first_k_dense_replace", 0, least=0), _count(config, "moe_layer_freq", 1)
    with_experts = (i for i in range(layers) if i >= first and i % every == 0) if experts else ()
    quantized = config.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise UnsupportedModel(f"config.json: {method} weights are not supported yet; use a bfloat16 checkpoint")
    return ModelSpec(
        family=family,
        architecture=architecture,
        vocab=_need(config, "vocab_size"),
        hidden=_need(config, "hidden_size"),
        inner=_need(config, "intermediate_size"),
        layers=layers,
        norm_eps=_real(config, "rms_norm_eps", 1e-6),
        context=_need(config, "max_position_embeddings"),
        rope=rope,
        attention=attention,
        experts=experts,
        expert_layers=frozenset(with_experts),
        tied=bool(config.get("tie_word_embeddings", False)),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"),
        predictor_layers=_count(config, "num_nextn_predict_layers", 0, least=0),
    )


FAMILIES = {
    "DeepseekV2ForCausalLM": _deepseek,
    "DeepseekV3ForCausalLM": _deepseek,
    "LlamaForCausalLM": _llama,
    "Qwen2ForCausalLM": _llama,
}


def spec_from_config(config: Config) -> ModelSpec:
    """The normal form of a parsed `config.json`.

    Raises UnsupportedModel, in one line, for an unknown architecture or a missing or impossible field.
    """
    if not isinstance(config, dict):
        raise UnsupportedModel("config.json: should hold one JSON object")
    names = config.get("architectures") or []
    known = next((n for n in names if isinstance(n, str) and n in FAMILIES), None) if isinstance(names, list) else None
    if known is None:
        raise UnsupportedModel(
            f"config.json: architecture {names!r} is not supported (supported: {', '.join(FAMILIES)})"
        )
    try:
        return FAMILIES[known](config, known)
    except (KeyError, TypeError, ArithmeticError, AttributeError) as error:
        raise UnsupportedModel(f"config.json: cannot be read as {known}: {error!r}") from error
    except ValueError as error:
        raise error if isinstance(error, UnsupportedModel) else UnsupportedModel(f"config.json: {error}") from error


def read_spec(directory: Path) -> ModelSpec:
    """The spec of a checkpoint folder. Raises UnsupportedModel if the folder has no readable `config.json`."""
    file = directory / "config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise UnsupportedModel(f"{directory} has no config.json: is it a Hugging Face checkpoint folder?") from None
    except (ValueError, OSError, RecursionError) as error:
        raise UnsupportedModel(f"{file} cannot be read: {error}") from None
    return spec_from_config(config)
