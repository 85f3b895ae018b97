"""Level 1: sound providers pass, wrong ones are refused by name and the next is tried, down to none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from tests.verify.ladder.climbing import bad, bench, changed, climb, planted

from twinline.engine.ops import registry
from twinline.engine.ops.registry import OPS
from twinline.verify.ladder.case import View, wide
from twinline.verify.ladder.cases import MAKERS, cases
from twinline.verify.ladder.finding import Finding
from twinline.verify.ladder.ops import used


def test_the_cpus_own_kernels_pass() -> None:
    found = climb(bench("ops", device="cpu"), "ops")
    assert not bad(found)
    tried = {(f.op, f.dtype) for f in found}
    assert {op for op, _ in tried} == set(used(bench(device="cpu"))) and {d for _, d in tried} == {
        "float32", "bfloat16", "float16"}  # fmt: skip
    assert all(f.text and f.figures["cases"] >= 4 and f.provider and f.shape for f in found)


def test_a_clean_chip_passes_in_the_models_dtype() -> None:
    one = bench("ops")
    one._supports = {torch.bfloat16: False, torch.float16: False}
    found = climb(one, "ops")
    assert not bad(found) and len(found) == len(used(one)) and {f.provider for f in found} == {"batched"}


def refused(found: list[Finding]) -> dict[tuple[str, str], str]:
    return {(f.op, f.provider): f.rule for f in found if f.verdict == "fail" and f.provider}


@pytest.mark.parametrize(
    ("aten", "change", "op"),
    [
        ("linear", lambda x: x * (1 + 2**-12), "linear"),
        ("rms_norm", lambda x: x * (1 + 2**-15), "rms_norm"),
        ("silu", lambda x: torch.where(x > -0.01, x, torch.zeros_like(x)), "silu_mul"),
        ("scaled_dot_product_attention", lambda x: x.bfloat16().float(), "mla_prefill"),
        ("index_copy_", lambda x: x.nextafter(x + 1), "kv_write"),
    ],
)
def test_a_small_error_is_found_and_laid_at_its_op(aten: str, change: Any, op: str) -> None:
    with planted(bench(f"ops.{op}.batched.float32"), changed(aten, change)) as one:
        found = climb(one, "ops")
    assert {f.op for f in bad(found)} == {op} and (op, "batched") in refused(found)
    assert "elements" in bad(found)[0].text and bad(found)[0].shape


def test_truncating_stores_in_bfloat16_are_found() -> None:
    def truncate(x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.bfloat16:
            return x
        # As if rounded down from the float32 value: what was rounded up comes one step down.
        wide_x = x.float()
        return torch.where(torch.rand_like(wide_x) < 0.5, wide_x * (1 - 2**-8), wide_x).bfloat16()

    with planted(bench("ops.linear.batched.bfloat16"), changed("linear", truncate)) as one:
        found = climb(one, "ops")
    assert ("linear", "batched") in refused(found)


def test_the_next_provider_is_tried_and_the_bench_remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    one = bench("ops.mla_decode")
    one._supports = {torch.bfloat16: False, torch.float16: False}
    list(registry.candidates("mla_decode", ("batched",), registry.StaticFacts("cpu", torch.float32)))  # imports it
    good = registry._registered["mla_decode", "batched"]
    wrong = replace(good, function=lambda *args: good.function(*args) * 1.001)
    monkeypatch.setitem(registry._registered, ("mla_decode", "batched"), wrong)
    found = climb(one, "ops")
    assert [(f.provider, f.verdict) for f in found] == [("batched", "fail"), ("reference", "pass")]
    assert set(one.refused) == {("mla_decode", "batched", "float32")}
    assert one.refusals(torch.float32) == {("mla_decode", "batched"): found[0].text}
    assert not one.refusals(torch.bfloat16)


def test_where_no_provider_is_right_that_is_said() -> None:
    with planted(bench("ops.embedding"), changed("embedding index index_select", lambda x: x + 1)) as one:
        one._supports = {torch.bfloat16: False, torch.float16: False}
        found = climb(one, "ops")
    assert [f.check for f in found] == ["ops.embedding.batched.float32", "ops.embedding.reference.float32",
                                        "ops.embedding.any.float32"]  # fmt: skip
    assert found[-1].verdict == "fail" and "no provider of embedding is right in float32" in found[-1].text


def test_what_is_missing_is_a_limit_and_the_reference_stands_in() -> None:
    with planted(bench("ops.mla_prefill"), lambda chip: chip.lacks({"scaled_dot_product_attention"})) as one:
        one._supports = {torch.bfloat16: False, torch.float16: False}
        found = climb(one, "ops")
    assert [(f.provider, f.verdict) for f in found] == [("batched", "limit"), ("reference", "pass")]


def test_what_an_earlier_process_refused_is_not_tried_again() -> None:
    one = bench("ops.rope")
    one._supports = {torch.bfloat16: False, torch.float16: False}
    one.refused["rope", "batched", "float32"] = "wrong before"
    assert [f.provider for f in climb(one, "ops")] == ["reference"]


def test_each_command_of_a_report_repeats_what_it_belongs_to() -> None:
    def commanded(check: str) -> list[str]:
        with planted(bench(check), changed("embedding index index_select", lambda x: x + 1)) as one:
            return [f.check for f in climb(one, "ops")]

    tried = [f"ops.embedding.{name}.float32" for name in ("batched", "reference", "any")]
    assert commanded(tried[0]) == tried[:1] and commanded(tried[1]) == tried[1:2] and commanded(tried[2]) == tried
    with planted(bench(tried[1]), lambda chip: None) as one:  # though the first is right
        assert [f.check for f in climb(one, "ops")] == tried[1:2]


def test_what_an_earlier_process_found_right_is_not_tried_again() -> None:
    one = bench("ops.rope")
    one.trial = msgspec.structs.replace(one.trial, skip=("ops.rope.batched.float32",))
    one._supports = {torch.bfloat16: False, torch.float16: False}
    assert climb(one, "ops") == []


def test_cases_come_from_the_seed_alone_and_hold_what_they_should() -> None:
    assert set(MAKERS) == set(OPS)
    for op in used(bench(device="cpu")):
        first, again = (cases(bench(device="cpu"), op, torch.float32) for _ in range(2))
        other = cases(bench(device="cpu", seed=1), op, torch.float32)
        names = [c.name for c in first]
        assert len(names) >= 4 and names == [c.name for c in again]
        assert all(_equal(a.args, b.args) for a, b in zip(first, again, strict=True))
        assert not all(_equal(a.args, b.args) for a, b in zip(first, other, strict=True))
        rows = [c.args[0].of(c.args[0].base) if isinstance(c.args[0], View) else c.args[0] for c in first]
        if op != "kv_write":
            assert min(len(r) for r in rows) == 1 and max(len(r) for r in rows) > 30
        if op in ("rope", "mla_absorb", "rms_norm", "linear"):
            assert any(isinstance(c.args[0], View) for c in first)
    assert any(torch.isnan(c.args[0].float()).any() for c in cases(bench(device="cpu"), "silu_mul", torch.float16))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return all(map(_equal, a, b))
    if isinstance(a, View):
        return _equal(a.base, b.base)
    if isinstance(a, torch.Tensor):
        return bool(torch.equal(a.nan_to_num(), b.nan_to_num()))
    return str(wide(a)) == str(wide(b))


LLAMA = {"architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 96, "intermediate_size": 64,
         "num_hidden_layers": 1, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64,
         "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}  # fmt: skip


@pytest.mark.parametrize("odd", [{"max_position_embeddings": 8}, {"vocab_size": 3, "num_key_value_heads": 6}])
def test_small_models_have_cases_too(tmp_path: Path, odd: dict[str, int]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | odd))
    one = bench("ops.embedding", "ops.attention_prefill", device="cpu", model=tmp_path)
    one._supports = {torch.bfloat16: False, torch.float16: False}
    assert {f.check.split(".")[1]: f.verdict for f in climb(one, "ops")} == {
        "embedding": "pass", "attention_prefill": "pass"}  # fmt: skip


def test_grouped_query_models_have_cases_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    one = bench("ops", device="cpu", model=tmp_path)
    one._supports = {torch.float16: False}
    found = climb(one, "ops")
    assert {"attention_prefill", "attention_decode"} <= {f.op for f in found} and not bad(found)
    assert not {"route", "experts", "mla_decode"} & {f.op for f in found}
