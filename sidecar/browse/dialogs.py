"""What is laid over the lists: help, the questions before something is done, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from sidecar.browse.actions import Plan
from sidecar.export import Format
from sidecar.readable import escaped, text

HELP = """\
m d l      mailboxes, days, messages       up down  pgup pgdn
Enter      open it; once more: full size   home end (k j g G)
Esc        back                            Tab: scroll what is open
n p        next, previous message          i: what is on record of it

Space      mark, unmark                    u: unmark all
v          a range: v, move, v             a: all that are loaded
r          put the marked ones back through LMTP; asks first
e          export the marked ones: eml, mbox or maildir
           (with nothing marked: the one under the cursor)

/          filter: the words of `list`, and others that must be in
           the subject, the From field or an address, such as
           from:@example.com since:2h subject:"second reminder" invoice
           to: from: since: until: subject: status: leg: queue-id:
           message-id: as-of:
s          order mailboxes by newest, name, messages
End        on the last row: load more, search further back
R          take in new mail                q: quit
"""


class Dialog(ModalScreen[None]):
    """A box in the middle; Esc leaves it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Leave")]

    def action_leave(self) -> None:
        """Leave it."""
        self.dismiss(None)


class Help(Dialog):
    """The keys."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("question_mark,q,enter", "leave", "Leave")]

    def compose(self) -> ComposeResult:
        """Called by textual."""
        with VerticalScroll(classes="box", id="help") as box:
            box.border_title = "keys"
            box.border_subtitle = "Esc leaves"
            yield Static(Text(HELP), markup=False)


class PutBack(Dialog):
    """Whereto? `y` and nothing else sends; `plan_for` makes the plan for another mailbox."""

    AUTO_FOCUS = ""  # keys are for the question, until the field for another mailbox is asked for

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "send", "Put back"),
        Binding("n,q", "leave", "Leave"),
        Binding("o", "other", "Other mailbox"),
    ]

    def __init__(self, plan: Plan, plan_for: Callable[[str], None], send: Callable[[Plan], None]) -> None:
        super().__init__()
        self._plan = plan
        self._plan_for = plan_for
        self._send = send
        self._changes = False

    def compose(self) -> ComposeResult:
        """Called by textual."""
        with Vertical(classes="box", id="put-back") as box:
            box.border_title = "put back"
            yield Static(id="plan", markup=False)
            yield Input(
                placeholder="mailbox, such as anna.restored@example.org", id="rcpt", select_on_focus=False
            )
            yield Static(id="keys", markup=False)

    def on_mount(self) -> None:
        """Called by textual."""
        self.query_one(Input).display = False
        self.set_focus(None)
        self.show(self._plan)

    def show(self, plan: Plan) -> None:
        """What would be done."""
        self._plan = plan
        self._changes = False
        self.query_one("#plan", Static).update(Text("\n".join(plan_lines(plan))))
        keys = "y put them back   o into another mailbox   Esc leave"
        self.query_one("#keys", Static).update(keys if plan.targets else keys.split("   ", 1)[1])

    def action_other(self) -> None:
        """Ask for a mailbox."""
        field = self.query_one(Input)
        field.display = True
        field.focus()
        self.query_one("#keys", Static).update("Enter: this mailbox; empty: those who got it   Esc leave")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Called by textual."""
        event.stop()
        self.query_one(Input).display = False
        self.set_focus(None)
        # A yes from here on is for this mailbox, and not for those of the plan that is still on the screen.
        self._changes = True
        self.query_one("#plan", Static).update("")
        self.query_one("#keys", Static).update("o into another mailbox   Esc leave")
        self._plan_for(event.value.strip())

    def action_send(self) -> None:
        """Do it."""
        if self._plan.targets and not self._changes:
            self.dismiss(None)
            self._send(self._plan)


def plan_lines(plan: Plan) -> list[str]:
    """What is about to be done, in words."""
    addresses = list(dict.fromkeys(text(target.recipient) for target in plan.targets))
    lines = [
        f"{_count(plan.messages, 'message')} to {_count(len(addresses), 'mailbox', 'mailboxes')} "
        f"({_count(len(plan.targets), 'delivery', 'deliveries')}), the null sender,",
        f"through {plan.downstream}:",
        *(f"  {escaped(address)}" for address in addresses[:8]),
    ]
    if not plan.targets:
        lines = [f"Nothing to put back through {plan.downstream}."]
    if len(addresses) > 8:
        lines.append(f"  and {len(addresses) - 8} more")
    if plan.only is not None and plan.rcpt is None:
        lines.append(f"Only for to:{escaped(plan.only)}, as the filter says.")
    if plan.idle:
        lines.append(f"{_count(plan.idle, 'message')} stay out: nobody there has got them.")
    lines += [f"Not there: {line}" for line in plan.missing[:4]]
    return [*lines, ""]


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


class ExportTo(Dialog):
    """In which form, and whereto?"""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "form(-1)", "Form", priority=True),
        Binding("down", "form(1)", "Form", priority=True),
    ]

    def __init__(self, messages: int, write: Callable[[Format, Path], None]) -> None:
        super().__init__()
        self._messages = messages
        self._write = write
        self._forms = list(Format)
        self._form = 0

    def compose(self) -> ComposeResult:
        """Called by textual."""
        with Vertical(classes="box", id="export") as box:
            box.border_title = "export"
            yield Static(id="form", markup=False)
            yield Input(value="./mailkeep-export", id="path", select_on_focus=False)
            yield Static("Enter write   up down form   Esc leave", id="keys", markup=False)

    def on_mount(self) -> None:
        """Called by textual."""
        self.action_form(0)
        self.query_one(Input).focus()

    def action_form(self, by: int) -> None:
        """Another form."""
        self._form = (self._form + by) % len(self._forms)
        what = {
            Format.EML: "a folder of files, the exact bytes",
            Format.MBOX: "one new file",
            Format.MAILDIR: "a Maildir, made if new",
        }
        said = Text(f"{_count(self._messages, 'message')} as\n")
        for number, form in enumerate(self._forms):
            here = number == self._form
            said.append(f"{'>' if here else ' '} {form:<8} {what[form]}\n", "bold" if here else "")
        said.append("to:")
        self.query_one("#form", Static).update(said)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Called by textual."""
        event.stop()
        typed = event.value.strip()
        if typed:
            self.dismiss(None)
            path = Path(typed)
            with suppress(RuntimeError):  # ~nobody: then it is the name of a file
                path = path.expanduser()
            self._write(self._forms[self._form], path)


class Outcome(Dialog):
    """What becomes of each message, as it comes. Esc stops what runs, and leaves when it is over."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,enter", "leave_if_over", "Leave"),
    ]

    def __init__(
        self, title: str, total: int, *, begin: Callable[[], None], stop: Callable[[], None]
    ) -> None:
        super().__init__()
        self._begin = begin
        self._title = title
        self._total = total
        self._stop = stop
        self._lines: list[str] = []
        self._over = False

    def compose(self) -> ComposeResult:
        """Called by textual."""
        with Vertical(classes="box", id="outcome") as box:
            box.border_title = self._title
            with VerticalScroll(id="told"):
                yield Static(id="lines", markup=False)
            yield Static(f"0 of {self._total}   Esc stops it", id="keys", markup=False)

    def on_mount(self) -> None:
        """Called by textual."""
        self._begin()

    def tell(self, lines: list[str], state: str = "") -> None:
        """More lines, and how far it is."""
        if lines:
            self._lines = (self._lines + lines)[-1000:]
            self.query_one("#lines", Static).update(Text("\n".join(self._lines)))
            self.query_one("#told", VerticalScroll).scroll_end(animate=False)
        if state and not self._over:
            self.query_one("#keys", Static).update(f"{state}   Esc stops it")

    def end(self, summary: str) -> None:
        """It is over."""
        self._over = True
        self.query_one("#keys", Static).update(Text(f"{summary}   Esc leave"))

    def action_leave(self) -> None:
        """Stop it, or leave."""
        if self._over:
            self.dismiss(None)
        else:
            self._stop()
            self.query_one("#keys", Static).update("stops after this message")

    def action_leave_if_over(self) -> None:
        """Leave, but stop nothing."""
        if self._over:
            self.dismiss(None)
