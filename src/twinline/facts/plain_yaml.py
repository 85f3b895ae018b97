"""YAML as a person means it: `yes` and `no` are words, dates are text, and a key stands once.

Owns how the package's own data is read. Must not know what is in it. The C parser is used where PyYAML has it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class NotPlain(ValueError):
    """The file is no YAML, or says something twice; the message has the line."""


class _Loader(SafeLoader):
    pass


# YAML 1.1 makes booleans of yes, no, on and off, and dates of 2026-08-21; numbers with : or _ are no better.
_Loader.yaml_implicit_resolvers = {}
for tag, pattern, first in (
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", list("tf")),
    ("int", r"[-+]?\d+", list("-+0123456789")),
    ("float", r"[-+]?(\d+\.\d*|\.\d+|\d+)(e[-+]?\d+)?", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), first)


def _mapping(loader: Any, node: yaml.MappingNode) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise NotPlain(f"line {key_node.start_mark.line + 1}: a key should be text, not {key!r}")
        if key in values:
            raise NotPlain(f"line {key_node.start_mark.line + 1}: {key} is given twice")
        values[key] = loader.construct_object(value_node, deep=True)
    return values


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def read_yaml(file: Path) -> Any:
    """What the file holds. Raises NotPlain with the line, OSError where it cannot be read."""
    try:
        return yaml.load(file.read_text("utf-8"), _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise NotPlain(f"line {mark.line + 1 if mark else 1}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise NotPlain(" ".join(str(error).split())) from None
