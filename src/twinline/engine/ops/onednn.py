"""Linear layers on CPUs with weights in oneDNN's own blocked layout, through PyTorch's mkldnn ops.

The layout is made once at load for a batch of `ROWS`; other batch sizes use the same weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from twinline.engine.ops.registry import StaticFacts, implements, plain_only
from twinline.facts.weight_form import PLAIN, WeightForm

ROWS = 32


def _refuse(facts: StaticFacts) -> str | None:
    if facts.device_type != "cpu":
        return "CPU only"
    if not torch.backends.mkldnn.is_available():
        return "this PyTorch was built without oneDNN"
    if facts.dtype != torch.bfloat16:
        return "packs bfloat16 only: other dtypes gain nothing"
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "this CPU has no bfloat16 instructions"
    return plain_only(facts)


@implements("linear", refuse=_refuse)
class PackedLinear:
    def pack(self, weight: Tensor, form: WeightForm = PLAIN) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)

    def __call__(self, x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
