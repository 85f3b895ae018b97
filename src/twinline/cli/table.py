"""Aligned text for people. Owns column widths; knows nothing of what is in them."""

from __future__ import annotations

from collections.abc import Sequence

from twinline.cli.terminal import harmless


def aligned(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Rows of equal length as columns: the first to the left, the others to the right."""
    rows = [[harmless(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *others = row
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append(indent + "  ".join(cells).rstrip())
    return "\n".join(lines)
