"""What a neighbour has just made durable is not stored again; what it told counts only while it holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from store.check import check
from store.findings import Checked
from store.ids import ChunkId
from store.neighbours import _SLOTS, Neighbours
from store.places import Location, stream_number
from store.store import Store
from tests.store.conftest import put_message
from tests.store.test_store import big_message

CHUNK = ChunkId(bytes(range(12)))
WHERE = Location(0xFFFFFFFF, 3, 0x7FFFFFFF, 255, 65536)


def test_a_child_tells_its_parent() -> None:
    table = Neighbours()
    if (child := os.fork()) == 0:
        table.tell([(CHUNK, WHERE)])
        os._exit(0)
    os.waitpid(child, 0)
    assert table.find(CHUNK) == WHERE
    assert table.find(ChunkId(bytes(12))) is None


def test_a_slot_that_is_half_written_counts_for_nothing() -> None:
    table = Neighbours()
    table.tell([(CHUNK, WHERE)])
    size = len(table._memory) // _SLOTS
    at = table._memory.find(CHUNK) // size * size
    for byte in range(at, at + size):
        kept = table._memory[byte]
        table._memory[byte] = kept ^ 1
        assert table.find(CHUNK) is None, byte
        table._memory[byte] = kept
    assert table.find(CHUNK) == WHERE


def test_what_is_beyond_its_widths_is_left_out() -> None:
    table = Neighbours()
    table.tell([(CHUNK, WHERE._replace(inner=1 << 32))])
    assert table.find(CHUNK) is None


class Neighbour:
    """Another process that writes to the store, and whose index lags behind for ever."""

    def __init__(self, path: Path, table: Neighbours, mail: bytes) -> None:
        self._to, self._from = os.pipe(), os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            code = 1
            try:
                self._be(path, table, mail)
                code = 0
            finally:
                os._exit(code)
        assert os.read(self._from[0], 1) == b"o"

    def _be(self, path: Path, table: Neighbours, mail: bytes) -> None:
        with Store.open(path, create=True) as store:
            store.among_others(table, ["w1"])
            store.start_writing("w2")
            assert store._indexer
            store._indexer._apply = lambda groups: None  # type: ignore[method-assign]
            os.write(self._from[1], b"o")
            os.read(self._to[0], 1)
            put_message(store, mail)
            os.write(self._from[1], b"p")
            os.read(self._to[0], 1)

    def put(self) -> None:
        """Let it take its message."""
        os.write(self._to[1], b".")
        assert os.read(self._from[0], 1) == b"p"

    def end(self) -> None:
        """Let it end."""
        os.write(self._to[1], b".")
        assert os.waitpid(self._pid, 0)[1] == 0
        for fd in (*self._to, *self._from):
            os.close(fd)


MAIL = big_message(200_000)


@pytest.fixture
def both(path: Path) -> Iterator[tuple[Store, Neighbour, Neighbours]]:
    """A store that we write, and somebody else has just written."""
    table = Neighbours()
    neighbour = Neighbour(path, table, MAIL)
    try:
        with Store.open(path) as store:
            store.among_others(table, ["w2"])
            store.start_writing("w1")
            neighbour.put()
            yield store, neighbour, table
    finally:
        neighbour.end()


Both = tuple[Store, Neighbour, Neighbours]


def test_it_is_shared_before_it_is_indexed(both: Both) -> None:
    store, _, _ = both
    before = store.pack_bytes()
    second = put_message(store, MAIL + b"another end\r\n")
    assert store.pack_bytes() - before < 5000, "the parts of the first are not written again"
    assert b"".join(store.read(second.content)) == MAIL + b"another end\r\n"
    assert list(check(store, Checked(), read_data=True)) == []


def test_without_the_table_it_would_be_stored_twice(both: Both) -> None:
    store, _, _ = both
    store.writer._neighbours = None
    before = store.pack_bytes()
    put_message(store, MAIL + b"another end\r\n")
    assert store.pack_bytes() - before > 100_000


def test_a_place_that_is_no_more_is_not_believed(both: Both) -> None:
    """A pack that the index has been through, and does not know any more: compaction has replaced it."""
    store, _, table = both
    store.catch_up()
    lone = ChunkId(b"no such part")
    where = Location(stream_number("w2"), 0, 64, 0, 100)
    table.tell([(lone, where)])
    with ExitStack() as stack:
        assert not store.writer._has_chunk(lone, store.writer._look(stack))
    table.tell([(lone, where._replace(pack=9))])
    with ExitStack() as stack:
        assert store.writer._has_chunk(lone, store.writer._look(stack)), "a pack still to be indexed"


def test_a_stream_that_nobody_named_is_not_believed(both: Both) -> None:
    store, _, table = both
    table.tell([(CHUNK, WHERE)])
    with ExitStack() as stack:
        assert not store.writer._has_chunk(CHUNK, store.writer._look(stack))
