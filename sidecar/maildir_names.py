"""What names say in a Maildir, as Dovecot writes them: a message's flags, and the name of a folder.

Letters and keywords are Dovecot's (https://doc.dovecot.org, "Maildir", "IMAP keywords").
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

FLAGS = {
    "D": "\\Draft",
    "F": "\\Flagged",
    "P": "$Forwarded",
    "R": "\\Answered",
    "S": "\\Seen",
    "T": "\\Deleted",
}
"""letter in a message's name -> flag as IMAP has it"""
_KEYWORD = re.compile(r"([0-9]+) (\S+)")


def flags_of(name: str, keywords: dict[str, str]) -> tuple[str, ...]:
    """The flags in a message's name, with the folder's own `keywords`."""
    letters = name.partition(":2,")[2].partition(",")[0]
    found = (FLAGS.get(letter) or keywords.get(letter) for letter in letters)
    return tuple(flag for flag in found if flag)


def keywords_of(folder: Path) -> dict[str, str]:
    """Dovecot's names for the letters `a` to `z` of a folder: lines `0 $Label1` in dovecot-keywords."""
    text = ""
    with contextlib.suppress(OSError):
        text = (folder / "dovecot-keywords").read_text("utf-8", "replace")
    lines = filter(None, map(_KEYWORD.fullmatch, text.splitlines()))
    return {chr(ord("a") + int(line[1])): line[2] for line in lines if int(line[1]) < 26}


def folder_name(name: str) -> str:
    """A folder's name from the modified UTF-7 of RFC 3501 5.1.3; as it is if it is none."""
    if not name.isascii():
        return name
    from imapclient.imap_utf7 import decode  # the package takes a while, and exporting needs none of it

    try:
        return str(decode(name.encode()))
    except (UnicodeDecodeError, ValueError):
        return name
