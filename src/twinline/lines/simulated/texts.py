"""The passages that simulated lines recite, in a model's own vocabulary.

Owns the words and their way into token ids. Must not know who says them or when. Languages, emoji, code and JSON are
all there, because their characters fall into tokens in different ways.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import tokenizers

from twinline.facts.end_tokens import end_ids
from twinline.lines.simulated.teacher import Teacher

PREFACE = "(A simulated line recites this; no model computed it.)\n\n"

PASSAGES = (
    "A line is one running supply of a model: an engine, a precision, a layout, some cards and a price. ",
    "When it dies in the middle of an answer, another line of the same class goes on from the last whole character. ",
    "Prefill is paid by the token and decode by the step; a busy chip answers slowly, which does not make it dead.\n\n",
    "The quick brown fox jumps over the lazy dog, 1,234.5 times out of 9,876, or about 12.5 %.\n",
    "模型的供给正在变成两条并行的线，双线把它们当作一条来用。",
    "一条线断了，回答会在另一条线上继续：不丢一个字，也不重复一个字。\n",
    "推理先逐块预填，再逐词解码；“忙”和“死”是两回事。",
    "你好，世界！𠮷野家的龘字是少见的汉字。\n\n",
    "🚀 Going up 🌍🌏🌎, coming down 🎈 … and family 👨‍👩‍👧‍👦 with flags 🇨🇳🇫🇷 ✅\n",
    "😀😃😄😁😆😅🤣😂🙂🙃😉😊😇 👍🏽👎🏿 ❤️‍🔥\n",
    "Ça va, naïve façade? Größe ∑ᵢ xᵢ² ≥ 0 → “ok” — Ελληνικά, русский, العربية, עברית, हिन्दी.\n",
    "```python\ndef gap(times: list[float]) -> float:\n    return max(b - a for a, b in zip(times, times[1:]))\n```\n",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i] * b[i];  /* no overflow: n < 2^20 */\n}\n",
    '{"line": "b", "moved": true, "tokens": [1, 2, 3], "note": "caf\\u00e9 \\"quoted\\"", "none": null}\n',
    '[{"city": "上海", "mood": "🙂", "temperature": -3.5e0}, {"city": "Zürich", "mood": "☔"}]\n\n',
)


def recited(folder: Path) -> tuple[Teacher, int]:
    """A teacher that speaks the vocabulary of the model in `folder`, and the size of that vocabulary.

    Raises ValueError, in one line, for a folder whose files are missing or corrupt.
    """
    path = folder / "tokenizer.json"
    try:
        backend = tokenizers.Tokenizer.from_str(path.read_text("utf-8"))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is not a tokenizer that can be read: {' '.join(str(error).split())}") from error

    def ids(text: str) -> list[int]:
        found: list[int] = backend.encode(text, add_special_tokens=False).ids
        return found

    teacher = Teacher(
        [found for found in map(ids, PASSAGES) if found],
        ids(PREFACE),
        _end_tokens(folder, backend),
        backend.token_to_id("<think>"),
        ids("</think>\n\n") if backend.token_to_id("</think>") is not None else (),
    )
    return teacher, max(backend.get_vocab(with_added_tokens=True).values()) + 1


def murmured(vocab_size: int) -> Teacher:
    """A teacher without words, for lines whose text nobody reads: passages of token ids without meaning or end."""
    draw = random.Random(vocab_size)
    return Teacher([[draw.randrange(vocab_size) for _ in range(draw.randint(8, 40))] for _ in range(64)])


def _end_tokens(folder: Path, backend: tokenizers.Tokenizer) -> frozenset[int]:
    """The model's end tokens, one id or a list; else the tokenizer's. Raises ValueError."""
    for name in ("generation_config.json", "config.json"):
        if ids := end_ids([_read(folder / name)], folder / name):
            return ids
    named = _read(folder / "tokenizer_config.json").get("eos_token")
    token = backend.token_to_id(str(named.get("content") if isinstance(named, dict) else named))
    return frozenset() if token is None else frozenset({token})


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is none. Raises ValueError."""
    try:
        found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return found
