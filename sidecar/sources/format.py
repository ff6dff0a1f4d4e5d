"""The kinds of sources, by name."""

from __future__ import annotations

import enum


class Format(enum.StrEnum):
    """What `--format` may say."""

    AUTO = "auto"
    MAILDIR = "maildir"
    MBOX = "mbox"
    EML = "eml"
    IMAP = "imap"
