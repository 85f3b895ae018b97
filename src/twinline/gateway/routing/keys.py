"""Chained keys of a prompt's blocks: equal keys mean equal tokens from the first on.

Owns where blocks end and how they are named. Must not know lines.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence

# 64 tokens up to 8,192, 256 up to 32,768, then 1,024: a turn of a conversation adds a few hundred tokens, so coarser
# blocks would hide much of what a line holds. 1,000 tokens have 15 keys, 32,768 have 224.
ENDS = (*range(64, 8193, 64), *range(8448, 32769, 256), *range(33792, 1048577, 1024))
_TOKEN = array("I").itemsize
_BYTES = tuple(end * _TOKEN for end in ENDS)


def block_keys(tokens: Sequence[int]) -> list[int]:
    """One key per whole block of a prompt of token ids; tokens after the last whole block have none.

    A key is Python's own hash of the key before and the block's bytes: 64 bits, so that two of a million blocks meet
    with a chance of one in 30 million; salted per process, so that no client can make prompts that meet; and faster
    than crc32. Keys therefore hold within one process only: they must not be stored or sent. Time is nearly all in
    packing a list of integers (10 ns a token); an `array("I")` is taken as it is.
    """
    return _further((), tokens, len(tokens))


def keys_after(known: Sequence[int], prompt: Sequence[int], output: Sequence[int]) -> Sequence[int]:
    """`block_keys` of `prompt` and then `output`, whose first blocks have the keys `known`.

    Only what comes after these is looked at: the end of an answer costs its own length, not its prompt's.
    """
    length = len(prompt) + len(output)
    if bisect_right(ENDS, length) <= len(known):
        return known
    first = covered(len(known))
    return _further(known, [*prompt[first:], *output[max(0, first - len(prompt)) :]], length)


def _further(known: Sequence[int], fresh: Sequence[int], length: int) -> list[int]:
    """`known` and the keys of the blocks after them; `fresh` are the tokens there, of `length` in all."""
    keys = list(known)
    ends = _BYTES[len(keys) : bisect_right(ENDS, length)]
    if not ends:
        return keys
    data = (fresh if isinstance(fresh, array) and fresh.typecode == "I" else array("I", fresh)).tobytes()
    key = keys[-1] if keys else 0
    before = covered(len(keys)) * _TOKEN
    start = 0
    for end in ends:
        end -= before
        key = hash((key, data[start:end]))
        keys.append(key)
        start = end
    return keys


def covered(count: int) -> int:
    """Tokens that the first `count` keys stand for."""
    return ENDS[count - 1] if count else 0
