"""Runs of base64, exactly: decoded where encoding again gives the same bytes, and encoded again.

A run is lines of one width (a multiple of 4 characters) with one line end; the last line may be shorter and
its line end is not part of the run. What is not exactly so is not decoded. Bytes in, bytes out.
"""

from __future__ import annotations

import binascii
import re
import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache

_FIRST_LINE = re.compile(rb"([A-Za-z0-9+/]{16,998}+)(\r?\n)")

_LAST_LINE = re.compile(rb"[A-Za-z0-9+/]{2,998}+={0,2}+(?=\r?\n|\Z)")
_DECODE_LINES = 4096  # decoded in one go; more of them are not faster
_ENCODE_LINES = 128  # encoded in one go: about 10 kB of text that stay in the processor's first cache


def encode(data: bytes, width: int, eol: bytes) -> bytes:
    """The message's bytes for one whole run: base64, `width` characters a line, no `eol` after the last.

    `width` is a multiple of 4; 0 gives `data` back.
    """
    return eol.join(_lines(data, width, eol)) if width else data


def encode_run(pieces: Iterable[bytes], width: int, eol: bytes) -> Iterator[bytes]:
    """The same for a run's chunks one after the other, wherever they were cut."""
    if not width:
        yield from pieces
        return
    line = width // 4 * 3
    rest, begun = b"", False
    for piece in pieces:
        data = rest + piece if rest else piece
        whole = len(data) // line * line
        rest = data[whole:]
        if whole:
            lines = _lines(data[:whole], width, eol)
            yield eol.join([b"", *lines] if begun else lines)
            begun = True
    if rest:
        lines = _lines(rest, width, eol)
        yield eol.join([b"", *lines] if begun else lines)


def decode_lines(data: bytes, at: int, most: int, width: int, eol: bytes) -> tuple[list[bytes], int]:
    """Decodes the full lines from `at` on, up to `most`: their bytes, and how many lines they are.

    Steps grow from a few lines, and are halved at each odd one: so the work is in proportion to the lines
    found, also when somebody sends a great many runs that soon turn odd.
    """
    stride = width + len(eol)
    decoded: list[bytes] = []
    lines, step, odd = 0, 32, False
    while lines < most and (n := _count_lines(data, at, min(step, most - lines), width, eol)):
        part = _decode_full(data[at : at + n * stride], n * width)
        if part is None:
            step, odd = n // 2, True
            continue
        decoded.append(part)
        lines += n
        at += n * stride
        if not odd:
            step = min(2 * step, _DECODE_LINES)
    return decoded, lines


def decode_last_line(data: bytes, at: int, width: int) -> tuple[bytes, int]:
    """Decodes a line of at most `width` characters that ends a run at `at`: its bytes, and where it ends.

    No bytes: there is none. `width` + 3 bytes behind `at` are looked at.
    """
    line = _LAST_LINE.match(data, at, at + width + 3)
    if line is None or len(line[0]) > width:
        return b"", at
    return _decode_exactly(line[0]) or b"", line.end()


def run_at(data: bytes, at: int, least: int) -> tuple[int, bytes] | None:
    """Width and line end of the run that begins at `at`, when at least `least` bytes are full lines of it."""
    line = _FIRST_LINE.match(data, at)
    if line is None or len(line[1]) % 4:
        return None
    width, eol = len(line[1]), line[2]
    stride = width + len(eol)
    enough = -(-least // stride)
    if _count_lines(data, at, enough, width, eol) < enough:
        return None
    return None if _decode_full(data[at : at + enough * stride], enough * width) is None else (width, eol)


@lru_cache(maxsize=64)
def _unpack(width: int) -> struct.Struct:
    return struct.Struct(f"{width}s" * _ENCODE_LINES)


def _lines(data: bytes, width: int, eol: bytes) -> list[bytes]:
    """The run's lines; those that were encoded in one go are already joined.

    struct cuts text into lines about twice as fast as slices do.
    """
    unpack = _unpack(width).unpack
    step = width // 4 * 3 * _ENCODE_LINES
    whole = len(data) // step * step
    lines = [
        eol.join(unpack(binascii.b2a_base64(data[i : i + step], newline=False)))
        for i in range(0, whole, step)
    ]
    text = binascii.b2a_base64(data[whole:], newline=False)
    lines += [text[i : i + width] for i in range(0, len(text), width)]
    return lines


def _count_lines(data: bytes, at: int, most: int, width: int, eol: bytes) -> int:
    """How many lines from `at` on, up to `most`, have `eol` behind `width` characters."""
    stride = width + len(eol)
    end = at + most * stride
    for i in range(len(eol)):
        ends = data[at + width + i : end : stride]
        most = min(most, len(ends) - len(ends.lstrip(eol[i : i + 1])))
    return most


def _decode_full(lines: bytes, characters: int) -> bytes | None:
    """The bytes in full lines of base64 with `characters` in all; None when they are not just that."""
    text = lines.translate(None, b"\r\n")
    decoded = _decode_exactly(text)
    # Fewer bytes: there was padding, which makes a last line, or a line end where it does not belong.
    return decoded if decoded is not None and len(decoded) == characters // 4 * 3 else None


def _decode_exactly(text: bytes) -> bytes | None:
    """Decoded base64; None unless encoding it again gives `text`."""
    try:
        decoded = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        return None
    return decoded if binascii.b2a_base64(decoded, newline=False) == text else None
