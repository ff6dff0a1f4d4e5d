"""One message into the store: cut, name, hand over; then commit or abort.

Bytes are handed to the writer as soon as a few pieces are there, so a message of any size takes a bounded
piece of memory. Nothing of it can be found until `commit` has been answered. Not thread-safe.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blake3 import blake3

from store.ids import ChunkId, ContentId, DeliveryId, chunk_id, new_delivery_id, now_us
from store.layout import NewChunk
from store.records import Content, Delivery, Envelope, Leg, Run
from store.splitter import Piece, Splitter
from store.writer import Done, Submission, Tally, Writer

_HAND_OVER_BYTES = 256 << 10
_HEADER_BYTES = 64 << 10
_SMALL_FEED_BYTES = 1024
_VALUE_BYTES = 998
_KEPT_FIELDS = (b"subject", b"message-id", b"from")
_VALUE = re.compile(rb"[ \t]*:[ \t]*((?:[^\r\n]++|\r?\n(?=[ \t])|\r(?!\n))*+)")
_RECEIVED = re.compile(rb"(?i)\A(?:(?!received:)[^\n]*\n){0,8}received:((?:[^\n]|\n(?=[ \t]))*)")
_RECEIVED_ID = re.compile(rb"(?i)\sid(?:[ \t]|\r?\n[ \t])+([0-9A-Z]{6,64})(?![0-9A-Z])")


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was made durable. Byte counts are of raw chunks: new to the store, and known to it before."""

    delivery: DeliveryId
    content: ContentId
    size: int
    new_bytes: int
    duplicate_bytes: int


class Ingest:
    """One message on its way into the store."""

    def __init__(self, writer: Writer, key: bytes) -> None:
        self.size = 0
        self._writer = writer
        self._key = key
        self._splitter = Splitter()
        self._hash = blake3()
        self._runs: list[tuple[list[ChunkId], int, bytes]] = []
        self._chunks: list[NewChunk] = []
        self._held = 0
        self._handed = 0
        self._tally = Tally()
        self._epoch: int | None = None
        self._header = b""
        self._drops = bytearray()
        self._content: ContentId | None = None

    def feed(self, data: bytes) -> None:
        """The next bytes of the message."""
        if len(data) < _SMALL_FEED_BYTES:  # a client that drips must not cost an object for every drop
            self._drops += data
            if len(self._drops) < _SMALL_FEED_BYTES:
                return
            data = b""
        self._flush()
        self._digest(data)

    def _flush(self) -> None:
        if self._drops:
            drops = bytes(self._drops)
            self._drops.clear()
            self._digest(drops)

    def _digest(self, data: bytes) -> None:
        if not data:
            return
        self.size += len(data)
        self._hash.update(data)
        if len(self._header) < _HEADER_BYTES:
            self._header += data[: _HEADER_BYTES - len(self._header)]
        self._take(self._splitter.feed(data))
        if self._held >= _HAND_OVER_BYTES:
            self.hand_over()

    @property
    def backlog(self) -> int:
        """Bytes handed to the writer that it has not yet taken."""
        return self._handed - self._tally.taken_bytes

    def hand_over(self, done: Done | None = None) -> None:
        """Give the writer what there is; `done` is called once it has been taken, in the writer's thread."""
        if self._epoch is None:
            self._epoch = self._writer.epoch
        self._handed += self._held
        self._writer.submit(Submission(chunks=self._chunks, tally=self._tally, done=done, epoch=self._epoch))
        self._chunks, self._held = [], 0

    def finish(self) -> ContentId:
        """No more bytes will come. Returns what the message is called."""
        if self._content is None:
            self._flush()
            self._take(self._splitter.finish())
            self._content = ContentId(self._hash.digest())
        return self._content

    def top_received_id(self) -> bytes:
        """The id in the topmost Received field, where the MTA before us put its queue id; b"" if none."""
        self._flush()
        top = _RECEIVED.match(self._header)
        found = _RECEIVED_ID.search(top[1]) if top else None
        return found[1] if found else b""

    def commit(
        self,
        leg: Leg,
        envelope: Envelope,
        *,
        queue_id: bytes,
        attributes: Mapping[str, bytes],
        notes: Sequence[str] = (),
        time_us: int | None = None,
        done: Done,
    ) -> Delivery:
        """Hand over all there is; `done(None)` comes when it is durable, else `done(error)`."""
        content = self.finish()
        now = now_us() if time_us is None else time_us
        fields = self._fields()
        delivery = Delivery(
            id=new_delivery_id(now), time_us=now, leg=leg, content=content, size=self.size, envelope=envelope,
            queue_id=queue_id, subject=fields.get(b"subject", b""), message_id=fields.get(b"message-id", b""),
            header_from=fields.get(b"from", b""), attributes=dict(attributes), notes=tuple(notes),
        )  # fmt: skip
        recipe = Content(content, self.size, tuple(Run(tuple(c), w, e) for c, w, e in self._runs))
        chunks, self._chunks = self._chunks, []
        self._writer.submit(
            Submission(
                chunks=chunks, entries=[recipe, delivery], tally=self._tally, done=done, epoch=self._epoch
            )
        )
        return delivery

    def receipt(self, delivery: Delivery) -> Receipt:
        """What came of it; meaningful once the commit is durable."""
        tally = self._tally
        return Receipt(delivery.id, delivery.content, self.size, tally.new_bytes, tally.duplicate_bytes)

    def _take(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            chunk = chunk_id(piece.data, self._key)
            self._chunks.append(NewChunk(chunk, piece.data, piece.kind))
            self._held += len(piece.data)
            if piece.joins or (piece.width == 0 and self._runs and self._runs[-1][1] == 0):
                self._runs[-1][0].append(chunk)
            else:
                self._runs.append(([chunk], piece.width, piece.eol))

    def _fields(self) -> dict[bytes, bytes]:
        header = self._header
        end = header.find(b"\r\n\r\n")
        header = header[: end + 2] if end >= 0 else header
        fields: dict[bytes, bytes] = {}
        lower = b"\n" + header.lower()  # one pass each in C is several times faster than a search by pattern
        for name in _KEPT_FIELDS:
            at = lower.find(b"\n" + name)
            while at >= 0 and name not in fields:
                if value := _VALUE.match(header, at + len(name)):
                    fields[name] = value[1][:_VALUE_BYTES].strip()
                at = lower.find(b"\n" + name, at + 1)
        return fields
