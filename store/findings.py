"""What a check has found, and how much it has looked at: plain values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import mul

import msgspec

_PRIME = (1 << 61) - 1


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong: what kind, where (file and byte, or an id), and in words.

    Kinds: `damage` (bytes are not what was written), `missing` (something that is referred to is not there),
    `content` (a message does not come back as it was captured), `index` (the index does not say what the
    streams say), `history` (facts were replaced that nobody removed).
    """

    kind: str
    where: str
    what: str


@dataclass(slots=True)
class Checked:
    """How much was looked at; `bytes_done` of `bytes_total` bytes of packs."""

    streams: int = 0
    commits: int = 0
    deliveries: int = 0
    contents: int = 0
    messages_read: int = 0
    message_bytes: int = 0
    sealed: int = 0
    """groups whose facts no identity at hand opens: checked from without"""
    unread: int = 0
    """messages that no identity at hand opens"""
    """bytes of messages put together (`read_data`)"""
    bytes_done: int = 0
    bytes_total: int = 0
    phase: str = ""


class Sum(msgspec.Struct, array_like=True):
    """A set of rows told by its size and the sum of its rows' squares, taken as numbers, modulo a prime; in
    whatever order they come.

    Two sets with one sum are the same but for a chance of 2⁻⁶¹; nobody but accident makes an index. (The rows
    themselves will not do for their squares: two that have exchanged what they say would go unseen.) Squares
    of many rows at once are a third of the work of a hash of each.
    """

    count: int = 0
    total: int = 0

    def add(self, rows: Iterable[bytes]) -> None:
        """These rows more, which must not be there yet."""
        numbers = [*map(int.from_bytes, rows)]
        self.count += len(numbers)
        self.total = (self.total + sum(map(mul, numbers, numbers))) % _PRIME

    def include(self, other: Sum) -> None:
        """All rows of a set that has none in common with this one."""
        self.count += other.count
        self.total = (self.total + other.total) % _PRIME
