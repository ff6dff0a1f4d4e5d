"""What one LMTP transaction is made of, from MAIL on."""

from __future__ import annotations

from aiosmtpd.smtp import Envelope as AiosmtpdEnvelope

from sidecar.downstream import Downstream
from sidecar.lmtp import Path, Reply
from store.records import Envelope, Recipient


class Transaction(AiosmtpdEnvelope):
    """The envelope of a connection; open between MAIL and the end of DATA or RSET.

    `recipients` are all that were asked for, in their order and with duplicates; `accepted` has the places of
    those that the mailbox server took, `refusals` its replies to the others. `fault` is the 451 that all
    of it is answered with once our side of it has failed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mail_line = b""
        self.sender = Path(b"", b"")
        self.recipients: list[Recipient] = []
        self.lines: list[bytes] = []
        self.accepted: list[int] = []
        self.refusals: list[tuple[int, bytes]] = []
        self.asked = 0
        self.mail_accepted = False
        self.fault: bytes | None = None
        self.downstream: Downstream | None = None

    @property
    def is_open(self) -> bool:
        """Whether MAIL was said and not refused."""
        return bool(self.mail_line)

    def answered(self, line: bytes, recipient: Recipient, reply: Reply) -> None:
        """The mailbox server has answered a RCPT."""
        if reply.positive and self.mail_accepted:
            self.accepted.append(len(self.recipients))
        else:
            self.refusals.append((len(self.recipients), reply.raw))
        self.recipients.append(recipient)
        self.lines.append(line)

    def record(self) -> Envelope:
        """The envelope as it is kept, refused recipients included."""
        return Envelope(self.sender.address, tuple(self.recipients), self.sender.parameters)
