# ruff: noqa: RUF009 - key() makes a dataclass field, which is what a default should be
"""The sections of the configuration: what there is to configure.

A key is a field: its name, default, unit, one-sentence help and whether SIGHUP takes it up stand together,
and deploy/mailkeep.toml and the README are tested against them.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path

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
    PORTION,
    RECIPIENTS,
    REPLICA,
    SCHEDULE,
    SIZE,
    SWITCH,
    TEXT,
    URL,
    USER_FORMAT,
    WINDOW,
    choice,
    choice_or_any,
    count,
    key,
)
from sidecar.portion import Portion
from sidecar.scheduler.schedule import Schedule
from sidecar.scheduler.window import Window
from sidecar.units import Address
from store.layout import STREAM_NAME_BYTES
from store.records import Leg
from store.retention import Rule


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
    scrub: Schedule = key(
        "30 4 * * *", SCHEDULE, "When replicas are looked over, and mended from the store.", reload=True
    )
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
    scrub_read: Portion = key(
        "256MiB",
        PORTION,
        "What each scrub reads back and compares, in turn: a size, a share such as 5%, or 0.",
        reload=True,
    )


Section = (
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
