"""A Prometheus histogram for what happens with every token: one list of counts, no locks.

prometheus_client's own takes a lock and a method call for each bucket and sum, which adds up when
thousands of tokens a second are observed by one event loop. `observe` is for that one thread;
a scrape from another one may see an observation half done.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Series:
    """The histogram of one label value."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `times` observations of a value."""
        self.counts[bisect_left(self._bounds, value)] += times
        self.total += value * times


class LabelledHistogram(Collector):
    """A histogram with one label.

    Args:
        buckets: upper bounds, rising; above the last one comes infinity.
    """

    def __init__(
        self,
        name: str,
        text: str,
        label: str,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._text = text
        self._label = label
        self._bounds = tuple(map(float, buckets))
        self._series: dict[str, Series] = {}
        registry.register(self)

    def labels(self, value: str) -> Series:
        """The series of a label value; the same object each time."""
        found = self._series.get(value)
        if found is None:
            found = self._series[value] = Series(self._bounds)
        return found

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=[self._label])
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        for value, series in list(self._series.items()):
            below, buckets = 0, []
            for bound, count in zip(bounds, series.counts, strict=True):
                below += count
                buckets.append((bound, below))
            family.add_metric([value], buckets, series.total)
        yield family
