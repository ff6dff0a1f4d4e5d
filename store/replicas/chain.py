"""Where a host's chain of rounds stands, and whether it is ours to go on with.

Two hosts under one name, and a host whose disk was set back, must not go on: what they would ship is another
history. What tells: the last round that this host remembers, and the bytes of the newest pack.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3

from store.errors import StoreError
from store.layout import FIRST_COMPACTED
from store.replicas.behind import Mark
from store.replicas.contents import Contents
from store.replicas.layout import NO_ROUND, Round, RoundError, decode_round, round_name
from store.replicas.local import Local, slices
from store.replicas.reader import NoReplicaError, Replica
from store.replicas.source import Target
from store.segments import pack_path

log = logging.getLogger(__name__)
_SLICE_BYTES = 8 << 20


class RivalError(StoreError):
    """Another host ships under our name, or ours has gone back in time."""

    hint = (
        "Give this host a [store] stream of its own; if its disk was set back to an earlier day, restore the "
        "store from the replica first."
    )
    exit_code = 53


@dataclass(frozen=True, slots=True)
class Standing:
    """What counts in the replica; `due_full`: the next round must be a full one."""

    contents: Contents
    due_full: bool


class Memory:
    """The last round that is known to be there, in `jobs/`; without it only rivals are harder to tell."""

    def __init__(self, path: Path, url: str, host: str) -> None:
        name = blake3(f"{url}\n{host}".encode()).hexdigest()[:16]
        self._path = path / "jobs" / f"replica-{name}.json"
        self._told: dict[str, object] = {"url": url, "host": host}

    def last(self) -> tuple[int, str, str] | None:
        """Number, digest and writer of it."""
        told = self._read()
        try:
            return int(told["number"]), str(told["digest"]), str(told["writer"])
        except (ValueError, KeyError, TypeError):
            return None

    def lag(self) -> tuple[int, dict[str, Mark]]:
        """How many bytes were not there after the last round, and how far the streams here were; nothing of
        the sort where nobody knows."""
        told = self._read()
        try:
            return int(told["lacking"]), {
                name: (int(a), int(b), int(c)) for name, (a, b, c) in told["here"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            return 0, {}

    def _read(self) -> dict[str, Any]:
        try:
            told = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return told if isinstance(told, dict) else {}

    def keep(self, contents: Contents, writer: str) -> None:
        """Remember where it stands; `writer` is who goes on from there."""
        self._keep(number=contents.number, digest=contents.digest.hex(), writer=writer)

    def keep_lag(self, lacking: int, here: dict[str, Mark]) -> None:
        """Remember how many bytes are not there of what is here."""
        self._keep(lacking=lacking, here={name: list(mark) for name, mark in here.items()})

    def _keep(self, **what: object) -> None:
        known = self._read()
        told = known | self._told | what
        if told == known:
            return
        fresh = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            fresh.write_text(json.dumps(told) + "\n")
            fresh.rename(self._path)
        except OSError as exc:
            log.warning("%s cannot be written: %s", self._path, exc.strerror)


def stand(target: Target, store_id: bytes, host: str, memory: Memory, local: Local) -> Standing:
    """Where to go on. Raises `RivalError`, `StoreError`, `OSError`."""
    remembered = memory.last()
    last, is_full = Replica(target).last_round(host)
    try:
        reading = Replica(target).read(host)
    except NoReplicaError as exc:
        if last:  # rounds, and none of them says all
            log.error("%s: all is shipped anew", exc)
        elif remembered and remembered[0]:
            log.error("%s is empty and had %d rounds of us: all is shipped anew", target.url, remembered[0])
        newest = _read_last(target, host, last, full=is_full) if last else None
        contents = Contents(store_id, host, number=last, digest=newest.digest if newest else NO_ROUND)
        return Standing(contents, due_full=True)
    contents = reading.contents
    if contents.store_id != store_id:
        raise RivalError(
            f"{target.url} has another store under the name {host}: "
            f"{contents.store_id.hex()}, not {store_id.hex()}"
        )
    for fault in reading.faults:
        log.error("replica: %s", fault)
    newest = _read_last(target, host, last, full=is_full)
    if newest:
        _recognise(target.url, host, newest, remembered)
    _compare(target.url, host, contents, local)
    due_full = False
    if last > contents.number:  # what a damaged round kept from being read is shipped anew
        contents.number, contents.digest = last, newest.digest if newest else NO_ROUND
        due_full = True
    if remembered and remembered[0] > contents.number:
        log.error(
            "%s: round %d of %s is the last that is there, and %d was shipped: somebody has removed what "
            "came after; it is shipped anew", target.url, contents.number, host, remembered[0],
        )  # fmt: skip
        due_full = True
    return Standing(contents, due_full)


def _read_last(target: Target, host: str, number: int, *, full: bool) -> Round | None:
    try:
        return decode_round(target.get(round_name(host, number, full=full)))
    except RoundError as exc:
        log.error("%s: round %d of %s: %s", target.url, number, host, exc)
        return None


def _recognise(url: str, host: str, newest: Round, remembered: tuple[int, str, str] | None) -> None:
    """Whether the last round can be ours."""
    if remembered is None:
        return
    number, digest, writer = remembered
    if newest.number == number and newest.digest.hex() != digest and newest.writer != writer:
        raise RivalError(f"{url}: round {number} of {host} is not the one that was shipped from here")
    if newest.number > number and newest.writer != writer:
        raise RivalError(
            f"{url}: somebody else has shipped as {host}: round {newest.number} is there, and {number} was "
            "the last from here"
        )


def _compare(url: str, host: str, contents: Contents, local: Local) -> None:
    """The newest packs that are there must be here, and the same."""
    here = local.look()
    for name, there in contents.streams.items():
        written = [pack for pack in there.packs if pack < FIRST_COMPACTED]
        stream = here.get(name)
        if not written or stream is None:
            continue
        newest = max(written)
        ours = [pack for pack in stream.ends if pack < FIRST_COMPACTED]
        ours += [segment.last for segment, _ in stream.segments.values()]
        path = pack_path(stream.directory, newest)
        behind = bool(ours) and max(ours) < newest
        if newest in stream.ends and not behind:
            extent = max(there.packs[newest], key=lambda extent: extent.end)
            behind = path.stat().st_size < extent.end
            if not behind:
                hasher = blake3()
                for _, data in slices(path, extent.offset, extent.end, _SLICE_BYTES):
                    hasher.update(data)
                if hasher.digest() != extent.digest:
                    raise RivalError(
                        f"{url}: pack {newest} of {name}, shipped by {host}, has another history than the "
                        f"one here from byte {extent.offset} on"
                    )
        if behind:
            raise RivalError(
                f"{url}: {host} has shipped more of stream {name} than is here (pack {newest}): this "
                "store was set back to an earlier state"
            )
