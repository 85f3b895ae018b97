"""The gateway's router against simulated fleets, by a virtual clock: no engine, no socket, no waiting.

    .venv/bin/python -m benchmarks.routing            (some minutes; --quick: one seed, shorter runs)

Drives the real `twinline.gateway.routing.Router`. A simulated line has a prefill that serves one request at a time, a
decode whose step takes a + b*n seconds and which runs at 60 % while a prefill is under way, slots, and a prefix cache
with LRU eviction. Fleets A and B, their traffic and capacity are those of the earlier study (assumed, not measured).
The router sees what a gateway sees: its own bookkeeping, the times of first and last token, and reported cached tokens.
Its first guesses of speed are wrong by up to 2x either way. An oracle reads true speeds and the true state of lines.
"""

from __future__ import annotations

import argparse
import math
import random
import time

from benchmarks.routing.questions import affinity, fleets, money, slowdown, two_lines, weights
from benchmarks.routing.simulation import STEP_GOAL, TTFT_GOAL

from twinline.gateway.routing import Ask, Policy, Router, Traits, block_keys


def hot_path(rounds: int = 20_000) -> list[str]:
    """Microseconds of this process for one request: among sixteen lines, prompts of 1,000 tokens that share 400."""
    out = []
    rng = random.Random(0)
    systems = [[rng.randrange(100_000) for _ in range(400)] for _ in range(5)]
    prompts = [systems[i % 5] + [rng.randrange(100_000) for _ in range(600)] for i in range(2000)]
    began = time.process_time()
    keys = [block_keys(prompt) for prompt in prompts]
    hashing = (time.process_time() - began) / len(prompts) * 1e6
    for rule in ("cheapest", "fastest", "prefer", "weighted"):
        router = Router(Policy(rule=rule), time.monotonic)
        names = tuple(f"line{i}" for i in range(16))
        for i, name in enumerate(names):
            router.add(Traits(name, frozenset({"tools"}), 32768, price_per_hour=1 + i % 3, slots=64))
        live: list = []
        best = math.inf
        for _ in range(5):
            began = time.process_time()
            for i in range(rounds // 5):
                ask = Ask(1000, keys[i % 2000], 250, needs=frozenset({"tools"}), context=1250)
                placed = router.choose(ask, names)
                placed.first_token()
                live.append(placed)
                if len(live) > 100:
                    live.pop(0).end(250, 384)
            best = min(best, (time.process_time() - began) / (rounds // 5) * 1e6)
        out.append(f"{rule:10s}{best:6.1f} us a request, all its bookkeeping in (best of 5)")
    out.append(f"block keys of 1,000 tokens {hashing:5.1f} us")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed and shorter runs")
    quick = parser.parse_args().quick
    seeds = (11,) if quick else (11, 12, 13, 14, 15)
    seconds = 300.0 if quick else 900.0
    print(f"median of seeds {seeds}, {seconds:.0f} simulated seconds; goals: TTFT {TTFT_GOAL} s, {STEP_GOAL} s a token")
    for question in (two_lines, money, affinity, fleets, slowdown):
        for answer in question(seeds, seconds):
            print(answer, flush=True)
    for answer in weights(seeds):
        print(answer, flush=True)
    for line in hot_path():
        print(line)


if __name__ == "__main__":
    main()
