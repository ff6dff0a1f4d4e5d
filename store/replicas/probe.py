"""Whether a bucket keeps what a replica relies on; asked at every start, before anything is shipped.

It leaves one object for each host, `probe/HOST`. A bucket that takes a second object of the same name would
let two hosts, or an intruder, replace history without anybody noticing. What else goes wrong on the way shows
in each upload: what was sent is compared with what the bucket says it has, else with what it gives back.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from store.replicas.errors import DiffersError, UnfitError
from store.replicas.layout import in_name
from store.replicas.remote import Remote

_TEXTS = tuple(f"mailkeep asks what this store does, {way}.\n".encode() for way in ("one way", "another way"))
_LOCK_SLACK = timedelta(hours=1)


def probe_name(host: str) -> str:
    """The object that a host's probe has made, and that stays."""
    return f"probe/{in_name(host)}"


def probe(remote: Remote, host: str, *, lock_days: int = 0) -> None:
    """Raises `UnfitError` for a store that will not do, `ReplicaError` for one that cannot be asked.

    `lock_days`: for so long the bucket must keep what is new from being removed, by its default retention.
    """
    name = probe_name(host)
    try:
        remote.create(name, _TEXTS[0])
    except DiffersError:  # one that keeps no promise had taken the other text
        if remote.get(name) not in _TEXTS:
            raise
    there = remote.get(name)
    try:
        remote.create(name, _TEXTS[there == _TEXTS[0]])
        taken = True
    except DiffersError:
        taken = False
    if taken or remote.get(name) != there:
        raise UnfitError(
            f"{remote.url} lets an object be written over: it does not honour If-None-Match on PUT"
        )
    if (name, len(there)) not in set(remote.list("probe/")):
        raise UnfitError(f"{remote.url} does not list what was written to it")
    if remote.get_range(name, 9, 3) != there[9:12]:
        raise UnfitError(f"{remote.url} gives other bytes than those that were asked for")
    if lock_days:
        _probe_lock(remote, host, lock_days)


def _probe_lock(remote: Remote, host: str, days: int) -> None:
    now = datetime.now(UTC)
    name = f"probe/{in_name(host)}-{now:%Y%m%d}"  # the lock of an older one has partly run out
    remote.create(name, _TEXTS[0])
    until = remote.locked_until(name)
    if until is None or until < now + timedelta(days=days - 1) - _LOCK_SLACK:
        raise UnfitError(
            f"{remote.url} does not lock what is new for {days} days, but "
            f"{f'until {until:%Y-%m-%d %H:%M} UTC' if until else 'not at all'}: give the bucket object lock "
            "with a default retention, or lower lock_days"
        )
