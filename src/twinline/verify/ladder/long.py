"""Level 5: hundreds of decode steps: does it drift, does it leak, is the first answer still the answer afterwards?

Owns the checks. Errors late in the run are compared with errors early in it, beside the reference chip's over the same
positions: what grows on the chip alone is the chip's.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch

from twinline.verify.ladder import pace, prompts
from twinline.verify.ladder.attempt import attempt
from twinline.verify.ladder.bench import Bench
from twinline.verify.ladder.closeness import Distance, distance, judge
from twinline.verify.ladder.determinism import equal
from twinline.verify.ladder.finding import Figure, Finding
from twinline.verify.ladder.model import first_parting, golden_along
from twinline.verify.ladder.subject import alone, decoded, subjects

SEQUENCES, PROMPT, STEPS = 4, 24, 320
CHECKS = ("long.decode", "long.drift", "long.memory", "long.again")  # the run, and what is found in it
SETTLE = 32  # steps before memory is expected to stand still: caches of the library and the allocator fill


def climb(bench: Bench) -> Iterator[Finding]:
    name = next((check for check in CHECKS if bench.trial.wants(check)), CHECKS[0])
    yield from attempt(bench, name, lambda where: _decode(bench))


def memory_used(bench: Bench) -> int | None:
    """Bytes that the process has allocated on the device by the driver's account; None where nobody counts."""
    device = bench.device.torch_device
    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    if hasattr(module, "memory_allocated"):
        return int(module.memory_allocated(device))
    return None


def driver_free(bench: Bench) -> int | None:
    """Bytes that the driver would still give, without what PyTorch keeps for later; None where nobody counts."""
    device = bench.device.torch_device
    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    return int(module.mem_get_info(device)[0]) if hasattr(module, "mem_get_info") else None


def _decode(bench: Bench) -> Iterator[Finding]:
    three = subjects(bench)
    length = min(PROMPT + pace.some(bench, STEPS, 90), bench.spec.context)
    sequences = prompts.sequences(bench, "long", SEQUENCES, length)
    lengths = [length] * SEQUENCES
    first = [min(PROMPT, length - 1)] * SEQUENCES
    probe, probe_steps = prompts.sequences(bench, "again", 1, min(48, length)), alone([min(48, length)])
    before = three.chip.tell(probe, probe_steps)
    used: list[int] = []
    free: list[int] = []

    def watch(step: int) -> None:
        if (now := memory_used(bench)) is not None:
            used.append(now)
        if (left := driver_free(bench)) is not None:
            free.append(left)

    chip = three.chip.tell(sequences, decoded(lengths, first), watch=watch)
    after = three.chip.tell(probe, probe_steps)
    reference = three.reference.tell(sequences, alone(lengths))
    golden = three.golden.tell(sequences, alone(lengths))
    seen = distance(golden_along(bench, sequences, chip, golden), chip)
    near = distance(golden_along(bench, sequences, reference, golden), reference)
    yield _drift(bench, seen, near, length, first[0])
    yield from _memory(used, free)
    same = equal(before[0].logits_TV, after[0].logits_TV)
    apart = float((before[0].logprobs_TV - after[0].logprobs_TV).abs().max())
    again = judge(distance(golden_along(bench, probe, after, three.golden.tell(probe, probe_steps)), after),
                  distance(three.golden.tell(probe, probe_steps), three.reference.tell(probe, probe_steps)),
                  three.dtype)  # fmt: skip
    text = (f"after {length - first[0]} steps the same prompt gave "
            f"{'the same bits' if same else f'log-probabilities up to {apart:.1e} apart'}")  # fmt: skip
    text += "" if again.passed else f"; {again.text}; {first_parting(bench, probe, probe_steps)}"
    yield Finding(check="long.again", verdict="pass" if again.passed else "fail", text=text, rule=again.rule,
                  figures={"apart": apart, "steps": length - first[0]})  # fmt: skip


def _drift(bench: Bench, seen: Distance, near: Distance, length: int, first: int) -> Finding:
    """Thirds of the decoded part, each by the rules of level 3; the first to break is where it began."""
    three, thirds = subjects(bench), []
    third = (length - first) // 3
    positions = torch.arange(SEQUENCES * length) % length
    for part in range(3):
        within = (positions >= first + part * third) & (positions < first + (part + 1) * third)
        thirds.append(judge(Distance(seen.kl_N[within], seen.error_N[within]),
                            Distance(near.kl_N[within], near.error_N[within]), three.dtype))  # fmt: skip
    bad = [i for i, one in enumerate(thirds) if not one.passed]
    figures: dict[str, Figure] = {"steps": length - first} | {
        f"{name}_third_{i + 1}": one.figures[name] for i, one in enumerate(thirds)
        for name in ("logprob_error_mean", "reference_logprob_error_mean")
    }  # fmt: skip
    if not bad:
        last = thirds[-1].figures
        text = (f"{length - first} decode steps of {SEQUENCES} sequences: mean log-prob error "
                f"{thirds[0].figures['logprob_error_mean']:.1e} in the first third, "
                f"{last['logprob_error_mean']:.1e} in the last (reference "
                f"{last['reference_logprob_error_mean']:.1e})")  # fmt: skip
        return Finding(check="long.drift", verdict="pass", text=text, rule=thirds[0].rule, figures=figures)
    begins = _onset(seen, near, length, first)
    where = "from the start" if bad[0] == 0 and begins <= first + 2 else f"from step {begins - first} on"
    text = f"log-probabilities leave the golden run {where}: {thirds[bad[-1]].text}"
    return Finding(check="long.drift", verdict="fail", text=text, rule=thirds[0].rule,
                   figures={**figures, "first_step": begins - first})  # fmt: skip


def _onset(seen: Distance, near: Distance, length: int, first: int) -> int:
    """The first position whose error, over all sequences, is beyond ten times the reference's usual."""
    usual = float(near.error_N.mean()) * 10
    errors = seen.error_N.view(SEQUENCES, length).max(0).values
    over = [p for p in range(first, length) if not float(errors[p]) <= usual]
    return over[0] if over else first


def _memory(used: list[int], free: list[int]) -> Iterator[Finding]:
    """Steps of equal size must not hold more and more. Windows of some 40 steps: a cache grows once, a leak in each."""
    check, rule = "long.memory", "what is allocated after a step does not grow over steps"
    for counts, what, sign in ((used, "allocated", 1), (free, "taken by the driver's account", -1)):
        settled = [sign * c for c in counts[SETTLE:]]
        if len(settled) < 40:
            continue
        wide = 40 if len(settled) >= 120 else len(settled) // 3
        lows = [min(settled[at : at + wide]) for at in range(0, len(settled) - wide + 1, wide)]
        grew = sum(b > a for a, b in pairwise(lows))
        per_step = (lows[-1] - lows[0]) / (wide * (len(lows) - 1))
        figures: dict[str, Figure] = {"bytes_per_step": per_step, "steps": len(counts)}
        if grew >= max(2, len(lows) - 2) and per_step > 0:
            yield Finding(check=check, verdict="fail", rule=rule, figures=figures,
                          text=f"a leak: memory {what} grew in {grew} of {len(lows) - 1} windows of {wide} steps, "
                               f"{per_step:,.0f} bytes a step")  # fmt: skip
            return
    if len(used) < SETTLE + 40 and len(free) < SETTLE + 40:
        yield Finding(check=check, verdict="skipped", text="the device does not say what is allocated on it")
        return
    counts = used or free
    yield Finding(check=check, verdict="pass", rule=rule, figures={"bytes": counts[-1], "steps": len(counts)},
                  text=f"memory stands still over {len(counts)} steps, at {counts[-1] / 2**20:,.1f} MiB "
                       f"{'allocated' if used else 'free'}")  # fmt: skip
