"""Ten thousand streams, each broken up to three times at a random byte, each compared with what it should have been.

    .venv/bin/python benchmarks/exactness.py --streams 10000

The upstream lines are doubles in this process, the gateway is a process of its own (`--inside`: in this one too).
Prints counts by kind of break and, for every stream that is not what it should be, what makes it again:
`--root R --only N`. Exit code 0 only when there is none.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import uvloop

sys.path[:0] = [str(Path(__file__).parents[1])]  # the doubles and the judge are the tests' own

from tests.gateway.exactness.cases import FAULTS, HOPELESS, Case  # noqa: E402
from tests.gateway.exactness.drive import MOVES, Outcome, Running, running  # noqa: E402
from tests.gateway.exactness.under_test import make_gateway, spawned_gateway  # noqa: E402

from twinline.train.tokenizer import build  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=150)
    parser.add_argument("--lines", type=int, default=4)
    parser.add_argument("--stall-seconds", type=float, default=1.5, help="silence that counts as a break")
    parser.add_argument("--root", type=int, default=20_260_101, help="seed of the run")
    parser.add_argument("--only", type=int, nargs="+", help="these cases of the run alone")
    parser.add_argument("--hopeless", type=int, default=200, help="further streams that break more often than allowed")
    parser.add_argument("--inside", action="store_true", help="the gateway in this process, for a debugger")
    parser.add_argument("--text", type=Path, help="model folder (default: the test vocabulary)")
    return parser.parse_args()


async def one_run(
    given: argparse.Namespace, folder: Path, *, moves: int, breaks: tuple[int, ...], first: int, count: int
) -> tuple[Outcome, int]:
    """What came of it, and how many upstream exchanges were left open."""
    gateway = make_gateway if given.inside else spawned_gateway
    async with running(folder, given.stall_seconds, lines=given.lines, moves=moves, gateway=gateway) as run:
        numbers = given.only or range(first, first + count)
        done = asyncio.create_task(progress(run, count))
        outcome = await run.all(_drawn(run, given.root, numbers, breaks), given.at_once)
        done.cancel()
        return outcome, await run.closed()


def _drawn(run: Running, root: int, numbers: Iterable[int], breaks: tuple[int, ...]) -> Iterator[Case]:
    for number in numbers:
        yield run.oracle.draw(root, number, breaks=breaks)


async def progress(run: Running, count: int) -> None:
    while True:
        await asyncio.sleep(10)
        began = max(run.script.cases, default=0) % 1_000_000
        print(f"  {began} of {count} begun, {sum(run.script.struck.values())} breaks so far", flush=True)


def tell(name: str, outcome: Outcome, seconds: float, left_open: int) -> bool:
    print(f"\n{name}: {outcome.streams} streams, {outcome.tokens} tokens in {seconds:.0f} s")
    print("  breaks carried out: " + ", ".join(f"{fault} {outcome.struck[fault]}" for fault in FAULTS))
    print("  forms: " + ", ".join(f"{form} {count}" for form, count in sorted(outcome.forms.items())))
    print("  corpora: " + ", ".join(f"{corpus} {count}" for corpus, count in sorted(outcome.corpora.items())))
    print(f"  attempts after a first one: {outcome.retries}, of which {outcome.moves} went on from tokens delivered")
    print(f"  ended in an error event or status: {outcome.ended_in_error}; upstream exchanges left open: {left_open}")
    right = not outcome.wrong and not outcome.upstream_wrong and not left_open
    print(f"  {outcome.streams - len(outcome.wrong)} of {outcome.streams} right")
    if not right:
        print(outcome.told())
    return right


def main() -> int:
    given = arguments()
    logging.basicConfig(level=logging.ERROR)
    with tempfile.TemporaryDirectory() as made:
        if given.text is None:
            build(Path(made))
        folder = given.text or Path(made)
        began = time.monotonic()
        plan = {"moves": MOVES, "breaks": (1, 2, 3), "first": 1, "count": given.streams}
        outcome, left_open = uvloop.run(one_run(given, folder, **plan))
        right = tell("broken one to three times", outcome, time.monotonic() - began, left_open)
        if given.hopeless and not given.only:
            began = time.monotonic()
            plan = {"moves": 3, "breaks": (HOPELESS,), "first": 1_000_001, "count": given.hopeless}
            outcome, left_open = uvloop.run(one_run(given, folder, **plan))
            right &= tell("broken more often than allowed", outcome, time.monotonic() - began, left_open)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
