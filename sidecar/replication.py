"""Copies elsewhere while mail is captured: a thread for each `[[replica]]`, in the process that leads.

A replica that is down, slow or wrong is tried again and again, and tells so in the log and in `/metrics`;
it never holds up mail, and readiness does not ask for it. At the end there is one more round.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sidecar.config import Config
from sidecar.heads import sign_key
from sidecar.metrics import Metrics
from sidecar.sections import ReplicaConfig
from store.errors import StoreError
from store.index_copy import IndexCopy, copy_of
from store.store import Store

if TYPE_CHECKING:
    from store.replicas.remote import Remote
    from store.replicas.ship import Shipper

log = logging.getLogger(__name__)

LAST_ROUND_S = 4.0
"""how long the last round may take"""
_BACK_OFF_S = (1.0, 60.0)
_TOLD_AGAIN_S = 300.0


def open_remote(
    url: str, *, endpoint: str | None = None, credentials: Path | None = None, region: str | None = None
) -> Remote:
    """A replica as a command names it. Raises `ReplicaError`."""
    from store.replicas.remote import Remote, RemoteOptions

    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL", "")
    options = RemoteOptions(endpoint=endpoint, credentials=credentials, region=region or "")
    return Remote.open(url, options, make=False)


def open_named(
    url: str, config: Config | None, *, endpoint: str | None = None, credentials: Path | None = None
) -> Remote:
    """A replica as the configuration names it, if it does and nothing else was named; else with what the
    environment says. Raises `ReplicaError`."""
    for replica in config.replica if config and endpoint is None and credentials is None else ():
        if replica.url.rstrip("/") == url.rstrip("/"):
            return open_configured(replica)
    return open_remote(url, endpoint=endpoint, credentials=credentials)


def open_configured(replica: ReplicaConfig, *, make: bool = False) -> Remote:
    """A replica as the configuration names it; `make` as in `Remote.open`. Raises `ReplicaError`."""
    from store.replicas.remote import Remote, RemoteOptions

    return Remote.open(
        replica.url,
        RemoteOptions(
            endpoint=replica.endpoint, region=replica.region, credentials=replica.credentials,
            path_style=replica.path_style, bandwidth_bytes=replica.bandwidth_bytes,
            checksums=replica.lock_days > 0,
        ),
        make=make,
    )  # fmt: skip


class Replicas:
    """All of a service's replicas; with none nothing is imported and no thread is there."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._running: list[tuple[int, Replication]] = []

    def start(self, config: Config, store: Store) -> None:
        """Begin to ship `store`, which stays open until `stop`."""
        for number, replica in enumerate(config.replica, 1):
            if replica.url:
                running = Replication(config, replica, store)
                self._running.append((number, running))
                _watch(self._metrics, str(number), running)
                running.start()

    def take_up(self, config: Config) -> None:
        """A configuration that has changed."""
        for number, running in self._running:
            if number <= len(config.replica):
                running.take_up(config.replica[number - 1])

    def stop(self) -> None:
        """Ship what there is, for a few seconds, and end."""
        for _, running in self._running:
            running.ask_to_stop()
        until = time.monotonic() + LAST_ROUND_S
        for _, running in self._running:
            running.join(max(0.0, until - time.monotonic()))
        self._running = []


class Replication:
    """One replica and its thread."""

    def __init__(self, config: Config, replica: ReplicaConfig, store: Store) -> None:
        self._store = store
        self._path = config.store.path
        self._host = config.store.stream_of(1)
        self._key_file = config.witness.key_file
        self._replica = replica
        self._remote: Remote | None = None
        self._shipper: Shipper | None = None
        self._asked = threading.Event()
        self._wake = threading.Event()
        self._until: float | None = None
        self._told: dict[tuple[type[Exception], str], float] = {}
        """when what was told that has been wrong since the last success"""
        self._waiting_s = 0.0
        self._pruning: threading.Thread | None = None
        self._began = time.monotonic()
        self._behind_bytes = 0
        """while nobody could be asked: what is here and not known to be there"""
        self.failures = 0
        self.last_success = 0.0
        # A daemon: what a dead network holds up must not hold up the end of the process.
        self._thread = threading.Thread(target=self._run, name=f"replica {replica.url}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def take_up(self, replica: ReplicaConfig) -> None:
        """What may change while it runs: the interval and the bandwidth."""
        if replica.url == self._replica.url:
            self._replica = replica
            self._wake.set()
            if self._remote:
                self._remote.set_bandwidth(replica.bandwidth_bytes)

    def ask_to_stop(self) -> None:
        """End after one more round."""
        self._until = time.monotonic() + LAST_ROUND_S
        self._asked.set()
        self._wake.set()

    def join(self, timeout_s: float) -> None:
        """Wait for the end."""
        self._thread.join(timeout_s)
        if self._remote:
            self._remote.close()
        if self._thread.is_alive():
            log.warning(
                "replica %s: the last round is not through; the next start goes on", self._replica.url
            )

    # -- what it has done

    @property
    def lag_bytes(self) -> int:
        """Bytes that were not there after the last try, or are not known to be."""
        return self._shipper.lag_bytes if self._shipper else self._behind_bytes

    def lag_s(self) -> float:
        """At most so old is what was captured and is not there."""
        if self._shipper:
            return self._shipper.lag_s()
        return time.monotonic() - self._began if self.failures else 0.0

    def sent_bytes(self) -> int:
        """Bytes that were uploaded."""
        return self._remote.counted.sent_bytes if self._remote else 0

    def requests(self) -> int:
        """Requests that were made."""
        return self._remote.counted.requests if self._remote else 0

    # -- the thread

    def _run(self) -> None:
        while not self._asked.is_set():
            began = time.monotonic()
            more = self._try()
            pause = self._waiting_s or max(0.0, self._replica.interval_s - (time.monotonic() - began))
            if not more:
                self._wake.wait(pause)
            if not self._asked.is_set():
                self._wake.clear()
        if not self._waiting_s:
            self._try()

    def _try(self) -> bool:
        """One round; whether more waits to be shipped."""
        try:
            shipper = self._ready()
            began = time.time()
            shipped = shipper.round()
        except (StoreError, OSError) as exc:
            self._failed(exc)
            return False
        except Exception as exc:
            log.exception("replica %s", self._replica.url)
            self._failed(exc, begin_anew=True)
            return False
        if self._waiting_s:
            log.info("replica %s: goes on", self._replica.url)
        self._waiting_s = 0.0
        self._told.clear()
        if not shipped.more and not shipper.lag_bytes:
            self.last_success = began  # what came since it looked may not be there
        if shipped.full and self._replica.delete and not (self._pruning and self._pruning.is_alive()):
            # It reads many rounds, and new mail must not wait for it.
            self._pruning = threading.Thread(target=self._prune, name="replica prune", daemon=True)
            self._pruning.start()
        return shipped.more

    def _prune(self) -> None:
        from store.replicas.prune import prune

        try:
            removed = prune(self._remote, self._host) if self._remote else 0
        except (StoreError, OSError) as exc:  # it costs room, and nothing else
            log.error("replica: what no reader needs stays: %s", exc)
        else:
            log.info("replica %s: %d objects removed that no reader needs", self._replica.url, removed)

    def _ready(self) -> Shipper:
        if self._shipper is None:
            from store.replicas.chain import Memory
            from store.replicas.probe import probe, probe_name
            from store.replicas.ship import ShipOptions, Shipper

            replica = self._replica
            if self._remote is None:
                unknown = Memory(self._path, replica.url, self._host).last() is None
                self._remote = open_configured(replica, make=unknown)
            probe(self._remote, self._host, lock_days=replica.lock_days)
            sign: Callable[[str], str] = sign_key(self._key_file).sign if self._key_file else str
            options = ShipOptions(
                sign=sign,
                index=self._copy_of_index,
                piece_bytes=_piece_bytes(replica.bandwidth_bytes),
                stop=self._late,
                require=partial(self._remote.require, probe_name(self._host)),
            )
            self._shipper = Shipper(self._path, self._remote, self._host, options)
            log.info(
                "replica %s: %d rounds of %s are there",
                replica.url,
                self._shipper.contents.number,
                self._host,
            )
        return self._shipper

    def _copy_of_index(self) -> IndexCopy | None:
        """None for a sealed store: what the index has of addresses is nobody else's business."""
        return None if self._store.keyring.seals else copy_of(self._store.index, self._store.view.names())

    def _late(self) -> bool:
        """Whether a round is to send no further piece."""
        return self._until is not None and time.monotonic() >= self._until - LAST_ROUND_S / 2

    def _failed(self, exc: Exception, *, begin_anew: bool = False) -> None:
        from store.replicas.behind import behind_bytes
        from store.replicas.chain import Memory, RivalError
        from store.replicas.mend import BeginAnewError

        self.failures += 1
        least, most = _BACK_OFF_S
        self._waiting_s = min(most, max(least, 2 * self._waiting_s)) * random.uniform(0.8, 1.2)  # noqa: S311 - not for secrets
        if begin_anew or isinstance(exc, RivalError | BeginAnewError):
            self._shipper = None  # all is asked anew, should an operator have mended it
        if begin_anew or isinstance(exc, RivalError):
            self._waiting_s = most
        if self._shipper is None:
            with contextlib.suppress(OSError):  # the store's own fault, which is told elsewhere
                lag = Memory(self._path, self._replica.url, self._host).lag()
                self._behind_bytes = behind_bytes(self._path, *lag)
        # The same of another object is no news: a piece of what waits has another name when more waits.
        what = (type(exc), str(exc).rpartition(": ")[2])
        now = time.monotonic()
        if now - self._told.get(what, -_TOLD_AGAIN_S) >= _TOLD_AGAIN_S:
            hint = getattr(exc, "hint", "")
            log.error("replica: %s%s", exc, f" ({hint})" if hint else "")
            self._told[what] = now


def _piece_bytes(bandwidth_bytes: int) -> int:
    """Pieces of a few seconds each where the bandwidth is limited: no burst, and no round waits long."""
    from store.replicas.ship import PIECE_BYTES

    return min(PIECE_BYTES, max(256 << 10, 4 * bandwidth_bytes)) if bandwidth_bytes else PIECE_BYTES


def _watch(metrics: Metrics, number: str, running: Replication) -> None:
    metrics.watch("replica_lag_bytes", lambda: running.lag_bytes, number)
    metrics.watch("replica_lag_seconds", running.lag_s, number)
    metrics.watch("replica_last_success_timestamp_seconds", lambda: running.last_success, number)
    metrics.watch("replica_uploaded_bytes_total", running.sent_bytes, number)
    metrics.watch("replica_requests_total", running.requests, number)
    metrics.watch("replica_failures_total", lambda: running.failures, number)
