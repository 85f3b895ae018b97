"""What fits: weights and KV cache against the memory that is free, before anything large is read.

Owns the sums and their refusals. Loads nothing.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from twinline.engine.devices.device import Device
from twinline.engine.models.moe import RoutedExperts
from twinline.engine.models.parts import Linear
from twinline.engine.models.transformer import Transformer
from twinline.facts.models import ModelSpec
from twinline.facts.weight_form import PLAIN

GIB = 2**30


def weight_bytes(model: Transformer) -> int:
    """Bytes of a model's weights in the forms that they will be packed in, scales included, from their shapes alone.

    A tied head counts, because it is packed on its own.
    """
    return sum(_part_bytes(module) for module in model.modules())


def _part_bytes(part: nn.Module) -> int:
    """Of a part's own parameters: matrices of linear layers and of experts in their form, all else in its dtype."""
    forms = {"weight": part.form} if isinstance(part, Linear) else {}
    if isinstance(part, RoutedExperts):
        forms = dict.fromkeys(("gate_up", "down"), part.form)
    total = 0
    for name, p in part.named_parameters(recurse=False):
        rows, columns = p.shape[-2:] if p.ndim > 1 else (1, p.shape[0])
        total += math.prod(p.shape[:-2]) * forms.get(name, PLAIN).bytes(rows, columns, p.element_size())
    return total


def cache_tokens(
    spec: ModelSpec, dtype: torch.dtype, device: Device, weights: int, *, wanted: int, useful: int, least: int,
    predictors: int = 0,
) -> int:  # fmt: skip
    """How many tokens of KV cache to hold: `wanted`, or if that is 0 what is `useful`, within the device's share.
    `predictors`: prediction layers that have a cache beside the model's own layers.

    Raises ValueError, with both sides of the sum, if weights and cache do not fit into what is free.
    """
    if wanted and wanted < least:
        raise ValueError(f"a cache of {wanted} tokens is too small: at least {least} are needed")
    per_token = spec.kv_values // spec.layers * (spec.layers + predictors) * dtype.itemsize
    free = device.free_memory()
    if free is None:
        if not wanted:
            raise ValueError(f"device {device.name} does not say how much memory is free: give --kv-tokens")
        return wanted
    left = free - weights
    if left < least * per_token:
        raise ValueError(
            f"the weights need {weights / GIB:.2f} GiB in {str(dtype).removeprefix('torch.')} and the least cache, of "
            f"{least} tokens, {least * per_token / GIB:.2f} GiB; {free / GIB:.2f} GiB are free: use a smaller model, a "
            f"smaller dtype, a smaller form of weights, smaller pages or a larger machine"
        )
    tokens = wanted or max(least, min(int(left * device.cache_share) // per_token, useful))
    if tokens * per_token > left:
        raise ValueError(
            f"a cache of {tokens} tokens needs {tokens * per_token / GIB:.2f} GiB beside {weights / GIB:.2f} GiB of "
            f"weights, and {free / GIB:.2f} GiB are free: at most {left // per_token} tokens fit"
        )
    return tokens
