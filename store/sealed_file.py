"""A file of its own that is sealed for the same recipients as a pack, in frames, so that it may be long.

magic (8), length of the keys (4), keys (as a pack's KEYS record has them), then frames:
length (4), sealed bytes; the last frame is marked in what it is bound to, so that a cut shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from store.errors import DamagedError, SealedError
from store.sealing import Keyring, PackSeal

MAGIC = b"MKSEAL1\n"
_LENGTH_BYTES = 4
_MOST_BYTES = 1 << 24
_NEXT, _LAST = b"next", b"last"


class FrameSealer:
    """Seals what is written to one file, piece by piece."""

    def __init__(self, keyring: Keyring) -> None:
        self.seal, self._keys = keyring.new_seal()
        self._number = 0

    def begin(self) -> bytes:
        """What the file begins with."""
        return MAGIC + len(self._keys).to_bytes(_LENGTH_BYTES, "little") + self._keys

    def frame(self, data: bytes, *, last: bool = False) -> bytes:
        """The next piece; nothing may follow the `last`, and without it the file does not count as whole."""
        sealed = self.seal.seal(0, self._number, _LAST if last else _NEXT, data)
        self._number += 1
        return len(sealed).to_bytes(_LENGTH_BYTES, "little") + sealed


def read_keys(file: IO[bytes]) -> bytes | None:
    """The keys at the beginning of a sealed file, which is then at its first frame. None when it is not
    sealed; it is at its beginning then."""
    if file.read(len(MAGIC)) != MAGIC:
        file.seek(0)
        return None
    return file.read(int.from_bytes(file.read(_LENGTH_BYTES), "little"))


def read_frames(file: IO[bytes], seal: PackSeal | None, name: str) -> Iterator[bytes]:
    """The pieces of a sealed file, which is at its first frame. Raises `SealedError` without a seal,
    `DamagedError` for what was altered or cut short."""
    if seal is None:
        raise SealedError(f"{name} is sealed, and no identity at hand opens it")
    number = 0
    while True:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        sealed = file.read(length) if 0 < length <= _MOST_BYTES else b""
        if not sealed:
            raise DamagedError(f"{name} is cut short")
        for mark in (_NEXT, _LAST):
            try:
                piece = seal.open(0, number, mark, sealed)
            except ValueError:
                continue
            yield piece
            break
        else:
            raise DamagedError(f"{name} was altered at piece {number}")
        if mark == _LAST:
            return
        number += 1
