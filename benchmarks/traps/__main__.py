"""Springs the 31 traps of the reference list in the product, one mistake at a time, and says which tests see them.

    .venv/bin/python -m benchmarks.traps                    every trap
    .venv/bin/python -m benchmarks.traps 12 21              two of them
    .venv/bin/python -m benchmarks.traps --list             what would be done

Works on a copy in a temporary folder. First the tests of these traps run on the copy as it is, its kernels compiled by
this tool; then each mistake is made, the tests named after the trap run, and the mistake is taken back; at last all of
them run once more. A mistake is *sprung* if a test fails, *silent* if none does, and *not here* if this processor does
not run the lines that it is in. Prints the table in Markdown, a row as soon as it is known. Exit code 0 only if nothing
was silent, every old text was there exactly once, and the tests pass without any mistake.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.traps.kernels import NotCompiled
from benchmarks.traps.table import TRAPS
from benchmarks.traps.trap import Mutation, Trap
from benchmarks.traps.trial import NotOnce, Told, Trial

LONGEST = 110


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.traps", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", nargs="*", type=int, metavar="NUMBER", help="traps, 1 to 31; all if none is named")
    parser.add_argument("--only", metavar="WORDS", help="mistakes whose file or description has these words")
    parser.add_argument("--list", action="store_true", help="print the mistakes, and end")
    arguments = parser.parse_args()
    unknown = set(arguments.numbers) - {trap.number for trap in TRAPS}
    if unknown:
        parser.error(f"there is no trap {', '.join(map(str, sorted(unknown)))}: they are 1 to {len(TRAPS)}")
    chosen = [
        (trap, mutation)
        for trap in TRAPS
        for mutation in trap.mutations
        if (not arguments.numbers or trap.number in arguments.numbers)
        and (not arguments.only or arguments.only in f"{mutation.file} {mutation.what}")
    ]
    if arguments.list:
        for trap, mutation in chosen:
            print(f"{trap.number:2} {trap.what}\n   {mutation.what}: {mutation.file}")
        return 0
    with tempfile.TemporaryDirectory(prefix="twinline-traps-") as folder:
        return spring(Trial(Path(folder)), chosen)


def spring(trial: Trial, chosen: Sequence[tuple[Trap, Mutation]]) -> int:
    """Makes each mistake in turn; the exit code."""
    began = time.monotonic()
    tests = sorted({test for trap, mutation in chosen for test in trap.seen_by(mutation)})
    try:
        if any(mutation.compiled for _, mutation in chosen):
            trial.compile()
    except NotCompiled as error:
        print(error)
        return 1
    before = trial.told_by(tests)
    print(f"without a mistake: {before.passed} tests pass, {before.failed} fail {before.broken}{before.first}".rstrip())
    if not before.good:
        return 1
    print("\n| trap | mistake | where | tests that fail | the first says | |\n|---|---|---|---|---|---|", flush=True)
    bad, sprung = [], 0
    for trap, mutation in chosen:
        verdict, told = tried(trial, trap, mutation)
        bad += [f"{trap.number}, {mutation.what}: {verdict}"] if verdict not in ("sprung", "not here") else []
        sprung += verdict == "sprung"
        print(row(trap, mutation, told, verdict), flush=True)
    after = trial.told_by(tests)
    print(f"\nwith every mistake taken back: {after.passed} tests pass, {after.failed} fail {after.broken}".rstrip())
    print(f"{sprung} of {len(chosen)} mistakes were seen, in {(time.monotonic() - began) / 60:.0f} minutes")
    for line in bad:
        print(line)
    return 1 if bad or not after.good else 0


def tried(trial: Trial, trap: Trap, mutation: Mutation) -> tuple[str, Told]:
    """A verdict: sprung, silent, not here, or what went wrong."""
    nothing = Told(0, 0, "", "")
    if mutation.needs and mutation.needs not in features():
        return "not here", nothing
    try:
        with trial.with_(mutation):
            told = trial.told_by(trap.seen_by(mutation))
    except (NotOnce, NotCompiled) as error:
        return str(error), nothing
    if told.broken:
        return f"broken: {told.broken}", told
    return ("sprung" if told.failed else "silent"), told


def row(trap: Trap, mutation: Mutation, told: Told, verdict: str) -> str:
    names = ", ".join(f"`{test.partition('::')[2]}`" for test in trap.seen_by(mutation))
    said = " ".join(told.first.split()).replace("|", "\\|")
    said = said if len(said) <= LONGEST else f"{said[:LONGEST]}…"
    count = f"{told.failed} of {told.failed + told.passed}: {names}"
    where = mutation.file.removeprefix("src/twinline/")
    return f"| {trap.number} | {mutation.what} | `{where}` | {count} | {said} | {verdict} |"


def features() -> set[str]:
    """What the processor can, as Linux calls it; empty elsewhere."""
    file = Path("/proc/cpuinfo")
    if platform.system() != "Linux" or not file.exists():
        return set()
    return {word for line in file.read_text().splitlines() if line.startswith("flags") for word in line.split()}


if __name__ == "__main__":
    sys.exit(main())
