"""Whose mailbox an address is: from a recipient to the name for the IMAP login. Pure."""

from __future__ import annotations

import re

from sidecar.sections import ImapConfig

_QUOTED = re.compile(r"\\(.)", re.DOTALL)


def imap_user(recipient: bytes, imap: ImapConfig) -> str:
    """The login of a recipient's mailbox: the detail dropped (`anna+lists@` is `anna@`), then as `[imap]
    username` says. In lower case, as the index has addresses, and Dovecot and Cyrus have users. Bytes that
    are no UTF-8 become U+FFFD: no server has such a user."""
    local, at, domain = recipient.decode("utf-8", "replace").lower().rpartition("@")
    if not at:
        local, domain = domain, ""
    if len(local) > 1 and local.startswith('"') and local.endswith('"'):  # RFC 5321 4.1.2
        local = _QUOTED.sub(r"\1", local[1:-1])
    local = _without_detail(local, imap.recipient_delimiter)
    parts = {"u": local + at + domain, "n": local, "d": domain, "%": "%"}
    return re.sub("%(.)", lambda found: parts[found[1]], imap.username)


def _without_detail(local: str, delimiters: str) -> str:
    """Up to the first of the delimiters: Postfix' recipient_delimiter may be several characters, each of
    which is one. One that comes first leaves nothing before it, and is part of the name."""
    ends = [at for at in (local.find(sign, 1) for sign in delimiters) if at > 0]
    return local[: min(ends)] if ends else local
