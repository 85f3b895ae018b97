"""A model as the gateway serves it: its names, its text, its limits, and the lines that run it.

Owns the join of a model folder and a supply of lines. Must not know HTTP or requests.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinline.facts.pooling import Shorter, shorter
from twinline.gateway.errors import bad_request
from twinline.gateway.judging import traits_of
from twinline.gateway.supply import Supply
from twinline.gateway.text.folder import ModelFolder
from twinline.gateway.text.reasoning import ANSWER_CLOSE, ANSWER_OPEN, CLOSE, OPEN
from twinline.gateway.text.template import ChatTemplate, NoChatTemplate
from twinline.gateway.text.tokenizer import Tokenizer
from twinline.lines.line import is_size

UNKNOWN_CONTEXT = 4096  # tokens, while no line has told its own


@dataclass(frozen=True, slots=True)
class Defaults:
    """Sampling for requests that do not say: the folder's generation_config.json, else OpenAI's."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def of(cls, generation_config: Mapping[str, Any]) -> Defaults:
        """What the file says and the protocol allows; `do_sample: false` is transformers' word for greedy."""

        def number(name: str, low: float, high: float, default: float) -> float:
            value = generation_config.get(name)
            usable = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
            return float(value) if usable and value is not None else default

        plain = cls()
        greedy = generation_config.get("do_sample") is False
        return cls(
            0.0 if greedy else number("temperature", 0, 100, plain.temperature),
            number("top_p", 1e-6, 1, plain.top_p),
            int(number("top_k", 0, 2**31 - 1, plain.top_k)),
            number("min_p", 0, 1, plain.min_p),
            number("repetition_penalty", 0.01, 100, plain.repetition_penalty),
        )


@dataclass(frozen=True, slots=True)
class ModelText:
    """What of a served model is known from its folder alone, before any line is up.

    `template` is None for a model without a chat template. `marks` are the special tokens of a message that are shown
    nevertheless, for they are parsed: of reasoning, and with tools those of calls. `answer_tags`: the vocabulary has
    tokens for the tags around an answer. `reasoning_end`: the ids that end reasoning. `shorter`: vectors of this model
    may be cut; `vector_size` is how many values they have, as far as the folder says.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    defaults: Defaults
    marks: frozenset[int] = frozenset()
    call_marks: frozenset[int] = frozenset()
    answer_tags: bool = False
    reasoning_end: tuple[int, ...] = ()
    shorter: Shorter | None = None
    vector_size: int | None = None

    @classmethod
    def load(cls, directory: Path) -> ModelText:
        """Raises ValueError, in one line, for a folder that cannot be served."""
        folder = ModelFolder.read(directory)
        template: ChatTemplate | None
        try:
            template = ChatTemplate.load(directory)
        except NoChatTemplate:
            template = None
        tokenizer = Tokenizer.load(directory)
        calls = template.calls.marks if template is not None and template.calls is not None else ()
        return cls(
            tokenizer,
            template,
            Defaults.of(folder.generation_config),
            _special(tokenizer, (OPEN, CLOSE)),
            _special(tokenizer, (OPEN, CLOSE, *calls)),
            all(_token(tokenizer, tag) is not None for tag in (ANSWER_OPEN, ANSWER_CLOSE)),
            tuple(tokenizer.encode(CLOSE, special=False)),
            shorter(folder.config),
            size if isinstance(size := folder.config.get("hidden_size"), int) else None,
        )


def _special(tokenizer: Tokenizer, texts: Iterable[str]) -> frozenset[int]:
    """Those of the texts that are one special token each."""
    return frozenset(token for text in texts if (token := _token(tokenizer, text)) is not None) & tokenizer.special_ids


def _token(tokenizer: Tokenizer, text: str) -> int | None:
    """The token that is this text, and no other that stands for it, as the unknown token does for any."""
    ids = tokenizer.encode(text, special=False)
    return ids[0] if len(ids) == 1 and tokenizer.decode(ids, skip_special=False) == text else None


class ServedModel:
    """One name: its text, its lines, and what holds for all of them.

    `label` says that a model is a demonstration, so that nobody takes it for more.
    """

    def __init__(self, name: str, text: ModelText, supply: Supply, label: str | None = None) -> None:
        self.name = name
        self.text = text
        self.tokenizer = text.tokenizer
        self.template = text.template
        self.defaults = text.defaults
        self.supply = supply
        self.calls = None if text.template is None else text.template.calls
        supply.lent = frozenset() if self.calls is None else frozenset({"tools", "tool_choice"})
        for line in supply.lines.values():
            line.lend(supply.lent)
            supply.router.update(traits_of(line))
        self.label = label
        self.created = int(time.time())
        self.refresh()

    def refresh(self) -> None:
        """After its lines have changed. Limits come from those that are or were up, so that they outlast a fault.

        `max_model_len` is the longest context of any line; `vocab_size` bounds token ids in requests: it is the
        model's, which may be larger than the tokenizer's.
        """
        lines = self.supply.lines.values()
        contexts = [limit for line in lines if (limit := line.context) is not None]
        self.max_model_len = max(contexts, default=UNKNOWN_CONTEXT)
        sizes = [size for line in lines if is_size(size := line.facts.get("vocab_size"))]
        self.vocab_size = max([self.tokenizer.vocab_size, *sizes])

    @property
    def embeds(self) -> bool:
        """Its lines give vectors, and nothing else."""
        return any(line.vectors is not None for line in self.supply.lines.values())

    @property
    def is_told_text(self) -> bool:
        """All of its lines are, which render messages by a template of their own."""
        lines = self.supply.lines.values()
        return bool(lines) and all(line.text_only for line in lines)

    @property
    def chats(self) -> bool:
        return self.template is not None and not self.embeds

    def check_generates(self) -> None:
        """Raises ApiError 400 for a model of vectors."""
        if self.embeds:
            told = f"`{self.name}` gives vectors of texts and generates nothing: ask it at /v1/embeddings."
            raise bad_request(told, "model", "model_embeds")
