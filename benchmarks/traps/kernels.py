"""The CPU kernels of a tree, compiled where they lie.

Owns the compiler's call. The package's own flags, but for less optimization: what is asked is whether a test sees
another number, not how fast. No Python headers: the library is plain C to its caller.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MODULE = "twinline.engine.ops._cpu"
SECONDS = 1800


class NotCompiled(RuntimeError):
    """The compiler's own words."""


def compile_kernels(tree: Path) -> None:
    """Puts a fresh library where `tree` has its own. Raises NotCompiled."""
    modules = tomllib.loads((tree / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["ext-modules"]
    module = next(m for m in modules if m["name"] == MODULE)
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    flags = [*module["extra-compile-args"], "-O1", "-fPIC"]
    objects = tree / "build" / "kernels"
    objects.mkdir(parents=True, exist_ok=True)

    def one(source: str) -> str:
        into = objects / f"{Path(source).stem}.o"
        _run([*compiler, *flags, "-c", source, "-o", str(into)], tree)
        return str(into)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = list(pool.map(one, module["sources"]))
    target = library(tree)
    fresh = target.with_suffix(".new")
    _run([*compiler, "-shared", "-pthread", *made, "-o", str(fresh)], tree)
    fresh.replace(target)  # another file: what a process has loaded is not written to


def library(tree: Path) -> Path:
    """The compiled kernels of a tree. Raises NotCompiled where there are none."""
    found = sorted((tree / "src" / "twinline" / "engine" / "ops").glob("_cpu*.so"))
    if not found:
        raise NotCompiled("the CPU kernels are not built: make setup")
    return found[0]


def _run(command: list[str], tree: Path) -> None:
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise NotCompiled(f"{shlex.join(command)}: {done.stderr.strip()[:2000]}")
