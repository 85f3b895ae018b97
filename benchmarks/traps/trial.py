"""A copy of the tree, one mistake in it at a time, and what the tests say of it.

Owns the copy: the tree that it was made of is read and never written to.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.traps.kernels import compile_kernels, compile_mistake, library
from benchmarks.traps.trap import ROOT, Mutation

LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "__pycache__", "*.egg-info")
SECONDS = 1800
LINE = re.compile(r"^(FAILED|ERROR) (\S+?)(?: - (.*))?$", re.MULTILINE)
COUNTS = re.compile(r"(\d+) (passed|failed|errors?|skipped)")


class NotOnce(ValueError):
    """A mistake's old text is not in its file exactly once."""


@dataclass(frozen=True)
class Told:
    """What a run of tests came to. `broken`: it did not come to its tests, or not to their end."""

    passed: int
    failed: int
    broken: str
    first: str

    @property
    def good(self) -> bool:
        return self.passed > 0 and not self.failed and not self.broken


def mutated(text: str, mutation: Mutation) -> str:
    """The file's text with the mistake in it. Raises NotOnce."""
    found = text.count(mutation.old)
    if found != 1:
        raise NotOnce(f"{mutation.file}: the old text of {mutation.what!r} is there {found} times")
    return text.replace(mutation.old, mutation.new)


class Trial:
    def __init__(self, tree: Path) -> None:
        """`tree`: an empty folder, which becomes the copy."""
        self.tree, self.variant, self._seconds = tree, "", itertools.count(1_000_000_000)
        for source in sorted(ROOT.iterdir()):
            if source.name in LEFT_OUT(str(ROOT), [source.name]):
                continue
            if source.is_dir():
                shutil.copytree(source, tree / source.name, ignore=LEFT_OUT, symlinks=True)
            else:
                shutil.copy2(source, tree / source.name)
        own = self._run(["-c", "import twinline; print(twinline.__file__)"]).stdout.strip()
        if not Path(own).is_relative_to(tree):
            raise RuntimeError(f"the copy's tests would import {own}")

    @contextmanager
    def with_(self, mutation: Mutation) -> Iterator[None]:
        """The copy with the mistake in it, kernels compiled anew where it is theirs. Raises NotOnce, NotCompiled."""
        file = self.tree / mutation.file
        right = file.read_text("utf-8")
        compiled = library(self.tree).read_bytes() if mutation.compiled else b""
        self._write(file, mutated(right, mutation))
        try:
            if compiled:
                compile_mistake(self.tree, "" if mutation.every_variant else self.variant)
            yield
        finally:
            self._write(file, right)
            if compiled:
                library(self.tree).write_bytes(compiled)

    def compile(self) -> None:
        """The kernels as this tool compiles them. To be called before the first mistake in one."""
        compile_kernels(self.tree)
        asked = "from twinline.engine.ops.cpu.library import library; print(library().variant)"
        self.variant = self._run(["-c", asked]).stdout.strip()

    def _write(self, file: Path, text: str) -> None:
        """With a time of its own: bytecode is told apart by size and second, and a mistake may change neither."""
        file.write_text(text, "utf-8")
        second = next(self._seconds)
        os.utime(file, (second, second))

    def told_by(self, tests: Sequence[str]) -> Told:
        """Runs tests on the copy as it is now."""
        options = ["-q", "--tb=no", "-rfE", "-p", "no:cacheprovider", "-p", "no:xdist", "--color=no"]
        try:
            done = self._run(["-m", "pytest", *options, *tests])
        except subprocess.TimeoutExpired:
            return Told(0, 0, f"no end within {SECONDS} s", "")
        lines = LINE.findall(done.stdout)
        counts = {what.removesuffix("s"): int(number) for number, what in COUNTS.findall(done.stdout[-300:])}
        broken = "" if done.returncode in (0, 1) else f"pytest exits with {done.returncode}"
        if counts.get("error"):
            broken = broken or "tests could not be set up"
        first = next((message or name for _, name, message in lines), "")
        return Told(counts.get("passed", 0), counts.get("failed", 0), broken, first)

    def _run(self, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        own = {"PYTHONPATH": str(self.tree / "src"), "COLUMNS": "400"}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.tree,
            env=os.environ | threads | own | {"TOKENIZERS_PARALLELISM": "false"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
