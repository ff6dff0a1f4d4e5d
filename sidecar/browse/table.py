"""A list of rows on the screen: only what is seen is drawn, so its length costs nothing.

Works without colour and without a mouse: `>` stands before the row with the cursor, `*` before marked ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from sidecar.browse.model import Row

R = TypeVar("R", bound=Row)

_GUTTER = 3
_BETWEEN = "  "
_MORE_WITHIN = 100
"""rows before the end at which more are asked for"""
_HEADING = Style(bold=True, dim=True)
_PLAIN = Style()
_MARKED = Style(bold=True, color="yellow")
_CURSOR = Style(reverse=True)
_CURSOR_AWAY = Style(bold=True)


@dataclass(frozen=True, slots=True)
class Column:
    """`width` in cells; an elastic one takes that share of what is left, and at least 8. Not shown on screens
    narrower than `from_width`."""

    title: str
    width: int
    elastic: bool = False
    right: bool = False
    from_width: int = 0


class RowList(Widget, Generic[R], can_focus=True):
    """Rows with a cursor. Posts `Moved`, `Chosen`, `WantMore`."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup,ctrl+b", "page(-1)", "Page up", show=False),
        Binding("pagedown,ctrl+f", "page(1)", "Page down", show=False),
        Binding("home,g", "jump(0)", "First", show=False),
        Binding("end,G", "jump(-1)", "Last", show=False),
        Binding("enter", "choose", "Open", show=False),
    ]

    class _Of(Message):
        def __init__(self, rows: RowList[Any]) -> None:
            super().__init__()
            self.rows = rows

        @property
        def control(self) -> RowList[Any]:
            """The list."""
            return self.rows

    class Moved(_Of):
        """The cursor is on another row."""

    class Chosen(_Of):
        """The row with the cursor is wanted."""

    class WantMore(_Of):
        """The end is near."""

    def __init__(self, columns: Sequence[Column], *, empty: str = "", id: str | None = None) -> None:  # noqa: A002 - textual's word
        super().__init__(id=id)
        self._columns = tuple(columns)
        self.rows: list[R] = []
        self.empty = empty
        """what is said where there are no rows"""
        self.cursor = 0
        self.top = 0
        self.range_from: int | None = None
        """where a range began"""
        self.is_marked: Callable[[R], bool] = lambda _row: False

    # -- rows

    @property
    def current(self) -> R | None:
        """The row with the cursor."""
        return self.rows[self.cursor] if self.cursor < len(self.rows) else None

    @property
    def range(self) -> list[R]:
        """The rows from the anchor to the cursor."""
        if self.range_from is None:
            return []
        low, high = sorted((self.range_from, self.cursor))
        return self.rows[low : high + 1]

    @property
    def height(self) -> int:
        """Rows that are seen at once."""
        return max(1, self.size.height - 1)

    def clear(self, empty: str = "") -> None:
        """No rows any more."""
        self.rows = []
        self.empty = empty
        self.cursor = self.top = 0
        self.range_from = None
        self.refresh()

    def append(self, rows: Sequence[R]) -> None:
        """More at the end."""
        was_empty = not self.rows
        self.rows.extend(rows)
        self.refresh()
        if was_empty and rows:
            self.post_message(self.Moved(self))

    def replace(self, rows: Sequence[R]) -> None:
        """Others; the cursor stays on the row it was on, where that is there."""
        key = self.current.key if self.current else None
        self.rows = list(rows)
        self.range_from = None
        if self.cursor:
            places = (place for place, row in enumerate(self.rows) if row.key == key)
            self.cursor = next(places, min(self.cursor, max(0, len(self.rows) - 1)))
        self._follow()

    # -- moving

    def move_to(self, place: int) -> None:
        """Put the cursor there, or as near as can be."""
        place = max(0, min(place, len(self.rows) - 1))
        moved = place != self.cursor
        self.cursor = place
        self._follow()
        if moved:
            self.post_message(self.Moved(self))
        if place >= len(self.rows) - _MORE_WITHIN:
            self.post_message(self.WantMore(self))

    def action_move(self, by: int) -> None:
        """Some rows up or down."""
        self.move_to(self.cursor + by)

    def action_page(self, by: int) -> None:
        """A page up or down."""
        self.move_to(self.cursor + by * max(1, self.height - 1))

    def action_jump(self, place: int) -> None:
        """To the first or (-1) the last row."""
        self.move_to(place if place >= 0 else len(self.rows) - 1)

    def action_choose(self) -> None:
        """The row with the cursor is wanted."""
        if self.current is not None:
            self.post_message(self.Chosen(self))

    def on_click(self, event: events.Click) -> None:
        """A mouse is not needed, but may be used."""
        place = self.top + event.y - 1
        if event.y >= 1 and place < len(self.rows):
            again = place == self.cursor
            self.move_to(place)
            if again:
                self.action_choose()

    def on_mouse_scroll_down(self) -> None:
        """As on_click."""
        self.move_to(self.cursor + 3)

    def on_mouse_scroll_up(self) -> None:
        """As on_click."""
        self.move_to(self.cursor - 3)

    def on_resize(self) -> None:
        """The cursor stays in sight."""
        self._follow()

    def _follow(self) -> None:
        self.top = min(self.top, self.cursor, max(0, len(self.rows) - 1))
        self.top = max(self.top, self.cursor - self.height + 1)
        self.refresh()

    # -- drawing

    def render_line(self, y: int) -> Strip:
        """One line of the screen."""
        width = self.size.width
        if y == 0:
            titles = tuple(column.title for column in self._columns)
            return self._strip("   ", titles, _HEADING, width)
        place = self.top + y - 1
        if place >= len(self.rows):
            said = f"   {self.empty}" if y == 1 and not self.rows else ""
            return Strip([Segment(set_cell_size(said, width), Style(dim=True))], width)
        row = self.rows[place]
        marked, here = self.is_marked(row), place == self.cursor
        ranged = self.range_from is not None and min(self.range_from, self.cursor) <= place <= max(
            self.range_from, self.cursor
        )
        style = _MARKED if marked or ranged else _PLAIN
        if here:
            style += _CURSOR if self.has_focus else _CURSOR_AWAY
        gutter = f"{'>' if here else ' '}{'*' if marked else '+' if ranged else ' '} "
        return self._strip(gutter, row.cells, style, width)

    def _strip(self, gutter: str, cells: Sequence[str], style: Style, width: int) -> Strip:
        texts = [
            _fitted(cells[number], size, right=self._columns[number].right)
            for number, size in self._widths(width)
        ]
        line = set_cell_size(gutter + _BETWEEN.join(texts), width)
        return Strip([Segment(line, style)], width)

    def _widths(self, width: int) -> list[tuple[int, int]]:
        """(number of the column, cells) of those that there is room for."""
        seen = [(n, column) for n, column in enumerate(self._columns) if width >= column.from_width]
        fixed = sum(column.width for _, column in seen if not column.elastic)
        left = max(0, width - _GUTTER - fixed - len(_BETWEEN) * (len(seen) - 1) - 1)
        shares = sum(column.width for _, column in seen if column.elastic) or 1
        return [
            (n, max(8, left * column.width // shares) if column.elastic else column.width)
            for n, column in seen
        ]


def _fitted(value: str, width: int, *, right: bool) -> str:
    """Text in exactly so many cells; what is cut off is shown by an ellipsis."""
    size = cell_len(value)
    if size > width:
        return set_cell_size(value, width - 1) + "…"
    return " " * (width - size) + value if right else value + " " * (width - size)
