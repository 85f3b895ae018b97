"""The reference ops in float64: what every log-probability and every op's result is measured against.

The reference computes in float32 where it sums, whatever comes in. Under `Double` its "float32" means float64, so the
definition itself runs at twice the width; tables and weights keep the values that the model gives them. `route_along`
lets the golden run follow another run's choice of experts: a near tie is the router check's affair, not an error of
everything behind it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from twinline.facts.models import Experts


class Double(TorchFunctionMode):
    """Where a function is told float32, it takes float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.float:
            return args[0].double()
        if kwargs.get("dtype") is torch.float32:
            kwargs = kwargs | {"dtype": torch.float64}
        return func(*args, **kwargs)


def scores(x_NX: Tensor, gate_EX: Tensor, e: Experts) -> Tensor:
    logits = F.linear(x_NX.double(), gate_EX.double())
    return logits.sigmoid() if e.score == "sigmoid" else logits.softmax(-1)


def route_along(x_NX: Tensor, gate_EX: Tensor, e: Experts, chosen_NK: Tensor) -> Tensor:
    """The weights `[N, K]` of experts that were chosen elsewhere: the second half of `ops/reference.py:route`."""
    weights_NK = scores(x_NX, gate_EX, e).gather(1, chosen_NK)
    if e.normalise:
        weights_NK = weights_NK / (weights_NK.sum(-1, keepdim=True) + 1e-20)
    return weights_NK * e.scale


def margins(x_NX: Tensor, gate_EX: Tensor, bias_E: Tensor | None, e: Experts) -> Tensor:
    """Per row, how far the choice of experts is from another one: the least gap, of groups and of experts, `[N]`."""
    choice = scores(x_NX, gate_EX, e)
    if bias_E is not None:
        choice = choice + bias_E.double()
    gaps = []
    if e.limit != "none" and e.groups > 1:
        grouped = choice.view(len(choice), e.groups, -1)
        best = min(2, grouped.shape[-1]) if e.limit == "top2" else 1
        group = grouped.topk(best, -1).values.sum(-1)
        ordered = group.sort(-1, descending=True)
        if e.groups_kept < e.groups:
            gaps.append(ordered.values[:, e.groups_kept - 1] - ordered.values[:, e.groups_kept])
        kept = torch.zeros_like(group, dtype=torch.bool).scatter_(1, ordered.indices[:, : e.groups_kept], True)
        choice = grouped.masked_fill(~kept[..., None], -torch.inf).flatten(1)
    ordered_NE = choice.sort(-1, descending=True).values
    if e.per_token < e.count:
        gaps.append(ordered_NE[:, e.per_token - 1] - ordered_NE[:, e.per_token])
    return torch.stack(gaps).min(0).values if gaps else torch.full((len(choice),), torch.inf, dtype=torch.float64)
