"""`mailkeep replay`."""

from __future__ import annotations

import asyncio
import getpass
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sidecar.commands import options

if TYPE_CHECKING:
    from sidecar.replay import Result, Target
    from sidecar.units import Address

_SOME, _NONE = 3, 4


def command(
    ids: options.IdsArgument = None,
    *,
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
    rcpt: Annotated[
        str | None, typer.Option("--rcpt", metavar="ADDRESS", help="Into this mailbox, not the original one.")
    ] = None,
    downstream: Annotated[
        str | None,
        typer.Option("--downstream", metavar="ADDRESS", help="LMTP server; default: [lmtp] downstream."),
    ] = None,
    mail_from: Annotated[
        str, typer.Option("--mail-from", metavar="ADDRESS", help="Envelope sender; 'original' as captured.")
    ] = "<>",
    rate: Annotated[
        float, typer.Option("--rate", metavar="N", min=0, help="Messages a second at most; 0 for no limit.")
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be sent to whom.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Send everything, though an earlier run of this was interrupted.")
    ] = False,
    json: options.JsonOption = False,
    config: options.ConfigOption = None,
    store: options.StoreOption = None,
    identity: options.IdentityOption = None,
) -> None:
    """Put messages back: deliver them again through LMTP, byte for byte.

    Give ids, or the filters of `list`. Each goes to whoever got it then (with --to: to those alone; with
    --rcpt: there instead), from the null sender, so that nothing is answered to anybody. Filters take
    what went to mailboxes; --leg milter takes mail as it was submitted. The same command after an
    interruption or a refusal sends only what is missing.

    \b
    Example: mailkeep replay 3fa94c0d81
    Example: mailkeep replay --to anna@example.org --since 'yesterday 14:00' --dry-run
    Exit codes: 0 all are back, 3 some are, 4 none is (or nothing was selected);
    2 wrong usage or configuration; 17 no such message, or it was erased or has expired;
    other codes above 10: the store, as the message says.
    """
    from sidecar.replay import Replayer, ReplayOptions, targets
    from sidecar.select import Selection, moment_us, select
    from store.filters import address_test

    selection = Selection(
        ids=tuple(ids or ()), to=to, sender=sender, since=since, until=until, queue_id=queue_id,
        message_id=message_id, subject=subject, status=status, as_of=as_of, limit=limit,
        leg=leg or (None if ids else "lmtp"),
    )  # fmt: skip
    if selection == Selection(leg=selection.leg, as_of=as_of, limit=limit):
        raise typer.BadParameter("say what to put back: ids, or filters such as --to and --since")
    recipient = None if rcpt is None else _address(rcpt, "--rcpt")
    envelope_sender = None if mail_from == "original" else _address(mail_from, "--mail-from")
    address = _downstream(downstream, config, asked=not dry_run)
    with options.open_store(config, store, identity) as opened:
        if dry_run:
            _print_interval(since, until, as_of)
        found = select(opened, selection, newest_first=False)
        todo = list(targets(found, recipient=recipient, wanted=None if to is None else address_test(to)))
        if address is None or not todo:
            for target in todo:
                _print_planned(target, json=json)
            print(
                f"mailkeep: {len(todo)} would be sent" if todo else "mailkeep: nothing matches",
                file=sys.stderr,
            )
            raise typer.Exit(0 if todo else _NONE)
        how = ReplayOptions(
            downstream=address, sender=envelope_sender, rate=rate, owner=getpass.getuser(),
            as_of_us=moment_us(as_of),
        )  # fmt: skip
        opened.start_writing_beside("operator")
        name = selection.digest() + (recipient or b"") + str(address).encode()
        with _progress(len(todo), watched=sys.stderr.isatty()) as advance:

            def tell(result: Result) -> None:
                advance()
                _print_result(result, json=json)

            summary = asyncio.run(Replayer(opened, how, name, anew=again).run(todo, tell))
    print(f"mailkeep: {summary.restored} of {len(todo)} are back (run {summary.run})", file=sys.stderr)
    raise typer.Exit(0 if summary.restored == len(todo) else _SOME if summary.restored else _NONE)


def _print_interval(since: str | None, until: str | None, as_of: str | None) -> None:
    """How the times were understood."""
    from sidecar.units import iso_time, parse_time
    from store.ids import now_us

    for word, text in (("since", since), ("until", until), ("as of", as_of)):
        if text is not None:
            print(f"mailkeep: {word} {iso_time(parse_time(text, now_us()))}", file=sys.stderr)


def _address(text: str, option: str) -> bytes:
    bare = text.strip().removeprefix("<").removesuffix(">")
    if any(sign in "<>\\ " or not sign.isprintable() for sign in bare) or (option == "--rcpt" and not bare):
        raise typer.BadParameter(f"{option} {text!r} is no address")
    return bare.encode()


def _downstream(text: str | None, config: Path | None, *, asked: bool) -> Address | None:
    """Where to send to; None when nothing is to be sent (`asked` false)."""
    from sidecar.config import ConfigError, load_default
    from sidecar.units import Address

    if not asked:
        return None
    if text is not None:
        try:
            return Address.parse(text)
        except ValueError as exc:
            raise typer.BadParameter(f"--downstream: {exc}") from exc
    try:
        lmtp = load_default(config).lmtp
    except ConfigError as exc:
        exc.hint = "Name the LMTP server by --downstream, or the configuration by --config."
        raise
    if lmtp is None:
        raise typer.BadParameter(
            "the configuration has no [lmtp] downstream: name the server by --downstream"
        )
    return lmtp.downstream


def _print_planned(target: Target, *, json: bool) -> None:
    from sidecar.present import print_json, short_id
    from sidecar.readable import escaped, header_text, text
    from sidecar.units import format_time

    delivery = target.delivery
    if json:
        print_json({"id": delivery.id.hex(), "recipient": text(target.recipient), "size": delivery.size})
    else:
        subject = escaped(header_text(delivery.subject))
        when = format_time(delivery.time_us)
        print(f"{short_id(delivery.id)}  {when}  {escaped(text(target.recipient))}  {subject}")


def _print_result(result: Result, *, json: bool) -> None:
    from sidecar.present import print_json, short_id
    from sidecar.readable import escaped, text

    target = result.target
    if json:
        told = {
            "id": target.delivery.id.hex(),
            "recipient": text(target.recipient),
            "restored": result.restored,
            "already": result.already,
            "reply": text(result.reply) or None,
            "error": result.error or None,
        }
        print_json(told)
        sys.stdout.flush()  # whoever reads along wants to know now
        return
    said = "was put back before" if result.already else text(result.reply) or f"not sent: {result.error}"
    print(f"{short_id(target.delivery.id)}  {escaped(text(target.recipient))}  {escaped(said)}", flush=True)


@contextmanager
def _progress(total: int, *, watched: bool) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal; elsewhere the results themselves are progress enough."""
    if not watched:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("replay"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("replay", total=total)
        yield lambda: progress.advance(task)
