"""`mailkeep expire`."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sidecar.commands import options
from sidecar.present import print_json, short_id
from sidecar.progress import Progress
from sidecar.readable import escaped, text
from sidecar.units import format_size, format_time, iso_time
from store.retention import Due, Expired, Gone, due, expire

if TYPE_CHECKING:
    from store.retention import Rule


def command(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be dropped.")] = False,
    json: options.JsonOption = False,
    config: options.ConfigOption = None,
    store: options.StoreOption = None,
    identity: options.IdentityOption = None,
) -> None:
    """Drop mail that has had its time by the rules of [[retention]]; without any, all is kept for ever.

    What is under a hold stays. `serve` does the same by itself when [scheduler] expire says so. The
    bytes are given back by the next compaction. Interrupted, run it again.

    \b
    Example: mailkeep expire --dry-run
    Exit codes: 0 done, or nothing has had its time; 2 wrong usage or configuration;
    10 and above: the store, as the message says.
    """
    rules = _rules(config)
    with options.open_store(config, store, identity, needs=options.Need.WHOLE) as opened:
        if not rules:
            print("mailkeep: there is no rule in [[retention]]: all is kept for ever", file=sys.stderr)
            return
        if dry_run:
            from store.ids import now_us

            opened.catch_up()
            report = _planned(due(opened, rules, now_us()), json=json)
        else:
            opened.start_writing_beside("operator")
            with Progress() as progress:
                report = expire(
                    opened, rules, owner=getpass.getuser(),
                    progress=lambda dropped: progress.show(f"{dropped} dropped"),
                )  # fmt: skip
    _print_summary(report, dry_run=dry_run, json=json)


def _rules(config: Path | None) -> tuple[Rule, ...]:
    from sidecar.config import ConfigError, load_default

    try:
        return load_default(config).rules
    except ConfigError as exc:
        if config is None:
            exc.hint = "The rules stand in the configuration: name it by --config FILE."
        raise


def _planned(found: Iterator[Due], *, json: bool) -> Expired:
    """Print what is due, and count it."""
    report = Expired()
    for one in found:
        delivery = one.delivery
        if one.hold is None:
            gone = report.rules.setdefault(str(one.rule), Gone())
            gone.deliveries += 1
            gone.message_bytes += delivery.size
        else:
            report.held += 1
        if json:
            print_json(
                {
                    "id": delivery.id.hex(),
                    "time": iso_time(delivery.time_us),
                    "leg": str(delivery.leg),
                    "recipients": [text(recipient.address) for recipient in delivery.envelope.recipients],
                    "size": delivery.size,
                    "rule": str(one.rule),
                    "hold": one.hold.name if one.hold else None,
                }
            )
            continue
        to = ", ".join(text(recipient.address) for recipient in delivery.envelope.recipients[:4])
        why = f"held by {one.hold.name}" if one.hold else str(one.rule)
        when = format_time(delivery.time_us)
        print(f"{short_id(delivery.id)}  {when}  {delivery.leg}  {escaped(f'{to}  ({why})')}")
    return report


def _print_summary(report: Expired, *, dry_run: bool, json: bool) -> None:
    for rule, gone in report.rules.items():
        if json and not dry_run:
            print_json({"rule": rule, "deliveries": gone.deliveries, "message_bytes": gone.message_bytes})
        else:
            verb = "would be dropped" if dry_run else "dropped"
            told = f"{gone.deliveries} deliveries, {format_size(gone.message_bytes)}, {verb} by: {rule}"
            print(escaped(told), file=sys.stderr if dry_run else sys.stdout)
    if not report.rules:
        print("mailkeep: nothing that may go has had its time", file=sys.stderr)
    if report.held:
        print(f"mailkeep: {report.held} more are past their time and held", file=sys.stderr)
    if report.rules and not dry_run:
        print(
            "mailkeep: the bytes go with the next compaction: `mailkeep jobs run compact --wait`",
            file=sys.stderr,
        )
