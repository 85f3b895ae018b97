"""YAML whose every value knows its line, read field by field, with all mistakes collected.

Owns lines, duplicate and unknown keys and the wording of mistakes. Must not know what a fleet is.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")
D = TypeVar("D")
MOST_VALUES = 100_000  # of a file, however its aliases multiply them


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One mistake; `line` counts from 1."""

    line: int
    text: str


class FileFaults(ValueError):
    """The file cannot be used. `faults` are all its mistakes, in the order of their lines."""

    def __init__(self, path: Path, faults: Iterable[Fault]) -> None:
        self.path = path
        self.faults = tuple(sorted(set(faults)))
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """`FILE:LINE: what is wrong`, one mistake each."""
        return [f"{self.path}:{fault.line}: {fault.text}" for fault in self.faults]


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean x?`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


@dataclass
class Section:
    """One mapping of the file. `where` is its path in words (`lines.cpu`), `line` the line of its key."""

    where: str
    line: int
    values: dict[str, tuple[int, Any]]
    faults: list[Fault]
    taken: set[str] = field(default_factory=set)

    def fault(self, name: str | None, text: str) -> None:
        """Notes a mistake at field `name`, or at the section's own line."""
        self.faults.append(self.at(name, text))

    def at(self, name: str | None, text: str) -> Fault:
        """The same, for whom it concerns; it is not noted as a mistake."""
        line = self.values[name][0] if name in self.values else self.line
        path = ".".join(part for part in (self.where, name) if part)
        return Fault(line, f"{path}: {text}" if path else text)

    def blame(self, text: str) -> None:
        """Notes a mistake whose text begins with the field it is about, `options.seed: ...`, at that field's line."""
        parts = text.partition(":")[0].split(".")
        line, inside = self.line, self
        for part in parts:
            if part not in inside.values:
                break
            line, value = inside.values[part]
            if not isinstance(value, Section):
                break
            inside = value
        known = parts[0] in self.taken
        self.faults.append(Fault(line, f"{self.where}.{text}" if known else f"{self.where}: {text}"))

    def get(self, name: str, kind: Callable[[Any], T], default: D) -> T | D:
        """The field's value through `kind`, which raises ValueError for a wrong one; `default` if it is not given."""
        self.taken.add(name)
        if name not in self.values:
            return default
        value = self.values[name][1]
        if isinstance(value, Section):
            value = value.plain()
        try:
            return kind(value)
        except ValueError as error:
            self.fault(name, str(error))
            return default

    def section(self, name: str) -> Section:
        """The mapping under `name`; an empty one where it is not given or is something else."""
        self.taken.add(name)
        line, value = self.values.get(name, (self.line, None))
        if isinstance(value, Section):
            return value
        if value is not None:
            self.fault(name, f"expected fields, one a line, not {value!r}")
        return Section(f"{self.where}.{name}" if self.where else name, line, {}, self.faults)

    def sections(self) -> Iterator[tuple[str, Section]]:
        """All that is in it, each as a mapping."""
        for name in self.values:
            yield name, self.section(name)

    def plain(self) -> dict[str, Any]:
        return {name: v.plain() if isinstance(v, Section) else v for name, (_, v) in self.values.items()}

    def finish(self) -> None:
        """Notes every field that nobody asked for."""
        for name in self.values.keys() - self.taken:
            hint = nearest(name, self.taken) or f"; it has {', '.join(sorted(self.taken))}"
            self.fault(name, f"there is no such field{hint}")


def read(path: Path, text: str) -> Section:
    """The whole file. Raises FileFaults for what is not YAML or no mapping; other mistakes come in `faults`."""
    loader: yaml.SafeLoader | None = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise FileFaults(path, [Fault(1, "expected models: and lines:, this is no mapping")])
        if _count(node, {}) > MOST_VALUES:
            raise FileFaults(path, [Fault(1, f"its aliases make more than {MOST_VALUES:,} values of it")])
        faults: list[Fault] = []
        return _section(loader, node, "", 1, faults)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise FileFaults(path, [Fault(mark.line + 1 if mark else 1, f"not YAML: {what}")]) from None
    except yaml.YAMLError as error:
        raise FileFaults(path, [Fault(1, f"not YAML: {' '.join(str(error).split())}")]) from None
    except RecursionError:
        raise FileFaults(path, [Fault(1, "not YAML that can be used: it is nested too deeply, or in itself")]) from None
    finally:
        if loader is not None:
            loader.dispose()


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Values in it, those behind an alias as often as they are named."""
    if id(node) not in known:
        inner = node.value if isinstance(node, yaml.SequenceNode) else ()
        if isinstance(node, yaml.MappingNode):
            inner = [each for pair in node.value for each in pair]
        known[id(node)] = 1 + sum(_count(each, known) for each in inner)
    return known[id(node)]


def _value(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    """What YAML takes it for. Raises YAMLError: the loader itself fails in many ways, as at a 13th month."""
    try:
        return loader.construct_object(node, deep=True)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        shown = f"{node.value!r:.60}" if isinstance(node, yaml.ScalarNode) else "a value in it"
        what = f"{shown} cannot be read: {error}"
        raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from None


def _section(loader: yaml.SafeLoader, node: yaml.MappingNode, where: str, line: int, faults: list[Fault]) -> Section:
    section = Section(where, line, {}, faults)
    _refuse_repeats(node, where, faults)
    loader.flatten_mapping(node)  # `<<: *anchor`; what the mapping says itself comes later and wins
    for key, value in node.value:
        at = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            faults.append(Fault(at, f"{where}: expected a name, not a list or fields" if where else "expected a name"))
            continue
        name = str(key.value)  # as it is written: `no` and `3.10` are names here
        path = f"{where}.{name}" if where else name
        if isinstance(value, yaml.MappingNode):
            section.values[name] = (at, _section(loader, value, path, at, faults))
        else:
            section.values[name] = (at, _value(loader, value))
    return section


def _refuse_repeats(node: yaml.MappingNode, where: str, faults: list[Fault]) -> None:
    first: dict[str, int] = {}
    for key, _ in node.value:
        if key.tag == "tag:yaml.org,2002:merge" or not isinstance(key, yaml.ScalarNode):
            continue
        line = key.start_mark.line + 1
        if key.value in first:
            path = f"{where}.{key.value}" if where else str(key.value)
            faults.append(Fault(line, f"{path}: given twice, first at line {first[key.value]}"))
        first.setdefault(key.value, line)
