"""The words of all mail, in SQLite's FTS5: a few small databases that may be thrown away at any time.

    search/lock             held by whoever writes
    search/state.db         which shards there are, how far each stream was followed, what waits to be read
    search/00000001.db …    shards: the words of up to `SHARD_MESSAGES` messages each, and their ids

A shard's rows stand in order of time, so that the newest answers come first and the rest need not be looked
at. No text is kept, only words with their places: so nothing can be taken out of a shard without knowing what
it said. Therefore a shard in which something is to be forgotten (erased, expired) is removed as a whole, at
once, and what else it held waits to be read again.

Why FTS5 and not tantivy (`python -m tests.bench find` measures both): on a million messages it took 101 s of
CPU against 103, 42 MB of memory against 398, and both answer in some ms; it takes 2.4 times the space. It
comes with Python, its readers take no lock file, and a shard is a file. Neither lets deleted words go before
a merge, which tantivy's binding cannot ask for (and FTS5's `secure-delete` needs SQLite 3.42, where Debian
12 has 3.40): hence shards, few enough to be opened at once and small enough to be made again.

A shard is committed before what waits is taken off the list, so that a process killed in between does the
same messages once more and finds them there.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Self

from sidecar.search.files import (
    DIRECTORY,
    SHARD,
    STATE,
    Cursor,
    Document,
    SearchDamagedError,
    Shard,
    State,
    connect,
    create,
    empty,
    mark_of,
    remove_database,
    shard_path,
    told,
)
from sidecar.search.text import fold
from store.files import make_directory
from store.ids import DeliveryId, delivery_time_us, order
from store.locks import Lock, take_lock

SHARD_MESSAGES = 40_000
_FIRST_ROW = 1 << 40
_PAGES_A_STEP = 200


class IndexWriter:
    """The one that writes. Everything may raise `SearchError`."""

    def __init__(self, directory: Path, lock: Lock, mark: str, shard_messages: int) -> None:
        self.directory = directory
        self._lock = lock
        self._mark = mark
        self._most = shard_messages
        self._open: tuple[int, sqlite3.Connection] | None = None
        with told(directory):
            self._db = self._opened()
        self._state = State(self._db)

    @classmethod
    def take(
        cls, store_path: Path, store_id: bytes, *, shard_messages: int = SHARD_MESSAGES
    ) -> IndexWriter | None:
        """The index of a store, made if it is not there and made anew if it is of no use; None while another
        process writes to it. Raises `OSError`, `SearchError`."""
        directory = store_path / DIRECTORY
        make_directory(directory)
        lock = take_lock(directory / "lock")
        if lock is None:
            return None
        try:
            try:
                return cls(directory, lock, mark_of(store_id), shard_messages)
            except SearchDamagedError:
                empty(directory)
                return cls(directory, lock, mark_of(store_id), shard_messages)
        except BaseException:
            lock.release()
            raise

    def _opened(self) -> sqlite3.Connection:
        path = self.directory / "state.db"
        if not path.exists():
            empty(self.directory)
            create(path, STATE, self._mark)
        db = connect(path, write=True)
        try:
            self._look_at(State(db))
        except BaseException:
            db.close()
            raise
        return db

    def _look_at(self, state: State) -> None:
        if state.mark() != self._mark:
            raise SearchDamagedError(f"{self.directory} is by another version, or of another store")
        listed = {shard.number for shard in state.shards()}
        there = {int(found.stem) for found in self.directory.glob("*.db") if found.stem.isdecimal()}
        if not listed <= there:
            raise SearchDamagedError(f"{self.directory}: a shard is missing")
        for number in there - listed:  # removed from the list, or not yet put there, by somebody killed
            remove_database(shard_path(self.directory, number))
        self._take_note(state)

    def _take_note(self, state: State) -> None:
        """Of what was put into the last shard by somebody who was killed before he could say so: else what is
        to be forgotten would not be looked for where it is."""
        for shard in state.shards()[-1:]:
            with contextlib.closing(connect(shard_path(self.directory, shard.number), write=True)) as db:
                found = db.execute("select * from extent").fetchone()
            if found is not None:
                state.put(Shard(*found)._replace(closed=shard.closed))

    def cursor(self, stream: str) -> Cursor:
        """How far a stream was followed."""
        with told(self.directory):
            found = self._db.execute("select facts, leaf from streams where name = ?", (stream,)).fetchone()
        return Cursor(*found) if found else Cursor()

    def note(
        self, stream: str, cursor: Cursor, added: Iterable[DeliveryId], gone: Sequence[DeliveryId]
    ) -> None:
        """A stretch of a stream: what it adds waits to be read, what it ends is forgotten at once."""
        with told(self.directory):
            doomed = self._with(gone) if gone else []
            self._db.execute("begin immediate")
            try:
                put = "insert or ignore into waiting values (?)"
                self._db.executemany(put, ((order(id_),) for id_ in added))
                for number in doomed:
                    with contextlib.closing(self._shard(number)) as db:
                        ids = db.execute("select id from ids")
                        self._db.executemany(put, ((order(id_),) for (id_,) in ids))
                    self._db.execute("delete from shards where number = ?", (number,))
                self._db.executemany("delete from waiting where id = ?", ((order(id_),) for id_ in gone))
                self._db.execute("insert or replace into streams values (?, ?, ?)", (stream, *cursor))
                self._db.execute("commit")
            except BaseException:
                _roll_back(self._db)
                raise
            for number in doomed:
                self._let_go(number)
                remove_database(shard_path(self.directory, number))

    def _with(self, gone: Sequence[DeliveryId]) -> list[int]:
        """The shards that have any of these."""
        found = []
        for shard in self._state.shards():
            here = [id_ for id_ in gone if shard.oldest_us <= delivery_time_us(id_) <= shard.newest_us]
            if here:
                with contextlib.closing(self._shard(shard.number)) as db:
                    if any(db.execute("select 1 from ids where id = ?", (id_,)).fetchone() for id_ in here):
                        found.append(shard.number)
        return found

    def next_waiting(self, count: int) -> list[DeliveryId]:
        """The newest of those that wait, in order of time."""
        with told(self.directory):
            rows = self._db.execute("select id from waiting order by id desc limit ?", (count,)).fetchall()
        return [DeliveryId(row[8:] + row[:8]) for (row,) in reversed(rows)]

    def counts(self) -> tuple[int, int]:
        """How many messages are in it, and how many wait."""
        with told(self.directory):
            return self._state.messages(), self._state.waiting()

    def take_in(self, documents: Sequence[Document], passed_over: Iterable[DeliveryId] = ()) -> None:
        """Some of those that wait, in order of time; `passed_over` wait no longer, and are not in it."""
        with told(self.directory):
            shard = self._fill(self._to_fill(), documents) if documents else None
            self._db.execute("begin immediate")
            try:
                done = [*(document.id for document in documents), *passed_over]
                self._db.executemany("delete from waiting where id = ?", ((order(id_),) for id_ in done))
                if shard is not None:
                    self._state.put(shard)
                self._db.execute("commit")
            except BaseException:
                _roll_back(self._db)
                raise

    def _to_fill(self) -> int:
        shards = self._state.shards()
        if shards and shards[-1].messages < self._most:
            return shards[-1].number
        number = shards[-1].number + 1 if shards else 1
        self._close_shard()
        remove_database(shard_path(self.directory, number))
        create(shard_path(self.directory, number), SHARD)
        return number

    def _fill(self, number: int, documents: Sequence[Document]) -> Shard:
        if self._open is None or self._open[0] != number:
            self._close_shard()
            self._open = number, self._shard(number)
        db = self._open[1]
        db.execute("begin immediate")
        try:
            shard = _fill(db, number, documents)
            db.execute("commit")
        except BaseException:
            _roll_back(db)
            raise
        return shard

    def tidy(self, step: Callable[[], None] = lambda: None) -> None:
        """Make each full shard one sorted whole in one file, in small steps; `step` may raise to stop."""
        with told(self.directory):
            for shard in self._state.shards():
                if not shard.closed and shard.messages >= self._most:
                    self._tidy(shard.number, step)

    def _tidy(self, number: int, step: Callable[[], None]) -> None:
        self._let_go(number)
        with contextlib.closing(self._shard(number)) as db:
            pages = -_PAGES_A_STEP  # negative: all of it, not only what is due
            while True:
                step()
                before = db.total_changes
                db.execute("insert into words (words, rank) values ('merge', ?)", (pages,))
                if db.total_changes - before < 2:  # so FTS5 says that there was nothing to do
                    break
                pages = _PAGES_A_STEP
            with contextlib.suppress(sqlite3.OperationalError):  # somebody reads it: another time
                db.execute("pragma busy_timeout=0")
                if db.execute("pragma journal_mode=delete").fetchone()[0] == "delete":
                    self._db.execute("update shards set closed = 1 where number = ?", (number,))

    def _shard(self, number: int) -> sqlite3.Connection:
        return connect(shard_path(self.directory, number), write=True)

    def _let_go(self, number: int) -> None:
        if self._open is not None and self._open[0] == number:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def start_over(self) -> None:
        """Throw all of it away, and begin anew."""
        with told(self.directory):
            self._close_shard()
            self._db.close()
            empty(self.directory)
            self._db = self._opened()
            self._state = State(self._db)

    def close(self) -> None:
        """Let go."""
        if self._lock.held:
            self._close_shard()
            self._db.close()
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _roll_back(db: sqlite3.Connection) -> None:
    with contextlib.suppress(sqlite3.Error):  # SQLite has done it by itself, on a full disk for one
        db.execute("rollback")


def _fill(db: sqlite3.Connection, number: int, documents: Sequence[Document]) -> Shard:
    """Put messages, in order of time, into a shard: above what is there, or below where all are older."""
    found = db.execute("select * from extent").fetchone()
    first, last = (delivery_time_us(documents[at].id) for at in (0, -1))
    shard = Shard(*found) if found else Shard(number, 0, first, last, 0, 0)
    low, high = db.execute("select min(row), max(row) from ids").fetchone()
    below = low is not None and last <= shard.oldest_us and first < shard.newest_us
    row = _FIRST_ROW if low is None else low - len(documents) if below else high + 1
    count = 0
    for at, document in enumerate(documents, row):
        # One that is there already was taken in by somebody who was killed before he could say so.
        if db.execute("insert or ignore into ids values (?, ?)", (at, document.id)).rowcount:
            text = document.text
            values = map(fold, (text.subject, text.people, text.files, text.body))
            db.execute(
                "insert into words (rowid, subject, people, files, body) values (?, ?, ?, ?, ?)",
                (at, *values),
            )
            count += 1
    shard = shard._replace(
        messages=shard.messages + count,
        oldest_us=min(shard.oldest_us, first), newest_us=max(shard.newest_us, last),
        disorder_us=max(shard.disorder_us, 0 if below else shard.newest_us - first),
    )  # fmt: skip
    if shard.messages == count:
        shard = shard._replace(disorder_us=0)
    db.execute("delete from extent")
    db.execute("insert into extent values (?, ?, ?, ?, ?, ?)", shard)
    return shard
