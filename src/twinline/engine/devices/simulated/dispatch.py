"""The way of every op on a simulated chip: whose it is, whether it is allowed, what is planted, the host's own kernel.

Owns that order. The trap here is aliasing: memory of the host must never be shared with a tensor that calls itself the
chip's, nor one chip's with another's, so what crosses is copied.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._mode_utils import no_dispatch

from twinline.engine.devices.simulated.chip import CHIPS, Call, Chip
from twinline.engine.devices.simulated.overload import Overload, overload
from twinline.engine.devices.simulated.tensor import HOST, KIND, SimTensor, wrap

_here = threading.local()


def current() -> int:
    """The index of the calling thread's current chip."""
    return getattr(_here, "index", 0)


def set_current(index: int) -> None:
    _here.index = index


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs an op some of whose tensors, or whose result, are a chip's."""
    facts = overload(func)
    inputs = _Inputs()
    host_args = [inputs.host(one) for one in args]
    host_kwargs = {key: inputs.host(one) for key, one in kwargs.items()} if kwargs else kwargs
    chip = inputs.chip
    if chip is None or facts.crosses or inputs.foreign or inputs.other is not None:
        return _across(func, facts, args, kwargs, host_args, host_kwargs, inputs)
    if facts.views:
        return _views(func, args, chip, func(*host_args, **host_kwargs))
    _live(chip, facts.name)
    out = _planted(chip, facts, func, host_args, host_kwargs, "") if chip.planted else func(*host_args, **host_kwargs)
    return _written(facts, args, kwargs, out, chip) if facts.writes else _wrapped(out, chip, False)


def _across(
    func: Any,
    facts: Overload,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    host_args: list[Any],
    host_kwargs: dict[str, Any],
    inputs: _Inputs,
) -> Any:
    """An op that makes a tensor from nothing, takes something from one place to another, or mixes places."""
    target = _target(facts, args, kwargs)
    if target is not None:
        _place(facts, host_args, host_kwargs)
    into = inputs.chip if target is None else None if target.type != KIND else CHIPS[_index(target)]
    chip = inputs.chip if inputs.chip is not None else into
    assert chip is not None
    if (inputs.foreign or inputs.other is not None) and not facts.mixes:
        second = "cpu" if inputs.other is None else f"{KIND}:{inputs.other.index}"
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, "
            f"{KIND}:{chip.index} and {second}, in aten::{facts.name}"
        )
    for one in dict.fromkeys((chip, inputs.other, into)):
        if one is not None:
            _live(one, facts.name)
    if facts.generator and host_kwargs.get("generator") is None:
        host_kwargs = {**host_kwargs, "generator": chip.generator}
    if chip.planted:
        direction = _direction(facts, args, inputs, into)
        out = _planted(chip, facts, func, host_args, host_kwargs, direction)
    else:
        out = func(*host_args, **host_kwargs)
    if facts.writes:
        return _written(facts, args, kwargs, out, chip)
    if target is None or into is not None:
        return _wrapped(out, into or chip, inputs.foreign)
    return _copied(out)


def _live(chip: Chip, name: str) -> None:
    """One op more; raises or blocks where that is due."""
    chip.ops += 1
    if chip.alert is not None and chip.ops >= chip.alert:
        chip.suffer(name)


class _Inputs:
    """What the arguments of one op are: `chip` the first tensor's, `other` a second chip, `foreign` a host's tensor."""

    __slots__ = ("chip", "foreign", "other")

    def __init__(self) -> None:
        self.chip: Chip | None = None
        self.other: Chip | None = None
        self.foreign = False

    def host(self, one: Any) -> Any:
        """The argument with the host's tensors in place of the chip's."""
        kind = type(one)
        if kind is SimTensor:
            if one.chip is not self.chip:
                if self.chip is None:
                    self.chip = one.chip
                else:
                    self.other = one.chip
            return one.host
        if kind is list or kind is tuple:
            return kind([self.host(each) for each in one])
        if (kind is Tensor or kind is Parameter) and one.ndim:
            self.foreign = True
        return one


def _index(device: torch.device) -> int:
    return current() if device.index is None else device.index


def _target(facts: Overload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    """Where the result belongs if the call says so, else None."""
    if facts.device is not None:
        given = kwargs.get("device")
        if given is None and facts.device < len(args):
            given = args[facts.device]
        if given is not None:
            return torch.device(given)
    if facts.name in ("to", "type_as") and len(args) > 1 and isinstance(args[1], Tensor):
        return args[1].device
    return None


def _place(facts: Overload, args: list[Any], kwargs: dict[str, Any]) -> None:
    """The host in place of the chip as the device that is asked for."""
    if "device" in kwargs:
        kwargs["device"] = HOST
    elif facts.device is not None and facts.device < len(args):
        args[facts.device] = HOST


def _direction(facts: Overload, args: tuple[Any, ...], inputs: _Inputs, into: Chip | None) -> str:
    if into is None:
        return "to_host"
    if facts.name in ("copy_", "_copy_from"):
        to, source = (args[0], args[1]) if facts.name == "copy_" else (args[1], args[0])
        if type(to) is not SimTensor:
            return "to_host"
        if type(source) is not SimTensor:
            return "to_chip"
        return "" if to.chip is source.chip else "to_peer"
    if facts.name in ("_local_scalar_dense", "item"):
        return "to_host"
    return "to_peer" if inputs.chip is not None and inputs.chip is not into else ""


def _planted(chip: Chip, facts: Overload, func: Any, args: list[Any], kwargs: dict[str, Any], direction: str) -> Any:
    """The op as a chip with a profile or faults does it."""
    name = facts.name
    if name in chip.missing or (chip.only is not None and name not in chip.only and facts.aten):
        raise NotImplementedError(
            f"aten::{name} is not implemented for {KIND}:{chip.index} (simulated): it is missing in this profile"
        )
    call = Call(chip, name, func, args, kwargs, direction, facts.writes)
    if chip.refused:
        _refuse(call)
    for before in chip.before.get(name, ()):
        before(call)
    out = func(*call.args, **call.kwargs)
    for after in (*chip.after.get(name, ()), *chip.every):
        out = after(call, out)
    return out


# Moving and holding bytes needs no arithmetic: a chip does it for dtypes that it does not compute in.
_MOVES = frozenset("empty empty_strided empty_like new_empty zero_ clone contiguous copy_ _copy_from detach".split())


def _refuse(call: Call) -> None:
    dtypes = {one.dtype for one in _flat([*call.args, *call.kwargs.values()]) if isinstance(one, Tensor)}
    wanted = call.kwargs.get("dtype") or next((one for one in call.args if type(one) is torch.dtype), None)
    if (call.name in _MOVES or call.direction) and len(dtypes | {wanted} - {None}) < 2:
        return
    for dtype in (dtypes | {wanted}) & call.chip.refused:
        kind = {"bfloat16": "BFloat16", "float16": "Half"}.get(str(dtype)[6:], str(dtype)[6:])
        raise NotImplementedError(
            f"\"{call.name}\" not implemented for '{kind}' on {KIND}:{call.chip.index} (simulated): "
            f"the chip does not support it"
        )


def _flat(args: list[Any]) -> list[Any]:
    flat: list[Any] = []
    for one in args:
        flat += _flat(list(one)) if isinstance(one, list | tuple) else [one]
    return flat


def _views(func: Any, args: tuple[Any, ...], chip: Chip, out: Any) -> Any:
    """Views cost a chip nothing: no op runs. They are inference tensors where the original is, and not elsewhere."""
    if isinstance(out, list | tuple):
        return type(out)([_views(func, args, chip, one) for one in out])
    if args[0].is_inference():
        return wrap(out, chip)
    if torch.is_inference_mode_enabled():
        with torch._C._InferenceMode(False):
            return wrap(out, chip)
    made = wrap(out, chip)
    torch._functionalize_unsafe_set(made, args[0])  # autograd wants to see that both share a storage
    return made


def _wrapped(out: Any, chip: Chip, foreign: bool) -> Any:
    if isinstance(out, Tensor):
        allocation = getattr(out.untyped_storage(), "allocation", None)
        # Some ops return what they were given where there is nothing to do.
        if foreign if allocation is None else allocation.memory is not chip.memory:
            out = out.clone()
        return wrap(out, chip)
    if isinstance(out, list | tuple):
        return type(out)([_wrapped(one, chip, foreign) for one in out])
    return out


def _copied(out: Any) -> Any:
    """For the host, which must not look into the chip's memory."""
    if isinstance(out, Tensor) and hasattr(out.untyped_storage(), "allocation"):
        return out.clone()
    return out


def _written(facts: Overload, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, chip: Chip) -> Any:
    """The arguments that the op wrote to, where it returns them; what it made anew, as the chip's."""
    results = out if facts.many else (out,)
    found = []
    for place, result in zip(facts.returns, results, strict=True):
        if place is None:
            found.append(_wrapped(result, chip, False))
            continue
        written = kwargs[place] if isinstance(place, str) else args[place]
        if type(written) is SimTensor and written.shape != written.host.shape:
            _reshape(written)
        found.append(written)
    if facts.many:
        return tuple(found)
    return found[0] if found else None


def _reshape(written: SimTensor) -> None:
    """An op gave its output another shape: the metadata follow. Storage that grew is accounted."""
    storage = written.host.untyped_storage()
    storage.allocation = written.chip.memory.take(written.chip.index, storage.nbytes())  # type: ignore[attr-defined]
    torch._functionalize_unsafe_set(written, wrap(written.host, written.chip))
    with no_dispatch():
        before = torch._C._meta_in_tls_dispatch_include()
        torch._C._set_meta_in_tls_dispatch_include(True)
        try:
            torch.ops.aten.as_strided_.default(
                written, written.host.shape, written.host.stride(), written.host.storage_offset()
            )
        finally:
            torch._C._set_meta_in_tls_dispatch_include(before)


SimTensor.way = staticmethod(run)
