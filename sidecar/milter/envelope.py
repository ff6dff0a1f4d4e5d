"""The arguments of MAIL and RCPT, as a milter gets them.

SMTP clients' addresses come with angle brackets, those of sendmail(1) without; what is between is kept as
it was typed, SMTPUTF8 and odd bytes included. Recipients are those of the client: Postfix shows them before
aliases, `always_bcc` and the recipients that other milters add, so they say to whom mail was *offered*.
"""

from __future__ import annotations

from collections.abc import Sequence


def parse_path(arguments: Sequence[bytes]) -> tuple[bytes, bytes]:
    """The address without angle brackets (empty: the null sender), and its ESMTP parameters in one string.

    Raises ValueError when there is no argument at all (RFC 5321 section 4.1.1.2 has at least the path).
    """
    address, *params = arguments
    if address.startswith(b"<") and address.endswith(b">"):
        address = address[1:-1]
    return address, b" ".join(params)
