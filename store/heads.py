"""Heads: what vouches for everything that a store has recorded up to a moment, in a few lines of text.

    mailkeep head 1
    store 8d1f… (hexadecimal)
    time 2026-11-25T06:40:00.123456Z
    stream 20113 <root, base64> <chain, base64> mx1
    gap mx2

A line for each stream that has facts, by name: how many, the root of the tree over them (`store.merkle`) and
the chain. A stream with a gap has lost facts, and nothing vouches for it. The text may be signed
(`store.notes`).
Pure: `store.evidence` takes heads from a store.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, unquote

from store.errors import StoreError
from store.merkle import HASH_BYTES

_FIRST = "mailkeep head 1"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STORE = re.compile("[0-9a-f]{32}")
_TIME = re.compile("[0-9]{4}(?:-[0-9]{2}){2}T[0-9]{2}(?::[0-9]{2}){2}[.][0-9]{6}Z")
_FACTS = re.compile("0|[1-9][0-9]{0,18}")
# What some program takes for the end of a line, and what drives a terminal: two readers of a head must never
# see different lines in it.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class HeadError(StoreError):
    """A text is no head, or not one that this version knows."""

    hint = "`mailkeep head --output FILE` writes one."
    exit_code = 1


@dataclass(frozen=True, slots=True)
class StreamHead:
    """What vouches for the first `facts` facts of a stream."""

    name: str
    facts: int
    root: bytes
    chain: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """All streams of a store at one moment; `gaps` are those that have lost facts."""

    store_id: bytes
    time_us: int
    streams: tuple[StreamHead, ...]
    gaps: tuple[str, ...] = ()

    def stream(self, name: str) -> StreamHead | None:
        """The head of one stream."""
        return next((stream for stream in self.streams if stream.name == name), None)

    @property
    def facts(self) -> int:
        """How many facts it vouches for."""
        return sum(stream.facts for stream in self.streams)

    def text(self) -> str:
        """In lines."""
        moment = _EPOCH + timedelta(microseconds=self.time_us)
        lines = [
            _FIRST,
            f"store {self.store_id.hex()}",
            f"time {moment.strftime('%Y-%m-%dT%H:%M:%S.%fZ')}",
            *(
                f"stream {stream.facts} {_b64(stream.root)} {_b64(stream.chain)} {quote(stream.name, '')}"
                for stream in sorted(self.streams, key=lambda stream: stream.name)
            ),
            *(f"gap {quote(name, '')}" for name in sorted(self.gaps)),
        ]
        return "\n".join(lines) + "\n"


def parse(text: str) -> Head:
    """A head from its lines (without signatures). Lines that begin with another word are left to later
    versions. Raises `HeadError`."""
    first, *lines = text.removesuffix("\n").split("\n")
    if first != _FIRST:
        raise HeadError(f"that is no head: it does not begin with {_FIRST!r}")
    stores: list[bytes] = []
    times: list[int] = []
    streams: list[StreamHead] = []
    gaps: list[str] = []
    try:
        for line in lines:
            if not line or _CONTROL.search(line):
                raise HeadError(f"a head has no such line, empty or with a control character: {line[:60]!r}")
            match line.split(" "):
                case ["store", told]:
                    stores.append(bytes.fromhex(_like(_STORE, told)))
                case ["time", told]:
                    moment = datetime.fromisoformat(_like(_TIME, told))
                    times.append((moment - _EPOCH) // timedelta(microseconds=1))
                case ["stream", told, root, chain, name]:
                    facts = int(_like(_FACTS, told))
                    streams.append(StreamHead(_name(name), facts, hash_of(root), hash_of(chain)))
                case ["gap", name]:
                    gaps.append(_name(name))
                case ["store" | "time" | "stream" | "gap", *_]:
                    raise HeadError(f"a head has no such line: {line[:60]!r}")
    except ValueError as exc:
        raise HeadError(f"the head cannot be read: {exc}") from exc
    names = [*(stream.name for stream in streams), *gaps]
    if len(stores) != 1 or len(times) != 1 or len(set(names)) != len(names):
        raise HeadError("a head has one store, one time, and each stream once: this one has not")
    return Head(stores[0], times[0], tuple(streams), tuple(gaps))


def _like(pattern: re.Pattern[str], told: str) -> str:
    if not pattern.fullmatch(told):
        raise ValueError(f"{told[:60]!r} is not written as it is in a head")
    return told


def _name(quoted: str) -> str:
    """A name, which is written in one way alone: so nobody takes one stream for another."""
    name = unquote(quoted)
    if not name or quote(name, "") != quoted:
        raise ValueError(f"{quoted[:60]!r} is not a stream's name as it is written in a head")
    return name


def hash_of(text: str) -> bytes:
    """A hash from its base64. Raises `ValueError`."""
    try:
        found = base64.b64decode(text, validate=True)
    except ValueError as exc:  # binascii's, and another for what is not ASCII
        raise ValueError(f"{text[:60]!r} is not base64") from exc
    if len(found) != HASH_BYTES:
        raise ValueError(f"{text[:60]!r} is not a hash of {HASH_BYTES} bytes")
    return found


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
