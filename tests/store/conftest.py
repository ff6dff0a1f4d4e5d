"""A store with a running writer, and the shortest way to put a message in."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from store.errors import StoreError
from store.records import Delivery, Envelope, Leg, Recipient
from store.store import Store

Put = Callable[..., Delivery]


def put_message(store: Store, message: bytes, *, step: int = 65536, **how: object) -> Delivery:
    """Capture one message; returns when it is durable. Raises what the writer reported."""
    ingest = store.begin()
    for start in range(0, len(message), step):
        ingest.feed(message[start : start + step])
    done = threading.Event()
    errors: list[StoreError | None] = []

    def finished(error: StoreError | None) -> None:
        errors.append(error)
        done.set()

    recipients = how.get("to", (b"anna@example.org",))
    assert isinstance(recipients, tuple)
    delivery = ingest.commit(
        Leg(str(how.get("leg", "lmtp"))),
        Envelope(b"bert@example.com", tuple(Recipient(address) for address in recipients)),
        queue_id=bytes(how.get("queue_id", b"")),  # type: ignore[call-overload]  # a test's own keyword
        attributes={"helo": b"mx.example.com"},
        done=finished,
    )
    assert done.wait(60), "the writer never answered"
    if errors[0] is not None:
        raise errors[0]
    return delivery


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path, create=True) as opened:
        opened.start_writing("host")
        yield opened
