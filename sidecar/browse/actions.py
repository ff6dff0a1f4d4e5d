"""What is done with marked messages: put back by `sidecar.replay`, or written by `sidecar.export`.

All that the browser knows of these two is here. Both run in a worker thread and may be stopped between two
messages; both tell of each message in words that are ready to be shown.
"""

from __future__ import annotations

import getpass
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sidecar.export import Exported, Format, export
from sidecar.present import short_id
from sidecar.readable import escaped
from sidecar.replay.journal import Journal
from sidecar.replay.perform import Performance, Request, run_name
from sidecar.replay.report import result_line
from sidecar.replay.run import resume
from sidecar.replay.targets import Result, Target, Whereto, targets
from sidecar.select import Selection
from sidecar.units import Address
from store.deliveries import StoredDelivery
from store.errors import DamagedError, NotFoundError, StoreError
from store.filters import address_test
from store.fleet import Archive
from store.ids import FOREVER_US, DeliveryId, order
from store.records import Delivery

_PATIENCE_S = 5.0
"""how long a server may be away while somebody sits and waits"""


class StoppedError(Exception):
    """A person wanted no more of it."""


@dataclass(frozen=True, slots=True)
class Told:
    """What has happened: a line to be shown (none if empty), so many more that are done with (`count`), and
    the delivery that is wholly where it was to go, if one is by now."""

    line: str = ""
    count: int = 0
    back: DeliveryId | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be put back to whom. `missing` could not be found (erased or expired meanwhile, or damaged);
    `idle` has nobody to go to."""

    targets: tuple[Target, ...]
    ids: tuple[DeliveryId, ...]
    downstream: Address
    rcpt: bytes | None = None
    only: str | None = None
    as_of_us: int = FOREVER_US
    missing: tuple[str, ...] = ()
    idle: int = 0

    @property
    def messages(self) -> int:
        """How many messages are among the targets."""
        return len({target.delivery.id for target in self.targets})


def chosen(
    store: Archive, ids: Iterable[DeliveryId], as_of_us: int
) -> tuple[list[StoredDelivery], list[str]]:
    """The deliveries, oldest first, and what is to be told of those that are not there."""
    found: list[StoredDelivery] = []
    missing: list[str] = []
    for delivery in sorted(ids, key=order):
        try:
            found.append(store.delivery(delivery, as_of_us))
        except (NotFoundError, DamagedError) as exc:
            missing.append(escaped(f"{short_id(delivery)}  {exc}"))
    return found, missing


def plan(
    store: Archive,
    ids: Iterable[DeliveryId],
    downstream: Address,
    *,
    rcpt: bytes | None = None,
    only: str | None = None,
    as_of_us: int = FOREVER_US,
) -> Plan:
    """To whom these would go: to `rcpt`, else to those who got it then, else to those among them whom the
    pattern `only` means. Raises `StoreError`."""
    found, missing = chosen(store, ids, as_of_us)
    wanted = None if only is None else address_test(only)
    todo = tuple(targets(found, Whereto(recipient=rcpt, wanted=wanted)))
    # The same bytes for the same recipient go once: such a message is not idle.
    contents = {target.delivery.content for target in todo}
    idle = sum(stored.delivery.content not in contents for stored in found)
    ids = tuple(stored.delivery.id for stored in found)
    return Plan(todo, ids, downstream, rcpt, only, as_of_us, tuple(missing), idle)


def put_back(store: Archive, todo: Plan, tell: Callable[[Told], None]) -> str:
    """Send it all, as `mailkeep replay` with these ids would, and sum up in a line.

    When `tell` raises `StoppedError`, what is being sent is finished, and recorded. Raises `StoreError`."""
    writing(store)
    how = Request(address=todo.downstream, as_of_us=todo.as_of_us, lanes=1, patience_s=_PATIENCE_S)
    selection = Selection(ids=tuple(id_.hex() for id_ in todo.ids), to=todo.only)
    name = run_name(selection.digest(), todo.rcpt or b"", repr(None), how.road_name, how.folder)
    journal = Journal(store, name, road=how.road_name, owner=getpass.getuser())
    performance = Performance(store, how, journal)
    missing = Counter(target.delivery.id for target in todo.targets)
    stopped: list[StoppedError] = []

    def progress(result: Result) -> None:
        delivery = result.target.delivery.id
        missing[delivery] -= result.is_back
        if stopped:
            return
        try:
            tell(Told(result_line(result), 1, None if missing[delivery] else delivery))
        except StoppedError as exc:
            stopped.append(exc)
            performance.stop()

    ended = performance.perform(resume(store, journal, todo.targets), progress)
    if stopped:
        raise stopped[0]
    doubt = f", {ended.in_doubt} in doubt" if ended.in_doubt else ""
    return f"{ended.back} of {len(todo.targets)} are back{doubt} (run {journal.run})"


def writing(store: Archive) -> None:
    """Take a stream of our own for the records of replays, as long as the store is open."""
    try:
        _ = store.writer
    except StoreError:
        store.start_writing_beside("operator")


def write_out(
    store: Archive,
    ids: Iterable[DeliveryId],
    format_: Format,
    output: Path,
    tell: Callable[[Told], None],
    *,
    as_of_us: int = FOREVER_US,
) -> str:
    """Export these, as `mailkeep export` would, and sum up in a line; `tell` hears of failures as they come
    and of each message, and may raise to end it. Raises `OSError`, `StoreError`."""
    found, missing = chosen(store, ids, as_of_us)
    for line in missing:
        tell(Told(line, 1))

    def failed(delivery: Delivery, error: Exception) -> None:
        tell(Told(escaped(f"{short_id(delivery.id)}  {error}")))

    def progress(_exported: Exported) -> None:
        tell(Told(count=1))

    exported = export(store, found, format_, output, failed=failed, progress=progress)
    failures = exported.failed + len(missing)
    return f"{exported.messages} messages written to {escaped(str(output))}" + (
        f"; {failures} failed" if failures else ""
    )
