"""What is run: scenarios for each model and width, how often, in which order.

Owns the plan alone; a plan is data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.cpu.contenders import CONTENDERS, EMBEDDED, runs
from benchmarks.cpu.shapes import CIRCLES

GUESSED = ("decode 1", "decode 1, n-gram")  # asked of text that can be guessed


@dataclass(frozen=True)
class Scenario:
    """`kind` and `arguments` are those of `scenarios.py`; `start` is the start of a process to its first token."""

    name: str
    kind: str
    arguments: tuple[tuple[str, int], ...] = ()
    rounds: int = 5
    threads: int = 0  # 0: all
    options: tuple[str, ...] = ()  # of our own engine, as `speculation=ngram`


def scenario_list(quick: bool, rounds: int) -> tuple[Scenario, ...]:
    """In full: 128 tokens of prompt and 128 new for each user. Quick: the same things, small, once."""
    prompt, new = (16, 12) if quick else (128, 128)
    users = (1, 2, 4) if quick else (1, 8, 32)
    long = (32, 128) if quick else (512, 4096)

    def decode(name: str, count: int, times: int, threads: int = 0, *options: str) -> Scenario:
        return Scenario(name, "decode", (("users", count), ("prompt", prompt), ("new", new)), times, threads, options)

    return (
        Scenario("start", "start", rounds=rounds),
        *(decode(f"decode {n}", n, rounds + 2 if n == 1 and rounds > 1 else rounds) for n in users),
        decode("decode 1, 1 thread", 1, rounds, 1),
        decode("decode 1, n-gram", 1, rounds, 0, "speculation=ngram"),
        *(Scenario(f"prefill {n}", "prefill", (("tokens", n),), rounds) for n in long),
        Scenario("beside", "beside", (("tokens", long[0]),), rounds),
    )


def takes_part(contender: str, model: str, precision: str, scenario: Scenario) -> bool:
    """Whether a figure is wanted: llama.cpp's tool has neither starts nor gaps, its server only these; one thread is
    asked of the engine alone, guesses of the text that can be guessed; of tiny-r1 one user and the start; of the latent
    shapes decoding."""
    if not runs(contender, model, precision):
        return False
    if model in CIRCLES:
        return contender == "native" and scenario.name in GUESSED
    if scenario.options:
        return False
    if model == EMBEDDED:
        return scenario.name in ("start", "decode 1")
    if model.startswith(("v3", "v2")):
        return scenario.kind == "decode" and not scenario.threads and contender in ("native", "llama.cpp")
    if contender == "llama.cpp":
        return scenario.kind in ("decode", "prefill") and not scenario.threads
    if contender == "llama-server" and scenario.kind == "prefill":
        return False
    if scenario.threads:
        return contender == "native"
    return not (contender == "serve" and scenario.kind == "prefill")


@dataclass(frozen=True)
class Turn:
    """One measurement to be made."""

    round: int
    contender: str
    model: str
    precision: str
    scenario: Scenario


def turns(
    models: Sequence[str], precisions: Sequence[str], contenders: Sequence[str], scenarios: Sequence[Scenario]
) -> Iterator[Turn]:
    """Scenario by scenario; within a round every contender once, in an order that moves on by one each round."""
    for model in models:
        for precision in precisions:
            for scenario in scenarios:
                taking = [c for c in CONTENDERS if c in contenders and takes_part(c, model, precision, scenario)]
                for number in range(scenario.rounds if taking else 0):
                    at = number % len(taking)
                    for contender in taking[at:] + taking[:at]:
                        yield Turn(number, contender, model, precision, scenario)
