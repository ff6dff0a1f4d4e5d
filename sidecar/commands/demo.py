"""`mailkeep demo`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

_WITHOUT = "MAILKEEP_DEMO_WITHOUT"


def command(
    *,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave it running to play with, until Ctrl-C or SIGTERM.")
    ] = False,
) -> None:
    """See it work: real mail captured, deleted, put back and proved equal byte for byte.

    Starts a private Postfix, Dovecot and mailkeep under a temporary directory and on loopback, and takes
    all of it away at the end; the system's own mail servers are not touched. Postfix needs root. Where
    Postfix, Dovecot or pymilter cannot be used it says why and shows the rest; the environment variable
    MAILKEEP_DEMO_WITHOUT=postfix,dovecot,milter goes without those named.

    \b
    Example: mailkeep demo --keep
    Exit codes: 0 every proof held; 1 one did not, or a server failed: the directory with the
    logs is left then, as told; 2 wrong usage; 130 interrupted.
    """
    from sidecar.demo.stage import PARTS
    from sidecar.demo.story import play

    without = frozenset(os.environ.get(_WITHOUT, "").replace(",", " ").split())
    if not without <= set(PARTS):
        unknown = ", ".join(sorted(without - set(PARTS)))
        raise typer.BadParameter(f"{_WITHOUT} names {unknown}; it may name {', '.join(PARTS)}")
    raise typer.Exit(play(keep=keep, without=without))
