"""What is asked, how it is broken, and what must come back: all drawn from one seed and a number."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.gateway.exactness.corpora import CORPORA, teachers

from twinline.gateway.text.reasoning import ReasoningParser
from twinline.gateway.text.template import ChatTemplate, encode_prompt
from twinline.gateway.text.tokenizer import Tokenizer
from twinline.lines.simulated.teacher import Teacher

FAULTS = ("reset", "fin", "stall", "broken_json", "in_band", "200_then_nothing", "late_wake")
FORMS = tuple(end + more for end in ("chat", "completion") for more in ("", "_stop", "_n", "_whole"))
WORDS = ("why", "tell", "多少", "👋", "def f(x):", "12", "and")
CHOICES = 16  # seeds between two cases: a choice's seed is its case's plus its index
HOPELESS = 12  # breaks, more than any budget of moves


@dataclass(frozen=True)
class Case:
    """One request. `faults` meet the attempts at each of its choices, one after the other."""

    root: int
    number: int
    corpus: str
    form: str
    words: str
    max_tokens: int
    faults: tuple[str, ...]
    stop: str | None = None

    @property
    def chat(self) -> bool:
        return self.form.startswith("chat")

    @property
    def streamed(self) -> bool:
        return not self.form.endswith("_whole")

    @property
    def choices(self) -> int:
        return 2 if self.form.endswith("_n") else 1

    @property
    def hopeless(self) -> bool:
        return len(self.faults) >= HOPELESS

    @property
    def seed(self) -> int:
        return self.number * CHOICES

    def with_faults(self, *faults: str) -> Case:
        return replace(self, faults=faults)

    def lot(self, *what: object) -> random.Random:
        return random.Random(":".join(map(str, (self.root, self.number, *what))))

    def body(self, model: str) -> dict[str, Any]:
        """The JSON of the request."""
        body: dict[str, Any] = {"model": model, "max_tokens": self.max_tokens, "seed": self.seed, "temperature": 1.0,
                                "stream": self.streamed}  # fmt: skip
        if self.chat:
            body["messages"] = [{"role": "user", "content": self.words}]
        else:
            body["prompt"] = self.words
        if self.streamed:
            body["stream_options"] = {"include_usage": True}
        if self.choices > 1:
            body["n"] = self.choices
        if self.stop is not None:
            body["stop"] = [self.stop]
        return body


@dataclass
class Choice:
    """What one choice must be: `raw` is its text before reasoning is parted from it."""

    tokens: list[int]
    raw: str
    finish: str
    content: str = ""
    reasoning: str = ""


@dataclass
class Expected:
    prompt_tokens: int
    choices: list[Choice]

    @property
    def completion_tokens(self) -> int:
        return sum(len(choice.tokens) for choice in self.choices)


@dataclass
class Oracle:
    """Works out undisturbed answers from the teacher alone."""

    tokenizer: Tokenizer
    template: ChatTemplate
    teachers: Mapping[str, Teacher]
    _known: dict[int, tuple[object, list[int]]] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Oracle:
        tokenizer = Tokenizer.load(folder)
        return cls(tokenizer, ChatTemplate.load(folder), teachers(tokenizer))

    @property
    def ends(self) -> frozenset[int]:
        return self.tokenizer.eos_ids

    def prompt(self, case: Case) -> list[int]:
        """The token ids that a line is to be given."""
        if not case.chat:
            return self.tokenizer.encode(case.words, special=True)
        message = {"role": "user", "content": case.words}
        return encode_prompt(self.tokenizer, self.template.render([message], add_generation_prompt=True))

    def answer(self, corpus: str, prompt: Sequence[int], seed: int, max_tokens: int) -> list[int]:
        """The tokens of a choice, its end token included."""
        known = self._known.get(seed)
        if known is not None and known[0] == (corpus, prompt, max_tokens):
            return known[1]
        if len(self._known) > 10_000:
            self._known.clear()
        answer = self.teachers[corpus].answer(prompt, seed)
        tokens: list[int] = []
        while len(tokens) < max_tokens and not (tokens and tokens[-1] in self.ends):
            tokens.append(answer.next(self.ends))
            answer.take(tokens[-1])
        self._known[seed] = ((corpus, list(prompt), max_tokens), tokens)
        return tokens

    def draw(self, root: int, number: int, *, breaks: Sequence[int] = (1, 2, 3), form: str | None = None) -> Case:
        """Case `number` of the run `root`. Without `breaks` it is undisturbed."""
        lot = random.Random(f"{root}:{number}")
        corpus = lot.choice(list(CORPORA))
        form = form or lot.choice(FORMS)
        words = " ".join(lot.choice(WORDS) for _ in range(lot.randint(1, 6)))
        most = lot.randint(8, 160)
        count = lot.choice(breaks) if breaks else 0
        # One that wakes early has not broken.
        kinds = FAULTS if count < HOPELESS else [fault for fault in FAULTS if fault != "late_wake"]
        faults = tuple(lot.choice(kinds) for _ in range(count))
        case = Case(root, number, corpus, form, f"{words} {number}", most, faults)
        return replace(case, stop=self._stop(case)) if form.endswith("_stop") else case

    def _stop(self, case: Case) -> str:
        """Some characters out of the middle of what `case` would say."""
        raw = self._choice(case, self.answer(case.corpus, self.prompt(case), case.seed, case.max_tokens)).raw
        lot = case.lot("stop")
        at = lot.randrange(max(1, len(raw)))
        return raw[at : at + lot.randint(1, 12)].replace("\ufffd", "") or "never said"

    def expected(self, case: Case) -> Expected:
        prompt = self.prompt(case)
        return Expected(
            len(prompt),
            [
                self._choice(case, self.answer(case.corpus, prompt, case.seed + index, case.max_tokens))
                for index in range(case.choices)
            ],
        )

    def _choice(self, case: Case, tokens: list[int]) -> Choice:
        text, finish = self.tokenizer.decode(tokens), "stop" if tokens[-1] in self.ends else "length"
        if case.stop is not None and case.stop in text:
            finish = "stop"
            # The fewest tokens whose whole characters hold the stop string: more of them hold it too.
            low, high = 1, len(tokens)
            while low < high:
                middle = (low + high) // 2
                if case.stop in self._whole_characters(tokens[:middle]):
                    high = middle
                else:
                    low = middle + 1
            tokens, text = tokens[:low], text[: text.index(case.stop)]
        choice = Choice(tokens, text, finish, text)
        if case.chat:
            parser = ReasoningParser(opened=True)
            parts = parser.push(text) + parser.finish()
            choice.content = "".join(part for kind, part in parts if kind == "content")
            choice.reasoning = "".join(part for kind, part in parts if kind == "reasoning")
        return choice

    def _whole_characters(self, tokens: Sequence[int]) -> str:
        data = b"".join(self.tokenizer.token_bytes(t) for t in tokens if t not in self.tokenizer.special_ids)
        return data.decode("utf-8", "ignore")
