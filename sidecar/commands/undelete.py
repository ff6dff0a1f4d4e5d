"""`mailkeep undelete`."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from sidecar.commands import options, putting_back
from sidecar.commands.putting_back import Via
from sidecar.commands.shortfall import Shortfall
from store.errors import StoreError

if TYPE_CHECKING:
    from sidecar.replay.journal import Journal
    from sidecar.replay.targets import Item, Result, Target, Whereto
    from sidecar.sections import ImapConfig
    from store.fleet import Archive
    from store.ids import DeliveryId


def command(
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose mailbox: an address.")],
    *,
    since: options.SinceOption = None,
    until: options.UntilOption = None,
    imported: Annotated[
        bool, typer.Option("--imported", help="Also what was imported, from whatever folder.")
    ] = False,
    via: putting_back.ViaOption = Via.LMTP,
    folder: putting_back.FolderOption = "",
    flags: putting_back.FlagsOption = None,
    downstream: putting_back.DownstreamOption = None,
    connections: putting_back.ConnectionsOption = 4,
    rate: putting_back.RateOption = 0,
    patience: putting_back.PatienceOption = "60s",
    yes: options.YesOption = False,
    report: putting_back.ReportOption = None,
    json: options.JsonOption = False,
    config: options.ConfigOption = None,
    store: options.ArchiveOption = None,
    identity: options.IdentityOption = None,
) -> None:
    """Put back what was delivered to somebody and is in none of the folders now.

    Shows what that is, and asks. Without a terminal and without --yes it does no more than show. Looks into
    the mailbox by IMAP, so [imap] must be configured; mail to addresses with a detail (anna+lists@) counts.
    What was imported (it may have been in any folder) counts with --imported. Interrupted, the same command
    goes on, and puts nothing back twice.

    \b
    Example: mailkeep undelete anna@example.org --since monday
    Example: mailkeep undelete anna@example.org --since 'yesterday 14:00' --until 'yesterday 15:00' --yes
    Exit codes: 0 done (or nothing is missing, or it was only shown), 1 not agreed to, 3 some are back,
    or some cannot be read, as told, 4 none is, or nothing was ever captured for USER, 6 some are in doubt;
    130 interrupted; 2 wrong usage or configuration; 40, 41 the mailbox cannot be looked into; other codes
    above 10: the store, as the message says.
    """
    from sidecar.live.users import imap_user
    from sidecar.replay.journal import Journal
    from sidecar.replay.perform import Performance, run_name
    from sidecar.replay.report import check_file
    from sidecar.replay.run import resume
    from sidecar.replay.targets import MAILBOX_LEGS, Whereto, targets
    from sidecar.select import Selection, select
    from store.records import Leg

    if since is None:
        raise typer.BadParameter("say from when on: --since 'yesterday 14:00', --since 7d")
    imap = putting_back.imap_needed(config, "undelete")
    how = putting_back.request(
        via, config=config, downstream=downstream, folder=folder, flags=flags, connections=connections,
        rate=rate, patience=patience,
    )  # fmt: skip
    login = imap_user(user.encode(), imap)
    # The index does not know whose an address with a detail is: then the whole interval is looked through.
    selection = Selection(to=None if imap.recipient_delimiter else user, since=since, until=until)
    legs = MAILBOX_LEGS if imported else frozenset({Leg.LMTP})
    whereto = Whereto(wanted=lambda address: imap_user(address, imap) == login, legs=legs)
    if report is not None:
        check_file(report)
    with options.open_archive(config, store, identity) as opened:
        asked = (b"imported",) if imported else ()
        name = run_name(b"undelete", user.lower(), selection.digest(), how.road_name, how.folder, *asked)
        journal = Journal(opened, name, road=how.road_name, owner=getpass.getuser())
        performance = Performance(opened, how, journal)
        shortfall = Shortfall(opened)
        found = select(opened, selection, newest_first=False, legs=legs, damaged=shortfall.damaged)
        plan = _Plan(performance.presence(strict=True).sift(resume(opened, journal, targets(found, whereto))))
        if plan.is_empty:
            raise typer.Exit(_nothing(opened, user, whereto, imap) or (putting_back.SOME if shortfall else 0))
        plan.show(opened, json=json)
        if not plan.missing or not _is_agreed(yes=yes, json=json):
            raise typer.Exit(putting_back.SOME if plan.failed or shortfall else 0)
        opened.start_writing_beside("operator")
        code = putting_back.perform(
            performance, journal, plan.again(opened, journal), report, json=json, total=len(plan.missing),
            what="undelete",
        )  # fmt: skip
    raise typer.Exit(code or (putting_back.SOME if shortfall else 0))


class _Plan:
    """What is missing, in as little memory as will do: there may be a million of them."""

    def __init__(self, items: Iterable[Item]) -> None:
        from sidecar.replay.targets import Outcome, Result

        self.missing: list[tuple[DeliveryId, bytes]] = []
        self.failed: list[Result] = []
        self._bytes = self._there = 0
        self._settled: list[Result] = []
        for item in items:
            if not isinstance(item, Result):
                self.missing.append((item.delivery.id, item.recipient))
                self._bytes += item.delivery.size
            elif item.is_back:
                self._there += 1
                if item.target.begun_us or item.outcome is Outcome.EARLIER:  # this run's own
                    self._settled.append(item)
            else:
                self.failed.append(item)

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing to be looked for."""
        return not self.missing and not self.failed and not self._there

    def show(self, store: Archive, *, json: bool) -> None:
        """Each that is missing, and how many."""
        from sidecar.present import print_json
        from sidecar.replay.report import print_target, result_line, result_object
        from sidecar.units import format_size

        for target in self._targets(store, []):
            print_target(target, json=json)
        for result in self.failed:
            if json:
                print_json(result_object(result))
            else:
                print(result_line(result))
        print(
            f"mailkeep: {len(self.missing)} are in no folder ({format_size(self._bytes)}), "
            f"{self._there} are there",
            file=sys.stderr,
        )

    def again(self, store: Archive, journal: Journal) -> Iterator[Item]:
        """What is to be done. While somebody read the plan, another process may have done some of it."""
        from sidecar.replay.run import resume

        yield from self._settled
        yield from self.failed
        lost: list[Result] = []
        yield from resume(store, journal, self._targets(store, lost))
        yield from lost

    def _targets(self, store: Archive, lost: list[Result]) -> Iterator[Target]:
        """What was removed meanwhile, or is damaged, is `lost`."""
        from sidecar.replay.targets import Outcome, Result, Target, unread

        for delivery, recipient in self.missing:
            try:
                yield Target(store.delivery(delivery).delivery, recipient)
            except StoreError as exc:
                lost.append(Result(Target(unread(delivery), recipient), Outcome.REFUSED, why=str(exc)))


def _nothing(store: Archive, user: str, whereto: Whereto, imap: ImapConfig) -> int:
    """Say why nothing was to be looked for, a misspelt address most of all; the exit code."""
    from dataclasses import replace

    from sidecar.readable import escaped
    from sidecar.replay.targets import MAILBOX_LEGS, targets
    from sidecar.select import Selection, select

    def ever(to: str | None) -> Target | None:
        found = select(store, Selection(to=to), legs=MAILBOX_LEGS)
        return next(targets(found, replace(whereto, legs=MAILBOX_LEGS)), None)

    last = ever(user) or (ever(None) if imap.recipient_delimiter else None)
    if last is None:
        print(
            f"mailkeep: nothing was ever captured for {escaped(user)}: look at how the address is written\n"
            "(`mailkeep list` tells to whom mail came)",
            file=sys.stderr,
        )
        return putting_back.NONE
    more = "" if whereto.legs == MAILBOX_LEGS else "; --imported takes what was imported, too"
    print(f"mailkeep: nothing was delivered to {escaped(user)} in this interval{more}", file=sys.stderr)
    return 0


def _is_agreed(*, yes: bool, json: bool) -> bool:
    if yes:
        return True
    if json or not sys.stdin.isatty():
        print("mailkeep: nothing was put back; --yes does it", file=sys.stderr)
        return False
    typer.confirm("Put them back?", abort=True)
    return True
