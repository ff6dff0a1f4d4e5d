"""Look over what one host has in a replica: by names and sizes all of it, by its bytes a part, in turn.

It reads nothing of the store here; `store.replicas.mend` does, for what is wrong. Pieces are read in the
order of their names, behind the one that was read last, so that each has its turn.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from store.findings import Finding
from store.replicas.asked import Wrong
from store.replicas.chain import Memory
from store.replicas.compare import (
    listed_wrong,
    read_surely,
    read_wrong,
    read_wrong_index,
    wrong_index,
    wrong_rounds,
)
from store.replicas.contents import Contents
from store.replicas.errors import ReplicaError
from store.replicas.layout import Extent, in_name
from store.replicas.reader import NoReplicaError, Replica


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrubOptions:
    """How much to read. `portion`: so many bytes of so many that there are in pieces; `after`: the piece that
    was read last. `reached` is told of each that has been read, `step` of bytes."""

    portion: Callable[[int], int] = lambda _total: 0
    after: str = ""
    reached: Callable[[str], None] = lambda _name: None
    step: Callable[[int], None] = lambda _size: None


@dataclass(slots=True)
class Scrubbed:
    """What came of it: pieces that count, those of the index too, of them those whose bytes were read, and
    what is wrong."""

    wrong: Wrong
    findings: list[Finding] = field(default_factory=list)
    pieces: int = 0
    bytes: int = 0
    read_pieces: int = 0
    read_bytes: int = 0


def scrub(replica: Replica, path: Path, store_id: bytes, host: str, options: ScrubOptions) -> Scrubbed:
    """Look it over; what is wrong is in the result. Raises `StoreError`: for what cannot be reached, or
    where nothing was ever shipped to."""
    url = replica.source.url
    try:
        reading = read_surely(replica, path, host)
    except NoReplicaError as exc:
        return _without_rounds(replica, path, host, exc)
    contents = reading.contents
    if contents.store_id != store_id:
        raise ReplicaError(f"{url}: another store ({contents.store_id.hex()}) is shipped there as {host}")
    scrubbed = Scrubbed(wrong_rounds(replica, path, reading))
    wrong = scrubbed.wrong
    of_index = list(wrong_index(replica, reading, wrong))
    found = dict(zip(wrong.index, of_index, strict=True))
    # In this order: what a round names was there before it.
    sizes: dict[str, int] = {}
    for stream in contents.streams:
        for name, size in replica.source.list(f"packs/{in_name(stream)}/"):
            sizes[name] = size
            options.step(0)
    pieces = contents.pieces()
    for name, place in pieces.items():
        for finding in listed_wrong(url, sizes, place, wrong):
            found[name] = finding
        options.step(0)
    indexed = _of_index(contents)
    extents = {name: place[2] for name, place in pieces.items()} | indexed
    lengths = {name: extent.length for name, extent in extents.items()}
    scrubbed.pieces, scrubbed.bytes = len(lengths), sum(lengths.values())

    def look(name: str) -> Iterator[Finding]:
        if name in indexed:
            return read_wrong_index(replica, name, indexed[name], wrong, options.step)
        return read_wrong(replica, pieces[name], wrong, options.step)

    sound = {name: length for name, length in lengths.items() if name not in found}
    found |= _read(sound, look, scrubbed, options)
    if found:
        now = replica.read(host).contents
        _forget(wrong, found, {*now.pieces(), *_of_index(now)})
    faults = [Finding("replica", url, fault) for fault in reading.faults]
    scrubbed.findings = [*faults, *found.values()]
    return scrubbed


def _without_rounds(replica: Replica, path: Path, host: str, exc: NoReplicaError) -> Scrubbed:
    """No round can be read; where none is there it may be that nothing was ever shipped."""
    remembered = Memory(path, replica.source.url, host).last()
    names = replica.round_names(host, before=sys.maxsize)
    if not names and not (remembered and remembered[0]):
        raise exc
    last = max(remembered[0] if remembered else 0, replica.last_round(host)[0])
    wrong = Wrong(host, rounds=len(names), last=last, anew=not names)
    return Scrubbed(wrong, [Finding("replica", replica.source.url, str(exc))])


def _of_index(contents: Contents) -> dict[str, Extent]:
    return contents.index.pieces(contents.host) if contents.index else {}


def _read(
    sizes: dict[str, int],
    look: Callable[[str], Iterator[Finding]],
    scrubbed: Scrubbed,
    options: ScrubOptions,
) -> dict[str, Finding]:
    found: dict[str, Finding] = {}
    wanted = options.portion(sum(sizes.values()))
    for name in sorted(sizes, key=lambda name: (name <= options.after, name)):
        if scrubbed.read_bytes >= wanted:
            break
        for finding in look(name):
            if not scrubbed.wrong.has(name):
                raise ReplicaError(finding.what)  # it cannot be told whether it is right
            found[name] = finding
        scrubbed.read_pieces += 1
        scrubbed.read_bytes += sizes[name]
        options.reached(name)
    return found


def _forget(wrong: Wrong, found: dict[str, Finding], now: set[str]) -> None:
    """What does not count any more may have been removed while we looked."""
    for name in found.keys() - now:
        del found[name]
        wrong.missing.pop(name, None)
        wrong.damaged.pop(name, None)
    wrong.index = [name for name in wrong.index if name in now]
