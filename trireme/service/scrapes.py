"""Metrics of several processes as those of one. Pure.

What a process shows crosses to the others as plain lists (`Shown`). Counters and histograms add
up, over processes that are gone too, so that they never fall. Of a gauge only the living ones
count: it adds up where it is named in `summed`, and is the greatest where all see the same thing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, TypeAlias

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

Shown: TypeAlias = list[list[Any]]
"""Families: [name, help, type, [[sample name, {label: value}, value], …]]."""

_Labels: TypeAlias = tuple[tuple[str, str], ...]
_Samples: TypeAlias = dict[tuple[str, _Labels], float]

_ADD_UP = frozenset({"counter", "histogram"})


def shown(registry: CollectorRegistry) -> Shown:
    """What a registry has now."""
    return [
        [
            family.name,
            family.documentation,
            family.type,
            [[one.name, one.labels, one.value] for one in family.samples],
        ]
        for family in registry.collect()
    ]


class Totals:
    """Folds what processes show.

    Args:
        summed: names of gauges that add up.
    """

    def __init__(self, summed: Collection[str] = ()) -> None:
        self._summed = summed
        self._retired: Shown = []

    def retire(self, last: Shown) -> None:
        """A process is gone that showed this last; what adds up is kept."""
        lasting = [family for family in last if family[2] in _ADD_UP]
        self._retired = self._folded([self._retired, lasting])

    def text(self, living: Iterable[Shown]) -> bytes:
        """Prometheus' text format of all of them."""
        registry = CollectorRegistry()
        registry.register(_Fixed(self._folded([self._retired, *living])))
        return generate_latest(registry)

    def _folded(self, each: Iterable[Shown]) -> Shown:
        heads: dict[str, tuple[str, str]] = {}
        folded: dict[str, _Samples] = {}
        for families in each:
            for name, text, kind, samples in families:
                heads.setdefault(name, (text, kind))
                into = folded.setdefault(name, {})
                adds_up = kind in _ADD_UP or name in self._summed
                for sample, labels, value in samples:
                    key = (sample, tuple(labels.items()))
                    if key not in into:
                        into[key] = value
                    elif sample.endswith("_created"):
                        into[key] = min(into[key], value)
                    else:
                        into[key] = into[key] + value if adds_up else max(into[key], value)
        return [
            [name, *heads[name], [[s, dict(labels), v] for (s, labels), v in samples.items()]]
            for name, samples in folded.items()
        ]


class _Fixed(Collector):
    def __init__(self, families: Shown) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        for name, text, kind, samples in self._families:
            family = Metric(name, text, kind)
            for sample, labels, value in samples:
                family.add_sample(sample, labels, value)
            yield family
