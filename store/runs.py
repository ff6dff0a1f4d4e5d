"""Sorted runs: immutable files of fixed-width rows, written once, in order, and merged into larger ones.

A row is all there is, key and value in one (the index decides what its bytes mean). Rows of one table stand
in blocks of `BLOCK_ROWS`, column by column and compressed, since sorted rows share their first bytes and
neighbours in time their last. So a hash-keyed entry costs its own bytes once for each merge, and not a page
of a B-tree for each insert, however large the index has grown (O'Neil et al., "The log-structured
merge-tree", 1996). Filters (Bloom, 1970) keep look-ups of what is not there from reading anything.

Files are read with pread and never mapped: what the kernel caches of them is the kernel's to drop.
"""

from __future__ import annotations

import itertools
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Self

import msgspec
import zstandard
from blake3 import blake3

from store import codec
from store.files import Fill, all_here, write_all

MAGIC = b"MKRUN\x03\r\n"
BLOCK_ROWS = 512
_FILTER_BITS = 10
"""for each row; rows of a filtered table begin with a name of 12 bytes, and so must what is looked for"""
_END_BYTES = 6
_TRAILER_BYTES = 8 + 4 + 16
_SUM_BYTES = 8
_WRITE_BYTES = 1 << 20
_CACHED_BLOCKS = 256
_LEVEL = 3


class _Table(msgspec.Struct, frozen=True, array_like=True):
    """Where one table's blocks lie: `fences` are their first rows, `ends` their ends in the file, in
    `_END_BYTES` each (numbers as objects would take ten times the memory)."""

    width: int
    rows: int
    start: int
    fences: bytes
    ends: bytes
    last: bytes
    filter: bytes = b""

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return len(self.ends) // _END_BYTES

    def extent(self, number: int) -> tuple[int, int]:
        """Where a block begins and ends in the file."""
        at = number * _END_BYTES
        start = int.from_bytes(self.ends[at - _END_BYTES : at], "little") if number else self.start
        return start, int.from_bytes(self.ends[at : at + _END_BYTES], "little")


class Blocks:
    """A few unpacked blocks of all runs, so that neighbours cost nothing. Thread-safe."""

    def __init__(self, most: int = _CACHED_BLOCKS) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[int, int, int], bytes] = OrderedDict()

    def get(self, name: tuple[int, int, int], load: Callable[[], bytes]) -> bytes:
        """The block of that name, loaded if it is not here."""
        with self._lock:
            found = self._blocks.get(name)
            if found is not None:
                self._blocks.move_to_end(name)
                return found
        found = load()
        with self._lock:
            self._blocks[name] = found
            if len(self._blocks) > self._most:
                self._blocks.popitem(last=False)
        return found


class RunDamagedError(ValueError):
    """A run's bytes are not what was written."""


_serials = itertools.count()


class Run:
    """One run file, open for reading. Thread-safe. Raises `RunDamagedError`, `OSError`."""

    _fd = -1

    def __init__(self, path: Path, number: int, blocks: Blocks, fill: Fill = all_here) -> None:
        self.path = path
        self.number = number
        self._fill = fill
        self._serial = next(_serials)  # a number may come again after a transaction that failed
        self._cache = blocks
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.size = os.fstat(self._fd).st_size
            trailer = self.pread(_TRAILER_BYTES, max(0, self.size - _TRAILER_BYTES))
            at, length = int.from_bytes(trailer[:8], "little"), int.from_bytes(trailer[8:12], "little")
            packed = self.pread(min(length, self.size), at)
            self.digest = trailer[12:]
            """of where its blocks lie, and with which rows they begin"""
            if blake3(packed).digest(16) != self.digest:
                raise ValueError("damaged or cut short")  # noqa: TRY301 - closed below
            self._tables = msgspec.msgpack.decode(codec.unpack(packed), type=dict[int, _Table])
        except (ValueError, OverflowError, zstandard.ZstdError, OSError) as exc:
            os.close(self._fd)
            self._fd = -1
            raise RunDamagedError(f"{path}: {exc}") from exc

    def pread(self, size: int, at: int) -> bytes:
        """Bytes of the file, as it was when it was opened: also when it has been removed since."""
        self._fill(self.path, at, at + size)
        return os.pread(self._fd, size, at)

    def __del__(self) -> None:
        # Snapshots share runs, and the last of them to go closes the file.
        if self._fd >= 0:
            os.close(self._fd)

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(table.rows for table in self._tables.values())

    def tables(self) -> list[int]:
        """The tables that have rows here."""
        return sorted(self._tables)

    def count(self, table: int) -> int:
        """Rows of one table."""
        found = self._tables.get(table)
        return found.rows if found else 0

    def find(self, table: int, prefix: bytes) -> list[bytes]:
        """The rows that begin with `prefix`."""
        found = self._tables.get(table)
        if found is None or (found.filter and not _may_hold(found.filter, prefix)):
            return []
        if prefix > found.last or prefix < found.fences[: len(prefix)]:
            return []
        rows: list[bytes] = []
        for number in range(self._block_of(found, prefix), found.blocks):
            columns = self._block(table, number)
            count = len(columns) // found.width
            for at in range(_first_not_before(columns, count, prefix), count):
                row = columns[at::count]
                if not row.startswith(prefix):
                    return rows
                rows.append(row)
        return rows

    def range(self, table: int, low: bytes, high: bytes, *, reverse: bool) -> Iterator[bytes]:
        """The rows in [low, high), in order or in reverse."""
        found = self._tables.get(table)
        if found is None or high <= found.fences[: found.width] or low > found.last:
            return
        numbers = (
            range(self._block_of(found, high), -1, -1)
            if reverse
            else range(self._block_of(found, low), found.blocks)
        )
        for number in numbers:
            columns = self._block(table, number)
            count = len(columns) // found.width
            first = _first_not_before(columns, count, low)
            end = _first_not_before(columns, count, high)
            for at in range(end - 1, first - 1, -1) if reverse else range(first, end):
                yield columns[at::count]
            if first > 0 if reverse else end < count:
                return

    def blocks(self, table: int) -> Iterator[list[bytes]]:
        """All rows of a table, a block at a time, past the cache."""
        found = self._tables.get(table)
        for number in range(found.blocks if found else 0):
            yield _rows(self._load(table, number), found.width if found else 0)

    def _block(self, table: int, number: int) -> bytes:
        """One block, column by column: its row i is every n-th byte from i on."""
        return self._cache.get((self._serial, table, number), lambda: self._load(table, number))

    def _block_of(self, table: _Table, key: bytes) -> int:
        """The last block whose first row is not after `key`; 0 if none is."""
        width, fences = table.width, table.fences
        low, high = 0, table.blocks
        while low < high:
            middle = (low + high) // 2
            if fences[middle * width : middle * width + len(key)] < key:
                low = middle + 1
            else:
                high = middle
        return max(0, low - 1)

    def _load(self, table: int, number: int) -> bytes:
        found = self._tables[table]
        start, end = found.extent(number)
        data = self.pread(end - start, start)
        packed, total = data[:-_SUM_BYTES], data[-_SUM_BYTES:]
        if blake3(packed).digest(_SUM_BYTES) != total:
            raise RunDamagedError(f"{self.path} at byte {start}: block is damaged")
        columns = codec.unpack(packed)
        first = found.fences[number * found.width : (number + 1) * found.width]
        if columns[:: len(columns) // found.width] != first:
            raise RunDamagedError(f"{self.path} at byte {start}: block is not the one that belongs there")
        return columns


def _first_not_before(columns: bytes, count: int, key: bytes) -> int:
    """The first row of a block that does not come before `key`; `count` if all do. Rows are picked out one
    by one, since to turn a whole block costs more than the search."""
    low, high, size = 0, count, len(key)
    while low < high:
        middle = (low + high) // 2
        if columns[middle::count][:size] < key:
            low = middle + 1
        else:
            high = middle
    return low


def _rows(columns: bytes, width: int) -> list[bytes]:
    count = len(columns) // width
    turned = bytearray(len(columns))
    for i in range(width):
        turned[i::width] = columns[i * count : (i + 1) * count]
    whole = bytes(turned)
    return [whole[i : i + width] for i in range(0, len(whole), width)]


def _columns(rows: list[bytes], width: int) -> bytes:
    whole = b"".join(rows)
    return b"".join([whole[i::width] for i in range(width)])


def _filter_bytes(rows: int) -> int:
    return max(8, -(-rows * _FILTER_BITS // 8))


def _may_hold(bits: bytes, key: bytes) -> bool:
    # Names are digests, so their own bits do for the three hash functions (Kirsch and Mitzenmacher, "Less
    # hashing, same performance", 2006): of 100 names that are not there two pass.
    size = len(bits) * 8
    x = int.from_bytes(key[:6], "big") % size
    if not bits[x >> 3] >> (x & 7) & 1:
        return False
    y = int.from_bytes(key[6:12], "big") % size
    if not bits[y >> 3] >> (y & 7) & 1:
        return False
    z = (x + y) % size
    return bits[z >> 3] >> (z & 7) & 1 == 1


def _note(bits: bytearray, rows: list[bytes]) -> None:
    size, number = len(bits) * 8, int.from_bytes
    for row in rows:
        x, y = number(row[:6], "big") % size, number(row[6:12], "big") % size
        z = (x + y) % size
        bits[x >> 3] |= 1 << (x & 7)
        bits[y >> 3] |= 1 << (y & 7)
        bits[z >> 3] |= 1 << (z & 7)


class RunWriter:
    """Writes one run file: rows table by table, in order; durable when `finish` returns, else removed."""

    def __init__(self, path: Path, *, filtered: frozenset[int], expected: dict[int, int]) -> None:
        """`filtered` tables get a filter, for which `expected` says how many rows there may be."""
        self._path = path
        self._filtered = filtered
        self._expected = expected
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._at = 0
        self._buffer = [MAGIC]
        self._buffered = len(MAGIC)
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)
        self._tables: dict[int, _Table] = {}
        self.rows = 0

    def table(self, table: int, rows: Iterable[list[bytes]]) -> None:
        """All rows of one table: lists of rows, sorted within and among each other, of one width."""
        fences: list[bytes] = []
        ends = bytearray()
        start = self._at + self._buffered
        count, last = 0, b""
        bits = bytearray(_filter_bytes(self._expected.get(table, 0))) if table in self._filtered else None
        waiting: list[bytes] = []
        for some in rows:
            waiting += some
            while len(waiting) >= BLOCK_ROWS:
                self._block(waiting[:BLOCK_ROWS], fences, ends, bits)
                count, last = count + BLOCK_ROWS, waiting[BLOCK_ROWS - 1]
                waiting = waiting[BLOCK_ROWS:]
        if waiting:
            self._block(waiting, fences, ends, bits)
            count, last = count + len(waiting), waiting[-1]
        if count:
            self._tables[table] = _Table(
                len(last), count, start, b"".join(fences), bytes(ends), last, bytes(bits or b"")
            )
            self.rows += count

    def _block(self, rows: list[bytes], fences: list[bytes], ends: bytearray, bits: bytearray | None) -> None:
        packed = self._compressor.compress(_columns(rows, len(rows[0])))
        packed += blake3(packed).digest(_SUM_BYTES)
        fences.append(rows[0])
        self._buffer.append(packed)
        self._buffered += len(packed)
        ends += (self._at + self._buffered).to_bytes(_END_BYTES, "little")
        if self._buffered >= _WRITE_BYTES:
            self._flush()
        if bits is not None:
            _note(bits, rows)

    def _flush(self) -> None:
        data = b"".join(self._buffer)
        write_all(self._fd, data, self._at)
        self._at += len(data)
        self._buffer, self._buffered = [], 0

    def finish(self) -> int:
        """Write the footer and make the file durable; its size."""
        packed = zstandard.ZstdCompressor(level=_LEVEL).compress(msgspec.msgpack.encode(self._tables))
        at = self._at + self._buffered
        self._buffer.append(packed)
        trailer = at.to_bytes(8, "little") + len(packed).to_bytes(4, "little") + blake3(packed).digest(16)
        self._buffer.append(trailer)
        self._flush()
        os.fsync(self._fd)
        os.close(self._fd)
        self._fd = -1
        return self._at

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_rest: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._path.unlink(missing_ok=True)


def merged(
    sources: list[Iterator[list[bytes]]], keep: Callable[[list[bytes]], list[bytes]] = lambda rows: rows
) -> Iterator[list[bytes]]:
    """The rows of several sorted sources in one order, each row once; `keep` says which are worth keeping.

    Holds a block of each source.
    """
    heads = [head for source in sources if (head := _Head(source)).rows]
    while heads:
        upto = min(head.rows[-1] for head in heads)
        part: list[bytes] = []
        for head in heads:
            part += head.take(upto)
        if len(heads) > 1:
            part.sort()  # a few sorted stretches: linear in C
        yield keep(list(dict.fromkeys(part)))
        heads = [head for head in heads if head.rows]


class _Head:
    """What comes next of one source."""

    def __init__(self, source: Iterator[list[bytes]]) -> None:
        self._source = source
        self.rows = self._next()

    def take(self, upto: bytes) -> list[bytes]:
        """The rows at hand that are not after `upto`."""
        end = bisect_right(self.rows, upto)
        part = self.rows[:end]
        self.rows = self.rows[end:] or self._next()
        return part

    def _next(self) -> list[bytes]:
        return next((rows for rows in self._source if rows), [])
