"""The CPU kernels of a tree, compiled where they lie: whole once, then what a mistake can be seen in.

Owns the compiler's calls. The package's own flags, but for less optimization: what is asked is whether a test sees
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
VARIANTS = ("portable", "avx2", "avx512", "avx512_bf16")  # files with all kernels each: most of the compiler's time
SECONDS = 1800


class NotCompiled(RuntimeError):
    """The compiler's own words."""


def compile_kernels(tree: Path) -> None:
    """Puts a fresh library where `tree` has its own. Raises NotCompiled."""
    _link(tree, _objects(tree, "right", VARIANTS))


def compile_mistake(tree: Path, variant: str) -> None:
    """The same after a change of the sources, in this variant alone or, if it is empty, in all; the others stay as
    `compile_kernels` left them. Raises NotCompiled."""
    anew = (variant,) if variant else VARIANTS
    made = _objects(tree, "wrong", anew)
    right = {name: tree / "build" / "right" / f"{name}.o" for name in VARIANTS if name not in anew}
    _link(tree, made | right)


def library(tree: Path) -> Path:
    """The compiled kernels of a tree. Raises NotCompiled where there are none."""
    found = sorted((tree / "src" / "twinline" / "engine" / "ops").glob("_cpu*.so"))
    if not found:
        raise NotCompiled("the CPU kernels are not built: make setup")
    return found[0]


def _objects(tree: Path, folder: str, variants: tuple[str, ...]) -> dict[str, Path]:
    """Compiled sources by name: these variants, and what is no variant."""
    modules = tomllib.loads((tree / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["ext-modules"]
    module = next(m for m in modules if m["name"] == MODULE)
    (tree / "build" / folder).mkdir(parents=True, exist_ok=True)
    made = {
        Path(source).stem: (source, tree / "build" / folder / f"{Path(source).stem}.o")
        for source in module["sources"]
        if Path(source).stem in variants or Path(source).stem not in VARIANTS
    }

    def compiled(source: str, into: Path) -> None:
        _run([*_compiler(), *module["extra-compile-args"], "-O1", "-fPIC", "-c", source, "-o", str(into)], tree)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda pair: compiled(*pair), made.values()))
    return {name: into for name, (_, into) in made.items()}


def _link(tree: Path, objects: dict[str, Path]) -> None:
    target = library(tree)
    linked = target.with_suffix(".new")
    _run([*_compiler(), "-shared", "-pthread", *map(str, objects.values()), "-o", str(linked)], tree)
    linked.replace(target)  # another file: what a process has loaded is not written to


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "c++"))


def _run(command: list[str], tree: Path) -> None:
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise NotCompiled(f"{shlex.join(command)}: {done.stderr.strip()[:2000]}")
