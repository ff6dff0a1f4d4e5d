"""Stores full of chosen deliveries, and the command run on them as a person would."""

from __future__ import annotations

import contextlib
import io
import json
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidecar.cli import main
from store.errors import StoreError
from store.ids import chunk_id, content_id, new_delivery_id
from store.layout import NewChunk
from store.records import Content, Delivery, Entry, Envelope, Leg, Outcome, Outcomes, Recipient, Run
from store.store import Store
from store.writer import Submission

NOON_US = 1_774_958_400_000_000
"""2026-03-31T12:00:00Z"""
SECOND_US = 1_000_000
MESSAGE = b"Subject: lunch\r\nMessage-ID: <1@x>\r\n\r\nAt noon?\r\n"


@contextlib.contextmanager
def written(path: Path) -> Iterator[Filler]:
    """A store to be filled; closed afterwards, so that the command can open it in the same process."""
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        yield Filler(store)


def filled(path: Path, count: int) -> Path:
    """A store of so many mails."""
    with written(path) as fill:
        for number in range(count):
            fill.put(MESSAGE + b"%d" % number)
    return path


class Filler:
    """Puts deliveries into a store, with the time, replies and header fields that a test wants."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._next_us = NOON_US

    def put(
        self,
        message: bytes = MESSAGE,
        *,
        sender: bytes = b"bert@example.com",
        to: Sequence[bytes] = (b"anna@example.org",),
        replies: Sequence[bytes | None] = (),
        leg: Leg = Leg.LMTP,
        time_us: int | None = None,
        **fields: Any,
    ) -> Delivery:
        """One delivery, a second after the one before it unless `time_us` says when; durable at return."""
        time_us = self._next_us if time_us is None else time_us
        self._next_us = time_us + SECOND_US
        chunk = chunk_id(message, self.store.key)
        content = Content(content_id(message), len(message), (Run((chunk,)),))
        delivery = Delivery(
            id=new_delivery_id(time_us), time_us=time_us, leg=leg, content=content.id, size=len(message),
            envelope=Envelope(sender, tuple(Recipient(address) for address in to)), **fields,
        )  # fmt: skip
        entries: list[Entry] = [content, delivery]
        known = [Outcome(number, reply) for number, reply in enumerate(replies) if reply is not None]
        if known:
            entries.append(Outcomes(delivery=delivery.id, time_us=time_us, outcomes=tuple(known)))
        done = _Done()
        self.store.writer.submit(Submission(chunks=[NewChunk(chunk, message)], entries=entries, done=done))
        done.wait()
        return delivery


class _Done:
    def __init__(self) -> None:
        self._event = threading.Event()
        self._error: StoreError | None = None

    def __call__(self, error: StoreError | None) -> None:
        self._error = error
        self._event.set()

    def wait(self) -> None:
        assert self._event.wait(60), "the writer never answered"
        if self._error is not None:
            raise self._error


@dataclass(frozen=True)
class Ran:
    """What a command has done."""

    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return self.raw.decode()

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


def mailkeep(*arguments: str | Path) -> Ran:
    """Run the command in this process, its output kept to the byte."""
    out, err = io.BytesIO(), io.BytesIO()
    stdout, stderr = io.TextIOWrapper(out, "utf-8"), io.TextIOWrapper(err, "utf-8")
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else 1
    stdout.flush()
    stderr.flush()
    return Ran(code, out.getvalue(), err.getvalue().decode())


def options_in_help(*command: str) -> set[str]:
    """What a subcommand's help names; it has an example, and its exit codes."""
    ran = mailkeep(*command, "--help")
    assert ran.code == 0
    assert f"Example: mailkeep {' '.join(command)}" in ran.out
    assert "Exit codes: 0" in ran.out
    return set(re.findall(r"(--[a-z]+(?:-[a-z]+)*)", ran.out)) - {"--help"}
