"""The worker's Prometheus series: vLLM's names where it has one, `trireme_*` otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from protocol.fleet import WorkerState
from protocol.generation import FinishReason
from trireme.service.histogram import LabelledHistogram, Series
from worker.runtime import Runtime

_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_REQUEST_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class _EngineCollector(Collector):
    """Reads the engine's own counters when they are asked for."""

    def __init__(self, model: str, runtime: Runtime) -> None:
        self._model = model
        self._runtime = runtime

    def collect(self) -> Iterable[Metric]:
        load, ready = self._runtime.load(), self._runtime.ready
        queued = ready.admission.queued if ready else 0
        gauges = {
            "vllm:num_requests_running": ("Sequences in the running batch", load.running),
            "vllm:num_requests_waiting": ("Requests queued", load.waiting + queued),
            "vllm:kv_cache_usage_perc": (
                "Share of the KV cache in use, 1 is all",
                1 - load.kv_free,
            ),
            "trireme_prefill_tokens_per_second": ("Recent prefill rate", load.prefill_tps),
            "trireme_decode_tokens_per_second": ("Recent decode rate", load.decode_tps),
        }
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(name, text, labels=["model_name"])
            gauge.add_metric([self._model], value)
            yield gauge
        counters = {
            "vllm:num_preemptions": ("Sequences preempted", load.preemptions),
            "trireme_engine_out_of_memory": ("Steps that found no memory", load.out_of_memory),
            "vllm:spec_decode_num_draft_tokens": ("Tokens drafted", load.drafted_tokens),
            "vllm:spec_decode_num_accepted_tokens": (
                "Drafted tokens that were right",
                load.accepted_tokens,
            ),
            "trireme_engine_steps": ("Engine steps", load.step),
            "trireme_engine_restarts": ("Restarts of the engine", self._runtime.restarts),
        }
        for name, (text, value) in counters.items():
            counter = CounterMetricFamily(name, text, labels=["model_name"])
            counter.add_metric([self._model], value)
            yield counter
        states = GaugeMetricFamily(
            "trireme_worker_state", "1 for the state it is in", labels=["state"]
        )
        for state in get_args(WorkerState):
            states.add_metric([state], float(state == self._runtime.state))
        yield states


class _RegistrationCollector(Collector):
    def __init__(self, registered: Callable[[], Mapping[str, bool]]) -> None:
        self._registered = registered

    def collect(self) -> Iterable[Metric]:
        gauge = GaugeMetricFamily(
            "trireme_worker_registered",
            "1 while the controller of that address takes this worker's reports",
            labels=["controller"],
        )
        for controller, is_registered in self._registered().items():
            gauge.add_metric([controller], float(is_registered))
        yield gauge


class Metrics:
    """All series of one worker process.

    Args:
        model: the first of its served names: the only model label there is.
        runtime: read when the series are shown.
    """

    def __init__(self, model: str, runtime: Runtime) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(model, runtime))

        def counter(name: str, text: str) -> Counter:
            family = Counter(name, text, ["model_name"], registry=self.registry)
            return family.labels(model)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Series:
            family = LabelledHistogram(name, text, "model_name", buckets, self.registry)
            return family.labels(model)

        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens of admitted requests")
        self.generation_tokens = counter("vllm:generation_tokens", "Tokens generated")
        self.prefix_queries = counter(
            "vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache"
        )
        self.prefix_hits = counter(
            "vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache"
        )
        self.first_token_s = histogram(
            "vllm:time_to_first_token_seconds", "From arrival to the first token", _FIRST_TOKEN_S
        )
        self.inter_token_s = histogram(
            "vllm:inter_token_latency_seconds", "From one token of a choice to the next", _TOKEN_S
        )
        self.request_s = histogram(
            "vllm:e2e_request_latency_seconds", "From arrival to the last token", _REQUEST_S
        )
        self.queue_s = histogram(
            "vllm:request_queue_time_seconds",
            "Wait for a turn under --limit-worker-concurrency; 0 where the engine queues itself",
            _REQUEST_S,
        )
        self._success = Counter(
            "vllm:request_success",
            "Choices finished, by reason",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self._failures = Counter(
            "trireme_requests_failed", "Requests failed, by code", ["code"], registry=self.registry
        )
        self.cancelled = Counter(
            "trireme_requests_cancelled", "Requests that the caller left", registry=self.registry
        )
        self._success_by = {
            reason: self._success.labels(model, reason) for reason in get_args(FinishReason)
        }

    def show_registrations(self, registered: Callable[[], Mapping[str, bool]]) -> None:
        """By the configured address of each controller; read when the series are shown."""
        self.registry.register(_RegistrationCollector(registered))

    def finished(self, reason: FinishReason) -> None:
        """A choice finished."""
        self._success_by[reason].inc()

    def failed(self, code: str) -> None:
        """A request failed with a code of the taxonomy."""
        self._failures.labels(code).inc()
