"""The index: where things lie. LMDB holds what is new and what is true now, sorted runs hold the rest.

It is a view: everything in it comes from the streams, and may be thrown away. It holds locations, not mail.
New rows go into LMDB; every few thousand they are written out as a run (`store.runs`), and runs of a size are
merged. The *catalogue*, one value in LMDB, says which runs and which packs count: whoever reads a
snapshot reads one consistent index, in any process, and takes no lock that a writer waits for.

LMDB runs with its safe defaults (a sync for every commit) on the 0.9 engine, named explicitly because the
library carries two engines that cannot read each other's files, and with a map far larger than it will ever
need, since growing the map of a running environment is where LMDB users get hurt; the file stays sparse.
The only file that knows LMDB.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import lmdb
import msgspec

from store import rows
from store.errors import DamagedError, IndexFailedError, StoreError, StoreFullError
from store.files import Fill, adopt, all_here, make_directory
from store.locks import take_lock, wait_for_lock
from store.rows import FILTERED, PLACE_AT
from store.runs import Blocks, Run, RunDamagedError, RunWriter, merged
from store.sealing import NO_KEYS, Keyring
from store.snapshot import Catalogue, Known, RunInfo, Snapshot
from store.update import MERGE_RUNS, Update

MAP_BYTES = 1 << 40
SCHEMA = 5
"""of the tables; an index with another one is built anew"""
FRESH_ROWS = 1024
"""rows in LMDB at which they are written out as a run"""
_EARLIER_TABLES = (b"chunks", b"contents", b"deliveries", b"ids", b"terms")
_MAX_READERS = 1024
_ENGINE_0_9 = 0

_DAMAGED = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError)


class Index:
    """The index of one store; usable from many threads and processes at once.

    Opening it twice in one process is an error of LMDB's; never carry it over a fork.
    """

    def __init__(
        self,
        path: Path,
        store_id: bytes,
        *,
        fresh_rows: int = FRESH_ROWS,
        keyring: Keyring = NO_KEYS,
        fill: Fill = all_here,
    ) -> None:
        """With a `keyring` that seals no word of people's stands in it in the clear."""
        self.path = path
        self.keyring = keyring
        self._fill = fill
        self.fresh_rows = fresh_rows
        self._blocks = Blocks()
        self._lock = threading.Lock()
        self._last: tuple[bytes, Known] = (b"", Known(Catalogue(), []))
        self._runs: dict[int, Run] = {}
        fresh = not (path / "data.mdb").exists()
        make_directory(path)
        try:
            self._env = lmdb.open(
                str(path), map_size=MAP_BYTES, max_dbs=2 + len(_EARLIER_TABLES), max_readers=_MAX_READERS,
                mode=0o600, subdir=True, lib_version=_ENGINE_0_9,
            )  # fmt: skip
            self._env.reader_check()  # slots of readers that were killed would pin old pages for ever
            self.meta = self._env.open_db(b"meta", create=True)
            self.fresh = self._env.open_db(b"fresh", create=True)
        except _DAMAGED as exc:
            raise DamagedError(f"the index at {path} is damaged: {exc}") from exc
        except lmdb.Error as exc:
            raise IndexFailedError(f"the index at {path} cannot be opened: {exc}") from exc
        if fresh:
            adopt(path / "data.mdb")
            adopt(path / "lock.mdb")
        try:
            self._set_up(b"%d%s:%s" % (SCHEMA, b" sealed" if keyring.seals else b"", store_id))
        except StoreError:
            self._env.close()
            raise

    def _set_up(self, mark: bytes) -> None:
        with self.read() as snapshot:
            known = snapshot.mark()
            if known == mark:
                snapshot.rows()  # opens the runs
                return
        ours = known is None or known.partition(b":")[2] == mark.partition(b":")[2]
        for name in _EARLIER_TABLES:
            with self._env.begin(write=True) as txn:
                if txn.get(name) is not None:
                    txn.drop(self._env.open_db(name, txn=txn))
        with self.update() as update:
            if update.mark() not in {None, mark}:
                update.clear(keep_durable=ours)  # another version's, or another store's
            update.put_mark(mark)

    @contextlib.contextmanager
    def read(self) -> Iterator[Snapshot]:
        """A snapshot for the length of the block."""
        with self._translated(), self._env.begin() as txn:
            yield Snapshot(txn, self)

    @contextlib.contextmanager
    def update(self) -> Iterator[Update]:
        """A write transaction, committed and synced when the block ends well, else undone."""
        try:
            with self._translated(), self._env.begin(write=True) as txn:
                update = Update(txn, self)
                yield update
                update.finish()
        except BaseException:
            with self._lock:  # runs it made never came to be, and others will come under their numbers
                self._last = (b"", Known(Catalogue(), []))
                self._runs = {}
            raise

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (lmdb.MapFullError, lmdb.DiskError) as exc:
            raise StoreFullError(f"the index at {self.path} cannot grow: {exc}") from exc
        except (*_DAMAGED, RunDamagedError) as exc:
            raise DamagedError(f"the index at {self.path} is damaged: {exc}") from exc
        except lmdb.Error as exc:
            raise IndexFailedError(f"the index at {self.path} failed: {exc}") from exc

    def oldest_reader(self) -> int | None:
        """The transaction that the oldest open snapshot of any process sees; None when there is none."""
        self._env.reader_check()
        lines = (line.split() for line in self._env.readers().splitlines())
        return min((int(f[2]) for f in lines if len(f) == 3 and f[2].isdigit()), default=None)

    def run_count(self) -> int:
        """How many runs there are."""
        with self.read() as snapshot:
            return len(snapshot.known.catalogue.runs)

    def fresh_count(self) -> int:
        """Rows that are in LMDB and in no run yet."""
        with self._translated(), self._env.begin() as txn:
            return int(txn.stat(self.fresh)["entries"])

    def last_transaction(self) -> int:
        """The number of the last transaction that was committed."""
        return int(self._env.info()["last_txnid"])

    def wait_for_readers(self, transaction: int, timeout_s: float) -> bool:
        """Wait until every open snapshot sees at least that transaction; False when the time is over."""
        end = time.monotonic() + timeout_s
        while (oldest := self.oldest_reader()) is not None and oldest < transaction:
            if time.monotonic() >= end:
                return False
            time.sleep(0.01)
        return True

    # -- runs

    def known(self, encoded: bytes) -> Known:
        """The catalogue `encoded`, with its runs open. Raises `DamagedError`."""
        with self._lock:
            if self._last[0] == encoded:
                return self._last[1]
            catalogue = msgspec.msgpack.decode(encoded, type=Catalogue) if encoded else Catalogue()
            runs: dict[int, Run] = {}
            for info in catalogue.runs:
                run = self._runs.get(info.number)
                if run is None:
                    try:
                        run = Run(self.run_path(info.number), info.number, self._blocks, self._fill)
                    except (FileNotFoundError, ValueError) as exc:
                        raise DamagedError(f"the index at {self.path} is damaged: {exc}") from exc
                    except OSError as exc:  # too many files, no permission: the index is well
                        raise IndexFailedError(f"{self.run_path(info.number)}: {exc.strerror}") from exc
                runs[info.number] = run
            self._runs = runs
            known = Known(catalogue, list(runs.values()))
            self._last = (encoded, known)
            return known

    def run_path(self, number: int) -> Path:
        """The file of a run."""
        return self.path / f"{number:010d}.run"

    def scratch_path(self) -> Path:
        """Where a run may be written until it is taken in."""
        return self.path / f"{os.getpid()}-{os.urandom(6).hex()}.tmp"

    def _merging(self, *, wait: bool) -> contextlib.AbstractContextManager[bool]:
        """The right to replace runs, for one at a time among all processes. False when somebody has it."""
        return self._alone("merge.lock", wait=wait)

    def catching_up(self) -> contextlib.AbstractContextManager[bool]:
        """The right to fill an index that was lost: two at it would only be in each other's way. False when
        somebody has it."""
        return self._alone("catch-up.lock", wait=False)

    @contextlib.contextmanager
    def _alone(self, name: str, *, wait: bool) -> Iterator[bool]:
        path = self.path / name
        with (wait_for_lock(path) if wait else take_lock(path)) or contextlib.nullcontext() as lock:
            yield lock is not None

    def merge(self, *, everything: bool = False, stop: Callable[[], bool] = lambda: False) -> int:
        """Merge runs of a tier wherever there are enough; with `everything` make one run of all there is.

        How many merges were done. Nobody waits for it: the index is read and written meanwhile.
        """
        done = 0
        with self._merging(wait=everything) as may:
            if may and everything:
                with self.update() as update:
                    update.fold()
            while may and not stop() and self._merge_once(everything=everything, stop=stop):
                done += 1
        if done:
            with self.update():
                pass  # the files of what was merged go
        return done

    def _merge_once(self, *, everything: bool, stop: Callable[[], bool]) -> bool:
        with self.read() as snapshot:
            known = snapshot.known
        catalogue = known.catalogue
        chosen = catalogue.runs if everything else _due(catalogue.runs)
        if not chosen or (len(chosen) == 1 and not catalogue.dead_rows):
            return False
        dead = frozenset(range(1, catalogue.next_pack)) - catalogue.packs.keys()
        numbers = frozenset(info.number for info in chosen)
        runs = [run for run in known.runs if run.number in numbers]
        expected = {t: sum(run.count(t) for run in runs) for t in {t for run in runs for t in run.tables()}}

        def keep(table: int, some: list[bytes]) -> list[bytes]:
            if stop():
                raise _StoppedError
            return rows.live(some, table, dead) if dead and table in PLACE_AT else some

        path = self.scratch_path()
        try:
            with RunWriter(path, filtered=FILTERED, expected=expected) as writer:
                for table in sorted(expected):
                    sources = [run.blocks(table) for run in runs]
                    writer.table(table, merged(sources, partial(keep, table)))
                writer.finish()
        except _StoppedError:
            return False
        with self.update() as update:
            same = numbers <= {info.number for info in update.known.catalogue.runs}
            if same:  # and the index was not emptied meanwhile
                update.adopt_runs([(path, writer.rows)] if writer.rows else [], instead_of=numbers)
        path.unlink(missing_ok=True)
        return same

    def bytes_on_disk(self) -> int:
        """What its files take on disk."""
        total = 0
        for path in self.path.iterdir():
            with contextlib.suppress(FileNotFoundError):  # runs come and go
                total += path.stat().st_blocks * 512
        return total

    def close(self) -> None:
        """No snapshot or update may be open."""
        self._env.close()


class _StoppedError(Exception):
    """A merge was told to stop."""


def _due(infos: Iterable[RunInfo]) -> tuple[RunInfo, ...]:
    """The runs of the lowest tier that has enough of them."""
    tiers: dict[int, list[RunInfo]] = {}
    for info in infos:
        tiers.setdefault(info.tier, []).append(info)
    return next((tuple(tiers[t]) for t in sorted(tiers) if len(tiers[t]) >= MERGE_RUNS), ())
