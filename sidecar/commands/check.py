"""`mailkeep check`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from sidecar import heads
from sidecar.commands import options
from sidecar.commands.head import KeyOption
from sidecar.present import print_json
from sidecar.progress import Progress
from sidecar.readable import escaped
from sidecar.units import format_size, format_time, iso_time
from store.check import Checker, CheckOptions
from store.check_history import HistoryCheck, Removed
from store.findings import Checked, Finding
from store.heads import Head
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
    since_head: Annotated[
        Path | None,
        typer.Option(
            "--since-head",
            metavar="FILE",
            help="An earlier head: nothing that it vouches for may have been altered or removed since.",
        ),
    ] = None,
    replica: Annotated[
        str | None,
        typer.Option(
            "--replica", metavar="URL", help="Compare with this replica instead, both ways; see --read-data."
        ),
    ] = None,
    repair_from: Annotated[
        str | None,
        typer.Option(
            "--repair-from",
            metavar="URL",
            help="The same, and make packs here again that are damaged or missing.",
        ),
    ] = None,
    repair_to: Annotated[
        str | None,
        typer.Option(
            "--repair-to",
            metavar="URL",
            help="The same, and have mended what is damaged or missing there.",
        ),
    ] = None,
    endpoint: options.EndpointOption = None,
    credentials: options.CredentialsOption = None,
    key: KeyOption = None,
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

    Runs beside `serve`. With --since-head FILE (that `mailkeep head` wrote, and somebody else kept) the
    history is compared with what it was: also whoever can write to this host, and knows the format, is found
    out. What was erased or has expired since is told. With --json every finding is an object (kind, where,
    what, hint), and the last one is the summary (kind "summary"). Kinds: damage, missing, content, index,
    history.

    With --replica every stretch of every pack that the replica counts is compared with what is here; with
    --read-data what lies there is read as well. --repair-from mends what is here (the damaged pack stays
    beside, as .damaged; restart `serve` then, and run `mailkeep rebuild`). --repair-to mends what is there,
    out of packs that are right here: what is missing is created again, and for what is damaged `serve` makes
    copies and a round that names them, with its next round. Kinds: replica, local.

    \b
    Example: mailkeep check
    Example: mailkeep check --read-data
    Example: mailkeep check --replica s3://mail-backup/mx1
    Example: mailkeep check --repair-to s3://mail-backup/mx1 --read-data
    Example: mailkeep check --read-data=2/5 --threads 4 --resume
    Example: mailkeep check --since-head /mnt/elsewhere/head.txt --key mx1.key.pub
    Exit codes: 0 nothing wrong; 1 something is wrong; 2 wrong usage or configuration;
    10 and above: the store cannot be read, as the message says.
    """
    if urls := {url for url in (replica, repair_from, repair_to) if url}:
        from sidecar.commands.check_replica import check_replica

        if len(urls) > 1:
            raise typer.BadParameter(
                "--replica, --repair-from and --repair-to are about one replica at a time"
            )
        raise typer.Exit(
            check_replica(
                urls.pop(), config, store, endpoint=endpoint, credentials=credentials, read_data=read_data,
                mend_here=repair_from is not None, mend_there=repair_to is not None, json=json,
            )
        )  # fmt: skip
    began = time.monotonic()
    findings = 0
    vouched = heads.read_head(since_head, key)[1] if since_head else None
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
                threads=threads or options.store_settings(config).threads,
                resume=resume,
                progress=show,
            ),
        )
        history = _history(opened, vouched, progress)
        for finding in _findings(opened, checker, history):
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
        summary = _summary(checked, findings, read_data, time.monotonic() - began)
        print_json({**summary, **({"since_head": _since_object(vouched, history)} if history else {})})
    else:
        if vouched and history:
            _tell_since(vouched, history)
        looked_at = f"{checked.streams} streams, {checked.commits} commits, {checked.deliveries} deliveries"
        read = f", {format_size(checked.message_bytes)} of messages read" if read_data else ""
        print(f"{looked_at}{read}: {f'{findings} findings' if findings else 'nothing wrong'}")
        if checked.unread:
            print(f"{checked.unread} messages are sealed for other keys and were not read")
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


def _history(store: Store, vouched: Head | None, progress: Progress) -> HistoryCheck | None:
    if vouched is None:
        return None
    read = 0

    def step(facts: int) -> None:
        nonlocal read
        read += facts
        progress.show(f"the history; {read} facts")

    return HistoryCheck(store, vouched, step)


def _tell_since(head: Head, history: HistoryCheck) -> None:
    report = history.report
    print(f"read {report.facts} facts against {heads.told(head)}")
    if report.sealed:
        print(f"  NOT VERIFIED: {report.sealed} of them are sealed, and only their leaves were compared;")
        print("  what they say, and what was removed, is verified with --identity")
    if report.unnamed:
        print(f"  {report.unnamed} facts are gone that only a removal by an earlier version explains")
    for removed in report.removed:
        when = f"{format_time(removed.first_us)} to {format_time(removed.last_us)}"
        count = f"{removed.deliveries} deliveries, {removed.facts} facts"
        by = f"by {removed.owner}: {removed.reason}"
        print(escaped(f"  since then {removed.what}: {count}, {when}, {by}"))


def _since_object(head: Head | None, history: HistoryCheck) -> dict[str, Any]:
    def told(removed: Removed) -> dict[str, Any]:
        times = {"first": iso_time(removed.first_us), "last": iso_time(removed.last_us)}
        return {**{k: v for k, v in asdict(removed).items() if not k.endswith("_us")}, **times}

    report = history.report
    return {
        "time": iso_time(head.time_us) if head else None,
        "facts": report.facts,
        "facts_sealed": report.sealed,
        "facts_gone": report.stubs,
        "facts_gone_unnamed": report.unnamed,
        "removed": [told(removed) for removed in report.removed],
    }


def _how_far(checked: Checked, began: float) -> str:
    rate = checked.bytes_done / max(time.monotonic() - began, 0.001)
    share = f"{format_size(checked.bytes_done)} of {format_size(checked.bytes_total)} of packs"
    what = "the index; " if checked.phase == "index" else ""
    return f"{what}{share}, {format_size(round(rate))}/s, {checked.deliveries} deliveries"


def _findings(store: Store, checker: Checker, history: HistoryCheck | None) -> Iterator[Finding]:
    """What the checks find, and what opening the store has shown that they do not see again."""
    known = set()
    if history:
        yield from history.run()
    for finding in checker.run():
        path, _, offset = finding.where.rpartition(":")
        known.add(f"{path} at byte {offset}: {finding.what}")
        yield finding
    for damage in dict.fromkeys(store.damage):
        if damage not in known:
            yield Finding("damage", str(store.path), damage)
