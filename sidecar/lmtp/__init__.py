"""LMTP as bytes: commands, replies, capabilities and the dot, for the front and for the client alike.

Nothing here does I/O, waits or knows a clock; every reader may be fed in pieces cut anywhere.
Mail is never parsed: bytes in, the same bytes out.
"""

from sidecar.lmtp.capabilities import Capabilities
from sidecar.lmtp.commands import Command, CommandError, Path, parse_command, parse_path, parse_xforward
from sidecar.lmtp.dot import DotReader, DotWriter
from sidecar.lmtp.replies import Reply, ReplyError, ReplyParser

__all__ = [
    "Capabilities",
    "Command",
    "CommandError",
    "DotReader",
    "DotWriter",
    "Path",
    "Reply",
    "ReplyError",
    "ReplyParser",
    "parse_command",
    "parse_path",
    "parse_xforward",
]
