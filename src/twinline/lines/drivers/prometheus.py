"""Prometheus text, as far as engines' counters need it: a name's samples, added up over their labels.

Owns the reading. Must not know any engine's names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping


def totals(body: bytes) -> Mapping[str, float]:
    """Each sample name with the sum of its samples. A line that is no sample is skipped; never raises."""
    sums: dict[str, float] = {}
    for line in body.decode("utf-8", "replace").splitlines():
        if not line or line.startswith("#"):
            continue
        if "{" in line:
            name, _, rest = line.partition("{")
            rest = rest.rpartition("}")[2]
        else:
            name, _, rest = line.partition(" ")
        try:
            value = float(rest.split()[0])
        except (ValueError, IndexError):
            continue
        value += sums.get(name, 0.0)
        if math.isfinite(value):
            sums[name] = value
    return sums


def whole(sums: Mapping[str, float], name: str) -> int | None:
    """The sum as a count, None where the engine does not say."""
    return int(sums[name]) if name in sums else None
