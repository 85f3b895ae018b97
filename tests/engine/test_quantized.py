"""The definition of quantized weights: bounds on what is lost, and the edges of groups."""

import pytest
import torch
from tests.engine.devices.chips import opened
from tests.engine.driving import DEVICE

from twinline.engine.devices.device import open_device
from twinline.engine.ops.quantized import dequantize, quantize, stored
from twinline.facts.weight_form import PLAIN, WeightForm

FORMS = [
    WeightForm("int8"),
    WeightForm("int8", 32),
    WeightForm("int4", 32),
    WeightForm("int4", 64),
    WeightForm("int4", 128),
    WeightForm("fp8"),
]


def weights(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 33), (70, 256), (130, 300)])
def test_a_value_is_lost_by_no_more_than_its_step(form, shape):
    weight = weights(*shape)
    numbers, scales = quantize(weight, form)
    back = dequantize(numbers, scales, form)
    assert numbers.shape == back.shape == shape
    lost = (back - weight).abs()
    if form.kind == "fp8":  # three bits behind the first one; below the least normal number of e4m3, its least step
        assert scales.shape == (-(-shape[0] // 128), -(-shape[1] // 128))
        step = scales.repeat_interleave(128, 0)[: shape[0]].repeat_interleave(128, 1)[:, : shape[1]]
        assert (lost <= torch.maximum(weight.abs() * 2**-4, step * 2**-10) * 1.001).all()
        return
    size = form.group or shape[1]
    assert scales.shape == (shape[0], -(-shape[1] // size))
    step = scales.abs().repeat_interleave(size, 1)[:, : shape[1]]
    # In int4 the greatest value is -8 steps: one as great with the other sign has no number but 7.
    full = (back / step).abs().round() >= 7 if form.kind == "int4" else torch.zeros_like(step, dtype=torch.bool)
    assert (lost <= step * torch.where(full, 1.05, 0.5001)).all()


def test_the_greatest_value_has_the_greatest_number():
    weight = weights(9, 96)
    numbers, _ = quantize(weight, WeightForm("int8"))
    assert (numbers.abs().amax(1) == 127).all()
    numbers, scales = quantize(weight, WeightForm("int4", 32))
    assert (numbers.unflatten(1, (-1, 32)).amin(-1) == -8).all()
    assert torch.equal(scales, scales.bfloat16().float())
    numbers, _ = quantize(weight, WeightForm("fp8"))
    assert numbers.float().abs().max() == 448


@pytest.mark.parametrize("group", [32, 128])
def test_using_all_sixteen_levels_loses_less_than_fifteen(group):
    weight = weights(256, 512)
    form = WeightForm("int4", group)
    scales = weight.unflatten(1, (-1, group)).abs().amax(-1, keepdim=True) / 7
    symmetric = ((weight.unflatten(1, (-1, group)) / scales).round() * scales).flatten(1)
    lost, lost_symmetric = ((w - weight).norm() for w in (stored(weight, form), symmetric))
    assert lost < 0.9 * lost_symmetric


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_stack_is_its_matrices(form):
    weight = weights(3, 40, 150).bfloat16()
    numbers, scales = quantize(weight, form)
    for i in range(3):
        one, its_scales = quantize(weight[i], form)
        assert torch.equal(numbers[i].float(), one.float()) and torch.equal(scales[i], its_scales)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_device_gives_the_hosts_numbers(form):
    """Also of values that lie between two numbers: whole eighths are often half of the greatest."""
    weight = (weights(130, 300) * 8).round() / 8
    there = quantize(weight.to(open_device(DEVICE).torch_device), form)
    for got, want in zip(there, quantize(weight, form), strict=True):
        assert torch.equal(got.cpu().float(), want.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_device_without_float64_gives_them_too(dtype):
    """As Intel's desktop cards are; products that lie in the middle of two values are looked at again."""
    weight = weights(256, 256).to(dtype)
    for form in FORMS:
        with opened() as device:
            device.chip.refuses({torch.float64})
            there = stored(weight.to(device.torch_device), form).cpu()
        assert torch.equal(there, stored(weight, form)), form


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_zeros_and_the_smallest_values_stay_finite(form):
    weight = torch.zeros(2, 64)
    weight[1, 3] = 1e-44
    back = stored(weight, form)
    assert (back == 0).all()


def test_plain_weights_stay_as_they_are():
    weight = weights(4, 4)
    assert stored(weight, PLAIN) is weight
    with pytest.raises(ValueError, match="plain weight has no scales"):
        quantize(weight, PLAIN)
