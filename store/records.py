"""The entries of the log: what can happen to mail, as frozen records.

*Facts* (all but `Content`) are the history: they are chained by BLAKE3 and survive compaction. `Content` says
how a message's bytes are put together and may be rewritten.
All are msgpack arrays (msgspec), so that later versions may append fields; FORMAT.md has the layout.
Addresses, replies and header values are bytes, as they were on the wire.
"""

from __future__ import annotations

import enum

import msgspec
from blake3 import blake3

from store.ids import CHUNK_ID_BYTES, ChunkId, ContentId, DeliveryId


class EntryType(enum.IntEnum):
    """The byte that stands before each entry in the log. Values are part of the format."""

    DELIVERY = 1
    OUTCOMES = 2
    REPLAY = 3
    HOLD = 4
    ERASURE = 5
    UNCAPTURED = 6
    REPLAY_RUN = 7
    EXPIRY = 8
    STUB = 9
    CONTENT = 64


class Leg(enum.StrEnum):
    """Where a message was captured."""

    LMTP = "lmtp"
    """on its way to the mailbox server: *delivered* mail, with a reply for each recipient"""
    MILTER = "milter"
    """as Postfix took it in: *offered* mail, with BCC and submitter, not yet known to have been delivered"""
    IMPORT = "import"
    """taken in from elsewhere"""


class Recipient(msgspec.Struct, frozen=True, array_like=True):
    """One RCPT TO: the address without angle brackets, and the ESMTP parameters as they came."""

    address: bytes
    params: bytes = b""


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """MAIL FROM (without angle brackets, empty for the null sender), its parameters, and the recipients."""

    sender: bytes
    recipients: tuple[Recipient, ...]
    sender_params: bytes = b""


class Delivery(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """One captured transaction. `attributes` holds XFORWARD attributes or milter macros, by their names; of
    imported mail `folder`, `flags` (with spaces between), `origin` (of what kind, and where it lay) and
    `imported` (when, in µs, in decimal digits; the earliest imports have none)."""

    id: DeliveryId
    time_us: int
    leg: Leg
    content: ContentId
    size: int
    envelope: Envelope
    queue_id: bytes = b""
    subject: bytes = b""
    message_id: bytes = b""
    header_from: bytes = b""
    attributes: dict[str, bytes] = {}
    notes: tuple[str, ...] = ()
    """what a reader must know of this capture, e.g. `blank-line-unknown`"""

    @property
    def captured_us(self) -> int:
        """When the store got it: `time_us`, but for imported mail, where that is when it was received."""
        imported = self.attributes.get("imported", b"") if self.leg == Leg.IMPORT else b""
        return max(self.time_us, int(imported)) if imported.isdigit() and len(imported) < 20 else self.time_us


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """The final reply for one recipient (its place in the envelope), whole, without the last CRLF.

    `source` is `downstream` when the mailbox server said it, `mailkeep` when we did (4xx of our own),
    `earlier` when a known 2xx of an earlier try was given again.
    """

    recipient: int
    reply: bytes
    source: str = "downstream"


class Outcomes(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """The replies that came for one delivery."""

    delivery: DeliveryId
    time_us: int
    outcomes: tuple[Outcome, ...]


class Replay(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """One message put back: to whom, through which server, under which run, and the reply.

    One with an empty reply is the *intent*, durable before anything is sent: until a later one of the same
    run, delivery and recipient says what came of it, nobody knows whether the server has the message. A 4xx
    may be our own, for what was not sent after all."""

    delivery: DeliveryId
    time_us: int
    run: str
    recipient: bytes
    downstream: str
    reply: bytes

    @property
    def is_intent(self) -> bool:
        """Whether it says that it will be sent, and not yet what came of it."""
        return not self.reply


class ReplayRun(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """The begin, and later the end, of a replay run. `selection` names what was asked for (which messages,
    whereto), so that the same request after an interruption goes on where the run stopped."""

    run: str
    time_us: int
    selection: bytes
    owner: str
    messages: int
    finished: bool


class Hold(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """A hold placed on whatever `matches` (a `store.filters.Filter` as a dict), now and in future, or (with
    `released`) the end of the hold of that name. What is held is neither expired nor erased."""

    name: str
    time_us: int
    owner: str
    reason: str
    matches: dict[str, str | int | list[str]] = {}
    released: bool = False


LEAF_NAME_BYTES = 8
"""of a leaf, enough to name it: a fact has 8 random bytes, so that nobody makes two that begin alike"""


class Erasure(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """A delivery dropped for good, by whom and why. It stays as a tombstone: whatever would bring the
    message back looks for `content`, the message's content id keyed with the store's key (16 bytes).

    `facts` names what goes with it: of each fact about the delivery the first `LEAF_NAME_BYTES` of its leaf,
    end to end. So nothing else can pass for having been erased; what is recorded of it later stays. (None
    named: by an earlier version, all of it.)"""

    delivery: DeliveryId
    time_us: int
    owner: str
    reason: str
    content: bytes = b""
    facts: bytes = b""


class Expiry(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """Deliveries dropped by age, under which rule; `facts` as in `Erasure`, for each of them."""

    time_us: int
    rule: str
    owner: str
    deliveries: tuple[DeliveryId, ...]
    facts: tuple[bytes, ...] = ()


class Stub(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What compaction leaves of a fact about a delivery that was erased or has expired: the fact's leaf in
    the chain (32 bytes), so that the history can be verified without it, and which delivery it spoke of."""

    leaf: bytes
    delivery: DeliveryId
    type: int


class Uncaptured(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """A message that went through without a durable copy (`on_failure = "accept"`)."""

    time_us: int
    leg: Leg
    envelope: Envelope
    queue_id: bytes
    reason: str


class Run(msgspec.Struct, frozen=True, array_like=True):
    """A stretch of a message: chunks laid end to end, then encoded as `width` and `eol` say.

    `width` 0: the bytes as they are. Else base64, `width` characters a line, lines ended by `eol`;
    the last line has no line end (what follows belongs to the next run).
    """

    chunks: tuple[ChunkId, ...]
    width: int = 0
    eol: bytes = b""


class Content(msgspec.Struct, frozen=True, array_like=True):
    """The recipe that makes one message's bytes."""

    id: ContentId
    size: int
    runs: tuple[Run, ...]


Fact = Delivery | Outcomes | Replay | ReplayRun | Hold | Erasure | Expiry | Stub | Uncaptured
Entry = Fact | Content

_TYPE_OF: dict[type, EntryType] = {
    Delivery: EntryType.DELIVERY,
    Outcomes: EntryType.OUTCOMES,
    Replay: EntryType.REPLAY,
    ReplayRun: EntryType.REPLAY_RUN,
    Hold: EntryType.HOLD,
    Erasure: EntryType.ERASURE,
    Expiry: EntryType.EXPIRY,
    Stub: EntryType.STUB,
    Uncaptured: EntryType.UNCAPTURED,
    Content: EntryType.CONTENT,
}
_encoder = msgspec.msgpack.Encoder()
_decoders: dict[int, msgspec.msgpack.Decoder[Entry]] = {
    int(t): msgspec.msgpack.Decoder(cls) for cls, t in _TYPE_OF.items()
}
SALT_BYTES = 16
"""what makes a fact's leaf tell nothing to whoever guesses the fact"""
_SALTED = 0x80
_UNSALTED = frozenset({EntryType.STUB, EntryType.CONTENT})
_PREFIX = {cls: bytes([t]) for cls, t in _TYPE_OF.items()}


def encode(entry: Entry, salt: bytes = b"") -> bytes:
    """An entry as it stands in the log: its type byte, then msgpack. A fact with a `salt` (`SALT_BYTES`) has
    it between the two, and the upper bit of its type set."""
    kind = _TYPE_OF[type(entry)]
    if not salt or kind in _UNSALTED:
        return _PREFIX[type(entry)] + _encoder.encode(entry)
    return b"".join((bytes([kind | _SALTED]), salt, _encoder.encode(entry)))


def decode(data: bytes) -> Entry:
    """The entry in `data`. Raises `ValueError` when it is none (msgspec's errors are ValueErrors)."""
    if not data or type_in(data) not in _decoders:
        raise ValueError(f"unknown entry type {data[:1].hex() or 'none'}")
    body = 1 + SALT_BYTES if data[0] & _SALTED else 1
    entry: Entry = _decoders[type_in(data)].decode(memoryview(data)[body:])
    if isinstance(entry, Content) and any(len(c) > CHUNK_ID_BYTES for r in entry.runs for c in r.chunks):
        return _shortened(entry)
    return entry


def _shortened(recipe: Content) -> Content:
    """A recipe of format 1, which named chunks by 16 bytes."""
    runs = (Run(tuple(ChunkId(c[:CHUNK_ID_BYTES]) for c in r.chunks), r.width, r.eol) for r in recipe.runs)
    return Content(recipe.id, recipe.size, tuple(runs))


def type_of(entry: Entry) -> EntryType:
    """The type under which an entry stands in the log."""
    return _TYPE_OF[type(entry)]


def removed_with(removal: Erasure | Expiry, delivery: DeliveryId) -> frozenset[bytes] | None:
    """The names of the facts that go with a delivery by this removal; None where it names none, and means all
    there are."""
    if isinstance(removal, Erasure):
        names = removal.facts
    elif not removal.facts:
        names = b""
    else:
        names = removal.facts[removal.deliveries.index(delivery)]
    return names_in(names) if names else None


def names_in(names: bytes) -> frozenset[bytes]:
    """The names of facts that stand end to end. Raises `ValueError`."""
    if len(names) % LEAF_NAME_BYTES:
        raise ValueError("a removal that names facts by half")
    return frozenset(names[at : at + LEAF_NAME_BYTES] for at in range(0, len(names), LEAF_NAME_BYTES))


def type_in(data: bytes) -> int:
    """The type of an encoded entry, also of one that this version does not know."""
    return data[0] & ~_SALTED


def is_fact(data: bytes) -> bool:
    """Whether an encoded entry is part of the chained history: types below 64 are, also unknown ones."""
    return type_in(data) < EntryType.CONTENT


def leaf(data: bytes) -> bytes:
    """The 32 bytes by which an encoded fact stands in the chain; a stub stands for the fact it replaced.

    Raises `ValueError`."""
    if data[0] == EntryType.STUB:
        stub = decode(data)
        assert isinstance(stub, Stub)  # noqa: S101 - its type byte says so; mypy does not see it
        if len(stub.leaf) != blake3.digest_size:  # else two leaves could be made from the bytes of two others
            raise ValueError(f"a stub's leaf has {len(stub.leaf)} bytes")
        return stub.leaf
    return blake3(b"\0" + data).digest()


def is_known(data: bytes) -> bool:
    """Whether this version knows the type of an encoded entry."""
    return type_in(data) in _decoders
