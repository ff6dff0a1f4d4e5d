"""A proof of one delivery: a small file that says what was recorded, and verifies without the store.

JSON with the fact as it stands in the log, its number, the audit path from it to the root, and the head with
that root, signed or not. `deploy/verify_proof.py` verifies it, too, and shares no line with this. Beside it
the proof that one head continues another. Pure.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

import msgspec

from store import heads, merkle, notes, records
from store.errors import StoreError
from store.heads import Head, StreamHead
from store.ids import DELIVERY_ID_BYTES
from store.merkle import HASH_BYTES
from store.records import Delivery

_FORMAT = "mailkeep proof 1"
_CONSISTENCY = "mailkeep consistency 1"


class ProofError(StoreError):
    """A proof does not prove what it says, or is none."""

    hint = "`mailkeep prove ID --output FILE` makes one; do not believe this one."
    exit_code = 1


class _Written(msgspec.Struct):
    """The file, key by key."""

    format: str
    stream: str
    number: int
    fact: str
    path: list[str]
    head: str


@dataclass(frozen=True, slots=True)
class Proof:
    """`fact` is number `number` of `stream`, under the `head` (with its signatures)."""

    stream: str
    number: int
    fact: bytes
    path: tuple[bytes, ...]
    head: str

    def text(self) -> str:
        """As JSON."""
        written = _Written(
            _FORMAT, self.stream, self.number, _b64(self.fact), [_b64(part) for part in self.path], self.head
        )
        return msgspec.json.format(msgspec.json.encode(written), indent=1).decode() + "\n"

    def verify(self) -> tuple[Delivery, Head]:
        """What it proves, and under which head, whoever has signed that. Raises `ProofError`, `HeadError`."""
        head = heads.parse(notes.split(self.head)[0])
        vouched = head.stream(self.stream)
        if vouched is None:
            raise ProofError(f"the head in the proof does not vouch for stream {self.stream!r}")
        try:
            leaf, delivery = records.leaf(self.fact), records.decode(self.fact)
        except (ValueError, IndexError, RecursionError) as exc:
            raise ProofError(f"the fact in the proof cannot be read: {exc}") from exc
        if not isinstance(delivery, Delivery):
            raise ProofError("the fact in the proof is no delivery")
        if (len(delivery.id), len(delivery.content)) != (DELIVERY_ID_BYTES, HASH_BYTES) or delivery.size < 0:
            raise ProofError("the fact in the proof is no delivery of ours: its id, its content or its size")
        if not merkle.includes(leaf, self.number, vouched.facts, self.path, vouched.root):
            raise ProofError("the fact in the proof is not in the history that the head vouches for")
        return delivery, head


def parse(text: str) -> Proof:
    """Raises `ProofError`."""
    try:
        told = msgspec.json.decode(text, type=_Written)
        fact, path = _bytes(told.fact), tuple(map(heads.hash_of, told.path))
    except (ValueError, RecursionError) as exc:
        raise ProofError(f"that is no proof: {exc}") from exc
    if told.format != _FORMAT:
        raise ProofError(f"this version does not know {told.format!r}")
    return Proof(told.stream, told.number, fact, path, told.head)


class _WrittenContinuation(msgspec.Struct):
    format: str
    old: str
    new: str
    paths: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Continuation:
    """What proves that the history under the head `new` begins with that under `old`: a path a stream."""

    old: str
    new: str
    paths: dict[str, tuple[bytes, ...]]

    def text(self) -> str:
        """As JSON."""
        paths = {name: [_b64(part) for part in path] for name, path in self.paths.items()}
        written = _WrittenContinuation(_CONSISTENCY, self.old, self.new, paths)
        return msgspec.json.format(msgspec.json.encode(written), indent=1).decode() + "\n"

    def faults(self) -> list[str]:
        """Why it is not so, in words; nothing if it is. Raises `HeadError`."""
        old, new = (heads.parse(notes.split(head)[0]) for head in (self.old, self.new))
        if old.store_id != new.store_id:
            return [f"they are of different stores: {old.store_id.hex()} and {new.store_id.hex()}"]
        return [fault for stream in old.streams if (fault := self._fault(stream, new))]

    def _fault(self, was: StreamHead, new: Head) -> str:
        is_ = new.stream(was.name)
        if is_ is None:
            lost = "has lost facts" if was.name in new.gaps else "is missing"
            return f"stream {was.name} {lost}: it had {was.facts} facts"
        if is_.facts < was.facts:
            return f"stream {was.name} has {is_.facts} facts and had {was.facts}: cut or rolled back"
        path = self.paths.get(was.name, ())
        if not merkle.continues(was.facts, is_.facts, was.root, is_.root, path):
            return f"stream {was.name}: its first {was.facts} facts are not what they were"
        return ""


def parse_continuation(text: str) -> Continuation:
    """Raises `ProofError`."""
    try:
        told = msgspec.json.decode(text, type=_WrittenContinuation)
        paths = {name: tuple(map(heads.hash_of, path)) for name, path in told.paths.items()}
    except (ValueError, RecursionError) as exc:
        raise ProofError(f"that is no proof of consistency: {exc}") from exc
    if told.format != _CONSISTENCY:
        raise ProofError(f"this version does not know {told.format!r}")
    return Continuation(told.old, told.new, paths)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as exc:
        raise ValueError("its base64 is damaged") from exc
