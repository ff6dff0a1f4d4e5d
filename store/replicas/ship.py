"""Ship a store to a replica, a round at a time. REPLICA.md has the format, and why it is so.

    look -> what packs have gained -> pieces of the rest, for a while -> segments that are whole -> round

Full rounds bring a copy of the index, if it says just what counts then: whoever reads single messages from
the replica needs it (`store.replicas.index_files`).

A round is at most one object, plus pieces for what is large; each is created once. What a round says goes
out after all the bytes that it names, so that a replica is a store at every moment. A round whose answer was
lost is sent again as it was. Nothing here waits for mail, or is waited for by it.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from store.about import About
from store.errors import StoreError
from store.ids import now_us
from store.index_copy import IndexCopy
from store.replicas.behind import mark
from store.replicas.chain import Memory, RivalError, stand
from store.replicas.contents import Contents
from store.replicas.errors import DamagedUploadError, DiffersError, MissingObjectError
from store.replicas.index_files import IndexSender, is_at_one
from store.replicas.layout import (
    INLINE,
    Extent,
    IndexFiles,
    Round,
    RoundError,
    StreamChange,
    decode_round,
    encode_round,
    extent_of,
    in_name,
    index_piece_name,
    index_under,
    piece_name,
)
from store.replicas.local import Local, LocalStream, digest_of, slices
from store.replicas.mend import Mending
from store.replicas.named import segments_to_name, stretches, what_goes
from store.replicas.pause import Pause
from store.replicas.pieces import Pieces
from store.replicas.reader import Replica
from store.replicas.source import Target
from store.replicas.told import told_of
from store.runs import RunDamagedError
from store.segments import pack_path

log = logging.getLogger(__name__)
INLINE_BYTES = 1 << 20
"""what is new in a round goes into the round up to so many bytes, and into pieces beyond"""
PIECE_BYTES = 16 << 20
"""of a piece, at most: so much of a pack is in memory at once"""
ROUNDS_BETWEEN = 720
FULL_INLINE_BYTES = 64 << 20
"""bytes in rounds after which there is a full one before its time"""
_PIECES_S = 5.0
"""how long a round sends pieces; the next one goes on, so that new mail never waits for old"""
_AWAITED_S = 600.0
"""how long readers wait for an index after compaction; then they fetch what it would have told"""


@dataclass(frozen=True, slots=True)
class Shipped:
    """What one round came to. `new_bytes` of packs, `sent_bytes` with what was sent again as pieces; `more`
    waits that would have taken too long."""

    new_bytes: int = 0
    sent_bytes: int = 0
    objects: int = 0
    full: bool = False
    more: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ShipOptions:
    """How to ship. `sign` makes a signed note of a text; `stop` ends a round between two pieces; `index`
    gives a copy of the index, or none if it is not to be shipped."""

    sign: Callable[[str], str] = str
    index: Callable[[], IndexCopy | None] = lambda: None
    rounds_between: int = ROUNDS_BETWEEN
    piece_bytes: int = PIECE_BYTES
    pieces_s: float = _PIECES_S
    stop: Callable[[], bool] = lambda: False
    require: Callable[[], None] = lambda: None
    """raises `StoreError` where the target is not what was shipped to; asked in each round"""


@dataclass(frozen=True, slots=True)
class _Part:
    """What the replica has not got of a pack. `new`: somebody is writing there."""

    stream: str
    pack: int
    start: int
    end: int
    new: bool

    @property
    def size(self) -> int:
        return self.end - self.start


class Shipper:
    """Ships the store at `path` as `host`; for one thread."""

    def __init__(self, path: Path, target: Target, host: str, options: ShipOptions | None = None) -> None:
        """Takes up where the replica stands. Raises `StoreError`, `RivalError`, `OSError`."""
        self._path = path
        self._about = About.read(path)
        self._target = target
        self._made = Pieces(target)
        self._host = host
        self._options = options or ShipOptions()
        self._writer = secrets.token_hex(4)
        self._memory = Memory(path, target.url, host)
        self._local = Local(path, self._about.id)
        standing = stand(target, self._about.id, host, self._memory, self._local)
        self._contents = standing.contents
        self._due_full = standing.due_full
        self._memory.keep(self._contents, self._writer)
        self._mending = Mending(path, target.url, host)
        self._pending: tuple[Round, bytes] | None = None
        self._whole: dict[tuple[str, int], int] = {}
        """how far packs are there, as far as that has been looked up"""
        self._written: set[tuple[str, int]] = set()
        """packs that were seen being written"""
        self._unread: set[tuple[str, int]] = set()
        """packs that cannot be read here; each was told once"""
        self._looked: set[str] = set()
        """streams whose segments were compared with what is named since the start"""
        self._prepared = False
        """whether what is in rounds is in pieces, too, for the full round that is due"""
        self._index = IndexSender(self._piece_of_index)
        self._waits = False
        """whether the last round left something for the next"""
        self._vain = Pause()
        """after copies of the index that said something else than what counts"""
        self._index_failed = ""
        self._awaited_since: float | None = None
        """since when readers wait for an index"""
        self._behind_since: float | None = None
        self._last_look = time.monotonic()
        self.lag_bytes = 0
        """of packs, that the replica had not got after the last round or try"""

    @property
    def contents(self) -> Contents:
        """What counts in the replica now."""
        return self._contents

    def lag_s(self) -> float:
        """At most so old is the oldest mail that was captured and is not in the replica."""
        since = self._behind_since
        return time.monotonic() - since if since is not None else 0.0

    # -- a round

    def round(self, *, full: bool = False) -> Shipped:
        """Ship what is new; nothing new, nothing sent. Raises `StoreError`, `RivalError`, `OSError`; what had
        been sent by then is not sent again."""
        self._made.begin_round()
        last_full = self._contents.full_number
        looked = time.monotonic()
        if self._mending.look(self._contents):
            self._due_full = True
        due = full or self._is_full_due() or self._mending.due_full
        if self._mending.index:
            self._made.shun(self._mending.index)
            self._index.forget()
        lacking = self._contents.index is None or self._contents.regrouped or bool(self._mending.index)
        at_once = full or self._mending.due_full or self._is_overdue()
        # Not while more waits, since then it cannot be all that counts.
        wanted = due or (lacking and not self._waits)
        awaited_s = self._awaited_s() if wanted else 0.0
        asked = at_once or awaited_s > _AWAITED_S or (wanted and self._vain.is_over())
        copy = self._copy_of_index() if asked else None  # before the look at what it knows
        in_vain = awaited_s > _AWAITED_S or (asked and copy is None and self._awaited_since is not None)
        local = self._local.look()
        parts = list(self._missing(local))
        self._note(parts, self._last_look)
        self._options.require()
        self._last_look = looked
        if self._pending:
            self._put_pending()
            parts = list(self._missing(local))
        if self._due_full:
            self._put_full()
        left, unread = self._ship(local, parts, prepare=asked and (due or copy is not None))
        self._waits = bool(left)
        index = self._send_index(copy, wait=full) if copy and not left else None
        if copy and left:
            self._vain.begin()
        at_once = at_once or (asked and copy is None)
        if full or (in_vain and not index and not left) or (self._prepared and (index or (due and at_once))):
            self._put_full(index)
            if index:
                self._mending.index_sent()
        if self._contents.full_number != last_full:
            self._mending.look(self._contents)
        self._mend()
        self._note(left + unread, looked)
        self._memory.keep_lag(self.lag_bytes, {name: mark(stream.ends) for name, stream in local.items()})
        return Shipped(
            sum(part.size for part in parts) - self.lag_bytes, self._made.sent_bytes, self._made.objects,
            self._contents.full_number != last_full, bool(left) or self._mending.waits,
        )  # fmt: skip

    def _note(self, missing: list[_Part], since: float) -> None:
        """What is not there, and that all that came before `since` is."""
        self.lag_bytes = sum(part.size for part in missing)
        if not any(part.new for part in missing):
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = since

    def _missing(self, local: dict[str, LocalStream]) -> Iterator[_Part]:
        """What somebody writes comes first, and then the rest, in order."""
        rest = []
        for name, stream in local.items():
            if stream.newest is not None:
                self._written.add((name, stream.newest))
            for pack, end in stream.ends.items():
                if self._whole.get((name, pack), 0) >= end:
                    continue
                start = self._contents.stream(name).end(pack)
                self._whole[name, pack] = start
                if start < end:
                    part = _Part(name, pack, start, end, (name, pack) in self._written)
                    if part.new:
                        yield part
                    else:
                        rest.append(part)
        yield from rest

    def _ship(
        self, local: dict[str, LocalStream], parts: list[_Part], *, prepare: bool
    ) -> tuple[list[_Part], list[_Part]]:
        """One round; what is left of the parts for the next, and what cannot be read. `prepare`: for a full
        one, which then has little to send and keeps new mail waiting no longer than any round."""
        changes: dict[str, StreamChange] = {}
        data: list[bytes] = []
        left: list[_Part] = []
        unread: list[_Part] = []
        inline = sum(part.size for part in parts if part.new) <= INLINE_BYTES
        until = time.monotonic() + self._options.pieces_s
        for number, part in enumerate(parts, 1):
            extents: list[Extent] = []
            change = changes.setdefault(part.stream, StreamChange())
            try:
                path = pack_path(local[part.stream].directory, part.pack)
                if part.new and inline:
                    read = list(slices(path, part.start, part.end, INLINE_BYTES))
                    extents += [extent_of(at, some, copy=INLINE) for at, some in read]
                    data += [some for _, some in read]
                else:
                    for extent in self._pieces(part.stream, part.pack, path, part.start, part.end):
                        extents.append(extent)
                        if time.monotonic() >= until or self._options.stop():
                            break
            except FileNotFoundError:  # compaction has replaced it: what stands for it goes next
                extents = []
            except OSError as exc:  # of this file; the others must not wait for it
                self._cannot_read(part, exc)
                unread.append(part)
            if extents:
                change.packs[part.pack] = extents
            end = extents[-1].end if extents else part.start
            if end < part.end and part not in unread:
                left.append(_Part(part.stream, part.pack, end, part.end, part.new))
            if not (part.new and inline) and (time.monotonic() >= until or self._options.stop()):
                left += parts[number:]
                break
        if prepare:
            self._prepared = self._to_pieces(changes, until)
        for name, stream in local.items():
            self._name_segments(name, stream, changes.setdefault(name, StreamChange()))
        changes = {name: change for name, change in changes.items() if change}
        if changes:
            self._put(self._next(streams=changes), data)
        self._looked |= local.keys()
        return left, unread

    def _cannot_read(self, part: _Part, exc: OSError) -> None:
        if (part.stream, part.pack) not in self._unread:
            self._unread.add((part.stream, part.pack))
            log.error(
                "replica: pack %d of %s cannot be read, and stays away: %s", part.pack, part.stream, exc
            )

    def _name_segments(self, name: str, stream: LocalStream, change: StreamChange) -> None:
        there = self._contents.stream(name)
        change.segments = segments_to_name(there, stream, change)
        if change.segments or name not in self._looked:
            change.gone, change.gone_segments = what_goes(there, stream, change)

    # -- pieces

    def _pieces(self, stream: str, pack: int, path: Path, start: int, end: int) -> Iterator[Extent]:
        for at, data in slices(path, start, end, self._options.piece_bytes):
            yield self._piece(stream, pack, at, data)

    def _mend(self) -> None:
        """Some of the pieces that a check has asked for; never while we are to end."""
        until = time.monotonic() + self._options.pieces_s
        if not self._options.stop():
            self._mending.go_on(self._piece, lambda: time.monotonic() >= until or self._options.stop())

    def _piece(self, stream: str, pack: int, at: int, data: bytes, first: int | None = None) -> Extent:
        under = f"packs/{in_name(stream)}/"
        return self._made.create(under, at, data, lambda extent: piece_name(stream, pack, extent), first)

    def _piece_of_index(self, at: int, data: bytes) -> Extent:
        under = index_under(self._host) + "/"
        return self._made.create(under, at, data, lambda extent: index_piece_name(self._host, extent))

    def _copy_of_index(self) -> IndexCopy | None:
        """None also where it cannot be read: mail must not wait for what comes from it."""
        try:
            return self._options.index()
        except (StoreError, OSError) as exc:
            self._index_fails(exc)
            return None

    def _awaited_s(self) -> float:
        """For how long readers wait for an index that knows what compaction has done; 0 where none does."""
        if self._contents.index is None or not self._contents.regrouped:
            self._awaited_since = None
            return 0.0
        self._awaited_since = self._awaited_since or time.monotonic()
        return time.monotonic() - self._awaited_since

    def _index_fails(self, exc: Exception) -> None:
        if str(exc) != self._index_failed:
            self._index_failed = str(exc)
            log.error("replica: the index of %s is not shipped: %s", self._host, exc)

    def _send_index(self, copy: IndexCopy, *, wait: bool) -> IndexFiles | None:
        """Have a copy of the index be there, if it says what counts; None if it does not, or is not yet."""
        if not is_at_one(copy, self._contents):
            self._vain.begin()
            return None
        until = time.monotonic() + self._options.pieces_s
        try:
            files = self._index.send(
                copy, lambda: not wait and (time.monotonic() >= until or self._options.stop())
            )
        except (RunDamagedError, OSError) as exc:  # of the run's file here
            self._index_fails(exc)
            self._vain.begin()
            return None
        if files is None:
            return None
        self._vain = Pause()
        # What took days to send, and was named by nothing, may have been removed.
        there = {name for name, _ in self._target.list(index_under(self._host) + "/")}
        if not there.issuperset(files.pieces(self._host)):
            self._index.forget()
            return None
        return files

    # -- rounds' objects

    def _next(
        self, *, streams: dict[str, StreamChange], full: bool = False, index: IndexFiles | None = None
    ) -> Round:
        contents = self._contents
        return Round(
            self._about.id, self._host, contents.number + 1, max(now_us(), contents.time_us), contents.digest,
            self._writer, full=full, about=told_of(About.read(self._path)) if full else None, streams=streams,
            index=index,
        )  # fmt: skip

    def _put(self, round_: Round, data: list[bytes]) -> None:
        self._pending = round_, encode_round(round_, data, self._options.sign)
        self._put_pending()

    def _put_pending(self) -> None:
        assert self._pending is not None  # noqa: S101 - by its callers
        round_, whole = self._pending
        try:
            self._target.create(round_.name, whole)
        except (DiffersError, DamagedUploadError) as exc:
            there = self._target.get(round_.name)
            if there != whole:
                self._pass_over(round_, there, exc)
                raise
        self._pending = None
        self._made.count(len(whole))
        self._made.all_named(list_anew=round_.full)
        self._contents.apply(round_)
        for name, change in round_.streams.items():
            for pack in change.packs:
                self._whole[name, pack] = self._contents.stream(name).end(pack)
            for pack in change.gone:
                self._whole.pop((name, pack), None)
                self._written.discard((name, pack))
        self._memory.keep(self._contents, self._writer)
        if round_.full:
            self._due_full = False

    def _pass_over(self, round_: Round, there: bytes, exc: StoreError) -> None:
        """Another object has the round's number: a rival's, or ours, that was damaged on its way. Then a
        full round goes on behind it. Raises `RivalError`."""
        try:
            decode_round(there)
        except RoundError:
            self._contents.number, self._contents.digest = round_.number, round_.digest
            self._pending = None
            self._due_full = True
            return
        raise RivalError(f"{self._target.url}: somebody else has shipped {round_.name}") from exc

    def _is_full_due(self, times: int = 1) -> bool:
        contents = self._contents
        between = self._options.rounds_between * max(1, min(8, contents.full_size >> 20))
        since = contents.number - contents.full_number
        return bool(since) and (contents.inline_bytes > FULL_INLINE_BYTES * times or since >= between * times)

    def _is_overdue(self) -> bool:
        """Whether a full round has waited long enough for the index."""
        return self._is_full_due(2)

    def _put_full(self, index: IndexFiles | None = None) -> None:
        """A round that says all that counts, with every byte in pieces."""
        streams = self._contents.as_changes()
        for name, change in streams.items():
            for pack, there in change.packs.items():
                extents = self._mending.instead(name, pack, there)
                if any(extent.inline for extent in extents):
                    extents = self._as_pieces(name, pack, extents)
                change.packs[pack] = extents
        self._put(self._next(streams=streams, full=True, index=index), [])

    def _to_pieces(self, changes: dict[str, StreamChange], until: float) -> bool:
        """Let what is in rounds be in pieces as well, for a while; whether a little is left at most."""
        found = [
            (name, pack, extents, stretch)
            for name, stream in self._contents.streams.items()
            for pack, extents in stream.packs.items()
            for stretch in stretches(extents)
        ]
        left = sum(end - start for _, _, _, (start, end) in found)
        for name, pack, extents, (start, end) in found:
            path = pack_path(self._path / "streams" / name, pack)
            inline = [extent for extent in extents if extent.inline and start <= extent.offset < end]
            try:
                if not _is_as_shipped(path, inline):
                    continue  # the full round reads it from the rounds
                for extent in self._pieces(name, pack, path, start, end):
                    changes.setdefault(name, StreamChange()).packs.setdefault(pack, []).append(extent)
                    left -= extent.length
                    if time.monotonic() >= until or self._options.stop():
                        return left <= INLINE_BYTES
            except OSError as exc:
                log.debug("%s: %s", path, exc)
        return True

    def _as_pieces(self, name: str, pack: int, extents: list[Extent]) -> list[Extent]:
        """The extents of a pack with what is in rounds made into pieces, read here, else from the rounds."""
        kept = [extent for extent in extents if not extent.inline]
        for start, end in stretches(extents):
            inline = [e for e in extents if e.inline and start <= e.offset < end]
            path = pack_path(self._path / "streams" / name, pack)
            try:
                if _is_as_shipped(path, inline):
                    kept += list(self._pieces(name, pack, path, start, end))
                    continue
            except OSError as exc:
                log.debug("%s: %s", path, exc)
            # Replaced, lost, or rotten since: what the rounds have is what it was.
            for extent in inline:
                try:
                    data = b"".join(Replica(self._target).extent(self._host, name, pack, extent))
                except (RoundError, MissingObjectError) as exc:
                    log.error(
                        "replica: pack %d of %s is lost from byte %d on: %s", pack, name, extent.offset, exc
                    )
                else:
                    kept.append(self._piece(name, pack, extent.offset, data))
        return sorted(kept, key=lambda extent: (extent.offset, -extent.length))


def _is_as_shipped(path: Path, extents: list[Extent]) -> bool:
    """Whether a file still has the bytes that were shipped. Raises `OSError`."""
    return all(digest_of(path, extent.offset, extent.end) == extent.digest for extent in extents)
