"""Command lines, cut into verb, argument, path and attributes without changing a byte of them.

An address is whatever stands between the angle brackets: quoted local parts, source routes and raw UTF-8
(RFC 6531) are kept as they are. Whether an address is any good is for the mailbox server to say.
What cannot be cut is a `CommandError`, which carries the reply to give.
"""

from __future__ import annotations

import re
from typing import NamedTuple

XFORWARD_NAMES = frozenset({"NAME", "ADDR", "PORT", "PROTO", "HELO", "IDENT", "SOURCE"})

# A path ends at the first ">" outside of quotes; inside quotes a backslash takes the next byte with it.
_QUOTED_PATH = re.compile(rb'<((?:[^">]|"(?:[^"\\]|\\.)*")*)>', re.DOTALL)
_XTEXT_BYTE = re.compile(rb"\+([0-9A-Fa-f]{2})")


class CommandError(Exception):
    """A command that cannot be understood; `reply` is the answer to it."""

    def __init__(self, reply: bytes) -> None:
        super().__init__(reply.decode("ascii").rstrip())
        self.reply = reply


UNKNOWN = b"500 5.5.2 Command not recognized\r\n"
BAD_BYTES = b"501 5.5.2 Command contains a NUL or a bare CR\r\n"
BAD_PATH = b"501 5.5.4 Syntax: %s<address> [parameters]\r\n"
BAD_XFORWARD = b"501 5.5.4 Syntax: XFORWARD attribute=value...\r\n"


class Command(NamedTuple):
    """A command line: the verb in upper case, and the rest as it came."""

    verb: bytes
    argument: bytes


class Path(NamedTuple):
    """What MAIL FROM or RCPT TO names: the address without its angle brackets, and the ESMTP parameters."""

    address: bytes
    parameters: bytes


def parse_command(line: bytes) -> Command:
    """Cut a line (without its line end) after the verb. Raises CommandError.

    NUL and bare CR are refused here: a relayed line must not be two lines to anybody downstream.
    """
    if b"\r" in line or b"\0" in line:
        raise CommandError(BAD_BYTES)
    verb, _, argument = line.partition(b" ")
    if not verb.isalpha():
        raise CommandError(UNKNOWN)
    return Command(verb.upper(), argument.strip(b" \t"))


def parse_path(argument: bytes, keyword: bytes) -> Path:
    """The path in a MAIL (`keyword` FROM:) or RCPT (TO:) argument. Raises CommandError.

    >>> parse_path(b'FROM:<"a b>"@example.org> SIZE=10', b"FROM:")
    Path(address=b'"a b>"@example.org', parameters=b'SIZE=10')
    """
    start = len(keyword)
    if argument[:start].upper() != keyword:
        raise CommandError(BAD_PATH % keyword)
    rest = argument[start:].lstrip(b" \t")
    end = rest.find(b">")
    if not rest.startswith(b"<") or end < 0:
        raise CommandError(BAD_PATH % keyword)
    if b'"' in rest[:end]:
        match = _QUOTED_PATH.match(rest)
        if match is None:
            raise CommandError(BAD_PATH % keyword)
        end = match.end() - 1
    parameters = rest[end + 1 :]
    if parameters and parameters[:1] not in {b" ", b"\t"}:
        raise CommandError(BAD_PATH % keyword)
    return Path(rest[1:end], parameters.strip(b" \t"))


def parse_xforward(argument: bytes) -> dict[str, bytes]:
    """The attributes of an XFORWARD command, decoded from xtext (RFC 3461 4). Raises CommandError.

    `[UNAVAILABLE]` means that the client does not know, and is left out; `[TEMPUNAVAIL]` likewise.
    """
    attributes: dict[str, bytes] = {}
    for word in argument.split():
        name, equals, value = word.partition(b"=")
        key = name.upper().decode("ascii", "replace")
        if not equals or key not in XFORWARD_NAMES:
            raise CommandError(BAD_XFORWARD)
        if value.upper() not in {b"[UNAVAILABLE]", b"[TEMPUNAVAIL]"}:
            attributes[key] = _XTEXT_BYTE.sub(lambda match: bytes([int(match[1], 16)]), value)
    if not argument:
        raise CommandError(BAD_XFORWARD)
    return attributes
