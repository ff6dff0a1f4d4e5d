"""What `replay` and `undelete` share: their options, which road they take, and how they end."""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sidecar.commands import options

if TYPE_CHECKING:
    from sidecar.replay.journal import Journal
    from sidecar.replay.perform import Performance, Request
    from sidecar.replay.report import Report
    from sidecar.replay.run import Ended
    from sidecar.replay.targets import Item, Result, Target
    from sidecar.sections import ImapConfig
    from sidecar.units import Address

_FEW = 20
_SYSTEM_FLAGS = {name.lower(): f"\\{name}" for name in ("Seen", "Answered", "Flagged", "Deleted", "Draft")}
SOME, NONE, DOUBT = 3, 4, 6


class Via(enum.StrEnum):
    """The roads."""

    LMTP = "lmtp"
    IMAP = "imap"


class NoServerError(typer.BadParameter):
    """No LMTP server is named."""


ViaOption = Annotated[
    Via,
    typer.Option(
        "--via", help="imap: with the old received date, folder and flags. lmtp: as new mail, by Sieve."
    ),
]
FolderOption = Annotated[
    str,
    typer.Option(
        "--folder",
        metavar="NAME",
        help="Into this folder, made if need be. Through LMTP as anna+NAME@: Dovecot needs "
        "lmtp_save_to_detail_mailbox = yes for that.",
    ),
]
FlagsOption = Annotated[
    str | None,
    typer.Option(
        "--flags", metavar="FLAGS", help="With --via imap: flags to set, such as Seen, and keywords."
    ),
]
DownstreamOption = Annotated[
    str | None,
    typer.Option("--downstream", metavar="ADDRESS", help="LMTP server; default: [lmtp] downstream."),
]
ConnectionsOption = Annotated[
    int, typer.Option("--connections", metavar="N", min=1, max=100, help="Messages sent at the same time.")
]
RateOption = Annotated[
    float, typer.Option("--rate", metavar="N", min=0, help="Messages a second at most; 0 for no limit.")
]
PatienceOption = Annotated[
    str,
    typer.Option("--patience", metavar="TIME", help="How long the server may be away until the rest waits."),
]
ReportOption = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="Write what became of each, a line of JSON."),
]


def imap_of(config: Path | None) -> ImapConfig | None:
    """[imap], where it is configured."""
    known = options.configured(config)
    return known.imap if known is not None else None


def imap_needed(config: Path | None, what: str) -> ImapConfig:
    """The same, for what cannot do without. Raises `ConfigError`."""
    from sidecar.config import ConfigError

    found = imap_of(config)
    if found is None:
        raise ConfigError(
            f"{what} looks into the mailboxes, and there is no [imap] in the configuration",
            "Say how to log in under [imap], and name the file by --config; see deploy/mailkeep.toml.",
        )
    return found


def parsed_address(text: str) -> Address:
    """The LMTP server of --downstream. Raises `BadParameter`."""
    from sidecar.units import Address

    try:
        return Address.parse(text)
    except ValueError as exc:
        raise typer.BadParameter(f"--downstream: {exc}") from exc


def lmtp_address(text: str | None, config: Path | None) -> Address:
    """The LMTP server: `text`, else the configured one. Raises `BadParameter`, `ConfigError`."""
    from sidecar.config import ConfigError, load_default

    if text is not None:
        return parsed_address(text)
    try:
        lmtp = load_default(config).lmtp
    except ConfigError as exc:
        exc.hint = "Name the LMTP server by --downstream, or the configuration by --config."
        raise
    if lmtp is None:
        raise NoServerError("the configuration has no [lmtp] downstream: name the server by --downstream")
    return lmtp.downstream


def request(
    via: Via, *, config: Path | None, downstream: str | None, folder: str, flags: str | None,
    connections: int, rate: float, patience: str, sender: bytes | None = b"", as_of_us: int | None = None,
    send_doubtful: bool = False,
) -> Request:  # fmt: skip
    """How to put back, from the options. Raises `BadParameter`, `ConfigError`."""
    from sidecar.replay.perform import Request
    from sidecar.units import parse_duration
    from store.ids import FOREVER_US

    try:
        patience_s = parse_duration(patience)
    except ValueError as exc:
        raise typer.BadParameter(f"--patience: {exc}") from exc
    if via is Via.LMTP and flags is not None:
        raise typer.BadParameter("LMTP sets no flags: --flags needs --via imap")
    if via is Via.IMAP and downstream is not None:
        raise typer.BadParameter("--downstream is an LMTP server: --via imap takes the server under [imap]")
    if any(not sign.isprintable() for sign in folder):
        raise typer.BadParameter("--folder: a name without control characters")
    if flags is not None and not flags.isascii():
        raise typer.BadParameter("--flags: IMAP knows no flags but of ASCII letters")
    imap = imap_needed(config, "--via imap") if via is Via.IMAP else imap_of(config)
    return Request(
        address=None if via is Via.IMAP else lmtp_address(downstream, config), imap=imap, sender=sender,
        folder=folder, flags=None if flags is None else _flags(flags),
        delimiter=imap.recipient_delimiter if imap is not None else "+", lanes=connections, rate=rate,
        patience_s=patience_s, as_of_us=FOREVER_US if as_of_us is None else as_of_us,
        send_doubtful=send_doubtful,
    )  # fmt: skip


def _flags(text: str) -> tuple[str, ...]:
    """The flags of --flags: system flags with or without their backslash, in any case, and keywords. Raises
    `BadParameter` for what no server takes (RFC 9051 2.3.2)."""
    from sidecar.live.mailbox import FLAG

    flags = []
    for word in text.replace(",", " ").split():
        system = _SYSTEM_FLAGS.get(word.removeprefix("\\").lower())
        if system is None and (word.startswith("\\") or not FLAG.fullmatch(word)):
            known = ", ".join(_SYSTEM_FLAGS.values())
            raise typer.BadParameter(f"--flags: {word} is none of {known}, and no keyword")
        flags.append(system or word)
    return tuple(flags)


def perform(
    performance: Performance, journal: Journal, source: Iterator[Item], file: Path | None, *, json: bool,
    total: int, what: str,
) -> int:  # fmt: skip
    """Put back what comes from `source`, tell of it, and say how it ended; the exit code. `total`: how many
    there are, 0 if nobody knows. Raises `ConfigError`, `StoreError`, `OSError`."""
    from asyncio import CancelledError

    from sidecar.bar import Bar
    from sidecar.replay.report import Report
    from sidecar.replay.targets import Outcome

    # On a terminal a long run shows its bar, and what went wrong; elsewhere every line.
    lines = not sys.stdout.isatty() or 0 < total <= _FEW
    with Report(json=json, lines=lines, file=file) as report:
        with Bar(what, total, quiet=json) as bar:
            last: list[Target] = []

            def tell(result: Result) -> None:
                bar.advance()
                if result.outcome is Outcome.RESTORED:
                    last[:] = [result.target]
                report.add(result)

            try:
                ended = performance.perform(source, tell)
            except CancelledError:
                print("mailkeep: left at once; the same command goes on", file=sys.stderr)
                return options.INTERRUPTED
        if last and not ended.stopped and performance.has_folder_got(last[0]) is False:
            print(
                "mailkeep: the LMTP server took it, but nothing of it is in the folder of --folder:\n"
                "it is in the inbox. Dovecot needs lmtp_save_to_detail_mailbox = yes, or use --via imap",
                file=sys.stderr,
            )
        return _finish(ended, report, journal.run, json=json)


def _finish(ended: Ended, report: Report, run: str, *, json: bool) -> int:
    """Say how it ended; the exit code."""
    from sidecar.live.mailbox import LiveError, LoginError
    from sidecar.present import print_json
    from sidecar.readable import escaped
    from sidecar.replay.targets import Outcome

    code = _code(ended)
    if json:
        print_json(
            {
                "run": run,
                "exit_code": code,
                "stopped": ended.gave_up or None,
                "complete": ended.saw_all,
                **report.summary(),
            }
        )
    elif ended.targets > 1:
        print("\n".join(report.table()), file=sys.stderr)
    there = report.count(Outcome.THERE)
    told = f" ({there} already there)" if there else ""
    if not ended.targets and not ended.stopped:
        print("mailkeep: nothing matches", file=sys.stderr)
        return code
    of = f"{ended.back} of {ended.targets} are back{told}"
    if ended.stopped and not ended.saw_all:
        of = f"{ended.back} are back{told}; the rest was not looked at"
    print(f"mailkeep: {of} (run {run})", file=sys.stderr)
    if ended.in_doubt:
        print(
            f"mailkeep: {ended.in_doubt} are in doubt: they were on their way when a run or a connection\n"
            "ended, and the server may have them or not. With [imap] configured the same command looks;\n"
            "--doubtful send sends them once more.",
            file=sys.stderr,
        )
    if ended.gave_up:
        print(f"mailkeep: gave up: {escaped(ended.gave_up)}", file=sys.stderr)
    if code == LoginError.exit_code:
        print(f"mailkeep: {LoginError.hint}", file=sys.stderr)
    elif code == LiveError.exit_code:
        print("mailkeep: the mailboxes cannot be reached: look at [imap] server and tls", file=sys.stderr)
    if ended.stopped:
        print("mailkeep: stopped; the same command goes on with what is missing", file=sys.stderr)
    elif code not in (0, NONE) or ended.gave_up:
        print("mailkeep: the same command sends what is missing", file=sys.stderr)
    return code


def _code(ended: Ended) -> int:
    if ended.stopped:
        return options.INTERRUPTED
    if ended.targets and ended.complete:
        return 0
    if ended.in_doubt:
        return DOUBT
    if ended.codes and 0 not in ended.codes:  # as `audit`: who cannot be reached comes first
        return min(ended.codes)
    return SOME if ended.back else NONE
