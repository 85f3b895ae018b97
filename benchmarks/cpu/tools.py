"""llama.cpp's own benchmark, `llama-batched-bench`: how it is run for a scenario, and how its lines are read.

It decodes without a server, a scheduler or sampling, so its figures are the engine's best.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from benchmarks.cpu.engines import STEP_TOKENS

LONGEST_SECONDS = 1800.0


def command(program: Path, model: Path, threads: int, users: int, prompt: int, new: int) -> list[str]:
    words = {
        "-m": model, "-t": threads, "-tb": threads, "-c": users * (prompt + new) + 256, "-b": 2048, "-ub": STEP_TOKENS,
        "-npp": prompt, "-ntg": new, "-npl": users, "--output-format": "jsonl",
    }  # fmt: skip
    return [str(program), *(str(word) for pair in words.items() for word in pair)]


def rows(output: str) -> list[dict[str, Any]]:
    """The results among all that it prints."""
    found = []
    for line in output.splitlines():
        if line.startswith("{") and '"speed_tg"' in line:
            found.append(json.loads(line))
    return found


def figures(row: dict[str, Any]) -> dict[str, float]:
    """In the words of `scenarios.py`. Its prefill is of all users; its first tokens come at the end of it."""
    prompt, new, users = row["pp"], row["tg"], row["pl"]
    if new > 1:
        return {
            "tokens_per_second": row["speed_tg"],
            "end_to_end": users * new / row["t"],
            "first_token": row["t_pp"],
        }
    return {"tokens_per_second": users * prompt / row["t_pp"], "first_token": row["t_pp"]}


def measure(program: Path, model: Path, threads: int, users: int, prompt: int, new: int) -> dict[str, float]:
    """Raises RuntimeError, with the end of what was printed, where no result was."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command(program, model, threads, users, prompt, new), stdout=output, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        limit = threading.Timer(LONGEST_SECONDS, process.kill)
        limit.start()
        _, status, used = os.wait4(process.pid, 0)  # for its own peak of memory
        limit.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        printed = output.read()
    found = rows(printed)
    if process.returncode or not found:
        raise RuntimeError(f"{program.name} gave code {process.returncode}: {printed[-500:]}")
    return figures(found[-1]) | {"peak_bytes": used.ru_maxrss * 1024}
