"""A target under the fuzzer, in a process of its own.

Owns what is a finding and where it is kept. Must not know what is fed to whom.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import resource
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.fuzz.given import BUILD, ROOT, SCRATCH, Given, fuzzer
from benchmarks.fuzz.targets import TARGETS

HANG_SECONDS, MOST_MEMORY_MB, LONGEST = 5, 4096, 1 << 15
WORDS = (
    *'{ } [ ] : , "name" "arguments" \\u d800 null 1e999 -1 <think> </think> <tool_call> </tool_call> ```json'.split(),
    *"{{ }} {% %} {%- for if endfor endif set in not is namespace( cycler( |tojson ~ & * << !! data: ? | GGUF".split(),
    *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "\n\n", "\r\n"),
    *"<function=weather> <function= </function> <parameter=city> <parameter= </parameter> weather".split(),
    *"<arg_key> </arg_key> <arg_value> </arg_value> <｜DSML｜invoke </｜DSML｜invoke> </｜DSML｜parameter>".split(),
)


def spoken(seed: Any) -> bytes:
    return seed if isinstance(seed, bytes) else (seed if isinstance(seed, str) else json.dumps(seed)).encode()


class Watched:
    """One target. What comes out of it that should not is kept, each kind once, and the work goes on."""

    def __init__(self, name: str) -> None:
        self._folder = BUILD / name
        with fuzzer().instrument_imports(include=["twinline"]):
            seeds, self._one = TARGETS[name]()
            lot = random.Random(name)
            # Numbers for what a seed is the material of: none, that cut it nowhere, and some.
            ends = (b"", bytes(1), bytes(3), bytes(16), lot.randbytes(24))
            self._seeds = [spoken(seed) + end for seed in seeds for end in ends]
            self._seeds += [lot.randbytes(64) for _ in range(32)]
            for seed in self._seeds:  # what is imported late is imported here
                self(seed)

    def __call__(self, data: bytes) -> None:
        try:
            self._one(Given(data))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of a library is no Exception
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if str(ROOT) in frame.filename]
            frame = frames[min(2, len(frames) - 1) if isinstance(error, RecursionError) else -1]
            place = f"{frame.filename}:{frame.lineno}"
            kept = self._folder / f"{type(error).__name__}-{hashlib.sha1(place.encode()).hexdigest()[:8]}"
            if not kept.exists():
                kept.write_bytes(data)
                kept.with_suffix(".txt").write_text(
                    "".join(traceback.format_exception(error, limit=-25)), "utf-8", "replace"
                )

    def fuzz(self, seconds: int) -> None:
        """Does not return."""
        seeds, words = self._folder / "seeds", self._folder / "words"
        seeds.mkdir(exist_ok=True)
        for number, seed in enumerate(self._seeds):
            (seeds / str(number)).write_bytes(seed)
        lines = ("".join(f"\\x{byte:02x}" for byte in word.encode()) for word in WORDS)
        words.write_text("".join(f'"{line}"\n' for line in lines))
        limits = [f"-timeout={HANG_SECONDS}", f"-rss_limit_mb={MOST_MEMORY_MB}", f"-max_len={LONGEST}"]
        more = [f"-max_total_time={seconds}", f"-artifact_prefix={self._folder}/", "-print_final_stats=1"]
        fuzzer().Setup([sys.argv[0], *limits, *more, f"-dict={words}", str(seeds)], self)
        fuzzer().Fuzz()


def hangs(name: str, kept: Path) -> bool:
    """Whether an input takes HANG_SECONDS of processor time, the process's start left out."""
    argv = [sys.executable, "-m", "benchmarks.fuzz", "--targets", name, "--input", str(kept)]
    limit = resource.RLIMIT_CPU, (60 + HANG_SECONDS,) * 2
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, preexec_fn=lambda: resource.setrlimit(*limit))
    took = re.search(r"^([0-9.]+) s of processor time$", done.stdout, re.MULTILINE)
    return took is None or float(took[1]) >= HANG_SECONDS


def run(name: str, seconds: int) -> tuple[int, list[Path]]:
    """Executions and findings. A hang ends the target's process: what is left of the time is another's."""
    folder, executions, end = BUILD / name, 0, time.monotonic() + seconds
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    while (left := round(end - time.monotonic())) > 0:
        argv = [sys.executable, "-m", "benchmarks.fuzz", "--child", "--targets", name, "--seconds", str(left)]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT, timeout=left + 120)
        (folder / "log.txt").write_bytes(done.stdout)
        told = re.search(rb"number_of_executed_units:\s*(\d+)", done.stdout)
        if told is None:
            raise RuntimeError(f"{name} did not run:\n{done.stdout[-2000:].decode('utf-8', 'replace')}")
        executions += int(told[1])
        if done.returncode == 0:
            break
    shutil.rmtree(SCRATCH, ignore_errors=True)
    for slow in folder.glob("timeout-*"):
        if not hangs(name, slow):
            slow.unlink()
    return executions, sorted(path for path in folder.iterdir() if "-" in path.name and path.suffix != ".txt")
