"""Events of text alone, written by compiled code: the same bytes as the shapes write, or none."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from twinline.gateway import reply, transcript
from twinline.gateway.api_types import ChatRequest, CompletionRequest, StreamOptions
from twinline.gateway.chat import _Streamed as ChatStreamed
from twinline.gateway.completions import Prompt, _Streamed, _Writer
from twinline.gateway.reply import Envelope
from twinline.gateway.served import ModelText
from twinline.gateway.text.reasoning import ReasoningParser
from twinline.gateway.text.tokenizer import Tokenizer
from twinline.gateway.transcript import TextRules, Transcript, write_event
from twinline.lines.wire import Delta

pytestmark = pytest.mark.skipif(not transcript.COMPILED, reason="the extension was not built")
TEXT = (
    '<think>\nErst 7 + 5.\n\n"so" 你好 🦊 é\\\t<b>\n</think>\n\n'
    "Es ist **12**:\r\n```py\nprint('a\u2028b')\n```\x07 <think>"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> Tokenizer:
    return ModelText.load(tiny_folder).tokenizer


def test_a_text_is_quoted_as_msgspec_does() -> None:
    texts = [*map(chr, range(0x300)), "\u2028\u2029\ufeff", "🦊\U0010ffff", '"\\/', "a" * 1000]
    for number, text in enumerate(texts):
        expected = b"<" + msgspec.json.encode(text) + b">"
        assert write_event([number], {number: text}, frozenset(), b"<", b">", False) == expected
    joined = write_event(list(range(len(texts))), dict(enumerate(texts)), frozenset(), b"", b"", False)
    assert joined == msgspec.json.encode("".join(texts))


def test_what_is_not_surely_text_is_not_written() -> None:
    texts: dict[int, str | None] = {1: "a", 2: None, 3: "<b", 4: "b\n", 5: ""}

    def written(tokens: list[int], tagged: bool = False) -> bytes | None:
        return write_event(tokens, texts, frozenset({9}), b"", b"", tagged)

    assert written([1, 9, 1, 5]) == b'"aa"'
    assert written([1, 2]) is written([1, 7]) is written([9]) is written([5]) is written([]) is None
    assert written([3]) == b'"<b"' and written([4]) == b'"b\\n"'
    assert written([3], True) is written([4], True) is None and written([1], True) == b'"a"'
    with pytest.raises(TypeError):
        write_event((1,), texts, frozenset(), b"", b"", False)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        write_event([[]], texts, frozenset(), b"", b"", False)  # type: ignore[list-item]


def shape(kind: str, tokenizer: Tokenizer, usage: bool) -> Any:
    options: dict[str, Any] = {"model": "m", "stream": True}
    if usage:
        options["stream_options"] = StreamOptions(include_usage=True)
    if kind == "chat":
        asked = ChatRequest(messages=[], **options)
        text = type("Text", (), {"reasoning_end": ()})
        served: Any = type("Served", (), {"tokenizer": tokenizer, "text": text})
        return ChatStreamed(Envelope("c-", "chat.completion", asked, "1"), served, asked)
    request = CompletionRequest(prompt="x", **options)
    writer = _Writer(request, type("Served", (), {"tokenizer": tokenizer}), Prompt([1], "", 0), TextRules())  # type: ignore[arg-type]
    return _Streamed(Envelope("c-", "text_completion", request, "1"), [writer])


def streamed(kind: str, tokenizer: Tokenizer, deltas: list[Delta], quick: bool, usage: bool) -> tuple[list[bytes], Any]:
    """The events, as a choice has them written, and where the transcript stands after each delta."""
    shaped = shape(kind, tokenizer, usage)
    reasoning = ReasoningParser.for_prompt("<think>") if kind == "chat" else None
    said = Transcript(tokenizer, TextRules(), reasoning)
    around = shaped.around(0)
    written, stood, went = [], [], 0
    for number, delta in enumerate(deltas):
        data = said.event(delta.tokens, around) if quick and number and delta.finish_reason is None else None
        went += data is not None
        written.append(shaped.news(said.push(delta)) if data is None else data)
        stood.append((list(said.journal), said.tokens, said.shown, said.last_token))
    assert bool(went) is quick
    return written, stood


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_a_stream_is_the_same_to_the_byte(
    kind: str, seed: int, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reply.time, "time", lambda: 1e9)  # `created` is not to differ
    random = Random(seed)
    tokens = tokenizer.encode(TEXT * 3, special=False)
    for _ in range(20):  # special tokens and bytes that make no character
        tokens.insert(random.randrange(len(tokens)), random.randrange(tokenizer.vocab_size))
    deltas = []
    while tokens:
        size = random.choice([1, 1, 1, 2, 5])
        deltas.append(Delta(tokens[:size]))
        tokens = tokens[size:]
    deltas.append(Delta([], finish_reason="length"))
    usage = bool(seed % 2)
    assert streamed(kind, tokenizer, deltas, True, usage) == streamed(kind, tokenizer, deltas, False, usage)
