"""`mailkeep show`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sidecar.commands import options
from sidecar.describe import describe, description_lines, description_object
from sidecar.present import print_json
from sidecar.select import moment_us


def command(
    delivery: Annotated[str, typer.Argument(metavar="ID", help="A delivery's id, or a unique beginning.")],
    *,
    raw: Annotated[
        bool, typer.Option("--raw", help="Write the message's exact bytes and nothing else.")
    ] = False,
    as_of: options.AsOfOption = None,
    json: options.JsonOption = False,
    config: options.ConfigOption = None,
    store: options.ArchiveOption = None,
    identity: options.IdentityOption = None,
) -> None:
    """Show one delivery: envelope, replies, parts, replays, and both legs; or the message itself.

    \b
    Example: mailkeep show 3f2a91 --raw > message.eml
    Exit codes: 0 shown; 2 wrong usage or configuration; 15 damaged: what --raw has
    written is right but not all; 17 no such delivery, or it was erased or has
    expired; 18 the id fits several; other codes above 10: the store cannot be read, as the
    message says.
    """
    if raw and json:
        raise typer.BadParameter("--raw and --json exclude each other")
    with options.open_archive(config, store, identity) as opened:
        as_of_us = moment_us(as_of)
        stored = opened.delivery(opened.resolve(delivery), as_of_us)
        if raw:
            for piece in opened.read(stored.delivery.content):
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        elif json:
            print_json(description_object(describe(opened, stored, as_of_us)))
        else:
            for line in description_lines(describe(opened, stored, as_of_us)):
                print(line)
