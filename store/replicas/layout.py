"""The objects of a replica: their names and bytes. No files and no network here; REPLICA.md explains."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

from blake3 import blake3

from store import notes
from store.errors import DamagedError
from store.notes import SignatureError, VerifyKey
from store.segments import SUFFIX

MAGIC = b"MKROUND1"
INLINE = -1
NO_ROUND = bytes(32)
_FIRST_LINE = "mailkeep round 1\n"
_LENGTH = struct.Struct("<I")
_SUM_BYTES = 32
_PIECE = re.compile(r"packs/([^/]+)/(\d{10})/(\d{12})-(\d+)-([0-9a-f]{64})(?:\.(\d+))?")


class RoundError(DamagedError):
    """A round, or a piece, is not what was shipped."""

    hint = "`mailkeep check --replica URL` tells what else is wrong with the replica."
    exit_code = 51

    def __init__(self, text: str, *, full: bool = False) -> None:
        super().__init__(text)
        self.full = full
        """whether it is a full round, which says nothing that the rounds around it do not say"""


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of a pack from `offset` on. They are in a piece (`copy` of it), or within a round: in the data of
    `round` from `at` on."""

    offset: int
    length: int
    digest: bytes
    copy: int = 0
    round: int = 0
    at: int = 0

    @property
    def end(self) -> int:
        """Where in the pack it ends."""
        return self.offset + self.length

    @property
    def inline(self) -> bool:
        """Whether a round holds it."""
        return self.copy == INLINE


@dataclass(slots=True)
class StreamChange:
    """What a round says of one stream."""

    packs: dict[int, list[Extent]] = field(default_factory=dict)
    segments: dict[str, str] = field(default_factory=dict)
    gone: list[int] = field(default_factory=list)
    gone_segments: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.packs or self.segments or self.gone or self.gone_segments)


@dataclass(frozen=True, slots=True)
class IndexFiles:
    """The host's index as a full round has it: all but its runs (the `state` of a `store.index_copy`), and
    its runs, each in pieces from its begin to its end."""

    state: tuple[Extent, ...]
    runs: tuple[tuple[Extent, ...], ...]

    def pieces(self, host: str) -> dict[str, Extent]:
        """Its pieces by the names of their objects."""
        files = (self.state, *self.runs)
        return {index_piece_name(host, extent): extent for file in files for extent in file}


@dataclass(slots=True)
class Round:
    """One round; `digest` is that of the whole object, known once it is encoded or decoded."""

    store_id: bytes
    host: str
    number: int
    time_us: int
    before: bytes
    writer: str
    full: bool = False
    about: dict[str, Any] | None = None
    streams: dict[str, StreamChange] = field(default_factory=dict)
    index: IndexFiles | None = None
    digest: bytes = b""
    signed_by: tuple[str, ...] = ()
    data_at: int = 0
    """where in the object the bytes of packs begin"""
    size: int = 0

    @property
    def name(self) -> str:
        """Its object's name."""
        return round_name(self.host, self.number, full=self.full)

    def held(self, data: bytes) -> bytes:
        """The bytes of packs in its object."""
        return data[self.data_at : -_SUM_BYTES]


def in_name(text: str) -> str:
    """A host's or stream's name as it stands in an object's."""
    return quote(text, "").replace("%", "=")


def out_of_name(text: str) -> str:
    """The other way round."""
    return unquote(text.replace("=", "%"))


def round_name(host: str, number: int, *, full: bool) -> str:
    """The name of a round's object."""
    return f"{rounds_under(host, full=full)}/{number:012d}"


def rounds_under(host: str, *, full: bool) -> str:
    """What the names of a host's rounds begin with."""
    return f"hosts/{in_name(host)}/{'full' if full else 'rounds'}"


def piece_name(stream: str, pack: int, extent: Extent) -> str:
    """The name of a piece's object."""
    copy = f".{extent.copy}" if extent.copy else ""
    at = f"{extent.offset:012d}-{extent.length}-{extent.digest.hex()}{copy}"
    return f"packs/{in_name(stream)}/{pack:010d}/{at}"


def index_piece_name(host: str, extent: Extent) -> str:
    """The name of the object of a piece of an index: where it belongs stands in full rounds alone."""
    copy = f".{extent.copy}" if extent.copy else ""
    return f"{index_under(host)}/{extent.length}-{extent.digest.hex()}{copy}"


def index_under(host: str) -> str:
    """What the names of the pieces of a host's index begin with."""
    return f"hosts/{in_name(host)}/index"


def parse_piece(name: str) -> tuple[str, int, Extent] | None:
    """Stream, pack and extent that a piece's name tells; None if it is no piece's."""
    found = _PIECE.fullmatch(name)
    if found is None:
        return None
    stream, pack, offset, length, digest, copy = found.groups()
    extent = Extent(int(offset), int(length), bytes.fromhex(digest), int(copy or 0))
    return out_of_name(stream), int(pack), extent


def extent_of(offset: int, data: bytes, *, copy: int = 0) -> Extent:
    """The extent that some bytes of a pack make."""
    return Extent(offset, len(data), blake3(data).digest(), copy)


def encode_round(round_: Round, data: list[bytes], sign: Callable[[str], str] = str) -> bytes:
    """A round's object; sets its digest. `data` are the bytes of the extents that are inline, in order."""
    told: dict[str, Any] = {
        "store": round_.store_id.hex(),
        "host": round_.host,
        "number": round_.number,
        "time_us": round_.time_us,
        "before": round_.before.hex(),
        "full": round_.full,
        "writer": round_.writer,
        "streams": {name: _told(change) for name, change in round_.streams.items()},
    }
    if round_.about is not None:
        told["about"] = round_.about
    if round_.index is not None:
        told["index"] = {
            "state": _told_file(round_.index.state),
            "runs": [_told_file(run) for run in round_.index.runs],
        }
    note = sign(_FIRST_LINE + json.dumps(told, separators=(",", ":")) + "\n").encode()
    parts = (MAGIC, _LENGTH.pack(len(note)), note, *data)
    hasher = blake3()
    for part in parts:
        hasher.update(part)
    round_.digest = hasher.digest()
    round_.data_at = len(MAGIC) + _LENGTH.size + len(note)
    whole = b"".join((*parts, round_.digest))
    round_.size = len(whole)
    at = 0
    for change, pack, number, extent in _inline(round_):
        change.packs[pack][number] = Extent(
            extent.offset, extent.length, extent.digest, INLINE, round_.number, at
        )
        at += extent.length
    return whole


def decode_round(data: bytes, key: VerifyKey | None = None) -> Round:
    """A round from its object; with `key` it must be signed by that. Raises `RoundError`."""
    body, total = data[:-_SUM_BYTES], data[-_SUM_BYTES:]
    if not data.startswith(MAGIC) or blake3(body).digest() != total:
        raise RoundError("it is damaged, or no round")
    try:
        (length,) = _LENGTH.unpack_from(data, len(MAGIC))
        data_at = len(MAGIC) + _LENGTH.size + length
        note = body[len(MAGIC) + _LENGTH.size : data_at].decode()
        text = key.verify(note) if key else notes.split(note)[0]
        signed_by = tuple(name for name, _ in notes.split(note)[1])
        if not text.startswith(_FIRST_LINE):
            raise RoundError("it is of a version that this one does not know")
        told = json.loads(text.removeprefix(_FIRST_LINE))
        round_ = Round(
            bytes.fromhex(told["store"]), told["host"], int(told["number"]), int(told["time_us"]),
            bytes.fromhex(told["before"]), told["writer"], bool(told["full"]), told.get("about"),
            {name: _change(change) for name, change in told["streams"].items()}, _index(told.get("index")),
            digest=total, signed_by=signed_by, data_at=data_at, size=len(data),
        )  # fmt: skip
        if odd := [name for name in round_.streams if "/" in name or not name.strip(".")]:
            raise RoundError(f"{odd[0]!r} is no stream's name")
        for change in round_.streams.values():
            for segment in change.segments:
                if "/" in segment or not segment.endswith(SUFFIX):
                    raise RoundError(f"{segment!r} is no segment's name")
    except SignatureError as exc:
        raise RoundError(str(exc)) from exc
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as exc:
        raise RoundError(f"it cannot be read: {exc!r}") from exc
    at = 0
    for change, pack, number, extent in _inline(round_):
        end = data_at + at + extent.length
        if end > len(body) or blake3(body[data_at + at : end]).digest() != extent.digest:
            raise RoundError(f"what it holds of pack {pack} is not what it says")
        change.packs[pack][number] = Extent(
            extent.offset, extent.length, extent.digest, INLINE, round_.number, at
        )
        at += extent.length
    return round_


def _inline(round_: Round) -> Iterator[tuple[StreamChange, int, int, Extent]]:
    for change in round_.streams.values():
        for pack, extents in change.packs.items():
            for number, extent in enumerate(extents):
                if extent.inline:
                    yield change, pack, number, extent


def _told(change: StreamChange) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if change.packs:
        told["packs"] = {
            str(pack): [[e.offset, e.length, e.digest.hex(), e.copy] for e in extents]
            for pack, extents in change.packs.items()
        }
    for name in ("segments", "gone", "gone_segments"):
        if getattr(change, name):
            told[name] = getattr(change, name)
    return told


def _told_file(extents: tuple[Extent, ...]) -> list[list[Any]]:
    return [[extent.length, extent.digest.hex(), extent.copy] for extent in extents]


def _index(told: dict[str, Any] | None) -> IndexFiles | None:
    if told is None:
        return None
    return IndexFiles(_file(told["state"]), tuple(_file(run) for run in told["runs"]))


def _file(told: list[list[Any]]) -> tuple[Extent, ...]:
    extents: list[Extent] = []
    for length, digest, copy in told:
        at = extents[-1].end if extents else 0
        extents.append(Extent(at, int(length), bytes.fromhex(digest), int(copy)))
    return tuple(extents)


def _change(told: dict[str, Any]) -> StreamChange:
    packs = {
        int(pack): [
            Extent(int(offset), int(length), bytes.fromhex(digest), int(copy))
            for offset, length, digest, copy in extents
        ]
        for pack, extents in told.get("packs", {}).items()
    }
    segments = {str(name): str(text) for name, text in told.get("segments", {}).items()}
    return StreamChange(
        packs, segments, [int(pack) for pack in told.get("gone", ())],
        [str(name) for name in told.get("gone_segments", ())],
    )  # fmt: skip
