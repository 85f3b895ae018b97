"""Level 4: sums, gathers and exchanges between the chip's devices, against float64 sums of the same numbers.

Owns the checks and the starting of the processes: one per device, `torch.distributed` between them, on this machine.
What each process does is in `collective_rank.py`. With one device, or no backend for its type, the level is skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import torch

from twinline.verify.ladder.attempt import NotReady, alive, attempt, begin
from twinline.verify.ladder.bench import Bench
from twinline.verify.ladder.finding import Finding

RANKS = 2
LINES, WORDS, MET = ".jsonl", ".stderr", ".met"  # of a rank: its findings, what it printed, that it knows the others
START_SECONDS = 300.0  # until the processes know each other: a vendor's package may take long to load
SECONDS = 30.0  # for all exchanges from then on
BADNESS = ("skipped", "note", "pass", "limit", "fail")
CHECKS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send")


def climb(bench: Bench) -> Iterator[Finding]:
    yield from attempt(bench, "collectives.peer_copy", lambda where: _peer_copy(bench))
    if asked := wanted(bench):
        yield from attempt(bench, asked[0], lambda where: _between(bench, asked))


def wanted(bench: Bench) -> list[str]:
    return [f"collectives.{name}" for name in CHECKS if bench.trial.wants(f"collectives.{name}")]


def devices(bench: Bench) -> list[torch.device]:
    """The devices of the trial's type, that on trial first."""
    own = bench.device.torch_device
    if own.type == "cpu":
        return [own]
    count = int(torch.get_device_module(own).device_count())
    first = own.index or 0
    return [torch.device(own.type, (first + i) % count) for i in range(count)]


def _peer_copy(bench: Bench) -> Iterator[Finding]:
    """Bits from one device to the next and back."""
    check, rule = "collectives.peer_copy", "bit for bit"
    found = devices(bench)
    if len(found) < 2:
        raise NotReady("there is one device: nothing to exchange with")
    numbers = torch.from_numpy(bench.generator(check).integers(-(2**31), 2**31, size=2**18, dtype="int64")).int()
    wrong = 0
    for _ in range(4):
        there = numbers.to(found[0]).to(found[1])
        wrong = max(wrong, int((there.cpu() != numbers).sum()), int((there.to(found[0]).cpu() != numbers).sum()))
    yield Finding(check=check, verdict="fail" if wrong else "pass", rule=rule, figures={"wrong": wrong},
                  text=f"{wrong} of {len(numbers):,} numbers changed between {found[0]} and {found[1]}")  # fmt: skip


def _between(bench: Bench, asked: list[str]) -> Iterator[Finding]:
    """Starts a process per device and passes on what they found. A collective that hangs is named by the last line."""
    own = bench.device.torch_device
    if own.type == "cpu":
        raise NotReady("the CPU is one device: its processes are no test of a chip")
    if len(devices(bench)) < RANKS:
        raise NotReady("there is one device: nothing to exchange with")
    if not torch.distributed.is_available():
        raise NotReady("this PyTorch has no torch.distributed")
    with tempfile.TemporaryDirectory(prefix="twinline-ranks-") as folder:
        outputs = [Path(folder) / f"{rank}{LINES}" for rank in range(RANKS)]
        ranks = [_start(bench, rank, Path(folder) / "meeting", outputs[rank]) for rank in range(RANKS)]
        try:
            yield from _followed(bench, asked, ranks, outputs)
        finally:
            for process in ranks:
                process.kill()
                process.wait()


def _start(bench: Bench, rank: int, meeting: Path, output: Path) -> subprocess.Popen[bytes]:
    trial = bench.trial
    device = trial.device
    if not bench.device.simulated and bench.device.torch_device.type != "cpu":
        device = str(devices(bench)[rank])
    words = {"device": device, "rank": rank, "ranks": RANKS, "seed": trial.seed, "meeting": str(meeting),
             "output": str(output), "checks": [c.partition(".")[2] for c in wanted(bench)]}  # fmt: skip
    command = [sys.executable, "-m", "twinline.verify.ladder.collective_rank", json.dumps(words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with output.with_suffix(WORDS).open("wb") as words_of_it:  # a file takes all that a library logs
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=words_of_it, env=environment)


def _followed(
    bench: Bench, asked: list[str], ranks: list[subprocess.Popen[bytes]], outputs: list[Path]
) -> Iterator[Finding]:
    """The worst that any rank says of each check, as it comes. One that does not come back is named by its turn."""
    met, ends, said = False, time.monotonic() + START_SECONDS, 0
    while said < len(asked):
        done = all(process.poll() is not None for process in ranks)
        if not met and all(output.with_suffix(MET).exists() for output in outputs):
            met, ends = True, time.monotonic() + SECONDS
        lines = [_lines(output) for output in outputs]
        for at in range(said, min(len(one) for one in lines)):
            said += 1
            yield max((line[at] for line in lines), key=lambda one: BADNESS.index(one.verdict))
            begin(bench, asked[min(said, len(asked) - 1)])
        if done or time.monotonic() > ends:
            break
        alive(bench)
        time.sleep(0.05)
    if said == len(asked):
        return
    codes = [process.poll() for process in ranks]
    late = f"did not come back within {SECONDS:.0f} s" if met else f"did not begin within {START_SECONDS:.0f} s"
    what = late if None in codes else f"ended its processes with {codes}"
    for process in ranks:
        process.kill()
    words = [output.with_suffix(WORDS).read_text("utf-8", "replace").strip().splitlines()[-1:] for output in outputs]
    told = "; ".join(line[0][:200] for line in words if line)
    yield Finding(check=asked[said], verdict="fail", rule="it comes back",
                  text=f"{asked[said].partition('.')[2]} {what}{': ' + told if told else ''}")  # fmt: skip


def _lines(output: Path) -> list[Finding]:
    if not output.exists():
        return []
    text = output.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    return [msgspec.json.decode(line, type=Finding) for line in whole.splitlines()]
