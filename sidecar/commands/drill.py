"""`mailkeep drill`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sidecar.commands import options

if TYPE_CHECKING:
    from sidecar.drill import Plan, Report
    from sidecar.drill.restore import Restored

_NOT_PROVEN = 6


def _seconds(written: str) -> float:
    from sidecar.units import parse_duration

    try:
        return parse_duration(written)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc


def command(
    *,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample",
            metavar="N",
            min=1,
            max=100_000,
            help="Put back N deliveries, drawn evenly over time. Default: [drill] sample.",
        ),
    ] = None,
    no_sample: Annotated[bool, typer.Option("--no-sample", help="The canary alone.")] = False,
    no_canary: Annotated[
        bool, typer.Option("--no-canary", help="The sample alone: no mail is sent.")
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="TIME",
            parser=_seconds,
            help="How long the canary may take. Default: [drill] timeout.",
        ),
    ] = None,
    json: options.JsonOption = False,
    config: options.ConfigOption = None,
    store: options.StoreOption = None,
    identity: options.IdentityOption = None,
) -> None:
    """Prove that restoring works: with a mail of now, and with some of any time.

    A canary goes by [drill] via to [drill] recipient, a mailbox set aside for it. Once it is captured and
    answered, it and a random sample of the store are put back to a scratch LMTP server inside this command,
    and compared byte for byte. No mailbox gets anything but the canary, and the store's history says nothing
    of it. The result goes to the metrics of `serve`, too. A sealed store needs its identity: without one
    nothing can be proven, and no canary is sent.

    \b
    Example: mailkeep drill
    Example: mailkeep drill --no-canary --sample 500 --store /mnt/copy/mailkeep
    Exit codes: 0 proven; 6 not proven, for the reasons told; 2 wrong usage or configuration;
    21 sealed, and no identity given opens it; other codes above 10: the store, as the message says.
    """
    import asyncio
    import time

    from sidecar.bar import Bar
    from sidecar.drill import drill, record

    if no_sample and (no_canary or sample is not None):
        raise typer.BadParameter(
            "--no-sample goes neither with --no-canary, since nothing would be left, nor with --sample"
        )
    plan = _plan(config, store, canary=not no_canary, sample=0 if no_sample else sample, timeout_s=timeout)
    with options.open_store(config, store, identity) as opened:
        bar = Bar("drill", quiet=json)

        def drawn(number: int) -> None:
            nonlocal bar
            bar = running.enter_context(Bar("drill", number, quiet=json))

        def told(result: Restored) -> None:
            bar.advance()
            if json:
                _print_restored(result)

        try:
            with ExitStack() as running:
                report = asyncio.run(drill(opened, plan, told=told, drawn=drawn))
        except KeyboardInterrupt:
            print("mailkeep: interrupted, nothing was proven or recorded: run it again", file=sys.stderr)
            raise typer.Exit(options.INTERRUPTED) from None
        try:
            record(opened.path, time.time(), list(report.reasons))
        except OSError as exc:
            print(f"mailkeep: the result does not reach the metrics: {exc}", file=sys.stderr)
    if json:
        _print_summary(report)
    else:
        print("\n".join(report.lines()))
    if not report.proven:
        raise typer.Exit(_NOT_PROVEN)


def _plan(
    config: Path | None, store: Path | None, *, canary: bool, sample: int | None, timeout_s: float | None
) -> Plan:
    """A sample of a store that is named needs no configuration."""
    from sidecar.config import Config, load_default
    from sidecar.drill import Plan

    if store is None:
        options.configured_path(config)  # says what is missing, if anything
    known = load_default(config) if canary else options.configured(config) or Config()
    return Plan.of(known, canary=canary, sample=sample, timeout_s=timeout_s)


def _print_restored(result: Restored) -> None:
    from sidecar.present import print_json
    from sidecar.units import iso_time

    delivery = result.delivery
    told: dict[str, Any] = {
        "kind": "message",
        "id": result.id.hex(),
        "time": iso_time(delivery.time_us) if delivery else None,
        "size": delivery.size if delivery else None,
        "proven": result.proven,
        "removed": result.removed,
        "error": result.error or None,
    }
    print_json(told)


def _print_summary(report: Report) -> None:
    from sidecar.present import print_json
    from sidecar.readable import text

    canary, route, restored = report.canary, report.plan.route, report.restored
    print_json(
        {
            "kind": "summary",
            "proven": report.proven,
            "reasons": list(report.reasons),
            "notes": list(report.notes),
            "canary": {
                "recipient": text(route.recipient),
                "via": str(route),
                "id": canary.id.hex() if canary else None,
                "seconds": round(canary.seconds, 3) if canary else None,
                "reply": text(canary.reply) if canary else None,
                "size": canary.size if canary else None,
            }
            if route
            else None,
            "messages": len(restored.results),
            "restored": restored.proven,
            "bytes": restored.size,
            "first_seconds": None if restored.first_s is None else round(restored.first_s, 4),
            "messages_per_second": round(report.rate, 1),
            "seconds": round(report.seconds, 3),
        }
    )
