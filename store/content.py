"""From a recipe back to the message: exact, and proven before the last byte is given.

Each chunk is checked against its name before it is used, and the whole message against its BLAKE3 and size
at the end. Whoever passes the bytes on must not finish the message before the iterator has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from blake3 import blake3

from store import splitter
from store.errors import DamagedError
from store.ids import ChunkId, chunk_id
from store.records import Content, Run


def assemble(content: Content, fetch: Callable[[ChunkId], bytes], key: bytes) -> Iterator[bytes]:
    """The message's bytes in pieces of at most a few megabytes.

    `fetch` gives a chunk's bytes; `key` is the store's key for chunk names. Raises `DamagedError`, at the
    latest after the last piece.
    """
    whole = blake3()
    size = 0
    for run in content.runs:
        pieces = (_checked(chunk, fetch, key) for chunk in run.chunks)
        for piece in splitter.encode_run(pieces, run.width, run.eol) if run.width else pieces:
            whole.update(piece)
            size += len(piece)
            yield piece
    if size != content.size or whole.digest() != content.id:
        raise DamagedError(f"content {content.id.hex()[:16]} does not come back as it was captured")


def assemble_some(
    content: Content, fetch: Callable[[ChunkId], bytes], key: bytes, wanted: Callable[[Run], bool]
) -> Iterator[bytes]:
    """The bytes of those runs that are wanted. As `assemble`, but nothing vouches for the whole."""
    for run in filter(wanted, content.runs):
        pieces = (_checked(chunk, fetch, key) for chunk in run.chunks)
        yield from splitter.encode_run(pieces, run.width, run.eol) if run.width else pieces


def _checked(chunk: ChunkId, fetch: Callable[[ChunkId], bytes], key: bytes) -> bytes:
    data = fetch(chunk)
    if chunk_id(data, key) != chunk:
        raise DamagedError(f"chunk {chunk.hex()} is not what it was")
    return data
