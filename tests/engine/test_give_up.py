"""An engine that stops by failure leaves nobody waiting."""

from __future__ import annotations

import threading

from tests.engine.tiny import write_checkpoint

from twinline.engine.build import Options, build
from twinline.engine.request import Output, Request, SamplingParams


def test_a_broken_loop_ends_every_live_request(tmp_path) -> None:
    heard: list[Output] = []
    told = threading.Event()

    def deliver(outputs) -> None:
        heard.extend(outputs)
        if len({o.request_id for o in heard if o.finish}) == 3:
            told.set()

    engine = build(write_checkpoint(tmp_path), Options(device="cpu", kv_tokens=256, max_running=2), deliver).engine
    for name in "abc":
        engine.submit(Request(name, [5, 6, 7], SamplingParams(max_tokens=50)))

    def broken(drafts: object) -> None:
        raise LookupError("a book is missing")

    engine.scheduler.schedule = broken  # type: ignore[method-assign,assignment]
    engine.start()
    assert told.wait(10)
    assert {(o.request_id, o.finish) for o in heard} == {("a", "error"), ("b", "error"), ("c", "error")}
    assert all(o.error is not None and "a book is missing" in o.error for o in heard)
    assert engine.failure is not None
    engine.stop()
