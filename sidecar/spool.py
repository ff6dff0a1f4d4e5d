"""Where a message waits that was let through without a durable copy (`on_failure = "accept"`).

Every message is written here while it passes, and dropped as soon as the store has it; what the store refused
is kept as two files, `ID.eml` and `ID.envelope`, until it has been brought into the store. Writing never
raises: the spool is the second-best, and the mail goes through without it as well. Beside a sealed store
it is sealed for the same recipients, the nameless files too: this process alone, or one that has an
identity, brings it into the store.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from store import records
from store.errors import StoreError
from store.files import sync_directory
from store.records import Delivery
from store.sealed_file import FrameSealer, read_frames, read_keys
from store.sealing import NO_KEYS, Keyring, PackSeal

log = logging.getLogger(__name__)

_IN_MEMORY_BYTES = 512 << 10
_PIECE_BYTES = 256 << 10


class Spooled:
    """One message in the spool: small ones in memory, larger ones in a nameless file."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._directory = spool.directory
        self._sealer = FrameSealer(spool.keyring) if spool.keyring.seals else None
        self._waiting = bytearray()
        self._file: IO[bytes] | None = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - closed by discard or keep
            max_size=_IN_MEMORY_BYTES, dir=str(self._directory)
        )
        if self._sealer:
            self._put(self._sealer.begin())

    def write(self, data: bytes) -> None:
        """The next bytes of the message."""
        if self._sealer is None:
            self._put(data)
            return
        self._waiting += data
        while len(self._waiting) > _PIECE_BYTES:
            piece = bytes(self._waiting[:_PIECE_BYTES])
            del self._waiting[:_PIECE_BYTES]
            self._put(self._sealer.frame(piece))

    def _put(self, data: bytes) -> None:
        if self._file:
            try:
                self._file.write(data)
            except OSError as exc:
                log.error("the spool at %s takes no more of a message: %s", self._directory, exc)
                self.discard()

    def keep(self, delivery: Delivery) -> bool:
        """Put the message aside for later. True when it is on disk."""
        envelope = records.encode(delivery)
        if self._sealer:
            self._put(self._sealer.frame(bytes(self._waiting), last=True))
            sealer = FrameSealer(self._spool.keyring)
            self._spool.remember(delivery.id.hex(), self._sealer.seal, sealer.seal)
            envelope = sealer.begin() + sealer.frame(envelope, last=True)
        if not self._file:
            return False
        name = self._directory / delivery.id.hex()
        try:
            self._file.seek(0)
            _write_durably(name.with_suffix(".eml"), iter(lambda: self._read(), b""))
            # The envelope comes last: without it the message does not count.
            _write_durably(name.with_suffix(".envelope"), iter([envelope]))
            sync_directory(self._directory)
        except OSError as exc:
            log.error("a message could not be spooled at %s: %s", self._directory, exc)
            self._spool.forget(name.with_suffix(".eml"))
            return False
        finally:
            self.discard()
        return True

    def _read(self) -> bytes:
        return self._file.read(_PIECE_BYTES) if self._file else b""

    def discard(self) -> None:
        """Forget the message. Idempotent."""
        if self._file:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


class Spool:
    """A directory of messages that wait for the store."""

    def __init__(self, directory: Path, keyring: Keyring = NO_KEYS) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        self.keyring = keyring
        self._seals: dict[Path, PackSeal] = {}
        self._told: set[Path] = set()

    def begin(self) -> Spooled:
        """A new message."""
        return Spooled(self)

    def remember(self, name: str, message: PackSeal, envelope: PackSeal) -> None:
        """What opens the two files of a message, as long as this process lives."""
        self._seals[self.directory / f"{name}.eml"] = message
        self._seals[self.directory / f"{name}.envelope"] = envelope

    def waiting(self) -> int:
        """How many messages wait."""
        return sum(1 for _ in self.directory.glob("*.envelope"))

    def messages(self, *, own: bool = False) -> Iterator[tuple[Delivery, Path]]:
        """What waits: the delivery as it was to be, and the file with its bytes. Bad files are logged. With
        `own` only what is sealed and was put aside by this process, which nobody else may be able to open."""
        for envelope in sorted(self.directory.glob("*.envelope")):
            if own and envelope not in self._seals:
                continue
            with _claimed(envelope) as may:  # or it is taken in twice
                if not may:
                    continue
                try:
                    delivery = records.decode(b"".join(self.read(envelope)))
                except (OSError, ValueError, StoreError) as exc:
                    if envelope not in self._told:  # it is looked at again and again
                        self._told.add(envelope)
                        log.error("%s cannot be read and stays: %s", envelope, exc)
                    continue
                if isinstance(delivery, Delivery):
                    yield delivery, envelope.with_suffix(".eml")

    def read(self, path: Path) -> Iterator[bytes]:
        """A file of the spool in pieces. Raises `SealedError`, `DamagedError`, `OSError`."""
        with path.open("rb") as file:
            keys = read_keys(file)
            if keys is None:
                yield from iter(lambda: file.read(_PIECE_BYTES), b"")
            else:
                seal = self._seals.get(path) or self.keyring.open_seal(keys, lambda: keys)
                yield from read_frames(file, seal, str(path))

    def forget(self, message: Path) -> None:
        """What opens its files is needed no more."""
        self._seals.pop(message, None)
        self._seals.pop(message.with_suffix(".envelope"), None)

    def remove(self, message: Path) -> None:
        """Forget a message that the store now has."""
        self.forget(message)
        message.with_suffix(".envelope").unlink(missing_ok=True)
        message.unlink(missing_ok=True)


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Whether a file is ours for the time being, and not another process's or gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield os.fstat(fd).st_nlink > 0
    except BlockingIOError:
        yield False
    finally:
        os.close(fd)


def _write_durably(path: Path, pieces: Iterator[bytes]) -> None:
    with path.open("xb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
