"""Options that several commands share, and how they find their store."""

from __future__ import annotations

import enum
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sidecar.status import Status
from sidecar.units import parse_time
from store.fleet import Archive
from store.ids import now_us
from store.store import Store

if TYPE_CHECKING:
    from sidecar.config import Config
    from sidecar.sections import StoreConfig
    from store.notes import SignKey


_URL = re.compile("(s3|file|https?):/", re.IGNORECASE)
VIEW_DIR = "MAILKEEP_VIEW_DIR"
"""names the directory for what was fetched of replicas and put back from them"""

INTERRUPTED = 130
"""exit code after Ctrl-C, as shells have it"""


class Need(enum.Enum):
    """What a command must be able to do with a sealed store."""

    NOTHING = enum.auto()
    """it is content with what can be seen from without"""
    TO_READ = enum.auto()
    """some identity must be there"""
    WHOLE = enum.auto()
    """nothing may be hidden: it decides what may go"""


class LegName(enum.StrEnum):
    """Where a message was captured, as a filter."""

    LMTP = "lmtp"
    MILTER = "milter"
    IMPORT = "import"


def _not_empty(text: str | None) -> str | None:
    """An empty filter is most often a shell variable that is not set, and would ask for something else."""
    if text is not None and not text.strip():
        raise typer.BadParameter("is empty; the null sender is written '<>'")
    return text


def not_blank(text: str) -> str:
    """A reason that is none will not do for the record."""
    if not text.strip():
        raise typer.BadParameter("is empty: it is for the record")
    return text


def _check_time(text: str | None) -> str | None:
    if text is not None:
        try:
            parse_time(text, now_us())
        except ValueError as exc:
            raise typer.BadParameter(str(exc)) from exc
    return text


ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", envvar="MAILKEEP_CONFIG", help="Configuration file."),
]


def _no_url(path: Path | None) -> Path | None:
    if path is not None and _URL.match(f"{path}"):
        raise typer.BadParameter(
            "is a replica, and this command needs the store itself: run it on the host that ships there, or "
            "on what `mailkeep restore-store` makes"
        )
    return path


StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="PATH",
        callback=_no_url,
        help="The store's directory; needs no configuration.",
    ),
]
ArchiveOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="PATH|URL",
        callback=_not_empty,
        help="The store's directory, or a replica (s3://bucket/prefix, file:///path) with all its hosts; "
        "needs no configuration.",
    ),
]
IdentityOption = Annotated[
    Path | None,
    typer.Option(
        "--identity",
        metavar="FILE",
        envvar="MAILKEEP_IDENTITY",
        help="age identity that opens a sealed store. Default: [encryption] identity.",
    ),
]
IdsArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID", help="Deliveries by id, or by unique beginnings.", show_default=False),
]
EndpointOption = Annotated[
    str | None,
    typer.Option("--endpoint", metavar="URL", help="Address of an S3 service other than AWS."),
]
CredentialsOption = Annotated[
    Path | None,
    typer.Option(
        "--credentials",
        metavar="FILE",
        help="File with access_key_id = … and secret_access_key = …; default: AWS's environment.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
ToOption = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="ADDRESS",
        callback=_not_empty,
        help="Recipient: an address, @domain, or a pattern with *.",
    ),
]
FromOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="ADDRESS",
        callback=_not_empty,
        help="Envelope sender, like --to; '<>' is the null sender.",
    ),
]
SinceOption = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="TIME",
        callback=_check_time,
        help="Captured then or later: 2h, 'yesterday 14:00', 2026-03-31.",
    ),
]
UntilOption = Annotated[
    str | None,
    typer.Option("--until", metavar="TIME", callback=_check_time, help="Captured before that."),
]
AsOfOption = Annotated[
    str | None,
    typer.Option(
        "--as-of",
        metavar="TIME",
        callback=_check_time,
        help="As the store stood then; what was erased is gone.",
    ),
]
QueueIdOption = Annotated[
    str | None, typer.Option("--queue-id", metavar="ID", callback=_not_empty, help="Postfix's queue id.")
]
MessageIdOption = Annotated[
    str | None,
    typer.Option("--message-id", metavar="ID", callback=_not_empty, help="Message-ID, with or without <>."),
]
SubjectOption = Annotated[
    str | None,
    typer.Option("--subject", metavar="TEXT", callback=_not_empty, help="Part of the subject, in any case."),
]
LegOption = Annotated[LegName | None, typer.Option("--leg", help="Where it was captured.")]
OwnerOption = Annotated[
    str | None, typer.Option("--owner", metavar="TEXT", help="Who wants it; default: who runs the command.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
StatusOption = Annotated[Status | None, typer.Option("--status", help="What became of it.")]
LimitOption = Annotated[
    int, typer.Option("--limit", metavar="N", min=0, help="The newest N only; 0 for all.")
]


def open_store(
    config: Path | None,
    store: Path | None,
    identity: Path | None = None,
    *,
    wait: bool = True,
    needs: Need = Need.TO_READ,
) -> Store:
    """The store at `store`, else the configured one, with the identity at `identity`, else the configured
    one; where it is sealed, `needs` says what must be possible, before anything is done. Says so on standard
    error when part of it is sealed for others. Raises `ConfigError`, `IdentityError`, `StoreError`."""
    from sidecar.identity import load_identities

    if identity is None and store is None:
        configured_path(config)  # says what is missing, if anything
        identity = _configured_identity(config)
    opened = Store.open(
        store or configured_path(config), wait=wait, identities=load_identities(identity) if identity else ()
    )
    try:
        if needs is Need.TO_READ:
            opened.require_identity()
        if needs is Need.WHOLE:
            opened.require_whole()
        if opened.keyring.identities and opened.hidden:
            print(
                f"mailkeep: part of {', '.join(opened.hidden)} is sealed for other keys and not seen here",
                file=sys.stderr,
            )
    except BaseException:
        opened.close()
        raise
    return opened


def open_archive(
    config: Path | None, store: str | None, identity: Path | None = None, *, needs: Need = Need.TO_READ
) -> Archive:
    """The same, where `store` may also be a replica: then all of its hosts. Raises `StoreError`,
    `ConfigError`, `IdentityError`."""
    if store is None or not _URL.match(store):
        return open_store(config, Path(store) if store else None, identity, needs=needs)
    if needs is Need.WHOLE:
        raise typer.BadParameter(
            "is a replica: what is captured or removed is so on its host", param_hint="--store"
        )
    from sidecar.identity import load_identities
    from sidecar.readable import escaped
    from sidecar.replication import open_named
    from store.replicas.fleet import open_fleet
    from store.replicas.reader import Replica

    fleet = open_fleet(
        Replica(open_named(store, configured(config))),
        view_directory(store),
        identities=load_identities(identity) if identity else (),
        tell=lambda text: print(f"mailkeep: {escaped(text)}", file=sys.stderr),
    )
    try:
        if needs is Need.TO_READ:
            fleet.require_identity()
    except BaseException:
        fleet.close()
        raise
    return fleet


def view_directory(url: str) -> Path:
    """Where what is fetched of a replica is kept, and what was put back from it is on record."""
    from blake3 import blake3

    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    views = Path(os.environ.get(VIEW_DIR) or state / "mailkeep" / "views")
    return views / blake3(url.rstrip("/").encode()).hexdigest()[:16]


def configured(config: Path | None) -> Config | None:
    """The configuration, if there is one. Raises `ConfigError` where it was named and cannot be used."""
    from sidecar.config import DEFAULT_PATH, load_default  # --store does without its cost

    return load_default(config) if config is not None or DEFAULT_PATH.exists() else None


def _configured_identity(config: Path | None) -> Path | None:
    from sidecar.config import load_default

    return load_default(config).encryption.identity


def configured_path(config: Path | None) -> Path:
    """The store's directory as the configuration names it. Raises `ConfigError`."""
    known = configured(config)
    if known is None:
        from sidecar.config import DEFAULT_PATH, ConfigError

        raise ConfigError(
            f"no store is named: there is no --store, no --config, MAILKEEP_CONFIG is not set, "
            f"and {DEFAULT_PATH} does not exist",
            "Name the store by --store PATH, or the configuration by --config FILE.",
        )
    return known.store.path


def store_settings(config: Path | None) -> StoreConfig:
    """The configured [store] section; its defaults where nothing is configured, as with --store."""
    from sidecar.sections import StoreConfig

    known = configured(config)
    return known.store if known is not None else StoreConfig()


def signing_key(config: Path | None, store: Path | None, sign: Path | None) -> SignKey | None:
    """The key to sign heads with: that of --sign, else the configured one, if there is a configuration.

    Raises `ConfigError`, `BadKeyError`, `OSError`."""
    from sidecar.heads import sign_key

    if sign is None and (store is None or config is not None):
        known = configured(config)
        sign = known.witness.key_file if known is not None else None
    return sign_key(sign) if sign else None
