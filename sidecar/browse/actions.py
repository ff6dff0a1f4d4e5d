"""What is done with marked messages: put back by `sidecar.replay`, or written by `sidecar.export`.

All that the browser knows of these two is here. Both run in a worker thread and may be stopped between two
messages; both tell of each message in words that are ready to be shown.
"""

from __future__ import annotations

import asyncio
import getpass
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sidecar.export import Exported, Format, export
from sidecar.present import short_id
from sidecar.readable import escaped, text
from sidecar.replay import Replayer, ReplayOptions, Result, Target, targets
from sidecar.select import Selection
from sidecar.units import Address
from store.errors import DamagedError, NotFoundError, StoreError
from store.filters import address_test
from store.ids import DeliveryId
from store.looks import order
from store.records import Delivery
from store.store import FOREVER_US, Store, StoredDelivery


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


def chosen(store: Store, ids: Iterable[DeliveryId], as_of_us: int) -> tuple[list[StoredDelivery], list[str]]:
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
    store: Store,
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
    todo = tuple(targets(found, recipient=rcpt, wanted=wanted))
    # The same bytes for the same recipient go once: such a message is not idle.
    contents = {target.delivery.content for target in todo}
    idle = sum(stored.delivery.content not in contents for stored in found)
    ids = tuple(stored.delivery.id for stored in found)
    return Plan(todo, ids, downstream, rcpt, only, as_of_us, tuple(missing), idle)


def put_back(store: Store, todo: Plan, tell: Callable[[Told], None]) -> str:
    """Send it all, as `mailkeep replay` with these ids would, and sum up in a line.

    What `tell` raises ends it, after the record of the message that it was told of. Raises `StoreError`."""
    writing(store)
    how = ReplayOptions(downstream=todo.downstream, owner=getpass.getuser(), as_of_us=todo.as_of_us)
    selection = Selection(ids=tuple(id_.hex() for id_ in todo.ids), to=todo.only)
    name = selection.digest() + (todo.rcpt or b"") + str(todo.downstream).encode()
    missing = Counter(target.delivery.id for target in todo.targets)

    def progress(result: Result) -> None:
        delivery = result.target.delivery.id
        missing[delivery] -= result.restored
        tell(Told(_line(result), 1, None if missing[delivery] else delivery))

    summary = asyncio.run(Replayer(store, how, name).run(list(todo.targets), progress))
    return f"{summary.restored} of {len(todo.targets)} are back (run {summary.run})"


def _line(result: Result) -> str:
    target = result.target
    said = "was put back before" if result.already else text(result.reply) or f"not sent: {result.error}"
    return f"{short_id(target.delivery.id)}  {escaped(text(target.recipient))}  {escaped(said)}"


def writing(store: Store) -> None:
    """Take a stream of our own for the records of replays, as long as the store is open."""
    try:
        _ = store.writer
    except StoreError:
        store.start_writing_beside("operator")


def write_out(
    store: Store,
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
