"""`mailkeep hold`, with `add`, `list` and `release`."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated, Any

import typer

from sidecar.commands import options
from sidecar.present import print_json
from sidecar.readable import escaped
from sidecar.select import Selection, exact_filter, select
from sidecar.units import format_time, iso_time
from store.filters import Filter
from store.records import Hold
from store.retention import place_hold, release_hold
from store.store import Store

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The hold's name, such as a case number.", show_default=False)
]
ReasonOption = Annotated[
    str,
    typer.Option("--reason", metavar="TEXT", callback=options.not_blank, help="Why, for the record."),
]
AllOption = Annotated[bool, typer.Option("--all", help="Those released, too.")]
IdOption = Annotated[
    list[str] | None,
    typer.Option("--id", metavar="ID", help="These deliveries alone; may be given several times."),
]


def command(
    context: typer.Context,
    *,
    json: options.JsonOption = False,
    config: options.ConfigOption = None,
    store: options.StoreOption = None,
    identity: options.IdentityOption = None,
) -> None:
    """Holds: what is under one is neither expired nor erased. Alone it lists the holds in force.

    \b
    Example: mailkeep hold add case-2026-17 --to anna@example.org --reason 'lawsuit 17/2026'
    Exit codes: 0 done; 1 the name is taken, or is none; 2 wrong usage or configuration;
    17 no such hold or message; other codes above 10: the store, as the message says.
    """
    context.obj = (config, store, identity)
    if context.invoked_subcommand is None:
        _list(config, store, identity, released_too=False, json=json)


def add(
    context: typer.Context,
    name: NameArgument,
    *,
    reason: ReasonOption,
    owner: options.OwnerOption = None,
    id_: IdOption = None,
    to: options.ToOption = None,
    sender: options.FromOption = None,
    since: options.SinceOption = None,
    until: options.UntilOption = None,
    queue_id: options.QueueIdOption = None,
    message_id: options.MessageIdOption = None,
    subject: options.SubjectOption = None,
    leg: options.LegOption = None,
    config: options.ConfigOption = None,
    store: options.StoreOption = None,
    identity: options.IdentityOption = None,
) -> None:
    """Hold what the filters match, now and in future, until it is released.

    The filters are those of `list`; times are understood now and kept as they are. All mail: --to '*'.

    \b
    Example: mailkeep hold add case-2026-17 --to anna@example.org --reason 'lawsuit 17/2026'
    Exit codes: 0 placed; 1 the name is taken, or is none; 2 wrong usage or configuration;
    17 no such message; other codes above 10: the store, as the message says.
    """
    selection = Selection(
        ids=tuple(id_ or ()), to=to, sender=sender, since=since, until=until, queue_id=queue_id,
        message_id=message_id, subject=subject, leg=leg,
    )  # fmt: skip
    if selection == Selection():
        raise typer.BadParameter("say what to hold: filters such as --to and --since; all mail: --to '*'")
    with _open(context, config, store, identity) as opened:
        matches = exact_filter(opened, selection)
        opened.start_writing_beside("operator")
        hold = place_hold(opened, name, matches, owner=owner or getpass.getuser(), reason=reason)
        found = sum(1 for _ in select(opened, selection, damaged=lambda _id, _error: None))
    print(escaped(f"hold {hold.name} is in force: {_conditions(hold)}"))
    print(
        f"{found} deliveries that are here match it now" if found else "nothing that is here matches it yet"
    )


def list_(
    context: typer.Context,
    *,
    released_too: AllOption = False,
    json: options.JsonOption = False,
    config: options.ConfigOption = None,
    store: options.StoreOption = None,
    identity: options.IdentityOption = None,
) -> None:
    """List the holds in force: what they hold, who placed them, when and why.

    \b
    Example: mailkeep hold list --all
    Exit codes: 0 listed, maybe none; 2 wrong usage or configuration;
    10 and above: the store cannot be read, as the message says.
    """
    earlier_config, earlier_store, earlier_identity = context.obj
    _list(
        config or earlier_config, store or earlier_store, identity or earlier_identity,
        released_too=released_too, json=json,
    )  # fmt: skip


def release(
    context: typer.Context,
    name: NameArgument,
    *,
    reason: ReasonOption,
    owner: options.OwnerOption = None,
    config: options.ConfigOption = None,
    store: options.StoreOption = None,
    identity: options.IdentityOption = None,
) -> None:
    """End a hold: what it held goes by the rules again.

    \b
    Example: mailkeep hold release case-2026-17 --reason 'settled'
    Exit codes: 0 released; 2 wrong usage or configuration; 17 no such hold is in force;
    other codes above 10: the store, as the message says.
    """
    with _open(context, config, store, identity) as opened:
        opened.start_writing_beside("operator")
        released = release_hold(opened, name, owner=owner or getpass.getuser(), reason=reason)
    print(f"hold {released.name} is released")


SUBCOMMANDS = {"add": add, "list": list_, "release": release}


def _open(context: typer.Context, config: Path | None, store: Path | None, identity: Path | None) -> Store:
    """Options may stand before or after the sub-command."""
    earlier_config, earlier_store, earlier_identity = context.obj
    return options.open_store(
        config or earlier_config, store or earlier_store, identity or earlier_identity,
        needs=options.Need.WHOLE,
    )  # fmt: skip


def _list(
    config: Path | None, store: Path | None, identity: Path | None, *, released_too: bool, json: bool
) -> None:
    with options.open_store(config, store, identity) as opened:
        opened.catch_up()
        with opened.index.read() as snapshot:
            holds = [hold for hold in snapshot.holds().values() if released_too or not hold.released]
    for hold in holds:
        if json:
            print_json(_object(hold))
        else:
            did = "released" if hold.released else "placed"
            print(escaped(f"{hold.name}  {did} {format_time(hold.time_us)} by {hold.owner}: {hold.reason}"))
            print(escaped(f"  {_conditions(hold)}"))
    if not holds and not json:
        print("no holds")


def _object(hold: Hold) -> dict[str, Any]:
    return {
        "name": hold.name,
        "in_force": not hold.released,
        "time": iso_time(hold.time_us),
        "owner": hold.owner,
        "reason": hold.reason,
        "matches": hold.matches,
    }


def _conditions(hold: Hold) -> str:
    """What is held, in the words of the options."""
    try:
        asked = Filter.of(hold.matches)
    except TypeError:
        return f"all mail, since this version does not know all of its conditions: {hold.matches}"
    words = {
        "--id": ", ".join(asked.ids) or None,
        "--to": asked.to,
        "--from": asked.sender,
        "--since": None if asked.since_us is None else iso_time(asked.since_us),
        "--until": None if asked.until_us is None else iso_time(asked.until_us),
        "--queue-id": asked.queue_id,
        "--message-id": asked.message_id,
        "--subject": asked.subject,
        "--leg": asked.leg,
    }
    return " ".join(f"{option} {value}" for option, value in words.items() if value) or "all mail"
