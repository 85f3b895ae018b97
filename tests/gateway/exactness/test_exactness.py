"""Streams that are broken at any byte in any way come out whole: text, usage, finish reason, one id, one role.

`benchmarks/exactness.py` runs the same on ten thousand. A failure names the run and the case that make it again.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import uvloop
from tests.gateway.exactness.cases import FAULTS, FORMS, HOPELESS, Case
from tests.gateway.exactness.corpora import CORPORA
from tests.gateway.exactness.drive import Outcome, running

ROOT = 20_260_101
STALL_SECONDS = 1.0


def run(
    folder: Path,
    first: int,
    count: int,
    breaks: tuple[int, ...],
    *,
    at_once: int = 75,
    stall: float = STALL_SECONDS,
    **how: int,
) -> Outcome:
    async def main() -> Outcome:
        async with running(folder, stall, **how) as gateway:
            cases = (gateway.oracle.draw(ROOT, number, breaks=breaks) for number in range(first, first + count))
            outcome = await gateway.all(cases, at_once)
            assert await gateway.closed() == 0, "upstreams were left to answer nobody"
            return outcome

    return uvloop.run(main())


def test_undisturbed_streams_are_what_the_teacher_says(tiny_folder: Path) -> None:
    outcome = run(tiny_folder, 1, 150, (), stall=60.0)
    assert not outcome.wrong and not outcome.upstream_wrong, outcome.told()
    assert outcome.forms.keys() == set(FORMS) and outcome.corpora.keys() == set(CORPORA)
    assert outcome.retries == 0 and not outcome.struck


def test_broken_streams_are_what_the_teacher_says(tiny_folder: Path) -> None:
    outcome = run(tiny_folder, 1001, 300, (1, 2, 3))
    assert not outcome.wrong and not outcome.upstream_wrong, outcome.told()
    assert all(outcome.struck[fault] > 30 for fault in FAULTS) and outcome.moves > 150


def test_a_stream_that_breaks_too_often_ends_in_an_error_and_never_cleanly(tiny_folder: Path) -> None:
    outcome = run(tiny_folder, 2001, 40, (HOPELESS,), moves=3)
    assert not outcome.wrong and not outcome.upstream_wrong, outcome.told()
    assert outcome.ended_in_error > 25


@pytest.mark.parametrize("fault", FAULTS)
def test_one_break_of_each_kind_in_every_form(tiny_folder: Path, fault: str) -> None:
    async def main() -> Outcome:
        async with running(tiny_folder, STALL_SECONDS) as gateway:

            def cases() -> list[Case]:
                drawn = [gateway.oracle.draw(ROOT, 3001 + i, breaks=(), form=form) for i, form in enumerate(FORMS * 2)]
                return [case.with_faults(fault) for case in drawn]

            return await gateway.all(cases(), 16)

    outcome = asyncio.run(main())
    assert not outcome.wrong and not outcome.upstream_wrong, outcome.told()
    assert outcome.struck[fault] >= 16
