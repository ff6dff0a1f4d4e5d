"""How one configuration key is declared, read and shown.

A key is a dataclass field; `key` gives it its default as written in the file, its kind (text, size,
duration …), one sentence of help, and whether SIGHUP takes it up. Knows nothing of which keys there are.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any

from sidecar.portion import Portion
from sidecar.scheduler.schedule import Schedule
from sidecar.scheduler.window import Window
from sidecar.units import DURATION_EXAMPLES, Address, exact_duration, exact_size, parse_duration, parse_size
from store.sealing import shown


@dataclass(frozen=True, slots=True)
class Kind:
    """How a value is written: what TOML gives, what we make of it, and back; the suffix names its unit."""

    name: str
    example: str
    read: Callable[[Any], Any]
    show: Callable[[Any], str | int | list[str]] = str
    toml_type: type = str
    suffix: str = ""


def _read_mode(text: str) -> int:
    if not re.fullmatch("0?[0-7]{3}", text):
        raise ValueError(f'{text!r} is not an octal file mode: write "0660"')
    return int(text, 8)


def _read_path(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or "\0" in text:
        raise ValueError(f"{text!r} is not an absolute path: it starts with /")
    return path


def _show_path(path: Path | None) -> str:
    return str(path or "")


def _read_stream(text: str) -> str:
    # It becomes a directory's name, on this machine and on others.
    if not re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]{0,62})?", text):
        raise ValueError(f"{text!r} is not a name: write letters, digits, dots, hyphens and underscores")
    return text


def _positive_duration(text: str) -> float:
    seconds = parse_duration(text)
    if seconds == 0:
        raise ValueError(f"{text!r} is no time at all: write {DURATION_EXAMPLES}")
    return seconds


def _read_pattern(text: str) -> str | None:
    if not text:
        return None
    if text.split() != [text] or not ("@" in text or "*" in text or text == "<>"):
        raise ValueError(f"{text!r} is no pattern: write anna@example.org, @example.org or *@*.example.org")
    return text


def _read_keep(text: str) -> int | None:
    if text == "forever":
        return None
    try:
        return round(_positive_duration(text) * 1_000_000)
    except ValueError as exc:
        raise ValueError(f"{text!r} is not how long to keep mail: write 90d, 7y or forever") from exc


def _read_url(text: str) -> str:
    if text and not re.fullmatch(r"https?://[^\s/]+\S*", text):
        raise ValueError(f"{text!r} is not an address: write https://witness.example.org/heads")
    return text


def _read_replica(text: str) -> str:
    if text and not re.fullmatch(r"s3://[A-Za-z0-9][A-Za-z0-9._-]{1,62}(/[^\s?#]*)?|file:///[^\s?#]+", text):
        raise ValueError(f"{text!r} is no replica: write s3://bucket/prefix or file:///mnt/nas/mx1")
    return text


def _read_user_format(text: str) -> str:
    if re.search("%[^und%]|%$", text.replace("%%", "")):
        raise ValueError(f"{text!r} has a % that is none of %u, %n, %d and %%")
    if not re.search("%[un]", text.replace("%%", "")):
        raise ValueError(f"{text!r} would be one user for everybody: write %u or %n")
    return text


def count(low: int, high: int) -> Kind:
    """A whole number within bounds."""

    def read(number: int) -> int:
        if not low <= number <= high:
            raise ValueError(f"{number} is not from {low} to {high}")
        return number

    return Kind(f"a whole number from {low} to {high}", str(low), read, int, int)


def choice(*choices: str) -> Kind:
    """One of a few words."""

    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is none of {', '.join(choices)}")
        return text

    return Kind("one of " + ", ".join(choices), f'"{choices[0]}"', read)


def choice_or_any(*choices: str) -> Kind:
    """One of a few words, or nothing for any."""
    word = choice(*choices)
    return Kind(
        word.name, word.example, lambda text: word.read(text) if text else None, lambda value: value or ""
    )


def _read_mailbox(text: str) -> str:
    if text and (not re.fullmatch(r"[^\s<>\\]+@[^\s<>\\@]+", text) or not text.isprintable()):
        raise ValueError(f"{text!r} is not one mail address: write drill@example.org")
    return text


def _read_recipients(texts: list[Any]) -> tuple[str, ...]:
    for text in texts:
        if not isinstance(text, str) or not re.fullmatch("age1[0-9a-z]{58}", text.strip()):
            raise ValueError(
                f"{shown(str(text))} is no age public key: write age1…, as `mailkeep keygen` prints it"
            )
    return tuple(dict.fromkeys(text.strip() for text in texts))


TEXT = Kind("text", '"postfix"', str)
NAME = Kind("a name", '"mx1"', _read_stream)
PATH = Kind("a path", '"/var/lib/mailkeep"', _read_path)
PATH_OR_NONE = Kind(
    "a path", '"/var/spool/mailkeep"', lambda text: _read_path(text) if text else None, _show_path
)
ADDRESS = Kind("an address", '"127.0.0.1:2424" or "unix:/run/mailkeep/lmtp.sock"', Address.parse)
ADDRESS_OR_NONE = Kind(
    "an address",
    '"127.0.0.1:25"',
    lambda text: Address.parse(text) if text else None,
    lambda address: str(address or ""),
)
MAILBOX = Kind("a mail address", '"drill@example.org"', _read_mailbox)
DURATION = Kind("a duration", '"30s", "5m" or "1h30m"', _positive_duration, exact_duration, suffix="_s")
SIZE = Kind("a size", '"64MiB" or "1GiB"', parse_size, exact_size, suffix="_bytes")
PORTION = Kind("a size or a share", '"256MiB" or "5%"', Portion.parse)
SCHEDULE = Kind(
    "a schedule", '"30 3 * * *", "@daily" or "every 6h"', Schedule.parse, lambda schedule: str(schedule.text)
)
WINDOW = Kind("a window of hours", '"22:00-06:00"', Window.parse, lambda window: str(window.text))
PATTERN = Kind("an address or a pattern", '"@example.org"', _read_pattern, lambda value: value or "")
KEEP = Kind(
    "how long to keep mail",
    '"90d", "7y" or "forever"',
    _read_keep,
    lambda keep_us: "forever" if keep_us is None else exact_duration(keep_us / 1_000_000),
    suffix="_us",
)
RECIPIENTS = Kind("a list of age public keys", '["age1…"]', _read_recipients, list, list)
SWITCH = Kind("true or false", "true", bool, bool, bool)
REPLICA = Kind("an address", '"s3://mail-backup/mx1"', _read_replica)
URL = Kind("an address", '"https://witness.example.org/heads"', _read_url)
USER_FORMAT = Kind("a format", '"%u" or "%n"', _read_user_format)
MODE = Kind("an octal file mode", '"0660"', _read_mode, lambda mode: f"{mode:04o}")


def key(
    default: str | int | list[str], kind: Kind, help_text: str, *, reload: bool = False, name: str = ""
) -> Any:
    """The dataclass field of a key whose default is written as in the file; `name` is the key's in the file
    where Python has no such name."""
    metadata = {"kind": kind, "text": default, "help": help_text, "reload": reload, "name": name}
    return dataclasses.field(default=kind.read(default), metadata=metadata)


def name_of(field: Field[Any]) -> str:
    """A key's name in the file, where the unit stands in the value and not in the name."""
    return field.metadata["name"] or field.name.removesuffix(kind_of(field).suffix)


def kind_of(field: Field[Any]) -> Kind:
    """How a key's value is written."""
    kind: Kind = field.metadata["kind"]
    return kind
