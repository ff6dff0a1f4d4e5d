"""The two ways in which the demo's mail sets out: through Postfix, or from an LMTP client of our own.

Either way the sender's side of the story is kept: what was answered for each recipient, so that it can be
compared with what the store has written down.
"""

from __future__ import annotations

import asyncio
import re
import smtplib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sidecar.demo.mails import Mail
from sidecar.demo.ports import wait_until
from sidecar.demo.postfix import PrivatePostfix
from sidecar.demo.process import ServerFailedError
from sidecar.downstream import Downstream, DownstreamError
from sidecar.units import Address

_DELIVER_TIMEOUT_S = 60.0

# Postfix's log, as lmtp(8) and error(8) write it: the server's words stand inside "host ... said: ...".
_FATE = re.compile(
    r"\[\d+\]: (?P<queue_id>\w+): to=<(?P<recipient>[^>]*)>,.* status=(?P<status>\w+) \((?P<text>.*)\)$",
    re.MULTILINE,
)
_SAID = re.compile(r"^host \S+ said: (.*?)(?: \(in reply to .* command\))?$")


@dataclass(frozen=True, slots=True)
class Answer:
    """What was said about one recipient, on one line, and by whom."""

    reply: str
    by: str

    @property
    def positive(self) -> bool:
        """Whether the mail was taken for this recipient."""
        return self.reply.startswith("2")


class Road(Protocol):
    """How mail gets to mailkeep."""

    def send(self, mail: Mail) -> None:
        """Send one mail. Raises ServerFailedError when it is not taken."""

    def settle(self) -> None:
        """Wait until nothing is on the way any more. Raises ServerFailedError after the deadline."""

    def answers(self, mail: Mail) -> dict[str, Answer]:
        """What was said about each recipient."""


class ThroughPostfix:
    """SMTP to Postfix, which delivers to mailkeep."""

    def __init__(self, postfix: PrivatePostfix, mailbox_server: str) -> None:
        self._postfix = postfix
        self._mailbox_server = mailbox_server
        self._queue_ids: dict[str, str] = {}
        self._refused: dict[str, dict[str, Answer]] = {}

    def send(self, mail: Mail) -> None:
        """Send one mail by SMTP."""
        try:
            sent = self._postfix.send(mail.sender, mail.recipients, mail.raw, options=mail.options)
        except (OSError, smtplib.SMTPException) as exc:
            raise ServerFailedError(f"Postfix took no mail: {exc}") from exc
        if not sent.accepted:
            raise ServerFailedError(f"Postfix refused {mail.what!r}: {sent.code} {sent.text}")
        self._queue_ids[mail.message_id] = sent.queue_id
        self._refused[mail.message_id] = {
            address: Answer(f"{code} {text}", "Postfix") for address, (code, text) in sent.refused.items()
        }

    def settle(self) -> None:
        """Wait until the queue is empty."""
        if not wait_until(lambda: not self._postfix.queue(), timeout_s=_DELIVER_TIMEOUT_S):
            queued = [entry["queue_id"] for entry in self._postfix.queue()]
            raise ServerFailedError(f"still queued after {_DELIVER_TIMEOUT_S:g} s: {', '.join(queued)}")

    def answers(self, mail: Mail) -> dict[str, Answer]:
        """Postfix's refusals, and what its log has from the mailbox server."""
        answers = dict(self._refused[mail.message_id])
        for line in _FATE.finditer(self._postfix.log_text()):
            if line["queue_id"] != self._queue_ids[mail.message_id] or line["status"] == "deferred":
                continue
            said = _SAID.match(line["text"])
            answers[line["recipient"]] = Answer(said[1] if said else line["text"], self._mailbox_server)
        return answers


class Direct:
    """LMTP straight to mailkeep, as Postfix would speak it."""

    def __init__(self, address: str, mailbox_server: str) -> None:
        self._address = Address.parse(address)
        self._mailbox_server = mailbox_server
        self._answers: defaultdict[str, dict[str, Answer]] = defaultdict(dict)

    def send(self, mail: Mail) -> None:
        """Deliver one mail by LMTP."""
        try:
            replies = asyncio.run(_deliver(self._address, mail))
        except DownstreamError as exc:
            raise ServerFailedError(f"mailkeep took no mail: {exc}") from exc
        for address, reply in zip(mail.recipients, replies, strict=True):
            self._answers[mail.message_id][address] = Answer(reply, self._mailbox_server)

    def settle(self) -> None:
        """Every reply has been waited for already."""

    def answers(self, mail: Mail) -> dict[str, Answer]:
        """The replies that came."""
        return self._answers[mail.message_id]


async def _deliver(address: Address, mail: Mail) -> Sequence[str]:
    """One transaction; the reply that decided, for each recipient. Raises DownstreamError."""
    deadline = asyncio.get_running_loop().time() + _DELIVER_TIMEOUT_S
    connection = await Downstream.connect(address, hostname=b"client.demo.example", deadline=deadline)
    try:
        parameters = "".join(f" {option}" for option in mail.options)
        mail_line = f"MAIL FROM:<{mail.sender}>{parameters}\r\n".encode()
        recipients = [f"RCPT TO:<{recipient}>\r\n".encode() for recipient in mail.recipients]
        begun, *told = await connection.begin(mail_line, recipients, _DELIVER_TIMEOUT_S)
        accepted = [number for number, reply in enumerate(told) if reply.positive]
        if begun.positive and accepted:
            refusal = await connection.open_body(deadline) or connection.body(mail.raw)
            refusal = refusal or await connection.finish(len(accepted), deadline)
            for number in accepted:
                told[number] = refusal or await connection.reply(deadline)
        return [reply.text.decode(errors="replace") for reply in told]
    finally:
        connection.close()
