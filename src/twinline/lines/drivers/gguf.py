"""GGUF files: the few values of their metadata that a driver needs.

Owns the format's header. Must not know what the values mean.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

_ARRAY, _STRING = 9, 8
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def metadata(file: Path, wanted: Callable[[str], bool]) -> Mapping[str, Any]:
    """The values whose names are wanted; others are passed over. Raises ValueError for no GGUF file, or OSError."""
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ValueError(f"{file} is no GGUF file")
        try:
            return dict(_values(stream, wanted))
        except (struct.error, UnicodeDecodeError, KeyError, MemoryError, OverflowError, RecursionError) as error:
            raise ValueError(f"{file} has no readable metadata: {error!r}") from error


def _values(stream: BinaryIO, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Any]]:
    (version,) = _unpacked(stream, "I")
    if version < 2:
        raise KeyError(f"version {version}")
    _, count = _unpacked(stream, "QQ")
    for _ in range(count):
        name = _string(stream)
        (kind,) = _unpacked(stream, "I")
        if wanted(name):
            yield name, _value(stream, kind)
        else:
            _pass_over(stream, kind)


def _unpacked(stream: BinaryIO, form: str) -> tuple[Any, ...]:
    form = "<" + form
    return struct.unpack(form, stream.read(struct.calcsize(form)))


def _string(stream: BinaryIO) -> str:
    (length,) = _unpacked(stream, "Q")
    return stream.read(length).decode("utf-8")


def _value(stream: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(stream)
    if kind == _ARRAY:
        inner, count = _unpacked(stream, "IQ")
        return [_value(stream, inner) for _ in range(count)]
    (value,) = _unpacked(stream, _SCALARS[kind])
    return value


def _pass_over(stream: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        (length,) = _unpacked(stream, "Q")
        stream.seek(length, 1)
    elif kind == _ARRAY:
        inner, count = _unpacked(stream, "IQ")
        if inner in _SCALARS:
            stream.seek(struct.calcsize("<" + _SCALARS[inner]) * count, 1)
        else:
            for _ in range(count):
                _pass_over(stream, inner)
    else:
        stream.seek(struct.calcsize("<" + _SCALARS[kind]), 1)
