"""The table of mistakes fits the product and the tests as they are, and a trial tells sprung from silent.

Nothing is sprung here: that is `python -m benchmarks.traps`.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from benchmarks.traps import __main__ as program
from benchmarks.traps import trial
from benchmarks.traps.table import TRAPS
from benchmarks.traps.trap import ROOT, Mutation, Trap
from benchmarks.traps.trial import NotOnce, Told, Trial, mutated

NUMBERS = re.compile(r"^test_trap_(\d\d)(?:_and_(\d\d))?_")
ALL = [(trap, mutation) for trap in TRAPS for mutation in trap.mutations]


def numbers(test: str) -> set[int]:
    """The traps that a test is named after."""
    found = NUMBERS.match(test)
    return {int(number) for number in found.groups() if number} if found else set()


@cache
def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_trap_of_the_list_is_there_and_can_be_sprung() -> None:
    assert [trap.number for trap in TRAPS] == list(range(1, 32))
    assert all(trap.mutations and trap.tests for trap in TRAPS)
    assert len({(trap.number, mutation.what) for trap, mutation in ALL}) == len(ALL)


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: str(trap.number))
def test_every_old_text_is_there_once(trap: Trap) -> None:
    for mutation in trap.mutations:
        text = mutated((ROOT / mutation.file).read_text("utf-8"), mutation)
        assert mutation.new != mutation.old
        if mutation.file.endswith(".py"):
            ast.parse(text)  # what does not parse fails every test, and shows nothing
        assert mutation.compiled == mutation.file.endswith((".h", ".cpp"))


def test_every_test_is_there_and_named_after_its_trap() -> None:
    for trap, mutation in ALL:
        for test in trap.seen_by(mutation):
            file, _, name = test.partition("::")
            assert name in functions(ROOT / file), test
            assert trap.number in numbers(name), test


def test_every_test_that_is_named_after_a_trap_is_shown_to_see_it() -> None:
    there = {
        (number, f"{file.relative_to(ROOT).as_posix()}::{name}")
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        for name in functions(file)
        for number in numbers(name)
    }
    assert there - {(trap.number, test) for trap, mutation in ALL for test in trap.seen_by(mutation)} == set()


def test_a_text_that_is_not_there_once_is_refused() -> None:
    for text in ("", "a a"):
        with pytest.raises(NotOnce, match=r"f\.py: the old text of 'w' is there \d times"):
            mutated(text, Mutation("w", "f.py", "a", "b"))


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    """A trial of a tree that is small."""
    source = tmp_path / "source"
    for name, text in {
        "src/twinline/__init__.py": "",
        "src/twinline/sum.py": "def add(a, b):\n    return a + b\n",
        "tests/test_sum.py": "import pytest\nfrom twinline.sum import add\n\n\n@pytest.mark.parametrize('b', [0, 2])\n"
                             "def test_add(b):\n    assert add(2, b) == 2 + b, 'wrong sum'\n",
        "build/left": "out",
    }.items():  # fmt: skip
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    monkeypatch.setattr(trial, "ROOT", source)
    (tmp_path / "copy").mkdir()
    made = Trial(tmp_path / "copy")
    assert not (tmp_path / "copy" / "build").exists()
    return made


def everything(tree: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in tree.rglob("*") if p.is_file() and p.suffix != ".pyc"}


def test_sprung_silent_and_what_is_neither(tried: Trial, capsys: pytest.CaptureFixture[str]) -> None:
    file = "src/twinline/sum.py"
    wanted = {
        "sprung": Mutation("difference", file, "a + b", "a - b"),
        "silent": Mutation("the other way", file, "a + b", "b + a"),
        "broken: pytest exits with 4": Mutation("no such name", file, "def add", "def sub"),
        "not here": Mutation("elsewhere", file, "a + b", "", needs="a feature of no processor"),
        f"{file}: the old text of 'nowhere' is there 0 times": Mutation("nowhere", file, "a * b", ""),
    }
    trap = Trap(1, "sums", ("tests/test_sum.py::test_add",), tuple(wanted.values()))
    before = everything(tried.tree)
    assert program.spring(tried, [(trap, mutation) for mutation in wanted.values()]) == 1
    assert everything(tried.tree) == before
    said = capsys.readouterr().out.splitlines()
    rows = [line for line in said if line.startswith("| 1 |")]
    assert [line.split(" | ")[-1].removesuffix(" |") for line in rows] == list(wanted)
    assert "| `sum.py` | 1 of 2: `test_add` | AssertionError: wrong sum" in rows[0]
    assert any(line.startswith("1 of 5 mistakes were seen, in ") for line in said)
    assert said[-3:] == [f"1, {m.what}: {v}" for v, m in wanted.items() if v not in ("sprung", "not here")]


def test_the_exit_code_is_0_where_everything_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    mutation = Mutation("w", "f.py", "a", "b")
    trap = Trap(1, "t", ("tests/x.py::test_x",), (mutation,))
    told = Told(2, 0, "", "")
    fake: Any = SimpleNamespace(told_by=lambda tests: told)
    for verdict, code in (("sprung", 0), ("not here", 0), ("silent", 1)):
        monkeypatch.setattr(program, "tried", lambda *_, verdict=verdict: (verdict, told))
        assert program.spring(fake, [(trap, mutation)]) == code
    told = Told(2, 1, "", "")
    assert program.spring(fake, [(trap, mutation)]) == 1, "the tests fail without a mistake"
