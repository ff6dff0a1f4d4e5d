"""`mailkeep serve`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def command(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            envvar="MAILKEEP_CONFIG",
            help="The configuration file (TOML).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Capture mail: run the LMTP and milter fronts, the store and the metrics endpoint until stopped.

    SIGTERM ends it in order (30 s for what is in flight), SIGHUP takes up a changed configuration.

    Example: mailkeep serve --config /etc/mailkeep/mailkeep.toml

    Exit codes: 0 stopped in order, 1 cannot start or the store has failed, 2 configuration, 10-19 store.
    """
    from sidecar.config import load_default
    from sidecar.run import serve

    load = partial(load_default, config)
    raise typer.Exit(serve(load(), load))
