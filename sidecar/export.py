"""Messages out of the store into files that other programs read: a folder of .eml, an mbox, or a Maildir.

Each message is verified as it is written and gets its place only when it is whole and on disk. One that
fails is told of and the others go on. Nothing that exists is overwritten. Memory does not grow with the
size or the number of messages. Only Maildir and mbox change bytes: they want lines that end in LF.
"""

from __future__ import annotations

import contextlib
import enum
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from sidecar.maildir_names import FLAGS
from store.deliveries import StoredDelivery
from store.errors import DamagedError, NotFoundError
from store.files import sync_directory
from store.fleet import Archive
from store.records import Delivery, Leg

_FROM_LINE = re.compile(rb"(\n>*)(?=From )")
_FROM_START = re.compile(rb">*From ")
_FROM_BEGUN = re.compile(rb">*(F|Fr|Fro|From)?")

_LETTERS = {flag.lower(): letter for letter, flag in FLAGS.items()}


class Format(enum.StrEnum):
    """What to write."""

    EML = "eml"
    MBOX = "mbox"
    MAILDIR = "maildir"


@dataclass(slots=True)
class Exported:
    """What came of it so far: messages written, bytes of them as captured, messages that failed."""

    messages: int = 0
    message_bytes: int = 0
    failed: int = 0


Failed = Callable[[Delivery, Exception], None]
_Put = Callable[[Delivery, Iterator[bytes]], None]


def export(
    store: Archive,
    deliveries: Iterable[StoredDelivery],
    format_: Format,
    output: Path,
    *,
    crlf: bool = False,
    failed: Failed,
    progress: Callable[[Exported], None] = lambda _exported: None,
) -> Exported:
    """Write all of `deliveries` to `output`: a folder (made if new), or for mbox a new file.

    `crlf` keeps CRLF in a Maildir. A message that is damaged or whose file exists goes to `failed`; anything
    else (`OSError`, `StoreError`) ends the export.
    """
    exported = Exported()
    with _opened(format_, output, crlf=crlf) as put:
        for stored in store.coming(deliveries, lambda stored: stored.delivery.content):
            delivery = stored.delivery
            try:
                put(delivery, store.read(delivery.content))
            except (DamagedError, NotFoundError, FileExistsError) as exc:
                exported.failed += 1
                failed(delivery, exc)
            else:
                exported.messages += 1
                exported.message_bytes += delivery.size
            progress(exported)
    return exported


@contextlib.contextmanager
def _opened(format_: Format, output: Path, *, crlf: bool) -> Iterator[_Put]:
    if format_ is Format.MBOX:
        with output.open("xb") as file:
            yield lambda delivery, pieces: _append_to_mbox(file, delivery, pieces)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(output.parent)
        return
    maildir = format_ is Format.MAILDIR
    folders = [output / name for name in ("tmp", "new", "cur")] if maildir else [output]
    for folder in folders:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if maildir:
        tmp, new, cur = folders
        host = re.sub(r"[/:\s]", "_", socket.gethostname())

        def put(delivery: Delivery, pieces: Iterator[bytes]) -> None:
            name, letters = _maildir_name(delivery, host), _letters(delivery)
            final = cur / f"{name}:2,{letters}" if letters else new / name
            _write_file(tmp, final, delivery, pieces if crlf else with_lf(pieces))

        yield put
        sync_directory(new)
        sync_directory(cur)
    else:
        yield lambda delivery, pieces: _write_file(output, output / eml_name(delivery), delivery, pieces)
        sync_directory(output)


def eml_name(delivery: Delivery) -> str:
    """The time in UTC and the abbreviated id, as in `20260331T120000Z-3f2a91c07b.eml`."""
    return f"{_moment(delivery):%Y%m%dT%H%M%SZ}-{delivery.id.hex()[:10]}.eml"


def _maildir_name(delivery: Delivery, host: str) -> str:
    # Unique by the delivery, and the same again: a message is not put twice into a folder nobody has read.
    seconds, microseconds = divmod(delivery.time_us, 1_000_000)
    return f"{seconds}.M{microseconds:06}Q{delivery.id.hex()}.{host}"


def _letters(delivery: Delivery) -> str:
    """The flags that an import kept, as a Maildir has them; keywords need a list that each server has its own
    way of, and stay behind."""
    if delivery.leg != Leg.IMPORT:
        return ""
    flags = delivery.attributes.get("flags", b"").decode("utf-8", "replace").lower().split()
    return "".join(sorted({letter for flag, letter in _LETTERS.items() if flag in flags}))


def _moment(delivery: Delivery) -> datetime:
    return datetime.fromtimestamp(delivery.time_us // 1_000_000, UTC)


def _write_file(folder: Path, final: Path, delivery: Delivery, pieces: Iterator[bytes]) -> None:
    """A whole, synced file or none. It bears the time of capture, which Maildir readers take as received."""
    if final.exists():
        raise FileExistsError(f"{final} exists")
    unfinished = folder / f".{final.name}.{os.getpid()}"
    try:
        with unfinished.open("xb") as file:
            file.writelines(pieces)
            file.flush()
            os.utime(file.fileno(), ns=(delivery.time_us * 1000, delivery.time_us * 1000))
            os.fsync(file.fileno())
        unfinished.rename(final)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _append_to_mbox(file: BinaryIO, delivery: Delivery, pieces: Iterator[bytes]) -> None:
    start = file.tell()
    last = b"\n"
    try:
        file.write(_from_line(delivery))
        for piece in with_quoted_from(with_lf(pieces)):
            file.write(piece)
            last = piece[-1:] or last
        file.write(b"\n" if last == b"\n" else b"\n\n")
    except BaseException:
        file.flush()
        file.truncate(start)
        file.seek(start)
        raise


def _from_line(delivery: Delivery) -> bytes:
    sender = delivery.envelope.sender or b"MAILER-DAEMON"
    # A sender with a space or a line end in it would make another From_ line, or none.
    sender = re.sub(rb"[\x00-\x20\x7f]", b"_", sender)
    return b"From %b %b\n" % (sender, _moment(delivery).strftime("%a %b %e %H:%M:%S %Y").encode())


def with_lf(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """CRLF as LF; bare CR and bare LF stay, so a message that has a bare LF cannot be turned back exactly."""
    held = b""
    for piece in pieces:
        data = held + piece
        held = b"\r" if data.endswith(b"\r") else b""
        yield (data[:-1] if held else data).replace(b"\r\n", b"\n")
    yield held


def with_quoted_from(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """One `>` more before each line that begins with `From ` behind any number of `>`: mboxrd."""
    held = b""
    bare = True  # the line so far is `>`s and perhaps a part of "From ", which is what `held` keeps
    for piece in pieces:
        data = held + piece
        if bare and _FROM_START.match(data):
            data = b">" + data
        data = _FROM_LINE.sub(rb"\1>", data)
        line = data.rfind(b"\n") + 1
        begun = _FROM_BEGUN.fullmatch(data, line) if line or bare else None
        bare = begun is not None
        held = (begun[1] or b"") if begun else b""
        yield data[: len(data) - len(held)]
    yield held
