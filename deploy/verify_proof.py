#!/usr/bin/env python3
"""Verify a proof of mailkeep's where mailkeep is not: that a message was captured, and what was recorded.

Shares nothing with mailkeep; needs Python 3.9 or newer and `blake3` (pip install blake3), and for a signature
`cryptography`. store/FORMAT.md says what is verified.

    verify_proof.py proof.json
    verify_proof.py proof.json --message message.eml --head head.txt --key 'mx1+1a2b3c4d+AX…'

--head is the head as somebody trustworthy kept it: without it (or --key) the proof says only that its own
head vouches for it. Exit codes: 0 all that was asked for is verified; 1 it is not so; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import base64
import datetime as dt
import json
import struct
import sys
import urllib.parse
from pathlib import Path

from blake3 import blake3


class NotProvedError(Exception):
    """It is not so."""


def main() -> int:
    """Verify what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("proof", type=Path)
    parser.add_argument("--message", type=Path, help="the message's exact bytes")
    parser.add_argument("--head", type=Path, help="the head that somebody else kept")
    parser.add_argument("--key", help="public key that must have signed the head, or a file with it")
    asked = parser.parse_args()
    try:
        for line in verify(asked.proof, asked.message, asked.head, asked.key):
            print(line)
    except NotProvedError as exc:
        print(f"NOT PROVED: {exc}", file=sys.stderr)
        return 1
    except (OSError, KeyError, TypeError, ValueError, IndexError, struct.error) as exc:
        print(f"NOT PROVED: that cannot be read: {exc!r}", file=sys.stderr)
        return 1
    return 0


def verify(proof: Path, message: Path | None, kept: Path | None, key: str | None) -> list[str]:
    """What is proved, in lines. Raises `NotProvedError`, and whatever malformed input leads to."""
    told = json.loads(proof.read_text("utf-8"))
    if told["format"] != "mailkeep proof 1":
        raise NotProvedError("that is not a proof that this script knows")
    store, size, root = stream_in(told["head"], told["stream"])
    fact = base64.b64decode(told["fact"], validate=True)
    if fact[0] & 0x7F != 1:
        raise NotProvedError("the fact is no delivery")
    path = [base64.b64decode(part, validate=True) for part in told["path"]]
    if not included(blake3(b"\0" + fact).digest(), told["number"], size, path, root):
        raise NotProvedError("the fact is not in the history that its head vouches for")
    delivery, end = unpack(fact, 17 if fact[0] & 0x80 else 1)  # from a sealed store: 16 bytes of salt
    if end != len(fact):
        raise NotProvedError("something follows the fact")
    id_, time_us, leg, content, length, envelope, queue_id, subject = (*delivery, b"", b"")[:8]
    moment = dt.datetime.fromtimestamp(time_us / 1e6, dt.timezone.utc)  # noqa: UP017 - for old Python
    lines = [
        f"delivery   {id_.hex()}, captured {moment.isoformat()} ({leg})",
        f"from       {shown(envelope[0]) or '<>'}",
        *(f"to         {shown(recipient[0])}" for recipient in envelope[1]),
        f"queue id   {shown(queue_id)}",
        f"subject    {shown(subject)}",
        f"message    {length} bytes, BLAKE3 {content.hex()}",
        f"history    fact {told['number']} of {size} in stream {told['stream']} of store {store}",
    ]
    if message is not None:
        data = message.read_bytes()
        if (blake3(data).digest(), len(data)) != (content, length):
            raise NotProvedError(f"{message} is not that message: BLAKE3 {blake3(data).hexdigest()}")
        lines.append(f"verified   {message} is that message")
    if kept is not None:
        if stream_in(kept.read_text("utf-8"), told["stream"]) != (store, size, root):
            raise NotProvedError(f"{kept} is not the head that this proof is under")
        lines.append(f"verified   {kept} is the head that vouches for it")
    if key is not None:
        name = signed(told["head"], Path(key).read_text() if Path(key).is_file() else key)
        lines.append(f"verified   the head is signed by {name}")
    lines += [
        f"not asked  {what}"
        for what, given in (("message", message), ("head", kept), ("signature", key))
        if given is None
    ]
    return lines


def stream_in(head: str, name: str) -> tuple[str, int, bytes]:
    """(store, number of facts, root) that a head has of a stream."""
    lines = head.partition("\n\n")[0].split("\n")
    if lines[0] != "mailkeep head 1":
        raise NotProvedError("that is not a head that this script knows")
    quoted = urllib.parse.quote(name, safe="")
    store = next(line.split(" ")[1] for line in lines if line.startswith("store "))
    for line in lines:
        words = line.split(" ")
        if words[0] == "stream" and words[4] == quoted:
            return store, int(words[1]), base64.b64decode(words[2], validate=True)
    raise NotProvedError(f"the head does not vouch for stream {name}")


def included(leaf: bytes, number: int, size: int, path: list[bytes], root: bytes) -> bool:
    """RFC 9162 2.1.3.2, with BLAKE3."""
    if not 0 <= number < size:
        return False
    at, last, found = number, size - 1, leaf
    for other in path:
        if last == 0 or len(other) != 32:
            return False
        if at & 1 or at == last:
            found = blake3(b"\1" + other + found).digest()
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found = blake3(b"\1" + found + other).digest()
        at, last = at >> 1, last >> 1
    return last == 0 and found == root


def signed(note: str, key: str) -> str:
    """Who has signed a note (C2SP signed-note, Ed25519)."""
    import hashlib  # its start is a tenth of this script's time

    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    name, _, encoded = key.strip().split("+", 2)
    public = base64.b64decode(encoded, validate=True)
    number = hashlib.sha256(name.encode() + b"\n" + public).digest()[:4]
    text, empty, signatures = note.rpartition("\n\n")
    for line in signatures.splitlines() if empty and public[:1] == b"\1" else []:
        mark, signer, signature = line.split(" ")
        raw = base64.b64decode(signature, validate=True)
        if (mark, signer, raw[:4]) == ("—", name, number):
            try:
                Ed25519PublicKey.from_public_bytes(public[1:]).verify(raw[4:], f"{text}\n".encode())
            except InvalidSignature:
                break
            return name
    raise NotProvedError(f"the head is not signed by {name}")


_SIZED = {
    0xC4: ("B", "bin"),
    0xC5: (">H", "bin"),
    0xC6: (">I", "bin"),
    0xD9: ("B", "str"),
    0xDA: (">H", "str"),
    0xDB: (">I", "str"),
    0xDC: (">H", "array"),
    0xDD: (">I", "array"),
    0xDE: (">H", "map"),
    0xDF: (">I", "map"),
}
_NUMBERS = dict(zip(range(0xCC, 0xD4), ("B", ">H", ">I", ">Q", "b", ">h", ">i", ">q")))  # noqa: B905 - for old Python
_WORDS = {0xC0: None, 0xC2: False, 0xC3: True}


def unpack(data: bytes, at: int) -> tuple[object, int]:
    """The msgpack value that begins at `at`, and where it ends: the types that facts are made of."""
    kind, at = data[at], at + 1
    if kind in _WORDS:
        return _WORDS[kind], at
    if kind < 0x80 or kind >= 0xE0:
        return kind if kind < 0x80 else kind - 0x100, at
    if kind in _NUMBERS:
        number = struct.Struct(_NUMBERS[kind])
        return number.unpack_from(data, at)[0], at + number.size
    if kind in _SIZED:
        size = struct.Struct(_SIZED[kind][0])
        count, what = size.unpack_from(data, at)[0], _SIZED[kind][1]
        at += size.size
    elif kind < 0xC0:
        what = "map" if kind < 0x90 else "array" if kind < 0xA0 else "str"
        count = kind & (0x1F if what == "str" else 0x0F)
    else:
        raise NotProvedError(f"the fact has a value of type {kind:#x}")
    if what in {"bin", "str"}:
        raw = data[at : at + count]
        if len(raw) != count:
            raise NotProvedError("the fact is cut short")
        return raw if what == "bin" else raw.decode(), at + count
    values = []
    for _ in range(count * (2 if what == "map" else 1)):
        value, at = unpack(data, at)
        values.append(value)
    return (dict(zip(values[::2], values[1::2])) if what == "map" else values), at  # noqa: B905 - for old Python


def shown(data: bytes) -> str:
    """Bytes from mail, without anything that drives a terminal."""
    return "".join(
        c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in data.decode("utf-8", "replace")
    )


if __name__ == "__main__":
    sys.exit(main())
