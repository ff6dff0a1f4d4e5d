"""What speaks against the demo's claims: what was sent, what the store has, and what others saw, compared.

Pure: it is given everything. Each method yields the contradictions in words; none means that the claim holds.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.demo.mails import Mail
from sidecar.demo.roads import Answer

Captures = Mapping[tuple[str, str], Mapping[str, Any]]
"""(Message-ID, leg) -> what `mailkeep list --json` says of that capture"""

# What final delivery may put on top of a message, and nothing else.
_TRACE = re.compile(rb"(?:(?:Return-Path|Delivered-To|Received):.*\r\n(?:[ \t].*\r\n)*)*")


def is_copy(stored: bytes, message: bytes) -> bool:
    """Whether a mailbox has exactly this message below what final delivery puts on top."""
    return stored.endswith(message) and _TRACE.fullmatch(stored[: len(stored) - len(message)]) is not None


@dataclass(frozen=True, slots=True)
class Evidence:
    """`answers`: Message-ID -> recipient -> what the sender's side was told."""

    mails: Sequence[Mail]
    captures: Captures
    answers: Mapping[str, Mapping[str, Answer]]

    def answer(self, mail: Mail, address: str) -> Answer:
        """What was said about a recipient, as heard by the sender's side."""
        return self.answers[mail.message_id].get(address, Answer("??? no answer", "nobody"))

    def recorded(self, mail: Mail) -> dict[str, str]:
        """Recipient -> reply, as the store has it."""
        found = self.captures.get((mail.message_id, "lmtp"))
        return {who["address"]: who["reply"] or "" for who in found["recipients"]} if found else {}

    def wrong_replies(self) -> Iterator[str]:
        """Against: the replies on record are those that were heard."""
        for mail in self.mails:
            for address, reply in self.recorded(mail).items():
                heard = self.answer(mail, address).reply
                if reply != heard:
                    yield f"{mail.what}, {address}: {reply!r} is on record, heard was {heard!r}"

    def wrong_refusals(self) -> Iterator[str]:
        """Against: refused were those that had to be."""
        for mail in self.mails:
            refused = {who for who in mail.recipients if not self.answer(mail, who).positive}
            if refused != mail.refused:
                yield f"{mail.what}: refused were {sorted(refused)}, not {sorted(mail.refused)}"

    def wrong_captures(self, messages: Mapping[tuple[str, str], bytes]) -> Iterator[str]:
        """Against: the captures are what was sent, below what Postfix put on top."""
        sent = {mail.message_id: mail for mail in self.mails}
        for (message_id, leg), message in messages.items():
            if not is_copy(message, sent[message_id].raw):
                yield f"{sent[message_id].what}: the {leg} capture is not what was sent"

    def wrong_mailboxes(
        self, messages: Mapping[tuple[str, str], bytes], boxes: Mapping[str, Sequence[bytes]]
    ) -> Iterator[str]:
        """Against: every mailbox has the captures that are its own, once each, and no other mail."""
        expected: Counter[str] = Counter()
        for mail in self.mails:
            for address in set(mail.recipients) - mail.refused:
                expected[address] += 1
                message = messages[mail.message_id, "lmtp"]
                copies = sum(is_copy(raw, message) for raw in boxes[address])
                if copies != 1:
                    yield f"{mail.what}: {address} has {copies} of it"
        for user, found in boxes.items():
            if len(found) != expected[user]:
                yield f"{user} has {len(found)} mails, not {expected[user]}"

    def wrong_metrics(self, metrics: Mapping[str, float]) -> Iterator[str]:
        """Against: the metrics tell of these captures and of no failure."""
        legs = Counter(leg for _, leg in self.captures)
        expected = {f'mailkeep_captured_messages_total{{leg="{leg}"}}': n for leg, n in legs.items()}
        never = ("capture_failures_total", "uncaptured_messages_total", "retries_suppressed_total")
        expected |= {name: 0 for name in metrics if name.startswith(tuple(f"mailkeep_{n}" for n in never))}
        for name, value in expected.items():
            if metrics[name] != value:
                yield f"{name} is {metrics[name]:g}, not {value}"
