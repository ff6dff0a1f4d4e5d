"""Everything there is to say about one delivery: envelope, replies, parts, replays and the other leg."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sidecar.present import delivery_object, reply_text, short_id
from sidecar.readable import escaped, header_text, text
from sidecar.select import Legs, legs_of
from sidecar.status import status_of
from sidecar.units import format_size, format_time, iso_time
from store.deliveries import StoredDelivery
from store.errors import DamagedError, NotFoundError
from store.fleet import Archive
from store.ids import FOREVER_US, ContentId
from store.records import Leg, Replay

_IMPORTED = ("Folder", "Flags", "Origin")
_EOL_NAMES = {b"\r\n": "CRLF", b"\n": "LF"}


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the message: `stored_bytes` in `chunks` pieces, given back as base64 lines of `width`
    characters, or as they are when that is 0."""

    chunks: int
    stored_bytes: int
    width: int
    eol: bytes


@dataclass(frozen=True, slots=True)
class Description:
    """One delivery with all that belongs to it. `damage` says why the parts are not known."""

    stored: StoredDelivery
    legs: Legs
    parts: tuple[Part, ...]
    damage: str = ""


def describe(store: Archive, stored: StoredDelivery, as_of_us: int = FOREVER_US) -> Description:
    """Gather it. Raises `StoreError`; damage to the recipe is told in the description."""
    legs = legs_of(store, stored, as_of_us)
    try:
        return Description(stored, legs, tuple(_parts(store, stored.delivery.content)))
    except (DamagedError, NotFoundError) as exc:
        return Description(stored, legs, (), str(exc))


def _parts(store: Archive, content: ContentId) -> Iterator[Part]:
    recipe = store.recipe(content)
    with store.index.read() as snapshot:
        for run in recipe.runs:
            places = [snapshot.chunk(chunk) for chunk in run.chunks]
            if None in places:
                raise DamagedError(f"{places.count(None)} of its chunks are missing")
            yield Part(len(places), sum(place.size for place in places if place), run.width, run.eol)


def description_object(found: Description) -> dict[str, Any]:
    """For JSON: what `list --json` has, and more."""
    delivery = found.stored.delivery
    return delivery_object(found.stored) | {
        "from": header_text(delivery.header_from),
        "sender_params": text(delivery.envelope.sender_params),
        "recipients": [
            {
                "address": text(recipient.address),
                "params": text(recipient.params),
                "reply": reply_text(found.stored, number),
                "source": _source(found.stored, number),
            }
            for number, recipient in enumerate(delivery.envelope.recipients)
        ],
        "attributes": {name: text(value) for name, value in delivery.attributes.items()},
        "parts": [
            {
                "encoding": "base64" if part.width else "raw",
                "width": part.width,
                "eol": text(part.eol),
                "chunks": part.chunks,
                "stored_bytes": part.stored_bytes,
            }
            for part in found.parts
        ],
        "damage": found.damage or None,
        "replays": [_replay_object(replay) for replay in found.stored.replays],
        "replays_in_doubt": [_replay_object(replay) for replay in found.stored.in_doubt],
        "offered": [delivery_object(stored) for stored in found.legs.offered],
        "delivered": [delivery_object(stored) for stored in found.legs.delivered],
    }


def _replay_object(replay: Replay) -> dict[str, Any]:
    return {
        "run": replay.run,
        "time": iso_time(replay.time_us),
        "recipient": text(replay.recipient),
        "downstream": replay.downstream,
        "reply": text(replay.reply),
    }


def _source(stored: StoredDelivery, number: int) -> str | None:
    outcome = stored.outcomes.get(number)
    return outcome.source if outcome else None


def description_lines(found: Description) -> Iterator[str]:
    """For people."""
    delivery = found.stored.delivery
    envelope = delivery.envelope
    yield f"Delivery    {delivery.id.hex()}"
    yield f"Captured    {format_time(delivery.time_us)}   {iso_time(delivery.time_us)}"
    yield f"Leg         {delivery.leg}, {status_of(found.stored)}"
    yield from _optional("Queue id", text(delivery.queue_id))
    yield f"Envelope    from {_address(envelope.sender, envelope.sender_params)}"
    for recipient in envelope.recipients:
        yield f"            to   {_address(recipient.address, recipient.params)}"
    yield from _optional("Subject", header_text(delivery.subject))
    yield from _optional("From", header_text(delivery.header_from))
    yield from _optional("Message-ID", header_text(delivery.message_id))
    yield f"Message     {format_size(delivery.size)} ({delivery.size} bytes)"
    yield f"BLAKE3      {delivery.content.hex()}"
    yield from _optional("Notes", ", ".join(delivery.notes))
    if delivery.leg == Leg.IMPORT:
        for name in _IMPORTED:
            yield from _optional(name, text(delivery.attributes.get(name.lower(), b"")))
        if delivery.captured_us != delivery.time_us:
            yield f"Imported    {format_time(delivery.captured_us)}"
    else:
        yield from _titled("Attributes", _attributes(delivery.attributes))
    yield from _titled("Parts", (_part_line(part) for part in found.parts))
    yield from _optional("Damage", found.damage)
    yield from _titled("Offered to", _leg_lines(found.legs.offered, found.stored))
    yield from _titled("Delivered to", _leg_lines(found.legs.delivered, found.stored))
    yield from _titled("Replays", (_replay_line(replay) for replay in found.stored.replays))
    yield from _titled("Replays in doubt", (_replay_line(replay) for replay in found.stored.in_doubt))


def _optional(name: str, value: str) -> Iterator[str]:
    if value:
        yield f"{name:<11} {escaped(value)}"


def _titled(title: str, lines: Iterator[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        if number == 0:
            yield title
        yield f"  {line}"


def _address(address: bytes, params: bytes) -> str:
    return escaped(f"<{text(address)}> {text(params)}".rstrip())


def _attributes(attributes: dict[str, bytes]) -> Iterator[str]:
    for name, value in attributes.items():
        yield escaped(f"{name} = {text(value)}")


def _part_line(part: Part) -> str:
    chunks = f"{part.chunks} chunk{'s' if part.chunks != 1 else ''}"
    how = (
        f"from base64, {part.width} characters a line ended by {_eol(part.eol)}" if part.width else "as it is"
    )
    return f"{format_size(part.stored_bytes):>9} in {chunks}, {how}"


def _eol(eol: bytes) -> str:
    return _EOL_NAMES.get(eol, escaped(text(eol)))


def _leg_lines(leg: tuple[StoredDelivery, ...], shown: StoredDelivery) -> Iterator[str]:
    for stored in leg:
        delivery = stored.delivery
        which = "this one" if delivery.id == shown.delivery.id else short_id(delivery.id)
        for number, recipient in enumerate(delivery.envelope.recipients):
            line = f"{format_time(delivery.time_us)}  {which:<10}  {_address(recipient.address, b'')}"
            if delivery.leg == Leg.LMTP:
                line += f"  {_reply(stored, number)}"
            yield line


def _reply(stored: StoredDelivery, number: int) -> str:
    outcome = stored.outcomes.get(number)
    if outcome is None:
        return "no reply known"
    said = _one_line(outcome.reply)
    return said if outcome.source == "downstream" else f"{said} ({escaped(outcome.source)})"


def _one_line(reply: bytes) -> str:
    return escaped(text(reply).replace("\r\n", " / "))


def _replay_line(replay: Replay) -> str:
    return (
        f"{format_time(replay.time_us)}  {_address(replay.recipient, b'')} by {escaped(replay.downstream)}, "
        f"run {escaped(replay.run)}: {_one_line(replay.reply) or 'begun, no reply known'}"
    )
