"""What the demo prints: steps with a check mark and their time, proofs, commands with their output.

On a terminal a step shows that it is under way, and there is colour; elsewhere the same lines come plain.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

_WIDTH_MAX = 110
_WIDTH_UNWATCHED = 100
_WIDTH_SIZES = 96  # below that the sizes' room is needed for other columns
_TIME_WIDTH = 8
_ELASTIC = frozenset({"MAIL", "REPLIES"})


@dataclass(slots=True)
class Step:
    """A step under way; `text` is what its line will say."""

    text: str
    failed: bool = False
    status: Status | None = None

    def show(self, doing: str) -> None:
        """How far it is, where somebody watches."""
        if self.status:
            self.status.update(f"{doing} …")


class Teller:
    """Prints to standard output."""

    def __init__(self) -> None:
        self.console = _console()
        self._width = min(self.console.width, _WIDTH_MAX)
        self._good, self._bad = ("✓", "✗") if _can_show("✓✗", self.console) else ("ok", "NO")
        self.failures: list[str] = []

    def go_on(self) -> None:
        """After an interruption: a console that it has caught printing holds back what follows."""
        self.console = _console()

    def title(self, text: str) -> None:
        """What begins now."""
        self.console.print(Text(f"\n{text}", style="bold"))

    def note(self, text: str, *, style: str = "") -> None:
        """A sentence or two."""
        for line in _wrapped(text, self._width - 2):
            self.console.print(Text(f"  {line}", style=style))

    @contextmanager
    def step(self, doing: str) -> Iterator[Step]:
        """Something that takes time; `doing` is shown meanwhile, `Step.text` and the time when it is done."""
        step = Step(doing)
        began = time.monotonic()
        try:
            if self.console.is_terminal:
                with self.console.status(f"{doing} …") as step.status:
                    yield step
            else:
                yield step
        except BaseException:
            self._line(self._bad, "red", doing, "")
            raise
        mark, style = (self._bad, "yellow") if step.failed else (self._good, "green")
        self._line(mark, style, step.text, f"{time.monotonic() - began:.1f} s")

    def proof(self, text: str, failures: Iterable[str]) -> bool:
        """A claim, and all that speaks against it; true when there is nothing."""
        found = list(failures)
        if found:
            self._line(self._bad, "bold red", f"NOT TRUE: {text}", "")
            for failure in found:
                self.note(f"  {failure}", style="red")
            self.failures.append(text)
        else:
            self._line(self._good, "bold green", text, "")
        return not found

    def command(self, arguments: Sequence[str], output: bytes) -> None:
        """A command as it would be typed, and what it printed."""
        self.console.print(Text(f"  $ mailkeep {' '.join(arguments)}", style="bold"))
        for line in output.decode(errors="replace").splitlines():
            self.console.print(Text(f"    {line}", style="cyan"), soft_wrap=True)

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[Text]]) -> None:
        """Rows of cells, which may have several lines."""
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
        shown = [n for n, heading in enumerate(headings) if heading != "SIZE" or self._width >= _WIDTH_SIZES]
        for heading in (headings[column] for column in shown):
            # Where room is short, rich takes it from the columns that may wrap; theirs do not wrap either.
            table.add_column(
                heading,
                justify="right" if heading in {"#", "SIZE"} else "left",
                no_wrap=heading not in _ELASTIC,
            )
        for row in rows:
            for cell in row:
                cell.no_wrap, cell.overflow = True, "ellipsis"
            table.add_row(*(row[column] for column in shown))
        self.console.print(table)

    def _line(self, mark: str, style: str, text: str, took: str) -> None:
        room = self._width - len(mark) - 3 - _TIME_WIDTH
        first, *rest = _wrapped(text, room)
        line = Text("  ").append(mark, style=style).append(f" {first}")
        if took:
            line.append(" " * (room - len(first))).append(took.rjust(_TIME_WIDTH), style="dim")
        self.console.print(line)
        for more in rest:
            self.console.print(Text(" " * (len(mark) + 3) + more))


def _wrapped(text: str, width: int) -> list[str]:
    # A path that is cut in two cannot be copied.
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def _console() -> Console:
    console = Console(highlight=False, emoji=False, markup=False)
    if console.is_terminal:
        return console
    return Console(highlight=False, emoji=False, markup=False, width=_WIDTH_UNWATCHED)


def _can_show(signs: str, console: Console) -> bool:
    try:
        signs.encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
