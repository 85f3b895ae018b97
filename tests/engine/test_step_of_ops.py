"""A step of decodes is ops and views of tensors, and nothing else: so a provider of all ops can record it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.engine.checkpoints import R1, V2, V2_LITE, Config
from torch.utils._python_dispatch import TorchDispatchMode

from twinline.engine.models.transformer import Transformer
from twinline.engine.ops.plan import DecodePlan, Plan
from twinline.engine.ops.registry import Ops, StaticFacts
from twinline.facts.models import spec_from_config
from twinline.verify.ladder.taps import tapped

LLAMA: Config = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_ROUTED = {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "moe_k": 2,
           "moe_num_experts": 4, "num_local_experts": 4}  # fmt: skip
QWEN3_MOE = LLAMA | _ROUTED | {"architectures": ["Qwen3MoeForCausalLM"]}
MIXTRAL = LLAMA | _ROUTED | {"architectures": ["MixtralForCausalLM"]}
GLM4 = LLAMA | {"architectures": ["Glm4ForCausalLM"], "head_dim": 12, "partial_rotary_factor": 0.34}
ERNIE_MOE = LLAMA | _ROUTED | {"architectures": ["Ernie4_5_MoeForCausalLM"]}
KINDS = {"llama": LLAMA, "r1": R1, "v2": V2, "v2-lite": V2_LITE, "qwen3-moe": QWEN3_MOE, "mixtral": MIXTRAL,
         "glm4": GLM4, "ernie-moe": ERNIE_MOE}  # fmt: skip


class Outside(TorchDispatchMode):
    """Keeps what PyTorch computes while no op runs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ops: list[str] = []
        self.within = False

    def hear(self, op: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        self.ops.append(op)
        self.within = True
        try:
            return function(*args)
        finally:
            self.within = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.within and not func.is_view:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def model_of(config: Config) -> Transformer:
    model = Transformer(Ops(("reference",), StaticFacts("cpu", torch.bfloat16)), spec_from_config(config))
    model = model.to_empty(device="cpu")
    for p in model.parameters():
        p.data.normal_(0, 0.2)
    for module in model.modules():
        if hasattr(module, "seal"):
            module.seal()
    model.ready(64, torch.device("cpu"))
    return model


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_a_step_of_decodes_is_ops_alone(config: Config) -> None:
    model, outside = model_of(config), Outside()
    cache = [tuple(torch.zeros(heads, 9, 16, size).bfloat16() for heads, size in rows) for rows in model.cache_rows()]
    decode = DecodePlan(torch.tensor([[1, 2], [3, 4]]), torch.tensor([20, 3]), None)
    plan = Plan(torch.tensor([2 * 16 + 3, 3 * 16 + 2]), decode, ())
    ids, positions = torch.tensor([5, 6]), torch.tensor([19, 2])
    with torch.inference_mode(), tapped(model, model.uses(), outside.hear), outside:
        model.logits(model(ids, positions, plan, cache))
    assert outside.found == []
    assert set(outside.ops) == model.uses() - {"attention_prefill", "mla_prefill"}
