"""All the hosts of a replica as one, read where they are: mirrors (`store.replicas.mirror`) made a fleet.

directory/hosts/HOST/   what was fetched of a host: may be removed at any time
directory/record/       a store: what was put back from here
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from store.about import About
from store.errors import SealedError, StoreError, StoreNotFoundError
from store.fleet import Fleet, gather
from store.ids import now_us
from store.replicas.errors import UnreachableError
from store.replicas.layout import in_name, out_of_name
from store.replicas.mirror import Mirror
from store.replicas.reader import NoReplicaError, Replica
from store.sealing import Identity
from store.store import Store

log = logging.getLogger(__name__)

Tell = Callable[[str], None]
"""hears, in words, what is wrong and does not keep the rest from being read"""


def open_fleet(
    replica: Replica, directory: Path, *, identities: Sequence[Identity] = (), tell: Tell = log.warning
) -> Fleet:
    """What is there of every host, kept below `directory`. A host that cannot be read is told, and so is a
    replica that cannot be reached where an earlier look is at hand. Raises `NoReplicaError`, `StoreError`,
    `SealedError`."""
    told: list[str] = []

    def note(fault: str) -> None:
        told.append(fault)
        tell(fault)

    hosts = _hosts(replica, directory, note)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    mirrors: list[Mirror] = []
    stores: list[Store] = []

    def close() -> None:
        for mirror in mirrors:
            mirror.close()

    def refresh() -> None:
        pairs = [(mirror, store) for mirror in mirrors for store in stores if store.path == mirror.path]
        for faults in gather(len(pairs), lambda at: pairs[at][0].refresh(pairs[at][1])):
            for fault in faults:
                tell(fault)

    try:
        opened = gather(len(hosts), lambda at: _one(replica, hosts[at], directory, identities))
        for host, (mirror, store, faults) in zip(hosts, opened, strict=True):
            for fault in faults:
                note(f"{host}: {fault}")
            mirrors.append(mirror)
            if store is not None:
                stores.append(store)
        _require_some(replica, hosts, stores)
        readers = sorted(_readers(mirrors, directory / "record", identities))
        record = Store.open(directory / "record", create=True, recipients=readers, identities=identities)
    except BaseException:
        for store in stores:
            store.close()
        close()
        raise
    return Fleet(stores, record, replica.source.url, refresh, close, told)


def _hosts(replica: Replica, directory: Path, tell: Tell) -> list[str]:
    try:
        hosts = replica.hosts()
    except UnreachableError as exc:
        known = directory / "hosts"
        hosts = sorted(out_of_name(path.name) for path in known.iterdir()) if known.is_dir() else []
        if not hosts:
            raise
        tell(str(exc))
    if not hosts:
        raise NoReplicaError(f"{replica.source.url} holds no replica")
    return hosts


def _readers(mirrors: Sequence[Mirror], record: Path, identities: Sequence[Identity]) -> set[str]:
    """For whom what is put on record here is sealed: for those of all hosts. What was sealed once is not
    opened because a host cannot be looked at, or is there no more."""
    readers = {reader for mirror in mirrors for reader in mirror.recipients}
    all_known = all(mirror.contents for mirror in mirrors)
    try:
        kept = About.read(record).recipients
    except StoreNotFoundError:
        # One of which nothing is known may be sealed, and who reads such a host has an identity.
        return readers if readers or all_known else {identity.recipient for identity in identities}
    return readers if readers and all_known else readers.union(kept)


def _require_some(replica: Replica, hosts: Sequence[str], stores: Sequence[Store]) -> None:
    if not stores:
        raise NoReplicaError(f"{replica.source.url}: nothing of {', '.join(hosts)} can be read")


def _one(
    replica: Replica, host: str, directory: Path, identities: Sequence[Identity]
) -> tuple[Mirror, Store | None, list[str]]:
    mirror = Mirror(replica, host, directory / "hosts" / in_name(host))
    faults: list[str] = []
    try:
        try:
            faults += mirror.follow()
        except StoreError as exc:
            if mirror.contents is None:
                raise
            age_s = round((now_us() - mirror.contents.time_us) / 1e6)
            faults.append(f"as it was {age_s} s ago: {exc}")
        return mirror, mirror.open(identities), faults
    except SealedError:
        mirror.close()
        raise
    except StoreError as exc:
        return mirror, None, [*faults, str(exc)]
