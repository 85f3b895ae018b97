"""A model as the gateway serves it: its names, its text, its limits, and the line that runs it.

Owns the join of a model folder and a line. Must not know HTTP or requests.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twinline.gateway.text.folder import ModelFolder
from twinline.gateway.text.template import ChatTemplate, NoChatTemplate
from twinline.gateway.text.tokenizer import Tokenizer
from twinline.lines.line import Line


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
class ServedModel:
    """One model behind one name. `template` is None for a model without a chat template.

    `vocab_size` bounds token ids in requests; it is the model's, which may be larger than the tokenizer's.
    `label` says that a model is a demonstration, so that nobody takes it for more.
    """

    name: str
    tokenizer: Tokenizer
    template: ChatTemplate | None
    line: Line
    max_model_len: int
    vocab_size: int
    defaults: Defaults = field(default_factory=Defaults)
    label: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True, slots=True)
class ModelText:
    """What of a served model is known from its folder alone, before any line is up."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    defaults: Defaults

    @classmethod
    def load(cls, directory: Path) -> ModelText:
        """Raises ValueError, in one line, for a folder that cannot be served."""
        folder = ModelFolder.read(directory)
        template: ChatTemplate | None
        try:
            template = ChatTemplate.load(directory)
        except NoChatTemplate:
            template = None
        return cls(Tokenizer.load(directory), template, Defaults.of(folder.generation_config))

    def served(
        self,
        name: str,
        line: Line,
        *,
        max_model_len: int,
        vocab_size: int | None = None,
        label: str | None = None,
    ) -> ServedModel:
        return ServedModel(
            name,
            self.tokenizer,
            self.template,
            line,
            max_model_len,
            vocab_size or self.tokenizer.vocab_size,
            self.defaults,
            label,
        )
