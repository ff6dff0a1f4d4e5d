"""`mailkeep check`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from sidecar.commands import options
from sidecar.present import print_json
from sidecar.progress import Progress
from sidecar.readable import escaped
from sidecar.units import format_size
from store.check import Checked, Finding, check
from store.store import Store

_HINTS = {
    "damage": "Restore this pack from a copy; mail in the sound packs can be read meanwhile.",
    "missing": "Restore the stream's missing packs from a copy; all other mail can be read meanwhile.",
    "content": "Restore the pack that holds it from a copy; all other mail can be read meanwhile.",
    "index": "Move the store's `index` directory away while nothing runs; it is rebuilt from the streams.",
}


def command(
    *,
    read_data: Annotated[
        bool, typer.Option("--read-data", help="Put every message together and compare its BLAKE3.")
    ] = False,
    json: options.JsonOption = False,
    config: options.ConfigOption = None,
    store: options.StoreOption = None,
) -> None:
    """Verify the store: checksums, the chain of its history, and that nothing named is missing.

    \b
    Example: mailkeep check --read-data
    Exit codes: 0 nothing wrong; 1 something is wrong; 2 wrong usage or configuration;
    10 and above: the store cannot be read, as the message says.
    """
    checked = Checked()
    findings = 0
    with options.open_store(config, store) as opened, Progress() as progress:
        for finding in _findings(opened, checked, progress, read_data=read_data):
            findings += 1
            progress.clear()
            hint = _HINTS.get(finding.kind, "")
            if json:
                print_json({"kind": finding.kind, "where": finding.where, "what": finding.what, "hint": hint})
            else:
                print(escaped(f"{finding.kind}: {finding.where}: {finding.what}"))
                print(f"  {hint}")
    looked_at = f"{checked.streams} streams, {checked.commits} commits, {checked.deliveries} deliveries"
    read = f", {format_size(checked.message_bytes)} of messages read" if read_data else ""
    verdict = f"{findings} findings" if findings else "nothing wrong"
    print(f"{looked_at}{read}: {verdict}", file=sys.stderr if json else sys.stdout)
    if findings:
        raise typer.Exit(1)


def _findings(store: Store, checked: Checked, progress: Progress, *, read_data: bool) -> Iterator[Finding]:
    """What the check finds, and what opening the store has shown that the check does not see again."""

    def show(checked: Checked) -> None:
        progress.show(f"{checked.deliveries} deliveries, {format_size(checked.message_bytes)} read")

    known = set()
    for finding in check(store, checked, read_data=read_data, progress=show):
        path, _, offset = finding.where.rpartition(":")
        known.add(f"{path} at byte {offset}: {finding.what}")
        yield finding
    for damage in dict.fromkeys(store.damage):
        if damage not in known:
            yield Finding("damage", str(store.path), damage)
