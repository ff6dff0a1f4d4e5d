"""Compare a store with its replica, both ways; and mend what is damaged here from there.

Every extent that a replica counts is compared with the bytes of the pack here, by its digest: that reads all
of this store, and of the replica only names, sizes and rounds. With `read_data` its pieces are read as well.
A message is lost only where neither side has a pack's bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from store.errors import StoreError
from store.files import adopt, sync_directory, write_all
from store.findings import Finding
from store.layout import FIRST_COMPACTED
from store.replicas.contents import Contents
from store.replicas.fetch import cover
from store.replicas.layout import Extent, piece_name
from store.replicas.reader import NoReplicaError, Replica
from store.segments import pack_path, stream_files

_SLICE_BYTES = 8 << 20


@dataclass(slots=True)
class Compared:
    """How much was looked at: extents and bytes of packs; `behind_bytes` wait to be shipped; `unnamed`
    objects are pieces that no round names, which do no harm."""

    hosts: int = 0
    extents: int = 0
    bytes: int = 0
    behind_bytes: int = 0
    unnamed: int = 0


def compare(
    replica: Replica, path: Path, store_id: bytes, *, read_data: bool = False,
    compared: Compared | None = None, step: Callable[[int], None] = lambda _size: None,
) -> Iterator[Finding]:  # fmt: skip
    """What is wrong, of every host of this store that ships there. Kinds: `replica` (something is wrong
    there), `local` (a pack here is missing, or has other bytes than were shipped). Raises `StoreError`."""
    compared = compared or Compared()
    url = replica.source.url
    hosts = replica.hosts()
    if not hosts:
        raise NoReplicaError(f"{url} holds no replica")
    sizes = dict(replica.source.list("packs/"))
    named: set[str] = set()
    for host in hosts:
        reading = replica.read(host)
        yield from (Finding("replica", url, fault) for fault in reading.faults)
        if reading.contents.store_id != store_id:
            yield Finding("replica", url, f"{host} ships another store ({reading.contents.store_id.hex()})")
            continue
        compared.hosts += 1
        # Another host's streams need not be here.
        ours = any((path / "streams" / name).is_dir() for name in (host, *reading.contents.streams))
        for stream, pack, extent in reading.contents.extents():
            compared.extents += 1
            compared.bytes += extent.length
            if not extent.inline:
                name = piece_name(stream, pack, extent)
                named.add(name)
                if sizes.get(name) != extent.length:
                    has = "is missing" if name not in sizes else f"has {sizes[name]} bytes"
                    yield Finding("replica", url, f"{name} {has}")
                elif read_data:
                    yield from _read(replica, host, stream, pack, extent)
            step(extent.length)
            if ours:
                yield from _local(path, stream, pack, extent)
        for name, stream_contents in reading.contents.streams.items():
            for pack in stream_contents.packs:
                if stream_contents.has_hole(pack):
                    what = f"pack {pack} of {name} has a hole at byte {stream_contents.end(pack)}"
                    yield Finding("replica", url, what)
        if ours:
            compared.behind_bytes += _behind(path, reading.contents)
    compared.unnamed = len(sizes.keys() - named)


def _read(replica: Replica, host: str, stream: str, pack: int, extent: Extent) -> Iterator[Finding]:
    try:
        for _ in replica.extent(host, stream, pack, extent):
            pass
    except StoreError as exc:
        yield Finding("replica", replica.source.url, str(exc))


def _local(path: Path, stream: str, pack: int, extent: Extent) -> Iterator[Finding]:
    """Whether a pack here has the bytes of an extent. A pack that does not count here any more is passed
    over: compaction is ahead of the replica."""
    directory = path / "streams" / stream
    file = pack_path(directory, pack)
    found = _digest(file, extent)
    if found == extent.digest or (found is None and not _counts(directory, pack)):
        return
    what = "is missing" if not file.exists() else "has other bytes than were shipped, or fewer"
    yield Finding("local", f"{file}:{extent.offset}", f"{extent.length} bytes: the pack {what}")


def _digest(file: Path, extent: Extent) -> bytes | None:
    hasher = blake3()
    try:
        with file.open("rb") as opened:
            at = extent.offset
            while at < extent.end:
                data = os.pread(opened.fileno(), min(_SLICE_BYTES, extent.end - at), at)
                if not data:
                    return None
                hasher.update(data)
                at += len(data)
    except OSError:
        return None
    return hasher.digest()


def _counts(directory: Path, pack: int) -> bool:
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
