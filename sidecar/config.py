# ruff: noqa: RUF009 - key() makes a dataclass field, which is what a default should be
"""The configuration: one frozen tree of dataclasses with its defaults, read from one TOML file.

A key is a field here: its name, default, unit, one-sentence help and whether SIGHUP takes it up stand
together, and deploy/mailkeep.toml and the README are tested against them. A slip (unknown key, wrong
unit, values that cannot work together) is a `ConfigError` that names the file, section and key.
Reads the file and nothing else: no socket is opened, no path is made.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import socket
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from sidecar.keys import (
    ADDRESS,
    ADDRESS_OR_NONE,
    DURATION,
    KEEP,
    MAILBOX,
    MODE,
    NAME,
    PATH,
    PATH_OR_NONE,
    PATTERN,
    RECIPIENTS,
    REPLICA,
    SCHEDULE,
    SIZE,
    SWITCH,
    TEXT,
    URL,
    USER_FORMAT,
    WINDOW,
    Kind,
    choice,
    choice_or_any,
    count,
    key,
    kind_of,
    name_of,
)
from sidecar.scheduler.schedule import Schedule
from sidecar.scheduler.window import Window
from sidecar.units import Address, exact_size
from store.layout import STREAM_NAME_BYTES
from store.loopback import LOOPBACK
from store.records import Leg
from store.retention import Rule

DEFAULT_PATH = Path("/etc/mailkeep/mailkeep.toml")
POSTFIX_LMTP_TIMEOUT_S = 600
POSTFIX_MILTER_TIMEOUT_S = 300
PACK_SIZE_MIN_BYTES = 64 * 1024
PACK_SIZE_MAX_BYTES = 1 << 30


class ConfigError(Exception):
    """The configuration cannot be used; the text says where and why, `hint` says what to do."""

    exit_code = 2

    def __init__(
        self, message: str, hint: str = "deploy/mailkeep.toml shows every key with its default."
    ) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Where captured mail is kept, and how."""

    path: Path = key("/var/lib/mailkeep", PATH, "Directory of the store; created on first use.")
    reserve_bytes: int = key(
        "64MiB",
        SIZE,
        "Free space on the store's file system at which mail is deferred, before the disk is full.",
    )
    pack_size_bytes: int = key("256MiB", SIZE, "Size at which a pack file is closed and the next one begun.")
    stream: str = key(
        "",
        NAME,
        "Name of the log that this service writes, its own among all hosts; empty for the host name.",
    )
    compression_level: int = key(
        3, count(1, 19), "zstd level for new mail; higher is smaller and costs CPU time while mail waits."
    )
    compaction_level: int = key(
        19, count(1, 22), "zstd level with which compaction rewrites old mail.", reload=True
    )
    threads: int = key(1, count(1, 64), "Threads that compaction, check and other jobs may use.", reload=True)

    @property
    def stream_name(self) -> str:
        """`stream`, or the host name as far as it can name a directory."""
        return (
            self.stream
            or re.sub("[^A-Za-z0-9._-]", "-", socket.gethostname()).strip(".-_")[:63]
            or "mailkeep"
        )

    def stream_of(self, worker: int) -> str:
        """The first worker's stream is that of a service without workers; the others' are numbered."""
        if worker == 1:
            return self.stream_name
        number = f"-{worker}"
        return self.stream_name[: STREAM_NAME_BYTES - len(number)] + number


@dataclass(frozen=True, slots=True, kw_only=True)
class LmtpConfig:
    """The LMTP front, between Postfix and the mailbox server."""

    listen: Address = key("127.0.0.1:2424", ADDRESS, "Where Postfix delivers to: HOST:PORT or unix:/path.")
    downstream: Address = key(
        "127.0.0.1:24", ADDRESS, "The mailbox server's LMTP address, such as Dovecot's.", reload=True
    )
    socket_mode: int = key("0660", MODE, "Octal mode of a unix socket; who connects needs write permission.")
    socket_group: str = key("", TEXT, "Group of a unix socket; empty for the service's own group.")
    max_connections: int = key(
        100,
        count(1, 10_000),
        "Connections served at once; one more is told 421 and comes again.",
        reload=True,
    )
    idle_timeout_s: float = key(
        "5m",
        DURATION,
        "How long a client may be silent before its connection is closed; below 10m.",
        reload=True,
    )
    delivery_timeout_s: float = key(
        "9m", DURATION, "How long one message may take until 451; below Postfix's 10m.", reload=True
    )
    connect_timeout_s: float = key(
        "30s", DURATION, "How long connecting to the mailbox server may take until 451.", reload=True
    )
    workers: int = key(1, count(1, 64), "Processes that take mail here; more than one for more cores.")


@dataclass(frozen=True, slots=True, kw_only=True)
class MilterConfig:
    """The milter front, which sees mail as Postfix takes it in."""

    listen: Address = key(
        "unix:/run/mailkeep/milter.sock",
        ADDRESS,
        "Where Postfix's smtpd_milters connect: HOST:PORT or unix:/path.",
    )
    socket_mode: int = key("0660", MODE, "Octal mode of a unix socket; who connects needs write permission.")
    socket_group: str = key("", TEXT, "Group of a unix socket; empty for the service's own group.")
    commit_timeout_s: float = key(
        "30s",
        DURATION,
        "How long making a message durable may take until it is deferred; below 5m.",
        reload=True,
    )
    workers: int = key(1, count(1, 64), "Processes that take mail here; those of [lmtp] do both.")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """The HTTP endpoint with /metrics, /healthz and /readyz."""

    listen: Address = key("127.0.0.1:9753", ADDRESS, "Where Prometheus scrapes: HOST:PORT or unix:/path.")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureConfig:
    """What becomes of mail that cannot be made durable."""

    on_failure: str = key(
        "tempfail",
        choice("tempfail", "accept"),
        '"tempfail" defers mail that cannot be captured; "accept" delivers it without a copy, and counts it.',
        reload=True,
    )
    spool: Path | None = key(
        "",
        PATH_OR_NONE,
        "Directory for what was accepted without a copy; empty for spool in the store's directory.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptionConfig:
    """For whom captured mail is sealed."""

    recipients: tuple[str, ...] = key(
        [],
        RECIPIENTS,
        "age public keys of all who can read what is captured; empty for as before, at first nothing sealed.",
    )
    identity: Path | None = key(
        "",
        PATH_OR_NONE,
        "age identity file, for jobs and commands here that read; empty where nothing is to be read.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Background jobs: when they run, and how far they stand back."""

    compact: Schedule = key(
        "every 1h", SCHEDULE, "When space is given back that nothing needs any more.", reload=True
    )
    expire: Schedule = key("30 3 * * *", SCHEDULE, "When mail past its time is dropped.", reload=True)
    check: Schedule = key("0 4 * * 0", SCHEDULE, "When the store is verified.", reload=True)
    audit: Schedule = key(
        "", SCHEDULE, "When mailboxes are compared with the store; needs [imap].", reload=True
    )
    audit_since_us: int | None = key(
        "30d",
        KEEP,
        'How far back it looks; a longer time or "forever" asks accounts, too, that have been closed since.',
        reload=True,
    )
    drill: Schedule = key(
        "", SCHEDULE, "When it is proven that restoring works, as [drill] says.", reload=True
    )
    search: Schedule = key(
        "every 5m",
        SCHEDULE,
        "When the search index takes in what is new; `find` does so itself.",
        reload=True,
    )
    window: Window = key(
        "", WINDOW, "Hours in which jobs may run, such as 22:00-06:00; empty for always.", reload=True
    )
    busy_latency_s: float = key(
        "200ms", DURATION, "A job waits while making mail durable takes longer than this.", reload=True
    )
    nice: int = key(
        10, count(0, 19), "CPU niceness of jobs; 0 is as the service, 19 the most yielding.", reload=True
    )
    io_class: str = key(
        "idle",
        choice("idle", "best-effort", "none"),
        'I/O class of jobs: "idle", "best-effort" (lowest priority) or "none" (as the service).',
        reload=True,
    )
    io_rate_bytes: int = key(
        "0", SIZE, "What a job may read and write in a second; 0 for no limit.", reload=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """Whether mail can be found by its words."""

    enabled: bool = key(
        default=True, kind=SWITCH,
        help_text="Keep an index of the words of all mail; never in a sealed store.",
        reload=True,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionConfig:
    """One rule of how long mail is kept."""

    to: str | None = key(
        "", PATTERN, "Recipient: an address, @domain or a pattern with *; empty for any.", reload=True
    )
    sender: str | None = key(
        "", PATTERN, 'Envelope sender, written like to; "<>" is the null sender.', reload=True, name="from"
    )
    leg: str | None = key(
        "",
        choice_or_any(*Leg),
        'Where it was captured: "lmtp", "milter" or "import"; empty for any.',
        reload=True,
    )
    direction: str | None = key(
        "",
        choice_or_any("in", "out"),
        '"in" for mail to mailboxes here, "out" for mail that the milter saw submitted here; empty for any.',
        reload=True,
    )
    keep_us: int | None = key(
        "forever", KEEP, 'How long it is kept: "90d", "7y" (of 365 days) or "forever".', reload=True
    )

    @property
    def rule(self) -> Rule:
        """As the store has it."""
        return Rule(
            to=self.to, sender=self.sender, leg=self.leg, direction=self.direction, keep_us=self.keep_us
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImapConfig:
    """How commands look into the mailboxes as they are now."""

    server: Address = key(
        "127.0.0.1:143", ADDRESS, "The mailbox server's IMAP address: HOST:PORT.", reload=True
    )
    tls: str = key(
        "none",
        choice("none", "starttls", "tls"),
        '"none" (loopback only), "starttls" or "tls".',
        reload=True,
    )
    ca: Path | None = key(
        "",
        PATH_OR_NONE,
        "File with the certificates to trust for TLS; empty for those of the system.",
        reload=True,
    )
    master_user: str = key(
        "",
        TEXT,
        "Master user, who may log in for everybody; empty for each user's own password.",
        reload=True,
    )
    master_separator: str = key(
        "*", TEXT, "What stands between a user and the master user at login.", reload=True
    )
    passwords: Path | None = key(
        "",
        PATH_OR_NONE,
        "File with lines USER:PASSWORD, the master user's among them, or the users' own.",
        reload=True,
    )
    username: str = key(
        "%u",
        USER_FORMAT,
        "A recipient's IMAP login: %u is the address, %n its local part, %d its domain, without detail.",
        reload=True,
    )
    recipient_delimiter: str = key(
        "+",
        TEXT,
        "What begins the detail in an address, as in anna+lists@example.org; empty for none.",
        reload=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """What is written to standard error."""

    level: str = key(
        "info",
        choice("debug", "info", "warning", "error"),
        '"debug", "info", "warning" or "error".',
        reload=True,
    )
    format: str = key(
        "text", choice("text", "json"), '"text" for a terminal or the journal, "json" for a log collector.'
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessConfig:
    """Where heads go, which vouch for all that was recorded: to places that this host cannot write back."""

    every: Schedule = key("", SCHEDULE, "When the head is made and sent.", reload=True)
    key_file: Path | None = key(
        "", PATH_OR_NONE, "File with the key to sign heads; empty for unsigned.", reload=True, name="key"
    )
    file: Path | None = key("", PATH_OR_NONE, "File that holds the newest head; empty for none.", reload=True)
    syslog: bool = key(default=False, kind=SWITCH, help_text="Send each head to syslog, too.", reload=True)
    url: str = key("", URL, "http or https address that each head is posted to; empty for none.", reload=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillConfig:
    """How it is proven that restoring works."""

    recipient: str = key(
        "", MAILBOX, "Mailbox set aside for canaries, which drills send; empty for no canary.", reload=True
    )
    sender: str = key("", MAILBOX, "Envelope sender of canaries; empty for the null sender.", reload=True)
    via: Address | None = key(
        "",
        ADDRESS_OR_NONE,
        "Where canaries are handed in by SMTP, such as Postfix's HOST:PORT; empty for LMTP to [lmtp] listen.",
        reload=True,
    )
    sample: int = key(
        20, count(0, 100_000), "Deliveries that a drill puts back, drawn evenly over time.", reload=True
    )
    timeout_s: float = key("2m", DURATION, "How long a canary may take into the store.", reload=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaConfig:
    """One copy of the store elsewhere, shipped while it is written."""

    url: str = key("", REPLICA, "Where to: s3://bucket/prefix or file:///path; empty for nowhere.")
    interval_s: float = key(
        "5s", DURATION, "How often what was captured is shipped; nothing new, nothing sent.", reload=True
    )
    endpoint: str = key(
        "", URL, "Address of an S3 service other than AWS; http for this machine alone; empty for AWS."
    )
    region: str = key("", TEXT, "Region of the bucket; empty for AWS_REGION, or us-east-1.")
    path_style: bool = key(
        default=True, kind=SWITCH, help_text="Name the bucket in the path of a request, not in the host name."
    )
    credentials: Path | None = key(
        "",
        PATH_OR_NONE,
        "File with the lines access_key_id = … and secret_access_key = …; empty for AWS's environment.",
    )
    bandwidth_bytes: int = key("0", SIZE, "What may be sent in a second; 0 for no limit.", reload=True)
    lock_days: int = key(
        0,
        count(0, 36_500),
        "Days for which the bucket must lock what is new; tried at each start; 0 for none.",
    )
    delete: bool = key(
        default=False,
        kind=SWITCH,
        help_text="Remove what no reader needs any more from the replica, after each full round.",
        reload=True,
    )


_Section = (
    StoreConfig
    | LmtpConfig
    | MilterConfig
    | MetricsConfig
    | CaptureConfig
    | EncryptionConfig
    | SchedulerConfig
    | SearchConfig
    | RetentionConfig
    | ReplicaConfig
    | WitnessConfig
    | DrillConfig
    | ImapConfig
    | LogConfig
)
_SECTIONS: dict[str, type[_Section]] = {
    "store": StoreConfig,
    "lmtp": LmtpConfig,
    "milter": MilterConfig,
    "metrics": MetricsConfig,
    "capture": CaptureConfig,
    "encryption": EncryptionConfig,
    "scheduler": SchedulerConfig,
    "search": SearchConfig,
    "witness": WitnessConfig,
    "drill": DrillConfig,
    "imap": ImapConfig,
    "log": LogConfig,
}
_LISTS: dict[str, type[_Section]] = {"retention": RetentionConfig, "replica": ReplicaConfig}
"""sections of which there may be several, in an order that counts: `[[retention]]`"""
REPLICAS_MAX = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration. A front or endpoint whose section is absent is None and is not run."""

    store: StoreConfig = StoreConfig()
    lmtp: LmtpConfig | None = None
    milter: MilterConfig | None = None
    metrics: MetricsConfig | None = None
    capture: CaptureConfig = CaptureConfig()
    encryption: EncryptionConfig = EncryptionConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    search: SearchConfig = SearchConfig()
    witness: WitnessConfig = WitnessConfig()
    drill: DrillConfig = DrillConfig()
    imap: ImapConfig | None = None
    retention: tuple[RetentionConfig, ...] = ()
    replica: tuple[ReplicaConfig, ...] = ()
    log: LogConfig = LogConfig()

    @property
    def workers(self) -> int:
        """How many processes take mail."""
        return max(section.workers for section in (self.lmtp, self.milter) if section is not None)

    @property
    def spool_path(self) -> Path:
        """Where mail waits that went through without a copy."""
        return self.capture.spool or self.store.path / "spool"

    @property
    def rules(self) -> tuple[Rule, ...]:
        """How long mail is kept; without any rule for ever."""
        return tuple(section.rule for section in self.retention)

    @classmethod
    def load(cls, path: Path) -> Config:
        """The configuration in a file. Raises ConfigError."""
        try:
            text = path.read_text("utf-8")
        except OSError as exc:
            raise ConfigError(
                f"{path}: cannot be read: {exc.strerror}", "Name the file by --config or MAILKEEP_CONFIG."
            ) from exc
        except UnicodeDecodeError as exc:
            raise ConfigError(f"{path}: is not UTF-8 at byte {exc.start}", "Save the file as UTF-8.") from exc
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, source: str) -> Config:
        """The configuration in `text`; `source` names it in errors. Raises ConfigError."""
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as exc:
            raise ConfigError(f"{source}: is not TOML: {exc}") from exc
        sections: dict[str, Any] = {}
        for name, values in document.items():
            if name in _LISTS:
                sections[name] = _read_list(name, values, source)
                continue
            if name not in _SECTIONS:
                raise ConfigError(f"{source}: there is no {_as_written(name, values)}{_nearest(name)}")
            if not isinstance(values, dict):
                raise ConfigError(f"{source}: {name} is a section: write [{name}] and its keys below it")
            sections[name] = _read_section(name, f"[{name}]", values, source)
        config = cls(**sections)
        fault = next(_faults(config), None)
        if fault is not None:
            raise ConfigError(f"{source}: {fault}")
        return config

    def lines(self) -> Iterator[str]:
        """The effective configuration, a line for each key, for the log at start-up."""
        for name in _SECTIONS:
            section = getattr(self, name)
            if section is None:
                yield f"[{name}] is absent"
            else:
                yield from (f"[{name}] {line}" for line in _lines(section))
        for name in _LISTS:
            for number, section in enumerate(getattr(self, name), 1):
                yield f"[[{name}]] {number}: " + ", ".join(_lines(section))


def _lines(section: _Section) -> Iterator[str]:
    """Each key of a section with its value."""
    for field in fields(section):
        yield f"{name_of(field)} = {_as_toml(kind_of(field).show(getattr(section, field.name)))}"


def load_default(path: Path | None = None) -> Config:
    """The configuration in `path`, else in the file that MAILKEEP_CONFIG names, else in DEFAULT_PATH."""
    return Config.load(path or Path(os.environ.get("MAILKEEP_CONFIG") or DEFAULT_PATH))


class Key(NamedTuple):
    """One key as a person meets it; `default` is written as in the file."""

    section: str
    key: str
    default: str
    help: str


def all_keys() -> list[Key]:
    """Every key there is, in the order of the file; those of sections that may be repeated come last."""
    return [
        Key(name, name_of(field), _as_toml(field.metadata["text"]), field.metadata["help"])
        for name, section in (_SECTIONS | _LISTS).items()
        for field in fields(section)
    ]


def reloadable_keys() -> set[tuple[str, str]]:
    """The keys, as (section, key), that SIGHUP takes up without a restart."""
    return {
        (name, name_of(field))
        for name, section in (_SECTIONS | _LISTS).items()
        for field in fields(section)
        if field.metadata["reload"]
    }


def reloadable_changes(old: Config, new: Config) -> tuple[dict[str, Any], list[str]]:
    """What differs: new values by `section.key` that may be taken up now, and the names that need a restart.

    A section that comes or goes needs a restart and is named alone; a list of sections changes as a whole.
    """
    changes: dict[str, Any] = {}
    restart: list[str] = []
    for name, section in _SECTIONS.items():
        before, after = getattr(old, name), getattr(new, name)
        if before is None or after is None:
            if before != after and all(field.metadata["reload"] for field in fields(section)):
                changes[name] = after  # nobody holds it: whoever needs it looks when it does
            elif before != after:
                restart.append(name)
            continue
        for field in fields(section):
            value = getattr(after, field.name)
            if value == getattr(before, field.name):
                continue
            if field.metadata["reload"]:
                changes[f"{name}.{name_of(field)}"] = value
            else:
                restart.append(f"{name}.{name_of(field)}")
    for name in _LISTS:
        before, after = getattr(old, name), getattr(new, name)
        if before != after and _fixed(name, before) == _fixed(name, after):
            changes[name] = after
        elif before != after:
            restart.append(name)
    return changes, restart


def _fixed(name: str, sections: tuple[_Section, ...]) -> list[list[Any]]:
    """What of a list needs a restart to change."""
    fixed = [field.name for field in fields(_LISTS[name]) if not field.metadata["reload"]]
    return [[getattr(section, name) for name in fixed] for section in sections] if fixed else []


def _read_list(name: str, tables: object, source: str) -> tuple[_Section, ...]:
    if not isinstance(tables, list) or not all(isinstance(values, dict) for values in tables):
        raise ConfigError(
            f"{source}: {name} may be there several times: write [[{name}]] and its keys below it, for each"
        )
    return tuple(
        _read_section(name, f"[[{name}]] {number}", values, source) for number, values in enumerate(tables, 1)
    )


def _read_section(name: str, where: str, values: Mapping[str, Any], source: str) -> _Section:
    """`where` names the section in errors."""
    made = (_SECTIONS | _LISTS)[name]
    known = {name_of(field): field for field in fields(made)}
    read: dict[str, Any] = {}
    for written, value in values.items():
        if written not in known:
            raise ConfigError(f"{source}: {where} has no key {written}{_nearest_key(name, written)}")
        kind: Kind = kind_of(known[written])
        if type(value) is not kind.toml_type:  # isinstance would take true for a number
            raise ConfigError(
                f"{source}: {where} {written} = {_as_toml(value)}: write {kind.name}, such as {kind.example}"
            )
        try:
            read[known[written].name] = kind.read(value)
        except ValueError as exc:
            raise ConfigError(f"{source}: {where} {written}: {exc}") from exc
    return made(**read)


def _faults(config: Config) -> Iterator[str]:
    """Why these values, each good alone, would not work."""
    if config.lmtp is None and config.milter is None:
        yield "there is neither [lmtp] nor [milter], so no mail would be captured"
    if config.store.pack_size_bytes < PACK_SIZE_MIN_BYTES:
        yield f"[store] pack_size: {exact_size(config.store.pack_size_bytes)} is too little: 64KiB at least"
    if config.store.pack_size_bytes > PACK_SIZE_MAX_BYTES:
        yield f"[store] pack_size: {exact_size(config.store.pack_size_bytes)} is too much: 1GiB at most"
    if config.lmtp is not None:
        yield from _lmtp_faults(config.lmtp)
    if config.milter is not None and config.milter.commit_timeout_s >= POSTFIX_MILTER_TIMEOUT_S:
        # Past it Postfix defers the mail while we go on capturing it, and it is captured twice.
        yield "[milter] commit_timeout: it must be below 5m, Postfix's milter_content_timeout"
    if config.imap is not None:
        yield from _imap_faults(config.imap)
    elif config.scheduler.audit != Schedule():
        yield "[scheduler] audit: it needs [imap], which says how to look into the mailboxes"
    if config.drill.via is not None and (config.drill.via.is_unix or not config.drill.via.port):
        yield f"[drill] via: {config.drill.via} will not do, SMTP is spoken over TCP: write HOST:PORT"
    yield from _retention_faults(config.rules)
    yield from _replica_faults(config.replica)
    taken: dict[Address, str] = {}
    for name in ("lmtp", "milter", "metrics"):
        section = getattr(config, name)
        if section is None or _is_any_port(section.listen):
            continue
        if section.listen in taken:
            yield f"[{name}] listen: {section.listen} is taken by [{taken[section.listen]}]"
        taken[section.listen] = name


def _lmtp_faults(lmtp: LmtpConfig) -> Iterator[str]:
    for name, address in (("listen", lmtp.listen), ("downstream", lmtp.downstream)):
        if address.port == 25:
            yield f"[lmtp] {name}: {address} will not do, LMTP is never spoken on port 25 (RFC 2033 5)"
    if _is_any_port(lmtp.downstream):
        yield f"[lmtp] downstream: {lmtp.downstream} will not do, there is no port 0 to connect to"
    elif lmtp.downstream == lmtp.listen:
        yield f"[lmtp] downstream: {lmtp.downstream} is where we listen, so mail would go in a circle"
    for name, seconds in (
        ("delivery_timeout", lmtp.delivery_timeout_s),
        ("idle_timeout", lmtp.idle_timeout_s),
    ):
        if seconds >= POSTFIX_LMTP_TIMEOUT_S:
            # Past it Postfix takes the connection for dead and sends again what we are still delivering.
            yield f"[lmtp] {name}: it must be below 10m, Postfix's lmtp_data_done_timeout"
    if lmtp.connect_timeout_s >= lmtp.delivery_timeout_s:
        yield "[lmtp] connect_timeout: it must be below delivery_timeout"


def _imap_faults(imap: ImapConfig) -> Iterator[str]:
    if imap.server.is_unix:
        yield f"[imap] server: {imap.server} will not do, IMAP is asked over TCP: write HOST:PORT"
    elif imap.tls == "none" and imap.server.host not in LOOPBACK:
        yield f"[imap] tls: without it passwords would go to {imap.server} in the clear"


def _retention_faults(rules: tuple[Rule, ...]) -> Iterator[str]:
    for number, rule in enumerate(rules, 1):
        if rule.is_for_all and number < len(rules):
            yield f"[[retention]] {number}: it is for all mail, so that the rules after it would never count"
        if (rule.leg, rule.direction) in ((Leg.LMTP, "out"), (Leg.IMPORT, "in"), (Leg.IMPORT, "out")):
            yield f"[[retention]] {number}: no mail of leg {rule.leg} has the direction {rule.direction}"


def _replica_faults(replicas: tuple[ReplicaConfig, ...]) -> Iterator[str]:
    if len(replicas) > REPLICAS_MAX:
        yield f"[[replica]] {len(replicas)}: there may be {REPLICAS_MAX}"
    for number, replica in enumerate(replicas, 1):
        where = f"[[replica]] {number}"
        if replica.url and replica.url in [before.url for before in replicas[: number - 1]]:
            yield f"{where} url: {replica.url} stands there twice"
        if not replica.url.startswith("s3:") and (replica.endpoint or replica.lock_days):
            yield f"{where} url: endpoint and lock_days are for s3://bucket/prefix alone"
        host = urlsplit(replica.endpoint).hostname
        if replica.endpoint.startswith("http:") and host not in LOOPBACK:
            yield f"{where} endpoint: {replica.endpoint} would send mail in the clear: write https://"


def _is_any_port(address: Address) -> bool:
    return address.port == 0 and not address.is_unix


def _nearest(name: str) -> str:
    """A suggestion for a section that does not exist, or for a key that stands outside its section."""
    near = difflib.get_close_matches(name, [*_SECTIONS, *_LISTS], 1)
    return f"; did you mean {_written(near[0])}?" if near else _nearest_key("", name)


def _nearest_key(section: str, name: str) -> str:
    """A suggestion for a key that does not exist: of the same section first, then of the others."""
    own = [k.key for k in all_keys() if k.section == section]
    near = difflib.get_close_matches(name, own, 1)
    if near:
        return f"; did you mean {near[0]}?"
    others = {k.key: k.section for k in reversed(all_keys())}
    near = difflib.get_close_matches(name, others, 1)
    return f"; did you mean {near[0]} in {_written(others[near[0]])}?" if near else ""


def _written(section: str) -> str:
    return f"[[{section}]]" if section in _LISTS else f"[{section}]"


def _as_written(name: str, value: object) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return f"section [[{name}]]"
    return f"section [{name}]" if isinstance(value, dict) else f"key {name} outside the sections"


def _as_toml(value: object) -> str:
    """A value as the file has it, near enough to be found."""
    return json.dumps(value, default=str, ensure_ascii=False)
