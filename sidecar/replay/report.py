"""What a run tells: a line for each target as it happens, and how many at the end, mailbox by mailbox."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from sidecar.present import print_json, short_id
from sidecar.readable import escaped, header_text, text
from sidecar.replay.targets import Outcome, Result, Target
from sidecar.units import format_time, iso_time

_SHOWN = 50
_FLUSH_S = 0.03
_COLUMNS = {
    Outcome.RESTORED: "restored",
    Outcome.THERE: "already there",
    Outcome.REFUSED: "refused",
    Outcome.IN_DOUBT: "in doubt",
    Outcome.NOT_ATTEMPTED: "not attempted",
}


class ReportError(Exception):
    """The file for the report is something else."""

    hint = "Nothing was done. Name a new file, or move that one away."
    exit_code = 2


def check_file(path: Path) -> None:
    """That nothing is lost by a report at this path: only an earlier report is written over, as when a run is
    gone on with (the new one tells of everything again). Raises `ReportError`, `OSError`."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        first = file.readline(1 << 16)
    try:
        known = not first or {"id", "recipient", "outcome", "restored"} <= json.loads(first).keys()
    except (ValueError, AttributeError):
        known = False
    if not known:
        raise ReportError(f"--report {path}: it exists and is no report, so it is not written over")


@dataclass(slots=True)
class Mailbox:
    """How many of one mailbox; `said` is the last refusal."""

    counts: dict[Outcome, int] = field(default_factory=dict)
    said: str = ""

    def add(self, result: Result) -> None:
        """One more."""
        outcome = Outcome.RESTORED if result.outcome is Outcome.EARLIER else result.outcome
        self.counts[outcome] = self.counts.get(outcome, 0) + 1
        if not result.is_back:
            self.said = text(result.reply) or result.why

    @property
    def missing(self) -> int:
        """How many are not back."""
        return sum(self.counts.get(outcome, 0) for outcome in list(_COLUMNS)[2:])

    def told(self) -> dict[str, Any]:
        """For JSON."""
        counts = {name.replace(" ", "_"): self.counts.get(outcome, 0) for outcome, name in _COLUMNS.items()}
        return counts | {"last_refusal": self.said or None}


class Report:
    """Told of every result; a context manager that closes the file. Keeps some figures for each mailbox, and
    nothing of each message."""

    def __init__(self, *, json: bool, lines: bool = True, file: Path | None = None) -> None:
        """Raises `OSError` when the file cannot be written."""
        self.mailboxes: dict[str, Mailbox] = {}
        self._json = json
        self._lines = lines
        self._will_flush = False
        self._file: IO[str] | None = file.open("w", encoding="utf-8") if file else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            self._file.close()

    def add(self, result: Result) -> None:
        """Count, and print. To be called in an event loop."""
        name = text(result.target.recipient)
        self.mailboxes.setdefault(name, Mailbox()).add(result)
        if self._file:
            self._file.write(json.dumps(result_object(result)) + "\n")
        if self._json:
            print_json(result_object(result))
        elif self._lines or not result.is_back:
            print(result_line(result))
        if not self._will_flush:
            self._will_flush = True
            asyncio.get_running_loop().call_later(_FLUSH_S, self._flush)

    def _flush(self) -> None:
        """Whoever reads along wants to know now; a flush for each line would be a sixth of all the work."""
        self._will_flush = False
        sys.stdout.flush()

    def count(self, outcome: Outcome) -> int:
        """Over all mailboxes."""
        return sum(mailbox.counts.get(outcome, 0) for mailbox in self.mailboxes.values())

    def summary(self) -> dict[str, Any]:
        """For JSON: the figures, in total and for each mailbox."""
        total = {name.replace(" ", "_"): self.count(outcome) for outcome, name in _COLUMNS.items()}
        boxes = {name: mailbox.told() for name, mailbox in sorted(self.mailboxes.items())}
        return total | {"mailboxes": boxes}

    def table(self) -> Iterator[str]:
        """For people: a line for each mailbox, those with something missing first, and the sum."""
        used = [outcome for outcome in _COLUMNS if self.count(outcome)] or [Outcome.RESTORED]
        ordered = sorted(self.mailboxes.items(), key=lambda box: (-box[1].missing, box[0]))
        rows = [("mailbox", *(_COLUMNS[outcome] for outcome in used), "")]
        for name, mailbox in ordered[:_SHOWN]:
            numbers = (str(mailbox.counts.get(outcome, 0)) for outcome in used)
            rows.append((escaped(name), *numbers, escaped(mailbox.said.replace("\r\n", " / "))))
        if len(ordered) > _SHOWN:
            rest = [mailbox for _, mailbox in ordered[_SHOWN:]]
            numbers = (str(sum(mailbox.counts.get(outcome, 0) for mailbox in rest)) for outcome in used)
            rows.append((f"and {len(rest)} more", *numbers, ""))
        if len(ordered) > 1:
            rows.append(("all", *(str(self.count(outcome)) for outcome in used), ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for first, *middle, said in rows:
            cells = (number.rjust(width) for number, width in zip(middle, widths[1:-1], strict=True))
            yield "  ".join([first.ljust(widths[0]), *cells, said]).rstrip()


def result_object(result: Result) -> dict[str, Any]:
    """For JSON. `restored`: it is where it was to go; `already`: an earlier part of the run put it there."""
    delivery = result.target.delivery
    return {
        "id": delivery.id.hex(),
        "recipient": text(result.target.recipient),
        "time": iso_time(delivery.time_us),
        "size": delivery.size,
        "outcome": str(result.outcome),
        "restored": result.is_back,
        "already": result.outcome is Outcome.EARLIER,
        "reply": text(result.reply) or None,
        "error": result.why or None,
        "recognised_by": result.how or None,
        "folder": result.folder or None,
    }


def result_line(result: Result) -> str:
    """For people."""
    match result.outcome:
        case Outcome.EARLIER:
            said = "was put back before"
        case Outcome.THERE:
            said = f"already there: {result.folder}, by {result.how}"
        case Outcome.IN_DOUBT:
            said = f"in doubt: {result.why}"
        case _:
            said = text(result.reply) or f"not sent: {result.why}"
    recipient = escaped(text(result.target.recipient))
    return f"{short_id(result.target.delivery.id)}  {recipient}  {escaped(said)}"


def print_target(target: Target, *, json: bool) -> None:
    """One that would be put back."""
    delivery = target.delivery
    if json:
        print_json({"id": delivery.id.hex(), "recipient": text(target.recipient), "size": delivery.size})
    else:
        when, subject = format_time(delivery.time_us), escaped(header_text(delivery.subject))
        print(f"{short_id(delivery.id)}  {when}  {escaped(text(target.recipient))}  {subject}")
