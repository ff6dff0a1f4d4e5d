"""`mailkeep import`."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sidecar.commands import options
from sidecar.sources.format import Format

if TYPE_CHECKING:
    from sidecar.importing import Summary, Told
    from sidecar.sources.source import Skipped, Source, Wanted
    from store.store import Store

_SOME, _NONE = 3, 4
_NAMED = 5
"""of the entries that `--per-user` does not use so many are named"""
_LOOKED_AT = 200
"""so many deliveries say what recipients look like"""


def command(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="A Maildir, an mbox, a folder of .eml files, or imap[s]://USER@HOST.",
            show_default=False,
        ),
    ] = None,
    *,
    rcpt: Annotated[
        str | None, typer.Option("--rcpt", metavar="ADDRESS", help="Whose mail it is.", show_default=False)
    ] = None,
    per_user: Annotated[
        bool, typer.Option("--per-user", help="SOURCE has a directory for each user, named by the address.")
    ] = False,
    imap: Annotated[
        str | None,
        typer.Option("--imap", metavar="USER", help="That user's account at the server of [imap]."),
    ] = None,
    format_: Annotated[Format, typer.Option("--format", help="What SOURCE is.")] = Format.AUTO,
    folder: Annotated[
        str, typer.Option("--folder", metavar="NAME", help="Put before the names of folders.")
    ] = "",
    since: options.SinceOption = None,
    until: options.UntilOption = None,
    connections: Annotated[
        int, typer.Option("--connections", metavar="N", min=1, max=32, help="That fetch by IMAP at once.")
    ] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be taken.")] = False,
    json: options.JsonOption = False,
    config: options.ConfigOption = None,
    store: options.StoreOption = None,
    identity: options.IdentityOption = None,
) -> None:
    """Take in mail that was never captured: from a Maildir, an mbox, .eml files or an IMAP account.

    What is in the store already, imported or captured for the same recipient, is not taken again, so the same
    command may be run any number of times, and goes on after an interruption. What was erased stays so.
    --since and --until go by when a message was received.

    \b
    Example: mailkeep import /var/vmail/anna/Maildir --rcpt anna@example.org
    Example: mailkeep import imaps://anna@imap.example.com --rcpt anna@example.org
    Exit codes: 0 all is in the store (or was erased), 3 some was skipped, as told, 4 there was no mail;
    2 wrong usage or configuration, or not a source; 40 the IMAP server fails, 41 it refuses the login;
    130 interrupted; other codes above 10: the store, as the message says.
    """
    from sidecar.bar import Bar
    from sidecar.importing import Import
    from sidecar.intake import Intake

    if (source is None) == (imap is None):
        raise typer.BadParameter("give a SOURCE, or --imap USER")
    if (rcpt is None) != per_user:
        raise typer.BadParameter("say whose mail it is: --rcpt ADDRESS, or --per-user")
    wanted = _wanted(rcpt, folder, since, until)
    with options.open_store(config, store, identity, needs=options.Need.WHOLE) as opened:
        _tell_unknown(opened, wanted.recipient)
        if imap is not None or (source and _is_url(source, format_)):
            if per_user:
                raise typer.BadParameter("--per-user is for directories")
            sources: list[tuple[Source, Wanted] | Skipped] = [
                (_account(opened, source, imap, config, wanted, connections), wanted)
            ]
        else:
            sources = list(_at(Path(source or ""), format_, wanted, per_user=per_user))
        if not dry_run:
            opened.start_writing_beside("operator")
        total = sum(one[0].total for one in sources if isinstance(one, tuple))
        with Bar("import", total, quiet=json) as bar, _interruptible() as interrupted:
            run = Import(
                Intake(opened, dry_run=dry_run), lambda told: _print(told, json=json), bar.advance,
                stop=interrupted.is_set,
            )  # fmt: skip
            try:
                run.run(sources)
            except BaseException:
                _print_summary(run.summary, json=json, dry_run=dry_run)
                raise
    summary = run.summary
    _print_summary(summary, json=json, dry_run=dry_run)
    if interrupted.is_set():
        print("mailkeep: interrupted; the same command goes on from there", file=sys.stderr)
        raise typer.Exit(options.INTERRUPTED)
    raise typer.Exit(_NONE if not summary.messages else _SOME if summary.skipped else 0)


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C is taken note of, so that what was begun is ended in order; a second one ends it at once."""
    interrupted = threading.Event()

    def note(_signal: int, _frame: object) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _wanted(rcpt: str | None, folder: str, since: str | None, until: str | None) -> Wanted:
    from sidecar.sources.source import Wanted
    from sidecar.units import parse_time
    from store.ids import FOREVER_US, now_us

    now = now_us()
    return Wanted(
        recipient=b"" if rcpt is None else _address(rcpt), prefix=folder.strip("/"),
        since_us=0 if since is None else parse_time(since, now),
        until_us=FOREVER_US if until is None else parse_time(until, now),
    )  # fmt: skip


def _address(text: str) -> bytes:
    from sidecar.units import bare_address

    bare = bare_address(text)
    if not bare:
        raise typer.BadParameter(f"--rcpt {text!r} is no address")
    return bare


def _is_url(source: str, format_: Format) -> bool:
    from sidecar.sources.imap import is_url

    return format_ in (Format.AUTO, Format.IMAP) and is_url(source)


def _account(
    opened: Store, url: str | None, user: str | None, config: Path | None, wanted: Wanted, connections: int
) -> Source:
    from sidecar.config import load_default
    from sidecar.live.connect import imap_server
    from sidecar.live.imap import ImapServer
    from sidecar.sources.imap import ImapSource, account, password_for, taken_before

    if url is not None:
        address, user, tls = account(url)
        server = ImapServer(address=address, tls=tls, passwords={user: password_for(user)})
    else:
        server = imap_server(load_default(config).imap)
    done = taken_before(opened, wanted.recipient)
    return ImapSource(server, user or "", connections=connections, done=done)


def _at(
    path: Path, format_: Format, wanted: Wanted, *, per_user: bool
) -> Iterator[tuple[Source, Wanted] | Skipped]:
    """The source at a path; or one for each directory in it, with whoever it is named after."""
    from dataclasses import replace

    from sidecar.sources.detect import source_at
    from sidecar.sources.source import Skipped, SourceError

    if not per_user:
        yield source_at(path, format_), wanted
        return
    try:
        entries = sorted(path.iterdir())
    except OSError as exc:
        raise SourceError(f"{path}: cannot be read: {exc.strerror}") from exc
    unused = [entry for entry in entries if not entry.is_dir() or entry.name.startswith(".")]
    _tell_unused(unused)
    for entry in entries:
        if entry in unused:
            continue
        try:
            user = _address(entry.name)
            yield source_at(entry, format_), replace(wanted, recipient=user)
        except (SourceError, typer.BadParameter) as exc:
            yield Skipped(str(entry), str(exc).removeprefix(f"{entry}: "))


def _tell_unused(entries: list[Path]) -> None:
    from sidecar.readable import escaped

    if entries:
        named = ", ".join(escaped(entry.name) for entry in entries[:_NAMED])
        more = f" and {len(entries) - _NAMED} more" if len(entries) > _NAMED else ""
        print(f"mailkeep: not used, no user's directory: {named}{more}", file=sys.stderr)


def _tell_unknown(store: Store, recipient: bytes) -> None:
    """A bare name in a store of addresses is most often half an address."""
    from itertools import islice

    from sidecar.readable import escaped, text
    from store.deliveries import Query
    from store.rows import Term

    if not recipient or b"@" in recipient:
        return
    if next(store.deliveries(Query(terms=((Term.RECIPIENT, recipient.lower()),))), None) is not None:
        return
    found = islice(store.deliveries(Query()), _LOOKED_AT)
    known = [
        place.address for one in found for place in one.delivery.envelope.recipients if b"@" in place.address
    ]
    if known:
        near = next((one for one in known if one.lower().startswith(recipient.lower() + b"@")), known[0])
        print(
            escaped(
                f"mailkeep: the store knows no recipient {text(recipient)}, but addresses such as "
                f"{text(near)}: --rcpt takes the whole address"
            ),
            file=sys.stderr,
        )


def _print(told: Told, *, json: bool) -> None:
    from sidecar.intake import How
    from sidecar.present import print_json
    from sidecar.readable import escaped, text

    if json:
        print_json(
            {
                "result": "skipped" if told.how is How.FAILED else str(told.how),
                "origin": told.origin.encode("utf-8", "replace").decode(),
                "recipient": text(told.recipient),
                "folder": told.folder.encode("utf-8", "replace").decode(),
                "id": told.delivery.hex() if told.delivery else None,
                "size": told.size,
                "reason": told.reason or None,
            }
        )
    elif told.how is How.FAILED:
        print(escaped(f"skipped  {told.origin}: {told.reason}"))
    elif told.how is How.ERASED:
        print(escaped(f"erased   {told.origin}: was erased for good, and is left out"))


def _print_summary(summary: Summary, *, json: bool, dry_run: bool) -> None:
    from sidecar.present import print_json
    from sidecar.units import format_size

    if json:
        print_json(summary.told())
        return
    taken = "would be taken" if dry_run else "taken"
    print(
        f"mailkeep: {summary.taken} {taken} ({format_size(summary.taken_bytes)}), {summary.there} there "
        f"already, {summary.erased} erased before, {summary.skipped} skipped",
        file=sys.stderr,
    )
