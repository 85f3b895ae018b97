"""Level 9: how long each op takes, as a share of what this device can do at best.

Owns the probes and the timing. Bandwidth (a copy) and peak (a product) are measured in the same run on the same device,
so that a share needs no data sheet. A share is a figure; what is judged is an op ten times slower than its peers, or
than the reference's composition of the same op: it is right, and a limit.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from twinline.engine.devices.device import Device, dtype_name
from twinline.engine.ops.registry import Ops
from twinline.verify.ladder.attempt import Where, alive, attempt
from twinline.verify.ladder.bench import Bench
from twinline.verify.ladder.calls import Kept, kept
from twinline.verify.ladder.costs import cost
from twinline.verify.ladder.finding import Figure, Finding
from twinline.verify.ladder.subject import subjects
from twinline.verify.ladder.taps import OWNS_WEIGHTS

SLOW = 10.0  # times its peers' time
ROUNDS = 5  # the best counts: what disturbs a timing only makes it longer
MOST_PROBED = 64 * 2**20  # bytes that are copied: beyond caches; less on a chip that has little memory left
LEAST_SECONDS = 0.002  # of a round
PAUSES = (0.3, 1.0, 2.0)  # seconds before what seems slow is timed again: a busy host stalls for a while, not for ever


def climb(bench: Bench) -> Iterator[Finding]:
    yield from attempt(bench, "speed", lambda where: _speed(bench, where))


def timed(device: Device, run: Callable[[], Any], *, rounds: int = ROUNDS, least: float = LEAST_SECONDS) -> float:
    """Seconds of one call, the best of `rounds`, each of as many calls as fill `least` seconds; one call to warm up."""
    run()
    device.synchronize()
    started = time.perf_counter()
    run()
    device.synchronize()
    once = max(time.perf_counter() - started, 1e-7)
    calls = max(1, min(1000, int(least / once)))
    best = once
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(calls):
            run()
        device.synchronize()
        best = min(best, (time.perf_counter() - started) / calls)
    return best


@dataclass(frozen=True)
class Probes:
    """`copy` and `add` in bytes per second, read and written both counted; `peak` in floating-point operations per
    second in the model's dtype; `launch` in seconds: what an op with nothing to do takes."""

    copy: float
    add: float
    peak: float
    launch: float

    @property
    def bandwidth(self) -> float:
        return max(self.copy, self.add)


def probe(device: Device, dtype: torch.dtype) -> Probes:
    free, least = device.free_memory(), 2**20
    size = MOST_PROBED if free is None else max(least, min(MOST_PROBED, free // 8 // least * least))
    x = torch.ones(size // 4, dtype=torch.float32, device=device.torch_device)
    y = torch.empty_like(x)
    copy = 2 * size / timed(device, lambda: y.copy_(x), rounds=3)
    add = 2 * size / timed(device, lambda: torch.add(x, 1, out=y), rounds=3)
    peak, edge = 0.0, 512
    while edge <= 8192:
        a = torch.ones(edge, edge, dtype=dtype, device=device.torch_device)
        seconds = timed(device, lambda a=a: torch.mm(a, a), rounds=2)  # type: ignore[misc]
        peak = max(peak, 2 * edge**3 / seconds)
        edge *= 2
        if seconds > 0.01 or (free is not None and 3 * edge**2 * dtype.itemsize > free // 2):
            break
    one = torch.ones(1, dtype=torch.float32, device=device.torch_device)
    return Probes(copy, add, peak, timed(device, lambda: one + one))


class _Counting(TorchDispatchMode):
    """How many PyTorch ops reach the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Timing:
    kept: Kept
    seconds: float
    bytes: int
    flops: int
    launches: int
    probes: Probes
    beside: float | None = None
    """Seconds of the reference's composition of the same call on the same device, if there is one to compare with."""

    @property
    def ideal(self) -> float:
        """Seconds at the measured bandwidth and peak."""
        return max(self.bytes / self.probes.bandwidth, self.flops / self.probes.peak)

    @property
    def share(self) -> float:
        return self.ideal / self.seconds

    @property
    def slowness(self) -> float:
        """How many times as long as its launches and its ideal together."""
        return self.seconds / (self.launches * self.probes.launch + self.ideal)

    def slow(self, usual: float) -> bool:
        """`usual`: the slowness of its peers."""
        return self.slowness > SLOW * usual or (self.beside is not None and self.seconds > SLOW * self.beside)

    def better(self, again: Timing) -> Timing:
        return replace(
            self,
            seconds=min(self.seconds, again.seconds),
            beside=None if self.beside is None or again.beside is None else min(self.beside, again.beside),
        )


def _speed(bench: Bench, where: Where) -> Iterator[Finding]:
    dtype = subjects(bench).dtype
    where.is_(op="")
    with torch.inference_mode():
        probes = _settled_probes(bench, dtype)
        yield from _slow_probes(probes)
        yield Finding(check="speed.probes", verdict="note", dtype=dtype_name(dtype),
                      text=f"measured here: {probes.bandwidth / 1e9:.1f} GB/s copying, {probes.peak / 1e9:,.0f} GFLOPS "
                           f"in {dtype_name(dtype)}, {probes.launch * 1e6:.0f} us for an op with nothing to do",
                      figures={"bandwidth_bytes_per_second": probes.bandwidth, "peak_flops": probes.peak,
                               "launch_seconds": probes.launch})  # fmt: skip
        timings = _settled(bench, [_time(bench, one, probes, where) for one in _longest(kept(bench))], where)
    usual = statistics.median(t.slowness for t in timings)
    for timing in sorted(timings, key=lambda t: -t.seconds * t.kept.times):
        yield _finding(bench, timing, usual)


def _settled_probes(bench: Bench, dtype: torch.dtype) -> Probes:
    found = probe(bench.device, dtype)
    for pause in PAUSES:
        if not list(_slow_probes(found)):
            break
        time.sleep(pause)
        again = probe(bench.device, dtype)
        found = Probes(max(found.copy, again.copy), max(found.add, again.add), max(found.peak, again.peak),
                       min(found.launch, again.launch))  # fmt: skip
    return found


def _settled(bench: Bench, timings: list[Timing], where: Where) -> list[Timing]:
    """What seems slow is timed again after a while, and the best counts."""
    for pause in PAUSES:
        usual = statistics.median(t.slowness for t in timings)
        if not any(t.slow(usual) for t in timings):
            break
        alive(bench)
        time.sleep(pause)
        timings = [t if not t.slow(usual) else t.better(_time(bench, t.kept, t.probes, where)) for t in timings]
    return timings


def _slow_probes(probes: Probes) -> Iterator[Finding]:
    """The yardsticks themselves: no chip multiplies slower than it reads, or copies slower than it adds."""
    if probes.copy * SLOW < probes.add:
        yield Finding(check="speed.copy", verdict="limit", rule="a copy within 10x of an addition",
                      text=f"copying runs at {probes.copy / 1e9:.2f} GB/s, adding at {probes.add / 1e9:.1f}",
                      figures={"share_of_roofline": probes.copy / probes.add})  # fmt: skip
    if probes.peak < probes.bandwidth:
        yield Finding(check="speed.linear", verdict="limit", op="linear",
                      rule="at least one flop per byte of bandwidth",
                      text=f"matrix products run at {probes.peak / 1e9:.2f} GFLOPS where memory gives "
                           f"{probes.bandwidth / 1e9:.1f} GB/s",
                      figures={"peak_flops": probes.peak})  # fmt: skip


def _longest(calls: list[Kept]) -> list[Kept]:
    """One call per op and phase: that with the largest result; the others are its smaller brothers."""
    best: dict[tuple[str, str], Kept] = {}
    for one in calls:
        key = (one.call.op, one.phase)
        if key not in best or _size(one) > _size(best[key]):
            best[key] = one
    return list(best.values())


def _size(one: Kept) -> int:
    return sum(a.numel() for a in one.call.args if isinstance(a, torch.Tensor))


def _time(bench: Bench, one: Kept, probes: Probes, where: Where) -> Timing:
    call = one.call
    alive(bench)
    where.is_(op=call.op, provider=call.provider, place=call.place)
    counting = _Counting()
    with counting:
        out = one.again()
    moved, flops = cost(call.op, call.args, out, bench.spec)
    seconds, beside = timed(bench.device, one.again), _reference_seconds(bench, one)
    return Timing(one, seconds, moved, flops, max(counting.count, 1), probes, beside)


def _finding(bench: Bench, timing: Timing, usual: float) -> Finding:
    call, one = timing.kept.call, timing.kept
    relative = timing.slowness / usual
    text = (f"{one.phase}: {timing.seconds * 1e6:,.0f} us, {timing.share:.1%} of its roofline, "
            f"{timing.launches} launches, {one.times} such calls a step")  # fmt: skip
    if timing.beside is not None and timing.seconds > SLOW * timing.beside:
        text += f"; the reference's composition takes {timing.beside * 1e6:,.0f} us"
    if relative > SLOW:
        text += f"; {relative:.0f} times as long as its peers for what it launches and moves"
    figures: dict[str, Figure] = {"share_of_roofline": timing.share, "seconds": timing.seconds, "bytes": timing.bytes,
               "flops": timing.flops, "launches": timing.launches, "beside_peers": relative, "rows": one.rows,
               "calls_per_step": one.times, "phase": one.phase}  # fmt: skip
    return Finding(check=f"speed.{call.op}", verdict="limit" if timing.slow(usual) else "pass", text=text, op=call.op,
                   provider=call.provider, dtype=dtype_name(subjects(bench).dtype), shape=one.shape, figures=figures,
                   rule="within 10x of its peers and of the reference's composition")  # fmt: skip


def _reference_seconds(bench: Bench, one: Kept) -> float | None:
    """The same call by the reference ops on the same device; None where it owns its weights' layout or is the one."""
    call = one.call
    if call.provider == "reference" or call.op in OWNS_WEIGHTS:
        return None
    function = getattr(Ops(("reference",), subjects(bench).chip.model.ops.facts), call.op)
    try:
        with torch.inference_mode():
            return timed(bench.device, lambda: function(*call.args), rounds=2)
    except Exception:
        return None  # the reference op cannot run here: nothing to compare with
