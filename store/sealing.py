"""Sealed packs: who may read them, and how their records are sealed and opened.

Each pack has a random data key. It stands in the pack itself, in an age file (age-encryption.org/v1) that is
encrypted to every recipient, so that writing needs public keys alone and reading one of the identities. With
the data key each block is sealed by ChaCha20-Poly1305 (RFC 8439); what stands beside it in the clear (which
chunks it holds, the leaves of its facts) is bound to it as associated data. No files here.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import pyrage
from blake3 import blake3

from store.errors import IdentityError

SUITE = 1
"""the encryption suite in a sealed pack's header: age for the data key, ChaCha20-Poly1305 for the blocks"""
FINGERPRINT_BYTES = 8
_DATA_KEY_BYTES = 32
_NONCE_BYTES = 4
_TAG_BYTES = 16
_MOST_SEALS = 4096
_MOST_RECIPIENTS = 64
_ARMOR = b"-----BEGIN AGE ENCRYPTED FILE-----"
_AGE = b"age-encryption.org/"
_TRIES = 20
_PAUSE_S = 0.1


class PackSeal:
    """Seals and opens the records of one pack. Thread-safe."""

    __slots__ = ("_aead", "_altered")

    def __init__(self, data_key: bytes) -> None:
        # Not at the top: it takes 8 MB and 20 ms, and who seals nothing need not have it.
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        self._aead = ChaCha20Poly1305(data_key)
        self._altered = InvalidTag

    def seal(self, kind: int, number: int, clear: bytes, body: bytes) -> bytes:
        """The sealed body of the record `number` of type `kind`; `clear` is what precedes it there."""
        # The number alone would do, were it not that after a rollback it is given again; what was sealed
        # under it before never came to count, but somebody may have seen it.
        extra = os.urandom(_NONCE_BYTES)
        return extra + self._aead.encrypt(number.to_bytes(8, "little") + extra, body, bytes([kind]) + clear)

    def open(self, kind: int, number: int, clear: bytes, body: bytes) -> bytes:
        """What was sealed. Raises `ValueError` when it is not what was sealed under this number."""
        nonce = number.to_bytes(8, "little") + body[:_NONCE_BYTES]
        try:
            return self._aead.decrypt(nonce, body[_NONCE_BYTES:], bytes([kind]) + clear)
        except self._altered:
            raise ValueError("sealed block does not open: it was altered, or lies elsewhere") from None


@dataclass(frozen=True, slots=True)
class Recipient:
    """Whom packs are sealed for, by the public key (`age1…`)."""

    text: str
    key: pyrage.x25519.Recipient = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> Recipient:
        """Raises `IdentityError`."""
        try:
            return cls(text.strip(), pyrage.x25519.Recipient.from_str(text.strip()))
        except pyrage.RecipientError as exc:
            raise IdentityError(f"{shown(text)} is no age recipient (age1…): {exc}") from None

    @property
    def fingerprint(self) -> bytes:
        """`FINGERPRINT_BYTES` that name the recipient in a pack."""
        return fingerprint(self.text)


def shown(text: str) -> str:
    """A key that is none as an error may repeat it: never a secret."""
    return "a secret key" if "SECRET" in text.upper() else repr(text[:80])


def fingerprint(recipient: str) -> bytes:
    """The first bytes of BLAKE3 over the public key's text."""
    return blake3(recipient.encode()).digest(FINGERPRINT_BYTES)


@dataclass(frozen=True, slots=True)
class Identity:
    """A private key: it opens what is sealed for its `recipient`."""

    recipient: str
    key: pyrage.x25519.Identity = field(repr=False, compare=False)


def new_identity() -> tuple[str, str]:
    """A fresh key pair: the secret (`AGE-SECRET-KEY-1…`) and its public key (`age1…`)."""
    identity = pyrage.x25519.Identity.generate()
    return str(identity), str(identity.to_public())


def protect(text: bytes, passphrase: str) -> bytes:
    """An identity file that only the passphrase opens, as `age -p` makes it."""
    protected: bytes = pyrage.passphrase.encrypt(text, passphrase)
    return protected


def _opened(data: bytes, name: str, passphrase: str) -> bytes:
    """What a passphrase protects. Raises `IdentityError`."""
    tries = 0
    while True:
        try:
            opened: bytes = pyrage.passphrase.decrypt(data, passphrase)
        except pyrage.DecryptError as exc:
            if not str(exc).startswith("Excessive work"):
                raise IdentityError(f"{name} does not open with this passphrase") from exc
            # age judges by a millisecond how fast the machine is: a busy one seems too slow for the file.
            tries += 1
            if tries == _TRIES:
                raise IdentityError(
                    f"{name} is protected by more work than this machine can do in reasonable time"
                ) from exc
            time.sleep(_PAUSE_S)
        else:
            return opened


def parse_identities(data: bytes, name: str, passphrase: Callable[[], str | None]) -> list[Identity]:
    """The identities in a file as `age-keygen` or `mailkeep keygen` makes it; `passphrase` is asked if it is
    protected by one. Raises `IdentityError`."""
    if data.startswith((_AGE, _ARMOR)):
        told = passphrase()
        if told is None:
            raise IdentityError(f"{name} is protected by a passphrase, and there is nobody to ask for it")
        data = _opened(data, name, told)
    found = []
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            key = pyrage.x25519.Identity.from_str(text)
        except pyrage.IdentityError:
            raise IdentityError(f"{name}, line {number}: no age identity (AGE-SECRET-KEY-1…)") from None
        found.append(Identity(str(key.to_public()), key))
    if not found:
        raise IdentityError(f"{name} holds no age identity")
    return found


class Keyring:
    """Whom what is written is sealed for, and whose sealed packs can be read. Thread-safe.

    Without recipients nothing is sealed; without identities nothing sealed is read.
    """

    def __init__(self, recipients: Sequence[Recipient] = (), identities: Sequence[Identity] = ()) -> None:
        if len(recipients) > _MOST_RECIPIENTS:
            raise IdentityError(f"{len(recipients)} recipients are more than {_MOST_RECIPIENTS}")
        self.recipients = tuple(recipients)
        self.identities = tuple(identities)
        self._lock = threading.Lock()
        self._seals: OrderedDict[bytes, PackSeal | None] = OrderedDict()

    @property
    def blind(self) -> bool:
        """Whether no identity opens what is sealed for the present recipients."""
        own = {identity.recipient for identity in self.identities}
        return self.seals and not own & {recipient.text for recipient in self.recipients}

    def told(self) -> str:
        """For whom it seals, in words."""
        return ", ".join(recipient.text for recipient in self.recipients) or "nobody"

    @property
    def seals(self) -> bool:
        """Whether what is written is sealed."""
        return bool(self.recipients)

    @property
    def readers(self) -> frozenset[bytes]:
        """The fingerprints of all recipients."""
        return frozenset(recipient.fingerprint for recipient in self.recipients)

    @property
    def fingerprints(self) -> bytes:
        """The same, sorted, end to end."""
        return b"".join(sorted(self.readers))

    def new_seal(self) -> tuple[PackSeal, bytes]:
        """A seal for a new pack, and the payload of the record that keeps its key."""
        data_key = os.urandom(_DATA_KEY_BYTES)
        prints = b"".join(recipient.fingerprint for recipient in self.recipients)
        return PackSeal(data_key), bytes([len(self.recipients)]) + prints + self.wrap(data_key)

    def open_seal(self, name: bytes, find: Callable[[], bytes | None]) -> PackSeal | None:
        """The seal of the pack whose checksum key is `name`; `find` gives the payload of the record that
        keeps its data key. None when no identity opens it, or there is no such record."""
        with self._lock:
            if name in self._seals:
                self._seals.move_to_end(name)
                return self._seals[name]
        payload = find() if self.identities else None
        if payload is None and self.identities:
            return None  # it may yet come to be there
        seal = self._unwrapped(payload)
        with self._lock:
            self._seals[name] = seal
            if len(self._seals) > _MOST_SEALS:
                self._seals.popitem(last=False)
        return seal

    def _unwrapped(self, payload: bytes | None) -> PackSeal | None:
        data_key = self.unwrap(sealed_key(payload)) if payload else None
        return PackSeal(data_key) if data_key and len(data_key) == _DATA_KEY_BYTES else None

    def wrap(self, data: bytes) -> bytes:
        """A few bytes for the recipients, as an age file."""
        wrapped: bytes = pyrage.encrypt(data, [recipient.key for recipient in self.recipients])
        return wrapped

    def unwrap(self, data: bytes) -> bytes | None:
        """What an age file holds; None when no identity opens it."""
        try:
            opened: bytes = pyrage.decrypt(data, [identity.key for identity in self.identities])
        except pyrage.DecryptError:
            return None
        return opened


NO_KEYS = Keyring()
"""nothing is sealed, and nothing sealed is read"""


def sealed_for(payload: bytes) -> frozenset[bytes]:
    """The fingerprints of the recipients, from the payload of the record that keeps a pack's data key."""
    end = 1 + payload[0] * FINGERPRINT_BYTES if payload else 1
    return frozenset(payload[at : at + FINGERPRINT_BYTES] for at in range(1, end, FINGERPRINT_BYTES))


def sealed_key(payload: bytes) -> bytes:
    """The age file with a pack's data key, from that payload."""
    return payload[1 + payload[0] * FINGERPRINT_BYTES :]


def recipients_of(texts: Iterable[str]) -> tuple[Recipient, ...]:
    """Recipients by their public keys, each once. Raises `IdentityError`."""
    return tuple(Recipient.parse(text) for text in dict.fromkeys(texts))
