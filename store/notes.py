"""Signed notes: a text with Ed25519 signatures below, as C2SP signed-note and Go's sumdb/note have them.

A note is lines of text, an empty line, and a line for each signature: `— NAME BASE64`, where the base64 is
the first 4 bytes of SHA-256(NAME, line feed, 01, public key) and the signature over the text with its last
line end. Keys are text, too: `NAME+HASH+BASE64` to verify with, `PRIVATE+KEY+NAME+HASH+BASE64` to sign with.
So other programs for such notes verify ours.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from dataclasses import dataclass

from store.errors import StoreError

_MARK = "— "
_ED25519 = b"\x01"
_PRIVATE = "PRIVATE+KEY+"
_KEY_NAME = re.compile(r"[^\s+\x00-\x1f\x7f-\x9f]{1,128}")  # \s has U+2028 and U+2029, too


class BadKeyError(StoreError):
    """A key cannot be used."""

    hint = "`mailkeep head keygen FILE` makes a pair of keys."
    exit_code = 1


class SignatureError(StoreError):
    """A note is not signed by the key that was asked for."""

    hint = "Somebody has altered it, or it is another's: compare with other copies of it."
    exit_code = 1


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """The public key of somebody who signs, by name."""

    name: str
    public: bytes

    @classmethod
    def parse(cls, text: str) -> VerifyKey:
        """From its text. Raises `BadKeyError`."""
        name, number, raw = _parts(text.strip())
        key = cls(name, raw)
        if number != key.hash.hex():
            raise BadKeyError(f"the public key {name} is damaged")
        return key

    @property
    def hash(self) -> bytes:
        """4 bytes by which a signature names its key."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.hash.hex()}+{_encoded(_ED25519 + self.public)}"

    def verify(self, note: str) -> str:
        """The text of a note that this key has signed; signatures of others are passed over. Raises
        `SignatureError`."""
        from cryptography.exceptions import InvalidSignature  # most commands do without its cost
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        text, signatures = split(note)
        public = Ed25519PublicKey.from_public_bytes(self.public)
        for name, raw in signatures:
            if name == self.name and raw[:4] == self.hash:
                try:
                    public.verify(raw[4:], text.encode())
                except InvalidSignature as exc:
                    raise SignatureError(f"the signature of {name} is not over this text") from exc
                return text
        raise SignatureError(f"it is not signed by {self.name}")


@dataclass(frozen=True, slots=True)
class SignKey:
    """A name and the 32 secret bytes with which it signs."""

    name: str
    seed: bytes

    @classmethod
    def generate(cls, name: str) -> SignKey:
        """A new one. Raises `BadKeyError` for what cannot be a name."""
        if not _KEY_NAME.fullmatch(name):
            raise BadKeyError(f"{name!r} cannot name a key: no spaces and no +")
        return cls(name, os.urandom(32))

    @classmethod
    def parse(cls, text: str) -> SignKey:
        """From its text. Raises `BadKeyError`."""
        if not text.startswith(_PRIVATE):
            raise BadKeyError(f"that is not a signing key: it begins with {_PRIVATE}")
        name, number, raw = _parts(text.strip().removeprefix(_PRIVATE))
        key = cls(name, raw)
        if number != key.verify_key.hash.hex():
            raise BadKeyError(f"the signing key {name} is damaged")
        return key

    @property
    def verify_key(self) -> VerifyKey:
        """What others verify with."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return VerifyKey(
            self.name, Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()
        )

    def __str__(self) -> str:
        return f"{_PRIVATE}{self.name}+{self.verify_key.hash.hex()}+{_encoded(_ED25519 + self.seed)}"

    def sign(self, text: str) -> str:
        """The text as a note of ours."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        signature = Ed25519PrivateKey.from_private_bytes(self.seed).sign(text.encode())
        return f"{text}\n{_MARK}{self.name} {_encoded(self.verify_key.hash + signature)}\n"


def split(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    """A note's text, and its signatures by name; a text that nobody has signed has none. Raises
    `SignatureError` for what is neither."""
    text, empty, below = note.rpartition("\n\n")
    if not empty:
        return note, []
    signatures = []
    for line in below.removesuffix("\n").split("\n") if below else []:
        name, _, encoded = line.removeprefix(_MARK).partition(" ")
        try:
            signatures.append((name, base64.b64decode(encoded, validate=True)))
        except ValueError:  # binascii's, and another for what is not ASCII
            encoded = ""
        if not line.startswith(_MARK) or not _KEY_NAME.fullmatch(name) or not encoded:
            raise SignatureError(f"that is not a signature: {line[:60]!r}")
    return text + "\n", signatures


def _parts(text: str) -> tuple[str, str, bytes]:
    name, _, rest = text.partition("+")
    number, _, encoded = rest.partition("+")
    try:
        raw = base64.b64decode(encoded, validate=True)
    except ValueError as exc:
        raise BadKeyError("that is not a key: its base64 is damaged") from exc
    if not _KEY_NAME.fullmatch(name) or len(raw) != 33 or raw[:1] != _ED25519:
        raise BadKeyError("that is not an Ed25519 key: it is written NAME+HASH+BASE64")
    return name, number, raw[1:]


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()
