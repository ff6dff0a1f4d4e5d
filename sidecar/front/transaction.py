"""What one LMTP transaction is made of, from MAIL on."""

from __future__ import annotations

from aiosmtpd.smtp import Envelope as AiosmtpdEnvelope

from sidecar.downstream import Downstream
from sidecar.lmtp import Path
from store.records import Envelope, Recipient


class Transaction(AiosmtpdEnvelope):
    """The envelope of a connection; open between MAIL and the end of DATA or RSET.

    `fault` is the 451 that all of it is answered with once our side of it has failed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mail_line = b""
        self.sender = Path(b"", b"")
        self.accepted: list[Recipient] = []
        self.accepted_lines: list[bytes] = []
        self.asked = 0
        self.mail_accepted = False
        self.fault: bytes | None = None
        self.downstream: Downstream | None = None

    @property
    def is_open(self) -> bool:
        """Whether MAIL was said and not refused."""
        return bool(self.mail_line)

    def record(self) -> Envelope:
        """The envelope as it is kept: recipients as accepted, in their order, duplicates included."""
        return Envelope(self.sender.address, tuple(self.accepted), self.sender.parameters)
