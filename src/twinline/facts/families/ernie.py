"""ERNIE 4.5: dense, and with experts from some layer on, two shared experts merged into one.

Checkpoints with experts hold a block that drafts tokens (`num_nextn_predict_layers`): a layer without experts, two
norms and a projection of both inputs; embedding and head are the model's own. So load it vLLM (`ernie_mtp.py`), SGLang
(`ernie4.py`) and FastDeploy. Tensors before it: listings of real 21B and 300B checkpoints, equal to the last element.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from twinline.facts import models
from twinline.facts.families import parts
from twinline.facts.models import GroupedQuery, ModelSpec, UnsupportedModel
from twinline.facts.tensors import Anatomy, Config, Mixture, Tensor


def anatomy(config: Config, architecture: str) -> Anatomy:
    known = parts.common(config)
    hidden, inner = known["hidden"], parts.need(config, "intermediate_size")
    heads, kv_heads, size = parts.head_sizes(config)
    number = parts.layer_count(config, "num_hidden_layers")
    layers = tuple(range(number))
    biased, mixture, sparse, shared = _mlp(config, architecture, layers)
    dense = tuple(i for i in layers if i not in sparse)
    at = "model.layers.{layer}.mlp"
    tensors: list[Tensor] = [*parts.ends(config, hidden, known["vocab"], known["tied"])]
    tensors += parts.grouped_query(layers, hidden, heads, kv_heads, size, qkv_bias=biased, out_bias=biased)
    if dense:
        tensors += parts.gated(at, hidden, inner, dense)
        tensors += parts.gated_biases(at, hidden, inner, dense) if biased else ()
    if mixture:
        tensors.append(parts.router(f"{at}.gate", mixture.count, hidden, sparse))
        tensors.append(
            Tensor(
                name=f"{at}.moe_statics.e_score_correction_bias",
                shape=(1, mixture.count),
                part="router",
                dtype="F32",
                layers=sparse,
            )
        )
        tensors += parts.gated(
            at + ".experts.{expert}", hidden, mixture.inner, sparse, "experts", experts=mixture.count
        )
        if shared:
            tensors += parts.gated(f"{at}.shared_experts", hidden, shared, sparse)
    tensors += parts.two_norms(layers, hidden)
    drafts = parts.drafting_layers(config)
    if drafts:
        tensors += _drafting(tuple(range(drafts)), hidden, inner, heads, kv_heads, size)
    return Anatomy(
        architecture=architecture, layers=number, context=parts.need(config, "max_position_embeddings"), heads=heads,
        kv_heads=kv_heads, head_size=size, inner=inner if dense else 0, shared_inner=shared, mixture=mixture,
        predictor=drafts, tensors=tuple(tensors), **known,
    )  # fmt: skip


def _drafting(
    blocks: tuple[int, ...], hidden: int, inner: int, heads: int, kv_heads: int, size: int
) -> Iterator[Tensor]:
    """The blocks that draft. Their names count them, not the model's layers; the projection stays in 16 bits."""
    layer = [
        *parts.grouped_query(blocks, hidden, heads, kv_heads, size),
        *parts.gated("model.layers.{layer}.mlp", hidden, inner, blocks),
        *parts.two_norms(blocks, hidden),
    ]
    for tensor in layer:
        name = tensor.name.replace("model.layers.{layer}", "model.mtp_block.{layer}")
        yield msgspec.structs.replace(tensor, name=name, part="predictor")
    yield parts.norm("model.mtp_emb_norm.{layer}", hidden, blocks, "predictor")
    yield parts.norm("model.mtp_hidden_norm.{layer}", hidden, blocks, "predictor")
    yield Tensor(
        name="model.mtp_linear_proj.{layer}.weight", shape=(hidden, 2 * hidden), part="predictor", layers=blocks
    )


def _mixture(config: Config, layers: tuple[int, ...]) -> tuple[Mixture, tuple[int, ...], int]:
    """The experts, the layers that have them, and the width of the shared ones."""
    inner = parts.need(config, "moe_intermediate_size")
    mixture = parts.mixture(
        parts.need(config, "moe_num_experts", "num_experts", "num_local_experts"),
        parts.need(config, "moe_k", "num_experts_per_tok"),
        inner,
    )
    start = parts.count(config, 0, "moe_layer_start_index")
    end = config.get("moe_layer_end_index")
    end = len(layers) - 1 if end is None or end == -1 else parts.need(config, "moe_layer_end_index", least=0)
    every = parts.count(config, 1, "moe_layer_interval", least=1)
    sparse = tuple(i for i in layers if start <= i <= end and (i + 1) % every == 0)
    return mixture, sparse, inner * parts.count(config, 0, "moe_num_shared_experts")


def _mlp(
    config: Config, architecture: str, layers: tuple[int, ...]
) -> tuple[bool, Mixture | None, tuple[int, ...], int]:
    """Whether layers have biases; the experts, the layers that have them, and the width of the shared ones."""
    biased = bool(config.get("use_bias", False))
    if architecture != "Ernie4_5_MoeForCausalLM":
        return biased, None, (), 0
    if biased:
        raise UnsupportedModel("config.json: use_bias with experts is not known of any published checkpoint")
    return biased, *_mixture(config, layers)


MOST_NORM_MIN = 1e-9


def spec(config: Config, architecture: str) -> ModelSpec:
    """Neighbouring values are rotated, of the whole head. The router adds a correction to softmax scores to choose, and
    normalises those without it; the released code divides by `moe_norm_min` where their sum is smaller, the engine by
    the sum: the same until all chosen experts together have less than that of the probability."""
    heads, kv_heads, size = parts.head_sizes(config)
    layers = tuple(range(parts.layer_count(config, "num_hidden_layers")))
    biased, mixture, sparse, shared = _mlp(config, architecture, layers)
    least = models.real(config, "moe_norm_min", 1e-12)
    if least > MOST_NORM_MIN:
        raise UnsupportedModel(f"config.json: moe_norm_min {least:g} is not supported (up to {MOST_NORM_MIN:g} is)")
    experts = None
    if mixture:
        experts = parts.softmax_experts(mixture, normalise=True, correction_bias=True, shared_inner=shared)
    return models.decoder(
        "ernie", architecture, config,
        GroupedQuery(heads, kv_heads, size, qkv_bias=biased, out_bias=biased),
        models.read_rope(config, size, interleaved=True),
        experts, sparse, mlp_bias=biased,
    )  # fmt: skip
