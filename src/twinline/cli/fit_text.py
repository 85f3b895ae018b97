"""How the sum of a fit reads: the verdict, the ledger of one device, what remains, and what would turn a no into a yes.

Owns words and columns. Must not know how the numbers come about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from twinline.cli.chips_text import Sources, columns, wrapped
from twinline.facts.chips import Chip
from twinline.facts.engine_rules import RULES
from twinline.facts.fit import GB, Fit, Line, Want
from twinline.facts.fit_changes import Change
from twinline.facts.model_files import ModelFile
from twinline.facts.tensors import Anatomy
from twinline.facts.weights import checkpoint_bytes

MOST_CHANGES = 6


@dataclass(frozen=True)
class Question:
    """What was asked: the model, what it is made of, and the request."""

    file: ModelFile
    anatomy: Anatomy
    want: Want
    as_published: bool


def gigabytes(value: float) -> str:
    """`81.76`; the least that shows is a hundredth."""
    return f"{value / GB:,.2f}"


def counted(value: int) -> str:
    """`684.49 B`, `6.71 M`."""
    return f"{value / 1e9:,.2f} B" if value >= 1e9 else f"{value / 1e6:,.2f} M"


def headline(question: Question) -> Iterator[str]:
    """The model in two or three lines."""
    anatomy, want = question.anatomy, question.want
    active = f", {counted(anatomy.active_parameters)} active" if anatomy.mixture else ""
    stored = checkpoint_bytes(anatomy, want.form)
    published = " as published" if question.as_published else ""
    yield f"{question.file.name}: {counted(anatomy.parameters)} parameters{active}, {anatomy.architecture}"
    yield f"weights in {want.form.says}{published}: {gigabytes(stored)} GB ({stored:,} bytes)"
    if anatomy.predictor:
        drafting = sum(want.form.bytes(t, t.shape) * t.copies for t in anatomy.tensors if t.part == "predictor")
        yield f"{gigabytes(drafting)} GB of it draft tokens ahead: loaded by --speculation mtp alone, not counted here"
    told = question.file.stored_bytes
    if told is not None and question.as_published and abs(told - stored) > 0.001 * told:
        yield f"beware: the folder's own files hold {told:,} bytes, {100 * (told - stored) / stored:+.1f}%"


def lay_out(question: Question, chip: Chip, found: Fit, better: Sequence[Change]) -> Iterator[str]:
    """The whole answer."""
    sources = Sources()
    requests = f"{found.concurrency:,} request{'s' * (found.concurrency > 1)} of {found.context:,} tokens"
    yield f"{found.answer}: {question.file.name} for {requests} on {found.cards} x {chip.name}"
    if found.why:
        yield from wrapped("", found.why, 5)
    yield ""
    yield from headline(question)
    if found.lines:
        yield ""
        yield from _ledger(found, sources)
        yield ""
        yield from _remains(question, found)
    yield from _beside(found, sources)
    if better:
        yield ""
        yield "What would fit, the smallest change first:"
        yield from _changes(better)
        if any(change.fit.form != found.form for change in better):
            yield "  (a checkpoint in that form has to exist, and its answers have to be tried)"
        if any("--cache" in change.options for change in better):
            yield "  (an engine has to keep its cache so on this chip, and its answers have to be tried)"
    elif found.answer == "no":
        yield ""
        yield "No other precision, number of cards or smaller request was found that fits."
    cited = list(sources.lines())
    if cited:
        yield from ("", *cited)


def _ledger(found: Fit, sources: Sources) -> Iterator[str]:
    """The sum of one device, so that the printed lines add up to what is left."""
    rule = RULES[found.rule]
    memory, *needs = found.lines
    inside = [line for line in needs if line.need in rule.inside]
    outside = [line for line in needs if line.need not in rule.inside]
    taken = sum(line.bytes for line in inside)
    of = memory.bytes if rule.of == "total" else max(memory.bytes - taken, 0.0)
    reserve = (1 - rule.share) * of
    over = max(sum(line.bytes for line in outside) - reserve, 0.0)
    percent = f"{100 * (1 - rule.share):.0f}%"
    what = "of the memory" if rule.of == "total" else "of what is free"
    rows = [["", "GB", ""], _row(memory, "", sources)]
    kept = [f"kept free by {rule.name}, {percent} {what}", f"-{gigabytes(reserve)}", sources.cite(rule.source)]
    rows += [kept] if rule.of == "total" else []
    rows += [_row(line, "-", sources) for line in inside]
    rows += [kept] if rule.of == "free" else []
    if over > 0:
        rows.append(["what lies outside and finds no room in it", f"-{gigabytes(over)}", "below"])
    rows.append(["left for the cache", gigabytes(found.left_bytes or 0.0), ""])
    rows += [[f"outside: {line.what}", *_row(line, "", sources)[1:]] for line in outside]
    yield f"each of {found.devices} devices, laid out as {found.layout}" if found.devices > 1 else "the one device"
    yield from _wide(rows)


def _wide(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Three columns, the last over as many lines as it needs."""
    aligned = columns([row[:2] for row in rows])
    indent = max(map(len, aligned)) + 2
    for numbers, (_, _, words) in zip(aligned, rows, strict=True):
        yield from wrapped(numbers, words, indent) if words else (numbers,)


def _row(line: Line, sign: str, sources: Sources) -> list[str]:
    cited = "" if line.source in ("config.json", "shapes") else f" {sources.cite(line.source)}"
    words = f"{line.how}{cited}{': ' if line.note else ''}{line.note}"
    return [line.what, f"{sign}{gigabytes(line.bytes)}", words]


def _remains(question: Question, found: Fit) -> Iterator[str]:
    groups = f" in each of {found.groups} groups" if found.groups > 1 else ""
    yield from columns(
        [
            ["one token in the cache", f"{found.token_bytes:,}", f"bytes on a device, in {question.want.cache.name}"],
            ["room for", f"{found.tokens:,}", f"tokens{groups}"],
            ["which is", f"{found.users:,}", f"request{'s' * (found.users != 1)} of {found.context:,} tokens"],
        ],
        left=(0, 2),
    )


def _beside(found: Fit, sources: Sources) -> Iterator[str]:
    support = found.suits
    if support.answer == "unknown":
        yield f"  {found.form} on this chip: not known"
    else:
        note = f": {support.note}" if support.note else ""
        yield from wrapped("", f"{found.form} on this chip: {support.answer}, {support.evidence} "
                               f"{sources.cite(support.source)}{note}", 2)  # fmt: skip
    for note in found.notes:
        yield from wrapped("", note, 2)


def _changes(better: Sequence[Change]) -> Iterator[str]:
    rows = [
        [change.what, change.options, str(change.fit.layout), f"room for {change.fit.users:,}"]
        for change in better[:MOST_CHANGES]
    ]
    yield from columns(rows, left=(0, 1, 2, 3))
