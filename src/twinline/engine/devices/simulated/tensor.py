"""A tensor on a simulated chip: metadata of its own, over a tensor of the host that holds and computes the values.

Owns the tensor class and the accounting of its storage. What happens to an op stands in `dispatch.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from twinline.engine.devices.simulated.chip import COUNT, Chip

KIND = "simchip"
HOST = torch.device("cpu")
# Under the name that PyTorch knows before it is told ours: a device compares by kind, not by name.
DEVICES = tuple(torch.device("privateuseone", index) for index in range(COUNT))


class SimTensor(Tensor):
    """`host` holds the values; `chip` is whose memory they are accounted to."""

    host: Tensor
    chip: Chip
    way: ClassVar[Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]]
    """What happens to an op: `dispatch.run`, which needs this class itself."""

    # Without this every operation would first go through Tensor.__torch_function__, in Python.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return cls.way(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{repr(self.host)[:-1]}, device='{self.device}')"

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError("a tensor of a simulated chip cannot be pickled: move it to the cpu first")

    def __deepcopy__(self, memo: Any) -> Tensor:
        made = self.detach().clone().requires_grad_(self.requires_grad)
        made.__dict__ |= {key: one for key, one in self.__dict__.items() if key not in ("host", "chip")}
        return made

    def tolist(self) -> Any:
        return _to_host(self).tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy: use Tensor.cpu() first")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()


def wrap(host: Tensor, chip: Chip) -> SimTensor:
    """The chip's tensor over `host`, whose storage is accounted to the chip if it is new. Raises OutOfMemoryError."""
    storage = host.untyped_storage()
    if not hasattr(storage, "allocation"):
        # PyTorch keeps the Python object, and what hangs on it, for as long as the storage lives.
        storage.allocation = chip.memory.take(chip.index, storage.nbytes())  # type: ignore[attr-defined]
    made = Tensor._make_wrapper_subclass(
        SimTensor, host.shape, strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
        device=DEVICES[chip.index],
    )  # fmt: skip
    made.host, made.chip = host, chip
    return made


def _to_host(tensor: SimTensor) -> Tensor:
    return tensor.to(HOST)
