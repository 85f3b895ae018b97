"""A model's tokenizer: text to token ids, ids to bytes and text, and which ids begin and end a text.

Owns what the files of a model folder say about the vocabulary. Must not know chat templates, nor any line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from twinline.facts.end_tokens import end_ids
from twinline.facts.mistaken import taken_for
from twinline.facts.pieces import PieceRule
from twinline.gateway.text.detokenize import Detokenizer
from twinline.gateway.text.folder import ModelFolder, read_text
from twinline.gateway.text.spans import Spans

# Batches here hold one text: threads of the library's own would win nothing, and it warns of forks after using them.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _eos_ids(folder: ModelFolder) -> frozenset[int]:
    """The end tokens of generation_config.json, else of config.json: one id or a list (Qwen, GLM)."""
    text_config = folder.config.get("text_config") or {}
    if not isinstance(text_config, Mapping):
        raise ValueError(f"{folder.path}: text_config must be an object, not {text_config!r:.60}")
    return end_ids((folder.generation_config, folder.config, text_config), folder.path)


class Tokenizer:
    """Immutable once loaded; every method may be called from any thread."""

    def __init__(
        self, backend: tokenizers.Tokenizer, definition: Mapping[str, Any], rule: PieceRule, folder: ModelFolder
    ) -> None:
        named = folder.named_tokens()
        for name in ("bos_token", "eos_token"):
            _mark_special(backend, named.get(name))
        added: Mapping[int, tokenizers.AddedToken] = backend.get_added_tokens_decoder()
        special = folder.special_texts()
        self._backend = backend
        self._rule = rule
        self._bytes: dict[int, bytes] = {}
        self.texts: dict[int, str | None] = {}
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        # A special name may point at an ordinary word (a fine-tune with "!" for padding), so it must be an added token.
        self.special_ids = frozenset(i for i, token in added.items() if token.special or token.content in special)
        # An added token is its own text in a byte-level vocabulary too, though the library's decoder reads it in the
        # byte alphabet and shows U+FFFD for DeepSeek's added "ú" (deepseek-ai/DeepSeek-Coder#88, tokenizers#1392).
        self._literal = frozenset(added) if rule.byte_level else self.special_ids
        self.opens_plainly = not (rule.first_drops or rule.strip_space)
        bos, eos = named.get("bos_token"), named.get("eos_token")
        self.bos_id: int | None = None if bos is None else backend.token_to_id(bos)
        eos_id = None if eos is None else backend.token_to_id(eos)
        self.eos_ids = _eos_ids(folder) or frozenset(() if eos_id is None else (eos_id,))
        self.eos_list = sorted(self.eos_ids)
        self._ends_with = eos_id if folder.tokenizer_config.get("add_eos_token") is True else None
        self._add_bos = bool(folder.tokenizer_config.get("add_bos_token")) and self.bos_id is not None
        try:
            self._spans = Spans(backend, definition) if rule.byte_level else None
        except ValueError:  # each text is encoded whole
            self._spans = None

    @classmethod
    def load(cls, directory: str | Path) -> Tokenizer:
        """From a Hugging Face folder. Raises ValueError, in one line, for a file that is missing or corrupt."""
        folder = ModelFolder.read(Path(directory))
        path = folder.path / "tokenizer.json"
        text = read_text(path)
        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            reason = " ".join(str(error).split())
            raise ValueError(f"{path} is not a tokenizer that can be read: {reason}{taken_for(path)}") from error
        # The file may carry the settings of a training run, which would cut or fill prompts.
        backend.no_truncation()
        backend.no_padding()
        definition: dict[str, Any] = json.loads(text)
        try:
            rule = PieceRule.of(definition.get("decoder"))
        except ValueError as error:
            raise ValueError(f"{path} cannot be used: {error}") from error
        return cls(backend, definition, rule, folder)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids of a text. `special`: with the begin token that the model expects, exactly one.

        Special tokens written out in the text are recognised either way.
        """
        if self._spans is not None and not special:
            return self._spans.encode(text)
        # A batch of one: the library's plain `encode` keeps the interpreter's lock, which stalls every other thread.
        ids: list[int] = self._backend.encode_batch_fast([text], add_special_tokens=special)[0].ids
        if special and self.bos_id is not None:
            if ids[:2] == [self.bos_id, self.bos_id]:
                del ids[0]
            elif self._add_bos and ids[:1] != [self.bos_id]:
                ids.insert(0, self.bos_id)
        return ids

    def encode_whole(self, text: str) -> list[int]:
        """Token ids of a text that nothing follows: with the begin and end tokens that the model's own tokenizer sets,
        by its file or by `add_eos_token` (e5-mistral)."""
        ids = self.encode(text, special=True)
        if self._ends_with is not None and ids[-1:] != [self._ends_with]:
            ids.append(self._ends_with)
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of a whole sequence: what a Detokenizer gives for it."""
        stream = Detokenizer(self, skip_special)
        return stream.push(ids) + stream.finish()

    def token(self, token: int) -> str:
        """The piece as the vocabulary writes it (`Ġthe`, `▁the`); empty for an id outside it."""
        return self._backend.id_to_token(token) or ""

    def token_bytes(self, token: int) -> bytes:
        """The token's exact bytes; empty for an id outside the vocabulary (models pad theirs)."""
        data = self._bytes.get(token)
        if data is None:
            data = self._rule.to_bytes(self.token(token), token in self._literal)
            if 0 <= token < self.vocab_size:  # a line may send any number: what is no token is not kept
                self._bytes[token] = data
        return data

    def whole_text(self, token: int) -> str | None:
        """The token's text if it is whole characters; None where it is a part of one or is not valid."""
        try:
            return self.texts[token]
        except KeyError:
            pass
        text: str | None
        try:
            text = self.token_bytes(token).decode("utf-8")
        except UnicodeDecodeError:
            text = None
        if 0 <= token < self.vocab_size:
            self.texts[token] = text
        return text

    def opening_bytes(self, token: int) -> bytes:
        """Its bytes when it opens a decoded text: without the space that metaspace encoding put there."""
        return self._rule.opening_bytes(self.token(token), token in self._literal)


def _mark_special(backend: tokenizers.Tokenizer, text: str | None) -> None:
    """Lets encoding recognise a begin or end token that is only an ordinary entry in tokenizer.json."""
    if text is None or backend.token_to_id(text) is None:
        return
    if all(token.content != text for token in backend.get_added_tokens_decoder().values()):
        backend.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False)])
