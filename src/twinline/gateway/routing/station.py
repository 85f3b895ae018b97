"""The gateway's book of one line: what is on it now, and what its own answers have shown of it.

Owns the learnt speeds, the queue as the gateway sees it, faults, the trust in its cache. Must not know other lines or
the rule of choice. The attributes without underscore are kept ready for the choice, which reads them for every line
of every request; they change when a request is sent, gives its first token or ends, and at `refresh`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import exp
from typing import TYPE_CHECKING, Any

from twinline.gateway.routing.ask import Traits
from twinline.gateway.routing.fit import Fit

if TYPE_CHECKING:
    from twinline.gateway.routing.placement import Placement

PREFILL_KNEE = 100.0  # tokens whose prefill takes as long as the fixed part, until it is learnt
STEP_KNEE = 50.0  # streams whose added step time equals the fixed part, until it is learnt
UNKNOWN_SLOTS = 32  # that a line without declared slots is taken to share its fixed step time among
PREFILL_WEIGHT = 4.0  # gateways.md 8.2: a second of prefill holds up others, one of decoding does not
PREFILL_DELAY = 2.0  # of `fastest`: what those behind wait longer, for a second of prefill on a line half busy
READING = 0.01  # of `fastest`: a second within the goal between tokens against one before the first
MOST_BUSY = 0.9
BUSY_SECONDS = 20.0  # time constant of the busy share of prefill
FAULT_SECONDS = 7200.0  # time constant of the fault rate
FAULT_PRIOR_SECONDS = 3600.0  # watching time that the declared failure rate is worth
RISKY = 1e-4  # faults per second, one in three hours: below, the loss is far under the cost of the work
ONE_FAULT_SECONDS = 1.0  # streams that break within it break for one reason
OVERDUE, OVERDUE_SECONDS = 2.0, 0.5  # a first token is overdue after twice the time expected, and so long at least
GAP_STEP = 0.05
STALL_SECONDS, STALL_GAPS = 1.5, 20.0  # gateways.md 7.4


class Station:
    """One line. `price` is per second, set by the router, which knows what the other lines cost."""

    __slots__ = (
        "_balance", "_balance_at", "_busy", "_busy_at", "_elsewhere_decoding", "_elsewhere_prefill", "_exposure",
        "_fault_at", "_faults", "_gap", "_refreshed", "_shares", "_waiting", "asked", "base", "bit", "cached_seen",
        "clock", "context", "credit", "decode_work", "decoding", "features", "free_at", "hazard", "head_at",
        "head_seconds", "heard", "inflight", "input_price", "late_step", "looked", "mean_output", "name",
        "output_price", "overdue", "prefill", "prefill_delay", "prefill_work", "price", "prompt_seen", "queue",
        "ramp_until", "rank", "risky", "seconds_per_token", "slot_seconds", "slots", "step", "step_cost", "step_goal",
        "tpot", "traits", "trust", "ttft_fixed", "weight",
    )  # fmt: skip

    def __init__(self, traits: Traits, clock: Callable[[], float]) -> None:
        now = clock()
        self.clock = clock
        self.prefill = Fit(PREFILL_KNEE / traits.prefill_tokens_per_second, 1 / traits.prefill_tokens_per_second,
                           PREFILL_KNEE)  # fmt: skip
        self.step = Fit(traits.step_seconds, traits.step_seconds / STEP_KNEE, STEP_KNEE)
        self.bit = 0  # in the prefix index
        self.rank = 0  # in the order of `prefer`
        self.credit = 0.0  # of weighted round robin
        self.price = 1.0
        self.step_goal = 0.1  # seconds per output token; set by the router, as the price is
        self.ramp_until = now
        self.asked = 0  # requests sent here, ever
        self.heard = now  # when it last taught anything
        self.looked = float("inf")  # when this process last looked after it, if it does so all the time
        self.queue = 0.0  # prefill tokens sent and not answered by a first token
        self.inflight = 0  # requests sent and not ended
        self.decoding = 0  # of these, with a first token
        self.mean_output = 200.0  # tokens
        self.trust = 1.0  # share of the tokens that the index holds it to have cached that it has
        self.prompt_seen = self.cached_seen = 0  # prompt tokens of ended requests, and how many were cached
        self.free_at = float("-inf")  # when prefill last became free for the next request: a first token, or a slot
        self.head_at = now  # when the prefill now under way began
        self.head_seconds = 0.0  # how long it is predicted to take; 0: none is under way
        self.overdue = 1.0  # how much longer than predicted the oldest request has waited for its first token
        self._waiting: deque[Placement] = deque()
        self._balance, self._balance_at = 0.0, now  # decoding streams, integrated over time
        self._shares = 0.0  # a stream's share of the decode steps, 1 / decoding, integrated over the same time
        self._busy, self._busy_at = 0.0, now  # share of the time in which prefill was under way
        self._elsewhere_prefill, self._elsewhere_decoding = 0.0, 0
        self._faults, self._exposure = 0.0, 0.0
        self._fault_at = float("-inf")
        self._gap = 0.0
        self._refreshed = now
        self.declare(traits)

    def declare(self, traits: Traits) -> None:
        """New traits of the same line; what was learnt stays."""
        self.traits = traits
        self.name = traits.name
        self.features = traits.features
        self.context = traits.context if traits.context is not None else 1 << 62
        self.slots = traits.slots if traits.slots is not None else 1 << 30
        self.weight = traits.weight
        self.input_price = traits.price_per_million_input / 1e6
        self.output_price = traits.price_per_million_output / 1e6
        self.refresh(self.clock())

    # A request's life, called by its Placement. Written out in full rather than in small calls: this is the hot path.

    def sent(self, placement: Placement, now: float) -> None:
        if self.queue <= self._elsewhere_prefill:
            self._turn(now, 0.0)
        self.queue += placement.prefill_tokens
        self.inflight += 1
        self.asked += 1
        waiting = self._waiting
        waiting.append(placement)
        if len(waiting) == 1:
            self._head(now)
        self._rebase()

    def answered(self, placement: Placement, now: float) -> float:
        """A first token came. Returns the seconds of its prefill: prompts are served one after another, so it began
        when it was sent, or when the one before gave its first token, or when a slot became free."""
        began = placement.chosen_at
        if self.free_at > began:
            began = self.free_at
        self.free_at = now
        self._release(placement.prefill_tokens, now)
        self._pass(now)
        self.decoding += 1
        return now - began

    def ended(self, now: float) -> None:
        """One that had its first token is over."""
        self.inflight -= 1
        self._pass(now)
        if self.decoding >= self.slots:
            self.free_at = now
        self.decoding -= 1
        self.derive()

    def withdrawn(self, placement: Placement, now: float) -> None:
        """One that had no first token is over."""
        self.inflight -= 1
        self._release(placement.prefill_tokens, now)
        self._rebase()

    def _release(self, prefill_tokens: float, now: float) -> None:
        queue = self.queue - prefill_tokens
        if queue <= self._elsewhere_prefill + 0.5:
            queue = self._elsewhere_prefill
            self._turn(now, 1.0)
        self.queue = queue
        waiting = self._waiting
        while waiting and not waiting[0].waits:
            waiting.popleft()
        self._head(now)

    def _head(self, now: float) -> None:
        """The oldest that waits is the one whose prefill is under way."""
        if self._waiting:
            head = self._waiting[0]
            self.head_at = head.chosen_at if head.chosen_at > self.free_at else self.free_at
            self.head_seconds = head.prefill_tokens * self.seconds_per_token
        else:
            self.head_seconds = 0.0

    def _pass(self, now: float) -> None:
        """Until now as many decoded as do."""
        self._balance, self._shares, self._balance_at = self.balance(now), self.shares(now), now

    def balance(self, now: float) -> float:
        """Decoding streams integrated over time; its growth over a span is the mean load in it."""
        return self._balance + self.decoding * (now - self._balance_at)

    def shares(self, now: float) -> float:
        """A stream's share of the decode steps integrated over time: its growth over a span, summed over the streams
        of that span, is the time in which any decoded."""
        return self._shares + (now - self._balance_at) / max(1, self.decoding)

    def learn_prefill(self, tokens: float, seconds: float, now: float) -> None:
        """Takes effect with the next `derive`."""
        self.heard = now
        self.prefill.learn(tokens, seconds)

    def learn_step(self, load: float, seconds: float, now: float) -> None:
        """Seconds per output token while `load` streams decoded on average, that one among them. Takes effect with the
        next `derive`."""
        self.heard = now
        self.step.learn(load, seconds)

    def learn_output(self, tokens: int) -> None:
        self.mean_output += 0.03 * (tokens - self.mean_output)

    def learn_cached(self, predicted: float, cached: int, prompt: int) -> None:
        """What a line reported as cached against what the index held it to have, in tokens."""
        self.prompt_seen += prompt
        self.cached_seen += cached
        if predicted > 0:
            share = cached / predicted
            self.trust += 0.1 * ((share if share < 1.0 else 1.0) - self.trust)

    def stood_still(self, now: float) -> bool:
        """Whether we do, or our machine did: when tokens come tells nothing of the line then."""
        return now - self.looked > STALL_SECONDS

    def fault(self, now: float) -> None:
        """The line broke: many streams at once count as one fault."""
        if now - self._fault_at > ONE_FAULT_SECONDS:
            self._faults += 1.0
            self.refresh(now)
        self._fault_at = now

    # What the gateway may tell.

    def saw_gap(self, longest_seconds: float, arrivals: int) -> None:
        """The longest gap between two arrivals of one stream that had so many: once, at its end.

        Follows the 99th percentile of single gaps: the longest of k exceeds it with probability 1 - 0.99^k, so the
        estimate goes up when it is exceeded and down when it is not, in that proportion.
        """
        if arrivals <= 0 or longest_seconds <= 0:
            return
        if not self._gap:
            self._gap = longest_seconds
            return
        exceeded = 1.0 if longest_seconds > self._gap else 0.0
        self._gap *= exp(4 * GAP_STEP * (exceeded - (1.0 - 0.99**arrivals)))

    def seen_elsewhere(self, prefill_tokens: float, decoding: int) -> None:
        """What other gateway processes have on this line now: it counts as load, and is not ours to release."""
        now = self.clock()
        self.queue += prefill_tokens - self._elsewhere_prefill
        self.inflight += decoding - self._elsewhere_decoding
        self._elsewhere_prefill = prefill_tokens
        self._pass(now)
        self.decoding += decoding - self._elsewhere_decoding
        self._elsewhere_decoding = decoding
        self.derive()

    # What is read from it.

    @property
    def p99_gap_seconds(self) -> float | None:
        return self._gap or None

    @property
    def waiting(self) -> bool:
        """Whether a request of ours waits for its first token."""
        return bool(self._waiting)

    @property
    def stall_seconds(self) -> float:
        """A stream without any token for so long has stalled (gateways.md 7.4)."""
        gap = self._gap or 3 * self.step.at(self.decoding + 1)
        return max(STALL_SECONDS, STALL_GAPS * gap)

    @property
    def busy(self) -> float:
        """Share of the last time in which prefill was under way."""
        return self._busy

    def ttft(self, prefill_tokens: float) -> float:
        """Predicted seconds to the first token of a request sent now."""
        done = min(self.clock() - self.head_at, self.head_seconds)
        return self.base + prefill_tokens * self.seconds_per_token - done

    def refresh(self, now: float) -> None:
        """Brings up to date what changes by mere time: busy share, fault rate, a first token overdue."""
        self._turn(now, 1.0 if self.queue > self._elsewhere_prefill else 0.0)
        fade = exp((self._refreshed - now) / FAULT_SECONDS)
        self._faults *= fade
        self._exposure = self._exposure * fade + now - self._refreshed
        self._refreshed = now
        declared = self.traits.failures_per_hour / 3600
        self.hazard = (declared * FAULT_PRIOR_SECONDS + self._faults) / (FAULT_PRIOR_SECONDS + self._exposure)
        self.risky = self.hazard > RISKY
        self.overdue = 1.0
        if self._waiting:
            self._head(now)
            took = now - self.head_at
            expected = self.prefill.at(self._waiting[0].prefill_tokens)
            if took > OVERDUE * expected and took > OVERDUE_SECONDS and self.decoding < self.slots:
                self.overdue = took / expected
        self.derive()

    def snapshot(self) -> dict[str, Any]:
        """For /api/lines and the metrics. Seconds and tokens; speeds are per second."""
        return {
            "line": self.traits.name,
            "predicted_ttft_seconds": self.ttft(512),
            "predicted_tpot_seconds": self.tpot,
            "prefill_tokens_per_second": 1 / self.seconds_per_token,
            "first_token_fixed_seconds": self.ttft_fixed,
            "step_fixed_seconds": self.step.fixed,
            "step_seconds_per_stream": self.step.slope,
            "prefill_queue_tokens": self.queue,
            "decoding": self.decoding,
            "inflight": self.inflight,
            "slots": self.traits.slots,
            "requests": self.asked,
            "answers_learnt": self.step.seen,
            "prefill_busy_share": self._busy,
            "cached_token_share": self.cached_seen / self.prompt_seen if self.prompt_seen else None,
            "cache_trust": self.trust,
            "faults_per_hour": self.hazard * 3600,
            "p99_gap_seconds": self.p99_gap_seconds,
            "stall_seconds": self.stall_seconds,
            "price_per_hour": self.traits.price_per_hour,
        }

    def _turn(self, now: float, was: float) -> None:
        """Until now prefill was under way (1) or not (0)."""
        span = now - self._busy_at
        if span > 0:
            # 1 - exp(-x) would be exact; x/(1+x) weighs long spans less and is a third of the time
            self._busy += (was - self._busy) * (span / (span + BUSY_SECONDS))
            self._busy_at = now

    def derive(self) -> None:
        """Makes ready what the choice reads, from what was learnt and what is on the line."""
        prefill, step = self.prefill, self.step
        overdue = self.overdue
        fixed, slope = step.fixed, step.slope
        streams = self.decoding + 1
        slots = self.slots
        self.seconds_per_token = per_token = prefill.slope * overdue
        self.ttft_fixed = prefill.fixed * overdue
        self.tpot = fixed + slope * streams
        beyond = self.tpot - 0.9 * self.step_goal
        # with what the other streams lose by one more
        self.step_cost = READING * (self.tpot + slope * self.decoding) + (beyond if beyond > 0.0 else 0.0)
        if slots < 1 << 30:
            self.slot_seconds = self.mean_output * (fixed + slope * slots) / slots
            share = slots / 4
        else:
            self.slot_seconds = 0.0
            share = UNKNOWN_SLOTS / 4
        price = self.price
        busy = self._busy
        busy = busy if busy < MOST_BUSY else MOST_BUSY
        # A line paid by the token is taken to charge what it has cached little or nothing.
        self.prefill_work = PREFILL_WEIGHT * price * per_token / (1.0 - busy) + self.input_price
        self.prefill_delay = PREFILL_DELAY * per_token * busy / (1.0 - busy)
        self.decode_work = price * (slope + fixed / (streams if streams > share else share)) + self.output_price
        self.late_step = self.late_at(self.tpot)
        self._rebase()

    def late_at(self, step_seconds: float) -> float:
        """gateways.md 8.2: a step time within nine tenths of the goal never counts as late, above it always."""
        late = step_seconds / self.step_goal
        return late * (0.6 / 0.9) if late <= 0.9 else late * 1.5

    def _rebase(self) -> None:
        """Seconds to the first token of a request of no tokens: the queue, and others' ends where no slot is free."""
        base = self.ttft_fixed + self.queue * self.seconds_per_token
        beyond = self.inflight - self.slots + 1
        self.base = base + beyond * self.slot_seconds if beyond > 0 else base
