"""What families share: reading fields, and the tensors of the usual parts in Hugging Face's usual names.

Owns grouped-query attention, gated MLPs, norms and the two ends of a model. Must not know any one family.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from twinline.facts.models import LARGEST, MOST_LAYERS, Experts, UnsupportedModel
from twinline.facts.tensors import Config, Mixture, Part, Split, Tensor

Layers = tuple[int, ...]


def need(config: Config, *names: str, least: int = 1) -> int:
    """The first of these fields that is there: an integer of at least `least`."""
    for name in names:
        if config.get(name) is not None:
            value = config[name]
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= LARGEST:
                raise UnsupportedModel(
                    f"config.json: {name} should be an integer of at least {least}, not {value!r:.60}"
                )
            return value
    raise UnsupportedModel(f"config.json: {' or '.join(names)} is missing")


def count(config: Config, default: int, *names: str, least: int = 0) -> int:
    """As `need`, but `default` where none of the fields is there."""
    return need(config, *names, least=least) if any(config.get(n) is not None for n in names) else default


def layer_count(config: Config, *names: str) -> int:
    layers = need(config, *names)
    if layers > MOST_LAYERS:
        raise UnsupportedModel(f"config.json: {names[0]} {layers} cannot be meant (the limit is {MOST_LAYERS})")
    return layers


def drafting_layers(config: Config) -> int:
    """Extra layers that draft tokens; 0 where none are declared."""
    name = "num_nextn_predict_layers"
    return layer_count(config, name) if config.get(name) not in (None, 0) else 0


def mixture(count: int, per_token: int, inner: int) -> Mixture:
    """Experts of which a token can meet as many as it should. Raises UnsupportedModel."""
    if per_token > count:
        raise UnsupportedModel(f"config.json: {per_token} experts for each token where the model has {count}")
    return Mixture(count, per_token, inner)


def softmax_experts(
    mixture: Mixture, *, normalise: bool, correction_bias: bool = False, shared_inner: int = 0
) -> Experts:
    """Experts chosen by softmax from all, without groups."""
    return Experts(
        count=mixture.count, per_token=mixture.per_token, groups=1, groups_kept=1, score="softmax", limit="none",
        correction_bias=correction_bias, normalise=normalise, scale=1.0, inner=mixture.inner, shared_inner=shared_inner,
    )  # fmt: skip


def head_sizes(config: Config) -> tuple[int, int, int]:
    """Query heads, KV heads, values per head."""
    heads, hidden = need(config, "num_attention_heads"), need(config, "hidden_size")
    kv_heads = count(config, heads, "num_key_value_heads", least=1)
    if heads % kv_heads:
        raise UnsupportedModel(f"config.json: {heads} heads cannot share {kv_heads} KV heads evenly")
    if config.get("head_dim") is None and hidden % heads:
        raise UnsupportedModel(f"config.json: hidden_size {hidden} is no multiple of {heads} heads; set head_dim")
    return heads, kv_heads, count(config, hidden // heads, "head_dim", least=1)


def common(config: Config) -> dict[str, Any]:
    """The fields of an Anatomy that all families spell alike."""
    quantization = config.get("quantization_config")
    if quantization is not None and not isinstance(quantization, dict):
        raise UnsupportedModel(f"config.json: quantization_config should be an object, not {quantization!r:.60}")
    return {
        "dtype": str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch."),
        "hidden": need(config, "hidden_size"),
        "vocab": need(config, "vocab_size", "padded_vocab_size"),
        "tied": bool(config.get("tie_word_embeddings", False)),
        "quantization": quantization or None,
    }


def linear(
    name: str, out: int, into: int, part: Part, split: Split, layers: Layers, *, experts: int = 0, **more: Any
) -> Tensor:
    return Tensor(
        name=f"{name}.weight", shape=(out, into), part=part, split=split, linear=True, layers=layers, experts=experts,
        **more,
    )  # fmt: skip


def bias(name: str, size: int, part: Part, split: Split, layers: Layers) -> Tensor:
    return Tensor(name=f"{name}.bias", shape=(size,), part=part, split=split, layers=layers)


def norm(name: str, size: int, layers: Layers = (), part: Part = "norm") -> Tensor:
    return Tensor(name=f"{name}.weight", shape=(size,), part=part, layers=layers)


def router(name: str, experts: int, hidden: int, layers: Layers, part: Part = "router") -> Tensor:
    return Tensor(name=f"{name}.weight", shape=(experts, hidden), part=part, layers=layers)


def ends(config: Config, hidden: int, vocab: int, tied: bool) -> Iterator[Tensor]:
    """Embedding, last norm, and a head of its own unless it is the embedding's."""
    yield Tensor(name="model.embed_tokens.weight", shape=(vocab, hidden), part="embedding", split="vocabulary")
    yield norm("model.norm", hidden)
    if not tied:
        yield Tensor(name="lm_head.weight", shape=(vocab, hidden), part="head", split="vocabulary")


def grouped_query(
    layers: Layers, hidden: int, heads: int, kv_heads: int, size: int, *,
    qkv_bias: bool = False, out_bias: bool = False, head_norms: bool = False,
) -> Iterator[Tensor]:  # fmt: skip
    """Attention with `kv_heads` shared keys and values; `head_norms` are norms over one head of queries and keys."""
    at = "model.layers.{layer}.self_attn"
    yield linear(f"{at}.q_proj", heads * size, hidden, "attention", "heads", layers)
    yield linear(f"{at}.k_proj", kv_heads * size, hidden, "attention", "kv-heads", layers)
    yield linear(f"{at}.v_proj", kv_heads * size, hidden, "attention", "kv-heads", layers)
    yield linear(f"{at}.o_proj", hidden, heads * size, "attention", "columns", layers)
    if qkv_bias:
        yield bias(f"{at}.q_proj", heads * size, "attention", "heads", layers)
        yield bias(f"{at}.k_proj", kv_heads * size, "attention", "kv-heads", layers)
        yield bias(f"{at}.v_proj", kv_heads * size, "attention", "kv-heads", layers)
    if out_bias:
        yield bias(f"{at}.o_proj", hidden, "attention", "whole", layers)
    if head_norms:
        yield norm(f"{at}.q_norm", size, layers)
        yield norm(f"{at}.k_norm", size, layers)


def gated(
    at: str, hidden: int, inner: int, layers: Layers, part: Part = "mlp", *, experts: int = 0,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> Iterator[Tensor]:  # fmt: skip
    """A gated MLP, or `experts` of them."""
    gate, up, down = names
    yield linear(f"{at}.{gate}", inner, hidden, part, "rows", layers, experts=experts)
    yield linear(f"{at}.{up}", inner, hidden, part, "rows", layers, experts=experts)
    yield linear(f"{at}.{down}", hidden, inner, part, "columns", layers, experts=experts)


def gated_biases(at: str, hidden: int, inner: int, layers: Layers) -> Iterator[Tensor]:
    """The biases of a gated MLP where it has any."""
    yield bias(f"{at}.gate_proj", inner, "mlp", "rows", layers)
    yield bias(f"{at}.up_proj", inner, "mlp", "rows", layers)
    yield bias(f"{at}.down_proj", hidden, "mlp", "whole", layers)


def two_norms(layers: Layers, hidden: int, part: Part = "norm") -> Iterator[Tensor]:
    yield norm("model.layers.{layer}.input_layernorm", hidden, layers, part)
    yield norm("model.layers.{layer}.post_attention_layernorm", hidden, layers, part)
