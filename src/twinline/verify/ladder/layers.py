"""Level 2: whole layers with the model's own weights: attention in its forms, experts, norms, rotary tables, the head.

Owns the inputs and the comparison. Judged by the ratio to the reference chip, 1.5 times as wide as for single ops,
since errors add up; a router by its sets of experts where the choice is clear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twinline.engine.devices.device import dtype_name
from twinline.engine.models.moe import MoE
from twinline.engine.models.transformer import Layer
from twinline.facts.models import Latent
from twinline.verify.ladder import rules
from twinline.verify.ladder.attempt import NotReady, Where, attempt
from twinline.verify.ladder.bench import Bench
from twinline.verify.ladder.double import margins
from twinline.verify.ladder.finding import Figure, Finding, Verdict
from twinline.verify.ladder.golden import Golden
from twinline.verify.ladder.subject import Subject, subjects
from twinline.verify.ladder.trace import lay_out

WIDER = 1.5
SURE = 8 * 2.0**-24  # of a router's margin
ROWS, DECODES = 48, 5
RULE = "largest, mean and root mean square error within 7.5, 2.25 and 2.25 times the reference chip's; no bias"
Run = Callable[[Subject], Tensor]


def climb(bench: Bench) -> Iterator[Finding]:
    yield from attempt(bench, "layers.rope", lambda where: _rope(bench), op="rope")
    yield from attempt(bench, "layers.norm", lambda where: _norm(bench, where))
    for form in FORMS:
        yield from attempt(bench, f"layers.attention.{form}", partial(_attention, bench, form))
    yield from attempt(bench, "layers.attention.forms", partial(_forms, bench))
    yield from attempt(bench, "layers.mlp", lambda where: _mlp(bench, where))
    yield from attempt(bench, "layers.experts", lambda where: _experts(bench, where))
    yield from attempt(bench, "layers.head", lambda where: _head(bench, where))


@dataclass(frozen=True)
class Three:
    """One layer's result on the chip, golden and on the reference chip, as float64; rows first."""

    chip: np.ndarray
    golden: np.ndarray
    reference: np.ndarray

    def rows(self, keep: np.ndarray) -> Three:
        return Three(self.chip[keep], self.golden[keep], self.reference[keep])


def _three(bench: Bench, run: Run) -> Three:
    found = []
    for subject in (subjects(bench).chip, subjects(bench).golden, subjects(bench).reference):
        with torch.inference_mode(), subject.width():
            found.append(run(subject).cpu().double().numpy())
    return Three(*found)


def _layer(subject: Subject, index: int) -> Layer:
    layer = subject.model.layers[index]
    assert isinstance(layer, Layer)
    return layer


def _input(bench: Bench, name: str, *shape: int, scale: float = 1.0) -> Tensor:
    """Numbers that are rounded to the model's dtype already: all three are given the same."""
    x = torch.from_numpy(bench.generator("layers", name).standard_normal(shape) * scale)
    return x.to(subjects(bench).dtype)


def _on(subject: Subject, x: Tensor) -> Tensor:
    return x.double() if subject.double else x.to(subject.device.torch_device)


def _judged(bench: Bench, check: str, three: Three, said: str, op: str = "", more: dict[str, Figure] | None = None
            ) -> Finding:  # fmt: skip
    name = dtype_name(subjects(bench).dtype)
    anything = Golden(three.golden, np.full(three.golden.shape, np.inf), bench.spec.hidden)
    with np.errstate(all="ignore"):
        judged = rules.judge(
            three.chip, anything, three.reference, rules.PRECISIONS[name], rules.ATTENTION.times(WIDER)
        )
    text = f"{said}: {judged.text.removeprefix('worst element at 0 of its bound, ')}"
    if judged.broken:
        off = np.abs(three.chip - three.golden)
        worst = np.unravel_index(int(np.nan_to_num(off, nan=np.inf).argmax()), off.shape)
        text += f"; worst in row {worst[0]} of {len(off)}"
    verdict: Verdict = "fail" if judged.broken else "pass"
    return Finding(check=check, verdict=verdict, text=text, rule=judged.broken or RULE, op=op, dtype=name,
                   shape="x".join(map(str, three.chip.shape)), figures=judged.figures | (more or {}))  # fmt: skip


def _rope(bench: Bench) -> Iterator[Finding]:
    """The tables of cosine and sine as they lie on the chip, and a rotation: lengths stay, and only distance counts."""
    last = bench.spec.context - 1
    positions = sorted({min(p, last) for p in (0, 1, 2, 17, 128, 1000, 4095, last)})

    def tables(subject: Subject) -> Tensor:
        assert subject.model.rope is not None
        at = torch.tensor(positions, device=subject.device.torch_device)
        return torch.cat(subject.model.rope.at(at), -1)

    three = _three(bench, tables)
    off = float(np.abs(three.chip - three.reference).max())
    good = off <= 2.0**-22
    text = f"tables at {len(positions)} positions up to {positions[-1]} are within {off:.1e} of the CPU's"
    yield Finding(check="layers.rope", verdict="pass" if good else "fail", text=text, op="rope", figures={"error": off},
                  rule="cosines and sines within 2**-22 of the CPU's")  # fmt: skip


def _norm(bench: Bench, where: Where) -> Iterator[Finding]:
    where.is_(op="add_rms_norm")
    x, residual = (_input(bench, f"norm{i}", 131, bench.spec.hidden) for i in range(2))

    def run(subject: Subject) -> Tensor:
        return torch.cat(_layer(subject, 0).mlp_norm.after(_on(subject, x), _on(subject, residual)), -1)

    said = "norm and residual of 131 rows"
    yield _judged(bench, "layers.norm", _three(bench, run), said, "add_rms_norm")


# Attention: prefill in one chunk, prefill in two, decode from the cache.

FORMS = ("prefill", "chunked", "decode")


def _steps(form: str) -> list[list[tuple[int, int, int]]]:
    whole = ROWS + DECODES
    if form == "prefill":
        return [[(0, 0, whole)]]
    if form == "chunked":
        return [[(0, 0, 19)], [(0, 19, whole)]]
    return [[(0, 0, ROWS)], *([(0, ROWS + i, ROWS + i + 1)] for i in range(DECODES))]


def _attend(bench: Bench, form: str) -> Run:
    """What the first layer's attention gives for all rows, divided into steps in one form or another."""
    x = _input(bench, "attention", ROWS + DECODES, bench.spec.hidden)

    def run(subject: Subject) -> Tensor:
        model = subject.model
        assert model.rope is not None
        requests, places = subject.requests([[1] * (ROWS + DECODES)])
        runner, attend = subject.runner(places), _layer(subject, 0).attention
        outs = []
        for spans in _steps(form):
            batch = lay_out(subject, requests, spans, runner.spare_page)
            _, start, end = spans[0]
            rope = model.rope.at(batch.positions_N)
            outs.append(attend(_on(subject, x[start:end]), rope, batch.plan, runner.cache[0]))
        return torch.cat(outs)

    return run


def _fits(bench: Bench) -> None:
    if bench.spec.context < ROWS + DECODES:
        raise NotReady(f"the model's context is {bench.spec.context} tokens, and this takes {ROWS + DECODES}")


def _kind(bench: Bench, form: str) -> str:
    if not isinstance(bench.spec.attention, Latent):
        return "attention_decode" if form == "decode" else "attention_prefill"
    return "mla_decode" if form == "decode" else "mla_prefill"


def _attention(bench: Bench, form: str, where: Where) -> Iterator[Finding]:
    _fits(bench)
    where.is_(op=_kind(bench, form))
    said = {"prefill": f"{ROWS + DECODES} rows in one chunk", "chunked": "in chunks of 19 and the rest",
            "decode": f"{ROWS} rows, then {DECODES} from the cache one by one"}[form]  # fmt: skip
    three = _three(bench, _attend(bench, form))
    yield _judged(bench, f"layers.attention.{form}", three, said, _kind(bench, form))


def _forms(bench: Bench, where: Where) -> Iterator[Finding]:
    """The same tokens decoded (for latent attention: in the absorbed form) and prefilled (expanded): one result."""
    _fits(bench)
    prefilled, decoded = (_three(bench, _attend(bench, form)) for form in ("prefill", "decode"))

    def apart(three_a: np.ndarray, three_b: np.ndarray) -> float:
        return float(np.sqrt(((three_a - three_b)[-DECODES:] ** 2).mean()))

    name = dtype_name(subjects(bench).dtype)
    seen, near = apart(prefilled.chip, decoded.chip), apart(prefilled.reference, decoded.reference)
    size = float(np.sqrt((prefilled.golden[-DECODES:] ** 2).mean()))
    floor = (8 if name == "float32" else 1) * rules.PRECISIONS[name].unit * size
    allowed = 2 * WIDER * max(near, floor)
    form = "absorbed and expanded" if isinstance(bench.spec.attention, Latent) else "decoded and prefilled"
    text = f"{form} differ by {seen / size:.1e} of the typical size, the reference chip's by {near / size:.1e}"
    good = seen <= allowed
    yield Finding(check="layers.attention.forms", verdict="pass" if good else "fail", text=text, dtype=name,
                  op="" if good else _kind(bench, "decode"), figures={"apart": seen, "reference_apart": near},
                  rule="within 3 times what they differ by on the reference chip, or rounding")  # fmt: skip


# What follows attention.


def _mlp(bench: Bench, where: Where) -> Iterator[Finding]:
    layer = next((i for i in range(bench.spec.layers) if i not in bench.spec.expert_layers), None)
    if layer is None:
        raise NotReady("every layer of the model has experts")
    where.is_(op="silu_mul")
    x = _input(bench, "mlp", 67, bench.spec.hidden)
    three = _three(bench, lambda s: _layer(s, layer).mlp(_on(s, x)))
    yield _judged(bench, "layers.mlp", three, f"the MLP of layer {layer}, 67 rows")


def _experts(bench: Bench, where: Where) -> Iterator[Finding]:
    """Routed and shared experts together, on the rows whose routing is clear; and the routing itself."""
    if bench.spec.experts is None:
        raise NotReady("the model has no experts")
    layer = min(bench.spec.expert_layers)
    x = _input(bench, "experts", 131, bench.spec.hidden)
    chosen: list[Tensor] = []
    where.is_(op="experts", place=f"layer {layer}")

    def part(subject: Subject) -> Any:
        moe = _layer(subject, layer).mlp
        assert isinstance(moe, MoE)
        return moe

    def run(subject: Subject) -> Tensor:
        mine = _on(subject, x)
        chosen.append(part(subject).gate(mine)[0].cpu())
        return part(subject)(mine)

    three = _three(bench, run)
    gate = part(subjects(bench).golden).gate
    sure = (margins(x, gate.weight, gate.bias, bench.spec.experts) > SURE).numpy()
    on_chip, golden, _ = (np.sort(one.numpy(), -1) for one in chosen)
    differ = (on_chip != golden).any(-1)
    wrong = differ & sure
    figures: dict[str, Figure] = {"sure_rows": int(sure.sum()), "wrong_rows": int(wrong.sum()),
                                  "differ_share": float(differ.mean())}  # fmt: skip
    if wrong.any():
        text = (f"layer {layer}: {int(wrong.sum())} of {int(sure.sum())} rows whose routing is clear go to other "
                f"experts, the first is row {int(wrong.argmax())}")  # fmt: skip
        yield Finding(check="layers.experts", verdict="fail", text=text, op="route", figures=figures,
                      rule="the golden set of experts where the margin is over 8u")  # fmt: skip
        return
    said = f"the experts of layer {layer}, {int(sure.sum())} rows routed as they should be"
    yield _judged(bench, "layers.experts", three.rows(sure & ~differ), said, "experts", figures)


def _head(bench: Bench, where: Where) -> Iterator[Finding]:
    where.is_(op="linear", place="head")
    x = _input(bench, "head", 33, bench.spec.hidden, scale=3.0)
    three = _three(bench, lambda s: s.model.logits(s.model.norm(_on(s, x))))
    yield _judged(bench, "layers.head", three, "the last norm and the head, 33 rows", "linear")
