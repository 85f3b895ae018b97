"""What fits: weights and KV cache against the memory that is free, before anything large is read.

Owns the sums and their refusals. Loads nothing.
"""

from __future__ import annotations

import torch

from twinline.engine.devices.device import Device
from twinline.engine.models.transformer import Transformer
from twinline.facts.models import ModelSpec

GIB = 2**30


def weight_bytes(model: Transformer) -> int:
    """Bytes of a model's parameters, from their shapes alone; a tied head counts, because it is packed on its own."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def cache_tokens(
    spec: ModelSpec, dtype: torch.dtype, device: Device, weights: int, *, wanted: int, useful: int, least: int
) -> int:
    """How many tokens of KV cache to hold: `wanted`, or if that is 0 what is `useful`, within the device's share.

    Raises ValueError, with both sides of the sum, if weights and cache do not fit into what is free.
    """
    if wanted and wanted < least:
        raise ValueError(f"a cache of {wanted} tokens is too small: at least {least} are needed")
    per_token = spec.kv_values * dtype.itemsize
    free = device.free_memory()
    if free is None:
        if not wanted:
            raise ValueError(f"device {device.name} does not say how much memory is free: give --kv-tokens")
        return wanted
    left = free - weights
    if left < least * per_token:
        raise ValueError(
            f"the weights need {weights / GIB:.2f} GiB in {str(dtype).removeprefix('torch.')} and {free / GIB:.2f} GiB "
            f"are free: use a smaller model, a smaller dtype or a larger machine"
        )
    tokens = wanted or max(least, min(int(left * device.cache_share) // per_token, useful))
    if tokens * per_token > left:
        raise ValueError(
            f"a cache of {tokens} tokens needs {tokens * per_token / GIB:.2f} GiB beside {weights / GIB:.2f} GiB of "
            f"weights, and {free / GIB:.2f} GiB are free: at most {left // per_token} tokens fit"
        )
    return tokens
