"""`mailkeep check`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from sidecar.commands import options
from sidecar.present import print_json
from sidecar.progress import Progress
from sidecar.readable import escaped
from sidecar.units import format_size
from store.check import Checker, CheckOptions
from store.findings import Checked, Finding
from store.sample import Sample
from store.store import Store

_HINTS = {
    "damage": "Restore this pack from a copy; mail in the sound packs can be read meanwhile.",
    "missing": "Restore damaged or missing packs from a copy; all other mail can be read meanwhile. With "
    "findings of kind `index` run `mailkeep rebuild` first.",
    "content": "Restore the pack that holds it from a copy; all other mail can be read meanwhile.",
    "index": "Run `mailkeep rebuild`: the index is built anew from the streams, while mail is captured.",
    "history": "Compare the stream with a copy of an earlier day, and find out who can write to it.",
}


class _Command(TyperCommand):
    """`--read-data` may stand alone, and then means all."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        read: list[str] = []
        for number, argument in enumerate(args):
            following = args[number + 1] if number + 1 < len(args) else ""
            alone = not following[:1].isdigit()
            read.append("--read-data=all" if argument == "--read-data" and alone else argument)
        return super().parse_args(ctx, read)


COMMAND_CLASS = _Command


def _sample(text: str) -> Sample:
    try:
        return Sample.parse(text)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc


def command(
    *,
    read_data: Annotated[
        Sample | None,
        typer.Option(
            "--read-data",
            metavar="[=10%|=N/M]",
            parser=_sample,
            help="Put messages together and compare their BLAKE3: all, a random share, or part N of M.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", metavar="N", min=1, max=64, help="Packs checked at once. Default: [store] threads."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an interrupted check of the same kind stopped.")
    ] = False,
    json: options.JsonOption = False,
    config: options.ConfigOption = None,
    store: options.StoreOption = None,
    identity: options.IdentityOption = None,
) -> None:
    """Verify the store: checksums, the chain of its history, and that all that is named is there, both ways.

    Runs beside `serve`. With --json every finding is an object (kind, where, what, hint), and the last one is
    the summary (kind "summary"). Kinds: damage, missing, content, index, history.

    \b
    Example: mailkeep check
    Example: mailkeep check --read-data
    Example: mailkeep check --read-data=2/5 --threads 4 --resume
    Exit codes: 0 nothing wrong; 1 something is wrong; 2 wrong usage or configuration;
    10 and above: the store cannot be read, as the message says.
    """
    began = time.monotonic()
    findings = 0
    with (
        options.open_store(config, store, identity, needs=options.Need.NOTHING) as opened,
        Progress() as progress,
    ):

        def show(checked: Checked) -> None:
            progress.show(_how_far(checked, began))

        checker = Checker(
            opened,
            CheckOptions(
                read_data=read_data,
                threads=threads or options.store_settings(config, store).threads,
                resume=resume,
                progress=show,
            ),
        )
        for finding in _findings(opened, checker):
            findings += 1
            progress.clear()
            hint = _HINTS.get(finding.kind, "")
            if json:
                print_json({**asdict(finding), "hint": hint})
            else:
                print(escaped(f"{finding.kind}: {finding.where}: {finding.what}"))
                print(f"  {hint}")
    checked = checker.checked
    if json:
        print_json(_summary(checked, findings, read_data, time.monotonic() - began))
    else:
        looked_at = f"{checked.streams} streams, {checked.commits} commits, {checked.deliveries} deliveries"
        read = f", {format_size(checked.message_bytes)} of messages read" if read_data else ""
        print(f"{looked_at}{read}: {f'{findings} findings' if findings else 'nothing wrong'}")
        if checked.sealed:
            print(
                f"{checked.sealed} commits are sealed: their structure, checksums and history were verified; "
                "what they hold is with --identity"
            )
    if findings:
        raise typer.Exit(1)


def _summary(checked: Checked, findings: int, read_data: Sample | None, seconds: float) -> dict[str, Any]:
    return {
        "kind": "summary",
        "findings": findings,
        "streams": checked.streams,
        "commits": checked.commits,
        "deliveries": checked.deliveries,
        "contents": checked.contents,
        "sealed_commits": checked.sealed,
        "read_data": str(read_data) if read_data else None,
        "messages_read": checked.messages_read,
        "message_bytes": checked.message_bytes,
        "pack_bytes": checked.bytes_done,
        "seconds": round(seconds, 3),
    }


def _how_far(checked: Checked, began: float) -> str:
    rate = checked.bytes_done / max(time.monotonic() - began, 0.001)
    share = f"{format_size(checked.bytes_done)} of {format_size(checked.bytes_total)} of packs"
    what = "the index; " if checked.phase == "index" else ""
    return f"{what}{share}, {format_size(round(rate))}/s, {checked.deliveries} deliveries"


def _findings(store: Store, checker: Checker) -> Iterator[Finding]:
    """What the check finds, and what opening the store has shown that the check does not see again."""
    known = set()
    for finding in checker.run():
        path, _, offset = finding.where.rpartition(":")
        known.add(f"{path} at byte {offset}: {finding.what}")
        yield finding
    for damage in dict.fromkeys(store.damage):
        if damage not in known:
            yield Finding("damage", str(store.path), damage)
