"""`mailkeep replay`."""

from __future__ import annotations

import enum
import getpass
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sidecar.commands import options, putting_back
from sidecar.commands.putting_back import NONE, SOME, NoServerError, Via
from sidecar.commands.shortfall import Shortfall

if TYPE_CHECKING:
    from sidecar.replay.targets import Item
    from store.fleet import Archive


_SHOWN = 20


class Doubtful(enum.StrEnum):
    """What becomes of messages of which nobody knows whether an earlier part of the run delivered them."""

    LOOK = "look"
    """over IMAP; without it they are reported"""
    SEND = "send"


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
    everything: Annotated[bool, typer.Option("--all", help="All mail there is, of all mailboxes.")] = False,
    rcpt: Annotated[
        str | None, typer.Option("--rcpt", metavar="ADDRESS", help="Into this mailbox, not the original one.")
    ] = None,
    mapping: Annotated[
        Path | None,
        typer.Option("--mapping", metavar="FILE", help="Into others: lines OLD-ADDRESS NEW-ADDRESS."),
    ] = None,
    missing_only: Annotated[
        bool, typer.Option("--missing-only", help="Only what is in no folder now, as IMAP tells.")
    ] = False,
    via: putting_back.ViaOption = Via.LMTP,
    folder: putting_back.FolderOption = "",
    flags: putting_back.FlagsOption = None,
    downstream: putting_back.DownstreamOption = None,
    mail_from: Annotated[
        str, typer.Option("--mail-from", metavar="ADDRESS", help="Envelope sender; 'original' as captured.")
    ] = "<>",
    connections: putting_back.ConnectionsOption = 4,
    rate: putting_back.RateOption = 0,
    patience: putting_back.PatienceOption = "60s",
    doubtful: Annotated[
        Doubtful, typer.Option("--doubtful", help="What a killed run may have sent: look by IMAP, or send.")
    ] = Doubtful.LOOK,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be sent to whom.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Send everything, though an earlier run of this was interrupted.")
    ] = False,
    report: putting_back.ReportOption = None,
    json: options.JsonOption = False,
    config: options.ConfigOption = None,
    store: options.ArchiveOption = None,
    identity: options.IdentityOption = None,
) -> None:
    """Put messages back, byte for byte: deliver them again through LMTP, or append them over IMAP.

    Give ids, the filters of `list`, or --all. Each goes to whoever got it then (with --to: to those alone;
    with --rcpt or --mapping: there instead), from the null sender, so that nothing is answered to anybody.
    Filters take what went to mailboxes; --leg milter takes mail as it was submitted. The same command after
    an interruption or a refusal sends only what is missing, and nothing twice.

    \b
    Example: mailkeep replay 3fa94c0d81
    Example: mailkeep replay --to anna@example.org --since 'yesterday 14:00' --missing-only --dry-run
    Example: mailkeep replay --all --via imap --connections 8 --report restored.jsonl
    Exit codes: 0 all are back, 3 some are, or some cannot be read, as told, 4 none is (or nothing was
    selected), 6 some are in doubt; 130 interrupted; 2 wrong usage or configuration; 17 no such message, or
    it was erased or has expired; 40, 41 what is not back is so because mailboxes cannot be reached, or the
    login is refused; other codes above 10: the store, as the message says.
    """
    from sidecar.config import ConfigError
    from sidecar.replay.journal import Journal
    from sidecar.replay.perform import Performance, run_name
    from sidecar.replay.report import check_file
    from sidecar.replay.run import resume
    from sidecar.replay.targets import MAILBOX_LEGS, Whereto, targets
    from sidecar.select import Selection, moment_us, select
    from store.filters import address_test

    selection = Selection(
        ids=tuple(ids or ()), to=to, sender=sender, since=since, until=until, queue_id=queue_id,
        message_id=message_id, subject=subject, status=status, as_of=as_of, limit=limit, leg=leg,
    )  # fmt: skip
    if selection == Selection(leg=leg, as_of=as_of, limit=limit) and not everything and mapping is None:
        raise typer.BadParameter("say what to put back: ids, filters such as --to and --since, or --all")
    if rcpt is not None and mapping is not None:
        raise typer.BadParameter("--rcpt and --mapping each say whereto: give one of them")
    recipient = None if rcpt is None else _address(rcpt, "--rcpt")
    try:
        how = putting_back.request(
            via, config=config, downstream=downstream, folder=folder, flags=flags, connections=connections,
            rate=rate, patience=patience, as_of_us=moment_us(as_of),
            sender=None if mail_from == "original" else _address(mail_from, "--mail-from"),
            send_doubtful=doubtful is Doubtful.SEND,
        )  # fmt: skip
    except (ConfigError, NoServerError):
        if missing_only or not dry_run:
            raise
        how = None  # to tell what is meant no server is needed, only to know what an earlier run did
    whereto = Whereto(
        recipient=recipient, wanted=None if to is None else address_test(to), mapping=_mapping(mapping),
        legs=None if ids or leg else MAILBOX_LEGS,
    )  # fmt: skip
    unused = set(whereto.mapping or ())
    if missing_only:
        putting_back.imap_needed(config, "--missing-only")
    if report is not None:
        check_file(report)
    with options.open_archive(config, store, identity) as opened:
        if dry_run:
            _print_interval(since, until, as_of)
        if leg is None:
            _print_submitted(opened, selection.ids)
        shortfall = Shortfall(opened, by_id=bool(ids))
        found = select(opened, selection, newest_first=False, legs=whereto.legs, damaged=shortfall.damaged)
        todo = targets(found, whereto, unused.discard)
        if how is None:
            raise typer.Exit(_print_plan(todo, unused, json=json) or (SOME if shortfall else 0))
        name = run_name(
            selection.digest(), whereto.recipient or b"", repr(whereto.mapping), how.road_name, folder
        )
        journal = Journal(opened, name, road=how.road_name, owner=getpass.getuser(), anew=again)
        performance = Performance(opened, how, journal)
        source: Iterable[Item] = resume(opened, journal, todo)
        if missing_only:
            source = performance.presence().sift(source)
        if dry_run:
            raise typer.Exit(_print_plan(source, unused, json=json) or (SOME if shortfall else 0))
        opened.start_writing_beside("operator")
        code = putting_back.perform(
            performance, journal, iter(source), report, json=json, total=len(ids or ()), what="replay"
        )
        if code != options.INTERRUPTED:
            _print_unused(unused)
    raise typer.Exit(code or (SOME if shortfall else 0))


def _mapping(path: Path | None) -> dict[bytes, bytes] | None:
    from sidecar.replay.mapping import read_mapping

    return None if path is None else read_mapping(path)


def _print_interval(since: str | None, until: str | None, as_of: str | None) -> None:
    """How the times were understood."""
    from sidecar.units import iso_time, parse_time
    from store.ids import now_us

    for word, text in (("since", since), ("until", until), ("as of", as_of)):
        if text is not None:
            print(f"mailkeep: {word} {iso_time(parse_time(text, now_us()))}", file=sys.stderr)


def _print_submitted(store: Archive, ids: tuple[str, ...]) -> None:
    """Ids that are mail as it was submitted: what went to a mailbox is another delivery, and may differ."""
    from contextlib import suppress

    from sidecar.present import short_id
    from sidecar.select import legs_of
    from store.errors import StoreError
    from store.records import Leg

    for prefix in ids:
        with suppress(StoreError):  # the selection itself tells of it
            stored = store.delivery(store.resolve(prefix))
            if stored.delivery.leg != Leg.MILTER:
                continue
            delivered = ", ".join(short_id(one.delivery.id) for one in legs_of(store, stored).delivered)
            told = f"as delivered: {delivered}" if delivered else "no delivery of it is known"
            print(
                f"mailkeep: {short_id(stored.delivery.id)} is the mail as it was submitted; {told}",
                file=sys.stderr,
            )


def _address(text: str, option: str) -> bytes:
    from sidecar.units import bare_address

    bare = bare_address(text)
    if bare is None or (option == "--rcpt" and not bare):
        raise typer.BadParameter(f"{option} {text!r} is no address")
    return bare


def _print_unused(unused: set[bytes]) -> None:
    """Lines of --mapping that nothing was found for: most often an address is misspelt."""
    from sidecar.readable import escaped, text

    for old in sorted(unused)[:_SHOWN]:
        print(f"mailkeep: --mapping: no mail selected is for {escaped(text(old))}", file=sys.stderr)
    if len(unused) > _SHOWN:
        print(f"mailkeep: --mapping: nor for {len(unused) - _SHOWN} others", file=sys.stderr)


def _print_plan(todo: Iterable[Item], unused: set[bytes], *, json: bool) -> int:
    """What would be sent; the exit code."""
    from sidecar.present import print_json
    from sidecar.replay.report import print_target, result_line, result_object
    from sidecar.replay.targets import Outcome, Result

    count = others = back = 0
    for item in todo:
        if isinstance(item, Result) and item.outcome is Outcome.EARLIER:
            back += 1
            if json:
                print_json(result_object(item))
        elif isinstance(item, Result):
            others += 1
            if json:
                print_json(result_object(item))
            else:
                print(result_line(item))
        else:
            count += 1
            print_target(item, json=json)
    told = f"; {others} would not" if others else ""
    told += f"; {back} are back already, by this run that was begun before" if back else ""
    any_ = count or others or back
    print(f"mailkeep: {count} would be sent{told}" if any_ else "mailkeep: nothing matches", file=sys.stderr)
    _print_unused(unused)
    return 0 if any_ else NONE
