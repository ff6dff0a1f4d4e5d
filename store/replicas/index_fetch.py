"""A host's index, fetched whole from its replica: a restore need not make it again, only prove it right."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blake3 import blake3

from store.files import write_all
from store.index import Index
from store.index_copy import take_copy
from store.replicas.layout import Extent, IndexFiles, RoundError, index_piece_name
from store.replicas.reader import Replica
from store.update import Update


class FetchedIndex:
    """What full rounds bring of it. Raises `RoundError` for a piece that is not what was shipped,
    `StoreError`."""

    def __init__(self, replica: Replica, host: str, files: IndexFiles, threads: int) -> None:
        self._replica = replica
        self._host = host
        self._files = files
        self._threads = threads

    def state(self) -> bytes:
        """All but its runs, as `store.index_copy` has it."""
        return b"".join(map(self._piece, self._files.state))

    def take(self, index: Index) -> bool:
        """Have `index`, an empty one, become it. False where it is another version's. Raises `OSError`, too,
        and then nothing is changed."""
        state = self.state()
        with index.update() as update:

            def lay_out(at: int, number: int) -> Path:
                path = index.run_path(number)
                self._write(path, self._files.runs[at])
                return path

            return self.put(update, state, lay_out)

    def put(self, update: Update, state: bytes, lay_out: Callable[[int, int], Path]) -> bool:
        """The same within a transaction, with runs as `lay_out` has them, see `take_copy`."""
        try:
            return take_copy(update, state, lay_out)
        except (ValueError, IndexError) as exc:
            url = self._replica.source.url
            raise RoundError(f"{url}: the index of {self._host}: {exc}") from exc

    def _write(self, path: Path, extents: tuple[Extent, ...]) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with ThreadPoolExecutor(self._threads, thread_name_prefix="index") as pool:
                put: Callable[[Extent], None] = lambda e: write_all(fd, self._piece(e), e.offset)  # noqa: E731 - one line
                for _ in pool.map(put, extents):
                    pass
            os.fsync(fd)
        finally:
            os.close(fd)

    def _piece(self, extent: Extent) -> bytes:
        name = index_piece_name(self._host, extent)
        data = self._replica.source.get(name)
        if blake3(data).digest() != extent.digest:
            raise RoundError(f"{self._replica.source.url}: {name} is damaged")
        return data
