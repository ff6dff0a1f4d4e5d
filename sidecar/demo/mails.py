"""The demo's mails: each shows one thing that a backup must get right, and each is the same in every run.

Made here to the last byte; names and addresses are those that RFC 2606 keeps free. Lines end in CRLF, as SMTP
wants them: what is sent is exactly `raw`.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

DOMAIN = "example.org"
ANNA, BERT, CARLA, DORA = (f"{name}@{DOMAIN}" for name in ("anna", "bert", "carla", "dora"))
USERS = (ANNA, BERT, CARLA, DORA)
DORA_QUOTA_BYTES = 20_000
NOBODY = f"nobody@{DOMAIN}"
"""in our domain, but without a mailbox: the mailbox server refuses it"""
ELSEWHERE = "eve@example.com"
"""not in our domain: Postfix refuses it"""
CUSTOMER, SHOP = "customer@example.com", "shop@example.net"

OFFER = b"%PDF-1.7\n" + random.Random(117).randbytes(180_000)  # noqa: S311 - no secret, the same each time
"""the attachment that comes in several mails"""
PHOTOS = b"PK\x03\x04" + random.Random(2025).randbytes(3_000_000)  # noqa: S311 - as above


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """One mail with its envelope. `refused`: recipients that somebody on the way must turn away."""

    what: str
    sender: str
    recipients: tuple[str, ...]
    raw: bytes
    refused: frozenset[str]
    offers: int
    """how many times OFFER is in it"""

    @property
    def message_id(self) -> str:
        """Its Message-ID, by which its captures are found again."""
        return _message_id(self.what)

    @property
    def options(self) -> tuple[str, ...]:
        """The MAIL parameters that it needs (RFC 6152)."""
        return () if self.raw.isascii() else ("BODY=8BITMIME",)


def _message_id(what: str) -> str:
    return f"<{re.sub('[^a-z0-9]+', '-', what.lower()).strip('-')}@demo.example>"


def _mail(
    what: str,
    subject: bytes,
    body: bytes,
    *,
    headers: bytes = b"Content-Type: text/plain; charset=us-ascii\r\n",
    sender: str = CUSTOMER,
    to: tuple[str, ...] = (ANNA,),
    hidden: tuple[str, ...] = (),
    refused: tuple[str, ...] = (),
) -> Mail:
    written_by = sender or "MAILER-DAEMON@example.com"
    raw = (
        b"From: %b\r\nTo: %b\r\nSubject: %b\r\nDate: Mon, 6 Jan 2025 10:00:00 +0000\r\n"
        b"Message-ID: %b\r\nMIME-Version: 1.0\r\n%b\r\n%b"
    ) % (
        written_by.encode(), ", ".join(to).encode(), subject, _message_id(what).encode(), headers, body
    )  # fmt: skip
    return Mail(
        what=what, sender=sender, recipients=to + hidden, raw=raw, refused=frozenset(refused),
        offers=body.count(b'filename="offer'),
    )  # fmt: skip


_MULTIPART = b'Content-Type: multipart/%b; boundary="=_cut"\r\n'


def _parts(*parts: bytes) -> bytes:
    return b"".join(b"--=_cut\r\n%b\r\n" % part for part in parts) + b"--=_cut--\r\n"


def _text(text: bytes) -> bytes:
    return b"Content-Type: text/plain; charset=us-ascii\r\n\r\n" + text


def _attached(name: bytes, data: bytes, *, columns: int = 76, kind: bytes = b"application/pdf") -> bytes:
    return (
        b'Content-Type: %b; name="%b"\r\nContent-Transfer-Encoding: base64\r\n'
        b'Content-Disposition: attachment; filename="%b"\r\n\r\n%b'
    ) % (kind, name, name, _base64(data, columns))


def _base64(data: bytes, columns: int) -> bytes:
    from binascii import b2a_base64

    line = columns // 4 * 3
    lines = (b2a_base64(data[at : at + line], newline=False) for at in range(0, len(data), line))
    return b"\r\n".join(lines) + b"\r\n"


def all_mails() -> list[Mail]:
    """The twenty, in the order they are sent."""
    mixed = _MULTIPART % b"mixed"
    eight_bit = b"Content-Type: text/plain; charset=%b\r\nContent-Transfer-Encoding: 8bit\r\n"
    offer = b"offer-117.pdf"
    return [
        _mail("plain text", b"Lunch on Thursday?", b"At noon, at the usual place?\r\n"),
        _mail(
            "attachment", b"Offer 117",
            _parts(_text(b"Please find it attached.\r\n"), _attached(offer, OFFER)),
            headers=mixed,
        ),
        _mail(
            "the same, 60 columns wide", b"Fwd: Offer 117",
            _parts(_text(b"What do you think?\r\n"), _attached(offer, OFFER, columns=60)),
            headers=mixed, sender=ANNA, to=(BERT,),
        ),
        _mail(
            "the same, to three", b"Re: Fwd: Offer 117",
            _parts(_text(b"Good. For your files.\r\n"), _attached(b"offer-final.pdf", OFFER)),
            headers=mixed, sender=BERT, to=(ANNA, BERT, CARLA),
        ),
        _mail("several recipients", b"Minutes", b"1. Opening\r\n2. Closing\r\n", to=(ANNA, BERT, CARLA)),
        _mail("BCC", b"Between you and me", b"Carla is nowhere in the header.\r\n", hidden=(CARLA,)),
        _mail(
            "8 bit, latin-1", b"Gr=?iso-8859-1?Q?=FC=DFe?=",
            "Schöne Grüße aus Köln, für 100 £\r\n".encode("latin-1"), headers=eight_bit % b"iso-8859-1",
        ),
        _mail(
            "8 bit, UTF-8", b"Hello, world", "Zdravo, γειά, привет, 你好, 🌍\r\n".encode(),
            headers=eight_bit % b"utf-8", to=(BERT,),
        ),
        _mail(
            "HTML alternative", b"Your order 4711 is on its way",
            _parts(
                _text(b"Your order is on its way.\r\n"),
                b"Content-Type: text/html; charset=utf-8\r\n"
                b"Content-Transfer-Encoding: quoted-printable\r\n\r\n"
                b"<p style=3D\"color:#333\">Your <b>order</b> is here, caf=C3=A9=\r\n included.</p>\r\n",
            ),
            headers=_MULTIPART % b"alternative", sender=SHOP, to=(CARLA,),
        ),
        _mail(
            "encoded-word subject", b"=?utf-8?B?UmVjaG51bmcgZsO8ciBKw6RubmVy?= =?utf-8?Q?_=E2=82=AC_100?=",
            b"The subject says it all.\r\n", sender=SHOP,
        ),
        _mail(
            "folded 8-bit subject", "Über\r\n\tmehrere\r\n  Zeilen".encode("latin-1"),
            b"Raw latin-1 in a folded header: forbidden and common.\r\n",
        ),
        _mail(
            "long lines", b"Report", b"<td>%b</td>\r\n" % (b"0123456789" * 150) + b"x" * 200_000 + b"\r\n",
            sender=SHOP, to=(BERT,),
        ),
        _mail(
            "dots and From", b"Dots",
            b".\r\n..\r\n. \r\n.leading\r\n\r\nFrom here on\r\nblanks \t\r\n\r\n\r\n",
        ),
        _mail(
            "null sender", b"Undelivered Mail Returned to Sender", _parts(
                _text(b"Your message could not be delivered.\r\n"),
                b"Content-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.example.com\r\n\r\n"
                b"Final-Recipient: rfc822; gone@example.com\r\nAction: failed\r\nStatus: 5.1.1\r\n",
            ),
            headers=b'Content-Type: multipart/report; report-type=delivery-status; boundary="=_cut"\r\n',
            sender="",
        ),
        _mail(
            "forwarded as message", b"Fwd: Contract", _parts(
                _text(b"See below.\r\n"),
                b"Content-Type: message/rfc822\r\n\r\n"
                b"From: shop@example.net\r\nSubject: Contract\r\n\r\nPlease sign.\r\n",
            ),
            headers=mixed, sender=BERT, to=(CARLA,),
        ),
        _mail(
            "3 MB of photos", b"Photos", _parts(
                _text(b"From the mountains.\r\n"), _attached(b"photos.zip", PHOTOS, kind=b"application/zip")
            ),
            headers=mixed, to=(CARLA,),
        ),
        _mail("one unknown recipient", b"Welcome", b"Hello both.\r\n", to=(ANNA, NOBODY), refused=(NOBODY,)),
        _mail("only unknown recipients", b"Anybody?", b"No.\r\n", to=(NOBODY,), refused=(NOBODY,)),
        _mail(
            "one in a foreign domain", b"Circular", b"To us and to others.\r\n", to=(BERT, ELSEWHERE),
            refused=(ELSEWHERE,),
        ),
        _mail(
            "one over quota", b"Plan of the site",
            _parts(_text(b"In colour.\r\n"), _attached(b"plan.pdf", OFFER[:60_000])),
            headers=mixed, to=(DORA, ANNA), refused=(DORA,),
        ),
    ]  # fmt: skip
