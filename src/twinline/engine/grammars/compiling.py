"""Grammars for a worker's requests: compiled in another process, within bounds, and kept.

Owns that process, what has been compiled, and the refusals. A hostile grammar may take for ever to compile, or all the
memory, or crash the compiler: it costs that process, which is started anew, and never a step of the engine. Must not
know HTTP or how a grammar is read.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import OrderedDict
from pathlib import Path

import msgspec

from twinline.engine.grammars.constraint import Constraint
from twinline.engine.grammars.grammar import BadGrammar, Compiled, Grammar
from twinline.engine.grammars.library import Library, installed
from twinline.engine.grammars.vocabulary import Vocabulary
from twinline.engine.scheduler import QueueFull

log = logging.getLogger(__name__)

CPU_SECONDS = 20  # of one grammar, compiled
WALL_SECONDS = 60.0  # the same on a machine that has something else to do
START_SECONDS = 120.0
MEMORY_BYTES = 2 * 2**30  # that a grammar may take
MOST_WAITING = 64
MOST_KEPT = 256
MOST_KEPT_BYTES = 256 * 2**20  # as text; about the same in memory
FRAME = 8  # bytes of a length, big end first


class Job(msgspec.Struct):
    """What the process is asked, as JSON behind its length."""

    kind: str
    text: str


class Made(msgspec.Struct):
    """What it answers: a compiled grammar as text, or why not."""

    compiled: str = ""
    refusal: str = ""
    last: bool = False  # it ends after this


class Grammars:
    """The grammars of one worker. `vocab`: how many logits its model has."""

    def __init__(self, folder: Path, vocab: int) -> None:
        self._folder, self._vocab = folder, vocab
        self.supported = installed() and (folder / "tokenizer.json").exists()
        self._kept: OrderedDict[tuple[str, str], tuple[Compiled | BadGrammar, int]] = OrderedDict()
        self._bytes = 0
        self._one = asyncio.Lock()
        self._waiting = 0
        self._spent = 0.0  # seconds, on grammars that are done
        self._begun: float | None = None  # when the one under way began (monotonic)
        self._process: asyncio.subprocess.Process | None = None
        self._library: Library | None = None
        self._pieces: tuple[bytes, ...] = ()

    @property
    def seconds(self) -> int:
        """Whole seconds spent on grammars so far: a line that has nothing else to do computes, and is not dead."""
        return int(self._spent + (0.0 if self._begun is None else time.monotonic() - self._begun))

    async def constraint(self, grammar: Grammar, stops: frozenset[int], output: list[int]) -> Constraint:
        """For a request that these tokens end, with the output that it begins with.

        Raises BadGrammar for a grammar that cannot be held to, ValueError for an output that has broken it already,
        QueueFull where too many wait to be compiled.
        """
        if not self.supported:
            raise BadGrammar("this line has no grammars: it needs the package xgrammar and the model's tokenizer.json")
        compiled = await self._compiled(grammar)

        def begun() -> Constraint:
            made = Constraint(compiled, grammar, self._pieces, stops, self._vocab)
            words = made.allowed(output)
            if words is not None and not words.any():
                raise BadGrammar("no token may come next: all that the grammar allows end the request")
            return made

        return await asyncio.to_thread(begun)

    async def _compiled(self, grammar: Grammar) -> Compiled:
        key = (grammar.kind, grammar.text)
        if key not in self._kept:
            if self._waiting >= MOST_WAITING:
                raise QueueFull(f"{self._waiting} requests wait for their grammars: try again later", self._waiting)
            self._waiting += 1
            try:
                async with self._one:
                    if key not in self._kept:
                        await self._timed(grammar, key)
            finally:
                self._waiting -= 1
        self._kept.move_to_end(key)
        found = self._kept[key][0]
        if isinstance(found, BadGrammar):
            raise BadGrammar(str(found))
        return found

    async def _timed(self, grammar: Grammar, key: tuple[str, str]) -> None:
        self._begun = time.monotonic()
        try:
            await self._make(grammar, key)
        finally:
            self._spent, self._begun = self._spent + time.monotonic() - self._begun, None

    async def _make(self, grammar: Grammar, key: tuple[str, str]) -> None:
        if self._library is None:
            try:
                vocabulary = await asyncio.to_thread(Vocabulary.load, self._folder, self._vocab)
            except ValueError as error:
                raise BadGrammar(f"this line has no grammars: {error}") from None
            self._library = await asyncio.to_thread(Library, vocabulary)
            self._pieces = vocabulary.pieces
        found: Compiled | BadGrammar
        made = await self._ask(grammar)
        if made.refusal:
            found = BadGrammar(made.refusal)
        else:
            found = await asyncio.to_thread(self._library.read, made.compiled, grammar.kind)
        size = len(grammar.text) + len(made.compiled)
        self._kept[key] = found, size
        self._bytes += size
        while len(self._kept) > 1 and (len(self._kept) > MOST_KEPT or self._bytes > MOST_KEPT_BYTES):
            self._bytes -= self._kept.popitem(last=False)[1][1]

    async def _ask(self, grammar: Grammar) -> Made:
        """One grammar to the process; where that does not answer, it is ended and the grammar is to blame."""
        process = self._process
        if process is None or process.returncode is not None:
            process = self._process = await self._start()
        assert process.stdin is not None and process.stdout is not None
        frame = msgspec.json.encode(Job(grammar.kind, grammar.text))
        done = False
        try:
            async with asyncio.timeout(WALL_SECONDS):
                process.stdin.write(len(frame).to_bytes(FRAME, "big") + frame)
                answer = await _frame(process.stdout)
            made = msgspec.json.decode(answer, type=Made)
            done = not made.last
            return made
        except TimeoutError:
            # Not kept: its processor time is bounded too, so it is the machine that was slow.
            raise BadGrammar(f"the grammar was not compiled within {WALL_SECONDS:g} s: simplify it") from None
        except (asyncio.IncompleteReadError, OSError):
            code = await process.wait()
            log.warning("the grammar compiler ended with %s over a grammar of %d characters", code, len(grammar.text))
            return Made(refusal=f"the grammar takes more than {CPU_SECONDS} s or {MEMORY_BYTES >> 30} GiB to compile, "
                                "or crashes its compiler: simplify it")  # fmt: skip
        finally:
            if not done:  # it must not answer the next question with this one's answer
                self.close()

    async def _start(self) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "twinline.engine.grammars.compiler", str(self._folder), str(self._vocab),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                await _frame(process.stdout)
        except (TimeoutError, asyncio.IncompleteReadError):
            if process.returncode is None:
                process.kill()
            raise RuntimeError("the grammar compiler does not start") from None
        return process

    def close(self) -> None:
        """Ends the process. It ends by itself when this one does."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()


async def _frame(stream: asyncio.StreamReader) -> bytes:
    return await stream.readexactly(int.from_bytes(await stream.readexactly(FRAME), "big"))
