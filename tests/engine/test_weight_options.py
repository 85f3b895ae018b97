"""`weights` and `head_weights` reach every matrix that they are said to change, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.engine.checkpoints import R1, weights, write
from tests.engine.driving import Driven, only
from tests.engine.tiny import write_checkpoint
from torch import Tensor

from twinline.engine.models.moe import RoutedExperts
from twinline.engine.models.parts import Linear
from twinline.engine.models.transformer import Transformer
from twinline.engine.ops.quantized import stored
from twinline.engine.ops.registry import Ops, StaticFacts
from twinline.engine.sizes import weight_bytes
from twinline.facts.models import read_spec
from twinline.facts.weight_form import PLAIN, WeightForm, read_weight_form

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 53, 58]
KEPT = ("embed_tokens", "norm", "mlp.gate.", "kv_b_proj", "bias")  # never quantized


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("plain"), R1, weights(R1))


def rounded(name: str, tensor: Tensor, layers: WeightForm, head: WeightForm) -> Tensor:
    if any(part in name for part in KEPT):
        return tensor
    return stored(tensor, head if name == "lm_head.weight" else layers)


@pytest.mark.parametrize(
    ("layers", "head"), [("int8", "auto"), ("int4", "int8"), ("int4:64", "plain"), ("plain", "int4:128")]
)
def test_the_model_is_that_of_rounded_weights(
    layers: str, head: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "reference")
    got = Driven(folder, weights=layers, head_weights=head).logits(IDS)
    form = read_weight_form(layers)[0]
    head_form = form if head == "auto" else read_weight_form(head)[0]
    by_hand = {name: rounded(name, t, form, head_form) for name, t in weights(R1).items()}
    expected = Driven(write(tmp_path / "rounded", R1, by_hand)).logits(IDS)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    plain = Driven(folder).logits(IDS)
    assert (got - plain).abs().max() > 1e-3, "nothing was rounded"


@pytest.mark.parametrize("form", ["int8", "int4:32"])
def test_the_cpus_own_kernels_serve_the_form(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They round activations too, which costs no more than rounding weights to 8 bits. All experts are chosen here."""
    folder = write_checkpoint(tmp_path)
    plain, got = Driven(folder).logits(IDS), Driven(folder, weights=form).logits(IDS)

    def error(a: Tensor) -> float:
        return float((a - plain).norm() / plain.norm())

    only(monkeypatch, "reference")
    eight, reference = (error(Driven(folder, weights=f).logits(IDS)) for f in ("int8", form))
    assert 0 < error(got) < 1.5 * (reference + eight)


def test_bytes_are_those_of_the_forms(folder: Path) -> None:
    spec, int8, int4 = read_spec(folder), WeightForm("int8"), WeightForm("int4", 32)

    def total(layers: WeightForm, head: WeightForm) -> int:
        facts = StaticFacts("cpu", torch.float32, 0, layers, head)
        return weight_bytes(Transformer(Ops(("reference",), facts), spec))

    plain = total(PLAIN, PLAIN)
    model = Transformer(Ops(("reference",), StaticFacts("cpu", torch.float32)), spec)
    assert plain == sum(p.numel() * 4 for p in model.parameters())
    matrices = [p for m in model.modules() if isinstance(m, Linear) and m is not model.head for p in [m.weight]]
    stacks = [p for m in model.modules() if isinstance(m, RoutedExperts) for p in (m.gate_up, m.down)]
    saved = sum(p.numel() * 3 - p.numel() // p.shape[-1] * 4 for p in [*matrices, *stacks] if p is not None)
    assert plain - total(int8, PLAIN) == saved
    assert total(int4, int4) < total(int4, int8) < total(int4, PLAIN) < total(int8, PLAIN) < plain


def test_contradicting_options_are_refused_before_anything_is_read(folder: Path) -> None:
    with pytest.raises(ValueError, match="weights says bfloat16 and dtype float32"):
        Driven(folder, weights="bfloat16")
    with pytest.raises(ValueError, match="head_weights 'int3' is not a form"):
        Driven(folder, head_weights="int3")
