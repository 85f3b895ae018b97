"""Every op of every provider against its formula in float64; and how providers are chosen.

A provider that is added is tested without a line here: the grid is the registry's own table. The same file is the first
thing to run on a new chip. Arguments and expected values are in `op_cases.py`.
"""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.checkpoints import R1, weights, write
from tests.engine.driving import Driven
from tests.engine.op_cases import CASES, normal
from torch import Tensor

from twinline.engine.devices.cpu import Cpu
from twinline.engine.ops import batched, reference, registry
from twinline.engine.ops.plan import DecodePlan
from twinline.engine.ops.registry import OPS, PROVIDERS, Ops, StaticFacts
from twinline.engine.request import Output

# Largest error allowed, of the largest |value| expected. Inputs are rounded to the dtype first: what is measured is the
# arithmetic. bfloat16 keeps 8 bits: rounding a result costs 0.004, an inner step of attention or of an expert more
TOLERANCE: dict[str, dict[torch.dtype, float]] = {
    op: {torch.float32: f32, torch.bfloat16: bf16}
    for op, f32, bf16 in (
        ("embedding", 0.0, 0.0),
        ("rms_norm", 1e-6, 0.012),
        ("add_rms_norm", 1e-6, 0.012),
        ("linear", 2e-6, 0.004),
        ("silu_mul", 1e-6, 0.012),
        ("rope", 1e-6, 0.004),
        ("kv_write", 0.0, 0.0),
        ("attention_prefill", 5e-6, 0.02),
        ("attention_decode", 5e-6, 0.02),
        ("mla_absorb", 2e-6, 0.004),
        ("mla_prefill", 5e-6, 0.02),
        ("mla_decode", 5e-6, 0.02),
        ("route", 2e-6, 2e-6),
        ("experts", 5e-6, 0.02),
    )
}


def call(op: str, function: Any, args: tuple[Any, ...]) -> Any:
    """The op's result in the form of the expected value: weights packed first, writes and choices made visible."""
    if op == "linear":
        return function(args[0], function.pack(args[1]), *args[2:])
    if op == "experts":
        return function(args[0], function.pack(*args[1]), *args[2:])
    if op == "kv_write":
        function(*args)
        return args[0]
    if op == "route":
        chosen, weight = function(*args)
        assert weight.dtype == torch.float32
        assert all(len(set(row)) == len(row) for row in chosen.tolist())
        return torch.zeros(len(chosen), len(args[1])).scatter_(1, chosen, weight)
    return function(*args)


def facts_of(op: str, args: tuple[Any, ...], dtype: torch.dtype) -> StaticFacts:
    """What a model with this case in it would tell the provider."""
    return StaticFacts("cpu", dtype, head_size=args[0].shape[-1] if op.startswith("attention") else 0)


for _module in PROVIDERS.values():
    importlib.import_module(_module)
GRID = sorted((op, provider) for op, provider in registry._registered)


def test_the_grid_is_whole() -> None:
    assert {op for op, _ in GRID} == set(OPS) == set(CASES) == set(TOLERANCE)
    assert {provider for _, provider in GRID} == set(PROVIDERS)
    assert {op for op, provider in GRID if provider == "reference"} == set(OPS), "the reference defines every op"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("op", "provider"), GRID)
def test_op(op: str, provider: str, dtype: torch.dtype) -> None:
    found = registry._registered[op, provider]
    taken, reasons = 0, set()
    with torch.inference_mode():
        for name, args, want in CASES[op](dtype):
            if reason := found.refuse(facts_of(op, args, dtype)):
                reasons.add(reason)
                continue
            taken += 1
            got = call(op, found.function, args)
            for g, w in zip(got, want, strict=True) if isinstance(want, tuple) else [(got, want)]:
                assert g.shape == w.shape, name
                assert g.dtype == (torch.float32 if op == "route" else dtype), name
                allowed = TOLERANCE[op][dtype] * w.abs().max().item()
                off = (g.double() - w).abs().max().item()
                assert off <= allowed, f"{name}: off by {off:.3g}, allowed {allowed:.3g}"
    if not taken:
        pytest.skip(f"{provider} refuses {op}: {', '.join(reasons)}")


@pytest.mark.parametrize(("op", "provider"), [(o, p) for o, p in GRID if o in ("linear", "experts")])
def test_packed_weights_serve_every_batch_size_and_stay_as_they_are(op: str, provider: str) -> None:
    found = registry._registered[op, provider]
    if reason := found.refuse(StaticFacts("cpu", torch.bfloat16)):
        pytest.skip(reason)
    with torch.inference_mode():
        results = []
        for _ in range(2):
            for rows in (1, 3, 8, 64):
                x = normal(64, 22, dtype=torch.bfloat16)[:rows]
                if op == "linear":
                    args: tuple[Any, ...] = ()
                    packed = found.function.pack(normal(30, 22, dtype=torch.bfloat16, seed=1))
                else:
                    args = (torch.zeros(rows, 1, dtype=torch.long), torch.ones(rows, 1))
                    packed = found.function.pack(normal(2, 26, 22, dtype=torch.bfloat16, seed=1),
                                                 normal(2, 22, 13, dtype=torch.bfloat16, seed=2))  # fmt: skip
                results.append(found.function(x, packed, *args).float())
                again = found.function(x, packed, *args).float()
                assert torch.equal(results[-1], again)
        for one in results:
            torch.testing.assert_close(one[0], results[0][0], rtol=0.02, atol=0.02)


# The choosing.

F32, BF16 = StaticFacts("cpu", torch.float32), StaticFacts("cpu", torch.bfloat16)


def test_explain_lists_every_op_with_its_provider_and_the_reasons() -> None:
    ops = Ops(Cpu.providers, F32)
    lines = ops.explain().splitlines()
    assert [line.split()[0] for line in lines] == list(OPS)
    for line, choice in zip(lines, ops.choices, strict=True):
        assert line.split()[1] == choice.provider
        assert [p for p, _ in choice.passed_over] == list(Cpu.providers[: Cpu.providers.index(choice.provider)])
        for provider, reason in choice.passed_over:
            assert reason and f"{provider}: {reason}" in line
        assert getattr(ops, choice.op) is registry._registered[choice.op, choice.provider].function


def test_the_order_decides() -> None:
    for order in (("reference", "batched"), ("batched", "reference")):
        assert {c.op: c.provider for c in Ops(order, F32).choices}["rms_norm"] == order[0]
    assert {c.provider for c in Ops(("reference",), F32).choices} == {"reference"}


@pytest.mark.parametrize(
    ("facts", "reason"),
    [(F32, "packs bfloat16 only"), (StaticFacts("anything", torch.bfloat16), "CPU only")],
)
def test_a_refusal_says_why(facts: StaticFacts, reason: str) -> None:
    choice = next(c for c in Ops(("onednn", "batched", "reference"), facts).choices if c.op == "linear")
    assert choice.provider == "batched"
    assert dict(choice.passed_over)["onednn"].startswith(reason)


def test_a_condition_on_a_shape_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel written for some head sizes must not get one that nobody named."""

    def refuse(facts: StaticFacts) -> str | None:
        return None if facts.head_size and facts.head_size % 64 == 0 else f"head size {facts.head_size}"

    found = registry._registered["attention_decode", "batched"]
    monkeypatch.setitem(
        registry._registered, ("attention_decode", "batched"), dataclasses.replace(found, refuse=refuse)
    )
    for size, provider in ((0, "reference"), (96, "reference"), (128, "batched")):
        choices = Ops(("batched", "reference"), StaticFacts("cpu", torch.bfloat16, size)).choices
        choice = next(c for c in choices if c.op == "attention_decode")
        assert choice.provider == provider
        assert provider == "batched" or dict(choice.passed_over)["batched"] == f"head size {size}"


def test_strict_refuses_ops_that_only_the_reference_has(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = frozenset(registry.OPS)
    Ops(("batched", "reference"), F32).refuse_reference(everything)
    with pytest.raises(ValueError, match="--strict-ops"):
        Ops(("reference",), F32).refuse_reference(everything)
    monkeypatch.delitem(registry._registered, ("mla_decode", "batched"))
    fallen = Ops(("batched", "reference"), F32)
    with pytest.raises(ValueError, match="--strict-ops") as caught:
        fallen.refuse_reference(everything)
    assert "mla_decode" in str(caught.value) and "rms_norm" not in str(caught.value)
    fallen.refuse_reference(everything - {"mla_decode"})


def test_an_op_that_no_listed_provider_has() -> None:
    with pytest.raises(ValueError, match="no provider of onednn implements embedding"):
        Ops(("onednn",), BF16)


def test_only_ops_can_be_registered() -> None:
    with pytest.raises(KeyError, match="'softmax' is not an op"):
        registry.implements("softmax")


def test_nothing_falls_back_at_run_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that fails ends the request with an error that says so; those behind it do not step in."""
    first = next(c for c in Ops(Cpu.providers, F32).choices if c.op == "mla_decode").provider
    others = [name for op, name in registry._registered if op == "mla_decode" and name != first]
    calls: list[str] = []

    def broken(*_: Any) -> Tensor:
        calls.append(first)
        raise RuntimeError("kernel launch failed")

    def witness(*_: Any) -> Tensor:
        calls.append("another")
        raise AssertionError

    for name in (first, *others):
        found = registry._registered["mla_decode", name]
        function = broken if name == first else witness
        monkeypatch.setitem(registry._registered, ("mla_decode", name), dataclasses.replace(found, function=function))
    line = Driven(write(tmp_path / "model", R1, weights(R1)))
    outputs: list[Output] = []
    line.engine.deliver = outputs.extend
    line.submit("r", [1, 2, 3], max_tokens=4)
    line.run()
    assert outputs[-1].finish == "error" and "kernel launch failed" in str(outputs[-1].error)
    assert calls == [first]


@pytest.mark.parametrize("limit", [1, 64, 200])
def test_decodes_of_unlike_length_are_grouped_and_put_back(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One long context beside short ones must not make them all long, nor change an answer."""
    monkeypatch.setattr(batched, "MOST_PLACES", limit)
    torch.manual_seed(0)
    lengths = torch.tensor([5, 90, 1, 17, 33, 16])
    pages = torch.stack([torch.randperm(40)[:6] for _ in lengths])
    plan = DecodePlan(pages, lengths, torch.arange(96) >= lengths[:, None])
    k, v = torch.randn(2, 40, 16, 8), torch.randn(2, 40, 16, 8)
    q = torch.randn(6, 4, 8)
    got = batched.attention_decode(q, k, v, plan, 0.3)
    torch.testing.assert_close(got, reference.attention_decode(q, k, v, plan, 0.3))
    cache, latent, pe = torch.randn(1, 40, 16, 24), torch.randn(6, 4, 16), torch.randn(6, 4, 8)
    got = batched.mla_decode(latent, pe, cache, plan, 0.2)
    torch.testing.assert_close(got, reference.mla_decode(latent, pe, cache, plan, 0.2))
