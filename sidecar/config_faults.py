"""Values of the configuration that are good alone and do not work together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sidecar.scheduler.schedule import Schedule
from sidecar.sections import ImapConfig, LmtpConfig, ReplicaConfig
from sidecar.units import Address, exact_size
from store.loopback import LOOPBACK
from store.records import Leg
from store.retention import Rule

if TYPE_CHECKING:
    from sidecar.config import Config

POSTFIX_LMTP_TIMEOUT_S = 600
POSTFIX_MILTER_TIMEOUT_S = 300
PACK_SIZE_MIN_BYTES = 64 * 1024
PACK_SIZE_MAX_BYTES = 1 << 30
REPLICAS_MAX = 8


def faults(config: Config) -> Iterator[str]:
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
