"""Whether a model fits: the sum of what a device must hold against what it has, and how many tokens remain.

Owns that sum and its verdict, for one number of cards at a time. Must not know what to change for a no
(`fit_changes.py`), nor how it is shown.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from twinline.facts.chips import Chip
from twinline.facts.engine_rules import DEFAULT_RULE, RULES, EngineRule, Need
from twinline.facts.evidence import Figure, How, Support
from twinline.facts.forms import Form
from twinline.facts.layouts import Layout, impossible, possible
from twinline.facts.memory import (
    CACHE_FORMS,
    PAGE,
    CacheForm,
    activations,
    cache_bytes,
    communication,
    expert_workspace,
    graphs,
    logits,
    runtime,
)
from twinline.facts.suits import suits
from twinline.facts.tensors import Anatomy
from twinline.facts.weights import Held, held

Answer = Literal["yes", "no", "unknown"]
GB = 10**9
ASSUMED_NODE = 8
SEQUENCES = 256  # rows of logits that engines make room for (vLLM, max_num_seqs)
# Tokens prefilled at once unless asked otherwise: vLLM takes 8192 on large cards, 2048 on small ones.
LARGE_DEVICE, LARGE_CHUNK, SMALL_CHUNK = 40 * GB, 8192, 2048


class Want(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked: weights in `form`, `concurrency` requests of `context` tokens each.

    `layout`: None for the simplest that holds it. `chunk`: tokens prefilled at once, None for the engine's habit.
    """

    form: Form
    context: int
    concurrency: int = 1
    layout: Layout | None = None
    rule: EngineRule = RULES[DEFAULT_RULE]
    cache: CacheForm = CACHE_FORMS["bf16"]
    chunk: int | None = None


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the sum, bytes of one device. `need` says whose need it is: what the engine's rule counts by."""

    what: str
    bytes: float
    how: How | Literal["counted"]
    source: str
    note: str = ""
    need: Need | Literal["memory", "cache"]


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict. Tokens are of one attention group of `groups`; `users` of all groups at the asked context.

    `left_bytes`: what the cache of one device may have, below zero if the rest alone is too much; None if unknown.
    """

    answer: Answer
    why: str
    chip: str
    cards: int
    devices: int
    form: str
    suits: Support
    context: int
    concurrency: int
    layout: Layout | None = None
    lines: tuple[Line, ...] = ()
    rule: str = ""
    share: float = 0.0
    left_bytes: float | None = None
    token_bytes: int = 0
    tokens: int = 0
    groups: int = 1
    users: int = 0
    notes: tuple[str, ...] = ()


def node_devices(chip: Chip) -> tuple[int, str]:
    """Devices of one machine, and a note where that is assumed."""
    cards = chip.cards_per_node.value
    if cards is None:
        note = f"cards per machine: not found for {chip.id}, {ASSUMED_NODE} taken"
        return ASSUMED_NODE * chip.devices_per_card, note
    return int(cards) * chip.devices_per_card, ""


def fit(anatomy: Anatomy, chip: Chip, cards: int, want: Want) -> Fit:
    """Whether `cards` of this chip hold what is wanted: of the layouts that hold it the simplest, else the roomiest."""
    devices = cards * chip.devices_per_card
    node, assumed = node_devices(chip)
    head = Fit(
        answer="no", why="", chip=chip.id, cards=cards, devices=devices, form=want.form.name,
        suits=suits(chip, want.form), context=want.context, concurrency=want.concurrency, rule=want.rule.name,
        share=want.rule.share, notes=tuple(n for n in (assumed if devices > 1 else "", *anatomy.notes) if n),
    )  # fmt: skip
    memory = chip.memory_bytes()
    if memory.value is None:
        return msgspec.structs.replace(head, answer="unknown", why=f"the memory of {chip.id} is not known")
    if want.layout is not None:
        fault = impossible(anatomy, want.form, want.layout)
        if want.layout.devices != devices:
            fault = f"{want.layout} is for {want.layout.devices} devices, and there are {devices}"
        if fault:
            return msgspec.structs.replace(head, why=fault)
        layouts = [want.layout]
    else:
        layouts = list(possible(anatomy, want.form, devices, node))
    if not layouts:
        fault = impossible(anatomy, want.form, Layout(tensor=min(devices, node)))
        return msgspec.structs.replace(head, why=f"no layout spreads it over {devices} devices: {fault}")
    fits = [_on(anatomy, chip, memory, want, layout, head) for layout in layouts]
    holding = [one for one in fits if one.users >= want.concurrency]
    if not holding:
        most = max(one.users for one in fits)
        near = [one for one in fits if one.users == most]
        # With room for none at all, the one that lacks least says most.
        best = min(near, key=_simplicity) if most else max(near, key=lambda one: (one.tokens, one.left_bytes or 0.0))
        return _judged(anatomy, want, best)
    best = min(holding, key=_simplicity)
    roomy = max(holding, key=lambda one: one.users)
    if roomy.users > 1.25 * best.users:
        note = f"{roomy.layout} has room for more: {roomy.users:,} requests"
        best = msgspec.structs.replace(best, notes=(*best.notes, note))
    return _judged(anatomy, want, best)


def _simplicity(one: Fit) -> tuple[int, int, int, int]:
    """Few pipeline stages before few groups of attention before experts cut like other layers."""
    layout = one.layout
    assert layout is not None
    return (layout.pipeline, layout.data, int(layout.expert_parallel), -one.users)


def _judged(anatomy: Anatomy, want: Want, one: Fit) -> Fit:
    """The verdict of a sum: why not, or what is missing to know."""
    why, answer = "", "yes"
    if want.context > anatomy.context:
        answer, why = "no", f"the model sees {anatomy.context:,} tokens, and {want.context:,} are asked for"
    elif one.users < want.concurrency:
        answer, why = "no", _short(want, one)
    if one.suits.answer == "no":
        reason = one.suits.note or f"{one.chip} does not compute in {want.form.computes}"
        answer, why = "no", "; ".join(filter(None, (f"{want.form.name} is not for this chip: {reason}", why)))
    elif one.suits.answer == "unknown" and answer == "yes":
        answer = "unknown"
        why = f"the memory would do, but no source read says that {one.chip} runs {want.form.name} weights"
    return msgspec.structs.replace(one, answer=answer, why=why)


def _short(want: Want, one: Fit) -> str:
    """How much one device lacks."""
    each = math.ceil(want.concurrency / one.groups)
    needed = each * pages(want.context) * one.token_bytes
    left = one.left_bytes or 0.0
    if left < 0:
        return f"weights and workspace alone are {-left / GB:.1f} GB too much for each device"
    return (
        f"the cache of {each:,} x {want.context:,} tokens needs {needed / GB:.1f} GB on each device, "
        f"and {left / GB:.1f} GB are left"
    )


def chunk_of(want: Want, total: float) -> int:
    """Tokens prefilled at once on a device of `total` bytes: as asked, else the engine's habit."""
    return want.chunk or (LARGE_CHUNK if total >= LARGE_DEVICE else SMALL_CHUNK)


def pages(tokens: int) -> int:
    """Tokens rounded up to whole pages of the cache."""
    return math.ceil(tokens / PAGE) * PAGE


def _on(anatomy: Anatomy, chip: Chip, memory: Figure, want: Want, layout: Layout, head: Fit) -> Fit:
    """The sum for one layout: for a device of the pipeline stage that has room for fewest tokens."""
    assert memory.value is not None
    total = memory.value / chip.devices_per_card
    known = Line(
        what="memory of a device", bytes=total, how=memory.how, source=memory.source, note=memory.note, need="memory"
    )
    workspace = _workspace(anatomy, chip, want, layout, total)
    tightest: tuple[int, float, int, list[Line]] | None = None
    for stage in held(anatomy, want.form, layout):
        needs = [*_weights(stage), *workspace]
        left = _left(want.rule, total, needs)
        token = cache_bytes(anatomy, want.cache, layout, stage.layers)
        tokens = max(int(left // token) // PAGE * PAGE, 0)
        if tightest is None or (tokens, left) < tightest[:2]:
            tightest = (tokens, left, token, needs)
    assert tightest is not None
    tokens, left, token, needs = tightest
    return msgspec.structs.replace(
        head, layout=layout, lines=(known, *needs), left_bytes=left, token_bytes=token, tokens=tokens,
        groups=layout.data, users=layout.data * (tokens // pages(want.context)),
    )  # fmt: skip


def _left(rule: EngineRule, total: float, needs: list[Line]) -> float:
    """Bytes for the cache under an engine's rule; below zero if the needs alone are too much."""
    inside = sum(line.bytes for line in needs if line.need in rule.inside)
    left = rule.share * total - inside if rule.of == "total" else rule.share * (total - inside)
    return min(left, total - sum(line.bytes for line in needs))


PART_WORDS = {
    "embedding": "embedding", "attention": "attention", "mlp": "dense MLPs and shared experts", "experts": "experts",
    "head": "head", "router": "routers", "norm": "norms",
}  # fmt: skip


def _weights(stage: Held) -> list[Line]:
    lines = [
        Line(what=f"weights: {words}", bytes=stage.parts[part], how="counted", source="config.json", need="weights")
        for part, words in PART_WORDS.items()
        if stage.parts.get(part)
    ]
    if stage.absorbed:
        lines.append(
            Line(what="weights: latent up-projection, 16-bit copy", bytes=stage.absorbed, how="estimate",
                 source="vLLM and SGLang, MLA after loading", need="weights",
                 note="to attend in the latent space")
        )  # fmt: skip
    return lines


def _workspace(anatomy: Anatomy, chip: Chip, want: Want, layout: Layout, total: float) -> list[Line]:
    """What is needed beside weights and cache, the same in every stage."""
    chunk = chunk_of(want, total)
    rows = max(SEQUENCES, math.ceil(want.concurrency / layout.data))
    figures: list[tuple[str, Figure | None, Need]] = [
        ("activations", activations(anatomy, layout, chunk), "activations"),
        ("logits", logits(anatomy, layout, rows), "activations"),
        ("rows of experts", expert_workspace(anatomy, layout, chunk), "activations"),
        ("buffers of collectives", communication(chip.vendor, layout), "communication"),
        ("runtime and driver", runtime(chip), "runtime"),
        ("graphs", graphs(chip), "graphs"),
    ]
    return [
        Line(what=what, bytes=figure.value, how=figure.how, source=figure.source, note=figure.note, need=need)
        for what, figure, need in figures
        if figure is not None and figure.value is not None
    ]
