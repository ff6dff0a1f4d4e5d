"""`mailkeep rebuild`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from sidecar.commands import options
from sidecar.present import print_json
from sidecar.progress import Progress
from sidecar.readable import escaped
from sidecar.units import format_size
from store.errors import SealedError
from store.rebuild import RebuildOptions, rebuild
from store.store import Store


def command(
    *,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")] = False,
    config: options.ConfigOption = None,
    store: options.StoreOption = None,
    identity: options.IdentityOption = None,
) -> None:
    """Build the index anew from the logs alone, and put it in place of the old one in one step.

    Mail is captured and read meanwhile, through the old index; compaction waits. Stopped by Ctrl-C or killed,
    the old index stays.

    \b
    Example: mailkeep rebuild
    Exit codes: 0 done; 1 done, and damage was met, as told; 2 wrong usage or configuration;
    12 another one runs; 10 and above: the store, as the message says.
    """
    began = time.monotonic()
    # Not waiting for an index that is far behind: it is about to be replaced.
    with _open(config, store, identity) as opened, Progress() as progress:

        def show(done: int, total: int, what: str) -> None:
            rate = format_size(round(done / max(time.monotonic() - began, 0.001)))
            progress.show(f"{format_size(done)} of {format_size(total)}, {rate}/s: {escaped(what)}")

        report = rebuild(opened, RebuildOptions(progress=show))
    if json:
        print_json(
            {
                "deliveries": report.deliveries,
                "contents": report.contents,
                "chunks": report.chunks,
                "pack_bytes": report.pack_bytes,
                "seconds": round(report.seconds, 3),
                "damage": [str(damage) for damage in report.damage],
            }
        )
    else:
        for damage in report.damage:
            print(escaped(f"damage: {damage}"))
        print(
            f"{report.deliveries} deliveries, {report.contents} messages, {report.chunks} parts from "
            f"{format_size(report.pack_bytes)} in {report.seconds:.1f} s: the index is new"
        )
    if report.damage:
        raise typer.Exit(1)


def _open(config: Path | None, store: Path | None, identity: Path | None) -> Store:
    opened = options.open_store(config, store, identity, wait=False, needs=options.Need.NOTHING)
    if opened.blind:
        opened.close()
        raise SealedError(
            f"{opened.path} is sealed for {opened.keyring.told()}: without an identity for it the new index "
            "would know of no mail"
        )
    return opened
