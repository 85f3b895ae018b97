"""Who asks what, and when."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

from benchmarks.routing.lines import OUTPUT, Kind, Request

from twinline.gateway.routing.keys import ENDS


def keys_of(session: int, system: int, system_tokens: int, prompt: int) -> list[int]:
    """As `block_keys` would give for a prompt that begins with a shared system prompt."""
    return [hash((system, end) if end <= system_tokens else (system, -1 - session, end)) for end in
            ENDS[: next(i for i, end in enumerate(ENDS) if end > prompt)]]  # fmt: skip


def capacity(kinds: Sequence[Kind], prompt: float = 1500) -> float:
    """Requests per second that the fleet could take, as the earlier study counted it."""
    return sum(k.count / (prompt / k.prefill + OUTPUT * (k.a + k.b * k.slots * 0.6) / 1e3 / (k.slots * 0.6))
               for k in kinds)  # fmt: skip


def true_capacity(kinds: Sequence[Kind], prompt: float) -> float:
    """Requests per second at which the lines' prefill, or their decode with all slots taken, is always busy."""
    total = 0.0
    for k in kinds:
        prefill = prompt / k.prefill
        decode = k.slots / (k.a + k.b * k.slots) * 1e3
        total += k.count * min(1 / prefill, decode / (OUTPUT + 0.4 * prefill * decode))
    return total


def output_of(rng: random.Random) -> int:
    return max(8, int(rng.lognormvariate(math.log(OUTPUT) - 0.32, 0.8)))


def mixed(kinds: Sequence[Kind], load: float, seed: int, seconds: float) -> list[Request]:
    """Sessions of about four turns under twenty system prompts; 6 % of the turns bring a long document."""
    rng = random.Random(seed)
    systems = [rng.randrange(300, 3000) for _ in range(20)]
    return sorted(sessions(rng, load * capacity(kinds) / 4, seconds, systems, 3.5, 20, 0.06), key=lambda r: r.at)


def conversations(seed: int, seconds: float, rate: float) -> list[Request]:
    """Long conversations that share nothing."""
    rng = random.Random(seed)
    return sorted(sessions(rng, rate, seconds, [], 14, 40, 0.0), key=lambda r: r.at)


def sessions(
    rng: random.Random, rate: float, seconds: float, systems: list[int], turns: float, most: int, documents: float
) -> Iterator[Request]:
    start, session = 0.0, 0
    while start < seconds:
        start += rng.expovariate(rate)
        session += 1
        system = min(int(rng.expovariate(0.25)), 19) if systems else -1
        system_tokens = systems[system] if systems else 0
        at, history = start, system_tokens
        for _ in range(1 + min(int(rng.expovariate(1 / turns)), most)):
            said = rng.randrange(4000, 12000) if rng.random() < documents else rng.randrange(30, 400)
            prompt, output = history + said, output_of(rng)
            yield Request(at, session, system, system_tokens, prompt, output,
                          keys_of(session, system, system_tokens, prompt))  # fmt: skip
            history = prompt + output
            at += rng.expovariate(1 / 20) + output * 0.03 + 1


def singles(kinds: Sequence[Kind], load: float, seed: int, seconds: float) -> list[Request]:
    """Independent requests of 100 to 3,000 tokens."""
    rng = random.Random(seed)
    rate = load * true_capacity(kinds, 800)
    at, requests = 0.0, []
    while at < seconds:
        at += rng.expovariate(rate)
        prompt = min(3000, max(100, int(rng.lognormvariate(math.log(800) - 0.32, 0.8))))
        requests.append(Request(at, len(requests), -1, 0, prompt, output_of(rng), ()))
    return requests
