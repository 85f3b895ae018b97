"""Keeps one native line alive: notices that its worker died or hangs, and starts it again.

Owns when a line is lost, how long to wait between starts and when to give up. Must not know who is served by the line.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import NoReturn

from twinline.lines.native import START_SECONDS, NativeLine
from twinline.lines.protocol import LineError
from twinline.lines.state import LineState

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0
MUTE_POLLS = 3  # unanswered polls, one after the other, after which a worker counts as dead
STALLED_SECONDS = 300.0  # without a step while requests run; a chunk of prefill of a 70B model takes minutes on a CPU
GRACE_SECONDS = 5.0  # from SIGTERM to SIGKILL for a worker that hangs
FIRST_DELAY_SECONDS = 1.0  # before a start; doubles from loss to loss
LONGEST_DELAY_SECONDS = 30.0
STEADY_SECONDS = 60.0  # a line that served so long begins again with the first delay
FAILED_STARTS = 3


class GaveUp(LineError):
    """A line failed to start too often in a row; it is quarantined."""


async def keep_alive(line: NativeLine, start_seconds: float = START_SECONDS) -> NoReturn:
    """Restarts `line`, which serves now, whenever it is lost; until cancelled. Raises GaveUp."""
    tries = 0
    while True:
        began = time.monotonic()
        reason = await _lost(line)
        log.warning("line %s is lost: %s", line.name, reason)
        if time.monotonic() - began > STEADY_SECONDS:
            tries = 0
        await line.stop(GRACE_SECONDS, reason)
        tries = await _started(line, reason, tries, start_seconds)


async def _started(line: NativeLine, reason: str, tries: int, start_seconds: float) -> int:
    """Starts the line again after the delay that `tries` earlier starts call for; how many there are now."""
    for _ in range(FAILED_STARTS):
        delay = min(FIRST_DELAY_SECONDS * 2**tries, LONGEST_DELAY_SECONDS)
        tries += 1
        line.life.to(LineState.STARTING, f"it is started again after {delay:g} s: {reason}")
        await asyncio.sleep(delay)
        try:
            await line.start(start_seconds)
        except LineError as error:
            reason = str(error)
        else:
            return tries
    line.life.to(LineState.QUARANTINED, f"it failed to start {FAILED_STARTS} times in a row: {reason}")
    raise GaveUp(f"gave up on line {line.name} after {FAILED_STARTS} failed starts in a row: {reason}")


async def _lost(line: NativeLine) -> str:
    """Waits until the worker has ended or counts as dead; the reason."""
    ended = asyncio.ensure_future(line.ended())
    hangs = asyncio.ensure_future(_hangs(line))
    try:
        await asyncio.wait((ended, hangs), return_when=asyncio.FIRST_COMPLETED)
        return ended.result() if ended.done() else hangs.result()
    finally:
        ended.cancel()
        hangs.cancel()
        await asyncio.gather(ended, hangs, return_exceptions=True)


async def _hangs(line: NativeLine) -> str:
    """Waits until the worker stays silent, says that it failed, or has requests but makes no step; the reason."""
    mute = 0
    steps: object = None
    moved = time.monotonic()
    while True:
        await asyncio.sleep(POLL_SECONDS)
        try:
            well, said = await line.client.health()
        except LineError as error:
            mute += 1
            if mute == MUTE_POLLS:
                return f"its worker left {MUTE_POLLS} health checks unanswered ({error})"
            continue
        mute = 0
        if not well:
            return f"its engine failed: {said.get('reason') or 'it does not say why'}"
        if not said.get("running") or said.get("steps") != steps:
            steps, moved = said.get("steps"), time.monotonic()
        elif time.monotonic() - moved >= STALLED_SECONDS:
            return f"its engine made no step for {STALLED_SECONDS:g} s with {said['running']} requests running"
