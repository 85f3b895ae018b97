"""JSON as tools print it: with warnings before and after it, empty keys, one key twice, and numbers as text.

Owns getting at it. Every number stays the text that was printed. Must not know any tool.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from twinline.cards.text import plain

MOST_STARTS = 40


def parsed(text: str) -> Any:
    """The first object or array that begins a line of `text` and is whole; numbers stay text. None without one."""
    text = plain(text)
    decoder = json.JSONDecoder(object_pairs_hook=_once, parse_int=str, parse_float=str, parse_constant=str)
    for start in itertools.islice(re.finditer(r"^[\[{]", text, re.MULTILINE), MOST_STARTS):
        try:
            found, _ = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            continue  # a warning in brackets, or the whole is cut
        if found:
            return found
    return None


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """An object without its empty keys, and without keys that it gives twice with unlike values."""
    out: dict[str, Any] = {}
    torn = set()
    for key, value in pairs:
        if key and out.setdefault(key, value) != value:
            torn.add(key)
    return {key: value for key, value in out.items() if key not in torn}


def text_at(found: Any, *path: str) -> str | None:
    """The text or number at a path of keys, whatever their case; None if it is not there or is no plain value."""
    for key in path:
        if not isinstance(found, dict):
            return None
        found = next((value for name, value in found.items() if name.casefold() == key.casefold()), None)
    return found if isinstance(found, str) else None


def objects(found: Any) -> Iterator[dict[str, Any]]:
    """The objects of an array; an object itself."""
    yield from ([found] if isinstance(found, dict) else [one for one in found or () if isinstance(one, dict)])
