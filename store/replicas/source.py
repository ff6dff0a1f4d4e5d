"""What is needed of a replica's bucket or directory, whatever it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol


class Listed(NamedTuple):
    """An object in a list: its size in bytes, and when it was made."""

    name: str
    size: int
    time_us: int


class Source(Protocol):
    """Objects by name. Any thread may ask. Every method may raise `StoreError`, naming URL and object."""

    url: str

    def get(self, name: str) -> bytes:
        """A whole object."""

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Part of one."""

    def list(self, prefix: str, after: str = "") -> Iterator[tuple[str, int]]:
        """Names below a prefix, those that come after a name, with their sizes in bytes, in order."""

    def folders(self, prefix: str) -> Sequence[str]:
        """What comes next below a prefix that ends with a slash, wherever another slash follows it."""


class Target(Source, Protocol):
    """What a shipper needs besides reading."""

    def create(self, name: str, data: bytes) -> bool:
        """Make an object; False when the very same was there. Raises `DiffersError` when another one was,
        `DamagedUploadError` when it came to be something else."""

    def holds(self, name: str, data: bytes) -> bool:
        """Whether an object is there with just these bytes."""

    def listed(self, prefix: str) -> Iterator[Listed]:
        """As `list`, with times."""

    def delete(self, names: Sequence[str]) -> None:
        """Remove objects; what is not there is no error."""
