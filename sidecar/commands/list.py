"""`mailkeep list`."""

from __future__ import annotations

from sidecar.commands import options
from sidecar.commands.shortfall import Shortfall
from sidecar.present import print_newest
from sidecar.select import Selection, select


def command(
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
    limit: options.LimitOption = 50,
    json: options.JsonOption = False,
    config: options.ConfigOption = None,
    store: options.ArchiveOption = None,
    identity: options.IdentityOption = None,
) -> None:
    """List captured mail, newest first, with the reply for each recipient.

    \b
    Example: mailkeep list --to anna@example.org --since 2h
    Exit codes: 0 listed, maybe nothing; 1 some of it is damaged or missing, as told;
    2 wrong usage or configuration; 10 and above: the store cannot be read, as the
    message says.
    """
    selection = Selection(
        to=to, sender=sender, since=since, until=until, queue_id=queue_id, message_id=message_id,
        subject=subject, leg=leg, status=status, as_of=as_of, limit=limit + 1 if limit else 0,
    )  # fmt: skip
    with options.open_archive(config, store, identity) as opened:
        shortfall = Shortfall(opened)
        found = select(opened, selection, damaged=shortfall.damaged)
        print_newest(found, limit, json=json)
    shortfall.exit()
