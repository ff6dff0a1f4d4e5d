"""`mailkeep compact`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sidecar.commands import options
from sidecar.present import print_json
from sidecar.progress import Progress
from sidecar.units import format_size

_NICE = 10


def command(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be rewritten, and why.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Also what is not due: everything in closed packs.")
    ] = False,
    reseal: Annotated[
        bool,
        typer.Option("--reseal", help="Also what is not sealed for the present recipients; see keygen."),
    ] = False,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, max=64, help="Default: [store] threads.")
    ] = None,
    level: Annotated[
        int | None,
        typer.Option("--level", metavar="N", min=1, max=22, help="Default: [store] compaction_level."),
    ] = None,
    json: options.JsonOption = False,
    config: options.ConfigOption = None,
    store: options.StoreOption = None,
    identity: options.IdentityOption = None,
) -> None:
    """Rewrite closed packs: smaller, and without what nobody needs any more.

    What is alike is laid together and compressed harder; messages that were erased or have expired go, with
    all that no other message shares. Runs beside `serve`, which captures on; stopped by Ctrl-C or killed,
    nothing is lost and the next run goes on. Takes CPU and disk time that nobody else
    wants. A stream that nobody writes has its last pack closed first.

    \b
    Example: mailkeep compact --dry-run
    Exit codes: 0 done, or nothing to do; 1 something is left, as told; 2 wrong usage or
    configuration; 10 and above: the store, as the message says.
    """
    from sidecar.scheduler.niceness import stand_back
    from store.compact import CompactOptions, Compactor, close_open_packs, waiting

    settings = options.store_settings(config)
    stand_back(_NICE, "idle")  # it has time, and the mail has not
    with (
        options.open_store(config, store, identity, needs=options.Need.WHOLE) as opened,
        Progress() as progress,
    ):

        def show(done: int, total: int, what: str) -> None:
            progress.show(f"{format_size(done)} of {format_size(total)}: {what}")

        compactor = Compactor(
            opened,
            CompactOptions(
                level=level or settings.compaction_level, threads=threads or settings.threads,
                pack_bytes=settings.pack_size_bytes, everything=everything, reseal=reseal,
                progress=show,
            ),
        )  # fmt: skip
        if dry_run:
            units = compactor.plan()
            for unit in units:
                if json:
                    first, last = unit.range()
                    told = {"stream": unit.stream, "first": first, "last": last}
                    print_json({**told, "bytes": unit.size, "why": unit.why})
                else:
                    print(f"{unit}: {unit.packs} packs, {format_size(unit.size)}")
            if not units:
                print("mailkeep: nothing is due", file=sys.stderr)
            raise typer.Exit(1 if _tell(waiting(opened)) else 0)
        close_open_packs(opened)
        report = compactor.run()
        left = waiting(opened)
    if json:
        print_json(
            {
                "units": report.units, "packs_before": report.packs_before, "packs_after": report.packs_after,
                "bytes_before": report.bytes_before, "bytes_after": report.bytes_after,
                "dropped_messages": report.dropped_messages, "dropped_chunks": report.dropped_chunks,
                "seconds": round(report.seconds, 3), "skipped": report.skipped,
            }
        )  # fmt: skip
    elif report.units:
        print(report.told())
    elif not report.skipped:
        print("nothing is due")
    for skipped in report.skipped:
        print(f"mailkeep: left as it is: {skipped}", file=sys.stderr)
    if _tell(left) or report.skipped:
        raise typer.Exit(1)


def _tell(left: list[str]) -> bool:
    """Say what cannot be reached while `serve` writes it; whether there is any."""
    for what in left:
        print(f"mailkeep: {what}: `mailkeep jobs run compact --wait` reaches it", file=sys.stderr)
    return bool(left)
