"""What writer and reader of the search index share: its files, their tables, and errors in words."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from sidecar.search.text import Text
from store.files import adopt
from store.ids import DeliveryId
from store.locks import take_lock

DIRECTORY = "search"
VERSION = "1"
_PAGE_BYTES = 8192
_CACHE_KIB = 16_000
_BUSY_MS = 10_000
_DAMAGE = frozenset(
    {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT}
)
"""SQLITE_ERROR: a table is not there that should be"""

STATE = """
create table meta (key text primary key, value text) without rowid;
create table shards (number integer primary key, messages integer, oldest_us integer, newest_us integer,
                     disorder_us integer, closed integer);
create table streams (name text primary key, facts integer, leaf blob) without rowid;
create table waiting (id blob primary key) without rowid;
"""
SHARD = """
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


class NoSearchError(SearchError):
    """There is none, and none is to be."""

    hint = "Without --build subjects and addresses are searched."


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
def told(directory: Path) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except UnicodeDecodeError as exc:  # SQLite's own words, about a name that is damaged
        raise SearchDamagedError(f"the search index in {directory} is damaged: {exc.object!r}") from exc
    except sqlite3.Error as exc:
        code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        damaged = code in _DAMAGE and not str(exc).startswith("fts5:")  # that is what was asked
        kind = SearchDamagedError if damaged else SearchError
        raise kind(f"the search index in {directory}: {exc}") from exc


def shard_path(directory: Path, number: int) -> Path:
    """The file of a shard."""
    return directory / f"{number:08d}.db"


def connect(path: Path, *, write: bool) -> sqlite3.Connection:
    """An open database, without transactions that begin by themselves. Raises `sqlite3.Error`."""
    mode = "mode=rw"  # also to read: else SQLite does not undo what somebody began who was killed, and fails
    if not write and not os.access(path.parent, os.W_OK):
        mode = "immutable=1"  # on a medium where nothing can be written SQLite cannot share
    db = sqlite3.connect(
        f"file:{quote(str(path))}?{mode}", uri=True, isolation_level=None, timeout=_BUSY_MS / 1000
    )
    if write:
        db.execute("pragma synchronous=full")
        db.execute("pragma secure_delete=on")
        db.execute("pragma temp_store=memory")  # no words in files elsewhere
        db.execute(f"pragma cache_size=-{_CACHE_KIB}")
    else:
        db.execute("pragma query_only=on")
    return db


def create(path: Path, schema: str, mark: str = "") -> None:
    """A new database for its owner alone, there when it is whole. Raises `OSError`, `sqlite3.Error`."""
    new = path.with_name(path.name + ".new")
    remove_database(new)
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    adopt(new)
    with contextlib.closing(connect(new, write=True)) as db:
        db.execute(f"pragma page_size={_PAGE_BYTES}")
        db.execute("pragma journal_mode=wal")
        db.executescript(schema)
        if mark:
            db.execute("insert into meta values ('mark', ?)", (mark,))
    new.rename(path)  # closed, it is one file


def remove_database(path: Path) -> None:
    """With what SQLite has put beside it."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


class State:
    """What both sides read of state.db."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def mark(self) -> str:
        """What the index is marked with."""
        found = self._db.execute("select value from meta where key = 'mark'").fetchone()
        return str(found[0]) if found else ""

    def shards(self) -> list[Shard]:
        """Those that count, the one that is being filled last."""
        return [Shard(*row) for row in self._db.execute("select * from shards order by number")]

    def put(self, shard: Shard) -> None:
        """A shard as it is now; for the one who writes."""
        self._db.execute("insert or replace into shards values (?, ?, ?, ?, ?, ?)", shard)

    def messages(self) -> int:
        """How many are in them."""
        return int(self._db.execute("select coalesce(sum(messages), 0) from shards").fetchone()[0])

    def waiting(self) -> int:
        """How many are yet to be read."""
        return int(self._db.execute("select count(*) from waiting").fetchone()[0])


def mark_of(store_id: bytes) -> str:
    """What the index of a store is marked with."""
    return f"{VERSION} {store_id.hex()}"


def empty(directory: Path) -> None:
    """Remove all that is in it but the lock, the list of shards first: without that the rest is nothing."""
    remove_database(directory / "state.db")
    for path in directory.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def remove(store_path: Path) -> bool:
    """Remove the index of a store that is to have none; False while somebody writes to it. Raises
    `OSError`."""
    directory = store_path / DIRECTORY
    if not directory.is_dir():
        return True
    lock = take_lock(directory / "lock")
    if lock is None:
        return False
    with lock:
        empty(directory)
    return True
