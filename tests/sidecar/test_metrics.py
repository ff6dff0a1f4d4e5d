"""Every metric is declared once, is there from the start, and counts what it says."""

from __future__ import annotations

import math
import re
import sys
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.metrics import LEGS, TABLE, Metrics, names
from store.records import Leg


def scrape(metrics: Metrics) -> dict[str, float]:
    """Series as Prometheus would store them, by `name{label=value,...}` without the prefix."""
    series = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = ",".join(f"{label}={value}" for label, value in sorted(sample.labels.items()))
            series[sample.name.removeprefix("mailkeep_") + (f"{{{labels}}}" if labels else "")] = sample.value
    return series


def test_every_series_is_there_from_the_start() -> None:
    series = scrape(Metrics("1.2.3"))
    assert series["build_info{version=1.2.3}"] == 1
    for line in (
        "captured_messages_total{leg=lmtp}",
        "captured_messages_total{leg=milter}",
        "outcomes_total{class=4xx,source=mailkeep}",
        "capture_failures_total{leg=milter,reason=full}",
        "commit_seconds_count",
        "commit_seconds_bucket{le=+Inf}",
        "last_commit_timestamp_seconds",
        "in_flight_messages{leg=lmtp}",
    ):
        assert series[line] == 0, line
    assert series["process_resident_memory_bytes"] > 0
    assert not [name for name in series if "_created" in name]


def test_names_and_help_follow_the_rules() -> None:
    families = {
        family.name: family for family in text_string_to_metric_families(Metrics("0").render().decode())
    }
    for spec, name in zip(TABLE, names(), strict=True):
        assert name == f"mailkeep_{spec.name}"
        family = families[name.removesuffix("_total")]
        assert family.type == spec.kind
        assert family.documentation == spec.help
        assert spec.help.endswith("."), name
        assert (spec.kind == "counter") == name.endswith("_total")
        assert re.fullmatch("[a-z_]+", name)
        assert bool(spec.bounds) == (spec.kind == "histogram")
        assert list(spec.bounds) == sorted(spec.bounds)
    assert len(set(names())) == len(TABLE)


def test_the_legs_are_the_stores() -> None:
    assert set(LEGS) == set(Leg) - {Leg.IMPORT}


def test_a_message_that_is_captured_and_answered() -> None:
    metrics = Metrics("0")
    metrics.connection_opened("lmtp")
    metrics.message_begun(Leg.LMTP)
    assert metrics.value("in_flight_messages", "lmtp") == 1
    metrics.message_captured(Leg.LMTP, size=4000, new_bytes=1500, duplicate_bytes=2500)
    metrics.message_answered(
        [(250, "downstream"), (452, "downstream"), (550, "downstream")], downstream_s=0.004
    )
    metrics.message_ended(Leg.LMTP)
    metrics.connection_closed("lmtp")
    series = scrape(metrics)
    assert series["captured_messages_total{leg=lmtp}"] == 1
    assert series["captured_messages_total{leg=milter}"] == 0
    assert series["received_bytes_total{leg=lmtp}"] == 4000
    assert series["stored_new_bytes_total"] == 1500
    assert series["stored_duplicate_bytes_total"] == 2500
    assert series["delivered_messages_total"] == 1
    assert series["outcomes_total{class=2xx,source=downstream}"] == 1
    assert series["outcomes_total{class=4xx,source=downstream}"] == 1
    assert series["outcomes_total{class=5xx,source=downstream}"] == 1
    assert series["downstream_seconds_count"] == 1
    assert series["downstream_seconds_sum"] == 0.004
    assert series["in_flight_messages{leg=lmtp}"] == 0
    assert series["connections{leg=lmtp}"] == 0


def test_only_the_mailbox_servers_2xx_is_a_delivery() -> None:
    metrics = Metrics("0")
    metrics.message_answered([(250, "earlier"), (451, "mailkeep")])
    metrics.message_answered([(354, "downstream")], downstream_s=1)
    series = scrape(metrics)
    assert series["delivered_messages_total"] == 0
    assert series["outcomes_total{class=2xx,source=earlier}"] == 1
    assert series["outcomes_total{class=4xx,source=mailkeep}"] == 1
    assert series["outcomes_total{class=4xx,source=downstream}"] == 1, (
        "354 is no final reply and counts as 4xx"
    )
    assert series["downstream_seconds_count"] == 1


def test_failures_retries_and_mail_without_a_copy() -> None:
    metrics = Metrics("0")
    metrics.capture_failed("milter", "timeout")
    metrics.capture_failed("lmtp", "a reason nobody has listed")
    metrics.message_uncaptured("lmtp", 100)
    metrics.retries_suppressed(2)
    metrics.redelivered_unknown(3)
    assert metrics.value("capture_failures_total", "milter", "timeout") == 1
    assert metrics.value("capture_failures_total", "lmtp", "internal") == 1
    assert metrics.value("uncaptured_messages_total", "lmtp") == 1
    assert metrics.value("received_bytes_total", "lmtp") == 100
    assert metrics.value("captured_messages_total", "lmtp") == 0
    assert metrics.value("retries_suppressed_total") == 2
    assert metrics.value("redelivered_unknown_total") == 3


def test_group_commits_fill_their_buckets() -> None:
    metrics = Metrics("0")
    for messages, seconds in ((1, 0.0005), (3, 0.0006), (300, 1000)):
        metrics.group_committed(messages, seconds, written_bytes=10)
    series = scrape(metrics)
    assert series["written_bytes_total"] == 30
    assert series["commit_seconds_bucket{le=0.0005}"] == 1, "a bound belongs to its bucket"
    assert series["commit_seconds_bucket{le=0.001}"] == 2
    assert series["commit_seconds_bucket{le=300.0}"] == 2
    assert series["commit_seconds_bucket{le=+Inf}"] == series["commit_seconds_count"] == 3
    assert series["commit_group_messages_bucket{le=2.0}"] == 1
    assert series["commit_group_messages_bucket{le=4.0}"] == 2
    assert series["commit_group_messages_sum"] == 304
    assert series["last_commit_timestamp_seconds"] > 1_700_000_000


def test_gauges_are_read_at_each_scrape_and_one_that_fails_is_nan() -> None:
    metrics = Metrics("0")
    sizes = iter([10.0, 20.0])
    metrics.watch("store_bytes", lambda: next(sizes))

    def fails() -> float:
        raise OSError("no disk")

    metrics.watch("store_free_bytes", fails)
    first, second = scrape(metrics), scrape(metrics)
    assert (first["store_bytes"], second["store_bytes"]) == (10, 20)
    assert math.isnan(first["store_free_bytes"])
    assert first["captured_messages_total{leg=lmtp}"] == 0
    with pytest.raises(ValueError, match="no metric nonsense"):
        metrics.watch("nonsense", lambda: 0)


def test_no_count_is_lost_between_threads() -> None:
    metrics = Metrics("0")

    def count() -> None:
        for _ in range(2000):
            metrics.message_captured("lmtp", 1, 1, 0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert metrics.value("captured_messages_total", "lmtp") == 8000


def test_two_instances_share_nothing() -> None:
    one, other = Metrics("0"), Metrics("0")
    one.retries_suppressed(1)
    assert other.value("retries_suppressed_total") == 0
