"""What a mailbox server can do (its LHLO reply), and what we may promise in its name.

We relay MAIL and RCPT as they come, so a parameter may only be offered upstream when the server behind offers
it too: Dovecot 2.3 answers 555, a bounce, to `SIZE=` or `SMTPUTF8` that it did not announce.
DSN is never offered (Postfix would leave delivery reports to us), nor are CHUNKING, STARTTLS, AUTH, XCLIENT.
"""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.lmtp.replies import Reply

# PIPELINING and ENHANCEDSTATUSCODES are ours to promise: RFC 2033 5 requires both, and we do the pipelining.
_OURS = (b"PIPELINING", b"ENHANCEDSTATUSCODES")
_MIRRORED = (b"8BITMIME", b"SMTPUTF8", b"SIZE")
_XFORWARD = b"XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The keywords of an LHLO reply in upper case, each with its parameters as they came."""

    keywords: dict[bytes, bytes]

    @classmethod
    def parse(cls, reply: Reply) -> Capabilities:
        """From an LHLO reply; its first line is a greeting and names none."""
        keywords: dict[bytes, bytes] = {}
        for line in reply.raw.splitlines()[1:]:
            keyword, _, parameters = line[4:].strip().partition(b" ")
            keywords[keyword.upper()] = parameters.strip()
        return cls(keywords)

    @property
    def pipelining(self) -> bool:
        """Whether commands may be sent without waiting for each reply (RFC 2920)."""
        return b"PIPELINING" in self.keywords

    @property
    def chunking(self) -> bool:
        """Whether the message may be sent with BDAT (RFC 3030)."""
        return b"CHUNKING" in self.keywords

    @property
    def mirrored(self) -> dict[bytes, bytes]:
        """What we offer upstream because this server offers it."""
        return {keyword: self.keywords[keyword] for keyword in _MIRRORED if keyword in self.keywords}

    def lhlo_reply(self, hostname: bytes) -> bytes:
        """Our own LHLO reply in front of this server."""
        mirrored = [b"%s %s" % pair if pair[1] else pair[0] for pair in self.mirrored.items()]
        lines = [hostname, *_OURS, *mirrored, _XFORWARD]
        return b"".join(b"250-%s\r\n" % line for line in lines[:-1]) + b"250 %s\r\n" % lines[-1]
