"""The lower half of the screen: one message, or what is on record of it."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from sidecar.browse.preview import Preview


class Pane(VerticalScroll):
    """Text that may be scrolled."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("k", "scroll_up", "Up", show=False),
        Binding("j", "scroll_down", "Down", show=False),
        Binding("space,ctrl+f", "page_down", "Page down", show=False),
        Binding("ctrl+b", "page_up", "Page up", show=False),
        Binding("g", "scroll_home", "Top", show=False),
        Binding("G", "scroll_end", "Bottom", show=False),
    ]

    def compose(self) -> ComposeResult:
        """Called by textual."""
        yield Static(id="text", markup=False)

    def say(self, said: Text) -> None:
        """Show this from its beginning."""
        self.query_one("#text", Static).update(said)
        self.scroll_home(animate=False)

    def show_preview(self, found: Preview) -> None:
        """A message."""
        said = Text()
        for name, value in found.fields:
            said.append(f"{name + ':':<10}", "bold").append(f" {value}\n")
        if found.attachments:
            said.append(f"{'Attached:':<10}", "bold")
            said.append(" " + f"\n{' ' * 11}".join(found.attachments) + "\n")
        said.append("\n" + "\n".join(found.body) + "\n")
        if found.note:
            said.append(f"\n[{found.note}]\n", "bold")
        self.say(said)
