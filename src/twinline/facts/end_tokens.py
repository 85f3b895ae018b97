"""Which tokens end an answer, as the files of a model folder say.

Owns how that is read. Must not know which files those are: some read them all, and some have read them already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def end_ids(sources: Iterable[Mapping[str, Any]], where: object) -> frozenset[int]:
    """Those of the first source that names any, one id or a list (Qwen, GLM). Raises ValueError that begins with
    `where`."""
    for source in sources:
        value = source.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(token) is int for token in ids):
            raise ValueError(f"{where}: eos_token_id must be a token id or a list of them, not {value!r:.60}")
        if ids:
            return frozenset(ids)
    return frozenset()
