"""`mailkeep erase`."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from sidecar.commands import options
from sidecar.erasure import Plan, plan_erasure
from sidecar.present import print_deliveries, print_json, short_id
from sidecar.readable import escaped
from sidecar.select import Selection
from sidecar.units import format_size, format_time, iso_time
from store.deliveries import StoredDelivery
from store.errors import StoreError
from store.retention import Receipt, erase, refuse_held
from store.store import Store

_DECLINED, _NOTHING = 1, 4


def command(
    ids: options.IdsArgument = None,
    *,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the record.")],
    owner: options.OwnerOption = None,
    to: options.ToOption = None,
    sender: options.FromOption = None,
    since: options.SinceOption = None,
    until: options.UntilOption = None,
    queue_id: options.QueueIdOption = None,
    message_id: options.MessageIdOption = None,
    subject: options.SubjectOption = None,
    leg: options.LegOption = None,
    status: options.StatusOption = None,
    everywhere: Annotated[
        bool, typer.Option("--everywhere", help="Also whatever else there is of the same mail or bytes.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be erased.")] = False,
    yes: options.YesOption = False,
    json: options.JsonOption = False,
    config: options.ConfigOption = None,
    store: options.StoreOption = None,
    identity: options.IdentityOption = None,
) -> None:
    """Erase messages for good, as for a data-protection request, and print a receipt.

    Give ids, or the filters of `list`; without --leg both legs are meant. An id means the mail in both
    its legs and all tries to deliver it to the same people. A delivery is erased whole, for all its
    recipients. What else there is of the same mail or the same bytes stays, keeps the bytes, and is
    told. A tombstone without a word of the message keeps replay, import and restore from bringing it
    back. The bytes go with the next compaction (`mailkeep
    jobs run compact --wait`). Nothing is erased if any of it is under a hold.

    \b
    Example: mailkeep erase --to anna@example.org --reason 'request 88, GDPR 17' --dry-run
    Exit codes: 0 erased; 1 not confirmed; 2 wrong usage or configuration; 4 nothing matched;
    17 no such message, or it was removed before; 20 held, and nothing was erased;
    other codes above 10: the store, as the message says.
    """
    selection = Selection(
        ids=tuple(ids or ()), to=to, sender=sender, since=since, until=until, queue_id=queue_id,
        message_id=message_id, subject=subject, leg=leg, status=status,
    )  # fmt: skip
    if selection == Selection(leg=leg):
        raise typer.BadParameter("say what to erase: ids, or filters such as --to and --since")
    if not (dry_run or yes or sys.stdin.isatty()):
        raise typer.BadParameter("nobody can be asked here: say --yes if you are sure, or --dry-run")
    with options.open_store(config, store, identity, needs=options.Need.WHOLE) as opened:
        opened.catch_up()
        plan = plan_erasure(opened, selection, everywhere=everywhere)
        if not plan.taken:
            print("mailkeep: nothing matches", file=sys.stderr)
            raise typer.Exit(_NOTHING)
        refuse_held(opened, (stored.delivery for stored in plan.taken))
        if dry_run or not yes:
            _print_plan(plan, json=json, asking=not dry_run)
        _print_left(plan.left)
        if dry_run:
            return
        if not yes and not typer.confirm(f"Erase {len(plan.taken)} deliveries for good?", err=True):
            print("mailkeep: nothing was erased", file=sys.stderr)
            raise typer.Exit(_DECLINED)
        opened.start_writing_beside("operator")
        receipt = erase(
            opened, [stored.delivery.id for stored in plan.taken],
            owner=owner or getpass.getuser(), reason=reason,
        )  # fmt: skip
        _forget(opened)
    _print_receipt(receipt, plan, json=json)


def _forget(store: Store) -> None:
    """The words of what was erased leave the search index, too; whatever fails there, it is erased."""
    from sidecar.search.files import SearchError
    from sidecar.search.follow import forget_removed

    store.settle_index()
    try:
        done = forget_removed(store)
    except (SearchError, StoreError, OSError) as exc:
        print(
            f"mailkeep: its words are not yet out of {store.path / 'search'}: {exc}; remove that directory",
            file=sys.stderr,
        )
    else:
        if not done:
            print(
                "mailkeep: the search index is being written: its words go with the next job `search`",
                file=sys.stderr,
            )


def _print_plan(plan: Plan, *, json: bool, asking: bool) -> None:
    if not json:
        print_deliveries(plan.taken)
    elif not asking:
        for stored in plan.taken:
            print_json({"id": stored.delivery.id.hex(), "would_be_erased": True})
        for stored in plan.left:
            print_json({"id": stored.delivery.id.hex(), "would_be_erased": False})
    if not asking:
        print(f"mailkeep: {len(plan.taken)} deliveries would be erased", file=sys.stderr)


def _print_left(left: Sequence[StoredDelivery]) -> None:
    if not left:
        return
    print(
        f"mailkeep: {len(left)} more are of the same mail or the same bytes. They stay, and so do the bytes "
        "(--everywhere erases them too):",
        file=sys.stderr,
    )
    for stored in left:
        delivery = stored.delivery
        to = ", ".join(
            recipient.address.decode("utf-8", "replace") for recipient in delivery.envelope.recipients
        )
        line = f"  {short_id(delivery.id)}  {format_time(delivery.time_us)}  {delivery.leg}  to {to}"
        print(escaped(line), file=sys.stderr)


def _print_receipt(receipt: Receipt, plan: Plan, *, json: bool) -> None:
    """What was done, without a word of what was erased."""
    if json:
        for one in receipt.erased:
            print_json(
                {
                    "id": one.delivery.hex(),
                    "captured": iso_time(one.captured_us),
                    "leg": one.leg,
                    "recipients": one.recipients,
                    "size": one.size,
                    "tombstone": one.tombstone.hex(),
                    "erased": iso_time(receipt.time_us),
                    "owner": receipt.owner,
                    "reason": receipt.reason,
                    "left": [stored.delivery.id.hex() for stored in plan.left],
                }
            )
        return
    print("Receipt of an erasure")
    print(f"Erased      {format_time(receipt.time_us)}   {iso_time(receipt.time_us)}")
    print(escaped(f"By          {receipt.owner}"))
    print(escaped(f"Reason      {receipt.reason}"))
    print(f"Deliveries  {len(receipt.erased)}, {format_size(sum(one.size for one in receipt.erased))}")
    for one in receipt.erased:
        print(
            f"  {one.delivery.hex()}  captured {iso_time(one.captured_us)}  {one.leg}  "
            f"{one.recipients} recipient{'s' * (one.recipients != 1)}  {one.size} bytes  "
            f"tombstone {one.tombstone.hex()}"
        )
    if plan.left:
        print(f"Left        {', '.join(short_id(stored.delivery.id) for stored in plan.left)}: not erased,")
        print("            and what they share with the above stays")
    print(
        "From now on nothing here shows, replays or exports them. The bytes are in the packs until the next"
    )
    print(
        "`mailkeep compact` (while serve runs: `mailkeep jobs run compact`), and in replicas until their next"
    )
    print(
        "synchronisation after it. To verify: `mailkeep show ID` says that it was erased (exit code 17), and"
    )
    print("after compaction `mailkeep check --read-data` finds the store whole without them.")
