"""Mail from elsewhere into the store, each message once, however often it is offered.

A message is known by its bytes, its recipient and its folder (where the source has folders); never by its
Message-ID. It is also known when it was captured through LMTP for the same recipient: what a mailbox holds
then begins with trace fields that the mailbox server put on top. What was erased is left out. Nothing is
written before all this has been looked up, so an import that was killed goes on quickly. Many messages share
one flush, and none is held whole that is larger than `_KEPT_BYTES`. One `Intake` belongs to one thread, and
takes for granted that no other imports the same mail at the same time.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from blake3 import blake3

from sidecar.line_ends import LineEnds, Lines
from sidecar.traces import HEAD_BYTES, Traces, traces
from store.deliveries import Query
from store.errors import StoreError, StoreFailedError, StoreFullError
from store.ids import ContentId, DeliveryId, now_us
from store.ingest import Ingest
from store.records import Delivery, Envelope, Leg, Recipient
from store.rows import Term
from store.store import Store

CONVERTED = "line-ends-converted"
"""the note on a message whose file had LF, where one would look for the file's own bytes"""
_KEPT_BYTES = 1 << 20
_IN_FLIGHT_MESSAGES = 1000
_IN_FLIGHT_BYTES = 16 << 20
_BACKLOG_BYTES = 4 << 20
_REMEMBERED = 10_000
_TRIES = 3
_TIMEOUT_S = 300.0


class How(enum.StrEnum):
    """What became of a message that was offered."""

    NEW = "new"
    THERE = "there"
    """it was imported before, or captured through LMTP for this recipient: nothing was written"""
    ERASED = "erased"
    """it was erased for good, and stays so"""
    FAILED = "failed"
    """it could not be read"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A message as some source has it. `origin` says where it lies, `pieces` gives its bytes, again at each
    call, and may raise `OSError`. `received_us` is when the mailbox got it."""

    origin: str
    recipient: bytes
    received_us: int
    folder: str = ""
    flags: tuple[str, ...] = ()
    pieces: Callable[[], Iterable[bytes]]
    line_ends: LineEnds = LineEnds.KEEP


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of it. `delivery` is the new one, or the one that was there; `reason` says why it
    failed."""

    found: Found
    how: How
    content: ContentId | None = None
    delivery: DeliveryId | None = None
    size: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Known:
    """A message that was read once. `names` are its own name, then what it was called under its trace fields;
    `kept` has its pieces unless they are too many."""

    names: tuple[ContentId, ...]
    size: int
    traces: Traces
    changed: bool
    kept: list[bytes] | None


class Intake:
    """Takes messages into a store that is open for writing; a context manager, which settles at its end."""

    def __init__(self, store: Store, *, dry_run: bool = False) -> None:
        """With `dry_run` nothing is written, and the store may be open for reading. Raises `SealedError`: in
        a store that is sealed for others nobody sees what is there already."""
        store.require_whole()
        self._store = store
        self._dry_run = dry_run
        self._recent: dict[tuple[ContentId, bytes, str], DeliveryId | None] = {}
        self._idle = threading.Condition()
        self._messages = 0
        self._bytes = 0
        self._within_second = 0
        self._failed: list[tuple[Found, StoreError]] = []

    def take(self, found: Found) -> Taken:
        """Take one message. A new one is durable when `settle` has returned. Raises `StoreError` when the
        store takes no more; whatever is wrong with the message itself is told in the answer."""
        try:
            known = _read(found)
        except OSError as exc:
            return Taken(found, How.FAILED, reason=f"cannot be read: {exc.strerror or exc}")
        if not known.size:
            return Taken(found, How.FAILED, reason="is empty")
        there = self._there(found, known)
        if there is not None:
            return there
        if self._dry_run:
            self._remember(found, known.names[0], None)
            return Taken(found, How.NEW, known.names[0], size=known.size)
        self._wait(lambda: self._messages < _IN_FLIGHT_MESSAGES and self._bytes < _IN_FLIGHT_BYTES)
        with self._idle:
            if self._failed and not _may_work_again(self._failed[0][1]):
                raise self._failed[0][1]
        return self._write(found, known)

    def settle(self) -> None:
        """Wait until all that was taken is durable and can be found. Raises `StoreError`."""
        for _ in range(_TRIES):
            self._wait(lambda: self._messages == 0)
            with self._idle:
                failed, self._failed = self._failed, []
            if not failed:
                break
            if lost := [error for _, error in failed if not _may_work_again(error)]:
                raise lost[0]
            for found, _ in failed:
                again = self._write(found, _read(found))
                if again.how is How.FAILED:
                    raise StoreError(f"{found.origin} {again.reason}")
        else:
            raise StoreError("what was taken could not be written, however often it was tried")
        self._store.settle_index()
        if not self._store.index_lag and not self._dry_run:
            self._recent.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or not issubclass(kind, StoreError):
            self.settle()

    def _there(self, found: Found, known: _Known) -> Taken | None:
        """Why a message is not to be written, if so."""
        if len(self._recent) >= _REMEMBERED and not self._dry_run:
            self.settle()
        own = known.names[0]
        key = _key(own, found)
        if key in self._recent:
            return Taken(found, How.THERE, own, self._recent[key], known.size)
        with self._store.index.read() as snapshot:
            counters = snapshot.counters()
            # Names under trace fields are those of captured mail, or of what was erased.
            names = known.names if counters.deliveries.get(Leg.LMTP) or counters.erased else (own,)
            stored = [name for name in names if snapshot.content(name) is not None]
        if counters.erased and any(self._store.was_erased(name) for name in names):
            return Taken(found, How.ERASED, own, size=known.size)
        addresses = {found.recipient.lower(), known.traces.delivered_to} - {b""}
        for name in stored:
            for address in addresses:
                query = Query(terms=((Term.CONTENT, name), (Term.RECIPIENT, address)))
                for other in self._store.deliveries(query):
                    if _is_same(other.delivery, found, whole=name == own):
                        return Taken(found, How.THERE, name, other.delivery.id, known.size)
        return None

    def _write(self, found: Found, known: _Known) -> Taken:
        ingest = self._store.begin()
        lines = Lines(found.pieces(), found.line_ends) if known.kept is None else known.kept
        try:
            for piece in lines:
                ingest.feed(piece)
                if ingest.backlog > _BACKLOG_BYTES:
                    self._drain(ingest)
        except OSError as exc:
            return Taken(found, How.FAILED, reason=f"cannot be read: {exc.strerror or exc}")
        if ingest.finish() != known.names[0]:
            return Taken(found, How.FAILED, reason="was changed while it was read")

        def done(error: StoreError | None) -> None:
            with self._idle:
                self._messages -= 1
                self._bytes -= known.size
                if error is not None:
                    self._failed.append((found, error))
                self._idle.notify_all()

        with self._idle:
            self._messages += 1
            self._bytes += known.size
        delivery = ingest.commit(
            Leg.IMPORT,
            Envelope(known.traces.sender or b"", (Recipient(found.recipient),)),
            queue_id=b"",
            attributes=_attributes(found),
            notes=(CONVERTED,) if known.changed and found.line_ends is LineEnds.AS_FIRST else (),
            time_us=self._time_us(found.received_us),
            done=done,
        )
        self._remember(found, delivery.content, delivery.id)
        return Taken(found, How.NEW, delivery.content, delivery.id, known.size)

    def _remember(self, found: Found, content: ContentId, delivery: DeliveryId | None) -> None:
        self._recent[_key(content, found)] = delivery
        self._recent[(*_key(content, found)[:2], "")] = delivery  # a source without folders asks for any

    def _time_us(self, received_us: int) -> int:
        """When it was received, as the store has it: not in the future, and not in one microsecond with many
        others, which the index would have to look through for each of them. Most sources know seconds only,
        and a mailbox that was moved may have all its mail in one of them."""
        time_us = min(max(received_us, 0), now_us())
        if time_us % 1_000_000 == 0:
            time_us += self._within_second
            self._within_second = (self._within_second + 1) % 1_000_000
        return time_us

    def _drain(self, ingest: Ingest) -> None:
        """Wait until the writer has all that was fed so far."""
        taken = threading.Event()
        ingest.hand_over(lambda _error: taken.set())
        if not taken.wait(_TIMEOUT_S):
            raise StoreFailedError("the store did not take a message in time")

    def _wait(self, ready: Callable[[], bool]) -> None:
        with self._idle:
            if not self._idle.wait_for(ready, _TIMEOUT_S):
                raise StoreFailedError("the store did not take messages in time")


def _read(found: Found) -> _Known:
    """Read a message once and name it. Raises `OSError`."""
    lines = Lines(found.pieces(), found.line_ends)
    pieces = iter(lines)
    begin = b""
    for piece in pieces:
        begin += piece
        if len(begin) >= HEAD_BYTES:
            break
    top = traces(begin[:HEAD_BYTES])
    hashes = [blake3() for _ in (0, *top.starts)]
    for hash_, start in zip(hashes, (0, *top.starts), strict=True):
        hash_.update(memoryview(begin)[start:])
    kept: list[bytes] | None = [begin]
    size = len(begin)
    for piece in pieces:
        size += len(piece)
        for hash_ in hashes:
            hash_.update(piece)
        if kept is not None:
            kept.append(piece)
            if size > _KEPT_BYTES:
                kept = None
    names = tuple(ContentId(hash_.digest()) for hash_ in hashes)
    return _Known(names, size, top, lines.changed, kept)


def _is_same(other: Delivery, found: Found, *, whole: bool) -> bool:
    """Whether a delivery with the same bytes is the same mail."""
    if other.leg == Leg.LMTP:
        return True
    return (
        whole
        and other.leg == Leg.IMPORT
        and (not found.folder or other.attributes.get("folder", b"") == _as_value(found.folder))
        and any(place.address.lower() == found.recipient.lower() for place in other.envelope.recipients)
    )


def _key(content: ContentId, found: Found) -> tuple[ContentId, bytes, str]:
    return content, found.recipient.lower(), found.folder


def _attributes(found: Found) -> dict[str, bytes]:
    values = {
        "origin": found.origin,
        "folder": found.folder,
        "flags": " ".join(found.flags),
        "imported": str(now_us()),
    }
    return {name: _as_value(value) for name, value in values.items() if value}


def _as_value(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


def _may_work_again(error: StoreError) -> bool:
    return not isinstance(error, StoreFullError | StoreFailedError)
