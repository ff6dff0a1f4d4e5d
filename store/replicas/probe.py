"""Whether a bucket keeps what a replica relies on; asked at every start, before anything is shipped.

It leaves one object for each host, `probe/HOST`. A bucket that takes a second object of the same name would let
two hosts, or an intruder, replace history without anybody noticing.
"""

from __future__ import annotations

from typing import Protocol

from store.replicas.errors import DiffersError, UnfitError
from store.replicas.layout import in_name
from store.replicas.source import Source

_TEXT = b"mailkeep was here, to see what this store does.\n"


class Probed(Source, Protocol):
    """What is probed."""

    def create(self, name: str, data: bytes) -> bool:
        """Make an object; False when the very same was there."""


def probe(remote: Probed, host: str) -> None:
    """Raises `UnfitError` for a store that will not do, `ReplicaError` for one that cannot be asked."""
    name = f"probe/{in_name(host)}"
    remote.create(name, _TEXT)
    try:
        new = remote.create(name, _TEXT[::-1])
    except DiffersError:
        new = False
    if new or remote.get(name) != _TEXT:
        raise UnfitError(
            f"{remote.url} lets an object be written over: it does not honour If-None-Match on PUT"
        )
    if name not in dict(remote.list("probe/")):
        raise UnfitError(f"{remote.url} does not list what was just written to it")
    if remote.get_range(name, 9, 3) != _TEXT[9:12]:
        raise UnfitError(f"{remote.url} gives other bytes than those that were asked for")
