"""The golden ops are the tests' own formulas of every op, written a third time, to the last digits of float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.op_cases import CASES
from torch import Tensor

from twinline.engine.ops import reference
from twinline.engine.ops.plan import DecodePlan, PrefillPlan
from twinline.facts.models import Experts
from twinline.verify.ladder.case import wide
from twinline.verify.ladder.golden import GOLDEN, rounded, routing
from twinline.verify.ladder.rules import PRECISIONS, bound


def check(op: str, dtype: torch.dtype) -> None:
    bits = PRECISIONS[str(dtype).removeprefix("torch.")].bits
    for name, args, want in CASES[op](dtype):
        found = GOLDEN[op](*wide(args), bits=bits)
        wants = want if isinstance(want, tuple) else (want,)
        assert len(found) == len(wants)
        for one, right in zip(found, wants, strict=True):
            scale = float(right.abs().max()) or 1.0
            # Theirs takes angles where the op takes float32 cosines, and a sum that is rounded already.
            near = 1e-7 if op in ("rope", "add_rms_norm") else 1e-13
            np.testing.assert_allclose(one.value / scale, right.numpy() / scale, rtol=near, atol=near, err_msg=name)


@pytest.mark.parametrize("op", list(GOLDEN))
def test_golden_is_the_formula(op: str) -> None:
    check(op, torch.float32)


def test_golden_routing_is_the_formula() -> None:
    for name, (x, gate, bias, e), want in CASES["route"](torch.float32):
        found = routing(*wide((x, gate, bias)), e)
        chosen = found.chosen()
        dense = np.zeros(want.shape)
        np.put_along_axis(dense, chosen, found.weights(chosen).value, -1)
        np.testing.assert_allclose(dense, want.numpy(), rtol=1e-9, atol=1e-12, err_msg=name)


@given(st.floats(-(2.0**99), 2.0**99, width=32))
def test_rounding_is_what_casts_do(x: float) -> None:
    one = torch.tensor(x, dtype=torch.float64)
    if abs(x) > 1e-37:
        assert float(rounded(np.array(x), 8)) == float(one.float().to(torch.bfloat16))
    if 1e-4 < abs(x) < 65000:
        assert float(rounded(np.array(x), 11)) == float(one.float().to(torch.float16))


def test_reference_ops_lie_well_within_the_bound() -> None:
    """Spread and terms are large enough for a sound float32 computation, and not by orders for a product."""
    for op in ("linear", "mla_absorb", "rms_norm", "silu_mul", "rope", "mla_prefill", "mla_decode"):
        for _, args, _ in CASES[op](torch.float32):
            function = getattr(reference, op, None)
            out = (args[0] @ args[1].T + (args[2] if len(args) > 2 else 0)) if op == "linear" else function(*args)
            (golden,) = GOLDEN[op](*wide(args), bits=24)
            room = bound(golden.value, golden.spread, golden, PRECISIONS["float32"])
            # e**90 is beyond float32: what should be 7e-38 may come out as 0.
            share = np.where(np.abs(golden.value) > 1e-30, np.abs(out.double().numpy() - golden.value) / room, 0)
            assert share.max() <= 1, op
            if op == "linear":
                assert share.max() > 1e-3


def test_arguments_become_float64_and_plans_stay() -> None:
    plan = PrefillPlan(0, 3, 2, torch.arange(1))
    assert wide(plan) is plan and isinstance(wide(torch.ones(2)), np.ndarray)
    assert (
        wide(torch.ones(2, dtype=torch.bfloat16)).dtype == np.float64 and wide(torch.ones(2).long()).dtype == np.int64
    )
    decode = DecodePlan(torch.zeros(1, 1), torch.ones(1), None)
    assert wide((decode, 0.5, None)) == (decode, 0.5, None)


def test_a_choice_in_a_tie_has_no_margin() -> None:
    e = Experts(count=4, per_token=1, groups=1, groups_kept=1, score="sigmoid", limit="none", correction_bias=False,
                normalise=True, scale=1.0, inner=2, shared_inner=0)  # fmt: skip
    gate: Tensor = torch.ones(4, 3)
    assert routing(np.ones((1, 3)), gate.double().numpy(), None, e).margin_N.tolist() == [0.0]
