"""What is true of an aten overload whatever it is called with: read from its schema once, then looked up.

Owns the reading of schemas. Knows no tensors and no chips.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

# Ops that real accelerators also let take a tensor of the host beside their own.
MIXES = frozenset(
    "copy_ _copy_from _to_copy to index index_put index_put_ _index_put_impl_ type_as set_ set_data".split()
)
CROSSES = frozenset("copy_ _copy_from to type_as item _local_scalar_dense".split())
# Their schemas say that the result may be the argument; it may as well be a copy, so they are kernels and not views.
COPIES = frozenset("to contiguous reshape flatten ravel type_as reshape_as".split())


@dataclass(frozen=True, slots=True)
class Overload:
    """`returns` names, for each result, the argument that it is (an index or a keyword), None for a new tensor.

    `device`: where among the arguments a device can be given, None where it cannot; `generator`: whether one can.
    `crosses`: it may take something from one place to another.
    """

    name: str
    aten: bool
    views: bool
    writes: bool
    reshapes: bool
    mixes: bool
    returns: tuple[int | str | None, ...]
    many: bool
    device: int | None
    generator: bool
    crosses: bool


def _place(schema: Any, found: int) -> int | str:
    argument = schema.arguments[found]
    return argument.name if argument.kwarg_only else found


def _read(func: Any) -> Overload:
    schema = func._schema
    space, _, name = schema.name.rpartition("::")
    written: dict[str, int | str] = {}
    shared = False
    for index, argument in enumerate(schema.arguments):
        alias = argument.alias_info
        if alias is None:
            continue
        if alias.is_write:
            for one in alias.before_set:
                written[one] = _place(schema, index)
        else:
            shared = True
    returns = []
    for result in schema.returns:
        alias = result.alias_info
        names = alias.before_set if alias is not None else ()
        returns.append(next((written[one] for one in names if one in written), None))
    names = [argument.name for argument in schema.arguments]
    return Overload(
        name=name,
        aten=space == "aten",
        views=name not in COPIES and shared and not written and any(r.alias_info is not None for r in schema.returns),
        writes=schema.is_mutable,
        reshapes=torch.Tag.inplace_view in func.tags,
        mixes=name in MIXES or space != "aten",
        returns=tuple(returns),
        many=len(returns) > 1,
        device=names.index("device") if "device" in names else None,
        generator="generator" in names,
        crosses=space != "aten" or name in CROSSES or "device" in names or "generator" in names,
    )


_known: dict[Any, Overload] = {}


def overload(func: Any) -> Overload:
    """The facts of `func`, an `OpOverload`."""
    found = _known.get(func)
    if found is None:
        found = _known[func] = _read(func)
    return found
