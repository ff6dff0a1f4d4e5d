"""Logging to standard error: for a terminal, for the journal, or as JSON lines for a collector.

One event is one line whatever a client has put into it, and no line is long enough to carry a message:
bodies are never logged, and control characters from the wire are escaped, so that nobody writes our log.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TextIO

TEXT_MAX_CHARS = 2000
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def set_up(level: str, format_name: str, stream: TextIO | None = None) -> None:
    """Send all logging to `stream` (default: standard error). `level` and `format_name` are as in [log]."""
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    if format_name == "json":
        handler.setFormatter(_JsonFormatter())
    elif _is_journal(stream, os.environ):
        handler.setFormatter(_JournalFormatter())
    else:
        handler.setFormatter(_TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)


def set_level(level: str) -> None:
    """Take up another level, e.g. at a reload."""
    logging.getLogger().setLevel(level.upper())
    # aiosmtpd tells each command at INFO, and at DEBUG what the client has sent.
    logging.getLogger("mail").setLevel(logging.WARNING)


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether `stream` itself goes to the journal; JOURNAL_STREAM alone is inherited by children too."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _message(record: logging.LogRecord) -> str:
    text = record.getMessage()
    if len(text) > TEXT_MAX_CHARS:
        text = f"{text[:TEXT_MAX_CHARS]}... ({len(text)} characters)"
    return text.translate(_ESCAPES)


class _TextFormatter(logging.Formatter):
    """`12:30:00 warning sidecar.lmtp: text`, and a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        return "\n".join(
            [f"{clock} {record.levelname.lower()} {record.name}: {_message(record)}", *self._trace(record)]
        )

    def _trace(self, record: logging.LogRecord) -> list[str]:
        if not record.exc_info:
            return []
        lines = self.formatException(record.exc_info).split("\n")
        return [line[:TEXT_MAX_CHARS].translate(_ESCAPES) for line in lines]


class _JournalFormatter(_TextFormatter):
    """Each line with its priority; the journal has the time and the unit's name already."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        lines = [f"{record.name}: {_message(record)}", *self._trace(record)]
        return "\n".join(f"<{priority}>{line}" for line in lines)


class _JsonFormatter(_TextFormatter):
    """One object a line: time, level, logger, message, and error with its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if record.exc_info:
            event["error"] = "\n".join(self._trace(record))
        # A lone surrogate (a byte that was no UTF-8) is no valid JSON text to many a collector.
        return json.dumps(event, ensure_ascii=False).encode("utf-8", "replace").decode()
