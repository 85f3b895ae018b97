"""The bytes of every token, from a model folder's tokenizer.json.

Owns which tokens an answer's text may be made of. The engine needs it for grammars alone: everywhere else it knows ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from twinline.facts.pieces import PieceRule

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`pieces[i]`: the bytes of token i; empty for one that has none. `marks`: special tokens, which are not text.

    As many pieces as the model has logits: an id beyond the tokenizer's stands for nothing.
    """

    pieces: tuple[bytes, ...]
    marks: frozenset[int]

    @classmethod
    def load(cls, folder: Path, size: int) -> Vocabulary:
        """Raises ValueError, in one line, for a folder without a tokenizer that can be read."""
        path = folder / "tokenizer.json"
        try:
            text = path.read_text("utf-8")
            backend = tokenizers.Tokenizer.from_str(text)
            rule = PieceRule.of(json.loads(text).get("decoder"))
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror}") from error
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path} is not a tokenizer that can be read: {' '.join(str(error).split())}") from error
        added: Mapping[int, tokenizers.AddedToken] = backend.get_added_tokens_decoder()
        named = _special_texts(folder)
        marks = frozenset(i for i, token in added.items() if token.special or token.content in named)
        literal = frozenset(added) if rule.byte_level else marks
        pieces = [b""] * size
        for piece, token in backend.get_vocab(with_added_tokens=True).items():
            if token < size:
                pieces[token] = rule.to_bytes(piece, token in literal)
        return cls(tuple(pieces), marks)


def _special_texts(folder: Path) -> set[str]:
    """What the folder's other files call special, as the gateway reads them: it does not show these tokens."""
    texts: set[str] = set()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        said: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        entries: list[Any] = [said.get(named) for named in _NAMED]
        for field in ("additional_special_tokens", "extra_special_tokens"):
            more = said.get(field) or ()
            entries += more.values() if isinstance(more, dict) else more
        declared = said.get("added_tokens_decoder") or {}
        entries += [t for t in declared.values() if isinstance(t, dict) and t.get("special")]
        texts |= {text for e in entries if isinstance(text := e.get("content") if isinstance(e, dict) else e, str)}
    return texts
