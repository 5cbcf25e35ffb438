"""The controller's Prometheus series. No label holds what a client can choose freely."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client import Counter as CounterSeries
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from controller.feed import FleetFeed
from controller.registry import Outcome, Registry
from protocol.fleet import Wire


class ControllerMetrics:
    """Counters that routes raise; what is known elsewhere is read at each scrape.

    Attributes:
        collected: what `/metrics` shows.
        records: counts worker records and FastChat registrations by (wire, outcome); a plain
            mapping, as each heartbeat counts.
        expirations: workers whose lease ran out.
        dispatches: answers of `/get_worker_address` and relays, by whether a worker was found.
        relays: relayed streams, by how they ended.
    """

    def __init__(self, registry: Registry, feed: FleetFeed, gateways: Callable[[], int]) -> None:
        self.collected = CollectorRegistry()
        self.records: Counter[tuple[Wire, Outcome]] = Counter()
        self.expirations = CounterSeries(
            "trireme_controller_expirations",
            "Workers dropped because their lease ran out.",
            registry=self.collected,
        )
        self.dispatches = CounterSeries(
            "trireme_controller_dispatches",
            "Choices of a worker on the FastChat wire.",
            ["found"],
            registry=self.collected,
        )
        self.relays = CounterSeries(
            "trireme_controller_relays",
            "Streams relayed to a worker, by how they ended.",
            ["outcome"],
            registry=self.collected,
        )
        self.collected.register(_Known(registry, feed, gateways, self.records))


class _Known(Collector):
    def __init__(
        self,
        registry: Registry,
        feed: FleetFeed,
        gateways: Callable[[], int],
        records: Mapping[tuple[Wire, Outcome], int],
    ) -> None:
        self._registry = registry
        self._feed = feed
        self._gateways = gateways
        self._records = records

    def collect(self) -> Iterator[Metric]:
        records = CounterMetricFamily(
            "trireme_controller_records",
            "Worker records received, by outcome.",
            labels=["wire", "outcome"],
        )
        for key, count in sorted(self._records.items()):
            records.add_metric(list(key), count)
        yield records
        entries = self._registry.entries
        workers = GaugeMetricFamily(
            "trireme_controller_workers", "Live workers.", labels=["wire", "state"]
        )
        counted = Counter((entry.record.wire, entry.record.state) for entry in entries)
        for labels, count in sorted(counted.items()):
            workers.add_metric(list(labels), count)
        yield workers
        warming = not self._registry.complete
        models = {model.name for entry in self._registry.ready() for model in entry.record.models}
        for name, text, value in (
            ("models", "Models that a ready worker serves.", len(models)),
            (
                "held_workers",
                "Workers past their lease, kept because most of a model fell silent at once.",
                self._registry.held,
            ),
            (
                "warming",
                "1 until a started controller knows its fleet.",
                warming,
            ),
            ("gateways", "Gateways that follow the fleet.", self._gateways()),
            ("polls_waiting", "Gateways that wait for a change.", self._feed.waiting),
            ("fleet_version", "Grows with every change of the fleet.", self._registry.version),
        ):
            yield GaugeMetricFamily(f"trireme_controller_{name}", text, value=float(value))
