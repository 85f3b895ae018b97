"""What the engine must reach on a CPU, each as one line: met, not met, or not measured, with the ratio.

Owns the bars. A ratio to a peer is the median of the ratios of the rounds; the peer is the best of those measured in
this run. What a peer gave on another day stands beside for orientation only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.cpu.contenders import OURS, PEERS
from benchmarks.cpu.results import Figure, Key, Summary, paired
from benchmarks.cpu.shapes import SHAPES, read_of_one_token

Results = Mapping[Key, Summary]
QWEN, SPEED = "qwen-1.5b", "tokens_per_second"


@dataclass(frozen=True)
class Verdict:
    """`value` is what was reached, None where that was not measured, and `bound` what is asked; `basis` says against
    whom, and in figures."""

    bar: str
    value: float | None
    bound: float
    at_least: bool
    basis: str

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def read_bytes(model: str, bits: float) -> float:
    """Bytes that one decoded token of one user reads, where a matrix's value takes `bits`."""
    return read_of_one_token(SHAPES[model]).bytes(bits)


def ours(results: Results, model: str, precision: str, scenario: str, who: tuple[str, ...] = OURS) -> Summary | None:
    """Our engine's, else our server's."""
    return next((s for c in who if (s := results.get((model, precision, scenario, c))) is not None), None)


def best_peer(
    results: Results, model: str, precision: str, scenario: str, name: str, highest: bool = True,
    among: tuple[str, ...] = PEERS,
) -> tuple[str, Summary] | None:  # fmt: skip
    """The peer of the best median. None where none was measured."""
    found = [
        (figure.median, peer, summary)
        for peer in among
        if (summary := results.get((model, precision, scenario, peer))) and (figure := summary.figure(name))
    ]
    if not found:
        return None
    _, peer, summary = (max if highest else min)(found, key=lambda one: one[0])
    return peer, summary


def _says(figure: Figure | None, unit: str = "") -> str:
    return (
        "-" if figure is None else f"{figure.median:.3g}{unit} ({figure.least:.3g}-{figure.most:.3g}, n {figure.count})"
    )


def against_peer(
    results: Results, bar: str, model: str, precision: str, scenario: str, bound: float, once: float | None = None,
    name: str = SPEED, among: tuple[str, ...] = PEERS,
) -> Verdict:  # fmt: skip
    """A figure of which more is better, as a multiple of the best peer's."""
    mine, peer = (
        ours(results, model, precision, scenario),
        best_peer(results, model, precision, scenario, name, among=among),
    )
    if mine is None or peer is None or (ratio := paired(mine, peer[1], name)) is None:
        return Verdict(bar, None, bound, True, "no figures of both sides")
    basis = f"{_says(mine.figure(name))} beside {peer[0]} {_says(peer[1].figure(name))}"
    return Verdict(bar, ratio.median, bound, True, basis + (f"; a peer's best before: {once:g}" if once else ""))


def gap(results: Results, precision: str, users: int) -> Verdict:
    """The 99th percentile of times between tokens, of which less is better; our server's, where it was measured."""
    scenario, bar = f"decode {users}", f"{precision}, {users} users: p99 between tokens no worse than the best peer's"
    mine = ours(results, QWEN, precision, scenario, ("serve", "native"))
    peer = best_peer(results, QWEN, precision, scenario, "gap_p99", highest=False)
    if mine is None or peer is None or (ratio := paired(mine, peer[1], "gap_p99")) is None:
        return Verdict(bar, None, 1.0, False, "no figures of both sides")
    basis = f"{_says(mine.figure('gap_p99'), ' s')} beside {peer[0]} {_says(peer[1].figure('gap_p99'), ' s')}"
    return Verdict(bar, ratio.median, 1.0, False, basis)


def number(
    results: Results, bar: str, key: Key, name: str, bound: float, at_least: bool, scale: float = 1.0
) -> Verdict:
    """A figure of our own against a fixed number."""
    summary = results.get(key)
    figure = summary.figure(name) if summary else None
    if figure is None:
        return Verdict(bar, None, bound, at_least, "not run")
    return Verdict(bar, figure.median / scale, bound, at_least, f"{key[3]} {_says(figure)}")


def share(results: Results, precision: str, bound: float) -> Verdict:
    """Bytes read a second by the weights of one user's tokens, over the bandwidth measured beside them."""
    bar = f"{precision}, 1 user: share of the read bandwidth"
    mine = ours(results, QWEN, precision, "decode 1")
    found = mine and mine.share(SPEED, read_bytes(QWEN, mine.bits))
    if not mine or not found:
        return Verdict(bar, None, bound, True, "not run")
    return Verdict(bar, found.median, bound, True, f"{_says(mine.figure(SPEED))} at {mine.read / 1e9:.1f} GB/s")


def memory(results: Results, precision: str) -> Verdict:
    """The largest peak of all runs over packed weights and the cache that was asked for."""
    bar = f"{precision}: peak resident memory over packed weights and KV"
    mine = {s: r for (m, p, s, c), r in results.items() if (m, p, c) == (QWEN, precision, "native")}
    peaks = [f.most for r in mine.values() if (f := r.figure("peak_bytes"))]
    cache = next((r.facts["cache_bytes"] for s in mine.values() for r in s.records if "cache_bytes" in r.facts), None)
    if not peaks or cache is None:
        return Verdict(bar, None, 1.2, False, "not run")
    read, config = read_of_one_token(SHAPES[QWEN]), SHAPES[QWEN]
    embedding = config["vocab_size"] * config["hidden_size"] * 2
    wanted = read.bytes(next(iter(mine.values())).bits) + embedding + cache
    return Verdict(bar, max(peaks) / wanted, 1.2, False, f"{max(peaks) / 1e9:.2f} of {wanted / 1e9:.2f} GB")


def scaling(results: Results, precision: str) -> Verdict:
    """Speed-up from one thread to all, over the bandwidth's own."""
    bar = f"{precision}: speed-up by threads over the bandwidth's (within 10%)"
    one = results.get((QWEN, precision, "decode 1, 1 thread", "native"))
    all_threads = results.get((QWEN, precision, "decode 1", "native"))
    a, b = (s.figure(SPEED) if s else None for s in (one, all_threads))
    if not (one and all_threads and a and b and one.read and all_threads.read):
        return Verdict(bar, None, 0.9, True, "not run")
    speed, read = b.median / a.median, all_threads.read / one.read
    return Verdict(bar, speed / read, 0.9, True, f"{speed:.2f}x beside {read:.2f}x of bandwidth")


def guessing(results: Results, precision: str) -> Verdict:
    """One user's tokens with guesses over those without, of text that goes in circles."""
    bar = f"{precision}, 1 user: n-gram speculation over plain decoding, text that repeats"
    with_them, plain = (
        results.get(("qwen-1.5b-circles", precision, name, "native")) for name in ("decode 1, n-gram", "decode 1")
    )
    a, b = (s.figure(SPEED) if s else None for s in (with_them, plain))
    if not (a and b):
        return Verdict(bar, None, 1.5, True, "not run")
    return Verdict(bar, a.median / b.median, 1.5, True, f"{_says(a)} beside {_says(b)}")


def verdicts(results: Results) -> Iterator[Verdict]:
    """Every bar, in the order of the issue."""
    llama = ("llama.cpp", "llama-server")
    for precision, bound in (("bfloat16", 0.90), ("int8", 0.85), ("int4", 0.80)):
        yield share(results, precision, bound)
    for precision, bound, once in (("bfloat16", 1.0, 9.6), ("int8", 1.15, 14.5), ("int4", 1.0, 29.7)):
        bar = f"{precision}, 1 user: beside llama.cpp"
        yield against_peer(results, bar, QWEN, precision, "decode 1", bound, once, among=llama)
    mine, theirs = (ours(results, QWEN, "int4", "decode 1", who) for who in (OURS, llama))
    yield Verdict(
        "int4: bits a weight, at most llama.cpp's", mine.bits if mine and theirs else None,
        theirs.bits if theirs else 4.5, False, "scales included",
    )  # fmt: skip
    for precision in ("bfloat16", "int8", "int4"):
        yield guessing(results, precision)
    for precision, eight, many in (("bfloat16", (1.3, 53), (1.2, 92)), ("int8", (1.4, 67), (1.6, 103)),
                                   ("int4", (1.3, 75), (1.4, 111))):  # fmt: skip
        for users, (bound, once) in ((8, eight), (32, many)):
            bar = f"{precision}, {users} users: beside the best peer"
            yield against_peer(results, bar, QWEN, precision, f"decode {users}", bound, once)
            yield gap(results, precision, users)
    for precision, bound, once in (("bfloat16", 1.0, 146), ("int8", 1.6, 160), ("int4", 1.3, 148)):
        for tokens in (512, 4096):
            bar = f"{precision}, prefill of {tokens:,}: beside the best peer"
            yield against_peer(
                results, bar, QWEN, precision, f"prefill {tokens}", bound, once if tokens == 512 else None
            )
    for precision in ("bfloat16", "int8", "int4"):
        bar = f"{precision}: first token while 8 others decode, times as late as alone"
        yield number(results, bar, (QWEN, precision, "beside", "native"), "slower", 2.0, False)
    for precision in ("bfloat16", "int8", "int4"):
        bar = f"{precision}: start of the 1.5B shape to its first token, seconds"
        yield number(results, bar, (QWEN, precision, "start", "serve"), "seconds", 6.0, False)
        yield memory(results, precision)
    for users, bound, once in ((1, 1.1, 92), (8, 1.5, 171), (32, 1.5, 297)):
        bar = f"small V3 shape, bfloat16, {users} users: beside llama.cpp"
        yield against_peer(results, bar, "v3-small", "bfloat16", f"decode {users}", bound, once, among=llama)
    for precision in ("int8", "int4"):
        for users, bound in ((1, 1.1), (8, 1.5), (32, 1.5)):
            bar = f"V2-Lite's layers, {precision}, {users} users: beside llama.cpp"
            yield against_peer(results, bar, "v2-lite-5", precision, f"decode {users}", bound, among=llama)
    yield number(
        results, "tiny-r1: tokens a second, 1 user", ("tiny-r1", "float32", "decode 1", "native"), SPEED, 1000, True
    )
    bar = "tiny-r1: start to first token, seconds"
    yield number(results, bar, ("tiny-r1", "float32", "start", "serve"), "seconds", 3.0, False)
    for precision in ("bfloat16", "int8", "int4"):
        yield scaling(results, precision)
