"""What a reader needs of a replica's bucket or directory, whatever it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class Source(Protocol):
    """Objects by name. Any thread may ask. Every method may raise `StoreError`, naming URL and object."""

    url: str

    def get(self, name: str) -> bytes:
        """A whole object."""

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Part of one."""

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Names below a prefix with their sizes in bytes, in order."""
