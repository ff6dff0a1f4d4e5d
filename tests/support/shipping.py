"""Mail through `serve` that ships it to a bucket, and the proof that the bucket alone has all of it.

What is asked of every S3 service alike is here: `kept_objects`, `full_bucket` and `skewed_clock`.
"""

from __future__ import annotations

import base64
import os
import shutil
import smtplib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.demo.ports import wait_until
from store.check import check
from store.deliveries import Query
from store.findings import Checked
from store.replicas.errors import DiffersError
from store.replicas.fetch import Fetching
from store.replicas.probe import probe
from store.replicas.reader import Replica
from store.replicas.remote import Remote
from store.store import Store
from tests.support.service import Service


class Mail:
    """Sends mail, and knows all that was taken."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.taken: set[bytes] = set()

    def send(self, count: int, size: int = 2000) -> float:
        """So many messages with so many random bytes; how long it took, in seconds."""
        began = time.monotonic()
        with smtplib.LMTP("127.0.0.1", self._service.port) as client:
            for _ in range(count):
                text = base64.encodebytes(os.urandom(size)).replace(b"\n", b"\r\n")
                mail = b"Subject: %d\r\n\r\n%s" % (len(self.taken), text)
                client.sendmail("bert@example.com", ["anna@example.org"], mail)
                self.taken.add(mail)
        return time.monotonic() - began

    @contextmanager
    def flowing(self, size: int = 2000) -> Iterator[None]:
        """Mail all the while."""
        done = threading.Event()
        failed: list[Exception] = []

        def flow() -> None:
            try:
                while not done.wait(0.02):
                    self.send(5, size)
            except (OSError, smtplib.SMTPException) as exc:  # raised where it is waited for
                failed.append(exc)

        thread = threading.Thread(target=flow)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        if failed:
            raise failed[0]


def metric(service: Service, name: str) -> float:
    """Of the first replica."""
    return service.metrics()[f'replica_{name}{{replica="1"}}']


def caught_up(service: Service, since: float) -> bool:
    """Whether all was seen to be there after that time."""
    return metric(service, "last_success_timestamp_seconds") > since and metric(service, "lag_bytes") == 0


def catches_up(service: Service, timeout_s: float = 60) -> bool:
    since = time.time()
    return wait_until(lambda: caught_up(service, since), timeout_s=timeout_s)


def restored(remote: Remote, where: Path) -> list[bytes]:
    """All mail of a store that is made of the bucket alone, checked."""
    shutil.rmtree(where, ignore_errors=True)
    fetched = Fetching(Replica(remote), where).run()
    assert fetched.faults == []
    with Store.open(where) as store:
        assert store.damage == []
        assert list(check(store, Checked(), read_data=True)) == []
        found = [b"".join(store.read(one.delivery.content)) for one in store.deliveries(Query())]
    # A line that says how it came to us stands before each message.
    return [b"Subject: " + mail.partition(b"Subject: ")[2] for mail in found]


def kept_objects(remote: Remote) -> None:
    """It passes the probe, and keeps what it is given."""
    probe(remote, "host")
    probe(remote, "host")
    big = os.urandom(16 << 20)
    assert remote.create("packs/a", big)
    assert not remote.create("packs/a", big), "the very same is there"
    with pytest.raises(DiffersError, match="packs/a is there with other bytes"):
        remote.create("packs/a", big[:-1])
    assert remote.get("packs/a") == big
    assert remote.get_range("packs/a", 1 << 20, 100) == big[1 << 20 :][:100]
    assert remote.create("packs=2a/x", b"")
    assert list(remote.list("packs/")) == [("packs/a", 16 << 20)]
    assert remote.size("packs/b") is None
    remote.delete(["packs/a", "packs/never"])
    assert remote.size("packs/a") is None
    assert remote.counted.sent_bytes > 16 << 20
    assert remote.locked_until("packs=2a/x") is None


def full_bucket(
    service: Service,
    remote: Remote,
    directory: Path,
    *,
    fill: Callable[[], object],
    make_room: Callable[[], object],
    words: str,
) -> None:
    """Capture goes on at full pace, the lag is told, once in words; with room again nothing is missing."""
    service.start()
    mail = Mail(service)
    usual_s = mail.send(40)
    assert catches_up(service), service.tail()
    fill()
    # Enough for a piece, whose name is another each time that more has come to be.
    full_s = mail.send(1, 2 << 20) + mail.send(40)
    assert full_s < 3 * usual_s + 2, "mail waits for the bucket"
    _stands_still(service, mail, words)
    assert metric(service, "lag_bytes") > 2 << 20
    make_room()
    _goes_on(service, mail, remote, directory)


def skewed_clock(
    service: Service,
    remote: Remote,
    directory: Path,
    *,
    skew: Callable[[], object],
    mend: Callable[[], object],
) -> None:
    """What is wrong is named, with what to do; once the clock is right it goes on by itself."""
    mail = Mail(service)
    mail.send(5)
    assert catches_up(service), service.tail()
    skew()
    mail.send(5)
    _stands_still(service, mail, "403 RequestTimeTooSkewed")
    assert "This host's clock and the bucket's are too far apart" in service.log_text()
    mend()
    _goes_on(service, mail, remote, directory)


def _stands_still(service: Service, mail: Mail, words: str) -> None:
    """It fails again and again, says so once, and its lag grows."""
    assert wait_until(lambda: metric(service, "failures_total") >= 1, timeout_s=60), service.tail()
    first_s, first_bytes = (metric(service, f"lag_{unit}") for unit in ("seconds", "bytes"))
    failures = metric(service, "failures_total")
    mail.send(10)
    assert wait_until(lambda: metric(service, "failures_total") >= failures + 2, timeout_s=60), service.tail()
    assert service.page("/readyz")[0] == 200
    assert metric(service, "lag_seconds") > first_s
    assert metric(service, "lag_bytes") > first_bytes > 0
    assert service.log_text().count(words) == 1, service.tail()
    assert service.log_text().count("Capture goes on") == 1, service.tail()


def _goes_on(service: Service, mail: Mail, remote: Remote, directory: Path) -> None:
    mail.send(1)
    assert catches_up(service), service.tail()
    assert "goes on\n" in service.log_text()
    # The replies are written a moment later, and are to be shipped, too.
    assert wait_until(lambda: metric(service, "lag_seconds") == 0, timeout_s=60), service.tail()
    service.kill()
    service.store.rename(directory / "lost")
    found = restored(remote, directory / "again")
    assert len(found) == len(mail.taken)
    assert set(found) == mail.taken
