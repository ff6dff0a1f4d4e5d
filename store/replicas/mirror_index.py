"""A host's own index in a mirror of it: taken where a full round brings one, and begun again where need be.

Runs are hollow files. Of what they are made stands in what the mirror keeps, before the index names them.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import msgspec
from blake3 import blake3

from store.errors import StoreError
from store.files import Fill
from store.index import Index
from store.layout import FIRST_COMPACTED
from store.places import stream_number
from store.replicas.contents import Contents
from store.replicas.errors import MissingObjectError
from store.replicas.hollow import Hollow, Part
from store.replicas.index_fetch import FetchedIndex
from store.replicas.layout import Extent, IndexFiles, RoundError, index_piece_name, index_under
from store.replicas.named import packs_of
from store.replicas.reader import Replica
from store.view import View

log = logging.getLogger(__name__)
_COPY = b"copy"
"""in the index: which copy it was made from"""
_ENDS = b"ends"
"""in the index: how far each pack was there when it was last caught up"""
_RUNS = b"copied"
"""in the index: the numbers of the runs that are the copy's"""
_BESIDE = "index.new"
"""where one is made that is to take the place of the one in use"""
WRONG = "wrong"
"""the file with the names of pieces that were found missing or damaged, one a line"""
_Ends = dict[str, dict[int, int]]


class Kept(msgspec.Struct):
    """What a mirror knows of its host: what counts, and what the runs of its index here are made of."""

    contents: Contents
    runs: dict[str, tuple[Extent, ...]] = {}


class MirrorIndex:
    """The index below a mirror's `path`. `save` makes what is kept durable."""

    def __init__(
        self, replica: Replica, host: str, path: Path, hollow: Hollow, fill: Fill, save: Callable[[], None]
    ) -> None:
        self._replica = replica
        self._host = host
        self._path = path
        self._hollow = hollow
        self._fill = fill
        self._save = save

    def parts(self, extents: Sequence[Extent]) -> list[Part]:
        """What a run's file is made of."""
        return [Part(e.offset, e.length, index_piece_name(self._host, e), 0, e.digest) for e in extents]

    def found_wrong(self, name: str) -> None:
        """Remember that something is missing or damaged: the index that needs it cannot be read, which may
        show only long after it was taken. Whoever looks next does without."""
        if name.startswith(f"{index_under(self._host)}/"):
            log.warning("%s is missing or damaged: the next look at %s is without it", name, self._host)
            with (self._path / WRONG).open("a") as file:
                file.write(name + "\n")

    def _wrong(self, kept: Kept, in_use: Mapping[str, Extent]) -> set[str]:
        """What was found wrong, and has not been mended since: it is looked at again."""
        try:
            found = set((self._path / WRONG).read_text().splitlines())
        except FileNotFoundError:
            return set()
        known = kept.contents.index.pieces(self._host) if kept.contents.index else {}
        known |= in_use
        wrong = {name for name in found if name not in known or not self._is_right(name, known[name])}
        if not wrong:
            (self._path / WRONG).unlink()
        return wrong

    def _in_use(self, index: Index, kept: Kept) -> dict[str, Extent]:
        """The pieces of which the runs here are made that count."""
        with index.read() as snapshot:
            there = {index.run_path(info.number).name for info in snapshot.known.catalogue.runs}
        found = (extent for run, extents in kept.runs.items() if run in there for extent in extents)
        return {index_piece_name(self._host, extent): extent for extent in found}

    def _is_right(self, name: str, extent: Extent) -> bool:
        try:
            return blake3(self._replica.source.get(name)).digest() == extent.digest
        except StoreError:  # or nobody can be asked: as it was
            return False

    def drop_packs(self, index: Index, kept: Kept) -> None:
        """What lies in packs of segments that count no more lies elsewhere now. A segment names those that it
        was made from, but between two looks there may have been several, one made from the other."""
        gone: list[tuple[int, int]] = []
        with index.read() as snapshot:
            for name, stream in kept.contents.streams.items():
                number = stream_number(name)
                known = set(snapshot.packs(number))
                if all(known.issuperset(packs_of(text)) for text in stream.segments.values()):
                    gone += [(number, p) for p in known - stream.packs.keys() if p >= FIRST_COMPACTED]
        if gone:
            with index.update() as update:
                update.drop_packs(gone, 0)

    def drop(self, kept: Kept) -> None:
        """Remove it."""
        for name in kept.runs:
            self._hollow.remove(self._path / "index" / name)
        kept.runs = {}
        shutil.rmtree(self._path / "index")

    def take(self, index: Index, kept: Kept, store_id: bytes, *, anew: bool = False) -> None:
        """Become what the host's own index is, if it has shipped one that is not known here; with `anew` also
        if it is. What came since is put in at once: nobody finds less here meanwhile than before. Where it is
        damaged or missing, what is here stays, or else becomes what an earlier full round brought."""
        self._drop_runs(index, kept)
        in_use = self._in_use(index, kept)
        wrong = self._wrong(kept, in_use)
        is_lost = not wrong.isdisjoint(in_use)
        anew = anew or is_lost
        files = kept.contents.index
        if files is not None:
            with index.read() as snapshot:
                if snapshot.meta(_COPY) == _name(files) and not anew:
                    return
                is_empty = is_lost or not any(map(snapshot.state, kept.contents.streams))
            try:
                if self._become(index, kept, store_id, files, wrong):
                    return
            except (RoundError, MissingObjectError) as exc:
                log.warning("%s: %s is read without that index, which takes longer", exc, self._host)
                self._drop_runs(index, kept)
                # One that is here already, and has been caught up since, is worth more than an earlier one.
                if is_empty and self._become_earlier(index, kept, store_id, wrong):
                    return
        if anew:
            self._make(index, kept, store_id)

    def take_if_lost(self, index: Index, kept: Kept, store_id: bytes) -> None:
        """Begin anew where catching up would: that empties the index first, and whoever reads here meanwhile
        would find less."""
        view = View(index, self._path / "streams", store_id, index.keyring, self._fill)
        if any(map(view.has_lost, view.names())):
            self.take(index, kept, store_id, anew=True)

    def _make(self, index: Index, kept: Kept, store_id: bytes) -> None:
        """Become what the packs say, made beside the one in use and put in its place in one step."""
        self.sweep()
        fresh = Index(self._path / _BESIDE, store_id, keyring=index.keyring)
        with contextlib.closing(fresh):
            View(fresh, self._path / "streams", store_id, index.keyring, self._fill).catch_up_all()
            with index.update() as update:
                update.take_over(fresh)
                update.put_meta(_ENDS, msgspec.msgpack.encode(_ends(kept.contents)))
        self.sweep()

    def sweep(self) -> None:
        """Remove what one that was killed had begun to make."""
        shutil.rmtree(self._path / _BESIDE, ignore_errors=True)

    def _become_earlier(self, index: Index, kept: Kept, store_id: bytes, wrong: AbstractSet[str]) -> bool:
        """Become what a full round before the last brought, the newest that is whole."""
        for files in self._earlier(kept):
            try:
                return self._become(index, kept, store_id, files, wrong)
            except (RoundError, MissingObjectError) as exc:
                log.warning("%s", exc)
                self._drop_runs(index, kept)
        return False

    def _earlier(self, kept: Kept) -> Iterator[IndexFiles]:
        """Those of full rounds before the last, as far as they are kept, the newest first."""
        there = {name for name, _ in self._replica.source.list(f"{index_under(self._host)}/")}
        for files in self._replica.earlier_indexes(kept.contents):
            if there.issuperset(files.pieces(self._host)):
                yield files

    def _become(
        self, index: Index, kept: Kept, store_id: bytes, files: IndexFiles, wrong: AbstractSet[str]
    ) -> bool:
        """Become what a full round brings. False, and that is told once, for one of another version. Raises
        `RoundError`, `MissingObjectError`; also where a piece is known to be `wrong`."""
        for name in wrong & files.pieces(self._host).keys():
            raise RoundError(f"{self._replica.source.url}: {name} is missing or damaged")
        fetched = FetchedIndex(self._replica, self._host, files, threads=1)
        state = fetched.state()
        view = View(index, self._path / "streams", store_id, index.keyring, self._fill)
        numbers: list[int] = []
        with index.update() as update:

            def lay_out(at: int, number: int) -> Path:
                path = index.run_path(number)
                numbers.append(number)
                self._hollow.lay_out(path, self.parts(files.runs[at]))
                kept.runs[path.name] = files.runs[at]
                return path

            taken = fetched.put(update, state, lay_out)
            update.put_meta(_COPY, _name(files))
            if not taken:
                log.warning("the index of %s is of another version of mailkeep: all is fetched", self._host)
                return False
            update.put_meta(_RUNS, msgspec.msgpack.encode(numbers))
            update.put_meta(_ENDS, msgspec.msgpack.encode(_ends(kept.contents)))
            self._save()  # first: without it nobody could read the runs
            for stream in view.names():
                view.catch_up_within(update, stream)
        return True

    def _drop_runs(self, index: Index, kept: Kept) -> None:
        """Let go of runs of a copy that did not come to be the index: it was killed, or failed. Others come
        under their numbers, and must not be filled with their bytes. Those that were the index before stay
        for who still reads them, until the index removes their files."""
        with index.read() as snapshot:
            value = snapshot.meta(_RUNS)
            catalogue = snapshot.known.catalogue
        there = {info.number for info in catalogue.runs}
        copied = set(msgspec.msgpack.decode(value)) if value else set()
        copied |= {number for number, _ in catalogue.doomed}
        left = [name for name in kept.runs if int(Path(name).stem) not in copied]
        for name in left:
            path = self._path / "index" / name
            if int(path.stem) in there:
                self._hollow.drop(path)
            else:
                self._hollow.remove(path)
            del kept.runs[name]
        if left:
            self._save()

    def note_ends(self, index: Index, kept: Kept, store_id: bytes) -> bool:
        """Before bytes are put into the index: how far each pack is there. What is shipped last may be older
        than what was shipped first, and an index that has passed it by begins again, from the host's: whether
        it does."""
        ends = _ends(kept.contents)
        with index.read() as snapshot:
            value = snapshot.meta(_ENDS)
            known = msgspec.msgpack.decode(value, type=_Ends) if value else ends
            passed = any(
                (state := snapshot.state(stream)) is not None
                and any(
                    pack < state.pack and end > known.get(stream, {}).get(pack, 0)
                    for pack, end in packs.items()
                )
                for stream, packs in ends.items()
            )
        if passed:
            log.info("%s: what was missing is there now: it is indexed anew", self._host)
            self.take(index, kept, store_id, anew=True)
        if passed or not value or known != ends:
            with index.update() as update:
                update.put_meta(_ENDS, msgspec.msgpack.encode(ends))
        return passed


def _name(files: IndexFiles) -> bytes:
    """What tells one copy from another."""
    return b"".join(extent.digest for extent in files.state)


def _ends(contents: Contents) -> _Ends:
    return {
        name: {pack: stream.end(pack) for pack in stream.packs if pack < FIRST_COMPACTED}
        for name, stream in contents.streams.items()
    }
