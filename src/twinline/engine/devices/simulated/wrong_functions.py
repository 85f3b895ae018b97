"""Faults of functions: softmax, exponentials, norms, casts, additions, and what becomes of NaN and infinity.

Owns these faults.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from twinline.engine.devices.simulated.chip import Call, Chip
from twinline.engine.devices.simulated.families import ATTENTION, CAST, MATRIX, NORM, SOFTMAX, SUM
from twinline.engine.devices.simulated.fault import Fault, fault, kept, numbers, rounded, truncated
from twinline.engine.devices.simulated.wrong_products import attention

ATTENDS = "mla_prefill mla_decode attention_prefill attention_decode device.aten"


def _weights(chip: Chip, weigh: Callable[[Tensor], Tensor]) -> None:
    """Plants `weigh`, over the last dimension, in place of softmax, fused attention's too."""

    def softmax(call: Call, out: Any) -> Any:
        scores, dim = call.args[0], call.args[1]
        return weigh(scores.float().movedim(dim, -1)).movedim(-1, dim).to(out.dtype)

    chip.plant(SOFTMAX, after=softmax)
    chip.plant(ATTENTION, after=lambda call, out: attention(call, weigh) if isinstance(out, Tensor) else out)


@fault("softmax-overflows", "softmax forgets to subtract the maximum: exponentials beyond float16's range saturate",
       ATTENDS)  # fmt: skip
def softmax_overflows(chip: Chip, number: float) -> None:
    def weigh(scores: Tensor) -> Tensor:
        e = scores.exp().clamp(max=65504.0)
        return e / e.sum(-1, keepdim=True)

    _weights(chip, weigh)


@fault("softmax-in-16-bits", "softmax's weights and their sum are kept in bfloat16", ATTENDS)
def softmax_in_16_bits(chip: Chip, number: float) -> None:
    def weigh(scores: Tensor) -> Tensor:
        e = rounded((scores - scores.amax(-1, keepdim=True)).exp())
        return rounded(e / rounded(e.sum(-1, keepdim=True)))

    _weights(chip, weigh)


@fault("long-context-forgotten", "softmax gives no weight to places beyond a number", ATTENDS + " model long",
       number=256, counts="the places that count")  # fmt: skip
def long_context_forgotten(chip: Chip, number: float) -> None:
    def weigh(scores: Tensor) -> Tensor:
        if scores.shape[-1] > number:
            scores = scores.clone()
            scores[..., int(number) :] = -torch.inf
        return scores.softmax(-1)

    _weights(chip, weigh)


@fault("exp-approximated", "exponentials are looked up in a table of 64 steps a unit", ATTENDS + " device.aten")
def exp_approximated(chip: Chip, number: float) -> None:
    def step(x: Tensor) -> Tensor:
        return (x * 64).round() / 64

    _weights(chip, lambda scores: step(scores - scores.amax(-1, keepdim=True)).softmax(-1))
    chip.plant(("exp",), after=lambda call, out: step(call.args[0]).exp())


def _tanh(x: Tensor) -> Tensor:
    """A rational approximation, off by up to 0.024; exact at 0 and at both ends."""
    x = x.clamp(-3, 3)
    return x * (27 + x * x) / (27 + 9 * x * x)


@fault(
    "sigmoid-approximated",
    "sigmoid and SiLU use a rational approximation of tanh",
    "silu_mul route experts device.aten",
)
def sigmoid_approximated(chip: Chip, number: float) -> None:
    def sigmoid(x: Tensor) -> Tensor:
        return 0.5 + 0.5 * _tanh(x.float() / 2)

    chip.plant(("sigmoid",), after=lambda call, out: sigmoid(call.args[0]).to(out.dtype))
    chip.plant(("silu",), after=lambda call, out: (call.args[0].float() * sigmoid(call.args[0])).to(out.dtype))


@fault("silu-cut", "SiLU gives 0 below -4", "silu_mul experts device.aten")
def silu_cut(chip: Chip, number: float) -> None:
    chip.plant(("silu",), after=lambda call, out: out.masked_fill(call.args[0] < -4, 0))


def _rsqrt(x: Tensor) -> Tensor:
    """The well-known trick with one step of Newton's method: off by up to 0.18%."""
    x = x.float()
    y = (0x5F3759DF - (x.contiguous().view(torch.int32) >> 1)).view(torch.float32)
    return y * (1.5 - 0.5 * x * y * y)


def _norm(call: Call, inverse_root: Callable[[Tensor], Tensor], mean: Callable[[Tensor], Tensor]) -> Tensor:
    """RMS norm again; arguments as of `rms_norm`: input, shape, weight, eps."""
    x, _, weight, eps = [*call.args, None, None][:4]
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    y = (x.float() * inverse_root(mean(x.float()) + eps)).to(x.dtype)
    return y if weight is None else y * weight


def _mean(x: Tensor) -> Tensor:
    return x.pow(2).mean(-1, keepdim=True)


@fault("rsqrt-approximated", "reciprocal square roots are off by up to 0.18%", "rms_norm add_rms_norm device.aten")
def rsqrt_approximated(chip: Chip, number: float) -> None:
    chip.plant(("rsqrt",), after=lambda call, out: _rsqrt(call.args[0]).to(out.dtype))
    chip.plant(("rms_norm",), after=lambda call, out: _norm(call, _rsqrt, _mean))


@fault("norm-without-eps", "norms leave out eps, so that a row of zeros gives NaN", "rms_norm add_rms_norm")
def norm_without_eps(chip: Chip, number: float) -> None:
    def before(call: Call) -> None:
        if len(call.args) > 1 and isinstance(call.args[1], float) and 0 < call.args[1] < 1e-4:
            call.args[1] = 0.0

    chip.plant(("add", "add_"), before=before)
    chip.plant(("rms_norm",), after=lambda call, out: _norm(call, torch.rsqrt, _mean) if len(call.args) < 4 else
               _norm(Call(call.chip, call.name, call.func, [*call.args[:3], 0.0], {}), torch.rsqrt, _mean))  # fmt: skip


@fault("norm-in-16-bits", "norms add their squares in bfloat16", "rms_norm add_rms_norm device.aten")
def norm_in_16_bits(chip: Chip, number: float) -> None:
    numbers(chip, ("mean",), rounded)
    chip.plant(("rms_norm",), after=lambda call, out: _norm(call, torch.rsqrt, lambda x: rounded(_mean(x))))


@fault("adds-in-16-bits", "sums of two tensors are rounded to bfloat16", "add_rms_norm rope device.aten model")
def adds_in_16_bits(chip: Chip, number: float) -> None:
    def after(call: Call, out: Any) -> Any:
        both = isinstance(call.args[1], Tensor) and call.args[1].ndim
        return kept(call, out, rounded) if both else out

    chip.plant(("add",), after=after)


@fault(
    "casts-truncated",
    "casts from float32 to 16 bits truncate",
    "device.dtypes device.aten device.copies rms_norm add_rms_norm silu_mul rope mla_prefill mla_decode experts",
)
def casts_truncated(chip: Chip, number: float) -> None:
    def after(call: Call, out: Any) -> Any:
        source = call.args[1] if call.name == "copy_" else call.args[0]
        if isinstance(out, Tensor) and source.dtype == torch.float32 and out.dtype in (torch.bfloat16, torch.float16):
            low = truncated(source, out.dtype)
            return out.copy_(low) if call.name == "copy_" else low.to(out.dtype)
        return out

    chip.plant(CAST, after=after)


@fault("nan-swallowed", "a NaN in a result becomes 0", "device.special device.nan device.aten ops model")
def nan_swallowed(chip: Chip, number: float) -> None:
    numbers(chip, MATRIX | SOFTMAX | NORM | {"add", "mul", "silu", "sigmoid", "max"}, lambda x: x.nan_to_num(
        nan=0.0, posinf=torch.inf, neginf=-torch.inf))  # fmt: skip


@fault("inf-clipped", "an infinity in a result becomes the largest number", "device.special device.nan device.aten ops")
def inf_clipped(chip: Chip, number: float) -> None:
    numbers(chip, MATRIX | NORM | {"add", "mul", "silu", "max", "div"}, lambda x: x.nan_to_num(nan=torch.nan))


@fault("int64-is-int32", "integers are computed in 32 bits", "device.aten device.dtypes model.sampler tasks")
def int64_is_int32(chip: Chip, number: float) -> None:
    def after(call: Call, out: Any) -> Any:
        if not isinstance(out, Tensor) or out.dtype != torch.int64:
            return out
        wrapped = out.to(torch.int32).to(torch.int64)
        return out.copy_(wrapped) if call.writes else wrapped

    chip.plant(SUM | {"mul", "mul_", "add", "to", "_to_copy"}, after=after)


ALL: tuple[Fault, ...] = (
    softmax_overflows, softmax_in_16_bits, long_context_forgotten, exp_approximated, sigmoid_approximated, silu_cut,
    rsqrt_approximated, norm_without_eps, norm_in_16_bits, adds_in_16_bits, casts_truncated, nan_swallowed, inf_clipped,
    int64_is_int32,
)  # fmt: skip
