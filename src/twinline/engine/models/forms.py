"""Which form each parameter of a model is kept in when its checkpoint is quantized already and nobody asks for another.

Owns that choice and the line that says it. A parameter may be put together from several matrices: it keeps a form only
if all of them have it, else it is dequantized. Knows no tensor's layout (`quant/matrices.py`).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from twinline.engine.models.moe import RoutedExperts
from twinline.engine.models.parts import Linear
from twinline.engine.models.transformer import Transformer
from twinline.engine.quant.matrices import Matrix
from twinline.facts.quantization import Quantization
from twinline.facts.weight_form import BLOCK, PLAIN, WeightForm


@dataclass(frozen=True)
class Forms:
    """`of`: the form of each parameter that is kept in one. `layers`: the one that most weights outside the head have,
    plain if none is kept."""

    of: Mapping[str, WeightForm]
    layers: WeightForm
    head: WeightForm

    def with_head(self, form: WeightForm) -> Forms:
        return Forms({**self.of, "head.weight": form}, self.layers, form)

    def give(self, model: Transformer) -> None:
        """Tells the model's parts, before anything is loaded."""
        for path, module in model.named_modules():
            names = parameters_with_form(module)
            if names:
                module.form = self.of.get(f"{path}.{names[0]}", PLAIN)


def parameters_with_form(module: nn.Module) -> tuple[str, ...]:
    """The parameters of a part that may be quantized."""
    if isinstance(module, Linear):
        return ("weight",)
    return ("gate_up", "down") if isinstance(module, RoutedExperts) else ()


@dataclass(frozen=True)
class Piece:
    """A matrix that a parameter is made of. `last`: no other lies below it."""

    matrix: Matrix
    last: bool


def as_stored(model: Transformer, made_of: Mapping[str, list[Piece]]) -> Forms:
    """The forms that keep the checkpoint's own numbers. `made_of`: the matrices of each parameter."""
    kept: dict[str, WeightForm] = {}
    weight: Counter[WeightForm] = Counter()
    for path, module in model.named_modules():
        names = [f"{path}.{name}" for name in parameters_with_form(module)]
        if not names or any(name not in made_of for name in names):
            continue
        found = {_common(made_of[name]) for name in names}
        form = found.pop() if len(found) == 1 else None
        if form is not None:
            kept |= dict.fromkeys(names, form)
            if module is not model.head:
                weight[form] += sum(math.prod(p.matrix.shape) for name in names for p in made_of[name])
    layers = weight.most_common(1)[0][0] if weight else PLAIN
    return Forms(kept, layers, kept.get("head.weight", PLAIN))


def _common(pieces: list[Piece]) -> WeightForm | None:
    """The form of them all, None where they differ."""
    forms = {piece.matrix.form for piece in pieces}
    form = next(iter(forms)) if len(forms) == 1 else None
    return form if form is not None and apart(pieces, form) else None


def apart(pieces: list[Piece], form: WeightForm) -> bool:
    """Whether each matrix has scales of its own: where a square of fp8 ends inside one, it does not."""
    return form.kind != "fp8" or not any(p.matrix.shape[0] % BLOCK for p in pieces if not p.last)


def says(
    declared: Quantization, made_of: Mapping[str, list[Piece]], forms: Forms | None, plain: str, otherwise: str
) -> str:
    """One line for the log: what the checkpoint holds and what becomes of it; `otherwise` where no form is kept."""
    quantized = [(name, p.matrix) for name, pieces in made_of.items() for p in pieces if not p.matrix.plain]
    parts = [f"weights: {declared.method}, {', '.join(map(str, declared.schemes))}, {len(quantized)} matrices"]
    if forms is None:
        return f"{parts[0]}; {otherwise}"
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for name, m in quantized:
        form = forms.of.get(name)
        why = m.why if form is not None or m.form is None else "beside others of another form or size"
        if form is None and m.form is not None and name.endswith(".kv_up"):
            why = "the latent's up-projection is split by heads"
        groups[f"kept as {form}, exactly" if form else f"dequantized to {plain}"][why] += 1
    for what, reasons in groups.items():
        why = ", ".join(reason for reason in reasons if reason)
        parts.append(f"{sum(reasons.values())} {what}{f' ({why})' if why else ''}")
    if any(form.kind == "int8" for form in forms.of.values()) and declared.scheme.bits == 4:
        parts.append("--weights int4:128 takes half of that, and rounds")
    return "; ".join(parts)
