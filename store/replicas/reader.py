"""Read a replica: which hosts ship to it, what of each counts, and any bytes of any pack.

Nothing is believed that does not verify: rounds by their digests, their chain and, with a key, their
signatures; pieces by their names. REPLICA.md explains.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from blake3 import blake3

from store.errors import StoreError
from store.ids import FOREVER_US
from store.notes import VerifyKey
from store.replicas.contents import Contents
from store.replicas.layout import (
    NO_ROUND,
    Extent,
    IndexFiles,
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
_ROUNDS_AT_ONCE = 8


class NoReplicaError(StoreError):
    """There is no replica at the URL, or none that old."""

    hint = "Look at the URL, and at --as-of: rounds that are older than what is kept are gone."
    exit_code = 52


Taken = Callable[[Contents, Round, bytes], bool]
"""is told what counts, of the next round and its object, before it is taken up; False ends the reading"""


def take_all(_contents: Contents, _round: Round, _data: bytes) -> bool:
    """A `Taken` that has no objection."""
    return True


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
        found = self.source.folders("hosts/")
        return sorted(out_of_name(host) for host in found if "full" in self.source.folders(f"hosts/{host}/"))

    def read(self, host: str, as_of_us: int = FOREVER_US, taken: Taken = take_all) -> Reading:
        """What of a host counts, as of a moment. A full round that is damaged is told, and one before it
        taken. `taken` is asked of each round. Raises `NoReplicaError`, `StoreError`."""
        faults: list[str] = []
        full = self._numbers(host, full=True)
        while full:
            number = full.pop()
            try:
                first, data = self._round(host, number, full=True)
            except RoundError as exc:
                faults.append(str(exc))
                continue
            if first.time_us > as_of_us:
                continue
            reading = Reading(Contents(first.store_id, host), faults)
            taken(reading.contents, first, data)
            reading.contents.apply(first)
            reading.rounds = 1
            self.follow(reading, as_of_us, taken)
            return reading
        raise NoReplicaError(
            f"{self.source.url} has nothing of {host}"
            + (f" that can be read ({'; '.join(faults)})" if faults else "")
            + ("" if as_of_us == FOREVER_US else " of that time")
        )

    def follow(self, reading: Reading, as_of_us: int = FOREVER_US, taken: Taken = take_all) -> None:
        """Take up the rounds since, as far as each follows on the one before. `taken` as in `read`. Raises
        `StoreError`."""
        contents = reading.contents
        host = contents.host
        full = set(self._numbers(host, full=True, after=contents.number))
        last = max([contents.number, *full, *self._numbers(host, full=False, after=contents.number)])
        numbers = range(contents.number + 1, last + 1)

        def get(number: int) -> tuple[Round, bytes] | RoundError:
            try:
                return self._round(host, number, full=number in full)
            except RoundError as exc:
                return exc

        if len(numbers) == 1:  # most often, and no thread is worth it
            self._take_up(reading, [get(numbers[0])], as_of_us, taken)
        elif numbers:
            pool = ThreadPoolExecutor(_ROUNDS_AT_ONCE, thread_name_prefix="rounds")
            try:
                self._take_up(reading, pool.map(get, numbers), as_of_us, taken)
            finally:
                pool.shutdown(cancel_futures=True)

    def _take_up(
        self,
        reading: Reading,
        rounds: Iterable[tuple[Round, bytes] | RoundError],
        as_of_us: int,
        taken: Taken,
    ) -> None:
        contents = reading.contents
        host = contents.host
        passed_over = False
        for got in rounds:
            if isinstance(got, RoundError):
                reading.faults.append(str(got))
                if not got.full:
                    return
                passed_over = True  # the rounds around it say the same
                continue
            round_, data = got
            number = round_.number
            if round_.time_us > as_of_us:
                return
            if round_.before != contents.digest and not passed_over:
                reading.faults.append(
                    f"{self.source.url}: round {number} of {host} does not follow on round {number - 1}: "
                    "one of them was replaced"
                )
                return
            passed_over = False
            if not taken(contents, round_, data):
                return
            contents.apply(round_)
            reading.rounds += 1

    def full_rounds(self, host: str, *, after: int = 0) -> list[int]:
        """The numbers of a host's full rounds, those that come after one."""
        return self._numbers(host, full=True, after=after)

    def earlier_indexes(self, contents: Contents) -> Iterator[IndexFiles]:
        """What full rounds before the last bring of a host's index, the newest first. One that cannot be read
        is passed over."""
        for number in reversed(self.full_rounds(contents.host)):
            if number < contents.full_number:
                with contextlib.suppress(RoundError):
                    round_, _ = self._round(contents.host, number, full=True)
                    if round_.index and round_.store_id == contents.store_id:
                        yield round_.index

    def last_round(self, host: str) -> tuple[int, bool]:
        """The number of a host's last round, 0 for none, and whether it is a full one."""
        found = ((number, full) for full in (False, True) for number in self._numbers(host, full=full))
        return max(found, default=(0, False))

    def rounds(self, host: str, first: int) -> Iterator[Round]:
        """A host's rounds from a number on. Raises `RoundError` for one that cannot be read."""
        full = set(self._numbers(host, full=True))
        for number in sorted(full | set(self._numbers(host, full=False))):
            if number >= first:
                yield self._round(host, number, full=number in full)[0]

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

    def _numbers(self, host: str, *, full: bool, after: int = 0) -> list[int]:
        prefix = rounds_under(host, full=full) + "/"
        since = round_name(host, after, full=full) if after else ""
        names = (name.removeprefix(prefix) for name, _ in self.source.list(prefix, since))
        return sorted(int(name) for name in names if name.isdigit())

    def _round(self, host: str, number: int, *, full: bool) -> tuple[Round, bytes]:
        """A round, and its object."""
        name = round_name(host, number, full=full)
        where = f"{self.source.url}: {name}"
        try:
            data = self.source.get(name)
            round_ = decode_round(data, self._key)
        except RoundError as exc:
            raise RoundError(f"{where}: {exc}", full=full) from exc
        except StoreError as exc:
            raise RoundError(f"round {number} of {host} cannot be read: {exc}", full=full) from exc
        if (round_.host, round_.number, round_.full) != (host, number, full):
            raise RoundError(
                f"{where} is round {round_.number} of {round_.host}: somebody moved it", full=full
            )
        if full and number == 1 and round_.before != NO_ROUND:
            raise RoundError(f"{where} names a round before the first", full=full)
        return round_, data

    def digest(self, host: str, number: int, *, full: bool) -> bytes | None:
        """A round's digest; None for one that is not there or cannot be read."""
        try:
            return self._round(host, number, full=full)[0].digest
        except RoundError:
            return None

    def inline(self, host: str, number: int) -> tuple[Round, bytes]:
        """A round, and the bytes of packs in it."""
        round_, data = self._round(host, number, full=False)
        return round_, round_.held(data)

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
