"""Listening to a model at work: every call of an op, in order, with its place in the model.

Owns the wrapping of bound ops and the record of a call. Judges nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from twinline.engine.models.transformer import Transformer

OWNS_WEIGHTS = ("linear", "experts")  # their second argument is a layout of the provider's own


@dataclass(frozen=True)
class Call:
    """One call: `place` is the module that made it (`layers.2.attention.q_up`); `out` of kv_write, which returns
    nothing, is the cache as it was left, where that was recorded."""

    op: str
    provider: str
    place: str
    args: tuple[Any, ...]
    out: Any
    function: Any

    @property
    def layer(self) -> str:
        parts = self.place.split(".")
        return f"layer {parts[1]}" if parts[0] == "layers" else parts[0]


class _Tapped:
    """An op with an ear on it. `hear(op, place, args, op's function)` gives the result."""

    def __init__(self, op: str, function: Any, hear: Callable[[str, Any, tuple[Any, ...]], Any]):
        self.op, self.function, self.hear = op, function, hear

    def pack(self, *weights: Tensor) -> Any:
        return self.function.pack(*weights)

    def __call__(self, *args: Any) -> Any:
        return self.hear(self.op, self.function, args)


@contextmanager
def tapped(model: Transformer, ops: frozenset[str], hear: Callable[[str, Any, tuple[Any, ...]], Any]) -> Iterator[None]:
    """While it lasts, each call of one of `ops` goes to `hear(op, function, args)`, whose result the model gets."""
    bound = model.ops
    before = {op: getattr(bound, op) for op in ops}
    try:
        for op, function in before.items():
            setattr(bound, op, _Tapped(op, function, hear))
        yield
    finally:
        for op, function in before.items():
            setattr(bound, op, function)


@contextmanager
def placed(model: Transformer) -> Iterator[list[str]]:
    """While it lasts, the list's last entry is the name of the module that runs."""
    stack: list[str] = [""]

    def enter(name: str) -> Callable[..., None]:
        return lambda module, args: stack.append(name)

    def leave(module: Any, args: Any, out: Any) -> None:
        stack.pop()

    hooks = []
    for name, module in model.named_modules():
        if name:
            hooks += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        yield stack
    finally:
        for hook in hooks:
            hook.remove()
