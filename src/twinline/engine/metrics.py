"""The engine's figures for Prometheus, with vLLM's names and meanings.

Owns names and buckets. Reads the engine, changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from twinline.engine.build import Built
from twinline.engine.request import Request
from twinline.engine.speculation import Fared

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    def __init__(self, model: str):
        self.registry = CollectorRegistry()
        self.model = model

        def histogram(name: str, text: str) -> Histogram:
            family = Histogram(name, text, ["model_name"], buckets=_SECONDS, registry=self.registry)
            return family.labels(model)

        self.first_token = histogram("vllm:time_to_first_token_seconds", "Arrival to first new token.")
        self.per_token = histogram("vllm:time_per_output_token_seconds", "Mean gap between a request's tokens.")
        self.whole = histogram("vllm:e2e_request_latency_seconds", "Arrival to end.")

    def observe(self, request: Request, now: float) -> None:
        """Books a request that ended."""
        self.whole.observe(now - request.arrived)
        new = len(request.output) - request.carried
        if request.first_token_at is not None:
            self.first_token.observe(request.first_token_at - request.arrived)
            if new > 1:
                self.per_token.observe((now - request.first_token_at) / (new - 1))

    def watch(self, built: Built) -> None:
        self.registry.register(_EngineCollector(built, self.model))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    def __init__(self, built: Built, model: str):
        self.built, self.model, self.started = built, model, time.time()

    def collect(self) -> Iterable[Metric]:
        engine, counters = self.built.engine, self.built.engine.counters
        pool = engine.pool

        def gauge(name: str, text: str, value: float) -> Metric:
            family = GaugeMetricFamily(name, text, labels=["model_name"])
            family.add_metric([self.model], value)
            return family

        def counter(name: str, text: str, value: float) -> Metric:
            family = CounterMetricFamily(name, text, labels=["model_name"])
            family.add_metric([self.model], value)
            return family

        yield gauge("vllm:num_requests_running", "Requests in the batch.", engine.scheduler.running)
        yield gauge("vllm:num_requests_waiting", "Requests waiting.", engine.scheduler.waiting)
        yield gauge("vllm:kv_cache_usage_perc", "Share of cache pages in use, 0 to 1.", 1 - pool.free / pool.count)
        yield counter("vllm:num_preemptions", "Requests sent back to waiting.", engine.scheduler.preemptions)
        yield counter("vllm:prompt_tokens", "Prompt tokens received.", counters.prompt_tokens)
        yield counter("vllm:generation_tokens", "Tokens generated.", counters.generated_tokens)
        yield counter("vllm:prefix_cache_queries", "Tokens looked up in the prefix cache.", pool.queried_tokens)
        yield counter("vllm:prefix_cache_hits", "Tokens found in the prefix cache.", pool.hit_tokens)
        yield from self._guesses()
        yield counter("twinline:engine_steps", "Passes through the model.", counters.steps)
        done = CounterMetricFamily("vllm:request_success", "Requests ended.", labels=["model_name", "finished_reason"])
        for reason, count in counters.finished.items():
            done.add_metric([self.model, reason], count)
        yield done

    def _guesses(self) -> Iterable[Metric]:
        """vLLM's counters of speculative decoding, with the source of the guesses as one label more."""
        speculation = self.built.engine.speculation
        fared = {"none": Fared()} if speculation is None else speculation.fared
        labels = ["model_name", "source"]
        drafts = CounterMetricFamily("vllm:spec_decode_num_drafts", "Steps of a request with a guess.", labels=labels)
        drafted = CounterMetricFamily("vllm:spec_decode_num_draft_tokens", "Tokens guessed.", labels=labels)
        accepted = CounterMetricFamily("vllm:spec_decode_num_accepted_tokens", "Guesses that held.", labels=labels)
        by_place = CounterMetricFamily("vllm:spec_decode_num_accepted_tokens_per_pos", "Guesses that held, by place.",
                                       labels=[*labels, "position"])  # fmt: skip
        for source, found in fared.items():
            drafts.add_metric([self.model, source], found.drafts)
            drafted.add_metric([self.model, source], found.draft_tokens)
            accepted.add_metric([self.model, source], found.accepted_tokens)
            for place, count in enumerate(tuple(found.by_place)):
                by_place.add_metric([self.model, source, str(place)], count)
        yield from (drafts, drafted, accepted, by_place)
        if speculation is not None and speculation.payoff is not None:
            family = CounterMetricFamily("twinline:spec_decode_given_up", "Times that guesses did not pay.",
                                         labels=["model_name"])  # fmt: skip
            family.add_metric([self.model], speculation.payoff.given_up)
            yield family
