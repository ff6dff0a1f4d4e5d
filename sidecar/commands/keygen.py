"""`mailkeep keygen`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The identity file; must not exist yet.")
    ],
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Protect the file by a passphrase, which is asked for.")
    ] = False,
) -> None:
    """Make an age identity, which opens what is sealed for it, and print its public key.

    The public key goes into [encryption] recipients; the file goes off this machine, in two places at least:
    without it nobody ever reads the mail again. The passphrase may come from MAILKEEP_PASSPHRASE.

    \b
    Example: mailkeep keygen --output backup-key.txt
    Exit codes: 0 made; 2 wrong usage; 22 the file cannot be made, as the message says.
    """
    from sidecar.identity import new_passphrase, write_identity

    print(write_identity(output, new_passphrase() if passphrase else None))
