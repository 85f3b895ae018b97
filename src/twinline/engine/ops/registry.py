"""Which implementation of each op a model uses: chosen once, when it is built, and explainable afterwards.

Owns the table of providers and the choosing. Knows no op's mathematics and no device's name.

An op is its reference function. A provider is a module, or a package of them, that implements some ops, each with a
condition on static facts (dtype, device type), never on values or the environment. A device lists its providers in
order; the first whose condition holds, and that a profile of the device does not refuse, is bound. Nothing falls back
at run time.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from twinline.engine.devices.device import dtype_name
from twinline.facts.weight_form import PLAIN, WeightForm

PROVIDERS: dict[str, str] = {
    "reference": "twinline.engine.ops.reference",
    "batched": "twinline.engine.ops.batched",
    "grouped": "twinline.engine.ops.grouped",
    "onednn": "twinline.engine.ops.onednn",
    "cpu": "twinline.engine.ops.cpu",
}

OPS = (
    "embedding",
    "rms_norm",
    "add_rms_norm",
    "linear",
    "silu_mul",
    "rope",
    "kv_write",
    "attention_prefill",
    "attention_decode",
    "mla_absorb",
    "mla_prefill",
    "mla_decode",
    "route",
    "experts",
)


@dataclass(frozen=True)
class StaticFacts:
    """What a provider may look at when it decides whether it can serve."""

    device_type: str
    dtype: torch.dtype
    head_size: int = 0  # of grouped-query attention
    weights: WeightForm = PLAIN  # of linear layers and experts
    head_weights: WeightForm = PLAIN  # of the output head


@dataclass(frozen=True)
class Implementation:
    """One op of one provider. `refuse` returns why it cannot serve under these facts, or None.

    `reads_values`: it looks at tensor values on the host, so that a recorded step cannot replay it. `gathers`: it
    copies the whole past of a batch together, and wants to be told which places are beyond a sequence's length.
    """

    op: str
    provider: str
    function: Any
    refuse: Callable[[StaticFacts], str | None]
    reads_values: bool = False
    gathers: bool = False


_registered: dict[tuple[str, str], Implementation] = {}


def implements(
    op: str,
    *,
    refuse: Callable[[StaticFacts], str | None] = lambda facts: None,
    reads_values: bool = False,
    gathers: bool = False,
) -> Callable[[Any], Any]:
    """Registers a function (or an object with `pack`, for ops that own a weight layout) as its module's provider."""
    if op not in OPS:
        raise KeyError(f"{op!r} is not an op; ops are {', '.join(OPS)}")

    def register(function: Any) -> Any:
        within = function.__module__ + "."
        provider = next(name for name, module in PROVIDERS.items() if within.startswith(module + "."))
        instance = function() if isinstance(function, type) else function
        _registered[op, provider] = Implementation(op, provider, instance, refuse, reads_values, gathers)
        return function

    return register


@dataclass(frozen=True)
class Choice:
    op: str
    provider: str
    reads_values: bool
    gathers: bool
    passed_over: tuple[tuple[str, str], ...]
    """Providers that came earlier in the device's order, each with the reason it was not taken."""


def candidates(op: str, order: tuple[str, ...], facts: StaticFacts) -> Iterator[tuple[Implementation, str | None]]:
    """Each provider in `order` with why it cannot serve `op` under these facts, None where it can. One that does not
    implement it has no function."""
    for provider in order:
        importlib.import_module(PROVIDERS[provider])
        found = _registered.get((op, provider))
        if found is None:
            yield Implementation(op, provider, None, lambda facts: None), "does not implement it"
        else:
            yield found, found.refuse(facts)


def plain_only(facts: StaticFacts) -> str | None:
    """The condition of providers that compute with plain weights alone."""
    for form in (facts.weights, facts.head_weights):
        if form.kind != "plain":
            return f"no {form} weights"
    return None


class PackedOp(Protocol):
    """An op that owns its weights' layout: `pack` once at load, `pack(weight, form)`, then call with what it gave."""

    def pack(self, *weights: Any) -> Any: ...
    def __call__(self, x: Tensor, packed: Any, *args: Any) -> Tensor: ...


class Ops:
    """The bound ops of one model: `ops.rms_norm(...)`. `choices` says who serves each, and why."""

    embedding: Callable[..., Tensor]
    rms_norm: Callable[..., Tensor]
    add_rms_norm: Callable[..., tuple[Tensor, Tensor]]
    linear: PackedOp
    silu_mul: Callable[..., Tensor]
    rope: Callable[..., Tensor]
    kv_write: Callable[..., None]
    attention_prefill: Callable[..., Tensor]
    attention_decode: Callable[..., Tensor]
    mla_absorb: Callable[..., Tensor]
    mla_prefill: Callable[..., Tensor]
    mla_decode: Callable[..., Tensor]
    route: Callable[..., tuple[Tensor, Tensor]]
    experts: PackedOp

    def __init__(
        self,
        order: tuple[str, ...],
        facts: StaticFacts,
        refused: Mapping[tuple[str, str], str] = MappingProxyType({}),
    ):
        """Binds every op to the first provider in `order` that serves it and is not in `refused`, (op, provider) to
        reason. ValueError if none is left.

        Where all that serve an op are refused the last of them is bound, if the model does not call it: see
        `refuse_broken`.
        """
        self.facts, self.refused = facts, dict(refused)
        self.choices = tuple(self._bind(op, order) for op in OPS)

    def _bind(self, op: str, order: tuple[str, ...]) -> Choice:
        passed_over: list[tuple[str, str]] = []
        last: Choice | None = None
        for found, reason in candidates(op, order, self.facts):
            bad = self.refused.get((op, found.provider))
            if found.function is not None and reason is None:
                last = Choice(op, found.provider, found.reads_values, found.gathers, tuple(passed_over))
                setattr(self, op, found.function)
                if bad is None:
                    return last
            passed_over.append((found.provider, str(bad if reason is None else reason)))
        if last is None:
            raise ValueError(f"no provider of {', '.join(order)} implements {op}")
        return last

    def refuse_broken(self, used: frozenset[str]) -> None:
        """Raises ValueError if an op in `used` has only providers that are refused."""
        for c in self.choices:
            if c.op in used and (why := self.refused.get((c.op, c.provider))) is not None:
                raise ValueError(
                    f"no provider of {c.op} is right on this device in {dtype_name(self.facts.dtype)}: {why}"
                )

    def refuse_reference(self, used: frozenset[str]) -> None:
        """Raises ValueError if the reference serves an op in `used`."""
        fallen = [c.op for c in self.choices if c.provider == "reference" and c.op in used]
        if fallen:
            raise ValueError(f"--strict-ops: only the reference implements {', '.join(fallen)} here")

    def explain(self, used: frozenset[str] = frozenset(OPS)) -> str:
        """One line per op in `used`: who serves it, and why those before it were passed over."""
        lines = []
        for c in (c for c in self.choices if c.op in used):
            why = "; ".join(f"{name}: {reason}" for name, reason in c.passed_over)
            lines.append(f"{c.op:18} {c.provider:10} {f'({why})' if why else ''}".rstrip())
        return "\n".join(lines)
