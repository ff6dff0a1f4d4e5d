"""Views of a replica while its hosts capture, erase, compact, ship and are killed: what a view shows.

Whenever all is shipped it shows just what the hosts' own stores show, to the byte. At all other times it
never shows what it had seen removed, and never lacks what it had seen. `MAILKEEP_VIEW_STEPS` steps (default
60) with the seed `MAILKEEP_VIEW_SEED`.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from store.compact import CompactOptions, Compactor
from store.deliveries import Query, RemovedError
from store.fleet import Fleet
from store.ids import DeliveryId
from store.index import Index
from store.index_copy import IndexCopy, copy_of
from store.replicas import hollow, index_files, ship
from store.replicas.fleet import open_fleet
from store.replicas.prune import prune
from store.replicas.reader import Replica
from store.replicas.remote import Remote
from store.replicas.ship import ShipOptions, Shipper
from store.retention import Rule, erase, expire
from store.store import Store
from tests.store.conftest import put_message
from tests.support import view_part

pytestmark = [pytest.mark.crash, pytest.mark.timeout(0)]
STEPS = int(os.environ.get("MAILKEEP_VIEW_STEPS", "60"))
SEED = int(os.environ.get("MAILKEEP_VIEW_SEED", "1"))
VERBOSE = bool(os.environ.get("MAILKEEP_VIEW_VERBOSE"))


def part(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.support.view_part", *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


class Host:
    """A store with two streams, one of which another process writes, and its shipper."""

    def __init__(
        self, path: Path, name: str, remote: Remote, rng: random.Random, *, with_index: bool
    ) -> None:
        self.name = name
        self.with_index = with_index
        self.mails: dict[DeliveryId, bytes] = {}
        self.removed: set[DeliveryId] = set()
        self.has_holes = False
        """whether the replica has newer mail, and not yet all that came before"""
        self.is_watched = False
        """whether somebody looks between any two rounds"""
        self._path = path
        self._remote = remote
        self._rng = rng
        self._worker: subprocess.Popen[str] | None = None
        self._shipper: Shipper | None = None
        self.store = self._open()

    def _open(self) -> Store:
        store = Store.open(self._path, create=True)
        store.start_writing(self.name, pack_bytes=view_part.PACK_BYTES)
        return store

    def close(self) -> None:
        self.kill_worker()
        self.store.close()

    # -- what happens to it

    def capture(self) -> None:
        for _ in range(self._rng.randint(1, 12)):
            size = self._rng.choice([10, 500, 9_000, 60_000])
            mail = b"Subject: x\r\n\r\n" + self._rng.randbytes(size).hex().encode()
            self.mails[put_message(self.store, mail).id] = mail

    def capture_beside(self) -> None:
        """By the other process, which this one's index may not have seen."""
        if self._worker is None:
            self._worker = part("write", f"{self._path}", "work")
            assert self._worker.stdout
            assert self._worker.stdout.readline() == "ready\n"
        assert self._worker.stdin
        assert self._worker.stdout
        self._worker.stdin.write(f"{self._rng.randint(1, 12)}\n")
        self._worker.stdin.flush()
        while (line := self._worker.stdout.readline()) != "done\n":
            id_, mail = map(bytes.fromhex, line.split())
            self.mails[DeliveryId(id_)] = mail

    def kill_worker(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.communicate()
            self._worker = None

    def roll(self) -> None:
        self.store.writer.roll()

    def erase(self) -> None:
        self.store.refresh()
        live = [id_ for id_ in self.mails if id_ not in self.removed]
        gone = self._rng.sample(live, min(len(live), self._rng.randint(1, 4)))
        if gone:
            erase(self.store, gone, owner="o", reason="r")
            self.removed.update(gone)

    def expire(self) -> None:
        self.store.refresh()
        live = [found.delivery for found in self.store.deliveries(Query(newest_first=False))]
        if len(live) > 40:
            until = live[self._rng.randint(1, 10)].time_us
            expire(self.store, [Rule(keep_us=1_000_000)], owner="o", at_us=until + 1_000_000)
            self.removed.update(one.id for one in live if one.time_us <= until)

    def compact(self) -> None:
        self.store.refresh()
        Compactor(self.store, CompactOptions(everything=self._rng.random() < 0.5, level=1)).run()

    def reopen(self) -> None:
        self.store.close()
        self.store = self._open()

    def restart_shipper(self) -> None:
        self._shipper = None

    def prune(self) -> None:
        prune(self._remote, self.name, keep_us=0)

    # -- shipping

    @property
    def shipper(self) -> Shipper:
        if self._shipper is None:
            options = ShipOptions(
                index=self._index,
                rounds_between=self._rng.choice([2, 5, 50]),
                piece_bytes=self._rng.choice([5_000, 30_000]),
                pieces_s=5.0 if self.is_watched else self._rng.choice([0.002, 0.01, 5.0]),
            )
            self._shipper = Shipper(self._path, self._remote, self.name, options)
        return self._shipper

    def _index(self) -> IndexCopy | None:
        return copy_of(self.store.index, self.store.view.names()) if self.with_index else None

    def ship(self) -> None:
        for _ in range(self._rng.randint(1, 3)):
            self.has_holes = self.shipper.round().more

    def ship_full(self) -> None:
        self.has_holes = self.shipper.round(full=True).more

    def ship_all(self) -> None:
        """All of it, and an index that knows what compaction has done."""
        self.store.refresh()
        for _ in range(2000):
            shipped = self.shipper.round()
            self.has_holes = shipped.more
            contents = self.shipper.contents
            is_known = not self.with_index or (contents.index and not contents.regrouped)
            if is_known and not shipped.more and not shipped.objects:
                return
        raise AssertionError("there is no end to it")


class Soak:
    """Hosts, a view of them, and what that must show."""

    def __init__(self, directory: Path, rng: random.Random, *, with_index: bool) -> None:
        self._rng = rng
        self._with_index = with_index
        self._url = f"file://{directory}/replica"
        self._view = directory / "view"
        self._remote = Remote.open(self._url)
        self._hosts = [
            Host(directory / name, name, self._remote, rng, with_index=with_index or name == "mx1")
            for name in ("mx1", "mx2")
        ]
        self._fleet: Fleet | None = None
        self._lookers: list[subprocess.Popen[str]] = []
        self._seen: set[DeliveryId] = set()
        self._gone: set[DeliveryId] = set()
        self._is_pruned = False

    def close(self) -> None:
        self._close_view()
        self._end_lookers()
        for host in self._hosts:
            host.close()

    def step(self) -> None:
        host = self._rng.choice(self._hosts)
        of_host: list[tuple[Callable[[], None], int]] = [
            (host.capture, 14), (host.capture_beside, 10), (host.roll, 6), (host.erase, 6), (host.expire, 2),
            (host.compact, 6), (host.ship, 22), (host.ship_full, 5), (host.restart_shipper, 3),
            (host.reopen, 2), (host.kill_worker, 2), (self.prune, 4), (self.look, 12), (self.look_at_rest, 5),
            (self._close_view, 4), (self.begin_anew, 1), (self.start_looker, 3), (self._end_lookers, 2),
        ]  # fmt: skip
        what = self._rng.choices([what for what, _ in of_host], [weight for _, weight in of_host])[0]
        if VERBOSE:
            print(what.__qualname__, host.name, flush=True)
        what()

    def prune(self) -> None:
        self._end_lookers()  # what they read would be removed under them, which takes a day else
        for host in self._hosts:
            if host.shipper.contents.number:
                host.prune()

    def start_looker(self) -> None:
        if len(self._lookers) < 2 and self._remote.folders("hosts/"):
            for host in self._hosts:
                host.ship_all()
                host.is_watched = True
                host.restart_shipper()
            self._lookers.append(part("look", self._url, f"{self._view}"))
            time.sleep(self._rng.random())

    def _end_lookers(self) -> None:
        for looker in self._lookers:
            ended = looker.poll()
            looker.kill()
            _, said = looker.communicate()
            assert not ended, said
            assert "Traceback" not in said
        self._lookers = []
        for host in self._hosts:
            host.is_watched = False

    def begin_anew(self) -> None:
        self._end_lookers()
        self._close_view()
        shutil.rmtree(self._view, ignore_errors=True)

    def _close_view(self) -> None:
        if self._fleet:
            self._fleet.close()
        self._fleet = None

    def _open_view(self) -> Fleet:
        told: list[str] = []
        if self._fleet is None:
            self._fleet = open_fleet(Replica(self._remote), self._view, tell=told.append)
            assert told == []
        if len(self._fleet.members) < sum(1 for host in self._hosts if host.shipper.contents.number):
            self._close_view()
            return self._open_view()
        return self._fleet

    def look(self) -> None:
        """In the midst of it."""
        if not any(host.shipper.contents.number for host in self._hosts):
            return
        fleet = self._open_view()
        fleet.refresh()
        if any(host.has_holes for host in self._hosts):
            return
        found = self._read(fleet, 20)
        assert found.keys() >= self._seen - self._removed(), "mail that was there is not there any more"
        assert not found.keys() & self._gone, "what was removed is back"
        self._seen |= found.keys()
        self._gone |= {id_ for id_ in self._removed() if id_ in self._seen and id_ not in found}

    def look_at_rest(self) -> None:
        """When all is shipped."""
        for host in self._hosts:
            host.ship_all()
        if not self._with_index:
            self._close_view()  # whoever opens it then has all
        fleet = self._open_view()
        fleet.refresh()
        own = {
            found.delivery.id: found.delivery
            for host in self._hosts
            for found in host.store.deliveries(Query())
        }
        mails = {id_: mail for host in self._hosts for id_, mail in host.mails.items()}
        assert own.keys() == mails.keys() - self._removed(), "the hosts themselves are wrong"
        for host in self._hosts:
            for id_ in own.keys() & host.mails.keys():
                assert host.store.read_small(own[id_].content) == mails[id_], "the hosts themselves are wrong"
        found = self._read(fleet, len(own))
        assert found.keys() == own.keys()
        assert found == {id_: mails[id_] for id_ in own}
        for id_ in self._removed():
            with pytest.raises(RemovedError):
                fleet.delivery(id_)
        for host, member in zip(self._hosts, fleet.members, strict=True):
            if not host.with_index:
                continue
            with host.store.index.read() as theirs, member.index.read() as ours:
                assert ours.counters() == theirs.counters()
        self._seen |= found.keys()
        self._gone |= self._removed()

    def _removed(self) -> set[DeliveryId]:
        return self._hosts[0].removed | self._hosts[1].removed

    def _read(self, fleet: Fleet, most: int) -> dict[DeliveryId, bytes]:
        """All that is listed, so many of them read: of the others nothing but that they are there."""
        mails = {id_: mail for host in self._hosts for id_, mail in host.mails.items()}
        found = {stored.delivery.id: stored.delivery.content for stored in fleet.deliveries(Query())}
        for id_ in self._rng.sample(sorted(found), min(most, len(found))):
            assert fleet.read_small(found[id_]) == mails[id_]
        return {id_: mails[id_] for id_ in found}


@pytest.mark.parametrize("with_index", [True, False])
def test_view_soak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, with_index: bool) -> None:
    """Without: one of two hosts ships none, as if it were sealed."""
    monkeypatch.setattr(ship, "INLINE_BYTES", 20_000)
    monkeypatch.setattr(ship, "FULL_INLINE_BYTES", 100_000)
    monkeypatch.setattr(hollow, "PAGE_BYTES", 4096)
    monkeypatch.setattr(index_files, "_PIECE_BYTES", (4096, 16 << 20))
    kwdefaults = Index.__init__.__kwdefaults__
    assert kwdefaults is not None
    monkeypatch.setitem(kwdefaults, "fresh_rows", 60)
    soak = Soak(tmp_path, random.Random(SEED), with_index=with_index)
    try:
        for _ in range(STEPS):
            soak.step()
        soak.look_at_rest()
    finally:
        soak.close()
