"""The gateway's Prometheus series. Labels hold routes, models of the fleet and codes only."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Iterable, Mapping
from typing import Final, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.breaker import BreakerState
from gateway.fleet_view import Snapshot
from protocol.fleet import WorkerState
from trireme.service.histogram import LabelledHistogram, Series

_FAST: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SLOW: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_BREAKER_VALUES: Final[Mapping[str, int]] = {"closed": 0, "half_open": 1, "open": 2}

UNKNOWN_MODEL: Final = "unknown"


class GatewayMetrics:
    """One registry an app.

    Attributes:
        registry: what /metrics shows.
        running: generation requests that are being served; the answers count themselves.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "trireme_gateway_requests",
            "Requests answered, by route, model, HTTP status (499: the client was gone) and the "
            "error's code, of a broken stream too.",
            ["route", "model", "status", "code"],
            registry=self.registry,
        )
        self._retries = Counter(
            "trireme_gateway_retries",
            "Requests that another worker was asked for before their first token, by why.",
            ["model", "reason"],
            registry=self.registry,
        )
        self._resumed = Counter(
            "trireme_gateway_resumed",
            "Answers that another worker was asked to go on with, by why.",
            ["model", "reason"],
            registry=self.registry,
        )
        self._lost = Counter(
            "trireme_gateway_broken_streams",
            "Streams that ended in an error event after their status was sent.",
            ["model", "code"],
            registry=self.registry,
        )
        self._limited = Counter(
            "trireme_gateway_rate_limited",
            "Requests refused for their caller's limits, by limit (size: it could never fit).",
            ["limit"],
            registry=self.registry,
        )
        self._unwritten = Counter(
            "trireme_gateway_usage_rows_dropped",
            "Rows of the usage ledger that could not be written.",
            registry=self.registry,
        )
        self.running = 0
        Gauge(
            "trireme_gateway_requests_in_flight",
            "Generation requests that are being served.",
            registry=self.registry,
        ).set_function(lambda: self.running)
        self._ttft = LabelledHistogram(
            "trireme_gateway_time_to_first_token_seconds",
            "From arrival to the first text of a streamed answer.",
            "model",
            _FAST,
            self.registry,
        )
        self._itl = LabelledHistogram(
            "trireme_gateway_inter_token_latency_seconds",
            "Between two deltas of a streamed answer.",
            "model",
            (0.001, 0.0025, *_FAST),
            self.registry,
        )
        self._e2e = LabelledHistogram(
            "trireme_gateway_e2e_request_latency_seconds",
            "From arrival to the last byte.",
            "model",
            _SLOW,
            self.registry,
        )
        self._keys_file = _KeysFileCollector()
        self.registry.register(self._keys_file)
        self._finished: dict[tuple[str, str, int, str], Counter] = {}

    def finished(self, route: str, model: str, status: int, code: str, seconds: float) -> None:
        key = (route, model, status, code)
        if (counter := self._finished.get(key)) is None:
            counter = self._finished[key] = self._requests.labels(route, model, str(status), code)
        counter.inc()
        if model != UNKNOWN_MODEL:
            self._e2e.labels(model).observe(seconds)

    def retried(self, model: str, reason: str, *, resumed: bool = False) -> None:
        (self._resumed if resumed else self._retries).labels(model, reason).inc()

    def broke(self, model: str, code: str) -> None:
        self._lost.labels(model, code).inc()

    def limited(self, limit: str) -> None:
        self._limited.labels(limit).inc()

    def unwritten(self, rows: int) -> None:
        self._unwritten.inc(rows)

    def tokens(self, model: str, arrived_s: float) -> TokenTimes:
        return TokenTimes(self._ttft.labels(model), self._itl.labels(model), arrived_s)

    def keys_file(self, ok: bool) -> None:
        """Whether the keys in use are those of the keys file."""
        self._keys_file.ok = ok

    def show_fleet(
        self,
        snapshot: Callable[[], Snapshot],
        models: Callable[[], Iterable[str]],
        breakers: Callable[[], Mapping[str, BreakerState]],
        drifts: Callable[[], Mapping[str, int]],
    ) -> None:
        """Series that are read off the fleet at the time of the scrape.

        Args:
            models: names of those that were served a while ago too.
        """
        self.registry.register(_FleetCollector(snapshot, models, breakers, drifts))


class TokenTimes:
    """Observes the times of one answer's deltas; times are `perf_counter` seconds."""

    def __init__(self, first: Series, between: Series, arrived_s: float) -> None:
        self._first = first
        self._between = between
        self._last_s = arrived_s
        self._begun = False

    def deltas(self, count: int, now_s: float) -> None:
        """So many came together: they share the time since the last ones."""
        if self._begun:
            self._between.observe((now_s - self._last_s) / count, count)
        else:
            self._first.observe(now_s - self._last_s)
            self._between.observe(0.0, count - 1)
        self._begun, self._last_s = True, now_s


class _KeysFileCollector(Collector):
    """Shows a value once there is one: without a keys file there is none."""

    def __init__(self) -> None:
        self.ok: bool | None = None

    def collect(self) -> Iterable[GaugeMetricFamily]:
        yield GaugeMetricFamily(
            "trireme_gateway_keys_file_ok",
            "1 while the keys in use are those of the keys file, 0 while it cannot be read; "
            "shown with a keys file only.",
            value=None if self.ok is None else int(self.ok),
        )


class _FleetCollector(Collector):
    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        models: Callable[[], Iterable[str]],
        breakers: Callable[[], Mapping[str, BreakerState]],
        drifts: Callable[[], Mapping[str, int]],
    ) -> None:
        self._snapshot = snapshot
        self._models = models
        self._breakers = breakers
        self._drifts = drifts

    def collect(self) -> Iterable[GaugeMetricFamily]:
        snapshot = self._snapshot()
        workers = GaugeMetricFamily(
            "trireme_gateway_fleet_workers", "Workers known, by state.", labels=["state"]
        )
        states = [worker.state for worker in snapshot.workers.values()]
        for state in get_args(WorkerState):
            workers.add_metric([state], states.count(state))
        yield workers
        served = GaugeMetricFamily(
            "trireme_gateway_model_workers",
            "Workers of a model, by state; of one that was served in the last five minutes too.",
            labels=["model", "state"],
        )
        counts = Counts(
            (model.name, worker.state)
            for worker in snapshot.workers.values()
            for model in worker.models
        )
        for model in sorted({*self._models(), *(name for name, _ in counts)}):
            for state in get_args(WorkerState):
                served.add_metric([model, state], counts[model, state])
        yield served
        yield GaugeMetricFamily(
            "trireme_gateway_fleet_stale",
            "1 while no controller is reachable.",
            value=int(snapshot.stale),
        )
        breakers = GaugeMetricFamily(
            "trireme_gateway_worker_breaker_state",
            "0 closed, 1 half-open, 2 open.",
            labels=["worker"],
        )
        for instance_id, state in self._breakers().items():
            breakers.add_metric([instance_id], _BREAKER_VALUES[state])
        yield breakers
        drifts = GaugeMetricFamily(
            "trireme_gateway_in_flight_drift",
            "Requests of this gateway that a worker counts beyond those that there are; below 0: "
            "that it does not know of.",
            labels=["worker"],
        )
        for instance_id, drift in self._drifts().items():
            drifts.add_metric([instance_id], drift)
        yield drifts
