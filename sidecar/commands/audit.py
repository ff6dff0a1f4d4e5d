"""`mailkeep audit`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sidecar.commands import options, putting_back

if TYPE_CHECKING:
    from sidecar.audit import Account, Difference
    from sidecar.live.mailbox import LiveMailbox
    from sidecar.sections import ImapConfig
    from store.store import Store

HOLES = 5


def command(
    users: Annotated[
        list[str] | None,
        typer.Argument(metavar="USER", help="Addresses or logins; default: all that mail was captured for."),
    ] = None,
    *,
    maildir: Annotated[
        Path | None,
        typer.Option("--maildir", metavar="PATH", help="The one user's Maildir, instead of IMAP."),
    ] = None,
    since: options.SinceOption = None,
    until: options.UntilOption = None,
    connections: Annotated[
        int, typer.Option("--connections", metavar="N", min=1, max=64, help="Mailboxes looked into at once.")
    ] = 1,
    details: Annotated[
        bool,
        typer.Option(
            "--details", help="List every difference, and what was taken in; not only what should be there."
        ),
    ] = False,
    import_missing: Annotated[
        bool,
        typer.Option("--import-missing", help="Take in what the store lacks, all but drafts."),
    ] = False,
    json: options.JsonOption = False,
    config: options.ConfigOption = None,
    store: options.ArchiveOption = None,
    identity: options.IdentityOption = None,
) -> None:
    """Compare mailboxes as they are now with the store, in both directions.

    What was delivered and is in no folder is counted: people delete mail. What is in a mailbox and not in the
    store is explained (a draft, sent mail, older than mailkeep, erased, expired) or else is a hole: mail that
    should have been captured. Mail is compared by its bytes. Nothing in a mailbox is changed, nor is the
    store unless --import-missing is given, which keeps folder, flags and date.

    \b
    Example: mailkeep audit --since 7d --connections 4
    Example: mailkeep audit anna@example.org --details
    Exit codes: 0 no holes, or all were taken in; 5 there are holes; 40 a mailbox cannot be asked, 41 a login
    is refused (the others were audited); 2 wrong usage or configuration; 130 interrupted;
    other codes above 10: the store, as the message says.
    """
    from sidecar.audit import Auditor
    from sidecar.audit_run import AuditRun
    from sidecar.bar import Bar
    from sidecar.intake import Intake
    from sidecar.units import parse_time
    from store.ids import FOREVER_US, now_us
    from store.store import Store

    if maildir is not None and len(users or ()) != 1:
        raise typer.BadParameter("name the one user whose Maildir it is", param_hint="--maildir")
    imap, open_mailbox = _mailboxes(config, maildir)
    needs = options.Need.WHOLE if import_missing else options.Need.TO_READ
    with options.open_archive(config, store, identity, needs=needs) as opened, ExitStack() as stack:
        auditor = Auditor(
            opened, imap,
            since_us=parse_time(since, now_us()) if since else 0,
            until_us=parse_time(until, now_us()) if until else FOREVER_US,
        )  # fmt: skip
        try:
            with Bar("deliveries", 0, quiet=json) as bar:
                known = auditor.scan(bar.advance)
            asked = list(dict.fromkeys(map(auditor.login, users))) if users else known
            intake = None
            if import_missing and isinstance(opened, Store):
                intake = stack.enter_context(Intake(_writing(opened)))
            with Bar("messages", 0, quiet=json) as bar:
                run = AuditRun(auditor, open_mailbox, intake=intake, advance=bar.advance)
                accounts = list(_told(run.run(asked, connections), json=json, details=details))
        except KeyboardInterrupt:
            taken = "; what was taken in stays" if import_missing else ""
            print(f"mailkeep: interrupted: the same command begins anew{taken}", file=sys.stderr)
            raise typer.Exit(options.INTERRUPTED) from None
    _print_summary(accounts, json=json)
    raise typer.Exit(_exit_code(accounts))


def _mailboxes(config: Path | None, maildir: Path | None) -> tuple[ImapConfig, Callable[[str], LiveMailbox]]:
    """How logins are written, and what opens a user's mailbox. Raises `ConfigError`."""
    from sidecar.config import load_default
    from sidecar.live.maildir import Maildir
    from sidecar.sections import ImapConfig

    if maildir is not None:
        path = maildir
        return putting_back.imap_of(config) or ImapConfig(), lambda user: Maildir(path, user)
    from sidecar.live.connect import imap_server
    from sidecar.live.imap import ImapMailbox

    imap = load_default(config).imap
    server = imap_server(imap)
    return imap or ImapConfig(), lambda user: ImapMailbox(server, user)


def _writing(store: Store) -> Store:
    store.start_writing_beside("operator")
    return store


def _told(accounts: Iterable[Account], *, json: bool, details: bool) -> Iterator[Account]:
    """Prints each as it comes."""
    from sidecar.audit import Kind
    from sidecar.present import print_json
    from sidecar.readable import escaped

    for account in accounts:
        if account.error is not None and not json:
            print(f"mailkeep: {escaped(account.user)}: {escaped(str(account.error))}", file=sys.stderr)
        for difference in account.differences:
            if json:
                print_json({"user": account.user, **_difference_object(difference)})
            elif details or difference.kind is Kind.HOLE:
                print(_difference_line(account.user, difference))
        for difference in account.taken if details else ():
            if json:
                print_json({"user": account.user, **_difference_object(difference, "taken_in")})
            else:
                print(_difference_line(account.user, difference, taken=True))
        if json:
            print_json(_account_object(account))
        sys.stdout.flush()
        account.forget()
        yield account


def _difference_object(difference: Difference, key: str = "difference") -> dict[str, Any]:
    from sidecar.present import delivery_object
    from sidecar.readable import header_text
    from sidecar.units import iso_time

    told: dict[str, Any] = {key: str(difference.kind), "detail": difference.detail or None}
    if difference.stored is not None:
        return told | {"delivery": delivery_object(difference.stored)}
    live = difference.live
    assert live is not None  # noqa: S101 - a difference has one of the two
    return told | {
        "folder": live.folder, "uid": live.uid, "size": live.size, "received": iso_time(live.received_us),
        "flags": list(live.flags), "message_id": header_text(live.message_id),
        "subject": header_text(difference.subject) or None,
        "from": header_text(difference.header_from) or None,
    }  # fmt: skip


def _difference_line(user: str, difference: Difference, *, taken: bool = False) -> str:
    from sidecar.present import short_id
    from sidecar.readable import escaped, header_text
    from sidecar.units import format_time

    if difference.stored is not None:
        delivery = difference.stored.delivery
        time_us, where = delivery.time_us, f"delivery {short_id(delivery.id)}"
        what = header_text(delivery.subject) or header_text(delivery.message_id)
    else:
        live = difference.live
        assert live is not None  # noqa: S101 - a difference has one of the two
        time_us, where = live.received_us, f"{live.folder} {live.uid}"
        sender = header_text(difference.header_from)
        named = (
            header_text(difference.subject),
            f"from {sender}" if sender else "",
            header_text(live.message_id),
        )
        what = "  ".join(filter(None, named))
    more = ", ".join(filter(None, (str(difference.kind) if taken else "", difference.detail)))
    what += f" ({more})" if more else ""
    cells = (
        f"{escaped(user)}",
        f"{'taken in' if taken else difference.kind:<10}",
        format_time(time_us),
        escaped(where),
        escaped(what),
    )
    return "  ".join(cells).rstrip()


def _account_object(account: Account) -> dict[str, Any]:
    from sidecar.audit import Kind

    return {
        "user": account.user, "delivered": account.delivered, "live": account.live,
        "present": account.present, "by_headers": account.by_headers, "missing": account.missing,
        "holes": account.count(Kind.HOLE), "imported": account.imported,
        "error": str(account.error) if account.error else None,
    }  # fmt: skip


def _print_summary(accounts: list[Account], *, json: bool) -> None:
    from sidecar.audit import Kind
    from sidecar.present import print_json

    counts = {kind: sum(account.count(kind) for account in accounts) for kind in Kind}
    failed = sum(account.error is not None for account in accounts)
    imported = sum(account.imported for account in accounts)
    if json:
        total = {"mailboxes": len(accounts), "failed": failed, "imported": imported}
        print_json(total | {"differences": {str(kind): count for kind, count in counts.items()}})
        return
    _print_accounts(accounts)
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "no differences"
    more = f"; {imported} taken in" if imported else ""
    more += f"; {failed} could not be asked" if failed else ""
    mailboxes = "1 mailbox" if len(accounts) == 1 else f"{len(accounts)} mailboxes"
    print(f"mailkeep: {mailboxes}: {told}{more}", file=sys.stderr)


def _print_accounts(accounts: list[Account]) -> None:
    """A line for each mailbox: what was delivered to it, what of that is missing, and what else is there."""
    from sidecar.audit import MISSING, Kind
    from sidecar.readable import escaped

    rows = [("USER", "LIVE", "DELIVERED", "MISSING", "HOLES", "EXPLAINED")]
    for account in accounts:
        explained = account.count(*(set(Kind) - MISSING - {Kind.HOLE}))
        numbers = (
            account.live, account.delivered, account.missing, account.count(Kind.HOLE), explained
        )  # fmt: skip
        rows.append((escaped(account.user), *map(str, numbers if account.error is None else "-----")))  # type: ignore[arg-type]  # mypy does not count what a star gives
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows if accounts else ():
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells]))


def _exit_code(accounts: list[Account]) -> int:
    """Where some could not be asked, nobody knows whether they have holes: that comes first."""
    from sidecar.audit import Kind
    from sidecar.live.mailbox import LiveError

    codes = {account.error.exit_code for account in accounts if account.error is not None}
    if codes:
        return min(codes, key=lambda code: (code != LiveError.exit_code, code))
    return HOLES if any(account.count(Kind.HOLE) for account in accounts) else 0
