"""The filter line, rows, mailboxes, days and marks: no terminal, no store."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import pytest

from sidecar.browse.model import KEYS, Asked, Days, Mailboxes, Marks, MessageRow
from sidecar.select import Selection
from store.deliveries import StoredDelivery
from store.ids import ContentId, DeliveryId, new_delivery_id
from store.records import Delivery, Envelope, Leg, Outcome, Recipient

NOON_US = 1_774_958_400_000_000


def stored(*to: bytes, time_us: int = NOON_US, replies: int = 0, **fields: Any) -> StoredDelivery:
    delivery = Delivery(
        id=new_delivery_id(time_us), time_us=time_us, leg=Leg.LMTP, content=ContentId(bytes(32)), size=100,
        envelope=Envelope(fields.pop("sender", b"bert@example.com"), tuple(map(Recipient, to))), **fields,
    )  # fmt: skip
    return StoredDelivery(delivery, {n: Outcome(n, b"250 ok") for n in range(replies)})


def test_every_filter_of_list_has_its_word() -> None:
    assert set(KEYS.values()) == set(Selection.__dataclass_fields__) - {"ids", "limit"}


@pytest.mark.parametrize(
    ("line", "selection", "words"),
    [
        ("", Selection(), ()),
        ("  invoice  Acme ", Selection(), ("invoice", "Acme")),
        ("subject:invoice from:@example.com since:2h", Selection(subject="invoice", sender="@example.com", since="2h"), ()),  # noqa: E501 - one case, one line
        ('subject:"second reminder" "Re: x"', Selection(subject="second reminder"), ("Re: x",)),
        (r'subject:"say \"no\" \\ yes"', Selection(subject=r'say "no" \ yes'), ()),
        ("FROM:<> leg:milter status:offered", Selection(sender="<>", leg="milter", status="offered"), ()),
        ('since:"yesterday 14:00" to:*@*.example.org', Selection(since="yesterday 14:00", to="*@*.example.org"), ()),  # noqa: E501 - one case, one line
        ("queue-id:4Qx message-id:<1@x> until:now as-of:2026-11-01",
         Selection(queue_id="4Qx", message_id="<1@x>", until="now", as_of="2026-11-01"), ()),
        ('"unclosed', Selection(), ('"unclosed',)),
    ],
)  # fmt: skip
def test_a_line_is_read_and_written_again(line: str, selection: Selection, words: tuple[str, ...]) -> None:
    asked = Asked.parse(line)
    assert (asked.selection, asked.words) == (selection, words)
    assert Asked.parse(asked.line) == asked


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("subjct:x", "subjct: is no filter"),
        ("to:a to:b", "to: is there twice"),
        ("to:", "to: is empty"),
        ('from:""', "null sender is <>"),
        ("leg:smtp", "none of lmtp, milter, import"),
        ("since:whenever", "'whenever' is not a time"),
    ],
)
def test_a_wrong_line_says_what_is_wrong(line: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Asked.parse(line)


def test_words_are_found_in_subject_from_and_addresses() -> None:
    delivery = stored(
        b"anna@example.org", subject=b"=?utf-8?q?Gr=C3=BC=C3=9Fe?=", header_from=b"Big Bert <b@x>"
    ).delivery
    assert all(
        Asked(words=(word,)).finds(delivery) for word in ("GRÜSSE", "big bert", "anna@", "EXAMPLE.COM")
    )
    assert not Asked(words=("grüße", "carl")).finds(delivery)


@pytest.mark.parametrize(
    "subject",
    [
        b"\x1b[31mred\x1b]0;title\x07",
        b"a\r\nb\x00\x9b2J",
        "\u202egnp.exe".encode(),
        b"=?utf-8?q?=1B[2J?=",
        b"\xff\xfe",
    ],
)
def test_hostile_text_drives_no_terminal(subject: bytes) -> None:
    row = MessageRow.of(stored(b"anna\x1b[2J@x", subject=subject, header_from=b"\x1b[1m" + subject))
    shown = "".join(row.cells)
    assert shown.isprintable() or "\ufffd" in shown
    assert not set(shown) & {chr(code) for code in [*range(32), *range(127, 160), 0x202E]}


def test_a_row_of_a_mail_without_anything() -> None:
    row = MessageRow.of(stored(sender=b""))
    assert row.cells[1:4] == ("<>", "", "")
    assert row.status == "pending"


def test_a_row_is_short_whatever_the_subject() -> None:
    row = MessageRow.of(stored(*[b"a@x"] * 3, subject=b"x" * 1_000_000, replies=3))
    assert len(row.subject) == 400
    assert row.recipients == "a@x +2"
    assert row.status == "delivered"


def test_mailboxes_are_counted_in_any_case_and_stay_where_they_are() -> None:
    boxes = Mailboxes()
    boxes.take([stored(b"Carl@x.org", time_us=9), stored(b"anna@x.org", b"ANNA@x.org", time_us=8)])
    boxes.take([stored(b"anna@x.org", b"carl@x.org", time_us=7), stored(b"anna@a.org", time_us=6)])
    boxes.take([stored(b"anna@x.org", time_us=5)])
    names = [(row.key, row.messages, row.newest_us) for row in boxes.rows()]
    assert names == [(b"carl@x.org", 2, 9), (b"anna@x.org", 3, 8), (b"anna@a.org", 1, 6)]
    assert [row.key for row in boxes.rows("name")] == [b"anna@a.org", b"anna@x.org", b"carl@x.org"]
    assert [row.messages for row in boxes.rows("messages")] == [3, 2, 1]


def test_days_are_local_and_newest_first() -> None:
    days = Days()
    noon = int(datetime(2026, 3, 31, 12).timestamp() * 1e6)  # noqa: DTZ001 - local days are meant
    hour = 3_600_000_000
    days.take([noon + 11 * hour, noon, noon - 12 * hour, noon - 12 * hour - 1, noon - 60 * hour, 1 << 62])
    rows = days.rows()
    assert [(row.key, row.messages) for row in rows] == [
        (date(2026, 3, 31), 3), (date(2026, 3, 30), 1), (date(2026, 3, 29), 1), (date.min, 1),
    ]  # fmt: skip
    assert (rows[0].cells, rows[0].until) == (("2026-03-31", "Tuesday", "3"), "2026-04-01")


def test_marks() -> None:
    one, two, three = (DeliveryId(bytes([n]) * 16) for n in range(3))
    marks = Marks()
    marks.toggle(one)
    marks.add([two, three, two])
    marks.toggle(one)
    assert (list(marks), len(marks), one in marks) == ([two, three], 2, False)
    marks.drop(marks)
    assert not len(marks)
