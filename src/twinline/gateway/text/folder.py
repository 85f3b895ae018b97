"""The JSON files of a Hugging Face model folder that say how its text is made.

Owns finding and reading them. Knows nothing of vocabularies or templates, nor of weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_text(path: Path) -> str:
    """The file's text. Raises ValueError if it is missing, unreadable or not UTF-8."""
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError if it is missing or holds anything else."""
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def _content(path: Path, name: str, value: object) -> str:
    """A token is written as its text, or as an object with the text in `content`."""
    text = value.get("content") if isinstance(value, Mapping) else value
    if not isinstance(text, str):
        raise ValueError(f"{path}: {name} must be a token's text")
    return text


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What the small JSON files say; a file that is optional and absent is an empty object."""

    path: Path
    tokenizer_config: Mapping[str, Any]
    special_tokens_map: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    config: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> ModelFolder:
        """Raises ValueError if the folder or its tokenizer_config.json is missing, or a file is corrupt."""
        if not path.is_dir():
            raise ValueError(f"{path} is not a folder")

        def optional(name: str) -> dict[str, Any]:
            return read_object(path / name) if (path / name).exists() else {}

        return cls(
            path,
            read_object(path / "tokenizer_config.json"),
            optional("special_tokens_map.json"),
            optional("generation_config.json"),
            optional("config.json"),
        )

    def named_tokens(self) -> dict[str, str]:
        """`bos_token`, `eos_token`, ... to their text, those that are set."""
        found = {}
        for name in NAMED_TOKENS:
            for source in (self.tokenizer_config, self.special_tokens_map):
                if source.get(name) is not None:
                    found[name] = _content(self.path, name, source[name])
                    break
        return found

    def special_texts(self) -> set[str]:
        """Texts of every token that the folder calls special, beside the flags in tokenizer.json itself."""
        texts = set(self.named_tokens().values())
        for source in (self.tokenizer_config, self.special_tokens_map):
            for name in ("additional_special_tokens", "extra_special_tokens"):
                value = source.get(name) or ()
                entries = value.values() if isinstance(value, Mapping) else value
                if not isinstance(entries, Iterable):
                    raise ValueError(f"{self.path}: {name} must be a list of tokens, not {value!r:.60}")
                texts.update(_content(self.path, name, entry) for entry in entries)
        declared = self.tokenizer_config.get("added_tokens_decoder") or {}
        if not isinstance(declared, Mapping):
            raise ValueError(f"{self.path}: added_tokens_decoder must be an object, not {declared!r:.60}")
        for token in declared.values():
            if isinstance(token, Mapping) and token.get("special"):
                texts.add(_content(self.path, "added_tokens_decoder", token))
        return texts
