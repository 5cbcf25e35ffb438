"""The metrics of several processes as those of one."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.parser import text_string_to_metric_families

from trireme.service.histogram import LabelledHistogram
from trireme.service.scrapes import Shown, Totals, shown


def process(requests: int, running: int, workers: int, seconds: list[float]) -> Shown:
    registry = CollectorRegistry()
    Counter("requests", "Asked.", ["route"], registry=registry).labels("/a").inc(requests)
    Gauge("running", "Now.", registry=registry).set(running)
    Gauge("workers", "Known.", registry=registry).set(workers)
    times = LabelledHistogram("took", "Seconds.", "model", (0.1, 1), registry)
    for value in seconds:
        times.labels("m").observe(value)
    return shown(registry)


def read(text: bytes) -> dict[str, float]:
    return {
        sample.name + "".join(f" {k}={v}" for k, v in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_counters_and_histograms_add_up_and_gauges_as_they_are_meant() -> None:
    totals = Totals({"running"})
    found = read(totals.text([process(3, 2, 5, [0.05, 0.5]), process(4, 1, 4, [7.0])]))
    assert found == {
        "requests_total route=/a": 7,
        "running": 3,
        "workers": 5,
        "took_bucket le=0.1 model=m": 1,
        "took_bucket le=1.0 model=m": 2,
        "took_bucket le=+Inf model=m": 3,
        "took_count model=m": 3,
        "took_sum model=m": 7.55,
    }


def test_what_a_process_that_is_gone_has_counted_stays_and_its_gauges_go() -> None:
    totals = Totals({"running"})
    totals.retire(process(3, 2, 9, [0.05]))
    totals.retire(process(1, 1, 9, []))
    found = read(totals.text([process(4, 1, 4, [])]))
    assert found["requests_total route=/a"] == 8
    assert (found["running"], found["workers"]) == (1, 4)
    assert found["took_count model=m"] == 1
    assert read(totals.text([]))["requests_total route=/a"] == 4
