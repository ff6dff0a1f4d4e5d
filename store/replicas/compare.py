"""Compare a store with its replica, both ways; and mend what is damaged here from there.

Every extent that a replica counts is compared with the bytes of the pack here, by its digest: that reads all
of this store, and of the replica only names, sizes and rounds. With `read_data` its pieces are read as well.
What is wrong there `store.replicas.mend` mends from here.
A message is lost only where neither side has a pack's bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from store.errors import StoreError
from store.files import adopt, sync_directory, write_all
from store.findings import Finding
from store.layout import FIRST_COMPACTED
from store.replicas.asked import Place, Wrong
from store.replicas.chain import Memory
from store.replicas.contents import Contents
from store.replicas.errors import MissingObjectError
from store.replicas.fetch import cover
from store.replicas.layout import Extent, RoundError, index_under, piece_name
from store.replicas.local import digest_of
from store.replicas.reader import NoReplicaError, Reading, Replica
from store.sample import Sample
from store.segments import pack_path, stream_files


@dataclass(slots=True)
class Compared:
    """How much was looked at: extents and bytes of packs; `behind_bytes` wait to be shipped; `unnamed`
    objects are pieces that no round names, which do no harm. Of `others`, hosts with stores of their own,
    only the rounds were looked at."""

    hosts: int = 0
    others: int = 0
    extents: int = 0
    bytes: int = 0
    behind_bytes: int = 0
    unnamed: int = 0


def compare(
    replica: Replica, path: Path, store_id: bytes, *, read_data: Sample | None = None,
    compared: Compared | None = None, step: Callable[[int], None] = lambda _size: None,
    wrongs: list[Wrong] | None = None,
) -> Iterator[Finding]:  # fmt: skip
    """What is wrong, of every host of this store that ships there. Kinds: `replica` (something is wrong
    there), `local` (a pack here is missing, or has other bytes than were shipped). `read_data`: of which
    pieces the bytes are read. `wrongs` gets what is wrong there as `mend` takes it. Raises `StoreError`."""
    compared = compared or Compared()
    url = replica.source.url
    hosts = replica.hosts()
    if not hosts:
        raise NoReplicaError(f"{url} holds no replica")
    readings = [read_surely(replica, path, host) for host in hosts]
    # In this order: what a round names was there before it.
    sizes = dict(replica.source.list("packs/"))
    named: set[str] = set()
    for host, reading in zip(hosts, readings, strict=True):
        yield from (Finding("replica", url, fault) for fault in reading.faults)
        if reading.contents.store_id != store_id:
            # Several hosts may ship to one address, each a store of its own; but not under the name of ours.
            if (path / "streams" / host).is_dir():
                yield Finding(
                    "replica", url, f"{host} ships another store ({reading.contents.store_id.hex()})"
                )
            compared.others += 1
            continue
        compared.hosts += 1
        wrong = wrong_rounds(replica, path, reading)
        if wrongs is not None:
            wrongs.append(wrong)
        # Another host's streams need not be here.
        ours = any((path / "streams" / name).is_dir() for name in (host, *reading.contents.streams))
        yield from wrong_index(replica, reading, wrong, read_data)
        for stream, pack, extent in reading.contents.extents():
            compared.extents += 1
            compared.bytes += extent.length
            if not extent.inline:
                named.add(piece_name(stream, pack, extent))
                yield from listed_wrong(url, sizes, (stream, pack, extent), wrong)
                is_read = read_data is not None and read_data.takes(extent.digest)
                if is_read and not wrong.has(piece_name(stream, pack, extent)):
                    yield from read_wrong(replica, (stream, pack, extent), wrong)
            step(extent.length)
            if ours:
                yield from _local(path, stream, pack, extent)
        yield from (Finding("replica", url, what) for what in reading.contents.holes())
        if ours:
            compared.behind_bytes += _behind(path, reading.contents)
    if not compared.hosts:
        yield Finding("replica", url, f"nothing of this store is there, but of {', '.join(hosts)}")
    compared.unnamed = len(sizes.keys() - named)


def read_surely(replica: Replica, path: Path, host: str) -> Reading:
    """A host's rounds, and whether the last is there that was shipped from here. What seems wrong is read
    twice: a full round that comes to be while rounds are listed looks as if it were missing. Raises
    `NoReplicaError`, `StoreError`."""
    remembered = Memory(path, replica.source.url, host).last()
    reading = replica.read(host)
    if reading.faults:
        reading = replica.read(host)
    if remembered and remembered[0] > reading.contents.number and not reading.faults:
        reading.faults.append(f"round {remembered[0]} of {host} was shipped from here and is missing")
    return reading


def wrong_rounds(replica: Replica, path: Path, reading: Reading) -> Wrong:
    """What is wrong with a host's rounds; its pieces are not looked at yet."""
    wrong = Wrong(reading.contents.host, rounds=len(reading.faults))
    if wrong.rounds:
        remembered = Memory(path, replica.source.url, wrong.host).last()
        wrong.last = max(remembered[0] if remembered else 0, replica.last_round(wrong.host)[0])
    return wrong


def wrong_index(
    replica: Replica, reading: Reading, wrong: Wrong, read_data: Sample | None = None
) -> Iterator[Finding]:
    """What is wrong with the pieces of a host's index: by a list of them, and of some by their bytes."""
    index, host, url = reading.contents.index, reading.contents.host, replica.source.url
    if index is None:
        return
    sizes = dict(replica.source.list(f"{index_under(host)}/"))
    for name, extent in index.pieces(host).items():
        if name not in sizes:
            yield _wrong_of_index(url, name, "is missing", wrong)
        elif sizes[name] != extent.length:
            yield _wrong_of_index(url, name, f"has {sizes[name]} bytes", wrong)
        elif read_data is not None and read_data.takes(extent.digest):
            yield from read_wrong_index(replica, name, extent, wrong)


def read_wrong_index(
    replica: Replica,
    name: str,
    extent: Extent,
    wrong: Wrong,
    step: Callable[[int], None] = lambda _size: None,
) -> Iterator[Finding]:
    """What its bytes show to be wrong with a piece of the index; what is wrong is read twice."""
    what = ""
    for last in (False, True):
        try:
            data = replica.source.get(name)
            step(len(data))
        except MissingObjectError:
            what = "is missing"
        except StoreError:
            if last:
                raise  # it cannot be told whether it is right
        else:
            if blake3(data).digest() == extent.digest:
                return
            what = "is damaged"
    yield _wrong_of_index(replica.source.url, name, what, wrong)


def _wrong_of_index(url: str, name: str, what: str, wrong: Wrong) -> Finding:
    wrong.index.append(name)
    return Finding("replica", url, f"{name} {what}: single messages cannot be read from there")


def listed_wrong(url: str, sizes: Mapping[str, int], place: Place, wrong: Wrong) -> Iterator[Finding]:
    """What a list of the objects shows to be wrong with a piece."""
    name = piece_name(*place)
    size = sizes.get(name)
    if size is None:
        wrong.missing[name] = place
        yield Finding("replica", url, f"{name} is missing")
    elif size != place[2].length:
        wrong.damaged[name] = place
        yield Finding("replica", url, f"{name} has {size} bytes")


def read_wrong(
    replica: Replica, place: Place, wrong: Wrong, step: Callable[[int], None] = lambda _size: None
) -> Iterator[Finding]:
    """What its bytes show to be wrong with a piece; what is wrong is read twice."""
    name = piece_name(*place)
    for last in (False, True):
        try:
            for data in replica.extent(wrong.host, *place):
                step(len(data))
        except StoreError as exc:
            if not last:
                continue
            if isinstance(exc, MissingObjectError):
                wrong.missing[name] = place
            elif isinstance(exc, RoundError):
                wrong.damaged[name] = place
            yield Finding("replica", replica.source.url, str(exc))
        else:
            return


def _local(path: Path, stream: str, pack: int, extent: Extent) -> Iterator[Finding]:
    """Whether a pack here has the bytes of an extent. A pack that does not count here any more is passed
    over: compaction is ahead of the replica."""
    directory = path / "streams" / stream
    file = pack_path(directory, pack)
    try:
        found = digest_of(file, extent.offset, extent.end)
    except OSError:
        found = None
    if found == extent.digest or (found is None and not counts_here(directory, pack)):
        return
    what = "is missing" if not file.exists() else "has other bytes than were shipped, or fewer"
    yield Finding("local", f"{file}:{extent.offset}", f"{extent.length} bytes: the pack {what}")


def counts_here(directory: Path, pack: int) -> bool:
    """Whether a pack should be here: it is listed, or nothing stands for it."""
    if not directory.is_dir():
        return True
    files = stream_files(directory)
    if pack in files.packs():
        return True
    if pack >= FIRST_COMPACTED:
        return False  # its segment was replaced, or is damaged, which `check` tells
    return not any(not isinstance(part, int) and part.covers(pack, pack) for part in files.parts)


def _behind(path: Path, contents: Contents) -> int:
    waiting = 0
    for directory in (path / "streams").iterdir():
        if directory.is_dir():
            there = contents.streams.get(directory.name)
            for pack in stream_files(directory).packs():
                file = pack_path(directory, pack)
                size = file.stat().st_size if file.exists() else 0
                waiting += max(0, size - (there.end(pack) if there else 0))
    return waiting


def repair(replica: Replica, path: Path, findings: list[Finding], told: Callable[[str], None]) -> int:
    """Make packs here that findings of kind `local` name again from the replica, each verified before it
    takes the damaged one's place; that stays beside it, as `.damaged`. How many. Raises `StoreError`."""
    wanted = {Path(finding.where.rpartition(":")[0]) for finding in findings if finding.kind == "local"}
    mended = 0
    for host in replica.hosts():
        contents = replica.read(host).contents
        for name, stream in contents.streams.items():
            for pack in stream.packs:
                file = pack_path(path / "streams" / name, pack)
                if file in wanted and _remake(replica, host, name, pack, contents, file, told):
                    wanted.discard(file)
                    mended += 1
    return mended


def _remake(
    replica: Replica, host: str, name: str, pack: int, contents: Contents, file: Path,
    told: Callable[[str], None],
) -> bool:  # fmt: skip
    end = contents.stream(name).end(pack)
    if file.exists() and file.stat().st_size > end:
        told(f"{file} has more than was shipped: not replaced. What is sound of it can be read.")
        return False
    fresh = file.with_suffix(".repair")
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        for extent in cover(contents.stream(name), pack):
            at = extent.offset
            for data in replica.extent(host, name, pack, extent):
                write_all(fd, data, at)
                at += len(data)
        os.fsync(fd)
    except StoreError as exc:
        fresh.unlink()
        told(f"{file}: {exc}")
        return False
    finally:
        os.close(fd)
    adopt(fresh)
    if file.exists():
        file.replace(file.with_suffix(".damaged"))
    fresh.replace(file)
    sync_directory(file.parent)
    told(f"{file} was made again: {end} bytes")
    return True
