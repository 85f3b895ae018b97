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
        line = self.values[name][0] if name in self.values else self.line
        path = ".".join(part for part in (self.where, name) if part)
        self.faults.append(Fault(line, f"{path}: {text}" if path else text))

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
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise FileFaults(path, [Fault(1, "expected models: and lines:, this is no mapping")])
        faults: list[Fault] = []
        return _section(loader, node, "", 1, faults)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise FileFaults(path, [Fault(mark.line + 1 if mark else 1, f"not YAML: {what}")]) from None
    except yaml.YAMLError as error:
        raise FileFaults(path, [Fault(1, f"not YAML: {' '.join(str(error).split())}")]) from None
    finally:
        loader.dispose()


def _section(loader: yaml.SafeLoader, node: yaml.MappingNode, where: str, line: int, faults: list[Fault]) -> Section:
    section = Section(where, line, {}, faults)
    _refuse_repeats(node, where, faults)
    loader.flatten_mapping(node)  # `<<: *anchor`; what the mapping says itself comes later and wins
    for key, value in node.value:
        name, at = str(loader.construct_object(key)), key.start_mark.line + 1
        path = f"{where}.{name}" if where else name
        if isinstance(value, yaml.MappingNode):
            section.values[name] = (at, _section(loader, value, path, at, faults))
        else:
            section.values[name] = (at, loader.construct_object(value, deep=True))
    return section


def _refuse_repeats(node: yaml.MappingNode, where: str, faults: list[Fault]) -> None:
    first: dict[str, int] = {}
    for key, _ in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        line = key.start_mark.line + 1
        if key.value in first:
            path = f"{where}.{key.value}" if where else str(key.value)
            faults.append(Fault(line, f"{path}: given twice, first at line {first[key.value]}"))
        first.setdefault(key.value, line)
