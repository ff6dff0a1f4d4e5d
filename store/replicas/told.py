"""`mailkeep.store` as a replica has it: whole for an open store, with its key sealed for a sealed one."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any

from store.about import About
from store.errors import SealedError
from store.replicas.layout import RoundError
from store.sealing import Identity, Keyring, recipients_of

_KEY_BYTES = 32


def told_of(about: About) -> dict[str, Any]:
    """What a full round says of the store."""
    told: dict[str, Any] = {"id": about.id.hex(), "created_us": about.created_us}
    if about.recipients:
        told["recipients"] = list(about.recipients)
        told["sealed_key"] = b64encode(Keyring(recipients_of(about.recipients)).wrap(about.key)).decode()
    else:
        told["key"] = about.key.hex()
    return told


def about_of(told: dict[str, Any], identities: Sequence[Identity] = ()) -> About:
    """The store that a full round tells of. Raises `RoundError`, `SealedError` when no identity opens its
    key."""
    try:
        recipients = tuple(map(str, told.get("recipients", ())))
        key = bytes.fromhex(told["key"]) if "key" in told else _unsealed(told["sealed_key"], identities)
        about = About(bytes.fromhex(told["id"]), key or b"", int(told["created_us"]), recipients)
    except (KeyError, ValueError, TypeError) as exc:
        raise RoundError(f"what it says of the store cannot be read: {exc!r}") from exc
    if key is None:
        raise SealedError(
            f"the replica's store key is sealed for {about.told()}, and no identity that is given opens it"
        )
    if len(key) != _KEY_BYTES:
        raise RoundError(f"what it says of the store cannot be read: a key of {len(key)} bytes")
    return about


def _unsealed(text: str, identities: Sequence[Identity]) -> bytes | None:
    sealed = b64decode(text)
    return Keyring(identities=identities).unwrap(sealed) if identities else None
