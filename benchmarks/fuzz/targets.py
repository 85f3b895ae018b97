"""The table of targets: each imports its parser, gives its seeds, and the function that feeds it one input."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.fuzz import doors, files, lines, texts
from benchmarks.fuzz.given import Made

TARGETS: dict[str, Callable[[], Made]] = {
    make.__name__: make
    for make in (
        texts.templates, texts.reasoning, texts.calls, lines.events, lines.answers, files.shards, files.configs,
        doors.requests, files.fleets, files.folders, files.poolings, lines.vectors, files.gguf, lines.chips,
    )
}  # fmt: skip
