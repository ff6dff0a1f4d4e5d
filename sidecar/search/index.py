"""The words of all mail, in SQLite's FTS5: a few small databases that may be thrown away at any time.

    search/lock             held by whoever writes
    search/state.db         which shards there are, how far each stream was followed, what waits to be read
    search/00000001.db …    shards: the words of up to `SHARD_MESSAGES` messages each, and their ids

A shard's rows stand in order of time, so that the newest answers come first and the rest need not be looked
at. No text is kept, only words with their places: so nothing can be taken out of a shard without knowing what
it said. Therefore a shard in which something is to be forgotten (erased, expired) is removed as a whole, at
once, and what else it held waits to be read again.

Why FTS5 and not tantivy (`python -m tests.bench find` measures both): on a million messages it took half the
CPU time to build, a tenth of the memory, and answered a common word in 2 ms against 18, for twice the space;
it comes with Python, readers in other processes need no lock, and neither lets deleted words go before a
merge, which tantivy's Python binding cannot ask for. (FTS5's own `secure-delete` needs SQLite 3.42; Debian 12
has 3.40.)

A shard is committed before what waits is taken off the list, so that a process killed in between does the
same messages once more and finds them there.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from sidecar.search.text import Text, fold
from store.files import adopt
from store.ids import DeliveryId, delivery_time_us
from store.looks import order
from store.store import Store

DIRECTORY = "search"
VERSION = "1"
SHARD_MESSAGES = 20_000
_FIRST_ROW = 1 << 40
_PAGE_BYTES = 8192
_CACHE_KIB = 16_000
_BUSY_MS = 10_000
_PAGES_A_STEP = 200
_DAMAGE = frozenset(
    {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT}
)
"""SQLITE_ERROR: a table is not there that should be"""

_STATE = """
create table meta (key text primary key, value text) without rowid;
create table shards (number integer primary key, messages integer, oldest_us integer, newest_us integer,
                     disorder_us integer, closed integer);
create table streams (name text primary key, facts integer, leaf blob) without rowid;
create table waiting (id blob primary key) without rowid;
"""
_SHARD = """
create table ids (row integer primary key, id blob unique);
create table extent (number integer, messages integer, oldest_us integer, newest_us integer,
                     disorder_us integer, closed integer);
create virtual table words using fts5(subject, people, files, body, content='', columnsize=0,
                                      tokenize="unicode61 remove_diacritics 2");
"""


class SearchError(Exception):
    """The search index cannot be used."""

    hint = "It is derived: remove the store's `search` directory, and `mailkeep find --build` makes it anew."
    exit_code = 1


class SearchDamagedError(SearchError):
    """What is in it cannot be read, or is by another version or of another store."""


class Cursor(NamedTuple):
    """How far a stream was followed: so many facts, the last of which had this leaf."""

    facts: int = 0
    leaf: bytes = b""


class Shard(NamedTuple):
    """One shard. Of two rows the later is older by `disorder_us` at most."""

    number: int
    messages: int
    oldest_us: int
    newest_us: int
    disorder_us: int
    closed: int


@dataclass(frozen=True, slots=True)
class Document:
    """One message to be taken in; without text where there is none that can be read."""

    id: DeliveryId
    text: Text


@contextlib.contextmanager
def _told(directory: Path) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.Error as exc:
        code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        damaged = code in _DAMAGE and not str(exc).startswith("fts5:")  # that is what was asked
        kind = SearchDamagedError if damaged else SearchError
        raise kind(f"the search index in {directory}: {exc}") from exc


def _shard_path(directory: Path, number: int) -> Path:
    return directory / f"{number:08d}.db"


def _connect(path: Path, *, write: bool) -> sqlite3.Connection:
    mode = "mode=rw" if write else "mode=ro"
    if not write and not os.access(path.parent, os.W_OK):
        mode = "immutable=1"  # on a medium where nothing can be written SQLite cannot share
    db = sqlite3.connect(
        f"file:{_quoted(path)}?{mode}", uri=True, isolation_level=None, timeout=_BUSY_MS / 1000
    )
    if write:
        db.execute("pragma synchronous=full")
        db.execute("pragma secure_delete=on")
        db.execute(f"pragma cache_size=-{_CACHE_KIB}")
    return db


def _quoted(path: Path) -> str:
    from urllib.parse import quote

    return quote(str(path))


def _create(path: Path, schema: str, mark: str = "") -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    adopt(path)
    with contextlib.closing(_connect(path, write=True)) as db:
        db.execute(f"pragma page_size={_PAGE_BYTES}")
        db.execute("pragma journal_mode=wal")
        db.executescript(schema)
        if mark:
            db.execute("insert into meta values ('mark', ?)", (mark,))


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


class _State:
    """What both sides read of state.db."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def mark(self) -> str:
        found = self._db.execute("select value from meta where key = 'mark'").fetchone()
        return str(found[0]) if found else ""

    def shards(self) -> list[Shard]:
        return [Shard(*row) for row in self._db.execute("select * from shards order by number")]

    def messages(self) -> int:
        return int(self._db.execute("select coalesce(sum(messages), 0) from shards").fetchone()[0])

    def waiting(self) -> int:
        return int(self._db.execute("select count(*) from waiting").fetchone()[0])


def mark_of(store_id: bytes) -> str:
    """What the index of a store is marked with."""
    return f"{VERSION} {store_id.hex()}"


class IndexWriter:
    """The one that writes. Everything may raise `SearchError`."""

    def __init__(self, directory: Path, lock: int, mark: str, shard_messages: int) -> None:
        self.directory = directory
        self._lock = lock
        self._mark = mark
        self._most = shard_messages
        self._open: tuple[int, sqlite3.Connection] | None = None
        with _told(directory):
            self._db = self._opened()
        self._state = _State(self._db)

    @classmethod
    def take(
        cls, store_path: Path, store_id: bytes, *, shard_messages: int = SHARD_MESSAGES
    ) -> IndexWriter | None:
        """The index of a store, made if it is not there and made anew if it is of no use; None while another
        process writes to it. Raises `OSError`, `SearchError`."""
        directory = store_path / DIRECTORY
        if not directory.is_dir():
            directory.mkdir(mode=0o700, exist_ok=True)
            adopt(directory)
        lock = _take_lock(directory)
        if lock is None:
            return None
        try:
            try:
                return cls(directory, lock, mark_of(store_id), shard_messages)
            except SearchDamagedError:
                empty(directory)
                return cls(directory, lock, mark_of(store_id), shard_messages)
        except BaseException:
            os.close(lock)
            raise

    def _opened(self) -> sqlite3.Connection:
        path = self.directory / "state.db"
        if not path.exists():
            empty(self.directory)
            _create(path, _STATE, self._mark)
        db = _connect(path, write=True)
        try:
            self._look_at(_State(db))
        except BaseException:
            db.close()
            raise
        return db

    def _look_at(self, state: _State) -> None:
        if state.mark() != self._mark:
            raise SearchDamagedError(f"{self.directory} is by another version, or of another store")
        listed = {shard.number for shard in state.shards()}
        there = {int(found.stem) for found in self.directory.glob("[0-9]*.db")}
        if not listed <= there:
            raise SearchDamagedError(f"{self.directory}: a shard is missing")
        for number in there - listed:  # removed from the list, or not yet put there, by somebody killed
            _remove(_shard_path(self.directory, number))

    def cursor(self, stream: str) -> Cursor:
        """How far a stream was followed."""
        with _told(self.directory):
            found = self._db.execute("select facts, leaf from streams where name = ?", (stream,)).fetchone()
        return Cursor(*found) if found else Cursor()

    def note(
        self, stream: str, cursor: Cursor, added: Iterable[DeliveryId], gone: Sequence[DeliveryId]
    ) -> None:
        """A stretch of a stream: what it adds waits to be read, what it ends is forgotten at once."""
        with _told(self.directory):
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
                _remove(_shard_path(self.directory, number))

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
        with _told(self.directory):
            rows = self._db.execute("select id from waiting order by id desc limit ?", (count,)).fetchall()
        return [DeliveryId(row[8:] + row[:8]) for (row,) in reversed(rows)]

    def counts(self) -> tuple[int, int]:
        """How many messages are in it, and how many wait."""
        with _told(self.directory):
            return self._state.messages(), self._state.waiting()

    def take_in(self, documents: Sequence[Document], passed_over: Iterable[DeliveryId] = ()) -> None:
        """Some of those that wait, in order of time; `passed_over` wait no longer, and are not in it."""
        with _told(self.directory):
            shard = self._fill(self._to_fill(), documents) if documents else None
            self._db.execute("begin immediate")
            try:
                done = [*(document.id for document in documents), *passed_over]
                self._db.executemany("delete from waiting where id = ?", ((order(id_),) for id_ in done))
                if shard is not None:
                    self._db.execute("insert or replace into shards values (?, ?, ?, ?, ?, ?)", shard)
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
        _remove(_shard_path(self.directory, number))
        _create(_shard_path(self.directory, number), _SHARD)
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
        with _told(self.directory):
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
        return _connect(_shard_path(self.directory, number), write=True)

    def _let_go(self, number: int) -> None:
        if self._open is not None and self._open[0] == number:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def start_over(self) -> None:
        """Throw all of it away, and begin anew."""
        with _told(self.directory):
            self._close_shard()
            self._db.close()
            empty(self.directory)
            self._db = self._opened()
            self._state = _State(self._db)

    def close(self) -> None:
        """Let go."""
        if self._lock >= 0:
            self._close_shard()
            self._db.close()
            os.close(self._lock)
            self._lock = -1

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


def _take_lock(directory: Path) -> int | None:
    path = directory / "lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        adopt(path)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


def empty(directory: Path) -> None:
    """Remove all that is in it but the lock, the list of shards first: without that the rest is nothing."""
    _remove(directory / "state.db")
    for path in directory.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def remove(store_path: Path) -> bool:
    """Remove the index of a store that is to have none; False while somebody writes to it. Raises
    `OSError`."""
    directory = store_path / DIRECTORY
    if not directory.is_dir():
        return True
    lock = _take_lock(directory)
    if lock is None:
        return False
    try:
        empty(directory)
    finally:
        os.close(lock)
    return True


class IndexReader:
    """Reads beside the writer, without a lock. Everything may raise `SearchError`."""

    def __init__(self, store_path: Path, store_id: bytes) -> None:
        """Raises `FileNotFoundError` when there is no index."""
        self.directory = store_path / DIRECTORY
        path = self.directory / "state.db"
        if not path.exists():
            raise FileNotFoundError(str(path))
        with _told(self.directory):
            self._db = _connect(path, write=False)
            self._state = _State(self._db)
            if self._state.mark() != mark_of(store_id):
                self._db.close()
                raise SearchDamagedError(f"{path} is by another version, or of another store")

    def counts(self) -> tuple[int, int]:
        """How many messages are in it, and how many wait."""
        with _told(self.directory):
            return self._state.messages(), self._state.waiting()

    def behind(self, store: Store) -> bool:
        """Whether a stream has facts that were not followed yet."""
        with _told(self.directory):
            known = dict(self._db.execute("select name, facts from streams").fetchall())
        return any(store.state(name).facts > known.get(name, 0) for name in store.view.names())

    def search(self, expression: str, since_us: int, until_us: int) -> Iterator[DeliveryId]:
        """The messages in [since, until) that an FTS5 expression matches, newest first. No look at the index
        stays open while the caller works. What the writer takes away meanwhile is left out."""
        with _told(self.directory):
            left = [s for s in self._state.shards() if s.newest_us >= since_us and s.oldest_us < until_us]
        left.sort(key=lambda shard: shard.newest_us)
        heads: list[tuple[int, DeliveryId, Iterator[DeliveryId]]] = []
        while left or heads:
            while left and (not heads or left[-1].newest_us >= delivery_time_us(heads[0][1])):
                _push(heads, self._in_order(left.pop(), expression, since_us))
            if heads:
                _, id_, rest = heapq.heappop(heads)
                if since_us <= delivery_time_us(id_) < until_us:
                    yield id_
                _push(heads, rest)

    def _in_order(self, shard: Shard, expression: str, since_us: int) -> Iterator[DeliveryId]:
        """A shard's matches, the newest first, also where its rows are not quite so."""
        heap: list[tuple[int, DeliveryId]] = []
        for id_ in self._rows(shard, expression):
            time_us = delivery_time_us(id_)
            while heap and delivery_time_us(heap[0][1]) >= time_us + shard.disorder_us:
                yield heapq.heappop(heap)[1]
            if time_us + shard.disorder_us < since_us:
                break
            heapq.heappush(heap, (_backwards(id_), id_))
        while heap:
            yield heapq.heappop(heap)[1]

    def _rows(self, shard: Shard, expression: str) -> Iterator[DeliveryId]:
        """By row, from the last on, some at a time: an open look would keep the writer's log growing."""
        below, count = 1 << 62, 100
        while True:
            try:
                with _told(self.directory), contextlib.closing(self._shard(shard.number)) as db:
                    rows = db.execute(
                        "select rowid, (select id from ids where row = words.rowid) from words "
                        "where words match ? and rowid < ? order by rowid desc limit ?",
                        (expression, below, count),
                    ).fetchall()
            except FileNotFoundError:
                return
            yield from (DeliveryId(id_) for _, id_ in rows if id_ is not None)
            if len(rows) < count:
                return
            below, count = rows[-1][0], min(count * 4, 5000)

    def _shard(self, number: int) -> sqlite3.Connection:
        path = _shard_path(self.directory, number)
        if not path.exists():
            raise FileNotFoundError(str(path))
        return _connect(path, write=False)

    def close(self) -> None:
        """Let go."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _backwards(id_: DeliveryId) -> int:
    return -int.from_bytes(order(id_), "big")


def _push(heads: list[tuple[int, DeliveryId, Iterator[DeliveryId]]], rest: Iterator[DeliveryId]) -> None:
    id_ = next(rest, None)
    if id_ is not None:
        heapq.heappush(heads, (_backwards(id_), id_, rest))
