"""The macros that we ask the MTA for, by stage, and the names under which they are kept.

What a milter asks for replaces the MTA's own list, and Postfix sends `{client_addr}` and its kin to none that
does not ask. Two rules made the table. `i`, the queue id, is not there yet at MAIL nor at the first RCPT of
an SMTP session: end-of-message is where it counts. And end-of-message is run by cleanup(8), which knows less
than smtpd(8): so who logged in is asked at MAIL, and where the mail came from at the connection.

libmilter keeps a stage's old values when the MTA has none to send; `j`, which always has one, stands at
MAIL so that no message is taken for one of whoever was logged in before.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType


class Stage(enum.IntEnum):
    """The events that carry macros, by libmilter's numbers (SMFIM_*)."""

    CONNECT = 0
    MAIL = 2
    RCPT = 3
    END_OF_MESSAGE = 5


QUEUE_ID = "i"

MACROS: Mapping[Stage, tuple[str, ...]] = MappingProxyType(
    {
        Stage.CONNECT: ("j", "{daemon_name}", "{daemon_addr}", "{daemon_port}"),
        Stage.MAIL: ("j", "{auth_type}", "{auth_authen}", "{auth_author}"),
        Stage.RCPT: (QUEUE_ID,),  # nothing is read there: one short macro in place of three longer ones
        Stage.END_OF_MESSAGE: (QUEUE_ID, "{client_addr}", "{client_name}", "{client_port}"),
    }
)


def attribute_name(macro: str) -> str:
    """`{client_addr}` -> `client_addr`: the name in a delivery's attributes."""
    return macro.strip("{}").lower()
