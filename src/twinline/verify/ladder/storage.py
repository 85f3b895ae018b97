"""Level 0, memory and copies: what is given back, what is refused, and whether bits arrive as they left.

Owns the checks `device.memory`, `device.content`, `device.oom` and `device.copies`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twinline.verify.ladder.attempt import NotReady, alive, attempt, first_line
from twinline.verify.ladder.bench import Bench
from twinline.verify.ladder.finding import Finding

MIB = 2**20
ROUNDS = 320  # of copies: what goes wrong one time in 50 is seen, and what goes wrong after 200
SLACK = MIB  # of free memory that may differ for reasons of a driver's own
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool)


def climb(bench: Bench) -> Iterator[Finding]:
    yield from attempt(bench, "device.memory", lambda where: _memory(bench))
    yield from attempt(bench, "device.content", lambda where: _content(bench))
    yield from attempt(bench, "device.oom", lambda where: _oom(bench))
    yield from attempt(bench, "device.copies", lambda where: _copies(bench))
    yield from attempt(bench, "device.copies.peer", lambda where: _peers(bench))


def _settled(bench: Bench) -> int:
    """Free bytes once the device is idle and what PyTorch only keeps for later is given back."""
    device = bench.device
    device.synchronize()
    module: Any = torch.get_device_module(device.torch_device)
    if hasattr(module, "empty_cache"):
        module.empty_cache()
    free = device.free_memory()
    if free is None:
        raise NotReady("the device does not say how much memory is free")
    return free


def _memory(bench: Bench) -> Iterator[Finding]:
    """Blocks taken and given back, many times: the free memory falls with what is taken and is all there again."""
    check, rule = "device.memory", "what is freed comes back; what is taken is counted"
    here = bench.device.torch_device
    if here.type == "cpu":
        raise NotReady("a CPU's memory belongs to other programs too: its free part says nothing")
    _zeros_and_clones(here, 7)  # what a driver loads when a kernel is first called is not lost
    before = _settled(bench)
    size = max(2 * MIB, min(256 * MIB, before // 8))
    block = torch.zeros(size, dtype=torch.uint8, device=here)
    counted = before - _settled(bench)
    del block
    _zeros_and_clones(here, 200)
    lost = before - _settled(bench)
    wrong = []
    if counted < size // 2:
        wrong.append(f"{size // MIB} MiB were taken and {counted / MIB:.1f} MiB less are said to be free: a cache sized"
                     " by that would overflow")  # fmt: skip
    if lost > SLACK:
        wrong.append(f"{lost / MIB:.1f} MiB did not come back after 401 blocks were freed")
    text = (
        "; ".join(wrong)
        or f"{before / MIB:,.0f} MiB free before and after 401 blocks; {size // MIB} taken were counted"
    )
    yield Finding(check=check, verdict="fail" if wrong else "pass", text=text, rule=rule,
                  figures={"free_bytes": before, "lost_bytes": lost, "counted_bytes": counted})  # fmt: skip


def _zeros_and_clones(here: torch.device, count: int) -> None:
    for i in range(count):
        one = torch.zeros((i % 7 + 1) * MIB // 16, dtype=torch.uint8, device=here)
        two = one.clone()
        del one, two


def _content(bench: Bench) -> Iterator[Finding]:
    """Most of what is free is filled, every block with numbers of its own, and read when all is written: bad memory
    shows, and two addresses that are one. Level 3 with a small model would touch none of it. The blocks are compared
    where they are, which takes seconds where a copy of them all would take minutes, with a pattern that itself arrives
    as it left after all that."""
    check, rule = "device.content", "what was written to each block of nearly all free memory is there"
    here = bench.device.torch_device
    if here.type == "cpu":
        raise NotReady("a CPU's memory belongs to other programs too: it is not filled")
    torch.empty(1, device=here)
    free = _settled(bench)
    size = max(MIB, min(256 * MIB, free // 16)) // 8  # in numbers of 8 bytes
    count = max(free * 7 // 8 // (8 * size) - 1, 1)  # one more holds the pattern
    pattern = torch.from_numpy(bench.generator("content").integers(2**62, size=size + count))
    source, held = pattern.to(here), []
    for i in range(count):
        alive(bench)
        try:
            held.append(source[i : i + size].clone())
        except torch.OutOfMemoryError:
            del held[-1:]  # room to compare in
            break  # what an allocator rounds up; `device.oom` judges refusals
    bad: list[int] = []
    for i, block in enumerate(held):
        alive(bench)
        if not torch.equal(block, source[i : i + size]):
            bad.append(i)
    arrived = torch.equal(source.cpu(), pattern)
    filled = len(held) * size * 8
    text = f"{filled / MIB:,.0f} MiB of {free / MIB:,.0f} hold what was written to them"
    if bad:
        text = (f"{len(bad)} of {len(held)} blocks of {8 * size / MIB:,.0f} MiB hold something else than was written, "
                f"the first after {bad[0] * size * 8 / MIB:,.0f} MiB")  # fmt: skip
    elif not arrived:
        text = "what the blocks were filled from came back as something else than was sent"
    yield Finding(check=check, verdict="pass" if arrived and not bad else "fail", text=text, rule=rule,
                  figures={"free_bytes": free, "filled_bytes": filled, "bad_blocks": len(bad)})  # fmt: skip


def _oom(bench: Bench) -> Iterator[Finding]:
    """Twice the memory there is, at once and in pieces: refused by `torch.OutOfMemoryError`, and the device lives."""
    check, rule = "device.oom", "torch.OutOfMemoryError, the memory back, the process and the device alive"
    here = bench.device.torch_device
    if here.type == "cpu":
        raise NotReady("a CPU's memory is promised before it is there: nothing refuses")
    before = _settled(bench)
    wrong = []
    for what, size in (("at once", 2 * before), ("in pieces", before // 3)):
        held: list[Tensor] = []
        try:
            for _ in range(8 if what == "in pieces" else 1):
                held.append(torch.empty(size, dtype=torch.uint8, device=here))
            wrong.append(f"{what}: {len(held) * size / MIB:,.0f} MiB were given where {before / MIB:,.0f} are free")
        except torch.OutOfMemoryError:
            pass
        except Exception as error:
            wrong.append(f"{what}: refused with {type(error).__name__} ({first_line(error)}), which the engine takes "
                         "for a broken device")  # fmt: skip
        del held
    lost = before - _settled(bench)
    if lost > SLACK:
        wrong.append(f"{lost / MIB:.1f} MiB did not come back")
    one = torch.ones(64, device=here)
    if float((one + one).sum().cpu()) != 128:
        wrong.append("1 + 1 is not 2 any more")
    text = "; ".join(wrong) or "refused in words, at once and in pieces, and all memory is back"
    yield Finding(check=check, verdict="fail" if wrong else "pass", text=text, rule=rule)


def _bits(draw: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Random bits: every pattern of them must arrive."""
    if dtype == torch.bool:
        return torch.from_numpy(draw.random(shape) < 0.5)
    raw = draw.integers(0, 256, (*shape[:-1], shape[-1] * dtype.itemsize), dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def _copies(bench: Bench) -> Iterator[Finding]:
    """To the device, within it, and back, many times and in every dtype: the bits that were sent."""
    check, rule = "device.copies", "the same bits, every time"
    here, draw = bench.device.torch_device, bench.generator("copies")
    bad: list[str] = []
    for i in range(ROUNDS):
        dtype = DTYPES[i % len(DTYPES)] if i < 140 else torch.float32
        shape = ((4, 33), (3, 5, 16), (1, 257))[i % 3] if i < 140 else (4, 33)
        sent = _bits(draw, shape, dtype)
        there = sent.to(here)
        if i % 4 == 0:
            back, way = there.clone().cpu(), "to the device, within it and back"
        elif i % 4 == 1:
            back, way = torch.empty_like(there).copy_(there).cpu(), "to the device, within it (copy_) and back"
        elif i % 4 == 2:
            back, way = torch.empty_like(sent).copy_(there), "to the device and back (copy_)"
        else:
            back, way = there.cpu(), "to the device and back"
        if not same_bits(sent, back):
            bad.append(f"round {i}, {str(dtype).removeprefix('torch.')} {tuple(shape)}, {way}")
    for size in (MIB, 8 * MIB + 12):
        sent = _bits(draw, (size // 4,), torch.float32)
        if not same_bits(sent, sent.to(here).clone().cpu()):
            bad.append(f"{size:,} bytes")
    sent = _bits(draw, (6, 8, 10), torch.int32)
    if not same_bits(sent.transpose(0, 2)[:, ::2], sent.to(here).transpose(0, 2)[:, ::2].cpu()):
        bad.append("a view, copied to the host")
    made = torch.zeros(6, 8, 10, dtype=torch.int32).to(here)
    made[:, ::2].copy_(sent[:, ::2])
    if not same_bits(made.cpu()[:, ::2], sent[:, ::2]) or bool(made.cpu()[:, 1::2].any()):
        bad.append("a copy from the host into a view")
    there = sent.to(here)
    there.clone().zero_()
    if not same_bits(sent, there.cpu()):
        bad.append("a clone, which is its original: what is written to one is written to both")
    text = f"{ROUNDS + 5} copies to the device and back arrived as they left"
    if bad:
        text = f"{len(bad)} of {ROUNDS + 5} copies arrived changed, the first: {bad[0]}"
    yield Finding(check=check, verdict="fail" if bad else "pass", text=text, rule=rule, figures={"bad": len(bad)})


def _peers(bench: Bench) -> Iterator[Finding]:
    """From this device to another of its kind and back."""
    check, rule = "device.copies.peer", "the same bits, every time"
    here = bench.device.torch_device
    count = 1 if here.type == "cpu" else int(torch.get_device_module(here).device_count())
    if count < 2:
        raise NotReady("there is no second device")
    index = here.index or 0
    other, draw, bad = torch.device(here.type, (index + 1) % count), bench.generator("peers"), 0
    rounds = 64
    for i in range(rounds):
        sent = _bits(draw, (4, 33 + i), torch.float32)
        bad += not same_bits(sent, sent.to(here).to(other).cpu())
        bad += not same_bits(sent, sent.to(other).to(here).cpu())
    text = f"{2 * rounds} copies between devices {index} and {other.index} arrived as they left"
    if bad:
        text = f"{bad} of {2 * rounds} copies between devices {index} and {other.index} arrived changed"
    yield Finding(check=check, verdict="fail" if bad else "pass", text=text, rule=rule, figures={"bad": bad})
