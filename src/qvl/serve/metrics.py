"""What /metrics shows, under the names of vLLM's board, so that it fills without a change.

Labels come from closed sets alone: no prompt, no key, no name of a picture.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from qvl.serve.admission import Admission
from qvl.types import Completion

SECONDS = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 300)
TOKENS = tuple(2**power for power in range(18))


@runtime_checkable
class HasCache(Protocol):
    """A model that says how much of its cache is held: our own does, a remote one does not."""

    @property
    def cache_usage(self) -> float: ...

    @property
    def preemptions(self) -> int: ...


class Metrics:
    def __init__(self, model: object, model_name: str, admission: Admission) -> None:
        self._registry = CollectorRegistry()
        self.model_name = model_name
        self._gauge("num_requests_running", "Answers being computed").set_function(
            lambda: admission.running
        )
        self._gauge("num_requests_waiting", "Requests that wait").set_function(
            lambda: admission.waiting
        )
        if isinstance(model, HasCache):
            self._gauge("kv_cache_usage_perc", "Share of the cache in use").set_function(
                lambda: model.cache_usage
            )
            self._gauge("num_preemptions_total", "Requests begun again").set_function(
                lambda: model.preemptions
            )
        self._cache_queries = self._counter("prefix_cache_queries", "Tokens of prompts")
        self._cache_hits = self._counter("prefix_cache_hits", "Of these, computed before")
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts")
        self._new_tokens = self._counter("generation_tokens", "Tokens of answers")
        self._finished = Counter(
            "vllm:request_success",
            "Answers that ended, by why",
            ("model_name", "finished_reason"),
            registry=self._registry,
        )
        self._guards = Counter(
            "qvl:guard", "Answers that a guard stopped", ("kind",), registry=self._registry
        )
        self.between_tokens_s = self._histogram("inter_token_latency_seconds", SECONDS)
        self._first_token_s = self._histogram("time_to_first_token_seconds", SECONDS)
        self._token_s = self._histogram("request_time_per_output_token_seconds", SECONDS)
        self._total_s = self._histogram("e2e_request_latency_seconds", SECONDS)
        self._queue_s = self._histogram("request_queue_time_seconds", SECONDS)
        self._prefill_s = self._histogram("request_prefill_time_seconds", SECONDS)
        self._decode_s = self._histogram("request_decode_time_seconds", SECONDS)
        self._prompt_length = self._histogram("request_prompt_tokens", TOKENS)
        self._length = self._histogram("request_generation_tokens", TOKENS)

    def finished(self, completion: Completion, waited_s: float) -> None:
        """Count an answer that is whole, for which its request waited so long."""
        usage, timings = completion.usage, completion.timings
        decode_s = timings.total_s - timings.first_token_s
        self._finished.labels(self.model_name, completion.finish_reason).inc()
        if completion.finish_reason in ("loop", "reasoning"):
            self._guards.labels(completion.finish_reason).inc()
        self._prompt_tokens.inc(usage.prompt_tokens)
        self._cache_queries.inc(usage.prompt_tokens)
        self._cache_hits.inc(usage.cached_tokens)
        self._new_tokens.inc(usage.completion_tokens)
        self._prompt_length.observe(usage.prompt_tokens)
        self._length.observe(usage.completion_tokens)
        self._queue_s.observe(waited_s)
        self._prefill_s.observe(timings.first_token_s)
        self._decode_s.observe(decode_s)
        self._first_token_s.observe(waited_s + timings.first_token_s)
        self._total_s.observe(waited_s + timings.total_s)
        self._token_s.observe(decode_s / max(1, usage.completion_tokens - 1))

    def page(self) -> bytes:
        return generate_latest(self._registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        gauge = Gauge(f"vllm:{name}", text, ("model_name",), registry=self._registry)
        return gauge.labels(self.model_name)

    def _counter(self, name: str, text: str) -> Counter:
        counter = Counter(f"vllm:{name}", text, ("model_name",), registry=self._registry)
        return counter.labels(self.model_name)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(
            f"vllm:{name}",
            name.replace("_", " "),
            ("model_name",),
            registry=self._registry,
            buckets=buckets,
        )
        return histogram.labels(self.model_name)
