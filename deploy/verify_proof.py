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
import re
import struct
import sys
import urllib.parse
from pathlib import Path

from blake3 import blake3

STORE = re.compile("[0-9a-f]{32}")
TIME = re.compile("[0-9]{4}(?:-[0-9]{2}){2}T[0-9]{2}(?::[0-9]{2}){2}[.][0-9]{6}Z")
FACTS = re.compile("0|[1-9][0-9]{0,18}")
KEY_NAME = re.compile(r"[^\s+\x00-\x1f\x7f-\x9f]{1,128}")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)  # noqa: UP017 - for old Python


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
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    try:
        for line in verify(asked.proof, asked.message, asked.head, asked.key):
            print(shown(line))
    except NotProvedError as exc:
        print(f"NOT PROVED: {shown(str(exc))}", file=sys.stderr)
        return 1
    except Exception as exc:  # noqa: BLE001 - whatever malformed input leads to, it proves nothing
        print(f"NOT PROVED: that cannot be read: {shown(repr(exc))}", file=sys.stderr)
        return 1
    return 0


def verify(proof: Path, message: Path | None, kept: Path | None, key: str | None) -> list[str]:
    """What is proved, in lines. Raises `NotProvedError`, and whatever malformed input leads to."""
    told = json.loads(proof.read_bytes().decode())
    if type(told) is not dict or told["format"] != "mailkeep proof 1":
        raise NotProvedError("that is not a proof that this script knows")
    name, number, head = (
        typed(told[what], kind) for what, kind in (("stream", str), ("number", int), ("head", str))
    )
    store, size, root = stream_in(head, name)
    fact = decoded(told["fact"])
    if fact[0] & 0x7F != 1:
        raise NotProvedError("the fact is no delivery")
    path = [decoded(part) for part in typed(told["path"], list)]
    if not included(blake3(b"\0" + fact).digest(), number, size, path, root):
        raise NotProvedError("the fact is not in the history that its head vouches for")
    delivery, end = unpack(fact, 17 if fact[0] & 0x80 else 1)  # from a sealed store: 16 bytes of salt
    if end != len(fact):
        raise NotProvedError("something follows the fact")
    lines, content, length = told_by(delivery)
    lines.append(f"history    fact {number} of {size} in stream {name} of store {store}")
    if message is not None:
        data = message.read_bytes()
        if (blake3(data).digest(), len(data)) != (content, length):
            raise NotProvedError(f"{message} is not that message: BLAKE3 {blake3(data).hexdigest()}")
        lines.append(f"verified   {message} is that message")
    if kept is not None:
        if stream_in(kept.read_bytes().decode(), name) != (store, size, root):
            raise NotProvedError(f"{kept} is not the head that this proof is under")
        lines.append(f"verified   {kept} is the head that vouches for it")
    if key is not None:
        signer = signed(head, Path(key).read_bytes().decode() if Path(key).is_file() else key)
        lines.append(f"verified   the head is signed by {signer}")
    lines += [
        f"not asked  {what}"
        for what, given in (("message", message), ("head", kept), ("signature", key))
        if given is None
    ]
    return lines


def told_by(delivery: object) -> tuple[list[str], bytes, int]:
    """What a delivery says, in lines; the BLAKE3 and the size of its message."""
    id_, time_us, leg, content, length, envelope, *rest = typed(delivery, list)
    kinds = (bytes, bytes, bytes, bytes, dict, list)
    queue_id, subject, *_ = *map(typed, rest, kinds), b"", b""
    if len(typed(id_, bytes)) != 16 or len(typed(content, bytes)) != 32 or typed(length, int) < 0:
        raise NotProvedError("the fact is no delivery of mailkeep's: its id, its content or its size")
    if leg not in ("lmtp", "milter", "import"):
        raise NotProvedError(f"a delivery has no leg {leg!r}")
    sender, recipients, *_ = typed(envelope, list)
    try:
        when = (EPOCH + dt.timedelta(microseconds=typed(time_us, int))).isoformat()
    except OverflowError:
        when = f"{time_us} µs after 1970"
    lines = [
        f"delivery   {id_.hex()}, captured {when} ({leg})",
        f"from       {from_mail(sender) or '<>'}",
        *(f"to         {from_mail(typed(recipient, list)[0])}" for recipient in typed(recipients, list)),
        f"queue id   {from_mail(queue_id)}",
        f"subject    {from_mail(subject)}",
        f"message    {length} bytes, BLAKE3 {content.hex()}",
    ]
    return lines, content, length


def stream_in(note: str, name: str) -> tuple[str, int, bytes]:
    """(store, number of facts, root) that a head has of a stream."""
    first, *lines = parted(note)[0].removesuffix("\n").split("\n")
    if first != "mailkeep head 1":
        raise NotProvedError("that is not a head that this script knows")
    stores, times, streams, gaps = [], [], [], []
    for line in lines:
        if not line or CONTROL.search(line):
            raise NotProvedError(f"a head has no such line, empty or with a control character: {line[:60]!r}")
        word, *rest = line.split(" ")
        if word == "store":
            (told,) = rest
            stores.append(like(STORE, told))
        elif word == "time":
            (told,) = rest
            times.append(dt.datetime(*map(int, re.findall("[0-9]+", like(TIME, told)))))  # noqa: DTZ001 - is it a time?
        elif word == "stream":
            facts, root, chain, quoted = rest
            hashes = [decoded(root), decoded(chain)]
            if [len(found) for found in hashes] != [32, 32]:
                raise NotProvedError(f"a head has no such line: {line[:60]!r}")
            streams.append((unquoted(quoted), int(like(FACTS, facts)), hashes[0]))
        elif word == "gap":
            (quoted,) = rest
            gaps.append(unquoted(quoted))
    names = [stream[0] for stream in streams] + gaps
    if len(stores) != 1 or len(times) != 1 or len(set(names)) != len(names):
        raise NotProvedError("a head has one store, one time, and each stream once: this one has not")
    for found, size, root in streams:
        if found == name:
            return stores[0], size, root
    raise NotProvedError(f"the head does not vouch for stream {name!r}")


def parted(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    """A note's text, and its signatures by name."""
    text, empty, below = note.rpartition("\n\n")
    if not empty:
        return note, []
    signatures = []
    for line in below.removesuffix("\n").split("\n") if below else []:
        mark, name, signature = line.split(" ")
        if mark != "—" or not KEY_NAME.fullmatch(name) or not signature:
            raise NotProvedError(f"that is not a signature: {line[:60]!r}")
        signatures.append((name, decoded(signature)))
    return text + "\n", signatures


def like(pattern: re.Pattern[str], told: str) -> str:
    """What is written as it must be."""
    if not pattern.fullmatch(told):
        raise NotProvedError(f"{told[:60]!r} is not written as it is in a head")
    return told


def unquoted(quoted: str) -> str:
    """A stream's name, which is written in one way alone."""
    name = urllib.parse.unquote(quoted)
    if not name or urllib.parse.quote(name, safe="") != quoted:
        raise NotProvedError(f"{quoted[:60]!r} is not a stream's name as it is written in a head")
    return name


def typed(value: object, kind: type) -> object:
    """A value of exactly that type: for JSON and msgpack `true` is no number."""
    if type(value) is not kind:
        raise NotProvedError(f"{repr(value)[:60]} stands where {kind.__name__} belongs")
    return value


def decoded(base64_text: object) -> bytes:
    """Bytes from their base64."""
    return base64.b64decode(typed(base64_text, str), validate=True)


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

    name, told, encoded = key.strip().split("+", 2)
    public = base64.b64decode(encoded, validate=True)
    number = hashlib.sha256(name.encode() + b"\n" + public).digest()[:4]
    if not KEY_NAME.fullmatch(name) or (told, len(public), public[:1]) != (number.hex(), 33, b"\1"):
        raise NotProvedError("that is not an Ed25519 key as mailkeep writes it, or it is damaged")
    text, signatures = parted(note)
    for signer, raw in signatures:
        if (signer, raw[:4]) == (name, number):
            try:
                Ed25519PublicKey.from_public_bytes(public[1:]).verify(raw[4:], text.encode())
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


def from_mail(data: object) -> str:
    """Bytes from mail as text."""
    return typed(data, bytes).decode("utf-8", "replace")


def shown(line: str) -> str:
    """A line without anything that ends it, or drives a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


if __name__ == "__main__":
    sys.exit(main())
