"""What does the server tell Prometheus about itself?

vLLM's names and buckets where it has the quantity, with the prefix `inferlab:`, so that a dashboard
needs only another prefix. Gauges are the engine's state after its last step; times are taken where
a step ended, before anything is sent.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "inferlab:"
TTFT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
          10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
ITL_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0,
         2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)  # fmt: skip
E2E_S = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
         240.0, 480.0, 960.0, 1920.0, 7680.0)  # fmt: skip


class ServerMetrics:
    """Counters of one server in a registry of its own; `stats` gives the engine's."""

    def __init__(self, model: str, stats: Callable[[], Any]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineState(model, stats))

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            family = Histogram(
                PREFIX + name, text, ["model_name"], registry=self._registry, buckets=buckets
            )
            return family.labels(model)

        def counter(name: str, text: str, label: str) -> Counter:
            return Counter(PREFIX + name, text, ["model_name", label], registry=self._registry)

        self._model = model
        self._ttft = histogram("time_to_first_token_seconds", "Arrival to first token.", TTFT_S)
        self._itl = histogram("inter_token_latency_seconds", "Gap between two tokens.", ITL_S)
        self._e2e = histogram("e2e_request_latency_seconds", "Arrival to last token.", E2E_S)
        self._success = counter("request_success", "Answered requests.", "finished_reason")
        self._refused = counter("request_refused", "Refused requests.", "status")
        self._gone = Counter(
            f"{PREFIX}request_disconnected", "Clients that hung up.", ["model_name"],
            registry=self._registry,
        ).labels(model)  # fmt: skip

    def token(self, stream: Any, now_s: float, reason: str | None) -> None:
        """One token of `stream` came out of the step that ended at `now_s`."""
        if stream.last_s is None:
            self._ttft.observe(now_s - stream.arrived_s)
        else:
            self._itl.observe(now_s - stream.last_s)
        if reason is not None:
            self.finished(stream, now_s, reason)

    def finished(self, stream: Any, now_s: float, reason: str) -> None:
        """The answer of `stream` is complete."""
        if stream.counted:  # it met a stop string, and its last token: one of them came first
            return
        stream.counted = True
        self._e2e.observe(now_s - stream.arrived_s)
        self._success.labels(self._model, reason).inc()

    def refused(self, status: int) -> None:
        """A request was answered with an error."""
        self._refused.labels(self._model, str(status)).inc()

    def disconnected(self) -> None:
        """A client hung up before its answer was complete."""
        self._gone.inc()

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self._registry)


class _EngineState:
    """The engine's own counts, read when asked for."""

    def __init__(self, model: str, stats: Callable[[], Any]) -> None:
        self._model, self._stats = model, stats

    def collect(self) -> Iterator[Metric]:
        now = self._stats()
        used = 1 - now.num_free_blocks / now.num_blocks
        for name, text, value in (
            ("num_requests_running", "Requests in the batch.", now.num_running),
            ("num_requests_waiting", "Requests that wait to enter.", now.num_waiting),
            ("kv_cache_usage_perc", "Share of blocks in use; 1 is all.", used),
        ):
            yield self._family(GaugeMetricFamily, name, text, value)
        for name, text, value in (
            ("num_preemptions", "Requests that lost their blocks.", now.num_preempted),
            ("engine_steps", "Steps of the engine.", now.num_steps),
            ("prompt_tokens", "Prompt tokens.", now.prompt_tokens),
            ("prefix_cache_hits", "Prompt tokens found in the cache.", now.cached_tokens),
            ("generation_tokens", "Output tokens.", now.output_tokens),
        ):
            yield self._family(CounterMetricFamily, name, text, value)

    def _family(self, kind: type, name: str, text: str, value: float) -> Metric:
        family = kind(PREFIX + name, text, labels=["model_name"])
        family.add_metric([self._model], value)
        return family
