"""One input of a fuzzer, and what a target is.

Owns how an input becomes numbers, texts and altered JSON. Must not know a parser.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILD, TINY = ROOT / "build" / "fuzz", ROOT / "src" / "twinline" / "models" / "tiny-r1"
SCRATCH = BUILD / ".scratch"
DEEP = "[" * 3000 + "]" * 3000
SPICE = (None, True, 0, 1, -1, 7, 2**31, 2**63, 10**400, 0.5, 1e308, math.inf, math.nan, "", "a", "\0", "\ud800",
         "~nobody/a", "a" * 300, "DEEP", [], {}, [[]], {"": {}}, ["a"], {"a": 1}, '{"a": "\\ud800"}')  # fmt: skip


class Given:
    """One input. Numbers are taken from its end and the material is what is left, so that a seed is what it is of."""

    def __init__(self, data: bytes) -> None:
        self._provider = fuzzer().FuzzedDataProvider(data)

    def number(self, most: int) -> int:
        return self._provider.ConsumeIntInRange(0, most)

    def one_of(self, things: Sequence[Any]) -> Any:
        return things[self.number(len(things) - 1)]

    def marks(self) -> list[int]:
        return [self.number(65535) for _ in range(self.number(7))]

    def word(self) -> str:
        return self._provider.ConsumeBytes(self.number(12)).decode("utf-8", "replace")

    def rest(self) -> bytes:
        return self._provider.ConsumeBytes(self._provider.remaining_bytes())

    def text(self) -> str:
        return self.rest().rstrip(b"\0").decode("utf-8", "replace")

    def altered(self, bases: Sequence[Any]) -> bytes:
        """JSON: the material as it is, or one of the bases with some of its values changed, renamed or moved."""
        if not self.number(3):
            return self.rest().rstrip(b"\0")
        value = copy.deepcopy(self.one_of(bases))
        for _ in range(1 + self.number(3)):
            holder, key = self.one_of(places := list(inside(value)) or [([0], 0)])
            what = self.number(len(SPICE) + 3)
            if what < len(SPICE):
                holder[key] = copy.deepcopy(SPICE[what])
            elif what == len(SPICE):
                holder[key] = self.word()
            elif what == len(SPICE) + 1 and isinstance(holder, dict):
                holder[self.word()] = holder.pop(key)
            else:
                other, at = self.one_of(places)
                holder[key] = copy.deepcopy(other[at])
        return json.dumps(value).replace('"DEEP"', DEEP).encode()


def inside(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a JSON value, as its holder and the key there."""
    for key, held in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(held, dict | list):
            yield from inside(held)


def cut(whole: Any, marks: Sequence[int]) -> list[Any]:
    edges = [0, *sorted(mark % (len(whole) + 1) for mark in marks), len(whole)]
    return [whole[begin:end] for begin, end in itertools.pairwise(edges)]


Made = tuple[Iterable[Any], Callable[[Given], None]]


def scratch() -> Path:
    SCRATCH.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=SCRATCH))


def fuzzer() -> Any:
    try:
        import atheris
    except ImportError:
        sys.exit('atheris is not installed: .venv/bin/python -m pip install "atheris>=3,<4"')
    return atheris
