"""A made-up mail stream with the habits of a real one, fast enough to be made beside what it measures.

The model: 60 % small text, 30 % HTML, 10 % with an attachment (sizes spread evenly over their logarithm); two
thirds in threads of about four whose replies quote all that came before and repeat inline images; 36 % of
attachment bytes sent before, one in ten of those with other line ends or width; 2.0 copies a message
by mailing lists (each with its own Received and Delivered-To), newsletters (with a token for each
recipient) and transactions with many recipients; mailboxes and senders by Zipf's law.

All sizes but the headers' are real ones divided by `divisor`. Texts are joined from phrases made at the
start, attachments from random bytes (one in four) or from records; nothing is done byte by byte.
The same seed makes the same stream.
"""

from __future__ import annotations

import random
import time
from binascii import b2a_base64
from collections import deque
from itertools import accumulate

from tests.bench.capture import Mail

START_US = 1_451_606_400_000_000
"""2016-01-01"""
DAY_US = 86_400_000_000
_TABLE = 1 << 16
_OPEN_THREADS = 2048
_KNOWN_FILES_BYTES = 4 << 20
_LONGEST_THREAD = 60_000
_WIDTHS = (76, 76, 76, 76, 72, 60)


def _zipf(rng: random.Random, values: list[bytes]) -> list[bytes]:
    """A table to pick from evenly: the n-th value stands in it 1/n as often as the first."""
    weights = list(accumulate(1 / (n + 1) for n in range(len(values))))
    return rng.choices(values, cum_weights=weights, k=_TABLE)


class Stream:
    """An endless stream. `step_us` is the mean simulated time from one delivery to the next."""

    def __init__(
        self,
        seed: int,
        *,
        divisor: float = 25,
        mailboxes: int = 2000,
        start_us: int = START_US,
        step_us: int = 31_536_000,
    ) -> None:
        self.now_us = start_us
        self._rng = rng = random.Random(seed)
        self._random = rng.random
        self._divisor = divisor
        self._step_us = step_us
        fixed = random.Random(1)  # words and people are the same for every seed
        letters = b"etaoinshrdlucmfwypvbgkjqxz"
        weights = [1 / (n + 2) for n in range(26)]
        words = [
            bytes(fixed.choices(letters, weights, k=2 + int(fixed.random() ** 2 * 10))) for _ in range(20_000)
        ]
        words = _zipf(fixed, words)
        self._phrases = [
            b" ".join(fixed.choices(words, k=4)) + (b" " if fixed.random() < 0.6 else b"\r\n")
            for _ in range(_TABLE)
        ]
        self._records = [b"".join(fixed.choices(self._phrases, k=10)) for _ in range(8192)]
        self.mailboxes = [b"user%d@example.org" % n for n in range(mailboxes)]
        self._to = _zipf(fixed, self.mailboxes)
        self._from = _zipf(fixed, [b"%s@%s.example" % tuple(fixed.choices(words, k=2)) for _ in range(5000)])
        self._ready: deque[Mail] = deque()
        self._threads: list[tuple[bytes, bytes, bytes, bytes, bool]] = []
        self._files: deque[tuple[bytes, bytes]] = deque()
        self._files_bytes = 0
        self._day = (-1, "")
        self._number = seed << 32

    def take(self, count: int) -> list[Mail]:
        """The next `count` transactions."""
        ready = self._ready
        while len(ready) < count:
            self._original()
        return [ready.popleft() for _ in range(count)]

    def mailbox(self) -> bytes:
        """A mailbox, the busy ones oftener."""
        return self._to[int(self._random() * _TABLE)]

    def _size(self, low: float, high: float) -> int:
        return int(low * (high / low) ** self._random() / self._divisor)

    def _text(self, size: int) -> bytes:
        return b"".join(self._rng.choices(self._phrases, k=max(size // 26, 2)))

    def _original(self) -> None:
        chance = self._random()
        if chance < 0.6:
            html, text, file = False, self._text(self._size(3e3, 20e3)), b""
        elif chance < 0.9:
            html, text, file = True, self._page(self._text(self._size(20e3, 90e3))), b""
        else:
            size = (
                self._size(100e3, 1e6) if chance < 0.99
                else self._size(1e6, 6e6) if chance < 0.9995
                else self._size(10e6, 35e6)
            )  # fmt: skip
            html, text, file = False, self._text(self._size(1e3, 10e3)), self._file(size)
        sender = (self._from if self._random() < 0.6 else self._to)[int(self._random() * _TABLE)]
        message_id = b"<%024x@client.example>" % self._rng.getrandbits(96)
        subject, refs, inline, text = self._in_thread(sender, message_id, text, html=html)
        kind = b"text/html" if html else b"text/plain"
        body = b'Content-Type: %s; charset="utf-8"\r\n\r\n%s\r\n' % (kind, text)
        if parts := inline + file:
            mark = b"=_%016x" % self._rng.getrandbits(64)
            delimiter = b"\r\n--" + mark
            body = b"".join((
                b'Content-Type: multipart/mixed; boundary="', mark, b'"\r\n\r\n--', mark, b"\r\n", body,
                parts.replace(b"\0", delimiter), delimiter, b"--\r\n",
            ))  # fmt: skip
        self._send(sender, subject, message_id, refs, body)

    def _page(self, text: bytes) -> bytes:
        lines = text.replace(b"\r\n", b"</p>\r\n<p class=3DMsoNormal style=3D'margin:0'>")
        return (
            b"<html><head><style>p{font-family:Calibri,sans-serif}</style></head><body>\r\n<p>%s</p>\r\n"
            % lines
        )

    def _in_thread(
        self, sender: bytes, message_id: bytes, text: bytes, *, html: bool
    ) -> tuple[bytes, bytes, bytes, bytes]:
        """(subject, References, inline parts, text) of a reply, of a first mail, or of a single one."""
        threads = self._threads
        chance = self._random()
        inline = b""
        if chance < 0.49 and threads:
            at = int(self._random() * len(threads))
            subject, refs, inline, said, html = threads[at]
            refs = refs[-600:] + b" " + message_id
            if html:
                text = b"%s<blockquote type=3Dcite>%s</blockquote>" % (text, said)
            else:
                text = b"%s\r\n\r\n%s wrote:\r\n> %s" % (text, sender, said.replace(b"\r\n", b"\r\n> "))
            if len(text) * self._divisor < _LONGEST_THREAD:
                threads[at] = (subject, refs, inline, text, html)
            return b"Re: " + subject, refs, inline, text
        subject = self._phrases[int(self._random() * _TABLE)].strip()
        if chance < 0.65:
            if html and self._random() < 0.3:
                inline = self._part(b"image/png", self._rng.randbytes(self._size(8e3, 60e3) + 30), 76)
            fresh = (subject, message_id, inline, text, html)
            if len(threads) < _OPEN_THREADS:
                threads.append(fresh)
            else:
                threads[int(self._random() * _OPEN_THREADS)] = fresh
        return subject, b"", inline, text

    def _file(self, size: int) -> bytes:
        """An attached file that is `size` bytes in base64."""
        if self._files and self._random() < 0.36:
            raw, part = self._files[int(self._random() * len(self._files))]
            return part if self._random() < 0.9 else self._part(b"application/octet-stream", raw)
        size = size * 3 // 4
        if self._random() < 0.25:
            raw, kind = self._rng.randbytes(size), b"application/zip"
        else:
            token = self._rng.randbytes(16)
            raw = token + b"".join(self._rng.choices(self._records, k=max(size // 260, 1)))
            kind = b"application/msword"
        part = self._part(kind, raw)
        self._files.append((raw, part))
        self._files_bytes += len(raw)
        while self._files_bytes > _KNOWN_FILES_BYTES and len(self._files) > 1:
            self._files_bytes -= len(self._files.popleft()[0])
        return part

    def _part(self, kind: bytes, raw: bytes, width: int = 0) -> bytes:
        """A MIME part; a zero byte stands for the delimiter, which is the message's own."""
        width = width or _WIDTHS[int(self._random() * len(_WIDTHS))]
        text = b2a_base64(raw, newline=False)
        lines = b"\r\n".join([text[at : at + width] for at in range(0, len(text), width)])
        return b"\0\r\nContent-Type: %s\r\nContent-Transfer-Encoding: base64\r\n\r\n%s" % (kind, lines)

    def _send(self, sender: bytes, subject: bytes, message_id: bytes, refs: bytes, body: bytes) -> None:
        """Copies of a mail, each with its trace, ready to be taken."""
        chance = self._random()
        count = (
            1 if chance < 0.7
            else 2 + int(self._random() * 2) if chance < 0.9
            else int(4 * 5 ** self._random()) if chance < 0.98
            else int(20 * 5 ** self._random())
        )  # fmt: skip
        to = tuple({self.mailbox() for _ in range(count)})
        common = b"".join((
            b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=client.example; s=a;\r\n\tb=",
            b2a_base64(self._rng.randbytes(96), newline=False),
            b"\r\nFrom: ", sender, b"\r\nTo: ", to[0] if count < 4 else b"all@example.org",
            b"\r\nSubject: ", subject, b"\r\nMessage-ID: ", message_id,
            b"\r\nReferences: " + refs if refs else b"",
            b"\r\nDate: ", self._date(), b"\r\nMIME-Version: 1.0\r\n",
        ))  # fmt: skip
        if count > 1 and self._random() < 0.5:
            self._copy(to, sender, common + body)
            return
        newsletter = count >= 20 and self._random() < 0.5
        for address in to:
            if newsletter:
                token = b"</p>\r\n<a href=3Dhttps://news.example/c/%x>more</a>\r\n<p" % self._rng.getrandbits(
                    80
                )
                self._copy((address,), sender, common + body.replace(b"</p>\r\n<p", token, 4))
            else:
                self._copy((address,), sender, common + body)

    def _copy(self, to: tuple[bytes, ...], sender: bytes, message: bytes) -> None:
        self._number += 1
        queue_id = b"4%014X" % (self._number * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFF)
        self.now_us += int(self._step_us * 2 * self._random())
        trace = (
            b"Return-Path: <%s>\r\nDelivered-To: %s\r\n"
            b"Received: from mx1.example.org (mx1.example.org [192.0.2.25])\r\n"
            b"\tby mail.example.org (Postfix) with ESMTPS id %s\r\n\tfor <%s>; %s\r\n"
        ) % (sender, to[0], queue_id, to[0], self._date())
        self._ready.append(Mail(trace + message, sender, to, queue_id, self.now_us))

    def _date(self) -> bytes:
        day, rest = divmod(self.now_us, DAY_US)
        if day != self._day[0]:
            self._day = (day, time.strftime("%a, %d %b %Y", time.gmtime(day * 86400)))
        seconds = rest // 1_000_000
        text = f"{self._day[1]} {seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02} +0000"
        return text.encode()
