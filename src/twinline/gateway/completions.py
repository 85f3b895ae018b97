"""`POST /v1/completions`: prompts as text or token ids, with echo and log-probabilities in the legacy shape.

Owns that shape; evaluation harnesses score with it (prompts with `echo`, `logprobs` and `max_tokens` 0 or 1). Must not
know how tokens become text or how a line is spoken to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from twinline.gateway.access import Visit
from twinline.gateway.answer import Answer, Shape
from twinline.gateway.api_types import CompletionRequest, LegacyLogprobs, ScoredChoice, TextChoice
from twinline.gateway.aside import made
from twinline.gateway.choice import Choice
from twinline.gateway.door import Door, Target
from twinline.gateway.errors import ApiError, bad_request
from twinline.gateway.exchange import Exchange
from twinline.gateway.forms import Asked, Form, decoder_of, has_form
from twinline.gateway.logprobs import LegacyWriter, checked, joined, prompt_logprobs
from twinline.gateway.order import Order
from twinline.gateway.reply import DONE, Counting, Envelope, usage_of
from twinline.gateway.sampling import (
    TIMEOUT_HEADER,
    check_given,
    check_some,
    check_text,
    ignored,
    plan,
    readable,
    refuse_unsupported,
    room,
    truncated,
)
from twinline.gateway.served import ServedModel
from twinline.gateway.text.tokenizer import Tokenizer
from twinline.gateway.transcript import Around, Piece, TextRules
from twinline.lines.wire import TokenLogprob

DEFAULT_TOKENS = 16  # OpenAI's default for this endpoint
MAX_CHOICES = 1024  # prompts times n
_MARK, _MARKED = "\N{WHITE SQUARE}", b'"\xe2\x96\xa1"'  # stands for a text
_read_prompt = decoder_of(CompletionRequest, "prompt").decode


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, the text that echo shows, and how many leading ids (the begin token) that text does not show."""

    ids: list[int]
    text: str
    hidden: int


class Completions:
    """Answers completion requests; one for all."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def answer(
        self, exchange: Exchange, visit: Visit, request: CompletionRequest, target: Target, body: bytes
    ) -> Form[Any] | None:
        """Raises ApiError."""
        served = target.served
        served.check_generates()
        _check(request)
        exchange.warn(ignored(request))
        envelope = Envelope("cmpl-", "text_completion", request, exchange.request_id)
        given = _given(request, served)
        prompts = await made(lambda: _encode(given, served, request), exchange.body_bytes)
        wanted = DEFAULT_TOKENS if request.max_tokens is None else request.max_tokens
        for prompt in prompts:
            room(len(prompt.ids), max(1, wanted), served, "prompt")
        shared = plan(
            request,
            served,
            request_id=exchange.request_id,
            max_tokens=max(1, wanted),
            logprobs=request.logprobs,
            prompt_logprobs=_asked_of_prompt(request),
            timeout_header=exchange.header(TIMEOUT_HEADER),
        )
        n = request.n or 1
        order = Order(target, visit, shared, body, chat=False, bounded=True)
        await order.admit(self._door.access, sum(len(prompt.ids) for prompt in prompts), n * len(prompts))
        writers = [_Writer(request, served, prompts[index // n], shared.rules) for index in range(len(prompts) * n)]
        shape = _shape(envelope, writers, request, served.tokenizer)
        answer = Answer(exchange, self._door.access, visit, served.name, shape, bool(request.stream))
        choices = []
        for number, prompt in enumerate(prompts):
            ask = order.ask(prompt.ids)
            for step in range(n):
                choices.append(order.choice(prompt.ids, ask, number * n + step, step, None, answer))
        await answer.run(choices)
        plain = given[0] is request.prompt and not request.echo and request.truncate_prompt_tokens is None
        if not plain or not has_form(request, shared, exchange):
            return None
        bare = msgspec.structs.replace(request, prompt="")
        return _Form(bare, target, shared, exchange.told, chat=False, bounded=True)


class _Form(Form[CompletionRequest]):
    """Of requests with one prompt that is not shown."""

    def read(self, part: bytes) -> Asked | None:
        served = self.target.served
        try:
            given = _read_prompt(part)
            if isinstance(given, str):
                check_text(len(given), served, "prompt")
                ids = served.tokenizer.encode(given, special=self.request.add_special_tokens is not False)
                check_some(ids, "prompt")
            elif isinstance(given, list) and set(map(type, given)) == {int}:
                ids = given
                check_given(ids, served, "prompt")
            else:
                return None
            room(len(ids), self.max_tokens, served, "prompt")
        except (msgspec.MsgspecError, UnicodeDecodeError, ApiError):
            return None
        return Asked(ids, self.max_tokens)

    def shape(self, asked: Asked, request_id: str) -> Shape:
        request, served = self.request, self.target.served
        envelope = Envelope("cmpl-", "text_completion", request, request_id)
        writer = _Writer(request, served, Prompt(asked.prompt, "", 0), self.rules)
        return _shape(envelope, [writer], request, served.tokenizer)


def _shape(envelope: Envelope, writers: Sequence[_Writer], request: CompletionRequest, tokenizer: Tokenizer) -> Shape:
    if request.prompt_logprobs is not None:
        return _Scored(envelope, writers, tokenizer, request.prompt_logprobs)
    if not request.stream:
        return _Whole(envelope, writers)
    streamed = _Streamed(envelope, writers)
    if not envelope.counts:
        return streamed
    return Counting(streamed, envelope, [writer.prompt_tokens for writer in writers])


def _asked_of_prompt(request: CompletionRequest) -> int | None:
    """Alternatives per token of the prompt, by either field that asks for them."""
    asked = [request.prompt_logprobs, request.logprobs if request.echo else None]
    return max((count for count in asked if count is not None), default=None)


class _Writer:
    """Writes one choice, piece by piece."""

    def __init__(self, request: CompletionRequest, served: ServedModel, prompt: Prompt, rules: TextRules) -> None:
        self._prompt = prompt
        self._echo = bool(request.echo)
        self._with_ids = bool(request.return_token_ids)
        self.only_echo = request.max_tokens == 0
        self._writer = (
            None if request.logprobs is None else LegacyWriter(served.tokenizer, request.logprobs, rules.skip_special)
        )
        self._begun = False

    @property
    def text_alone(self) -> bool:
        """Whether the news of a piece in the middle is its text and nothing else."""
        return not (self._with_ids or self.only_echo or self._writer is not None)

    @property
    def prompt_tokens(self) -> int:
        return len(self._prompt.ids)

    def choice(self, piece: Piece) -> TextChoice | None:
        """The news in a piece; None if there are none."""
        first, self._begun = not self._begun, True
        written: list[LegacyLogprobs] = []
        text = ""
        if first and self._echo:
            text = self._prompt.text
            if self._writer is not None:
                written.append(self._prompt_logprobs(self._writer, piece))
        tokens = piece.tokens
        if self.only_echo:
            tokens = []
        else:
            text += "".join([part for _, part in piece.parts])
            if self._writer is not None and piece.logprobs is not None:
                written.append(self._writer.write(tokens, piece.logprobs))
        if not (text or piece.finish or written or (self._with_ids and (tokens or first))):
            return None
        return TextChoice(
            piece.index,
            text,
            joined(written) if written else None,
            "length" if self.only_echo and piece.finish else piece.finish,
            None if self.only_echo else piece.stop_reason,
            self._prompt.ids if self._with_ids and first else msgspec.UNSET,
            tokens if self._with_ids else msgspec.UNSET,
        )

    def _prompt_logprobs(self, writer: LegacyWriter, piece: Piece) -> LegacyLogprobs:
        entries = checked(piece.prompt_logprobs, len(self._prompt.ids))
        return writer.write_prompt(self._prompt.ids, entries, self._prompt.text, self._prompt.hidden)


def _check(request: CompletionRequest) -> None:
    refuse_unsupported(
        request,
        {
            "suffix": bool(request.suffix),
            "best_of": request.best_of is not None and request.best_of != (request.n or 1),
        },
    )
    if request.max_tokens == 0 and not request.echo and request.prompt_logprobs is None:
        told = "max_tokens 0 generates nothing; it is allowed only with echo or prompt_logprobs."
        raise bad_request(told, "max_tokens")


def _given(request: CompletionRequest, served: ServedModel) -> list[str | list[int]]:
    """The prompts as they were given, each of a length that may fit. Raises ApiError 400."""
    prompt = request.prompt
    if isinstance(prompt, str):
        given: list[str | list[int]] = [prompt]
    elif not prompt:
        raise bad_request("The prompt is an empty list.", "prompt")
    elif (kinds := set(map(type, prompt))) == {int}:
        given = [cast(list[int], prompt)]
    elif kinds in ({str}, {list}):
        given = cast(list[str | list[int]], prompt)
    else:
        raise bad_request(
            "A prompt is a string, a list of strings, a list of token ids, or a list of such lists.", "prompt"
        )
    choices = len(given) * (request.n or 1)
    if choices > MAX_CHOICES:
        raise bad_request(f"prompts times n make {choices} choices, at most {MAX_CHOICES} are allowed.", "prompt")
    for item in given:
        if not isinstance(item, str):
            check_given(item, served, "prompt")  # before they are decoded
    cut = request.truncate_prompt_tokens
    return [readable(item, served, "prompt", cut) if isinstance(item, str) else item for item in given]


def _encode(given: Iterable[str | list[int]], served: ServedModel, request: CompletionRequest) -> list[Prompt]:
    tokenizer = served.tokenizer
    shown = bool(request.echo)
    prompts = []
    for item in given:
        if isinstance(item, str):
            ids = tokenizer.encode(item, special=request.add_special_tokens is not False)
            check_some(ids, "prompt")
            bos = tokenizer.bos_id
            hidden = bos is not None and ids[:1] == [bos] and not item.startswith(tokenizer.token(bos))
            prompt = Prompt(ids, item, int(hidden))
        else:
            prompt = Prompt(item, tokenizer.decode(item, skip_special=False) if shown else "", 0)
        kept = truncated(prompt.ids, request.truncate_prompt_tokens, request.max_tokens, served)
        if len(kept) < len(prompt.ids):
            prompt = Prompt(kept, tokenizer.decode(kept, skip_special=False) if shown else "", 0)
        prompts.append(prompt)
    return prompts


class _Streamed:
    """Nothing is sent before the first piece, so that a refusal is still an HTTP status."""

    def __init__(self, envelope: Envelope, writers: Sequence[_Writer]) -> None:
        self._envelope, self._writers = envelope, writers

    def news(self, piece: Piece) -> bytes:
        choice = self._writers[piece.index].choice(piece)
        return b"" if choice is None else self._envelope.chunk(choice)

    def around(self, index: int) -> Around | None:
        if not self._writers[index].text_alone:
            return None
        before, _, after = self._envelope.chunk(TextChoice(index, _MARK, None, None, None)).rpartition(_MARKED)
        return {"content": (before, after)}

    def end(self, choices: Sequence[Choice]) -> bytes:
        if not self._envelope.with_usage:
            return DONE
        return self._envelope.usage_chunk(usage_of(choices, _counted(self._writers, choices))) + DONE


class _Whole:
    """Gathers the pieces."""

    def __init__(self, envelope: Envelope, writers: Sequence[_Writer]) -> None:
        self._envelope, self._writers = envelope, writers
        self._news: list[list[TextChoice]] = [[] for _ in writers]

    def news(self, piece: Piece) -> bytes:
        choice = self._writers[piece.index].choice(piece)
        if choice is not None:
            self._news[piece.index].append(choice)
        return b""

    def end(self, choices: Sequence[Choice]) -> bytes:
        return self.written(self.made(), choices)

    def made(self) -> list[TextChoice]:
        return [_as_one(parts) for parts in self._news]

    def written(self, made: Sequence[TextChoice], choices: Sequence[Choice]) -> bytes:
        return self._envelope.whole(made, usage_of(choices, _counted(self._writers, choices)))


class _Scored:
    """A whole answer whose choices tell their prompt's log-probabilities, too."""

    def __init__(self, envelope: Envelope, writers: Sequence[_Writer], tokenizer: Tokenizer, alternatives: int) -> None:
        self._whole, self._tokenizer, self._alternatives = _Whole(envelope, writers), tokenizer, alternatives
        self._entries: dict[int, list[TokenLogprob | None]] = {}

    def news(self, piece: Piece) -> bytes:
        if piece.prompt_logprobs is not None:
            self._entries[piece.index] = piece.prompt_logprobs
        return self._whole.news(piece)

    def end(self, choices: Sequence[Choice]) -> bytes:
        scored = []
        for choice, written in zip(choices, self._whole.made(), strict=True):
            entries = checked(self._entries.get(written.index), len(choice.request.prompt))
            fields = {name: getattr(written, name) for name in written.__struct_fields__}
            scored.append(
                ScoredChoice(**fields, prompt_logprobs=prompt_logprobs(self._tokenizer, entries, self._alternatives))
            )
        return self._whole.written(scored, choices)


def _counted(writers: Sequence[_Writer], choices: Sequence[Choice]) -> int:
    """Tokens given out: none of an echo that generates nothing, though the line had to make one."""
    made = 0
    for writer, choice in zip(writers, choices, strict=True):
        if not writer.only_echo:
            made += choice.completion_tokens
    return made


def _as_one(parts: list[TextChoice]) -> TextChoice:
    """A streamed choice's chunks as one; the last has the finish reason, so there is at least one."""
    if len(parts) == 1:
        return parts[0]
    logprobs = [part.logprobs for part in parts if part.logprobs is not None]
    ids = [part.token_ids for part in parts if part.token_ids is not msgspec.UNSET]
    return TextChoice(
        parts[0].index,
        "".join(part.text for part in parts),
        joined(logprobs) if logprobs else None,
        parts[-1].finish_reason,
        parts[-1].stop_reason,
        parts[0].prompt_token_ids,
        [token for some in ids for token in some] if ids else msgspec.UNSET,
    )
