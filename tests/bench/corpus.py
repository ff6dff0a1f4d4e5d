"""Mail to measure with: real mail that lies beside the repository (or at MAILKEEP_CORPUS), else made-up mail.

As files in a directory with CRLF line ends, as a mail server takes and keeps them, so that every peer works
on the very same files. Other people's mail: only ever in a temporary directory.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

import zstandard

from tests.bench.capture import Mail
from tests.bench.stream import Stream

ARCHIVE = Path(__file__).resolve().parents[3] / "shared" / "corpus" / "everyday.tar.zst"
MADE_UP = 2000
_DATE = re.compile(rb"(?im)^date:[ \t]*([^\r\n]+)")
_ADDRESS = re.compile(rb"[\w.+-]{1,60}@[\w.-]{1,60}")
_FROM = re.compile(rb"(?im)^from:([^\r\n]+)")
_TO = re.compile(rb"(?im)^(?:delivered-to|x-original-to|to):([^\r\n]+)")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Files under `root`, their names in the order of their Date fields."""

    root: Path
    names: list[str]
    size: int
    title: str

    def messages(self) -> Iterator[bytes]:
        """Read from the files as they are asked for."""
        for name in self.names:
            yield (self.root / name).read_bytes()

    def mails(self) -> Iterator[Mail]:
        """The same as transactions: envelope and queue id as a mail server would have them."""
        for number, message in enumerate(self.messages()):
            yield as_mail(number, message)


def as_mail(number: int, message: bytes) -> Mail:
    """A transaction for a message."""
    header = message[:8192]

    def address(field: re.Pattern[bytes]) -> bytes:
        found = field.search(header)
        found = _ADDRESS.search(found[1]) if found else None
        return found[0] if found else b"u@example.org"

    queue_id = b"4%014X" % ((number + 1) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFF)
    return Mail(message, address(_FROM), (address(_TO),), queue_id)


def prepare(where: Path) -> Corpus:
    """Put the corpus into the directory `where`, which must not exist."""
    archive = Path(os.environ.get("MAILKEEP_CORPUS", ARCHIVE))
    if archive.exists():
        kind, files = archive.name, _unpacked(archive)
    else:
        print(f"\nNO REAL MAIL: {archive} is not here; MADE-UP MAIL instead, WHICH SAYS LITTLE ABOUT SIZES")
        kind, files = "made-up mail", _made_up()
    dated = []
    for name, data in files:
        message = re.sub(rb"(?<!\r)\n", b"\r\n", data)
        path = where / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(message)
        dated.append((_date(message), name, len(message)))
    dated.sort()
    size = sum(length for _, _, length in dated)
    title = f"{kind}, {len(dated)} messages, {size / 1e6:.1f} MB with CRLF line ends, in order of date"
    return Corpus(where, [name for _, name, _ in dated], size, title)


def _unpacked(archive: Path) -> Iterator[tuple[str, bytes]]:
    with (
        archive.open("rb") as packed,
        zstandard.ZstdDecompressor().stream_reader(packed) as plain,
        tarfile.open(fileobj=io.BufferedReader(plain), mode="r|") as files,
    ):
        for member in files:
            if member.isfile() and (file := files.extractfile(member)):
                parts = [part for part in Path(member.name).parts if part not in {"/", ".."}]
                yield str(Path(*parts)), file.read()


def _made_up() -> Iterator[tuple[str, bytes]]:
    for number, mail in enumerate(Stream(5, divisor=4).take(MADE_UP)):
        yield f"made-up/{number:05}.eml", mail.message


def _date(message: bytes) -> float:
    """Seconds since 1970; 0 when there is no date to be understood."""
    found = _DATE.search(message[:65536])
    try:
        return max(parsedate_to_datetime(found[1].decode("ascii")).timestamp(), 0.0) if found else 0.0
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
