"""Token ids of a text, span by span: what stands between two added tokens is tokenized once and remembered.

Owns the cuts and the memory, for vocabularies in which a span's ids do not depend on what stands around it: byte-level
ones whose added tokens take nothing beside them (DeepSeek, Qwen, Llama 3). So a conversation that grows by a turn costs
the tokenizing of that turn. Must not know templates, nor which tokens are special.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers

REMEMBERED_BYTES = 64 << 20
# A pre-tokenizer that looks no further than the span: Metaspace, for one, asks whether it opens the text.
_LOCAL = frozenset({"ByteLevel", "Split", "Digits", "Sequence"})


class Spans:
    """The library's `encode` without its special tokens. May be called from any thread.

    Remembered in two generations of half the bytes each: a span is written to the young one, which becomes the old one
    when it is full; what is used in between is carried over. So what was used last is kept, without an order.
    """

    def __init__(self, backend: tokenizers.Tokenizer, definition: Mapping[str, Any], bytes_: int = REMEMBERED_BYTES):
        """`definition` is the tokenizer.json of `backend`, which may have had added tokens since.

        Raises ValueError for a vocabulary whose spans are not independent.
        """
        added = list(backend.get_added_tokens_decoder().items())
        if not set(_kinds(definition.get("pre_tokenizer"))) <= _LOCAL:
            raise ValueError("its pre-tokenizer may look beyond a span")
        if any(token.single_word or token.lstrip or token.rstrip for _, token in added):
            raise ValueError("its added tokens take what stands beside them")
        # The library cuts twice, the second time after normalizing; these cuts are the same where there is none to do.
        plain = {token.content: identity for identity, token in added if not token.normalized}
        late = {token.content: identity for identity, token in added if token.normalized}
        normalizer = definition.get("normalizer")
        if normalizer is not None and normalizer.get("normalizers") != []:
            late = {}  # found inside a span, by the library itself
        self._backend = backend
        self._added = {text: array("I", (identity,)) for text, identity in (plain | late).items()}
        self._cuts = [(_between(texts), cut_out) for texts, cut_out in ((plain, {}), (late, plain)) if texts]
        self._half = bytes_ // 2
        self._young: dict[str, array[int]] = {}
        self._old: dict[str, array[int]] = {}
        self._size = 0  # bytes of the young, about: threads may miscount it until the next change of generations

    def encode(self, text: str) -> list[int]:
        """Token ids; added tokens written out in the text are recognised."""
        spans = self._spans(text)
        known = {span: self._find(span) for span in spans}
        missing = [span for span, found in known.items() if found is None]
        if missing:
            made = self._backend.encode_batch_fast(missing, add_special_tokens=False)
            for span, encoding in zip(missing, made, strict=True):
                known[span] = self._keep(span, array("I", encoding.ids))
        ids: list[int] = []
        for span in spans:
            ids += known[span] or ()
        return ids

    def _spans(self, text: str) -> list[str]:
        spans = [text]
        for cut, cut_out in self._cuts:
            spans = [part for span in spans for part in ([span] if span in cut_out else cut.split(span)) if part]
        return spans

    def _find(self, span: str) -> array[int] | None:
        found = self._added.get(span) or self._young.get(span)
        if found is None and (found := self._old.get(span)) is not None:
            self._keep(span, found)
        return found

    def _keep(self, span: str, ids: array[int]) -> array[int]:
        size = sys.getsizeof(span) + sys.getsizeof(ids)
        if size > self._half // 8:
            return ids  # one text must not put out all others
        if self._size + size > self._half:
            self._old, self._young, self._size = self._young, {}, 0
        self._young[span] = ids
        self._size += size
        return ids


def _kinds(step: Mapping[str, Any] | None) -> Iterable[str]:
    if step is not None:
        yield step["type"]
        for inner in step.get("pretokenizers", ()):
            yield from _kinds(inner)


def _between(texts: Iterable[str]) -> re.Pattern[str]:
    """Cuts at any of the texts and gives them too; at one place the longest wins, as in the library."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
