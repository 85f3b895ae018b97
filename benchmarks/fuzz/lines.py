"""What lines and vendors' tools say: streams, answers, vectors, tables."""

from __future__ import annotations

import contextlib

from benchmarks.fuzz.given import DEEP, TINY, Given, Made, cut


def events() -> Made:
    """Streams and counters of every engine, in pieces."""
    import msgspec
    from tests.lines.drivers import replay

    from twinline.lines.drivers import DRIVERS, driver, llamacpp, native, ollama, openai, sglang, vllm
    from twinline.lines.drivers.pieces import pieces
    from twinline.lines.protocol import LineBroken
    from twinline.lines.wire import EventLines

    request, table = replay.ask(logprobs=1, prompt_logprobs=1, stop_token_ids=[2]), pieces(TINY)
    readers = (lambda: native.read_chunk, lambda: openai.read_text, vllm.Answer, ollama.Answer,
               lambda: sglang.Answer(request), lambda: llamacpp.Answer(request, table))  # fmt: skip
    known = [driver(name) for name in DRIVERS]

    def one(given: Given) -> None:
        sse, read, marks = bool(given.number(3)), given.one_of(readers)(), given.marks()
        whole, apart, data = EventLines(sse), EventLines(sse), given.rest()
        payloads = whole.feed(data)
        assert [payload for part in cut(data, marks) for payload in apart.feed(part)] == payloads
        assert apart.pending == whole.pending
        with contextlib.suppress(ValueError, RecursionError, msgspec.DecodeError, LineBroken):  # as the client does
            for payload in payloads:
                read(payload)
        for engine in known:
            engine.metrics(data)

    files = [path for path in replay.RECORDED.rglob("*.*") if path.suffix in (".http", ".sse", ".ndjson", ".txt")]
    return [replay.body(str(path.relative_to(replay.RECORDED))) for path in files], one


def answers() -> Made:
    """Answers of a line over HTTP: the compiled reader and Python's give the same, and nothing of ours fails."""
    from tests.lines import test_events
    from tests.lines.drivers import replay

    def one(given: Given) -> None:
        marks = given.marks()
        test_events.same([part for part in cut(given.rest(), marks) if part])

    deep = b'{"a": %b}' % DEEP.encode()
    many = test_events.answer([b"data: {}\n\n" * 40 + b"data: " + deep + b"\n\n"])
    refused = b"HTTP/1.1 400 Bad Request\r\ncontent-length: %d\r\n\r\n%b" % (len(deep), deep)
    recorded = [path.read_bytes() for path in replay.RECORDED.rglob("*.http")]
    return [test_events.answer(test_events.WHOLE), many, refused, *recorded], one


def vectors() -> Made:
    """Answers with vectors: what is taken are so many float32 vectors of one size, all of them numbers."""
    import msgspec
    import numpy as np

    from twinline.lines.drivers.vectors import IdVectors, OllamaVectors

    packed = "AACAPwAAAEA="
    entries = [{"index": 1, "embedding": [1.0, -2.5]}, {"index": 0, "embedding": packed}]
    bases = [{"data": entries, "usage": {"prompt_tokens": 3}}, {"embeddings": [[1, 2], [0.5, 1e30]]}]
    dialects = (IdVectors(), OllamaVectors("m", None, None))

    def one(given: Given) -> None:
        dialect = given.one_of(dialects)
        try:
            delta = dialect.read(given.altered(bases), 2)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError):  # as `lines/vectors.py` expects
            return
        assert len({len(vector) for vector in delta.vectors}) == 1 and len(delta.vectors) == 2
        assert all(np.isfinite(np.frombuffer(vector, "<f4")).all() for vector in delta.vectors)

    return bases, one


def chips() -> Made:
    """What the vendors' tools print: readers never raise."""
    from tests.cards.recordings import reader, recordings

    known = list(recordings().values())
    reads = [(reader(one), one.command) for one in known]

    def one(given: Given) -> None:
        read, command = given.one_of(reads)
        read(given.text(), command)

    return [one.text.encode() + bytes([number]) for number, one in enumerate(known)], one
