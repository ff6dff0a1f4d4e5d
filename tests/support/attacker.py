"""Somebody who can write to the store's files and knows the format: what he writes has every checksum right.

He reads a stream, alters what it says as he likes, and writes it anew as if it had always been so: packs,
chain, commits and segments that nothing but an earlier head tells from true ones. He knows the store's key
and uses our own code, since his would be no better.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from store import layout, records, segments
from store.about import About
from store.layout import FIRST_COMPACTED, RecordType
from store.log import StreamLog
from store.records import Entry
from store.scan import initial_state, key_of_pack, scan_records
from store.segments import Segment, all_packs, last_of, pack_path, packs_of, stream_files


@dataclass
class Written:
    """What one group says: CHUNKS payloads, and entries; `ends` its pack."""

    blocks: list[bytes] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    ends: bool = False


class Attacker:
    """At work on one stream of the store at `path`."""

    def __init__(self, path: Path, stream: str = "host") -> None:
        self.path = path
        self.directory = path / "streams" / stream
        self.about = About.read(path)

    def read(self) -> list[Written]:
        """All groups that the stream has, in order."""
        found: list[Written] = []
        for part in stream_files(self.directory).parts:
            for number in packs_of(part):
                path = pack_path(self.directory, number)
                group = Written()
                for record in scan_records(path, key_of_pack(path, self.about.id), layout.PACK_HEADER_BYTES):
                    match record.type:
                        case RecordType.COMMIT:
                            found.append(group)
                            group = Written()
                        case RecordType.CHUNKS:
                            group.blocks.append(record.payload)
                        case RecordType.ENTRIES:
                            raw = layout.block_bytes(record.type, record.payload)
                            group.entries += [records.decode(data) for _, data in layout.entries_in(raw)]
                if found:
                    found[-1].ends = True
        return found

    def write(self, groups: list[Written], *, as_segment: bool = False) -> None:
        """Put this in place of what the stream had, and remove the index, which remembers. `as_segment`: as
        if compaction had made it of what there was."""
        named = self.path / "elsewhere" / self.directory.name  # a pack's key comes from its directory's name
        named.mkdir(parents=True)
        state = initial_state(self.about.id, self.directory.name)
        last = FIRST_COMPACTED - 1 if as_segment else 0
        log = StreamLog(named, self.about.id, state, lock=None, new_pack=True, last_pack=last)
        for group in groups:
            for block in group.blocks:
                log.append_block(block)
            log.append_entries([records.encode(entry) for entry in group.entries])
            log.commit()
            if group.ends and group is not groups[-1]:
                log.roll(now=True)
        log.close()
        newest = max(last_of(part) for part in stream_files(self.directory).parts)
        for old in (*self.directory.glob("*.pack"), *self.directory.glob("*.segment")):
            old.unlink()
        for pack in named.iterdir():
            pack.rename(self.directory / pack.name)
        shutil.rmtree(named.parent)
        if as_segment:
            end = replace(log.state, pack=newest, offset=layout.PACK_HEADER_BYTES)
            packs = tuple(all_packs(self.directory))
            made = Segment(1, newest, packs, state, end, log.state.next_record)
            segments.write(self.directory, made)
        self.forget()

    def forget(self) -> None:
        """Remove the index, which remembers how it was."""
        shutil.rmtree(self.path / "index", ignore_errors=True)

    def rewrite(self, change: Callable[[list[Written]], None], *, as_segment: bool = False) -> None:
        """Read, alter, write."""
        groups = self.read()
        change(groups)
        self.write(groups, as_segment=as_segment)
