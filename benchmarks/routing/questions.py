"""What is asked of the router, each figure against its bound."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.routing.choosers import (
    AtRandom,
    Chooser,
    FirstTokenOracle,
    PlainRoundRobin,
    RoundRobin,
    WholeOracle,
    ours,
)
from benchmarks.routing.lines import FLEET_EQUAL, FLEET_PRICED, FLEET_TWO, FLEETS, Kind, Request
from benchmarks.routing.simulation import TTFT_GOAL, Outcome, simulate
from benchmarks.routing.traffic import conversations, mixed, singles

from twinline.gateway.routing import Ask, Policy, Router, Traits


@dataclass(frozen=True)
class Answer:
    """One figure against its bound."""

    what: str
    value: float
    bound: float
    at_least: bool = True
    unit: str = ""

    @property
    def holds(self) -> bool:
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        verdict = "holds" if self.holds else "DOES NOT HOLD"
        return f"{self.what:84s}{self.value:9.3g}{self.unit:3s} {sign} {self.bound:6.3g}{self.unit:3s} {verdict}"


def runs(
    kinds: Sequence[Kind], traffic: Callable[[int], list[Request]], chooser: type[Chooser], seeds: Sequence[int]
) -> list[Outcome]:
    return [simulate(kinds, traffic(seed), chooser, seed) for seed in seeds]


def middle(outcomes: Sequence[Outcome], figure: Callable[[Outcome], float]) -> float:
    return median(figure(outcome) for outcome in outcomes)


def p95(outcome: Outcome) -> float:
    return outcome.ttft(0.95)


def two_lines(seeds: Sequence[int], seconds: float) -> list[Answer]:
    """Lines of 157 and 40 tokens/s at 80 % of what both can do."""

    def late(chooser: type[Chooser]) -> float:
        return middle(runs(FLEET_TWO, lambda seed: singles(FLEET_TWO, 0.8, seed, seconds), chooser, seeds), p95)

    mine, turns = late(ours(rule="fastest")), late(RoundRobin)
    oracle = min(late(FirstTokenOracle), late(WholeOracle))
    return [
        Answer(
            f"two lines: TTFT p95 {mine:.2f} s, weighted round robin {turns:.2f} s: ratio", mine / turns, 0.7, False
        ),
        Answer(f"two lines: TTFT p95 {mine:.2f} s, oracle {oracle:.2f} s: ratio", mine / oracle, 1.3, False),
    ]


def money(seeds: Sequence[int], seconds: float, load: float = 0.4) -> list[Answer]:
    """Two dear lines and six cheap ones. A line costs its price while it has any request."""

    def run(chooser: type[Chooser]) -> tuple[float, float]:
        outcomes = runs(FLEET_PRICED, lambda seed: singles(FLEET_PRICED, load, seed, seconds), chooser, seeds)
        return middle(outcomes, lambda o: o.money), middle(outcomes, lambda o: o.attained)

    cost, attained = run(ours())
    answers = []
    peers = {"round robin": PlainRoundRobin, "weighted round robin": RoundRobin, "fastest": ours(rule="fastest")}
    for name, chooser in peers.items():
        peer_cost, peer_attained = run(chooser)
        saved = 100 * (1 - cost / peer_cost)
        answers += [
            Answer(f"cheapest at load {load}: cost saved against {name}", saved, 20, unit="%"),
            Answer(
                f"cheapest at load {load}: goals met, above {name}'s", 100 * (attained - peer_attained), -0.1, unit="pt"
            ),
        ]
    return answers


def weights(seeds: Sequence[int], count: int = 10_000) -> list[Answer]:
    wanted = {"fast0": 60.0, "mid0": 25.0, "mid1": 10.0, "slow0": 5.0}
    worst = 0.0
    for seed in seeds:
        router = Router(Policy(rule="weighted", weights=wanted), lambda: 0.0, seed)
        for name in wanted:
            router.add(Traits(name))
        placed = (router.choose(Ask(100, (), 100), tuple(wanted)) for _ in range(count))
        shares = Counter(p.line for p in placed if p is not None)
        worst = max(worst, *(abs(100 * shares[name] / count - wanted[name]) for name in wanted))
    return [Answer(f"weighted: greatest distance from the weights over {count} requests", worst, 2, False, "pt")]


def affinity(seeds: Sequence[int], seconds: float) -> list[Answer]:
    """Long conversations on sixteen equal lines."""

    def traffic(seed: int) -> list[Request]:
        return conversations(seed, min(seconds, 300.0), 1.6)

    def rate(chooser: type[Chooser]) -> float:
        return 100 * middle(runs(FLEET_EQUAL, traffic, chooser, seeds), lambda o: o.hit_rate)

    return [
        Answer("prefix hits, lines drawn at random", rate(AtRandom), 20, False, "%"),
        Answer("prefix hits, cheapest without block keys", rate(ours(affinity=False)), 20, False, "%"),
        Answer("prefix hits, cheapest", rate(ours()), 80, unit="%"),
        Answer("prefix hits, fastest", rate(ours(rule="fastest")), 80, unit="%"),
    ]


def fleet(name: str, load: float, bound: float, seeds: Sequence[int], seconds: float) -> list[Answer]:
    kinds = FLEETS[name]
    outcomes = runs(kinds, lambda seed: mixed(kinds, load, seed, seconds), ours(), seeds)
    late, hits = middle(outcomes, lambda o: o.ttft(0.99)), middle(outcomes, lambda o: o.hit_rate)
    attained = 100 * middle(outcomes, lambda o: o.attained)
    starved = sum(o.starved for o in outcomes)
    title = f"fleet {name} at load {load}:"
    return [
        Answer(f"{title} goals met (TTFT p99 {late:.1f} s, hits {100 * hits:.0f} %)", attained, bound, unit="%"),
        Answer(f"{title} choices with a queue over {10 * TTFT_GOAL:.0f} s beside an idle line", starved, 0, False),
    ]


def fleets(seeds: Sequence[int], seconds: float) -> list[Answer]:
    return [answer for name in FLEETS for load, bound in ((0.5, 98), (0.8, 94), (1.0, 70))
            for answer in fleet(name, load, bound, seeds, seconds)]  # fmt: skip


def share_left(kinds: Sequence[Kind], victim: str, seed: int, seconds: float) -> float:
    """A line four times slower from the middle on: its share of the requests after its next twenty answers, against
    that before."""
    when = seconds / 2
    outcome = simulate(kinds, mixed(kinds, 0.5, seed, seconds), ours(), seed, (when, victim, 4.0))
    after = [at for at, line in outcome.answers if line == victim and at >= when]
    known = after[min(20, len(after)) - 1]

    def share(begin: float, end: float) -> float:
        chosen = [line for at, line in outcome.choices if begin <= at < end]
        return chosen.count(victim) / max(1, len(chosen))

    return share(known, seconds) / share(seconds * 0.2, when)


def slowdown(seeds: Sequence[int], seconds: float) -> list[Answer]:
    answers = []
    for name, victim in (("A", "mid0"), ("A", "fast0"), ("B", "slow3")):
        left = median(share_left(FLEETS[name], victim, seed, seconds) for seed in seeds)
        answers.append(
            Answer(f"fleet {name}: share of {victim} 20 answers after it slowed 4x, of before", left, 0.35, False)
        )
    return answers
