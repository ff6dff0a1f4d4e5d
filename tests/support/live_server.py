"""A mailbox in memory that behaves as a server does: own fields in front, bytes by uid, faults on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from sidecar.live.mailbox import LiveError, LiveMessage
from store.ids import FOREVER_US

TRACE = (
    b"Return-Path: <bob@example.net>\r\nDelivered-To: anna@example.org\r\n"
    b"Received: from mx.example.org\r\n\tby imap.example.org with LMTP id x\r\n\tfor <anna@example.org>;"
    b" Mon, 1 Jan 2024 00:00:00 +0000\r\n"
)


class LiveServer:
    """A `LiveMailbox`. What is `refused` or `headless` (by uid) is not given; `fetched` has what was."""

    def __init__(self, user: str = "anna", folders: Sequence[str] = ("INBOX", "Archive")) -> None:
        self.user = user
        self.mail: dict[str, dict[str, tuple[LiveMessage, bytes]]] = {name: {} for name in folders}
        self.refused: set[str] = set()
        self.headless: set[str] = set()
        self.fetched: list[str] = []
        self.commands = 0
        self.down = False

    def deliver(self, raw: bytes, folder: str = "INBOX", *, received_us: int = 1_000_000) -> LiveMessage:
        """As LMTP leaves it."""
        return self.put(TRACE + raw, folder, received_us=received_us)

    def put(
        self,
        raw: bytes,
        folder: str = "INBOX",
        *,
        received_us: int = 1_000_000,
        flags: tuple[str, ...] = (),
        rewrite: Callable[[bytes], bytes] = bytes,
    ) -> LiveMessage:
        """As APPEND leaves it."""
        raw = rewrite(raw)
        uid = str(1 + sum(map(len, self.mail.values())))
        header = raw.partition(b"\r\n\r\n")[0]
        message = LiveMessage(
            folder=folder, uid=uid, size=len(raw), received_us=received_us, flags=flags,
            message_id=_value(header, b"message-id"), date=_value(header, b"date"),
        )  # fmt: skip
        self.mail[folder][uid] = (message, raw)
        return message

    def folders(self) -> list[str]:
        self._work()
        return list(self.mail)

    def mark(self, folder: str) -> str:
        return str(list(self.mail[folder]))

    def messages(self, folder: str, since_us: int = 0, until_us: int = FOREVER_US) -> Iterator[LiveMessage]:
        self._work()
        yield from (message for message, _ in self.mail[folder].values())

    def fetch(self, messages: Sequence[LiveMessage]) -> Iterator[tuple[LiveMessage, bytes]]:
        assert len({message.folder for message in messages}) == 1
        for at in range(0, len(messages), 500):
            self._work()
            batch = messages[at : at + 500]
            if bad := self.refused & {message.uid for message in batch}:
                raise LiveError(f"[SERVERBUG] {sorted(bad)}")
            for message in batch:
                if message.uid in self.mail[message.folder]:
                    self.fetched.append(message.uid)
                    yield self.mail[message.folder][message.uid]

    def headers(self, messages: Sequence[LiveMessage]) -> Iterator[tuple[LiveMessage, bytes]]:
        for message in messages:
            self._work()
            if message.uid in self.headless:
                raise LiveError("[SERVERBUG] no header")
            yield message, self.mail[message.folder][message.uid][1].partition(b"\r\n\r\n")[0] + b"\r\n"

    def close(self) -> None:
        pass

    def _work(self) -> None:
        self.commands += 1
        if self.down:
            raise LiveError("the connection is closed")


def _value(header: bytes, name: bytes) -> bytes:
    for line in header.replace(b"\r\n ", b" ").replace(b"\r\n\t", b"\t").split(b"\r\n"):
        if line.lower().startswith(name + b":"):
            return line.partition(b":")[2].strip()
    return b""
