"""How many decimals a float32 needs: at most nine digits read back as the same float32.

Owns the rounding. Must not know what the numbers are, nor how they are sent. Writers of JSON know doubles alone, whose
digits tell a value apart from every other double: of a float32 half of them say nothing.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def decimals(values: NDArray[np.float32]) -> list[float]:
    """Doubles that as float32 are the values, and are written with nine digits at most.

    Some below 1e-14 have more: what they are divided by is a power of ten that no double is.
    """
    scales = _SCALES[values.view("<u4") >> 23 & 255]
    numbers: list[float] = (np.rint(values * scales) / scales).tolist()
    return numbers


# By a float32's biased exponent: the least power of ten of which 1 is less than half the distance to the next float32,
# for at a power of two the one before is that near. To this many decimals a value reads back as itself.
_SCALES = np.array([float(f"1e{max(0, math.floor((151 - max(1, e)) * math.log10(2)) + 1)}") for e in range(256)])
