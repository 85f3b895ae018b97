"""Level 0: the device itself: is it there, does its memory come back, do copies arrive, does it refuse in words?

Owns the checks of the device. The PyTorch ops that the engine is made of are tried in `aten.py`, memory and copies in
`storage.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from twinline.facts.chips import Chip, load
from twinline.verify.ladder import aten, storage
from twinline.verify.ladder.attempt import NotReady, Where, attempt, first_line, verdict_of
from twinline.verify.ladder.bench import Bench
from twinline.verify.ladder.finding import Figure, Finding

FLOATS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8_e4m3": torch.float8_e4m3fn,
}
PRECISION = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float8_e4m3": "fp8-e4m3"}


def climb(bench: Bench) -> Iterator[Finding]:
    yield from attempt(bench, "device.first_call", lambda where: _first_call(bench))  # first: the only cold calls
    yield from attempt(bench, "device.enumerate", lambda where: _enumerate(bench))
    yield from storage.climb(bench)
    for name in FLOATS:
        yield from attempt(bench, f"device.dtypes.{name}", partial(_dtype, bench, name))
    yield from attempt(bench, "device.streams", lambda where: _streams(bench))
    yield from attempt(bench, "device.random", lambda where: _random(bench))
    yield from attempt(bench, "device.determinism", lambda where: _steady(bench))
    yield from attempt(bench, "device.special", lambda where: _special(bench))
    yield from attempt(bench, "device.denormals", lambda where: _denormals(bench))
    yield from attempt(bench, "device.strides", lambda where: _strides(bench))
    yield from attempt(bench, "device.empty", lambda where: _empty(bench))
    yield from aten.climb(bench)


def _enumerate(bench: Bench) -> Iterator[Finding]:
    """What PyTorch counts, and that `torch.accelerator` speaks of the same device."""
    check, rule = "device.enumerate", "torch.accelerator and the device type's module agree"
    here = bench.device.torch_device
    if here.type == "cpu":
        yield Finding(check=check, verdict="pass", rule=rule, text="the CPU, which torch.accelerator does not count")
        return
    module = torch.get_device_module(here)
    count, current = module.device_count(), torch.accelerator.current_accelerator()
    agree = current is not None and current.type == here.type and torch.accelerator.device_count() == count
    index = here.index or 0
    good = agree and index < count and bool(module.is_available())
    said = current.type if current is not None else "none"
    text = f"{count} of {here.type}; torch.accelerator says {torch.accelerator.device_count()} of {said}"
    yield Finding(check=check, verdict="pass" if good else "fail", text=text, rule=rule, figures={"devices": count})


def _calls(bench: Bench) -> dict[str, Callable[[torch.device], Tensor]]:
    """The kinds of kernel that a driver may have to compile, or to warm up, when they are first called."""
    draw = bench.generator("first")

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(draw.standard_normal(shape)).float()

    a, b, c, w = normal(33, 64), normal(64, 48), normal(2, 33, 64), normal(48, 64)
    q = normal(1, 2, 17, 24)
    return {
        "add": lambda d: a.to(d) + a.to(d),
        "linear": lambda d: F.linear(a.to(d), w.to(d)),
        "mm": lambda d: a.to(d).mm(b.to(d)),
        "matmul": lambda d: c.to(d) @ b.to(d),
        "bmm": lambda d: c.to(d).bmm(c.to(d).transpose(1, 2)),
        "einsum": lambda d: torch.einsum("dti,io->dto", c.to(d), b.to(d)),
        "rms_norm": lambda d: F.rms_norm(a.to(d), (64,)),
        "softmax": lambda d: a.to(d).softmax(-1),
        "silu": lambda d: F.silu(a.to(d)),
        "attention": lambda d: F.scaled_dot_product_attention(q.to(d), q.to(d), q.to(d), is_causal=True),
        "sort": lambda d: a.to(d).sort(-1).values,
    }


def _first_call(bench: Bench) -> Iterator[Finding]:
    """The first call of each kind of kernel beside the second: the same result, and how much longer."""
    check, rule = "device.first_call", "the first call gives what the second gives"
    device, wrong, slowest = bench.device, [], (0.0, 0.0, "")
    tried = 0
    with torch.inference_mode():
        for name, call in _calls(bench).items():
            try:
                times, results = [], []
                for _ in range(2):
                    started = time.perf_counter()
                    result = call(device.torch_device)
                    device.synchronize()
                    times.append(time.perf_counter() - started)
                    results.append(result.cpu())
            except Exception as error:
                if verdict_of(error) == "limit":
                    continue  # `device.aten` says what is missing
                raise
            tried += 1
            slowest = max(slowest, (times[0], times[1], name))
            if not torch.allclose(results[0], results[1], rtol=1e-4, atol=1e-5, equal_nan=True):
                wrong.append(name)
    cold, warm, name = slowest
    text = f"{tried} kinds of kernel; slowest first call {cold * 1000:.1f} ms ({name}), then {warm * 1000:.2f} ms"
    if wrong:
        text = f"the first call of {', '.join(wrong)} gives something else than the second; {text}"
    figures: dict[str, Figure] = {"cold_seconds": cold, "warm_seconds": warm}
    yield Finding(check=check, verdict="fail" if wrong else "pass", text=text, rule=rule, op=wrong[0] if wrong else "",
                  figures=figures)  # fmt: skip


def claimed(bench: Bench) -> Chip | None:
    """The catalog's entry for what the driver calls this device, if there is one and only one."""
    here = bench.device.torch_device
    module: Any = None if here.type == "cpu" else torch.get_device_module(here)
    if bench.device.simulated or not hasattr(module, "get_device_name"):
        return None
    name, catalog = str(module.get_device_name(here)), load()
    found = {chip.id: chip for vendor in catalog.vendors if (chip := catalog.printed(vendor, name))}
    return next(iter(found.values())) if len(found) == 1 else None


def _dtype(bench: Bench, name: str, where: Where) -> Iterator[Finding]:
    """Copies, casts and a product in a dtype, beside what the catalog says of the chip."""
    check, dtype, here = f"device.dtypes.{name}", FLOATS[name], bench.device.torch_device
    chip = claimed(bench)
    claim = chip.precisions[PRECISION[name]].answer if chip else ""  # type: ignore[index]
    beside = f"; the catalog says {claim} for {chip.id}" if chip else ""
    x = torch.from_numpy(bench.generator("dtype", name).standard_normal((64, 96))).float()
    x[0, :8] = torch.tensor([0.0, -0.0, 1.0, 1.00390625, 1.01171875, 3.1, -448.0, 2.0**-9])
    try:
        cast = x.to(here).to(dtype)
        back = cast.to(torch.float32).cpu()
        moved = x.to(dtype).to(here).cpu()
        if name != "float8_e4m3":
            product = (x[1:].to(dtype).to(here) @ x[1:].to(dtype).to(here).T).float().cpu()
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        usual = name == "float8_e4m3"
        verdict = verdict_of(error)
        if usual and claim != "yes":
            verdict = "note"  # most chips have none, and the engine does not compute in it yet
        elif claim == "yes":
            verdict = "fail"
        yield Finding(check=check, verdict=verdict, dtype=name, rule="it is computed in, or refused in words",
                      text=f"refused: {type(error).__name__}: {first_line(error)}{beside}")  # fmt: skip
        return
    want = x.to(dtype).float()
    wrong = int((back != want).sum())
    bits = torch.int8 if name == "float8_e4m3" else torch.int32 if name == "float32" else torch.int16
    flipped = int((moved.view(bits) != x.to(dtype).view(bits)).sum())
    text = "casts from float32 round to nearest, copies keep their bits"
    if wrong:
        at = int((back != want).flatten().int().argmax())
        text = (f"{wrong} of {x.numel()} casts from float32 are wrong: {float(x.flatten()[at]):.8g} became "
                f"{float(back.flatten()[at]):.8g}, nearest is {float(want.flatten()[at]):.8g}")  # fmt: skip
    elif flipped:
        text = f"{flipped} of {x.numel()} values were changed by a copy to the device and back"
    elif name != "float8_e4m3":
        text, wrong = _product(x[1:].to(dtype).double(), product, dtype, text)
    yield Finding(check=check, verdict="fail" if wrong or flipped else "pass", text=text + beside, dtype=name,
                  rule="to nearest, ties to even; a product within the rounding of its result")  # fmt: skip


def _product(x: Tensor, product: Tensor, dtype: torch.dtype, text: str) -> tuple[str, int]:
    golden, u = x @ x.T, torch.finfo(dtype).eps / 2
    room = (2 if dtype == torch.float32 else 1) * u * golden.abs() + 4 * 96**0.5 * 2.0**-24 * (x.abs() @ x.abs().T)
    off = (product.double() - golden).abs()
    wrong = int((off > room).sum()) + int((~torch.isfinite(product)).sum())
    if not wrong:
        return f"{text}, a product is within rounding", 0
    return f"{wrong} of {golden.numel()} elements of a product are off by more than rounding explains", wrong


def _streams(bench: Bench) -> Iterator[Finding]:
    """Streams and events, where the device type has them; and that a synchronised result is whole."""
    check, rule = "device.streams", "work on another stream is there after synchronize"
    here = bench.device.torch_device
    if here.type == "cpu":
        raise NotReady("a CPU has no streams")
    module = torch.get_device_module(here)
    if not all(hasattr(module, name) for name in ("Stream", "Event", "stream")):
        raise NotReady(f"torch.{here.type} has no streams")
    x = torch.ones(512, 512, device=here)
    bench.device.synchronize()
    stream, event = module.Stream(), module.Event()
    with module.stream(stream):
        for _ in range(8):
            x = x @ x / 512
        event.record(stream)
    event.synchronize()
    stream.synchronize()
    bench.device.synchronize()
    good = bool((x.cpu() == 1).all())
    yield Finding(check=check, verdict="pass" if good else "fail", rule=rule,
                  text="8 products on a stream of their own, waited for by event and by stream"
                       + ("" if good else ": the result is wrong"))  # fmt: skip


def _random(bench: Bench) -> Iterator[Finding]:
    """The engine draws with numbers of its own; what else runs on the device (training, other engines) does not."""
    check, rule = "device.random", "draws differ, a seed repeats them, mean and variance within 6 standard errors"
    here, count, wrong = bench.device.torch_device, 2**16, []
    seed = int(bench.generator("random").integers(2**31))
    torch.manual_seed(seed)
    first, second = (torch.rand(count, device=here).cpu() for _ in range(2))
    if torch.equal(first, second):
        wrong.append("two draws of uniform numbers are the same")
    torch.manual_seed(seed)
    if not torch.equal(first, torch.rand(count, device=here).cpu()):
        wrong.append("the same seed gives other numbers")
    normals = [torch.randn(count, device=here).cpu() for _ in range(2)]
    if torch.equal(*normals):
        wrong.append("two draws of normal numbers are the same")
    rows = (("uniform", first, 0.5, 1 / 12, 1 / 180), ("normal", normals[0], 0.0, 1.0, 2.0))
    for name, x, mean, variance, of_variance in rows:
        x = x.double()
        if abs(float(x.mean()) - mean) > 6 * (variance / count) ** 0.5:
            wrong.append(f"the mean of {name} numbers is {float(x.mean()):.4f}, {mean:g} is right")
        if abs(float(x.var()) - variance) > 6 * (of_variance / count) ** 0.5:
            wrong.append(f"the variance of {name} numbers is {float(x.var()):.4f}, {variance:.4f} is right")
    if not bool((first >= 0).all() and (first < 1).all()):
        wrong.append("uniform numbers leave [0, 1)")
    text = "; ".join(wrong) or f"{count} uniform and normal numbers are as they should be"
    yield Finding(check=check, verdict="fail" if wrong else "pass", text=text, rule=rule)


def _steady(bench: Bench) -> Iterator[Finding]:
    """The same product again: a grade, as level 7 is, found early."""
    check, times = "device.determinism", 16
    x = torch.from_numpy(bench.generator("steady").standard_normal((96, 192))).float().to(bench.device.torch_device)
    with torch.inference_mode():
        first, again = (x @ x.T).cpu(), [(x @ x.T).cpu() for _ in range(times - 1)]
    differ = sum(not torch.equal(first, one) for one in again)
    text = f"a product made {times} times gave {differ + 1 if differ else 1} results"
    text = f"{differ} of {times - 1} repeats of a product gave other bits" if differ else text
    yield Finding(check=check, verdict="limit" if differ else "pass", text=text, rule="bit for bit, run to run",
                  figures={"times": times, "differ": differ})  # fmt: skip


def _cases(bench: Bench, check: str, rule: str, cases: dict[str, Callable[[torch.device], Tensor]],
           said: str) -> Iterator[Finding]:  # fmt: skip
    """Small calls that must give on the device what they give on the CPU, NaN and infinities included."""
    wrong, lacking = [], []
    with torch.inference_mode():
        for name, call in cases.items():
            want = call(torch.device("cpu"))
            try:
                got = call(bench.device.torch_device).cpu()
            except Exception as error:
                if isinstance(error, NotImplementedError):
                    lacking.append(name)  # `device.aten` has it
                    continue
                wrong.append(f"{name}: {type(error).__name__}: {first_line(error)}")
                continue
            close = got.shape == want.shape and torch.allclose(got, want, rtol=1e-4, atol=1e-5, equal_nan=True)
            if not close:
                wrong.append(f"{name} gives {_few(got)} where {_few(want)} is right")
    text = "; ".join(wrong[:4]) if wrong else f"{len(cases) - len(lacking)} calls {said}"
    if lacking:
        text += f"; not there: {', '.join(lacking)}"
    yield Finding(check=check, verdict="fail" if wrong else "pass", text=text, rule=rule)


def _few(x: Tensor) -> Any:
    return [float(f"{v:.4g}") if isinstance(v, float) else v for v in x.flatten()[:4].tolist()] or list(x.shape)


def _special(bench: Bench) -> Iterator[Finding]:
    x = torch.tensor([[1.0, torch.nan, -2.0, torch.inf], [-torch.inf, 0.0, 3.0, 1e-40], [1.0, 2.0, 3.0, 4.0]])
    w = torch.eye(4)
    cases: dict[str, Callable[[torch.device], Tensor]] = {
        "add": lambda d: x.to(d) + 1,
        "mul": lambda d: x.to(d) * 2,
        "overflow": lambda d: torch.full((3,), 3e38).to(d) * 2,
        "matmul": lambda d: x.to(d) @ w.to(d),
        "linear": lambda d: F.linear(x.to(d), w.to(d)),
        "max": lambda d: x.to(d).max(-1).values,
        "sum": lambda d: x.to(d).sum(-1),
        "exp": lambda d: x.to(d).exp(),
        "where": lambda d: torch.where(x.to(d) > 0, x.to(d), -x.to(d)),
        "cast": lambda d: x.to(d).to(torch.float16).float(),
        "isnan": lambda d: (x.to(d) != x.to(d)).float(),
        "softmax": lambda d: x.to(d).softmax(-1),
        "index": lambda d: x.to(d)[torch.tensor([1, 0]).to(d)],
        "masked_fill": lambda d: x.to(d).masked_fill(x.to(d) == 2, -torch.inf),
        "rms_norm": lambda d: F.rms_norm(torch.zeros(2, 4).to(d), (4,), None, 1e-6),
    }
    rule = "NaN and infinities where the CPU has them"
    yield from _cases(bench, "device.special", rule, cases, "keep NaN and infinities as the CPU does")


def _denormals(bench: Bench) -> Iterator[Finding]:
    """What becomes of numbers below the normal range: kept or taken for zero. Either is right, and good to know: in
    float16 that range begins at 6.1e-05."""
    here, said = bench.device.torch_device, []
    for name in ("float32", "bfloat16", "float16"):
        dtype = FLOATS[name]
        if not bench.supports(dtype):
            continue
        least, whole = torch.finfo(dtype).tiny, torch.int32 if dtype == torch.float32 else torch.int16
        normal = torch.full((8,), least, dtype=dtype)
        below = (normal.view(whole) >> 2).view(dtype)  # bits: a host that flushes could not compute it
        kept = [bool((one.cpu().view(whole) != 0).all()) for one in (below.to(here) * 4, normal.to(here) * 0.25)]
        word = {(True, True): "kept", (False, False): "flushed", (True, False): "flushed where they come out",
                (False, True): "flushed where they go in"}[kept[0], kept[1]]  # fmt: skip
        said.append(f"{name} {word}" + ("" if all(kept) else f" (below {least:.1e})"))
    yield Finding(check="device.denormals", verdict="note", text=f"numbers below the normal range: {', '.join(said)}",
                  rule="a figure, no demand")  # fmt: skip


def _strides(bench: Bench) -> Iterator[Finding]:
    x = torch.from_numpy(bench.generator("strides").standard_normal((6, 8, 10))).float()
    w = torch.from_numpy(bench.generator("strides.w").standard_normal((5, 8))).float()

    def written(d: torch.device) -> Tensor:
        made = torch.zeros(6, 8, 10).to(d)
        made[..., ::2].copy_(x.to(d)[..., 1::2])
        return made

    cases: dict[str, Callable[[torch.device], Tensor]] = {
        "a step of two": lambda d: x.to(d)[..., ::2] * x.to(d)[..., 1::2],
        "turned": lambda d: x.to(d).transpose(1, 2) + 1,
        "a slice": lambda d: x.to(d)[:, 2:5] * 2,
        "spread out": lambda d: x.to(d)[:, :1].expand(6, 8, 10) * x.to(d),
        "a product of a turned one": lambda d: F.linear(x.to(d).transpose(1, 2), w.to(d)),
        "a sum over a turned one": lambda d: x.to(d).transpose(0, 2).sum(-1),
        "written with a step": written,
        "made contiguous": lambda d: x.to(d).permute(2, 0, 1).contiguous(),
        "put together": lambda d: torch.cat((x.to(d)[..., ::2], x.to(d)[..., 1::2]), -1),
    }
    rule = "views give what copies of them give"
    yield from _cases(bench, "device.strides", rule, cases, "on views are right")


def _empty(bench: Bench) -> Iterator[Finding]:
    cases: dict[str, Callable[[torch.device], Tensor]] = {
        "linear": lambda d: F.linear(torch.zeros(0, 8).to(d), torch.ones(5, 8).to(d)),
        "matmul over nothing": lambda d: torch.zeros(3, 0).to(d) @ torch.zeros(0, 4).to(d),
        "add": lambda d: torch.zeros(0, 8).to(d) + 1,
        "sum": lambda d: torch.zeros(0, 8).to(d).sum(0),
        "cat": lambda d: torch.cat((torch.zeros(0, 8).to(d), torch.ones(2, 8).to(d))),
        "index": lambda d: torch.ones(4, 8).to(d)[torch.zeros(0, dtype=torch.int64).to(d)],
        "embedding": lambda d: F.embedding(torch.zeros(0, dtype=torch.int64).to(d), torch.ones(4, 8).to(d)),
        "silu": lambda d: F.silu(torch.zeros(0, 8).to(d)),
        "argsort": lambda d: torch.zeros(0).to(d).argsort().float(),
        "clone": lambda d: torch.zeros(0, 8).to(d).clone(),
        "copy": lambda d: torch.zeros(0, 8).to(d),
    }
    rule = "a call with no rows is no error, and gives none"
    yield from _cases(bench, "device.empty", rule, cases, "with no rows are right")
