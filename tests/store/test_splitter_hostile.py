"""What mail made to hurt costs: bytes looked at, pieces and memory stay in proportion, whatever is sent.

Counts, not timings: a count is the same on every machine. `make fuzz` looks at the clock, too.
"""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Iterator

import pytest

from store import base64_runs, splitter
from store.splitter import MIN_BODY, WINDOW, Piece, Splitter
from tests.store.test_splitter import FEED, HEADER, TEXT, is_lawful, part

MB = 1_000_000
LINE = b"QUJD" * 19 + b"\r\n"


def nested(depth: int, kind: bytes = b"multipart/mixed") -> bytes:
    opened = (
        b'Content-Type: %s; boundary="b%d"\r\n\r\n--b%d\r\n' % (kind, level, level) for level in range(depth)
    )
    closed = (b"\r\n--b%d--\r\n" % level for level in reversed(range(depth)))
    return b"".join(opened) + b"Content-Type: text/plain\r\n\r\n" + TEXT + b"".join(closed)


HOSTILE = {
    "20,000 small parts": lambda: part(b"hello\r\n") * 20_000,
    "20,000 parts of their own": lambda: part(b"x" * MIN_BODY) * 20_000,
    "20,000 boundaries": lambda: b"".join(part(b"hello\r\n", b"b%d" % i) for i in range(20_000)),
    "500 levels": lambda: nested(500),
    "500 mails in mails": lambda: nested(500, b"message/rfc822"),
    "100,000 levels never closed": lambda: nested(100_000)[: 5 * MB],
    "lines of 5 MiB": lambda: (b"x" * (5 << 20) + b"\r\n") * 2,
    "a line of 5 MiB of base64": lambda: b"\r\n" + b"QUJD" * (5 << 18) + b"\r\n",
    "a million blank lines": lambda: b"\r\n" * MB,
    "a million blank lines (LF)": lambda: b"\n" * MB,
    "40,000 runs of 3 lines": lambda: (b"\r\n\r\n" + LINE * 3) * 40_000,
    "100,000 runs of a short line": lambda: b"\r\nQUJDQUJDQUJDQUJD\r\n" * 100_000,
    "5,000 runs one line too short": lambda: (b"\r\n\r\n" + b"QUJDQUJDQUJDQUJD\r\n" * 56) * 5_000,
    "10,000 runs just long enough": lambda: (b"\r\n\r\n" + LINE * 14) * 10_000,
    "4,000 runs that turn odd at their end": lambda: (b"\r\n" + LINE * 30 + b"!" + LINE[1:]) * 4_000,
    "a run without end": lambda: LINE * (10 * MB // 78),
    "padding in each line": lambda: (b"\r\n" + LINE + b"QUJD" * 18 + b"QQ==\r\n") * 50_000,
    "bits that padding hides": lambda: (LINE * 14 + b"QUJDQR==\r\n\r\n") * 5_000,
    "10 MB of dashes": lambda: b"-" * (10 * MB),
    "10 MB of lines of dashes": lambda: (b"-" * 76 + b"\r\n") * (10 * MB // 78),
    "10 MB of short lines of dashes": lambda: b"--\r\n" * (10 * MB // 4),
    "delimiters with the most headers": lambda: (b"\r\n--b" + (b"\r\nContent-A:" + b"x" * 990) * 24) * 400,
    "headers without end": lambda: b"Content-A: " + b"x\r\n\t" * (10 * MB // 4),
    "CR alone": lambda: b"\r" * (5 * MB),
}


class Meter:
    """Counts the bytes that the splitter's searches and decoders look at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = self.searched = self.decoded = self.cut = 0
        self._event = splitter._EVENT
        decode, cut = base64_runs._decode_exactly, splitter.cut_body
        monkeypatch.setattr(splitter, "_EVENT", self)

        def decode_counted(text: bytes) -> bytes | None:
            self.calls += 1
            self.decoded += len(text)
            return decode(text)

        def cut_counted(data: bytes, *, final: bool) -> list[int]:
            self.calls += 1
            ends = cut(data, final=final)
            self.cut += ends[-1] if ends else 0
            return ends

        monkeypatch.setattr(base64_runs, "_decode_exactly", decode_counted)
        monkeypatch.setattr(splitter, "cut_body", cut_counted)

    def search(self, data: bytes, at: int) -> re.Match[bytes] | None:
        found = self._event.search(data, at)
        self.calls += 1
        self.searched += (found.end() if found else len(data)) - at
        return found


def fed(message: bytes) -> Iterator[list[Piece]]:
    cutter = Splitter()
    for at in range(0, len(message), FEED):
        yield cutter.feed(message[at : at + FEED])
    yield cutter.finish()


@pytest.mark.parametrize("name", HOSTILE)
def test_work_is_in_proportion(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = HEADER + HOSTILE[name]()
    meter = Meter(monkeypatch)
    pieces = sum(map(len, fed(message)))
    size = len(message)
    assert meter.searched <= 2 * size + WINDOW
    assert meter.decoded <= 3 * size
    assert meter.cut <= size
    assert meter.calls <= 100 + size // 2
    assert pieces <= 3 + size // (MIN_BODY // 2)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_mail_comes_back(name: str) -> None:
    is_lawful(HEADER + HOSTILE[name](), [200_001])


@pytest.mark.parametrize(
    "name",
    ["20,000 parts of their own", "10 MB of dashes", "10,000 runs just long enough", "a run without end"],
)
def test_memory_is_bounded(name: str) -> None:
    message = HEADER + HOSTILE[name]()
    tracemalloc.start()
    try:
        for _ in fed(message):
            pass
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 * WINDOW
