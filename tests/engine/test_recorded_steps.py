"""On the real CPU device a replayed step gives the plain step's bits, whatever the model's kind and the batch."""

from __future__ import annotations

import pytest
import torch
from tests.engine.checkpoints import Config
from tests.engine.test_step_of_ops import KINDS

from twinline.engine.batch import Batch
from twinline.engine.devices.cpu import Cpu
from twinline.engine.graphs import DecodeGraphs
from twinline.engine.models.transformer import Transformer
from twinline.engine.ops.cpu import library
from twinline.engine.ops.plan import DecodePlan, Plan
from twinline.engine.ops.registry import Ops, StaticFacts
from twinline.facts.models import spec_from_config
from twinline.facts.weight_form import read_weight_form

pytestmark = pytest.mark.skipif(library.why_not() is not None, reason=str(library.why_not()))

PAGE, PAGES = 16, 24


def model_of(config: Config, dtype: torch.dtype, weights: str) -> Transformer:
    form, _ = read_weight_form(weights)
    facts = StaticFacts("cpu", dtype, weights=form, head_weights=form)
    model = Transformer(Ops(("cpu",), facts), spec_from_config(config)).to_empty(device="cpu")
    torch.manual_seed(1)
    for p in model.parameters():
        p.data.normal_(0, 0.2)
    for module in model.modules():
        if hasattr(module, "seal"):
            module.seal()
    model.ready(PAGE * 8, torch.device("cpu"))
    return model


def batch(lengths: list[int], generator: torch.Generator) -> Batch:
    """Decodes of these lengths, on pages in any order; the last page belongs to nobody."""
    counts = [-(-n // PAGE) for n in lengths]
    pages = torch.randperm(PAGES, generator=generator).tolist()
    rows = [[pages.pop() for _ in range(count)] for count in counts]
    table = torch.tensor([row + [PAGES] * (max(counts) - len(row)) for row in rows])
    slots = torch.tensor([row[-1] * PAGE + (n - 1) % PAGE for row, n in zip(rows, lengths, strict=True)])
    ids = torch.randint(0, 60, (len(lengths),), generator=generator)
    plan = Plan(slots, DecodePlan(table, torch.tensor(lengths), None), ())
    return Batch((), ids, torch.tensor(lengths) - 1, plan, tuple(range(len(lengths))))


@torch.inference_mode()
@pytest.mark.parametrize("weights", ["plain", "int8", "int4:32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_a_replay_gives_the_plain_steps_bits(config: Config, dtype: torch.dtype, weights: str) -> None:
    model, device, generator = model_of(config, dtype, weights), Cpu(torch.device("cpu")), torch.Generator()
    generator.manual_seed(7)
    cache = [
        tuple(torch.randn(heads, PAGES + 1, PAGE, size, generator=generator).to(dtype) for heads, size in rows)
        for rows in model.cache_rows()
    ]
    graphs = DecodeGraphs(model, device, cache, spare_page=PAGES)
    for lengths in ([3], [20, 1, 16], [40], [17, 33, 2, 64, 5], [9, 18, 1], [1], [64, 63, 62, 61, 60]):
        step = batch(lengths, generator)
        replayed = graphs.hidden(step)
        assert replayed is not None, graphs.why_not
        got = replayed.clone()
        assert torch.equal(got, model(step.ids_N, step.positions_N, step.plan, cache)), lengths
    assert graphs.why_not is None
