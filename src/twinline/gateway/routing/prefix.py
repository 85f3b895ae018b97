"""Which line was sent which prompt before: a bounded index over block keys.

Owns the guess of what a line holds in its cache. Must not know speeds or prices. It is a guess: lines evict without
telling, so what they report as cached corrects it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from twinline.gateway.routing.keys import ENDS, covered

MAX_BITS = 256


class PrefixIndex:
    """Block key -> set of lines, as bits of an integer. A line that starts anew gets a new bit, so that forgetting
    it costs nothing.

    Bounded by two generations of half the capacity: entries are written to the young one, and when it is full it
    becomes the old one and the old one is dropped; what is used in between is carried over. That keeps what was used
    last, as LRU does, without reordering at each use. In either generation a block is never newer than the blocks
    before it, so a look-up may bisect and a write may stop at the first block that is already there.
    """

    __slots__ = ("_bits", "_half", "_issued", "_old", "_young")

    def __init__(self, capacity: int = 100_000) -> None:
        if capacity < 2:
            raise ValueError(f"the prefix index has room for {capacity} blocks; it needs at least 2")
        self._half = capacity // 2
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._bits: dict[str, int] = {}
        self._issued = 0

    def __len__(self) -> int:
        """Blocks held; one that is in both generations counts twice."""
        return len(self._young) + len(self._old)

    def bit(self, line: str) -> int:
        """The line's bit now; it changes by `forget`."""
        bit = self._bits.get(line)
        if bit is None:
            if self._issued == MAX_BITS:  # after hundreds of restarts: begin anew rather than let the sets grow
                self._young, self._old, self._issued = {}, {}, 0
                others, self._bits = self._bits, {}
                for other in others:
                    self.bit(other)
            bit = self._bits[line] = 1 << self._issued
            self._issued += 1
        return bit

    def forget(self, line: str) -> None:
        """The line holds nothing any more: it restarted or is gone."""
        self._bits.pop(line, None)

    def held(self, keys: Sequence[int]) -> list[tuple[int, int]]:
        """(tokens, lines' bits), deepest first: a line holds the tokens of the first entry that has its bit."""
        young, old = self._young, self._old
        if not keys or (keys[0] not in young and keys[0] not in old):
            return []
        low, high = 1, len(keys)  # keys[:low] are there
        while low < high:
            middle = (low + high + 1) >> 1
            key = keys[middle - 1]
            if key in young or key in old:
                low = middle
            else:
                high = middle - 1
        found: list[tuple[int, int]] = []
        seen = 0
        first = young.get(keys[0]) or old.get(keys[0], 0)
        while low:
            key = keys[low - 1]
            bits = (young.get(key) or old.get(key, 0)) | seen
            if bits != seen:
                found.append((covered(low), bits))
                seen = bits
            if first | bits == bits:
                break
            # the deepest shallower block that has a line more
            start, end = 1, low - 1
            while start < end:
                middle = (start + end + 1) >> 1
                key = keys[middle - 1]
                if (young.get(key) or old.get(key, 0)) | bits != bits:
                    start = middle
                else:
                    end = middle - 1
            low = start
        return found

    def tokens(self, keys: Sequence[int], line: str) -> int:
        """How many tokens of the prompt the line holds, by the index."""
        bit = self.bit(line)
        return next((tokens for tokens, bits in self.held(keys) if bits & bit), 0)

    def put(self, keys: Sequence[int], bit: int) -> None:
        """The line with that bit was sent the prompt."""
        young, old = self._young, self._old
        for key in reversed(keys):
            bits = young.get(key)
            if bits is None:
                young[key] = old.get(key, 0) | bit
            elif bits & bit:
                break
            else:
                young[key] = bits | bit
        if len(young) > self._half:
            self._old, self._young = young, {}

    def correct(self, keys: Sequence[int], bit: int, cached_tokens: int) -> None:
        """The line reported that no more than `cached_tokens` of the prompt were in its cache *before* it: forget
        the blocks after them. The caller puts the prompt again if the line holds it since."""
        first = bisect_left(ENDS, cached_tokens + 1)
        for key in keys[first:]:
            for generation in (self._young, self._old):
                bits = generation.get(key)
                if bits is not None and bits & bit:
                    generation[key] = bits & ~bit
