"""Aligned text for people. Owns column widths; knows nothing of what is in them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from twinline.cli.terminal import harmless, taken


def aligned(rows: Sequence[Sequence[str]], indent: str = "", left: Collection[int] = (0,)) -> str:
    """Rows of equal length as columns: those in `left` to the left, the others to the right."""
    rows = [[harmless(cell) for cell in row] for row in rows]
    widths = _widths(rows)
    lines = []
    for row in rows:
        gaps = [" " * (width - taken(cell)) for cell, width in zip(row, widths, strict=True)]
        cells = [cell + gap if at in left else gap + cell for at, (cell, gap) in enumerate(zip(row, gaps, strict=True))]
        lines.append(indent + "  ".join(cells).rstrip())
    return "\n".join(lines)


def fitted(
    rows: Sequence[Sequence[str]], columns: int | None, spare: Sequence[str]
) -> tuple[list[list[str]], list[str]]:
    """The rows without as many of the columns called `spare`, the first first, as it takes to fit into so many columns
    of a terminal; and the names of those left out."""
    kept, left_out = [list(row) for row in rows], []
    for name in spare:
        widths = _widths(kept)
        if columns is None or sum(widths) + 2 * (len(widths) - 1) <= columns:
            break
        at = kept[0].index(name)
        left_out.append(name)
        kept = [row[:at] + row[at + 1 :] for row in kept]
    return kept, left_out


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(taken, column)) for column in zip(*rows, strict=True)]
