"""What a field of a fleet file may hold: each kind turns YAML's value into ours or says what it expected.

Owns the kinds alone. Every function raises ValueError in words that follow the field's name.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from twinline.lines.fleet.marked import nearest

PRICE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s+([A-Z]{3})(?:\s*/\s*h)?")
VARIABLE = re.compile(r"\$\{([^}]*)\}")
NOT_SET = "is not set"  # how the mistake ends that is not the file's alone
SECRET = re.compile(r"(^|[_-])(api_?key|key|token|secret|password)($|[_-])", re.IGNORECASE)


def shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)


def text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"expected text, not {shown(value)}" + _quoted(value))
    return value


def _quoted(value: Any) -> str:
    return ", which YAML does not take as text: put it in quotes" if isinstance(value, int | float) else ""


def path(folder: Path, value: str) -> Path:
    """A path of the file, seen from its folder."""
    try:
        os.fsencode(value)
        found = folder / Path(value).expanduser()
        if "\0" in value:
            raise ValueError("there is a zero in it")
        found.exists()  # says it of a name that is too long
        return found
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(f"{value!r:.80} cannot be a path: {error}") from None


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, not {shown(value)}")
    return value


def whole(low: int, high: int | None = None) -> Callable[[Any], int]:
    def kind(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
            limit = f"of at least {low}" if high is None else f"from {low} to {high}"
            raise ValueError(f"expected a whole number {limit}, not {shown(value)}")
        return value

    return kind


def number(low: float, *, above: bool = False) -> Callable[[Any], float]:
    def kind(value: Any) -> float:
        good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        if not good or value < low or (above and value == low):
            raise ValueError(f"expected a number {'above' if above else 'of at least'} {low:g}, not {shown(value)}")
        return float(value)

    return kind


def choice(known: Iterable[str]) -> Callable[[Any], str]:
    names = list(known)

    def kind(value: Any) -> str:
        if value is False and "off" in names:  # YAML 1.1 reads a bare `off` as false
            return "off"
        if value not in names:
            hint = nearest(str(value), names)
            raise ValueError(f"expected one of {', '.join(names)}, not {shown(value)}{hint}")
        return str(value)

    return kind


def names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"expected a list of names, as [a, b], not {shown(value)}")
    return tuple(value)


def cards(value: Any) -> tuple[int, ...]:
    good = isinstance(value, list) and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in value)
    if not good or len(set(value)) != len(value):
        raise ValueError(f"expected the numbers of cards, each once, as [0, 1], not {shown(value)}")
    return tuple(value)


def options(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected options, one a line, not {shown(value)}")
    _refuse_secrets(value)
    return value


def environment(value: Any) -> Mapping[str, str]:
    """Names to text. A value `${NAME}` is left as it is: it is looked up when the engine starts."""
    if not isinstance(value, dict):
        raise ValueError(f"expected variables, one a line, not {shown(value)}")
    for name, content in value.items():
        if not isinstance(content, str | int | float) or isinstance(content, bool):
            raise ValueError(f"{name} must be text, not {shown(content)}: put it in quotes")
    _refuse_secrets(value)
    return {name: str(content) for name, content in value.items()}


def _refuse_secrets(value: Mapping[str, Any]) -> None:
    for name, content in value.items():
        if SECRET.search(name) and isinstance(content, str) and not VARIABLE.fullmatch(content):
            raise ValueError(
                f"{name} looks like a secret, which a fleet file must not hold: write ${{NAME}} and set NAME"
            )


def currency(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch("[A-Z]{3}", value):
        raise ValueError(f"expected three capital letters, such as USD, not {shown(value)}")
    return value


def price(value: Any) -> tuple[float, str | None]:
    """The amount, and the currency if it is said: 2.5, `2.5 USD` or `2.5 USD/h`."""
    if isinstance(value, str) and (found := PRICE.fullmatch(value.strip())):
        return number(0)(float(found[1])), found[2]
    if isinstance(value, str):
        raise ValueError(f"expected a price, such as 2.5 or 2.5 USD, not {shown(value)}")
    return number(0)(value), None


def substituted(value: str, environ: Mapping[str, str]) -> str:
    """`value` with every `${NAME}` looked up. Raises ValueError for one that is not set."""

    def look_up(found: re.Match[str]) -> str:
        if found[1] not in environ:
            raise ValueError(f"the environment variable {found[1]} {NOT_SET}")
        return environ[found[1]]

    return VARIABLE.sub(look_up, value)
