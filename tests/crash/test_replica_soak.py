"""A store that is written, compacted, erased from and opened anew, shipped over a network that fails.

At every moment what the replica held after the last round that was whole can be restored, and nothing in it
is wrong. `MAILKEEP_SOAK_S` seconds (default 5) with the seed `MAILKEEP_SOAK_SEED`.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from contextlib import suppress
from pathlib import Path

import pytest

from store.check import check
from store.compact import CompactOptions, Compactor
from store.deliveries import Query
from store.errors import StoreError
from store.findings import Checked
from store.ids import DeliveryId
from store.replicas import ship
from store.replicas.errors import DamagedUploadError, ReplicaError, UnreachableError
from store.replicas.fetch import Fetching
from store.replicas.prune import prune
from store.replicas.reader import Replica
from store.replicas.remote import Remote
from store.replicas.ship import ShipOptions, Shipper
from store.retention import erase
from store.store import Store
from tests.store.conftest import put_message

pytestmark = pytest.mark.crash
SECONDS = float(os.environ.get("MAILKEEP_SOAK_S", "5"))
SEED = int(os.environ.get("MAILKEEP_SOAK_SEED", "1"))
PACK_BYTES = 150_000
_YOUNG_US = 10_000_000


class Shaky(Remote):
    """A directory behind a network that loses requests and answers, and alters some objects."""

    rng = random.Random(SEED)

    def create(self, name: str, data: bytes) -> bool:
        fate = self.rng.random()
        if fate < 0.03:
            raise UnreachableError("it does not answer")
        if fate < 0.06 and self.size(name) is None:
            super().create(name, data[:-1] + bytes([data[-1] ^ 1]))
            raise DamagedUploadError("it came to be something else")
        made = super().create(name, data)
        if fate < 0.12:
            raise UnreachableError("the answer was lost")
        return made


class Soak:
    """Does one thing after another; knows what must be there."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        self._directory = directory
        self._rng = rng
        self._remote = Shaky.open(f"file://{directory}/replica")
        self._store = self._open(create=True)
        self._shipper: Shipper | None = None
        self._live: list[DeliveryId] = []
        self._erased: set[DeliveryId] = set()
        self._shipped: set[DeliveryId] = set()
        self._whole = False

    def _open(self, *, create: bool = False) -> Store:
        store = Store.open(self._directory / "store", create=create)
        store.start_writing("host", pack_bytes=PACK_BYTES)
        return store

    def close(self) -> None:
        self._store.close()

    def step(self) -> None:
        rng = self._rng
        for _ in range(rng.randint(0, 4)):
            mail = rng.randbytes(rng.choice([10, 500, 9_000, 60_000])).hex().encode()
            self._live.append(put_message(self._store, b"Subject: x\r\n\r\n" + mail).id)
        what = rng.choices(
            (self._store.writer.roll, self._compact, self._erase, self._restart, self._reopen, int),
            (15, 10, 5, 8, 4, 58),
        )[0]
        what()
        self._ship()
        if rng.random() < 0.03:
            with suppress(StoreError):  # a round may be damaged: then nothing goes
                prune(self._remote, "host", keep_us=_YOUNG_US)
        if rng.random() < 0.15:
            self.verify()

    def _compact(self) -> None:
        self._store.settle_index()
        Compactor(self._store, CompactOptions(everything=True, level=1)).run()

    def _erase(self) -> None:
        if self._live:
            gone = self._live.pop(self._rng.randrange(len(self._live)))
            self._store.settle_index()
            erase(self._store, [gone], owner="o", reason="r")
            self._erased.add(gone)

    def _restart(self) -> None:
        self._shipper = None

    def _reopen(self) -> None:
        self._store.close()
        self._store = self._open()

    def _ship(self) -> None:
        """A few rounds. Raises `RivalError`: there is none."""
        captured = set(self._live)
        self._whole = False
        try:
            if self._shipper is None:
                options = ShipOptions(
                    rounds_between=self._rng.choice([2, 5, 50]),
                    piece_bytes=self._rng.choice([5_000, 30_000]),
                    pieces_s=self._rng.choice([0.0, 0.01, 5.0]),
                )  # fmt: skip
                self._shipper = Shipper(self._directory / "store", self._remote, "host", options)
            for _ in range(self._rng.randint(1, 5)):
                if not self._shipper.round(full=self._rng.random() < 0.05).more:
                    self._shipped, self._whole = captured, True
                    break
        except ReplicaError:
            pass

    def verify(self) -> None:
        """What was shipped can be restored."""
        if not self._shipped:
            return
        where = self._directory / "again"
        shutil.rmtree(where, ignore_errors=True)
        Fetching(Replica(self._remote), where).run()
        with Store.open(where) as store:
            found = {one.delivery.id for one in store.deliveries(Query())}
            assert self._shipped - self._erased <= found
            if self._whole:
                assert store.damage == []
                assert list(check(store, Checked(), read_data=True)) == []


def test_soak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ship, "INLINE_BYTES", 20_000)
    monkeypatch.setattr(ship, "FULL_INLINE_BYTES", 100_000)
    soak = Soak(tmp_path, random.Random(SEED))
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        soak.step()
    soak.verify()
    soak.close()
