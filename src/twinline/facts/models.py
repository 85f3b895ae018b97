"""What a model is: its architecture read from `config.json`, in one normal form for all families.

Owns the normal form and the reading of what all families spell alike, both spellings of the rope fields included; what
one family spells is its file in `families/`. No torch, no weights. Every family ends in the same `ModelSpec`; the
engine builds from it and never looks at the raw file again.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from twinline.facts.absent import ABSENT
from twinline.facts.mistaken import no_model_folder, taken_for

Config = dict[str, Any]
Family = Literal["chatglm", "deepseek", "ernie", "glm", "llama", "mixtral", "qwen3"]
MOST_LAYERS = 10_000


class UnsupportedModel(ValueError):
    """The checkpoint is not something that can be served; the message says why, in one line."""


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: base, rotated size, pairing, and how the context was stretched.

    `scaling` holds the numbers of the kind: YaRN's or Llama 3's fields, or a linear factor. `still`: values of a head,
    after the rotated ones, that keep their place (GLM).
    """

    theta: float
    size: int
    interleaved: bool
    kind: Literal["default", "linear", "yarn", "llama3"]
    scaling: tuple[tuple[str, float], ...] = ()
    still: int = 0

    @property
    def width(self) -> int:
        """Values of what is given to be rotated."""
        return self.size + self.still

    def __getitem__(self, name: str) -> float:
        return dict(self.scaling)[name]


@dataclass(frozen=True)
class GroupedQuery:
    """Grouped-query attention: the cache holds keys and values per KV head. `head_norms`: queries and keys are normed
    head by head, before they are rotated (Qwen3)."""

    heads: int
    kv_heads: int
    head_size: int
    qkv_bias: bool
    out_bias: bool
    head_norms: bool = False

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
    """`family` names the table of the checkpoint's tensors. `after_norms`: what attention and MLP give is normed before
    it is added to the residual stream (GLM-4-0414). `headless`: the checkpoint is a backbone, with nothing that says
    the next token."""

    family: Family
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
    mlp_bias: bool = False
    after_norms: bool = False
    headless: bool = False

    @property
    def kv_values(self) -> int:
        """Values in the cache per token, over all layers."""
        a = self.attention
        row = a.kv_rank + a.rope if isinstance(a, Latent) else 2 * a.kv_heads * a.head_size
        return row * self.layers


LARGEST = 2**40  # no count of a model comes near; keeps what is derived within 64 bits


def need(config: Config, name: str, least: int = 1) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= LARGEST:
        kind = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise UnsupportedModel(f"config.json: {name} should be {kind}, not {value!r:.60}")
    return value


def count(config: Config, name: str, default: int, least: int = 1) -> int:
    """An optional count: `default` where the field is absent or null."""
    return default if config.get(name) is None else need(config, name, least)


def real(config: Config, name: str, default: float, above: float = 0.0) -> float:
    """An optional number, finite and greater than `above`."""
    value = config.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not above < value < 1e30:
        raise UnsupportedModel(f"config.json: {name} should be a number greater than {above:g}, not {value!r:.60}")
    return float(value)


def rope_fields(config: Config) -> Config:
    """Both spellings in one: `rope_theta` + `rope_scaling`, and transformers 5's `rope_parameters`."""
    fields: Config = {}
    for name in ("rope_scaling", "rope_parameters"):
        found = config.get(name)
        if found is not None and not isinstance(found, dict):
            raise UnsupportedModel(f"config.json: {name} should be an object, not {found!r:.60}")
        fields |= found or {}
    if nested := [name for name, value in fields.items() if isinstance(value, dict)]:
        raise UnsupportedModel(f"config.json: a rope for each kind of layer ({', '.join(nested):.60}) is not supported")
    fields.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    fields["kind"] = fields.get("rope_type") or fields.get("type") or "default"
    return fields


def read_rope(config: Config, head_size: int, *, interleaved: bool) -> Rope:
    """The rotation of a head's first `partial_rotary_factor` values: of all where the field is absent."""
    fields = rope_fields(config)
    kind, theta = fields["kind"], real(fields, "rope_theta", 10000.0)
    part = next((f["partial_rotary_factor"] for f in (fields, config) if f.get("partial_rotary_factor") is not None), 1)
    size = int(head_size * real({"partial_rotary_factor": part}, "partial_rotary_factor", 1.0))
    still = head_size - size
    if size % 2 or size < 1 or still < 0:
        raise UnsupportedModel(f"config.json: {size} rotated values of {head_size} cannot be paired")
    if still and (still % 2 or not interleaved):
        raise UnsupportedModel(
            f"config.json: rotating {size} of {head_size} values is supported for neighbouring pairs"
        )
    if kind == "default":
        return Rope(theta, size, interleaved, "default", still=still)
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
        if name == "truncate":  # a flag, among numbers
            given = float(bool(given))
        # Factors and lengths must be above 0; DeepSeek's mscale fields may be 0, for "not there".
        numbers.append((name, real({name: given}, name, 0.0, above=0.0 if default is None else -1e-9)))
    return Rope(theta, size, interleaved, kind, tuple(numbers), still)


def completed(config: Config, architecture: str) -> Config:
    """With what is meant where fields are absent, and the context as YaRN stretches it: who adds YaRN, as Qwen's and
    others' model cards tell, leaves the old length there; vLLM takes the stretched one, too."""
    config = ABSENT.get(architecture, {}) | config
    fields: dict[str, Any] = rope_fields(config)
    said: Any = config.get("max_position_embeddings")
    before: Any = fields.get("original_max_position_embeddings")
    factor: Any = fields.get("factor")
    numbers = (said, before, factor)
    if fields["kind"] != "yarn" or not all(isinstance(n, int | float) and 0 < n < 2**53 for n in numbers):
        return config  # a mistake is told by whoever reads the field
    return config | {"max_position_embeddings": max(said, int(before * factor))}


def yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def decoder(
    family: Family,
    architecture: str,
    config: Config,
    attention: GroupedQuery | Latent,
    rope: Rope,
    experts: Experts | None = None,
    expert_layers: Iterable[int] = (),
    **more: bool,
) -> ModelSpec:
    """The spec, its other fields read under the names that all families use. `more`: the fields that few have."""
    layers = need(config, "num_hidden_layers")
    if layers > MOST_LAYERS:
        raise UnsupportedModel(f"config.json: num_hidden_layers {layers} cannot be meant (the limit is {MOST_LAYERS})")
    if config.get("hidden_act", "silu") != "silu":
        raise UnsupportedModel(f"config.json: hidden_act {config['hidden_act']!r} is not supported (supported: silu)")
    return ModelSpec(
        family=family,
        architecture=architecture,
        vocab=need(config, "vocab_size"),
        hidden=need(config, "hidden_size"),
        inner=need(config, "intermediate_size"),
        layers=layers,
        norm_eps=real(config, "rms_norm_eps", 1e-6),
        context=need(config, "max_position_embeddings"),
        rope=rope,
        attention=attention,
        experts=experts,
        expert_layers=frozenset(expert_layers),
        tied=bool(config.get("tie_word_embeddings", False)),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch."),
        predictor_layers=count(config, "num_nextn_predict_layers", 0, least=0) if family == "deepseek" else 0,
        **more,
    )


# What the engine runs: architecture and the file of `families/` with `spec(config, architecture) -> ModelSpec`.
FAMILIES = {
    "DeepseekV2ForCausalLM": "deepseek",
    "DeepseekV3ForCausalLM": "deepseek",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "llama",
    "Qwen3ForCausalLM": "llama",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "MixtralForCausalLM": "mixtral",
    "GlmForCausalLM": "glm",
    "Glm4ForCausalLM": "glm",
    "ChatGLMModel": "chatglm",
    "ChatGLMForConditionalGeneration": "chatglm",
    "Ernie4_5_ForCausalLM": "ernie",
    "Ernie4_5ForCausalLM": "ernie",
    "Ernie4_5_MoeForCausalLM": "ernie",
}


# Backbones without an output head, as checkpoints that give vectors are saved, and what each is a part of.
BACKBONES = {
    "LlamaModel": "LlamaForCausalLM",
    "MistralModel": "MistralForCausalLM",
    "Qwen2Model": "Qwen2ForCausalLM",
    "Qwen3Model": "Qwen3ForCausalLM",
}


def architecture_of(config: Config, known: Iterable[str]) -> tuple[str | None, bool]:
    """The first of a config's `architectures` that is known, a backbone under its whole model's name; and whether it is
    one."""
    names = config.get("architectures")
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and BACKBONES.get(name, name) in known:
            return BACKBONES.get(name, name), name in BACKBONES
    return None, False


def spec_from_config(config: Config) -> ModelSpec:
    """The normal form of a parsed `config.json`.

    Raises UnsupportedModel, in one line, for an unknown architecture or a missing or impossible field.
    """
    if not isinstance(config, dict):
        raise UnsupportedModel("config.json: should hold one JSON object")
    known, headless = architecture_of(config, FAMILIES)
    if known is None:
        raise UnsupportedModel(
            f"config.json: architecture {config.get('architectures') or []!r} is not supported (supported: "
            f"{', '.join([*FAMILIES, *BACKBONES])})"
        )
    try:
        family: Any = importlib.import_module(f"twinline.facts.families.{FAMILIES[known]}")
        spec: ModelSpec = family.spec(completed(config, known), known)
        return replace(spec, headless=True, tied=False) if headless else spec
    except (KeyError, TypeError, ArithmeticError, AttributeError) as error:
        raise UnsupportedModel(f"config.json: cannot be read as {known}: {error!r}") from error
    except ValueError as error:
        raise error if isinstance(error, UnsupportedModel) else UnsupportedModel(f"config.json: {error}") from error


def read_config(directory: Path) -> Config:
    """The parsed `config.json` of a checkpoint folder. Raises UnsupportedModel if there is none that can be read."""
    if wrong := no_model_folder(directory):
        raise UnsupportedModel(wrong)
    file = directory / "config.json"
    try:
        config = json.loads(file.read_text("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UnsupportedModel(f"{file} cannot be read: {error}{taken_for(file)}") from None
    if not isinstance(config, dict):
        raise UnsupportedModel("config.json: should hold one JSON object")
    return config


def read_spec(directory: Path) -> ModelSpec:
    """The spec of a checkpoint folder. Raises UnsupportedModel if the folder has no readable `config.json`."""
    return spec_from_config(read_config(directory))
