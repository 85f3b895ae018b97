"""Grammars over a batch's logits: what may not follow becomes impossible, on any device.

Owns the way of a mask from the host to the logits: unpacked there, one bool per token, and applied by an operation that
every device has.

Shapes: M rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from twinline.engine.bad_logits import BadLogits
from twinline.engine.request import Request


def forbid(logits_MV: Tensor, requests: Sequence[Request]) -> None:
    """Changes row i for `requests[i]`, in place, where it has a grammar. A row after a wrong guess stays as it is.
    Raises BadLogits for requests whose output has left their grammar, before anything is changed."""
    rows, masks, broken = [], [], {}
    for i, request in enumerate(requests):
        if request.constraint is not None:
            try:
                words = request.constraint.allowed(request.output, request.guessed)
            except ValueError as error:
                broken[request.id] = str(error)
                continue
            if words is not None:
                rows.append(i)
                masks.append(words)
    if broken:
        raise BadLogits(list(broken), f"the grammar cannot be followed ({next(iter(broken.values()))})")
    if not rows:
        return
    vocab = logits_MV.shape[1]
    bits = np.unpackbits(np.stack(masks).view(np.uint8), axis=1, count=vocab, bitorder="little")
    forbidden_GV = torch.from_numpy(bits == 0).to(logits_MV.device)
    if len(rows) == len(logits_MV):
        logits_MV.masked_fill_(forbidden_GV, -torch.inf)
        return
    index_G = torch.tensor(rows, device=logits_MV.device)
    logits_MV[index_G] = logits_MV[index_G].masked_fill(forbidden_GV, -torch.inf)
