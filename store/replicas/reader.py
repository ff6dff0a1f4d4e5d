"""Read a replica: which hosts ship to it, what of each counts, and any bytes of any pack.

Nothing is believed that does not verify: rounds by their digests, their chain and, with a key, their
signatures; pieces by their names. REPLICA.md explains.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

from blake3 import blake3

from store.errors import StoreError
from store.ids import FOREVER_US
from store.notes import VerifyKey
from store.replicas.contents import Contents
from store.replicas.layout import (
    NO_ROUND,
    Extent,
    Round,
    RoundError,
    decode_round,
    in_name,
    out_of_name,
    piece_name,
    round_name,
    rounds_under,
)
from store.replicas.source import Source

log = logging.getLogger(__name__)
_SLICE_BYTES = 8 << 20


class NoReplicaError(StoreError):
    """There is no replica at the URL, or none that old."""

    hint = "Look at the URL, and at --as-of: rounds that are older than what is kept are gone."
    exit_code = 52


@dataclass(slots=True)
class Reading:
    """What a host's rounds come to, and what is wrong with them."""

    contents: Contents
    faults: list[str] = field(default_factory=list)
    rounds: int = 0


class Replica:
    """One replica, for reading. `key`: every round must be signed by it. Thread-safe."""

    def __init__(self, source: Source, key: VerifyKey | None = None) -> None:
        self.source = source
        self._key = key

    def hosts(self) -> list[str]:
        """Who ships to it."""
        names = (name.split("/") for name, _ in self.source.list("hosts/"))
        return sorted({out_of_name(parts[1]) for parts in names if len(parts) == 4 and parts[2] == "full"})

    def read(self, host: str, as_of_us: int = FOREVER_US) -> Reading:
        """What of a host counts, as of a moment. A full round that is damaged is told, and one before it
        taken. Raises `NoReplicaError`, `StoreError`."""
        faults: list[str] = []
        full = self._numbers(host, full=True)
        while full:
            number = full.pop()
            try:
                first = self._round(host, number, full=True)
            except RoundError as exc:
                faults.append(str(exc))
                continue
            if first.time_us > as_of_us:
                continue
            reading = Reading(Contents(first.store_id, host), faults)
            reading.contents.apply(first)
            reading.rounds = 1
            self._follow(reading, as_of_us)
            return reading
        raise NoReplicaError(
            f"{self.source.url} has nothing of {host}"
            + (f" that can be read ({'; '.join(faults)})" if faults else "")
            + ("" if as_of_us == FOREVER_US else " of that time")
        )

    def _follow(self, reading: Reading, as_of_us: int) -> None:
        """Take up the rounds after a full one, as far as each follows on the one before."""
        contents = reading.contents
        host = contents.host
        full = set(self._numbers(host, full=True))
        last = max([contents.number, *full, *self._numbers(host, full=False)])
        passed_over = False
        for number in range(contents.number + 1, last + 1):
            try:
                round_ = self._round(host, number, full=number in full)
            except RoundError as exc:
                reading.faults.append(str(exc))
                if number not in full:
                    return
                passed_over = True  # the rounds around it say the same
                continue
            if round_.time_us > as_of_us:
                return
            if round_.before != contents.digest and not passed_over:
                reading.faults.append(
                    f"{self.source.url}: round {number} of {host} does not follow on round {number - 1}: "
                    "one of them was replaced"
                )
                return
            passed_over = False
            contents.apply(round_)
            reading.rounds += 1

    def full_rounds(self, host: str) -> list[int]:
        """The numbers of a host's full rounds."""
        return self._numbers(host, full=True)

    def rounds(self, host: str, first: int) -> Iterator[Round]:
        """A host's rounds from a number on. Raises `RoundError` for one that cannot be read."""
        full = set(self._numbers(host, full=True))
        for number in sorted(full | set(self._numbers(host, full=False))):
            if number >= first:
                yield self._round(host, number, full=number in full)

    def round_names(self, host: str, *, before: int) -> list[str]:
        """The objects of a host's rounds below a number."""
        return [
            round_name(host, number, full=full)
            for full in (True, False)
            for number in self._numbers(host, full=full)
            if number < before
        ]

    def piece_names(self, stream: str) -> list[str]:
        """The objects of a stream's pieces."""
        return [name for name, _ in self.source.list(f"packs/{in_name(stream)}/")]

    def _numbers(self, host: str, *, full: bool) -> list[int]:
        prefix = rounds_under(host, full=full) + "/"
        names = (name.removeprefix(prefix) for name, _ in self.source.list(prefix))
        return sorted(int(name) for name in names if name.isdigit())

    def _round(self, host: str, number: int, *, full: bool) -> Round:
        name = round_name(host, number, full=full)
        where = f"{self.source.url}: {name}"
        try:
            round_ = decode_round(self.source.get(name), self._key)
        except RoundError as exc:
            raise RoundError(f"{where}: {exc}") from exc
        except StoreError as exc:
            raise RoundError(f"round {number} of {host} cannot be read: {exc}") from exc
        if (round_.host, round_.number, round_.full) != (host, number, full):
            raise RoundError(f"{where} is round {round_.number} of {round_.host}: somebody moved it")
        if full and number == 1 and round_.before != NO_ROUND:
            raise RoundError(f"{where} names a round before the first")
        return round_

    def inline(self, host: str, number: int) -> tuple[Round, bytes]:
        """A round, and the bytes of packs in it."""
        round_ = self._round(host, number, full=False)
        data = self.source.get(round_.name)
        return round_, data[round_.data_at : -len(NO_ROUND)]

    def extent(self, host: str, stream: str, pack: int, extent: Extent) -> Iterator[bytes]:
        """The bytes of an extent, in slices; after the last the whole has proved right. Raises `RoundError`
        when it has not, `StoreError`."""
        if extent.inline:
            _, data = self.inline(host, extent.round)
            data = data[extent.at : extent.at + extent.length]
            if blake3(data).digest() != extent.digest:
                raise RoundError(f"{self.source.url}: round {extent.round} of {host} is damaged")
            yield data
            return
        name = piece_name(stream, pack, extent)
        hasher = blake3()
        for start in range(0, extent.length, _SLICE_BYTES):
            data = self.source.get_range(name, start, min(_SLICE_BYTES, extent.length - start))
            hasher.update(data)
            yield data
        if hasher.digest() != extent.digest:
            raise RoundError(f"{self.source.url}: {name} is damaged")
