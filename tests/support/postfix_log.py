"""What Postfix's log says became of a message, recipient by recipient."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE = re.compile(
    r"\[\d+\]: (?P<queue_id>\w+): to=<(?P<recipient>[^>]*)>,.* status=(?P<status>\w+) \((?P<text>.*)\)$",
    re.MULTILINE,
)
_SAID = re.compile(r"^host \S+ (?:said|refused to talk to me): (.*?)(?: \(in reply to .* command\))?$")


@dataclass(frozen=True, slots=True)
class Fate:
    """One attempt for one recipient. `reply` is the server's, on one line, or Postfix's own words."""

    recipient: str
    status: str
    reply: str


def fates(log: str, queue_id: str) -> list[Fate]:
    """Every attempt for a message, in the order of the log."""
    found = []
    for line in _LINE.finditer(log):
        if line["queue_id"] == queue_id:
            said = _SAID.match(line["text"])
            found.append(Fate(line["recipient"], line["status"], said[1] if said else line["text"]))
    return found


def statuses(log: str, queue_id: str, recipient: str) -> list[str]:
    """`deferred`, `sent` and the like, for one recipient."""
    return [fate.status for fate in fates(log, queue_id) if fate.recipient == recipient]
