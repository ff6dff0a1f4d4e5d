"""`mailkeep browse`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sidecar.commands import options, putting_back

if TYPE_CHECKING:
    from sidecar.units import Address


class NoBrowserError(Exception):
    """The browser cannot run here."""

    exit_code = 2

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.hint = hint


def command(
    *,
    to: options.ToOption = None,
    sender: options.FromOption = None,
    since: options.SinceOption = None,
    until: options.UntilOption = None,
    as_of: options.AsOfOption = None,
    downstream: Annotated[
        str | None,
        typer.Option("--downstream", metavar="ADDRESS", help="LMTP server; default: [lmtp] downstream."),
    ] = None,
    config: options.ConfigOption = None,
    store: options.ArchiveOption = None,
    identity: options.IdentityOption = None,
) -> None:
    """Look around in the store on a terminal: mailboxes, days, messages; put back or export what is marked.

    Needs the library textual (pip install 'mailkeep[browse]'), and no mouse and no colours. ? shows
    the keys. The filters are where it begins.

    \b
    Example: mailkeep browse --to anna@example.org --since 7d
    Exit codes: 0 left; 2 wrong usage or configuration, no terminal, or textual is missing;
    10 and above: the store cannot be read, as the message says.
    """
    _require_terminal()
    try:
        from sidecar.browse.app import Browser, Setting
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != "textual":
            raise
        raise NoBrowserError(
            "browse needs the Python library textual, which is not installed",
            "Install it where mailkeep is: pip install 'mailkeep[browse]', or pip install 'textual>=8'.",
        ) from exc
    from sidecar.browse.model import Asked
    from sidecar.select import Selection, moment_us
    from sidecar.units import iso_time

    # Of one moment, however long somebody looks around.
    moment = None if as_of is None else iso_time(moment_us(as_of))
    asked = Asked(Selection(to=to, sender=sender, since=since, until=until, as_of=moment))
    address = _downstream(downstream, config)
    with options.open_archive(config, store, identity) as opened:
        setting = Setting(asked=asked, downstream=address)
        browser = Browser(opened, setting)
        browser.run()
    if browser.return_code:
        raise typer.Exit(browser.return_code)


def _require_terminal() -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise NoBrowserError(
            "browse needs a terminal, and there is none",
            "Over ssh: ssh -t HOST mailkeep browse. For scripts there are list, show, export and replay.",
        )
    if os.environ.get("TERM", "") in {"", "dumb", "unknown"}:
        raise NoBrowserError(
            f"browse cannot draw on this terminal (TERM is {os.environ.get('TERM') or 'not set'})",
            "Set TERM to what the terminal is, such as xterm or vt100; or use list, show, export and replay.",
        )


def _downstream(text: str | None, config: Path | None) -> Address | None:
    """Where messages can be put back to, if anything says so."""
    if text is not None:
        return putting_back.parsed_address(text)
    known = options.configured(config)
    return known.lmtp.downstream if known is not None and known.lmtp is not None else None
