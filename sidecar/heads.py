"""Heads, keys and proofs as files: read, compared and told in words."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sidecar.units import format_time, iso_time
from store import heads, notes
from store.errors import StoreError
from store.heads import Head, HeadError
from store.notes import BadKeyError, SignatureError, SignKey, VerifyKey

_MOST_BYTES = 4 << 20


class OutputError(Exception):
    """What stands where something is to be written is worth keeping; the text says why."""

    hint = "Nothing was written. Name another file."
    exit_code = 1


def read_text(path: Path) -> str:
    """A head or proof from its file. Raises `HeadError`, `OSError`."""
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES)
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise HeadError(f"{path}: that is neither a head nor a proof") from exc


def read_head(path: Path, key: VerifyKey | None = None) -> tuple[str, Head]:
    """A head as it stands in its file, and what it says. Raises `HeadError`, `SignatureError`, `OSError`."""
    text = read_text(path)
    try:
        return text, head_in(text, key)
    except (HeadError, SignatureError) as exc:
        raise type(exc)(f"{path}: {exc}") from exc


def head_in(note: str, key: VerifyKey | None = None) -> Head:
    """What a head says, if `key` has signed it where one is given. Raises `HeadError`, `SignatureError`."""
    return heads.parse(key.verify(note) if key else notes.split(note)[0])


def standing(path: Path, kind: str, read: Callable[[str], object]) -> str | None:
    """The text of the `kind` of thing that stands where another is to be written; None where nothing does.
    Raises `OutputError` for whatever else `read` does not take, and `OSError`."""
    if not os.path.lexists(path):
        return None
    try:
        if not path.is_file():  # to open a pipe would wait for its other end
            raise OutputError(f"{path} is no file")
        text = read_text(path)
        read(text)
    except StoreError as exc:
        raise OutputError(f"{path} is there already, and is no {kind}") from exc
    return text


def distinct(output: Path | None, *inputs: Path | None) -> None:
    """Raises `OutputError` if what is to be written is one of the files that are read."""
    for path in inputs:
        if output and path and output.exists() and path.exists() and output.samefile(path):
            raise OutputError(f"{output} is to be read and cannot be written to as well")


def verify_key(text: str) -> VerifyKey:
    """A public key, written out or in a file. Raises `BadKeyError`."""
    if "+" not in text or "/" in text.partition("+")[0]:
        try:
            text = Path(text).read_text()
        except OSError as exc:
            raise BadKeyError(f"{text}: {exc.strerror}") from exc
        except UnicodeDecodeError as exc:
            raise BadKeyError(f"{text}: that is not a key") from exc
    return VerifyKey.parse(text)


def sign_key(path: Path) -> SignKey:
    """The key in a file that `mailkeep head keygen` wrote. Raises `BadKeyError`, `OSError`."""
    try:
        return SignKey.parse(path.read_text())
    except UnicodeDecodeError as exc:
        raise BadKeyError(f"{path}: that is not a key") from exc
    except BadKeyError as exc:
        raise BadKeyError(f"{path}: {exc}") from exc


def told(head: Head) -> str:
    """A head in a few words."""
    gaps = f", and {len(head.gaps)} with gaps" if head.gaps else ""
    many = f"{len(head.streams)} streams{gaps}"
    return f"the head of {format_time(head.time_us)}, {head.facts} facts in {many}"


def head_object(head: Head, signed_by: list[str]) -> dict[str, Any]:
    """A head for JSON."""
    return {
        "store": head.store_id.hex(),
        "time": iso_time(head.time_us),
        "streams": [
            {"stream": s.name, "facts": s.facts, "root": s.root.hex(), "chain": s.chain.hex()}
            for s in head.streams
        ],
        "gaps": list(head.gaps),
        "signed_by": signed_by,
    }


def signers(note: str) -> list[str]:
    """Who says to have signed it."""
    return [name for name, _ in notes.split(note)[1]]
