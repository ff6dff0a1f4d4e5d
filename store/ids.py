"""Names of things: delivery, content and chunk ids, as types of their own.

`ContentId` is the plain 256-bit BLAKE3 of a whole message: it is what the history vouches for, and anyone
can recompute it. `ChunkId` is an address inside one store: BLAKE3 keyed with the store's key and cut to
96 bits, so that it confirms no guess about a message to somebody without the key.
"""

from __future__ import annotations

import os
import threading
import time
from typing import NewType

from blake3 import blake3

ChunkId = NewType("ChunkId", bytes)
"""12 bytes: keyed BLAKE3 of a chunk, cut to 96 bits."""

ContentId = NewType("ContentId", bytes)
"""32 bytes: BLAKE3 of a whole message."""

DeliveryId = NewType("DeliveryId", bytes)
"""16 bytes: 8 random, then the capture time in µs since 1970 (big-endian); random first so that a few
characters are enough to name one."""

FOREVER_US = (1 << 63) - 1
"""Later than any time, in µs since 1970."""

CHUNK_ID_BYTES = 12
DELIVERY_ID_BYTES = 16


def now_us() -> int:
    """The time in µs since 1970, UTC."""
    return time.time_ns() // 1000


class _Random:
    """Random bytes, fetched many at a time: a system call for each id would cost the mail path more than the
    rest of it. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: list[bytes] = []

    def __call__(self) -> bytes:
        with self._lock:
            if not self._parts:
                data = os.urandom(4096)
                self._parts = [data[i : i + 8] for i in range(0, len(data), 8)]
            return self._parts.pop()


_random = _Random()
os.register_at_fork(after_in_child=_random.__init__)  # type: ignore[misc]  # a child has ids of its own


def new_delivery_id(time_us: int) -> DeliveryId:
    """A fresh id that carries its capture time."""
    return DeliveryId(_random() + time_us.to_bytes(8, "big"))


def delivery_time_us(delivery: DeliveryId) -> int:
    """The capture time that an id carries, in µs since 1970."""
    return int.from_bytes(delivery[8:], "big")


def chunk_id(data: bytes | memoryview, key: bytes) -> ChunkId:
    """The address of `data` in the store whose 32-byte key is `key`."""
    return ChunkId(blake3(data, key=key).digest(CHUNK_ID_BYTES))


def keyed_digest(data: bytes, key: bytes) -> bytes:
    """16 bytes that name `data` to whoever has the store's 32-byte key, and tell nothing to others."""
    return blake3(data, key=key).digest(16)


def content_id(data: bytes) -> ContentId:
    """The id of a whole message held in memory; larger ones are hashed as they pass."""
    return ContentId(blake3(data).digest())


def order(delivery: DeliveryId) -> bytes:
    """The order in which the index keeps deliveries: time, then the random part."""
    return delivery[8:] + delivery[:8]
