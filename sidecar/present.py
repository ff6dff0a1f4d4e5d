"""Deliveries as tables for people, as aligned lines for pipes and as JSON lines for machines.

A table abbreviates: ids to ten digits, long recipient lists to a count. JSON has everything whole and its
keys are a contract. Nothing that mail says reaches the output without `sidecar.readable`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, Literal

from sidecar.readable import escaped, header_text, text
from sidecar.status import status_of
from sidecar.units import format_size, format_time, iso_time
from store.deliveries import StoredDelivery
from store.ids import DeliveryId

HEADINGS = ("ID", "CAPTURED", "LEG", "STATUS", "FROM", "TO", "SIZE", "SUBJECT")
_ELASTIC = frozenset({"FROM", "TO", "SUBJECT"})
_JUSTIFY: dict[str, Literal["left", "right"]] = {"SIZE": "right"}
_RECIPIENTS_SHOWN = 4
_ROWS_AT_ONCE = 500


def short_id(delivery: DeliveryId) -> str:
    """The abbreviation that tables show: ten hexadecimal digits."""
    return delivery.hex()[:10]


def delivery_object(stored: StoredDelivery) -> dict[str, Any]:
    """A delivery for JSON. `reply` is null where none is known; sizes in bytes, times in UTC."""
    delivery = stored.delivery
    return {
        "id": delivery.id.hex(),
        "time": iso_time(delivery.time_us),
        "leg": str(delivery.leg),
        "status": str(status_of(stored)),
        "queue_id": text(delivery.queue_id),
        "sender": text(delivery.envelope.sender),
        "recipients": [
            {"address": text(recipient.address), "reply": reply_text(stored, number)}
            for number, recipient in enumerate(delivery.envelope.recipients)
        ],
        "size": delivery.size,
        "subject": header_text(delivery.subject),
        "message_id": header_text(delivery.message_id),
        "content": delivery.content.hex(),
        "notes": list(delivery.notes),
    }


def reply_text(stored: StoredDelivery, number: int) -> str | None:
    """The last reply for the recipient at this place in the envelope."""
    outcome = stored.outcomes.get(number)
    return None if outcome is None else text(outcome.reply)


def print_json(value: object) -> None:
    """One line; everything but ASCII is escaped, so no terminal and no locale can be hurt by it."""
    sys.stdout.write(json.dumps(value) + "\n")


def print_newest(found: Iterator[StoredDelivery], limit: int, *, json: bool) -> None:
    """The first `limit` of those found, 0 for all, and a word on standard error if there are none or more;
    for that `found` must go one beyond the limit."""
    first = next(found, None)
    if first is None:
        print("mailkeep: nothing matches", file=sys.stderr)
        return
    shown = islice(chain([first], found), limit or None)
    if json:
        for stored in shown:
            print_json(delivery_object(stored))
    else:
        print_deliveries(shown)
    if next(found, None) is not None:
        sys.stdout.flush()
        print(f"mailkeep: there are more than {limit}; --limit 0 lists all", file=sys.stderr)


def print_deliveries(found: Iterable[StoredDelivery]) -> None:
    """A table on a terminal, else aligned lines. Laid out some hundred rows at a time: any number will do."""
    rows = iter(found)
    widths = [len(heading) for heading in HEADINGS]
    first = True
    while page := list(islice(rows, _ROWS_AT_ONCE)):
        if sys.stdout.isatty():
            _print_table([_row(stored, "\n") for stored in page])
        else:
            cells = [_row(stored, ", ") for stored in page]
            cells = [HEADINGS, *cells] if first else cells
            widths = [max(width, *(len(row[column]) for row in cells)) for column, width in enumerate(widths)]
            sys.stdout.writelines(f"{line}\n" for line in _aligned(cells, widths))
        first = False


def _row(stored: StoredDelivery, between: str) -> tuple[str, ...]:
    delivery = stored.delivery
    return (
        short_id(delivery.id),
        format_time(delivery.time_us),
        str(delivery.leg),
        str(status_of(stored)),
        escaped(text(delivery.envelope.sender)) or "<>",
        between.join(_recipients(stored)),
        format_size(delivery.size),
        escaped(header_text(delivery.subject)),
    )


def _recipients(stored: StoredDelivery) -> Iterator[str]:
    """The code of the reply and the address, as in `250 anna@example.org`."""
    recipients = stored.delivery.envelope.recipients
    for number, recipient in enumerate(recipients[:_RECIPIENTS_SHOWN]):
        reply = reply_text(stored, number)
        yield escaped((f"{reply[:3]} " if reply else "") + text(recipient.address))
    if len(recipients) > _RECIPIENTS_SHOWN:
        yield f"+{len(recipients) - _RECIPIENTS_SHOWN} more"


def _aligned(rows: Iterable[tuple[str, ...]], widths: list[int]) -> Iterator[str]:
    for row in rows:
        cells = (
            cell.rjust(width) if heading in _JUSTIFY else cell.ljust(width)
            for heading, cell, width in zip(HEADINGS, row, widths, strict=True)
        )
        yield "  ".join(cells).rstrip()


def _print_table(rows: list[tuple[str, ...]]) -> None:
    from rich import box  # a sixth of the time that a command may take; pipes need none of it
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout)
    dropped = {"LEG", "FROM", "SIZE"} if console.width < 100 else {"LEG"} if console.width < 130 else set()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown = [column for column, heading in enumerate(HEADINGS) if heading not in dropped]
    for column in shown:
        # Where room is short, rich takes it from the columns that may wrap, the widest first.
        heading = HEADINGS[column]
        table.add_column(heading, justify=_JUSTIFY.get(heading, "left"), no_wrap=heading not in _ELASTIC)
    for row in rows:
        # Text, not str: a subject is no markup. It keeps to its line even where the column could wrap.
        table.add_row(*(Text(row[column], no_wrap=True, overflow="ellipsis") for column in shown))
    console.print(table)
