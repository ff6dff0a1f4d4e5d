"""`mailkeep export`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sidecar.commands import options
from sidecar.commands.options import LegName
from sidecar.commands.shortfall import PARTLY, Shortfall
from sidecar.export import Exported, Format, export
from sidecar.progress import Progress
from sidecar.readable import escaped
from sidecar.select import Selection, select
from sidecar.units import format_size
from store.errors import StoreError
from store.ids import DeliveryId
from store.records import Delivery


def command(
    ids: options.IdsArgument = None,
    *,
    format_: Annotated[Format, typer.Option("--format", help="What to write.")],
    output: Annotated[
        Path, typer.Option("--output", metavar="PATH", help="The folder, or for mbox a new file.")
    ],
    crlf: Annotated[bool, typer.Option("--crlf", help="Keep CRLF in a Maildir.")] = False,
    to: options.ToOption = None,
    sender: options.FromOption = None,
    since: options.SinceOption = None,
    until: options.UntilOption = None,
    queue_id: options.QueueIdOption = None,
    message_id: options.MessageIdOption = None,
    subject: options.SubjectOption = None,
    leg: options.LegOption = None,
    status: options.StatusOption = None,
    as_of: options.AsOfOption = None,
    limit: options.LimitOption = 0,
    config: options.ConfigOption = None,
    store: options.ArchiveOption = None,
    identity: options.IdentityOption = None,
) -> None:
    """Write messages, all or those selected, as .eml files, an mbox or a Maildir.

    An .eml file has the exact bytes that were captured. A Maildir and an mbox want lines
    ended by LF, so CRLF becomes LF there (--crlf keeps it in a Maildir); the mbox is mboxrd:
    lines that begin with any number of > and "From " get one > more. Existing files are
    never overwritten. In a Maildir imported mail keeps its flags (then it is in cur/), and all is in one
    folder. The oldest comes first; --limit N takes the newest N. Filters take what
    went to mailboxes; --leg milter takes mail as it was submitted.

    \b
    Example: mailkeep export --to anna@example.org --since 7d --format maildir --output anna
    Exit codes: 0 all written; 1 some failed or are missing, as told; 2 wrong usage or
    configuration; 17 no such message, or it was erased or has expired;
    other codes above 10: the store cannot be read, as the message says.
    """
    if crlf and format_ is not Format.MAILDIR:
        raise typer.BadParameter("--crlf is for --format maildir only")
    selection = Selection(
        ids=tuple(ids or ()), to=to, sender=sender, since=since, until=until, queue_id=queue_id,
        message_id=message_id, subject=subject, status=status, as_of=as_of, limit=limit,
        leg=leg or (None if ids else LegName.LMTP),
    )  # fmt: skip
    unreadable = 0

    def tell(delivery: DeliveryId, error: Exception) -> None:
        progress.clear()
        print(f"mailkeep: delivery {delivery.hex()}: {escaped(str(error))}", file=sys.stderr)

    def unread(delivery: DeliveryId, error: StoreError) -> None:
        nonlocal unreadable
        unreadable += 1
        tell(delivery, error)

    def failed(delivery: Delivery, error: Exception) -> None:
        tell(delivery.id, error)

    def show(exported: Exported) -> None:
        progress.show(f"{exported.messages} messages, {format_size(exported.message_bytes)}")

    with options.open_archive(config, store, identity) as opened, Progress() as progress:
        shortfall = Shortfall(opened, by_id=bool(ids))
        found = select(opened, selection, newest_first=False, damaged=unread)
        exported = export(opened, found, format_, output, crlf=crlf, failed=failed, progress=show)
    failures = exported.failed + unreadable
    told = f"{exported.messages} messages, {format_size(exported.message_bytes)}, written to {output}"
    print(told + (f"; {failures} failed" if failures else ""), file=sys.stderr)
    if failures:
        raise typer.Exit(PARTLY)
    shortfall.exit()
