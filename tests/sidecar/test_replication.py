"""What is said of replicas, while one cannot be reached and else.

client --> mailkeep serve --> sink
                 |
                 v
            directory, which is away at times
"""

from __future__ import annotations

import os
import re
import smtplib
import time
from pathlib import Path

import pytest

from sidecar.config import Config
from sidecar.demo.ports import wait_until
from sidecar.replication import Replication
from store.replicas.ship import Shipped, Shipper
from store.store import Store
from tests.store.conftest import put_message
from tests.support.lmtp_sink import LmtpSink
from tests.support.service import Service
from tests.support.sink_thread import SinkThread


def lag(service: Service) -> float:
    return service.metrics()['replica_lag_bytes{replica="1"}']


def send(service: Service, size: int) -> None:
    with smtplib.LMTP("127.0.0.1", service.port) as client:
        client.sendmail(
            "b@example.com", ["anna@example.org"], b"Subject: x\r\n\r\n" + os.urandom(size).hex().encode()
        )


def packs(service: Service) -> int:
    return sum(path.stat().st_size for path in service.store.glob("streams/*/*.pack"))


def test_only_replicas_that_are_configured_are_told_of(tmp_path: Path) -> None:
    replica = {"url": f"file://{tmp_path}/replica", "interval": "100ms"}
    for sections, numbers in ({}, set()), ({"[replica]": replica}, {"1"}):
        with (
            SinkThread(LmtpSink()) as sink,
            Service(tmp_path, lmtp={"downstream": sink.address}, **sections) as service,
        ):
            found = [re.search(r'replica="(.*?)"', series) for series in service.metrics()]
            assert {label[1] for label in found if label} == numbers


def test_what_is_not_known_to_be_there_is_lag_while_nobody_can_be_asked(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    replica = {"url": f"file://{mount}/replica", "interval": "100ms"}
    with SinkThread(LmtpSink()) as sink:
        service = Service(tmp_path, lmtp={"downstream": sink.address}, **{"[replica]": replica})
        with Store.open(service.store, create=True) as store:
            store.start_writing("host")
            put_message(store, b"Subject: before\r\n\r\n" + os.urandom(50_000))
            store.writer.roll()
        with service:
            assert wait_until(lambda: lag(service) >= 50_000, timeout_s=60), service.tail()
            send(service, 20_000)
            assert wait_until(lambda: lag(service) == packs(service) > 70_000, timeout_s=60), service.tail()
            mount.mkdir()
            assert wait_until(lambda: lag(service) == 0, timeout_s=60), service.tail()
            since = time.time()
            assert wait_until(
                lambda: service.metrics()['replica_last_success_timestamp_seconds{replica="1"}'] > since,
                timeout_s=60,
            )
        mount.rename(tmp_path / "away")
        with service:  # what was there when it could be asked last is
            assert wait_until(
                lambda: service.metrics()['replica_failures_total{replica="1"}'] > 0, timeout_s=60
            )
            assert lag(service) == 0
            send(service, 20_000)
            assert wait_until(lambda: 20_000 < lag(service) < 50_000, timeout_s=60), service.tail()


def failures(service: Service) -> float:
    return service.metrics()['replica_failures_total{replica="1"}']


def shipped(service: Service, since: float) -> bool:
    success = service.metrics()['replica_last_success_timestamp_seconds{replica="1"}']
    return success > since and lag(service) == 0


def test_a_directory_that_is_away_is_not_made_anew(tmp_path: Path) -> None:
    """Moved away while it is shipped to, then an empty one in its place, then also after a restart."""
    directory, away = tmp_path / "nas", tmp_path / "away"
    replica = {"url": f"file://{directory}", "interval": "100ms"}
    with SinkThread(LmtpSink()) as sink:
        service = Service(tmp_path, lmtp={"downstream": sink.address}, **{"[replica]": replica})
        with service:
            send(service, 2_000)
            since = time.time()
            assert wait_until(lambda: shipped(service, since), timeout_s=60), service.tail()
            directory.rename(away)
            before = failures(service)
            send(service, 2_000)
            assert wait_until(lambda: failures(service) > before and lag(service) > 2_000, timeout_s=60)
            assert not directory.exists()
            directory.mkdir()
            before = failures(service)
            assert wait_until(lambda: failures(service) > before, timeout_s=60), service.tail()
            assert list(directory.iterdir()) == []
            directory.rmdir()
            away.rename(directory)
            since = time.time()
            assert wait_until(lambda: shipped(service, since), timeout_s=90), service.tail()
        directory.rename(away)
        with service:
            assert wait_until(lambda: failures(service) > 0, timeout_s=60), service.tail()
            assert not directory.exists()
            away.rename(directory)
            send(service, 2_000)
            since = time.time()
            assert wait_until(lambda: shipped(service, since), timeout_s=90), service.tail()
        done = service.command("check", "--replica", f"file://{directory}", "--read-data")
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_comes_while_a_round_is_under_way_is_not_said_to_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config.parse(
        f'[store]\npath = "{tmp_path}/store"\nstream = "host"\n[lmtp]\n'
        f'[[replica]]\nurl = "file://{tmp_path}/replica"\n',
        "x",
    )
    round_, came = Shipper.round, []

    def with_mail_behind_it(self: Shipper) -> Shipped:
        shipped = round_(self)
        came.append(time.time())
        put_message(store, b"Subject: after it has looked\r\n\r\n")
        return shipped

    monkeypatch.setattr(Shipper, "round", with_mail_behind_it)
    with Store.open(tmp_path / "store", create=True) as store:
        store.start_writing("host")
        running = Replication(config, config.replica[0], store)
        began = time.time()
        running._try()
        assert began <= running.last_success < came[0]
