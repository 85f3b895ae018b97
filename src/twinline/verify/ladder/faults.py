"""Level 8: what happens when it breaks: memory that runs out, numbers that are none, a device that is lost or hangs.

Owns the checks. On silicon only the harmless ones run: nobody's card is killed for a test. A simulated chip can be told
to die and to hang, and is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from twinline.engine.loop import Engine
from twinline.engine.request import Output, Request, SamplingParams
from twinline.engine.sizes import cache_tokens, weight_bytes
from twinline.verify.ladder import prompts, serving
from twinline.verify.ladder.attempt import NotReady, alive, attempt, first_line
from twinline.verify.ladder.bench import Bench
from twinline.verify.ladder.determinism import equal
from twinline.verify.ladder.finding import Finding
from twinline.verify.ladder.subject import Subject, alone, subjects

IN_TIME = 2.0  # seconds from the loss of a device to the error of the requests on it
STEP_SECONDS = 1.0  # what counts as hung, for this level
NOT_SILICON = "only a simulated chip can be told to; on silicon this is tried by hand"


def climb(bench: Bench) -> Iterator[Finding]:
    yield from attempt(bench, "faults.memory", lambda where: _memory(bench))
    yield from attempt(bench, "faults.cache_too_large", lambda where: _cache_too_large(bench))
    yield from attempt(bench, "faults.nan", lambda where: _nan(bench))
    yield from attempt(bench, "faults.lost", lambda where: _lost(bench))
    yield from attempt(bench, "faults.hang", lambda where: _hang(bench))


def _memory(bench: Bench) -> Iterator[Finding]:
    """More than there is, as a cache would ask for it: a typed error, nothing lost, and the device goes on."""
    check, rule = "faults.memory", "torch.OutOfMemoryError, the memory back, the device alive"
    device, free = bench.device, bench.device.free_memory()
    if device.torch_device.type == "cpu":
        raise NotReady("a CPU's memory is promised before it is there: nothing refuses")
    if free is None:
        raise NotReady("the device does not say how much memory is free")
    rows = free // 2**20 * 2 + 1
    try:
        made = torch.empty((rows, 2**20), dtype=torch.uint8, device=device.torch_device)
    except torch.OutOfMemoryError as error:
        kind, words = "", first_line(error)
    except Exception as error:
        kind, words = type(error).__name__, first_line(error)
    else:
        del made
        yield Finding(check=check, verdict="fail", rule=rule,
                      text=f"{rows} MiB were given where {free / 2**20:,.0f} MiB are said to be free")  # fmt: skip
        return
    after = device.free_memory()
    one = torch.ones(64, device=device.torch_device)
    alive = float((one + one).sum().cpu()) == 128
    good = not kind and alive and after is not None and free - after < 2**20
    text = f"{rows} MiB were refused with {kind or 'OutOfMemoryError'}: {words}"
    if kind:
        text += "; the engine takes that for a broken device, not for a full one"
    if after is not None and free - after >= 2**20:
        text += f"; {(free - after) / 2**20:,.0f} MiB did not come back"
    yield Finding(check=check, verdict="pass" if good else "fail", text=text if alive else f"{text}; it is dead now",
                  rule=rule)  # fmt: skip


def _cache_too_large(bench: Bench) -> Iterator[Finding]:
    """A cache that cannot fit is refused before anything is taken, with both sides of the sum."""
    check, rule = "faults.cache_too_large", "ValueError with the numbers, before anything is taken"
    chip, free = subjects(bench).chip, bench.device.free_memory()
    if free is None:
        raise NotReady("the device does not say how much memory is free")
    per_token = bench.spec.kv_values * chip.dtype.itemsize
    wanted = 2 * free // per_token
    try:
        cache_tokens(bench.spec, chip.dtype, bench.device, weight_bytes(chip.model), wanted=wanted, useful=wanted,
                     least=2 * chip.page_size)  # fmt: skip
    except ValueError as error:
        yield Finding(check=check, verdict="pass", text=f"refused: {first_line(error)}", rule=rule)
    else:
        text = f"a cache of {wanted:,} tokens was promised where {free / 2**20:,.0f} MiB are free"
        yield Finding(check=check, verdict="fail", text=text, rule=rule)


class Watched:
    """An engine in its thread with what it handed out, and when."""

    def __init__(self, subject: Subject):
        self.outputs: list[tuple[float, Output]] = []
        self.news = threading.Condition()
        self.engine: Engine = serving.engine(subject, self._deliver, places=1024)

    def _deliver(self, outputs: Sequence[Output]) -> None:
        with self.news:
            self.outputs += [(time.monotonic(), o) for o in outputs]
            self.news.notify_all()

    def until(self, holds: Any, seconds: float) -> bool:
        with self.news:
            return self.news.wait_for(holds, seconds)

    def ended(self) -> dict[str, tuple[float, Output]]:
        return {o.request_id: (at, o) for at, o in self.outputs if o.finish}


def _requests(bench: Bench, count: int, tokens: int) -> list[Request]:
    ids = prompts.sequences(bench, "faults", count, min(16, bench.spec.context - 1))
    tokens = min(tokens, bench.spec.context - len(ids[0]))
    return [Request(f"r{i}", one, SamplingParams(temperature=0, max_tokens=tokens)) for i, one in enumerate(ids)]


def _nan(bench: Bench) -> Iterator[Finding]:
    """A NaN in one request's cache ends that request with an error; the one beside it says what it would have said."""
    check, rule = "faults.nan", "the request that computes NaN ends in error, the one beside it is served"
    chip = subjects(bench).chip
    right = serving.answers(chip, _requests(bench, 2, 12), places=512, max_running=4)
    told: list[Output] = []
    engine = serving.engine(chip, told.extend, places=512)
    pair = _requests(bench, 2, 12)
    for request in pair:
        engine.submit(request)
    engine.step()
    page = pair[0].pages[0]
    for layer in engine.runner.cache:
        for tensor in layer:
            tensor[:, page] = float("nan")
    while engine.scheduler.has_work and engine.failure is None:
        engine.step()
    ended = {o.request_id: o for o in told if o.finish}
    stopped = ended["r0"].finish == "error"
    served = ended["r1"].finish == "length" and pair[1].output == right["r1"]
    reason = f": {ended['r0'].error}" if ended["r0"].error else ""
    text = (f"the request with NaN ended with {ended['r0'].finish}{reason}; the one beside it "
            f"{'was served as before' if served else 'was not served as before'}")  # fmt: skip
    yield Finding(check=check, verdict="pass" if stopped and served else "fail", text=text, rule=rule)


def _simulated(bench: Bench) -> Any:
    chip = getattr(bench.device, "chip", None)
    if not bench.device.simulated or chip is None:
        raise NotReady(NOT_SILICON)
    return chip


def _lost(bench: Bench) -> Iterator[Finding]:
    """The chip dies while two requests run: both end in error in time, the engine says why, another chip lives."""
    check, rule = "faults.lost", f"every request ends in error within {IN_TIME:g} s, the reason is told, others live"
    chip, subject = _simulated(bench), subjects(bench).chip
    probe = prompts.sequences(bench, "lost", 1, min(24, bench.spec.context))
    steps = alone([len(probe[0])])
    before = subject.tell(probe, steps)
    watched = Watched(subject)
    engine = watched.engine
    for request in _requests(bench, 2, 900):
        engine.submit(request)
    engine.start()
    try:
        if not watched.until(lambda: len(watched.outputs) >= 4 or watched.ended(), 15):
            yield Finding(check=check, verdict="fail", text="no token came within 15 s", rule=rule)
            return
        if early := watched.ended():
            why = next((o.error for _, o in early.values() if o.error), "no reason told")
            yield Finding(check=check, verdict="fail", text=f"a request ended before the chip did ({why})", rule=rule)
            return
        alive(bench)
        died = time.monotonic()
        chip.die("told to by the ladder")
        all_ended = watched.until(lambda: len(watched.ended()) == 2, IN_TIME + 1)
        took = max((at for at, _ in watched.ended().values()), default=time.monotonic()) - died
        reasons = {o.error for _, o in watched.ended().values()}
        typed = all(o.finish == "error" and o.error for _, o in watched.ended().values())
        watched.until(lambda: engine.failure, IN_TIME)
        code = engine.failure_code if engine.failure else "none"
        try:
            bench.to_device(torch.ones(1))
            raised = ""
        except Exception as error:
            raised = type(error).__name__
        other = _other_lives(bench)
    finally:
        chip.heal()
        engine.stop()
    again = subject.tell(probe, steps)
    healed = equal(before[0].logits_TV, again[0].logits_TV)
    good = all_ended and typed and took <= IN_TIME and code == "device_lost" and bool(raised) and other is not False
    ended = f"ended with an error after {took * 1000:,.0f} ms" if all_ended and typed else "did not all end in error"
    text = (f"requests {ended} ({next(iter(reasons), None)}), the engine says {code}; an op raises {raised or None}; "
            f"{ {True: 'another device goes on', False: 'another died too', None: 'there is no other device'}[other]}"
            f"{'' if healed else '; once it was back, its answers were others'}")  # fmt: skip
    yield Finding(check=check, verdict="pass" if good else "fail", text=text, rule=rule, figures={"seconds": took})


def _other_lives(bench: Bench) -> bool | None:
    own = bench.device.torch_device
    count = int(torch.get_device_module(own).device_count())
    if count < 2:
        return None
    other = torch.device(own.type, ((own.index or 0) + 1) % count)
    try:
        one = torch.ones(64, device=other)
        return float((one + one).sum().cpu()) == 128
    except Exception:
        return False


def _hang(bench: Bench) -> Iterator[Finding]:
    """The chip stops answering: the engine notices by its own watch, ends what runs, and takes nothing more."""
    check, rule = "faults.hang", "a step that does not come back is noticed, and its requests end in error"
    chip, subject = _simulated(bench), subjects(bench).chip
    device = subject.device
    usual = device.step_seconds
    device.step_seconds = STEP_SECONDS
    watched = Watched(subject)
    engine = watched.engine
    try:
        for request in _requests(bench, 2, 900):
            engine.submit(request)
        engine.start()
        if not watched.until(lambda: len(watched.outputs) >= 4 or watched.ended(), 15):
            yield Finding(check=check, verdict="fail", text="no token came within 15 s", rule=rule)
            return
        if early := watched.ended():
            why = next((o.error for _, o in early.values() if o.error), "no reason told")
            yield Finding(check=check, verdict="fail", text=f"a request ended before the chip did ({why})", rule=rule)
            return
        alive(bench)
        hung = time.monotonic()
        chip.hang()
        noticed = watched.until(lambda: len(watched.ended()) == 2, STEP_SECONDS + 3)
        took = time.monotonic() - hung
        reason = engine.failure or next((o.error for _, o in watched.ended().values()), None)
    finally:
        device.step_seconds = usual
        chip.heal()
        engine.stop()
    text = (
        f"noticed after {took:.1f} s, where a step may take {STEP_SECONDS:g} s: {reason}"
        if noticed
        else f"nobody noticed for {took:.1f} s that a step does not come back, where it may take {STEP_SECONDS:g} s"
    )
    yield Finding(check=check, verdict="pass" if noticed else "fail", text=text, rule=rule, figures={"seconds": took})
