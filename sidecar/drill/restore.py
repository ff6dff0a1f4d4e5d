"""Put messages back to the scratch server and compare: the part of a drill that stands for a replay.

The bytes come from `Store.read` and go through the LMTP client as in a replay, but without its records.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sidecar.downstream import Downstream, DownstreamError
from sidecar.drill.sink import Arrived, ScratchServer
from sidecar.lmtp import CommandError, parse_path
from sidecar.units import Address
from store.deliveries import RemovedError
from store.errors import StoreError
from store.ids import DeliveryId
from store.records import Delivery
from store.store import Store

_TIMEOUT_S = 60.0
"""for each step with the scratch server, which is in this process"""


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of one message: as it was captured, or why not (`error`). `delivery` is None when not even
    its record can be read; `removed`: it was erased or has expired since it was drawn, which is no fault."""

    id: DeliveryId
    delivery: Delivery | None = None
    error: str = ""
    removed: bool = False

    @property
    def proven(self) -> bool:
        """Whether it came back to the byte."""
        return not self.error and not self.removed


@dataclass(slots=True)
class Restore:
    """All of them. Times in seconds; `first_s` is from asking until the first message was there."""

    results: list[Restored]
    seconds: float = 0.0
    first_s: float | None = None
    size: int = 0

    @property
    def proven(self) -> int:
        """How many came back."""
        return sum(result.proven for result in self.results)


async def restore(store: Store, ids: Iterable[DeliveryId], told: Callable[[Restored], None]) -> Restore:
    """Put back each of these deliveries, one at a time; `told` is told of each. Raises `ScratchError` when
    there can be no scratch server, `SealedError` when nothing can be read."""
    began = time.monotonic()
    done = Restore([])
    async with ScratchServer() as server:
        sender = Sender(server.address)
        try:
            for id_ in ids:
                result = await _one(store, id_, server, sender)
                done.results.append(result)
                if result.proven and result.delivery is not None:
                    done.size += result.delivery.size
                    done.first_s = done.first_s or time.monotonic() - began
                told(result)
        finally:
            sender.close()
    done.seconds = time.monotonic() - began
    return done


async def _one(store: Store, id_: DeliveryId, server: ScratchServer, sender: Sender) -> Restored:
    try:
        delivery = store.delivery(id_).delivery
    except RemovedError:
        return Restored(id_, removed=True)
    except StoreError as exc:
        return Restored(id_, error=f"its record cannot be read: {exc}")
    recipient = next(filter(_can_be_said, (to.address for to in delivery.envelope.recipients)), b"postmaster")
    server.take()
    try:
        pieces = store.read(delivery.content)
        reply = await sender.send(b"", recipient, pieces, delivery.envelope.sender_params)
    except (StoreError, DownstreamError) as exc:
        sender.drop()  # without its end: the server keeps nothing of it
        if _is_removed(store, id_):
            return Restored(id_, delivery, removed=True)
        return Restored(id_, delivery, error=str(exc))
    if not reply.startswith(b"2"):
        return Restored(id_, delivery, error=f"the scratch server said {reply.decode('ascii', 'replace')}")
    if server.take() != [Arrived(recipient, delivery.size, delivery.content)]:
        return Restored(id_, delivery, error="what came back is not what was captured")
    return Restored(id_, delivery)


def _can_be_said(address: bytes) -> bool:
    """Whether LMTP can name it: what came by other ways than LMTP may hold anything."""
    try:
        parsed = parse_path(b"TO:<%s>" % address, b"TO:")
    except CommandError:
        return False
    return parsed == (address, b"") and not {10, 13, 0} & set(address)


def _is_removed(store: Store, id_: DeliveryId) -> bool:
    try:
        store.delivery(id_)
    except RemovedError:
        return True
    except StoreError:
        return False
    return False


class Sender:
    """Sends messages to one LMTP server, over one connection as long as that holds."""

    def __init__(self, address: Address, timeout_s: float = _TIMEOUT_S) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._connection: Downstream | None = None

    async def send(
        self, sender: bytes, recipient: bytes, pieces: Iterable[bytes], sender_params: bytes = b""
    ) -> bytes:
        """One message for one recipient: the server's final reply. What `pieces` raises is passed on before
        the message has an end. Raises `DownstreamError`; after any of these, `drop`."""
        if self._connection is None or self._connection.lost:
            self._connection = await Downstream.connect(
                self._address, hostname=b"mailkeep.drill", deadline=self._soon()
            )
        lines = self._connection.envelope(sender, recipient, sender_params)
        return (await self._connection.deliver(*lines, pieces, self._timeout_s)).text

    def drop(self) -> None:
        """Hang up in the middle of a message."""
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    def close(self) -> None:
        """Hang up between two messages."""
        if self._connection is not None:
            self._connection.close()

    def _soon(self) -> float:
        return asyncio.get_running_loop().time() + self._timeout_s
