"""The browser's one screen: lists of messages, mailboxes and days, a message below, a line to filter by.

Everything that touches the store is handed to `Work`; here are only keys and what is seen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widgets import Footer, Input, Static

from sidecar.browse import actions
from sidecar.browse.dialogs import ExportTo, Help, Outcome, PutBack
from sidecar.browse.listing import Listing, Times
from sidecar.browse.model import Asked, DayRow, Days, Mailboxes, MailboxRow, Marks, MessageRow
from sidecar.browse.pane import Pane
from sidecar.browse.preview import Preview, preview
from sidecar.browse.table import Column, RowList
from sidecar.browse.work import Done, Work
from sidecar.describe import describe, description_lines
from sidecar.export import Format
from sidecar.readable import escaped
from sidecar.select import moment_us
from sidecar.units import Address, bare_address, format_time
from store.deliveries import StoredDelivery
from store.fleet import Archive
from store.ids import DeliveryId

PAGE = 300
"""messages loaded at once"""
TALLIED = 20_000
"""deliveries read at once to see which mailboxes there are"""
TIMED = 500_000
"""captures counted at once to see which days there are"""
_PREVIEW_AFTER_S = 0.12
"""how long the cursor must rest before the message under it is read"""
_NOTICE_S = 8.0
_ORDERS = ("newest", "name", "messages")
_VIEWS = ("messages", "mailboxes", "days")


@dataclass(frozen=True, slots=True)
class Setting:
    """What the browser is started with. `downstream` None: nothing can be put back, since `no_downstream`."""

    asked: Asked = field(default_factory=Asked)
    downstream: Address | None = None
    no_downstream: str = "no LMTP server is named: start with --downstream, or a configuration with [lmtp]"


class Browser(App[None]):
    """`mailkeep browse`."""

    ENABLE_COMMAND_PALETTE = False
    CSS_PATH = "app.tcss"
    TITLE = "mailkeep"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "filter", key_display="/"),
        Binding("m", "view('mailboxes')", "mailboxes"),
        Binding("d", "view('days')", "days"),
        Binding("l", "view('messages')", "messages", show=False),
        Binding("space", "mark", "mark", key_display="Space"),
        Binding("a", "mark_all", "all", show=False),
        Binding("u", "unmark", "unmark all", show=False),
        Binding("v", "range", "range", show=False),
        Binding("r", "put_back", "put back"),
        Binding("e", "export", "export"),
        Binding("i", "record", "record", show=False),
        Binding("n", "step(1)", "next", show=False),
        Binding("p", "step(-1)", "previous", show=False),
        Binding("s", "order", "order", show=False),
        Binding("R,f5", "reload", "new mail", show=False),
        Binding("escape", "up", "back", show=False),
        Binding("tab,shift+tab", "other", "other pane", show=False),
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("q", "leave", "quit"),
        Binding("ctrl+q,ctrl+c", "leave", show=False, priority=True),
    ]

    def __init__(self, store: Archive, setting: Setting | None = None) -> None:
        super().__init__(ansi_color=True)
        self.theme = "ansi-dark"
        self.store = store
        self.setting = setting or Setting()
        self.asked = self.setting.asked
        self.marks = Marks()
        self.view_name = "messages"
        self._came_from = "messages"
        self._work = Work(self)
        self._listing: Listing | None = None
        self._loading: dict[str, bool] = {}
        self._boxes_of: Asked | None = None
        self._boxes = Mailboxes()
        self._box_listing: Listing | None = None
        self._order = "newest"
        self._days_of: Asked | None = None
        self._days = Days()
        self._day_source: Listing | Times | None = None
        self._reading: object = None
        """what the pane waits for; a reader whose token is another one stops"""
        self._record = False
        self._notice = ""
        self._outcome: Outcome | None = None
        self._stop_action = False
        self._notices = _Notices(self)

    # -- the screen

    def compose(self) -> ComposeResult:
        """Called by textual."""
        yield Static(id="title", markup=False)
        yield Input(
            id="filter",
            placeholder="to: from: since: subject: or words",
            select_on_focus=False,
        )
        yield RowList[MessageRow](
            [
                Column("CAPTURED", 16), Column("FROM", 3, elastic=True),
                Column("TO", 3, elastic=True, from_width=100), Column("SUBJECT", 5, elastic=True),
                Column("SIZE", 8, right=True), Column("STATUS", 9),
            ],
            id="messages",
        )  # fmt: skip
        yield RowList[MailboxRow](
            [
                Column("MAILBOX", 1, elastic=True), Column("MESSAGES", 9, right=True),
                Column("SIZE", 8, right=True), Column("NEWEST", 16),
            ],
            id="mailboxes",
        )  # fmt: skip
        yield RowList[DayRow](
            [Column("DAY", 10), Column("", 9), Column("MESSAGES", 9, right=True)], id="days"
        )
        yield Pane(id="pane")
        yield Static(id="status", markup=False)
        yield Footer(show_command_palette=False, compact=True)

    def on_mount(self) -> None:
        """Called by textual."""
        logging.getLogger().addHandler(self._notices)
        self.messages.is_marked = lambda row: row.key in self.marks
        self.query_one("#filter", Input).display = False
        self.pane.display = False
        self._show_view("messages")
        self._ask(self.asked)

    def on_unmount(self) -> None:
        """Called by textual: nothing may touch the store any more when this returns."""
        logging.getLogger().removeHandler(self._notices)
        self._stop_all()
        self._work.close()

    def _stop_all(self) -> None:
        self._stop_action = True
        self._reading = None
        for search in (self._listing, self._box_listing, self._day_source):
            if search is not None:
                search.stop()

    @property
    def _base(self) -> Screen[Any]:
        """The screen with the lists, whatever lies over it."""
        return self.screen_stack[0]

    @property
    def messages(self) -> RowList[MessageRow]:
        """The list of messages."""
        return self._base.query_one("#messages", RowList)

    @property
    def mailboxes(self) -> RowList[MailboxRow]:
        """The list of mailboxes."""
        return self._base.query_one("#mailboxes", RowList)

    @property
    def days(self) -> RowList[DayRow]:
        """The list of days."""
        return self._base.query_one("#days", RowList)

    @property
    def pane(self) -> Pane:
        """The message below."""
        return self._base.query_one(Pane)

    @property
    def list_shown(self) -> RowList[Any]:
        """The list that is seen."""
        lists: dict[str, RowList[Any]] = {
            "messages": self.messages, "mailboxes": self.mailboxes, "days": self.days
        }  # fmt: skip
        return lists[self.view_name]

    @property
    def is_loading(self) -> bool:
        """Whether a list is being filled."""
        return any(self._loading.values())

    def say(self, notice: str) -> None:
        """Something for the status line, until the cursor moves or some seconds have gone by."""
        self._notice = notice
        self._show_status()
        if notice:
            self.set_timer(_NOTICE_S, lambda: self.say("") if self._notice == notice else None)

    def _show_title(self) -> None:
        said = Text("mailkeep  ", "bold", no_wrap=True, overflow="ellipsis")
        said.append(escaped(self.asked.line) or "everything, newest first")
        said.append(f"  {escaped(self.store.name)}", "dim")
        self._base.query_one("#title", Static).update(said)

    def _show_status(self) -> None:
        parts: list[str] = []
        rows = self.list_shown
        if rows.rows:
            parts.append(f"{rows.cursor + 1:,} of {len(rows.rows):,}")
        match self.view_name:
            case "messages":
                search: Listing | Times | None = self._listing
            case "mailboxes":
                search = self._box_listing
                parts.append(f"by {self._order}")
            case _:
                search = self._day_source
        if search is not None and not search.done:
            if self._loading.get(self.view_name):
                back = (
                    f" back to {format_time(search.back_to_us)[:-3]}"
                    if isinstance(search, Listing) and search.back_to_us
                    else ""
                )
                parts.append("searching" + back)
            else:
                parts.append("End for more")
        if rows.range_from is not None:
            parts.append(f"range of {len(rows.range):,}: v or Space marks it, Esc leaves it")
        if self.marks:
            parts.append(f"{len(self.marks):,} marked")
        if self._listing is not None and self._listing.damaged:
            parts.append(f"{len(self._listing.damaged)} damaged")
        line = Text(self._notice, "bold") if self._notice else Text("   ".join(parts), "dim")
        self._base.query_one("#status", Static).update(line)

    def _show_view(self, name: str) -> None:
        self.view_name = name
        for view in _VIEWS:
            self._base.query_one(f"#{view}").display = view == name
        if name != "messages":
            self._close_pane()
        self.list_shown.focus()
        self._show_title()
        self._show_status()

    # -- loading

    @on(Done)
    def _done(self, message: Done) -> None:
        if self.is_running and self.screen_stack:
            message.then()

    def _failed(self, view: str) -> Callable[[str], None]:
        def failed(words: str) -> None:
            self._loading[view] = False
            rows: RowList[Any] = self._base.query_one(f"#{view}", RowList)
            rows.empty = words
            rows.refresh()
            self.say(words)

        return failed

    def _ask(self, asked: Asked) -> None:
        """Show what this asks for."""
        if self._listing is not None:
            self._listing.stop()
        self.asked = asked
        self._listing = None
        self._close_pane()
        self.messages.clear("looking…")
        self._show_title()
        self._loading["messages"] = False
        # The search itself begins in its thread; a store may take its time even over the first look.
        self._listing = Listing(self.store, asked)
        self._more_messages()

    def _more_messages(self) -> None:
        listing = self._listing
        if listing is None or listing.done or self._loading.get("messages"):
            return

        def show(rows: list[MessageRow]) -> None:
            if self._listing is listing:
                self.messages.append(rows)
                self._show_status()

        def over() -> None:
            if self._listing is listing:
                self._loading["messages"] = False
                if listing.done and not self.messages.rows:
                    self.messages.clear("nothing matches")
                self._show_status()

        def take(found: list[StoredDelivery]) -> None:
            rows = [MessageRow.of(stored) for stored in found]
            self._work.tell(lambda: show(rows))

        def load() -> None:
            listing.next_page(PAGE, take)
            self._work.tell(over)

        self._loading["messages"] = True
        self._work.start("list", load, self._failed("messages"))

    def _more_mailboxes(self) -> None:
        asked = self.asked.with_(to=None)
        if self._boxes_of != asked or self._box_listing is None:
            if self._box_listing is not None:
                self._box_listing.stop()
            self._boxes_of, self._boxes = asked, Mailboxes()
            self._box_listing = Listing(self.store, asked)
            self._loading["mailboxes"] = False
            self.mailboxes.clear("looking…")
        listing, boxes = self._box_listing, self._boxes
        if listing.done or self._loading.get("mailboxes"):
            return

        def show(*, over: bool = False) -> None:
            if self._box_listing is listing:
                if over:
                    self._loading["mailboxes"] = False
                rows = boxes.rows(self._order)
                self.mailboxes.empty = "nothing matches" if over and not rows else "looking…"
                self.mailboxes.replace(rows)
                self._show_status()

        def take(found: list[StoredDelivery]) -> None:
            self._work.tell(lambda: boxes.take(found))
            if (found and len(found) < 100) or listing.looked_at % 2000 < 100:
                self._work.tell(show)

        def load() -> None:
            listing.next_page(TALLIED, take)
            self._work.tell(lambda: show(over=True))

        self._loading["mailboxes"] = True
        self._work.start("list", load, self._failed("mailboxes"))

    def _more_days(self) -> None:
        asked = self.asked.with_(since=None, until=None)
        if self._days_of != asked or self._day_source is None:
            if self._day_source is not None:
                self._day_source.stop()
            self._days_of, self._days = asked, Days()
            self._day_source = Times(self.store) if asked.is_anything else Listing(self.store, asked)
            self._loading["days"] = False
            self.days.clear("looking…")
        source, days = self._day_source, self._days
        if source.done or self._loading.get("days"):
            return

        def show(times: list[int], *, over: bool = False) -> None:
            if self._day_source is source:
                days.take(times)
                if over:
                    self._loading["days"] = False
                rows = days.rows()
                self.days.empty = "nothing matches" if over and not rows else "looking…"
                self.days.replace(rows)
                self._show_status()

        def load() -> None:
            if isinstance(source, Times):
                source.next_page(TIMED, lambda times: self._work.tell(lambda: show(times)))
            else:
                source.next_page(
                    TALLIED,
                    lambda found: self._work.tell(
                        lambda: show([stored.delivery.time_us for stored in found])
                    ),
                )
            self._work.tell(lambda: show([], over=True))

        self._loading["days"] = True
        self._work.start("list", load, self._failed("days"))

    @on(RowList.WantMore)
    def _want_more(self, message: RowList.WantMore) -> None:
        if message.rows is self.messages:
            self._more_messages()
        elif (
            message.rows.cursor >= len(message.rows.rows) - 1
        ):  # each costs a long search: only at the very end
            self._more_mailboxes() if message.rows is self.mailboxes else self._more_days()

    # -- keys

    def action_view(self, name: str) -> None:
        """Mailboxes, days or messages."""
        self._came_from = name if name != "messages" else self._came_from
        self._show_view(name)
        if name == "mailboxes":
            self._more_mailboxes() if self._boxes_of != self.asked.with_(to=None) else None
        elif name == "days":
            self._more_days() if self._days_of != self.asked.with_(since=None, until=None) else None

    @on(RowList.Chosen)
    def _chosen(self, message: RowList.Chosen) -> None:
        row = message.rows.current
        match row:
            case MailboxRow():
                self._show_view("messages")
                self._ask(self.asked.with_(to=row.key.decode("utf-8", "surrogateescape") or "<>"))
            case DayRow():
                self._show_view("messages")
                self._ask(self.asked.with_(since=row.key.isoformat(), until=row.until))
            case MessageRow() if self.pane.display:
                self.messages.display = False
                self.pane.focus()
            case MessageRow():
                self._record = False
                self.pane.display = True
                self._read(row)
            case _:
                pass

    @on(RowList.Moved)
    def _moved(self, message: RowList.Moved) -> None:
        self.say("")
        row = message.rows.current
        if isinstance(row, MessageRow) and self.pane.display:
            self._read(row)

    def action_other(self) -> None:
        """Between list and pane."""
        if self.pane.display and not self.pane.has_focus:
            self.pane.focus()
        elif self.list_shown.display:
            self.list_shown.focus()

    def action_up(self) -> None:
        """One step back."""
        if self.query_one("#filter", Input).display:
            self._close_filter()
        elif self.messages.range_from is not None:
            self.messages.range_from = None
            self._marks_changed()
        elif self.view_name != "messages":
            self._show_view("messages")
        elif self.pane.display and not self.messages.display:
            self.messages.display = True
            self.messages.focus()
        elif self.pane.display:
            self._close_pane()
        elif self._came_from != "messages":
            self._show_view(self._came_from)
            self._came_from = "messages"

    def _close_pane(self) -> None:
        self._reading = None
        if self.pane.display:
            self.pane.display = False
            if self.view_name == "messages":
                self.messages.display = True
                self.messages.focus()

    def action_step(self, by: int) -> None:
        """The next or previous message."""
        if self.view_name == "messages":
            self.messages.move_to(self.messages.cursor + by)

    def action_order(self) -> None:
        """Order mailboxes otherwise."""
        if self.view_name == "mailboxes":
            self._order = _ORDERS[(_ORDERS.index(self._order) + 1) % len(_ORDERS)]
            self.mailboxes.replace(self._boxes.rows(self._order))
            self._show_status()

    def action_reload(self) -> None:
        """Take in what others have written since, and begin anew."""

        def catch_up() -> None:
            self.store.refresh()
            self._work.tell(again)

        def again() -> None:
            self._boxes_of = self._days_of = None
            self._ask(self.asked)
            if self.view_name != "messages":
                self.action_view(self.view_name)

        self._work.start("act", catch_up, self.say)

    def action_help(self) -> None:
        """The keys."""
        self.push_screen(Help())

    def action_leave(self) -> None:
        """The end. While something is being done to the store, stop that first."""
        if self._outcome is not None:
            self._outcome.action_leave()
        else:
            self._stop_all()
            self.exit()

    # -- the filter line

    def action_filter(self) -> None:
        """Ask for something else."""
        line = self.query_one("#filter", Input)
        line.display = True
        line.value = f"{self.asked.line} ".lstrip()
        line.cursor_position = len(line.value)
        line.focus()
        self.say("Enter looks for it, Esc leaves; ? in a list tells the words")

    @on(Input.Submitted, "#filter")
    def _filter(self, message: Input.Submitted) -> None:
        try:
            asked = Asked.parse(message.value)
        except ValueError as exc:
            self.say(escaped(str(exc)))
            return
        self._close_filter()
        self._came_from = "messages"
        self._ask(asked)
        if self.view_name != "messages":
            self.action_view(self.view_name)

    def _close_filter(self) -> None:
        self.say("")
        self.query_one("#filter", Input).display = False
        if self.list_shown.display:
            self.list_shown.focus()
        else:
            self.pane.focus()

    # -- marks

    def action_mark(self) -> None:
        """Mark the message under the cursor, or the range."""
        row = self.messages.current
        if self.view_name != "messages" or row is None:
            return
        if self.messages.range_from is not None:
            self.action_range()
            return
        self.marks.toggle(row.key)
        self.messages.move_to(self.messages.cursor + 1)
        self._marks_changed()

    def action_range(self) -> None:
        """Begin a range, or mark it."""
        rows = self.messages
        if self.view_name != "messages" or rows.current is None:
            return
        if rows.range_from is None:
            rows.range_from = rows.cursor
        else:
            self.marks.add(row.key for row in rows.range)
            rows.range_from = None
        self._marks_changed()

    def action_mark_all(self) -> None:
        """Mark whatever is loaded."""
        if self.view_name == "messages":
            self.marks.add(row.key for row in self.messages.rows)
            self._marks_changed()
            if self._listing is not None and not self._listing.done:
                self.say(
                    f"the {len(self.messages.rows):,} loaded ones are marked; there are more: End loads them"
                )

    def action_unmark(self) -> None:
        """Mark nothing."""
        self.marks.drop(self.marks)
        self._marks_changed()

    def _marks_changed(self) -> None:
        self.messages.refresh()
        self._show_status()

    @property
    def _picked(self) -> list[DeliveryId]:
        """The marked ones, else the one under the cursor."""
        if self.marks:
            return list(self.marks)
        row = self.messages.current
        return [row.key] if row is not None and self.view_name == "messages" else []

    @property
    def _as_of_us(self) -> int:
        return moment_us(self.asked.selection.as_of)

    # -- reading

    def action_record(self) -> None:
        """Between the message and what is on record of it."""
        row = self.messages.current
        if self.pane.display and row is not None:
            self._record = not self._record
            self._read(row)

    def _read(self, row: MessageRow) -> None:
        token = self._reading = object()
        self.set_timer(_PREVIEW_AFTER_S, lambda: self._read_now(row, token))

    def _read_now(self, row: MessageRow, token: object) -> None:
        if self._reading is not token:
            return
        as_of_us, record = self._as_of_us, self._record

        def show(found: Preview | str) -> None:
            if self._reading is not token:
                return
            if isinstance(found, Preview):
                self.pane.show_preview(found)
            else:
                self.pane.say(Text(found))

        def read() -> None:
            if self._reading is not token:
                return
            stored = self.store.delivery(row.key, as_of_us)
            found: Preview | str | None
            if record:
                found = "\n".join(description_lines(describe(self.store, stored, as_of_us)))
            else:
                found = preview(self.store.read(stored.delivery.content), lambda: self._reading is not token)
            if found is not None:
                self._work.tell(lambda: show(found))

        self._work.start("read", read, show)

    # -- what is done

    def action_put_back(self) -> None:
        """Put the picked ones back, after a question."""
        downstream = self.setting.downstream
        if downstream is None:
            self.say(self.setting.no_downstream)
            return
        ids = self._picked
        if not ids:
            self.say("mark messages first, or put the cursor on one")
            return
        only, as_of_us = self.asked.selection.to, self._as_of_us
        dialog: list[PutBack] = []

        def plan(rcpt: bytes | None) -> None:
            made = actions.plan(self.store, ids, downstream, rcpt=rcpt, only=only, as_of_us=as_of_us)
            self._work.tell(lambda: show(made))

        def show(made: actions.Plan) -> None:
            if not dialog:
                dialog.append(PutBack(made, plan_for, self._put_back))
                self.push_screen(dialog[0])
            elif dialog[0].is_attached:
                dialog[0].show(made)

        def plan_for(address: str) -> None:
            bare = bare_address(address)
            if bare is None:
                self.notify(f"{escaped(address)} is no address", severity="error", markup=False)
                return
            self._work.start("act", lambda: plan(bare or None), self.say)

        self._work.start("act", lambda: plan(None), self.say)

    def _put_back(self, todo: actions.Plan) -> None:
        self._act("put back", len(todo.targets), lambda tell: actions.put_back(self.store, todo, tell))

    def action_export(self) -> None:
        """Write the picked ones to files, after asking whereto."""
        ids, as_of_us = self._picked, self._as_of_us
        if not ids:
            self.say("mark messages first, or put the cursor on one")
            return

        def write(form: Format, output: Path) -> None:
            self._act(
                "export", len(ids),
                lambda tell: actions.write_out(self.store, ids, form, output, tell, as_of_us=as_of_us),
            )  # fmt: skip

        self.push_screen(ExportTo(len(ids), write))

    def _act(self, title: str, total: int, do: Callable[[Callable[[actions.Told], None]], str]) -> None:
        """Do something with messages while a dialog tells of it."""
        self._stop_action = False
        done = 0

        def tell(told: actions.Told) -> None:
            nonlocal done
            done += told.count
            state = f"{done} of {total}"
            self._work.tell(lambda: show(told, state))
            if self._stop_action:
                raise actions.StoppedError

        def show(told: actions.Told, state: str) -> None:
            outcome.tell([told.line] if told.line else [], state)
            if told.back is not None:
                self.marks.drop([told.back])
                self.messages.refresh()

        def run() -> None:
            try:
                summary = do(tell)
            except actions.StoppedError:
                summary = f"stopped after {done} of {total}; the same again goes on"
            self._work.tell(lambda: over(summary))

        def over(summary: str) -> None:
            outcome.end(summary)
            self._outcome = None
            self._show_status()

        outcome = self._outcome = Outcome(
            title, total, begin=lambda: self._work.start("act", run, over), stop=self._ask_to_stop
        )
        self.push_screen(outcome)

    def _ask_to_stop(self) -> None:
        self._stop_action = True


class _Notices(logging.Handler):
    """What is logged meanwhile would destroy the screen: it goes to the status line."""

    def __init__(self, app: Browser) -> None:
        super().__init__(logging.WARNING)
        self._app = app

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging, in any thread."""
        said = escaped(record.getMessage())
        self._app.post_message(Done(lambda: self._app.say(said)))
