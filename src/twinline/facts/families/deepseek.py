"""DeepSeek V2, V3, R1, V3.1, V3.2 and what shares their architecture: latent attention, experts, a drafting layer.

Layer `num_hidden_layers` is the drafting one (MTP): a whole layer with experts, two norms, a projection of both inputs,
and copies of embedding and head (DeepSeek-V3's README_WEIGHTS.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from twinline.facts import models
from twinline.facts.families import parts
from twinline.facts.models import Experts, ModelSpec, UnsupportedModel
from twinline.facts.models import Latent as LatentAttention
from twinline.facts.tensors import Anatomy, Config, Latent, Mixture, Part, Tensor

AT = "model.layers.{layer}"


def anatomy(config: Config, architecture: str) -> Anatomy:
    known = parts.common(config)
    hidden, vocab = known["hidden"], known["vocab"]
    number = parts.layer_count(config, "num_hidden_layers")
    layers = tuple(range(number))
    drafts = parts.drafting_layers(config)
    drafting = tuple(range(number, number + drafts))
    inner, shared, mixture, sparse = _mlp(config, layers)
    dense = tuple(i for i in layers if i not in sparse)
    tensors: list[Tensor] = [*parts.ends(config, hidden, vocab, known["tied"])]
    tensors += _layer(config, architecture, layers, None)
    if dense:
        tensors += parts.gated(f"{AT}.mlp", hidden, inner, dense)
    if mixture:
        tensors += _experts(config, architecture, mixture, shared, sparse, None)
    if drafting:
        tensors += _layer(config, architecture, drafting, "predictor")
        if mixture:
            tensors += _experts(config, architecture, mixture, shared, drafting, "predictor")
        tensors += _drafting(hidden, vocab, drafting)
    rope = parts.need(config, "qk_rope_head_dim")
    heads = parts.need(config, "num_attention_heads")
    indexer = parts.need(config, "index_head_dim") if architecture == "DeepseekV32ForCausalLM" else 0
    return Anatomy(
        architecture=architecture, layers=number, context=parts.need(config, "max_position_embeddings"), heads=heads,
        kv_heads=1, head_size=parts.need(config, "qk_nope_head_dim") + rope, inner=inner if dense else 0,
        shared_inner=shared, latent=Latent(parts.need(config, "kv_lora_rank"), rope, indexer), mixture=mixture,
        predictor=drafts, tensors=tuple(tensors), **known,
    )  # fmt: skip


def _mlp(config: Config, layers: tuple[int, ...]) -> tuple[int, int, Mixture | None, tuple[int, ...]]:
    """Dense width, shared experts' width, the experts, and the layers that have them."""
    inner = parts.need(config, "intermediate_size")
    if not parts.count(config, 0, "n_routed_experts"):
        return inner, 0, None, ()
    width = parts.need(config, "moe_intermediate_size")
    mixture = parts.mixture(parts.need(config, "n_routed_experts"), parts.need(config, "num_experts_per_tok"), width)
    first = parts.count(config, 0, "first_k_dense_replace")
    every = parts.count(config, 1, "moe_layer_freq", least=1)
    sparse = tuple(i for i in layers if i >= first and i % every == 0)
    return inner, width * parts.count(config, 0, "n_shared_experts"), mixture, sparse


def _layer(config: Config, architecture: str, layers: tuple[int, ...], into: Part | None) -> Iterator[Tensor]:
    """Latent attention and the two norms."""
    hidden, heads = parts.need(config, "hidden_size"), parts.need(config, "num_attention_heads")
    nope, rope = parts.need(config, "qk_nope_head_dim"), parts.need(config, "qk_rope_head_dim")
    value, rank = parts.need(config, "v_head_dim"), parts.need(config, "kv_lora_rank")
    q_rank = parts.count(config, 0, "q_lora_rank")
    part, norms = into or "attention", into or "norm"
    at = f"{AT}.self_attn"
    if q_rank:
        yield parts.linear(f"{at}.q_a_proj", q_rank, hidden, part, "whole", layers)
        yield parts.norm(f"{at}.q_a_layernorm", q_rank, layers, norms)
        yield parts.linear(f"{at}.q_b_proj", heads * (nope + rope), q_rank, part, "heads", layers)
    else:
        yield parts.linear(f"{at}.q_proj", heads * (nope + rope), hidden, part, "heads", layers)
    yield parts.linear(f"{at}.kv_a_proj_with_mqa", rank + rope, hidden, part, "whole", layers)
    yield parts.norm(f"{at}.kv_a_layernorm", rank, layers, norms)
    yield parts.linear(f"{at}.kv_b_proj", heads * (nope + value), rank, part, "heads", layers, absorbed=True)
    yield parts.linear(f"{at}.o_proj", hidden, heads * value, part, "columns", layers)
    if config.get("attention_bias"):
        if q_rank:
            yield parts.bias(f"{at}.q_a_proj", q_rank, part, "whole", layers)
        yield parts.bias(f"{at}.kv_a_proj_with_mqa", rank + rope, part, "whole", layers)
        yield parts.bias(f"{at}.o_proj", hidden, part, "whole", layers)
    if architecture == "DeepseekV32ForCausalLM":
        yield from _indexer(config, layers, q_rank, part, norms)
    yield from parts.two_norms(layers, hidden, norms)


def _indexer(config: Config, layers: tuple[int, ...], q_rank: int, part: Part, norms: Part) -> Iterator[Tensor]:
    """What chooses the tokens that sparse attention sees (V3.2); every rank has all of it."""
    hidden, heads = parts.need(config, "hidden_size"), parts.need(config, "index_n_heads")
    size, at = parts.need(config, "index_head_dim"), f"{AT}.self_attn.indexer"
    yield parts.linear(f"{at}.wq_b", heads * size, q_rank, part, "whole", layers)
    yield parts.linear(f"{at}.wk", size, hidden, part, "whole", layers)
    yield parts.norm(f"{at}.k_norm", size, layers, norms)
    yield parts.bias(f"{at}.k_norm", size, norms, "whole", layers)
    yield Tensor(name=f"{at}.weights_proj.weight", shape=(heads, hidden), part=part, layers=layers)


def _experts(
    config: Config, architecture: str, mixture: Mixture, shared: int, layers: tuple[int, ...], into: Part | None
) -> Iterator[Tensor]:
    hidden, at = parts.need(config, "hidden_size"), f"{AT}.mlp"
    yield parts.router(f"{at}.gate", mixture.count, hidden, layers, into or "router")
    third = architecture != "DeepseekV2ForCausalLM"
    if (config.get("topk_method") or ("noaux_tc" if third else "")) == "noaux_tc":
        yield Tensor(
            name=f"{at}.gate.e_score_correction_bias",
            shape=(mixture.count,),
            part=into or "router",
            dtype="F32",
            layers=layers,
        )
    yield from parts.gated(
        at + ".experts.{expert}", hidden, mixture.inner, layers, into or "experts", experts=mixture.count
    )
    if shared:
        yield from parts.gated(f"{at}.shared_experts", hidden, shared, layers, into or "mlp")


def _drafting(hidden: int, vocab: int, layers: tuple[int, ...]) -> Iterator[Tensor]:
    """What only the drafting layer has; all of it stays in 16 bits."""
    for name in ("enorm", "hnorm", "shared_head.norm"):
        yield parts.norm(f"{AT}.{name}", hidden, layers, "predictor")
    yield Tensor(name=f"{AT}.eh_proj.weight", shape=(hidden, 2 * hidden), part="predictor", layers=layers)
    for name in ("embed_tokens", "shared_head.head"):
        yield Tensor(
            name=f"{AT}.{name}.weight", shape=(vocab, hidden), part="predictor", split="vocabulary", layers=layers
        )


def spec(config: Config, architecture: str) -> ModelSpec:
    third = architecture == "DeepseekV3ForCausalLM"
    nope, rope_size = models.need(config, "qk_nope_head_dim"), models.need(config, "qk_rope_head_dim")
    fields = models.rope_fields(config)
    scale = (nope + rope_size) ** -0.5
    if fields["kind"] == "yarn" and fields.get("mscale_all_dim"):
        # DeepSeek folds YaRN's temperature into the softmax scale, at every length (engines.md 3.7).
        scale *= models.yarn_mscale(float(fields["factor"]), float(fields["mscale_all_dim"])) ** 2
    attention = LatentAttention(
        heads=models.need(config, "num_attention_heads"),
        q_rank=models.count(config, "q_lora_rank", 0, least=0) or None,
        kv_rank=models.need(config, "kv_lora_rank"),
        nope=nope,
        rope=rope_size,
        value=models.need(config, "v_head_dim"),
        scale=scale,
        bias=bool(config.get("attention_bias", False)),
    )
    experts = _routing(config, third) if models.count(config, "n_routed_experts", 0, least=0) else None
    rope = models.read_rope(config, rope_size, interleaved=bool(config.get("rope_interleave", True)))
    sparse = _mlp(config, tuple(range(parts.layer_count(config, "num_hidden_layers"))))[3]
    return models.decoder("deepseek", architecture, config, attention, rope, experts, sparse)


def _routing(config: Config, third: bool) -> Experts:
    count = models.need(config, "n_routed_experts")
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
    groups = models.count(config, "n_group", 1)
    kept = models.count(config, "topk_group", groups)
    if count % groups:
        raise UnsupportedModel(f"config.json: {count} experts do not divide into {groups} groups")
    if kept > groups:
        raise UnsupportedModel(f"config.json: topk_group {kept} is more than n_group {groups}")
    chosen = models.need(config, "num_experts_per_tok")
    reach = count if limits[method] == "none" else count // groups * kept
    if chosen > reach:
        raise UnsupportedModel(f"config.json: {chosen} experts for each token where {reach} can be chosen")
    inner = models.need(config, "moe_intermediate_size")
    return Experts(
        count=count,
        per_token=chosen,
        groups=groups,
        groups_kept=kept,
        score=scores[score],
        limit=limits[method],
        correction_bias=method == "noaux_tc",
        normalise=bool(config.get("norm_topk_prob", third)),
        scale=models.real(config, "routed_scaling_factor", 1.0),
        inner=inner,
        shared_inner=inner * models.count(config, "n_shared_experts", 0, least=0),
    )
