"""The front's limits, what it tells to whoever counts, and the replies that are its own.

All own replies but those to wrong commands are 4xx: a fault of ours must never bounce mail (RFC 5321 4.2.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from store.records import Outcome

MIN_PACE_BYTES_S = 1000
"""What a client must send of a message in the long run: a tenth of the slowest line that mail is still sent
over, and the peer is on this host."""
STRETCH_BYTES = 32 << 20
"""More of a message than can be on the way in the sockets' buffers, 6 MB at most with Linux's defaults."""
QUEUED_REPLY_BYTES = 65_536
"""So much of replies is sent before more commands are looked at, and taken by the client before that."""
LINES_AT_ONCE = 500
"""So many commands are served before the other sessions have their turn: some milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontLimits:
    """Bounds of one front. The times stand below those of Postfix, so that it is told 451, not left alone."""

    max_connections: int = 100
    idle_timeout_s: float = 300.0
    """how long a client may send nothing where it is its turn"""
    delivery_timeout_s: float = 540.0
    """from the client's dot to the last reply; lmtp_data_done_timeout is 600 s"""
    connect_timeout_s: float = 30.0
    """to connect downstream and be greeted"""
    reply_timeout_s: float = 100.0
    """for each reply of the downstream, and for its and the store's taking in of data;
    lmtp_data_init_timeout is 120 s, lmtp_data_xfer_timeout 180 s"""
    max_recipients: int = 50_000
    """of one transaction, all are kept in memory; one more is told 452 and comes again"""
    command_line_bytes: int = 16_384
    """RFC 5321 4.5.3.1 asks for 512 and more with extensions; Dovecot takes 4096 of parameters"""


class FrontEvents:
    """What happens, for metrics. Override what you count; called in the event loop, so be quick."""

    def connections(self, change: int) -> None:
        """A connection came (+1) or went (-1)."""

    def in_flight(self, change: int) -> None:
        """A message came (+1) or got its last reply (-1)."""

    def received(self, size: int) -> None:
        """So many bytes of messages came in."""

    def answered(self, outcomes: Sequence[Outcome], downstream_s: float | None) -> None:
        """A message's final replies; `downstream_s` from its end to the last one, None if none was asked."""

    def suppressed(self, recipients: int) -> None:
        """So many recipients of a retry had a known 2xx and were answered with it."""

    def redelivered(self, recipients: int) -> None:
        """So many recipients of a retry, whose reply was never known, are delivered to, perhaps once more."""

    def downstream_failed(self) -> None:
        """The mailbox server could not be reached, was lost, or took too long; the client was told 451."""

    def fault(self) -> None:
        """An exception that nobody expected was answered with 451."""


TOO_MANY_CONNECTIONS = b"421 4.3.2 Too many connections\r\n"
SHUTTING_DOWN = b"421 4.3.2 Shutting down\r\n"
DOWNSTREAM_CHANGED = b"421 4.3.2 The mailbox server has changed, try again\r\n"
IDLE_TOO_LONG = b"421 4.4.2 Idle for too long\r\n"
OK = b"250 2.0.0 Ok\r\n"
BYE = b"221 2.0.0 Bye\r\n"
GO_AHEAD = b"354 End data with <CR><LF>.<CR><LF>\r\n"
NO_VRFY = b"252 2.5.2 Cannot VRFY, send some mail\r\n"
HELP = b"214 2.0.0 LHLO XFORWARD MAIL RCPT DATA RSET NOOP VRFY HELP QUIT\r\n"
NOT_SMTP = b"500 5.5.1 This is LMTP, say LHLO\r\n"
NO_LHLO = b"503 5.5.1 Say LHLO first\r\n"
NO_MAIL = b"503 5.5.1 Say MAIL first\r\n"
NESTED_MAIL = b"503 5.5.1 A transaction is open\r\n"
NO_RECIPIENTS = b"503 5.5.1 No valid recipients\r\n"
TOO_MANY_RECIPIENTS = b"452 4.5.3 Too many recipients\r\n"
NO_ARGUMENT = b"501 5.5.4 Takes no argument\r\n"
NO_HOSTNAME = b"501 5.5.4 Syntax: LHLO hostname\r\n"
LINE_TOO_LONG = b"500 5.5.2 Line too long\r\n"
INTERNAL_ERROR = b"451 4.3.0 Internal error\r\n"
NOT_KEPT = b"451 4.3.0 Message could not be kept, try again later\r\n"
STORE_FULL = b"451 4.3.1 Message could not be kept, storage is full\r\n"
OUT_OF_TIME = b"451 4.4.2 Delivery took too long, try again later\r\n"
