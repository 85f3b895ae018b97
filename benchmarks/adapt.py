"""Whether `twinline adapt` finds what is wrong with a chip, and nothing where nothing is: planted faults, clean runs.

    .venv/bin/python benchmarks/adapt.py                               # every fault once, 20 clean runs
    .venv/bin/python benchmarks/adapt.py --faults leaks drifts --clean 0
    .venv/bin/python benchmarks/adapt.py --jobs 2 --out build/adapt.json

Each run is one `twinline adapt --device simchip:clean+FAULT --model tiny-r1`, the whole ladder in a process of its own.
A fault is *found* if some check fails or meets a limit, and *named* if the check or the op of one of these is among
those that the fault says it shows in (`shows` in `engine/devices/simulated`): a blame that sends an engineer to the
right place. A clean run with an alarm, any check that fails or meets a limit, is a false one. Every run has its own
seed.

The bar: at least 28 of 30 faults found and named, no alarm in 20 clean runs, each run under four minutes on two cores.
A JSON file keeps every run and is taken up again by the next call: delete it to start anew.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from twinline.engine.devices.simulated.faults import FAULTS
from twinline.verify.ladder.finding import Finding

ROOT = Path(__file__).parents[1]
CLI = (sys.executable, "-m", "twinline.cli")
BAR = 28 / 30
SECONDS = 240.0
ALARMS = ("fail", "limit")


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One climb. `fault` is empty for a clean run; `named` are the words of its `shows` that alarms bear."""

    fault: str
    seed: int
    seconds: float
    code: int
    grade: str
    alarms: list[Finding]
    named: list[str]
    error: str = ""

    @property
    def good(self) -> bool:
        return bool(self.named) if self.fault else not self.alarms and not self.error and self.code == 0


def climb(fault: str, seed: int, only: list[str]) -> Run:
    """Runs the ladder once, with a fault planted or on a clean chip."""
    device = f"simchip:clean+{fault}" if fault else "simchip:clean"
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="twinline-adapt-") as folder:
        command = [
            *CLI,
            "adapt",
            "--device",
            device,
            "--model",
            "tiny-r1",
            "--seed",
            str(seed),
            "--out",
            folder,
            "--json",
        ]
        for check in only:
            command += ["--only", check]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=3 * SECONDS, env=environment)
            code, error = done.returncode, ""
        except subprocess.TimeoutExpired:
            return Run(fault=fault, seed=seed, seconds=time.monotonic() - started, code=-1, grade="none", alarms=[],
                       named=[], error=f"not over after {3 * SECONDS:.0f} s")  # fmt: skip
    seconds = time.monotonic() - started
    try:
        report = json.loads(done.stdout)
        findings = [msgspec.convert(f, Finding) for f in report["findings"]]
    except (ValueError, KeyError, msgspec.ValidationError) as problem:
        report, findings = {}, []
        error = f"no report: {problem!r}; {done.stderr.strip().splitlines()[-1:]}"
    alarms = [f for f in findings if f.verdict in ALARMS]
    named = sorted({word for f in alarms for word in expected(fault, f)}) if fault else []
    return Run(fault=fault, seed=seed, seconds=round(seconds, 1), code=code, grade=grade_of(report), alarms=alarms,
               named=named, error=error)  # fmt: skip


def expected(fault: str, finding: Finding) -> Iterator[str]:
    """Those of the fault's `shows` that this finding is an instance of."""
    for word in FAULTS[fault.partition("=")[0]].shows:
        if word == finding.op or finding.check == word or finding.check.startswith(f"{word}."):
            yield word


def grade_of(report: dict[str, Any]) -> str:
    grade = report.get("grade", "none")
    return str(grade.get("name", grade)) if isinstance(grade, dict) else str(grade)


def table(runs: list[Run]) -> str:
    lines = ["| run | seed | seconds | grade | alarms | named by |", "|---|---|---|---|---|---|"]
    for run in runs:
        checks = ", ".join(run.named[:6]) or ("**missed**" if run.fault else "")
        if not run.fault and run.alarms:
            checks = "**false alarm**: " + ", ".join(sorted({f.check for f in run.alarms}))
        lines.append(f"| {run.fault or 'clean'} | {run.seed} | {run.seconds:.0f} | {run.grade} | {len(run.alarms)} | "
                     f"{run.error or checks} |")  # fmt: skip
    return "\n".join(lines)


def summary(runs: list[Run]) -> tuple[str, bool]:
    faults, clean = [r for r in runs if r.fault], [r for r in runs if not r.fault]
    named, alarmed = sum(r.good for r in faults), [r for r in clean if not r.good]
    longest = max(runs, key=lambda r: r.seconds)
    slowest_clean = max((r.seconds for r in clean), default=0.0)
    lines = [
        f"{named} of {len(faults)} faults found and named (the bar: 28 of 30)",
        f"{len(alarmed)} of {len(clean)} clean runs alarmed (the bar: none)",
        (
            f"the longest run took {longest.seconds:.0f} s ({longest.fault or 'clean'}), a clean one at most "
            f"{slowest_clean:.0f} s (the bar: {SECONDS:.0f})"
        ),
    ]
    good = (not faults or named / len(faults) >= BAR) and not alarmed and longest.seconds <= SECONDS
    return "\n".join(lines), good


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", nargs="*", default=None, help="these only (default: all)")
    parser.add_argument("--clean", type=int, default=20, help="clean runs, each with its own seed")
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--only", nargs="*", default=[], help="these checks only, as `twinline adapt --only`")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "adapt.json")
    options = parser.parse_args()
    faults = list(FAULTS) if options.faults is None else options.faults
    if unknown := [f for f in faults if f.partition("=")[0] not in FAULTS]:
        parser.error(f"unknown faults: {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    order = list(FAULTS)  # a fault has its seed whatever others are run
    wanted = [(fault, options.seed + order.index(fault.partition("=")[0])) for fault in faults]
    wanted += [("", options.seed + i) for i in range(options.clean)]
    kept: list[Run] = []
    if options.out.exists():
        kept = msgspec.json.decode(options.out.read_bytes(), type=list[Run])
    done = {(r.fault, r.seed) for r in kept}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        for run in pool.map(lambda one: climb(*one, options.only), [one for one in wanted if one not in done]):
            kept.append(run)
            options.out.write_bytes(msgspec.json.encode(kept))
            print(f"{run.fault or 'clean':24} seed {run.seed:3} {run.seconds:6.0f} s  {run.grade:10} "
                  f"{'ok ' if run.good else 'BAD'} {run.error or ', '.join(run.named)}", flush=True)  # fmt: skip
    runs = [r for r in kept if (r.fault, r.seed) in set(wanted)]
    if not runs:
        parser.error("nothing to run")
    words, good = summary(runs)
    print(f"\n{table(runs)}\n\n{words}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
