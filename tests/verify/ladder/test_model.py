"""Level 3 finds what is wrong with a whole model, and names the op and the layer where it begins."""

from __future__ import annotations

import math

import pytest
import torch
from tests.verify.ladder.climbing import bad, bench, changed, climb, planted, verdicts

from twinline.engine.devices.simulated.chip import Call, Chip
from twinline.verify.ladder import prompts
from twinline.verify.ladder.closeness import Distance, distance, judge
from twinline.verify.ladder.double import margins, route_along
from twinline.verify.ladder.model import arm_sequences, arm_steps
from twinline.verify.ladder.subject import Told, alone, chunked, decoded, staggered, subjects, together

LINEAR = "linear mm addmm matmul"


def test_a_clean_chip_passes_and_nothing_is_skipped() -> None:
    found = climb(
        bench("model.load", "model.logprobs.17", "model.arms", "model.trace", "model.sampler", seed=3), "model"
    )
    assert set(verdicts(found).values()) == {"pass"}
    assert len(found) == 16


@pytest.mark.parametrize("seed", [0, 1])
def test_the_cpus_own_kernels_are_sound_for_prompts_of_one_token_too(seed: int) -> None:
    """They add up products of one row as those of many, which PyTorch does more exactly."""
    (found,) = [f for f in climb(bench("model.logprobs.1", device="cpu", seed=seed), "model") if "logprobs" in f.check]
    assert found.verdict == "pass", found.text


def test_the_golden_run_is_float64_throughout() -> None:
    """Perturbed by 1e-12, the golden run moves by about as much; one float32 rounding inside would be 1e-7."""
    three = subjects(bench())
    ids = prompts.sequences(three.bench, "golden", 1, 20)
    first = three.golden.tell(ids, alone([20]))[0]
    weight = three.golden.model.embed.weight.data
    before = weight.clone()
    weight.mul_(1 + 1e-12)
    second = three.golden.tell(ids, alone([20]))[0]
    weight.copy_(before)
    apart = (first.logits_TV - second.logits_TV).abs().max()
    assert 0 < apart < 1e-9


@pytest.mark.parametrize("name", ["decode", "prefix", "chunked", "batch", "staggered"])
def test_every_arm_computes_every_position_once(name: str) -> None:
    one = bench()
    sequences = arm_sequences(one, name)
    steps, shared = arm_steps(name, [len(s) for s in sequences], 16)
    done = [[False] * len(s) for s in sequences]
    for step in steps:
        for i, start, end in step:
            assert all(done[i][p] or p < shared * 16 for p in range(start)), "a position before its past"
            assert not any(done[i][start:end])
            done[i][start:end] = [True] * (end - start)
    assert all(all(d[(shared * 16 if i else 0) :]) for i, d in enumerate(done))
    if shared:
        assert len({tuple(s[: shared * 16]) for s in sequences}) == 1


def test_steps_of_the_arms() -> None:
    assert alone([2, 3]) == [[(0, 0, 2)], [(1, 0, 3)]]
    assert together([2, 3]) == [[(0, 0, 2), (1, 0, 3)]]
    assert chunked([5], 2) == [[(0, 0, 2)], [(0, 2, 4)], [(0, 4, 5)]]
    assert decoded([3, 4], [2, 2]) == [[(0, 0, 2), (1, 0, 2)], [(0, 2, 3), (1, 2, 3)], [(1, 3, 4)]]
    assert staggered([4, 4], 2) == [[(0, 0, 2)], [(0, 2, 3), (1, 0, 2)], [(0, 3, 4), (1, 2, 3)], [(1, 3, 4)]]


def test_an_error_in_one_op_is_named_with_op_and_layer() -> None:
    with planted(
        bench("model.trace", "model.logprobs.17"), changed("rms_norm _fused_rms_norm", lambda x: x * 1.002)
    ) as one:
        found = bad(climb(one, "model"))
    trace = [f for f in found if f.check == "model.trace"]
    assert {f.op for f in trace} == {"rms_norm", "add_rms_norm"}  # and nothing behind them is blamed
    assert "layer 0" in trace[0].text and "the first op to err" in trace[0].text
    logprobs = next(f for f in found if f.check == "model.logprobs.17")
    assert "first divergent: layer 0, rms_norm (batched) in layers.0.input_norm" in logprobs.text


def test_what_goes_wrong_only_on_a_cached_prefix_shows_in_that_arm() -> None:
    """Attention of a chunk on a past is masked wrongly: whole prompts are right, the arms that have a past are not."""

    def unmasked(call: Call) -> None:
        mask = call.args[3] if len(call.args) > 3 else call.kwargs.get("attn_mask")
        if mask is not None:
            mask.fill_(True)

    def plant(chip: Chip) -> None:
        chip.plant(["scaled_dot_product_attention"], before=unmasked)

    with planted(bench("model.arms"), plant) as one:
        found = verdicts(climb(one, "model"))
    assert found["model.arms.prefix"] == found["model.arms.chunked"] == "fail"
    assert found["model.arms.batch"] == "pass"


def test_a_wrong_choice_of_experts_is_the_routers() -> None:
    def second_best(call: Call, out: object) -> object:
        values, indices = out  # type: ignore[misc]
        if values.shape[-1] == 2 and call.args[0].shape[-1] == 16:  # the choice itself, not that of groups
            order = call.args[0].sort(-1, descending=True).indices
            indices = torch.stack((order[..., 0], order[..., 2]), -1)
        return values, indices

    with planted(bench("model.router"), lambda chip: chip.plant(["topk"], after=second_best)) as one:
        found = climb(one, "model")
    assert [(f.check, f.verdict, f.op) for f in found] == [("model.router", "fail", "route")]
    assert found[0].figures["wrong"] > 50


def test_samplers_faults_are_told_apart() -> None:
    def swallowed(call: Call, out: object) -> object:
        values, indices = out  # type: ignore[misc]
        return torch.nan_to_num(values, nan=0.0, posinf=1e4), indices

    with planted(bench("model.sampler"), lambda chip: chip.plant(["max"], after=swallowed)) as one:
        assert [f.check for f in bad(climb(one, "model"))] == ["model.sampler.not_finite"]
    with planted(bench("model.sampler"), changed("logsumexp", lambda x: x * (1 + 2**-9))) as one:
        assert [f.check for f in bad(climb(one, "model"))] == ["model.sampler.logprobs"]


def test_a_missing_op_is_a_limit_that_names_it() -> None:
    with planted(bench("model.trace", "model.sampler.greedy"), lambda chip: chip.lacks(["rms_norm", "topk"])) as one:
        found = {f.check: f for f in climb(one, "model")}
    assert (found["model.trace"].verdict, found["model.trace"].op) == ("limit", "rms_norm")
    assert "aten::rms_norm" in found["model.trace"].text and "layers.0.input_norm" in found["model.trace"].text


def test_a_model_that_cannot_be_loaded_is_told_once() -> None:
    with planted(bench(), lambda chip: chip.refuses([torch.float32])) as one:
        found = climb(one, "model")
    assert found[0].check == "model.load" and found[0].verdict in ("limit", "fail")
    rest = {f.verdict for f in found if f.check.startswith(("model.arms", "model.logprobs", "model.trace"))}
    assert rest == {"skipped"}
    assert all("cannot be loaded" in f.text for f in found if f.verdict == "skipped")


def _told(seed: int, off: float = 0.0) -> Told:
    gen = torch.Generator().manual_seed(seed)
    logits = torch.randn(200, 50, dtype=torch.float64, generator=gen) * 3
    return Told(logits + off * torch.randn(200, 50, dtype=torch.float64, generator=gen), None)


def test_distances_and_their_limits() -> None:
    golden = [_told(1)]
    near, far = distance(golden, [_told(1, 1e-3)]), distance(golden, [_told(1, 4e-3)])
    assert judge(near, near, torch.float32).passed
    assert not judge(far, near, torch.float32).passed
    assert judge(near, far, torch.float32).passed
    # Far below the dtype's rounding everything passes, whatever the ratio.
    assert judge(distance(golden, [_told(1, 1e-9)]), distance(golden, golden), torch.float32).passed
    one = Distance(near.kl_N.clone(), near.error_N.clone())
    one.error_N[17] = 1.0  # a single wrong position in 200
    assert not judge(one, near, torch.float32).passed
    one.error_N[17] = math.nan
    assert not judge(one, near, torch.float32).passed


def test_margins_see_groups_and_experts() -> None:
    """Four experts in two groups, one group kept, one expert chosen."""
    from twinline.facts.models import Experts

    e = Experts(4, 1, 2, 1, "softmax", "max", False, False, 1.0, 8, 0)
    gate = torch.eye(4)
    x = torch.tensor([[3.0, 0.0, 0.0, 0.0], [3.0, 0.0, 3.0 - 1e-6, 0.0], [3.0, 3.0 - 1e-6, 0.0, 0.0]])
    found = margins(x, gate, None, e)
    assert found[0] > 0.1 and found[1] < 1e-5 and found[2] < 1e-5
    weights = route_along(x, gate, e, torch.tensor([[0], [2], [1]]))
    assert weights[0, 0] == pytest.approx(x.double().softmax(-1)[0, 0].item())


def test_prompts_are_the_seeds_and_long_enough() -> None:
    one, again, other = bench(seed=1), bench(seed=1), bench(seed=2)
    a = prompts.sequences(one, "x", 6, 130)
    assert a == prompts.sequences(again, "x", 6, 130)
    assert a != prompts.sequences(other, "x", 6, 130) and a != prompts.sequences(one, "y", 6, 130)
    assert [len(s) for s in a] == [130] * 6
    text = prompts.tokenizer_of(one.trial and __import__("pathlib").Path(one.trial.model))
    assert text is not None
    assert any(ord(c) > 0x4E00 for c in text.decode(a[1])) and not any(ord(c) > 0x4E00 for c in text.decode(a[0]))
