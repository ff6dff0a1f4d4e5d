"""Identity files: who may read a sealed store. Read from disk, with their passphrase; and made."""

from __future__ import annotations

import getpass
import os
import sys
import time
from pathlib import Path

from store.errors import IdentityError
from store.files import write_new
from store.sealing import Identity, new_identity, parse_identities, protect

VARIABLE = "MAILKEEP_PASSPHRASE"


def load_identities(path: Path) -> list[Identity]:
    """The identities in a file, whose passphrase, if it has one, is taken from MAILKEEP_PASSPHRASE or asked
    for on the terminal. Raises `IdentityError`."""
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise IdentityError(f"{path}: {exc.strerror}") from exc
    return parse_identities(data, str(path), lambda: _passphrase(path))


def _passphrase(path: Path) -> str | None:
    told = os.environ.get(VARIABLE)
    if told is not None:
        return told
    if not sys.stdin.isatty():
        return None
    return getpass.getpass(f"Passphrase for {path}: ")


def new_passphrase() -> str:
    """A passphrase for a new file, from MAILKEEP_PASSPHRASE or asked for twice. Raises `IdentityError`."""
    told = os.environ.get(VARIABLE)
    if told is None:
        if not sys.stdin.isatty():
            raise IdentityError(f"there is no terminal to ask for a passphrase; set {VARIABLE}")
        told = getpass.getpass("Passphrase: ")
        if told != getpass.getpass("Again: "):
            raise IdentityError("the two passphrases are not the same")
    if not told:
        raise IdentityError("the passphrase is empty")
    return told


def write_identity(path: Path, passphrase: str | None) -> str:
    """Make an identity file, for its owner alone and never over another; the public key.

    Raises `IdentityError`.
    """
    secret, public = new_identity()
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    text = f"# created: {created}\n# public key: {public}\n{secret}\n".encode()
    data = text if passphrase is None else protect(text, passphrase)
    try:
        write_new(path, data)
    except OSError as exc:
        raise IdentityError(f"{path}: {exc.strerror}; nothing was written") from exc
    return public
