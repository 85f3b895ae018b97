"""The mixture of experts: routed experts as one op, and the shared experts beside them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from twinline.engine.models.parts import MLP, Part, parameter
from twinline.engine.ops.registry import Ops
from twinline.facts.models import Experts


class RoutedExperts(Part):
    """All experts' matrices stacked: `gate_up` `[E, 2I, X]`, `down` `[E, X, I]`; packed together by the provider."""

    def __init__(self, ops: Ops, hidden: int, e: Experts):
        super().__init__()
        self.ops, self.form = ops, ops.facts.weights
        dtype = ops.facts.dtype
        self.gate_up: Any = parameter(e.count, 2 * e.inner, hidden, dtype=dtype, pieces=(e.inner, e.inner))
        self.down: Any = parameter(e.count, hidden, e.inner, dtype=dtype)
        self.packed: Any = None

    def seal(self) -> None:
        self.packed = self.ops.experts.pack(self.loaded("gate_up"), self.loaded("down"), self.form)
        self.gate_up = self.down = None

    def forward(self, x_NX: Tensor, chosen_NK: Tensor, weights_NK: Tensor, base_NX: Tensor | None) -> Tensor:
        return self.ops.experts(x_NX, self.packed, chosen_NK, weights_NK, base_NX)


class Gate(Part):
    """The router. Weight and correction bias are kept in float32, whatever the model's dtype (engines.md 3.9, 3.10)."""

    def __init__(self, ops: Ops, hidden: int, e: Experts):
        super().__init__()
        self.ops, self.e = ops, e
        self.weight = parameter(e.count, hidden, dtype=torch.float32)
        self.bias = parameter(e.count, dtype=torch.float32) if e.correction_bias else None

    def forward(self, x_NX: Tensor) -> tuple[Tensor, Tensor]:
        return self.ops.route(x_NX, self.weight, self.bias, self.e)


class MoE(Part):
    def __init__(self, ops: Ops, hidden: int, e: Experts):
        super().__init__()
        self.gate = Gate(ops, hidden, e)
        self.experts = RoutedExperts(ops, hidden, e)
        self.shared = MLP(ops, hidden, e.shared_inner) if e.shared_inner else None

    def forward(self, x_NX: Tensor) -> Tensor:
        shared = None if self.shared is None else self.shared(x_NX)
        return self.experts(x_NX, *self.gate(x_NX), shared)
