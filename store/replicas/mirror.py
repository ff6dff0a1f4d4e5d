"""A host's part of a replica as a store here, whose packs and index are fetched where they are read.

    follow -> rounds since the last look -> hollow packs, segments -> the host's index, if it is there -> open

With the index that full rounds bring, a message is found and read by a few ranges, and what came since is
indexed from its bytes. Without one (a sealed store; a version with other tables) all packs are fetched once.
What is fetched stays; all of it may be removed at any time.

Pieces of the index are compared with their digests; ranges of packs are not, since theirs are those of whole
pieces. Each record has its checksum, and a message its hash, so what is damaged is found; to find what
somebody forged who can write to the bucket takes `restore-store` or `check --replica --read-data`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from store.errors import DamagedError, StoreError
from store.files import room_for, write_whole
from store.index import Index
from store.locks import wait_for_lock
from store.replicas.contents import Contents, regroups
from store.replicas.fetch import cover
from store.replicas.hollow import Hollow, Part
from store.replicas.layout import Extent, Round, piece_name
from store.replicas.mirror_index import WRONG, Kept, MirrorIndex
from store.replicas.reader import Reading, Replica
from store.replicas.told import about_of
from store.sealing import Identity, Keyring, recipients_of
from store.segments import SUFFIX, pack_path
from store.store import Store

log = logging.getLogger(__name__)
_ROUND = "round:"


class Mirror:
    """One host of a replica, kept in a directory. Thread-safe, and several processes may use one directory.

    Raises `StoreError` wherever the replica is asked.
    """

    def __init__(self, replica: Replica, host: str, path: Path) -> None:
        self.host = host
        self.path = path
        self._replica = replica
        self._hollow = Hollow(path, self._get, lambda name: self._index.found_wrong(name))
        self._index = MirrorIndex(replica, host, path, self._hollow, self.fill, self._save)
        self._saved: Kept | None = None
        self._stamp: tuple[int, int] | None = None
        self._lock = threading.RLock()
        self._is_open = False
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._alone():
            if self._hollow.begin():
                shutil.rmtree(path / "rounds", ignore_errors=True)  # a crash may have cut them short
            self._load()

    @property
    def contents(self) -> Contents | None:
        """What counted at the last look that succeeded."""
        return self._saved.contents if self._saved else None

    @property
    def recipients(self) -> tuple[str, ...]:
        """For whom the host seals its store; none if it does not."""
        about = self.contents.about if self.contents else {}
        return tuple(map(str, about.get("recipients", ())))

    @property
    def fetched_bytes(self) -> int:
        """How much was fetched by ranges since this was made."""
        return self._hollow.fetched_bytes

    # -- what there is

    def follow(self) -> list[str]:
        """Look at what was shipped since; what is wrong with it, in words."""
        with self._alone():
            self._load()
            known = self.contents
            number = known.number if known else 0
            try:
                reading = self._read()
                if known and reading.contents.store_id != known.store_id:
                    self._begin_anew("it is another store's now")
                elif self.contents and reading.contents.number < number:
                    if reading.faults:  # what cannot be read now could be once: what is known counts on
                        return [*reading.faults, *reading.contents.holes()]
                    self._begin_anew(f"it was set back, from round {number}")
                if reading.contents is not known or reading.contents.number != number:
                    self._saved = Kept(reading.contents, self._saved.runs if self._saved else {})
                    self._save()
                    self._lay_out()
            except BaseException:
                self._stamp = None  # what was half taken up is not what is kept
                self._load()
                raise
            return [*reading.faults, *reading.contents.holes()]

    def _read(self) -> Reading:
        known = self.contents
        if known:
            newest = max(self._replica.full_rounds(self.host), default=0)
            if newest == known.full_number:
                reading = Reading(known)
                self._replica.follow(reading, taken=self._take_up)
                return reading
            is_full = known.number == known.full_number
            there = self._replica.digest(self.host, known.number, full=is_full)
            if newest < known.full_number or (there and there != known.digest):
                self._begin_anew(f"it was set back, from round {known.number}")
        return self._replica.read(self.host, taken=self._take_up)

    def _begin_anew(self, why: str) -> None:
        """What is here is of a history that the replica has no more."""
        what = f"{self._replica.source.url}: what {self.host} ships is not what was there before: {why}"
        if self._is_open:
            raise StoreError(f"{what}. The same command begins anew")
        log.warning("%s; all is fetched anew", what)
        self._forget()

    def _forget(self) -> None:
        """All that was fetched."""
        self._hollow.forget()
        for name in ("contents", "streams", "index", "rounds", "search", WRONG):
            if (self.path / name).is_dir():
                shutil.rmtree(self.path / name)
            else:
                (self.path / name).unlink(missing_ok=True)
        self._saved = self._stamp = None

    def _take_up(self, contents: Contents, round_: Round, data: bytes) -> bool:
        """Keep the bytes of packs that a round holds. Where compaction comes to be seen of which the index at
        hand knows nothing, wait for the full round that brings a new one: it comes soon, and to fetch all
        that was put in place of something would take long."""
        if not round_.full and contents.index and regroups(round_):
            return False
        if held := round_.held(data):
            file = self._round_file(round_.number)
            file.parent.mkdir(mode=0o700, exist_ok=True)
            _put(file, held)
        return True

    def open(self, identities: Sequence[Identity] = ()) -> Store:
        """The host's store as far as it is known here. Raises `StoreError`, `SealedError`."""
        assert self._saved  # noqa: S101 - follow comes first
        about = about_of(self._saved.contents.about, identities)
        keyring = Keyring(recipients_of(about.recipients), identities)
        with self._alone():
            self._load()  # another process may have looked since
            try:
                self._prepare(about.id, keyring)
            except DamagedError as exc:
                log.warning("%s; it is fetched anew", exc)
                self._index.drop(self._saved)
                self._prepare(about.id, keyring)
            store = Store(self.path, about.id, about.key, keyring=keyring, fill=self.fill)
            self._index.drop_packs(store.index, self._saved)
            self._sweep()
        self._is_open = True
        return store

    def refresh(self, store: Store) -> list[str]:
        """Have in `store`, which `open` gave, what was shipped since; what is wrong with it, in words."""
        faults = self.follow()
        with self._alone():
            self._load()  # another process may have looked since
            assert self._saved  # noqa: S101 - follow comes first
            self._index.take(store.index, self._saved, store.id)
            # Without an index all would be read again each time: that the next one to open it does.
            if (
                self.contents
                and self.contents.index
                and self._index.note_ends(store.index, self._saved, store.id)
            ):
                store.damage.clear()  # what was missing, mostly
            self._index.take_if_lost(store.index, self._saved, store.id)
            store.catch_up()
            self._index.drop_packs(store.index, self._saved)
            self._sweep()
        return faults

    def close(self) -> None:
        """Let go of the files."""
        self._hollow.close()

    # -- files

    def fill(self, path: Path, start: int, end: int, *, again: bool = False) -> None:
        """See `store.files.Fill`."""
        size = self._hollow.size(path)
        if size is None or end > size:
            self._look_again()
        self._hollow.fill(path, start, end, again=again)

    def _look_again(self) -> None:
        """Whether another process has laid out more."""
        with self._lock:
            if self._stamp_now() != self._stamp:
                self._load()

    def _get(self, name: str, start: int, length: int) -> bytes:
        if not name.startswith(_ROUND):
            return self._replica.source.get_range(name, start, length)
        number = int(name.removeprefix(_ROUND))
        try:
            fd = os.open(self._round_file(number), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # a full round has come since, and another process has cleared up
            return self._replica.inline(self.host, number)[1][start : start + length]
        try:
            return os.pread(fd, length, start)
        finally:
            os.close(fd)

    def _round_file(self, number: int) -> Path:
        return self.path / "rounds" / str(number)

    def _lay_out(self) -> None:
        assert self._saved  # noqa: S101 - by its callers
        for name, stream in self._saved.contents.streams.items():
            directory = self.path / "streams" / name
            for pack in stream.packs:
                parts = [self._part(name, pack, extent) for extent in cover(stream, pack)]
                if parts:
                    self._hollow.lay_out(pack_path(directory, pack), parts)
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for segment, text in stream.segments.items():
                file = directory / segment
                if not file.exists() or file.read_text() != text:
                    _put(file, text.encode())
        (self.path / "streams").mkdir(mode=0o700, exist_ok=True)
        for run, extents in self._saved.runs.items():
            path = self.path / "index" / run
            if path.exists():
                self._hollow.lay_out(path, self._index.parts(extents))

    def _part(self, stream: str, pack: int, extent: Extent) -> Part:
        if extent.inline:
            return Part(extent.offset, extent.length, f"{_ROUND}{extent.round}", extent.at)
        return Part(extent.offset, extent.length, piece_name(stream, pack, extent))

    def _sweep(self) -> None:
        """Remove what counts no more, once the index knows."""
        assert self._saved  # noqa: S101 - by its callers
        contents = self._saved.contents
        packs = {
            pack_path(self.path / "streams" / name, pack)
            for name, stream in contents.streams.items()
            for pack in stream.packs
        }
        for path in self._hollow.paths():
            gone = path not in packs if path.suffix == ".pack" else not path.exists()
            if gone:
                self._hollow.remove(path)
        for name, stream in contents.streams.items():
            for path in (self.path / "streams" / name).glob("*" + SUFFIX):
                if path.name not in stream.segments:
                    path.unlink()
        for path in (self.path / "rounds").glob("*"):
            if not path.name.isdigit() or int(path.name) <= contents.full_number:
                path.unlink()
        for path in self.path.glob("*contents.*.new"):  # of one that was killed
            path.unlink()
        self._index.sweep()
        self._saved.runs = {
            name: extents
            for name, extents in self._saved.runs.items()
            if (self.path / "index" / name).exists()
        }
        self._save()

    def _prepare(self, store_id: bytes, keyring: Keyring) -> None:
        assert self._saved  # noqa: S101 - by its callers
        index = Index(self.path / "index", store_id, keyring=keyring, fill=self.fill)
        try:
            self._index.take(index, self._saved, store_id)
            self._index.note_ends(index, self._saved, store_id)
            self._index.take_if_lost(index, self._saved, store_id)
        finally:
            index.close()

    # -- what is kept

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One at a time changes what is here."""
        with self._lock, wait_for_lock(self.path / "lock"):
            yield

    def _load(self) -> None:
        stamp = self._stamp_now()
        if stamp is None or stamp == self._stamp:
            return
        try:
            self._saved = msgspec.msgpack.decode((self.path / "contents").read_bytes(), type=Kept)
        except FileNotFoundError:
            return
        except msgspec.MsgspecError:
            if not self._is_open:
                log.warning("%s is of another version, or damaged: all is fetched anew", self.path)
                self._forget()  # of what the index's runs are made nobody knows any more
            return
        self._stamp = stamp
        self._lay_out()

    def _save(self) -> None:
        _put(self.path / "contents", msgspec.msgpack.encode(self._saved), durable=True)
        self._stamp = self._stamp_now()

    def _stamp_now(self) -> tuple[int, int] | None:
        try:
            found = (self.path / "contents").stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns


def _put(path: Path, data: bytes, *, durable: bool = False) -> None:
    with room_for(path):
        write_whole(path, data, durable=durable, rivals=True)
