"""What is in a mailbox and what is not, whatever the server has made of it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from sidecar.live.mailbox import LiveError, LiveMessage
from sidecar.live.matching import Comparison, Read, compare, starts, trace_ends
from store.ids import content_id, new_delivery_id
from store.records import Delivery, Envelope, Leg, Recipient
from tests.support.live_server import TRACE, LiveServer

DATE = b"Mon, 1 Jan 2024 00:00:00 +0000"


def mail(
    number: int | bytes = 1, body: bytes = b"body\r\n", *, subject: bytes = b"x", extra: bytes = b""
) -> bytes:
    name = number if isinstance(number, bytes) else b"<%d@example.net>" % number
    received = b"Received: from a by mx.example.org; Mon, 1 Jan 2024 00:00:00 +0000\r\n"
    return (
        received + extra + b"Message-ID: " + name + b"\r\nDate: " + DATE + b"\r\nFrom: bob\r\nSubject: "
        + subject + b"\r\n\r\n" + body
    )  # fmt: skip


def captured(raw: bytes, time_us: int = 1_000_000) -> Delivery:
    def field(name: bytes) -> bytes:
        head = raw.partition(b"\r\n\r\n")[0] + b"\r\n"
        found = re.search(rb"(?im)^%b[ \t]*:[ \t]*((?:[^\r\n]|\r\n[ \t])*)" % name, head)
        return found[1].strip() if found else b""

    return Delivery(
        id=new_delivery_id(time_us), time_us=time_us, leg=Leg.LMTP, content=content_id(raw), size=len(raw),
        envelope=Envelope(b"bob@example.net", (Recipient(b"anna@example.org"),)),
        subject=field(b"subject"), message_id=field(b"message-id"), header_from=field(b"from"),
    )  # fmt: skip


def found(comparison: Comparison, delivery: Delivery) -> tuple[str, str, str] | None:
    match = comparison.present.get(delivery.id)
    return None if match is None else (match.message.folder, match.message.uid, match.how)


@pytest.mark.parametrize(
    "raw",
    [
        mail(),
        mail(1, b""),
        mail(1, b"no final newline"),
        mail(1, b"a\0b\r\n"),
        mail(1, subject="Größe".encode()),
        mail(1, subject=b"Gr\xf6\xdfe"),
        mail(b"\r\n <folded@example.net>"),
        mail("<größe@example.net>".encode()),
        mail(b"<" + b"x" * 2000 + b">"),
        mail(1, extra=b"Message-ID: <first@example.net>\r\n"),
        b"  begins with white space\r\nX-A: b\r\n" + mail(1),
        b"\tbegins with a tab\r\n\r\nbody\r\n",
        mail(1, extra=b"X-Sieve: mine\r\nReturn-Path: <mine>\r\n"),
        b"Subject: no id\r\n\r\nbody\r\n",
        b"Message-ID:\r\nSubject: empty id\r\n\r\nbody\r\n",
        b"\r\nno header\r\n",
        b"nothing but text\r\n",
        b"Received: from nowhere\r\n\r\n",
        b"Subject: header alone\r\n",
        b"",
        b"\r\n",
    ],
)
def test_the_same_bytes_behind_the_fields_of_the_server(raw: bytes) -> None:
    server = LiveServer()
    live = server.deliver(raw, "Archive")
    delivery = captured(raw)
    assert compare(server, [delivery]).present[delivery.id].message == live
    comparison = compare(server, [delivery])
    assert found(comparison, delivery) == ("Archive", live.uid, "content")
    assert comparison.unknown == []


def test_fields_that_other_servers_add() -> None:
    server = LiveServer()
    raw = mail()
    front = b"Envelope-to: anna\r\nX-Sieve: CMU Sieve 3.0\r\nX-Spam-Report: long\r\n\t and more\r\n \r\n"
    server.put(front + TRACE + raw)
    server.put(b"Subject: not a trace\r\n" + mail(2))
    one, two = captured(raw), captured(mail(2))
    comparison = compare(server, [one, two])
    assert found(comparison, one) == ("INBOX", "1", "content")
    assert found(comparison, two) is None


def test_what_is_missing_and_what_is_unknown() -> None:
    server = LiveServer()
    wanted = [captured(mail(number)) for number in range(4)]
    server.deliver(mail(0))
    server.deliver(mail(1), "Archive")
    stranger = server.deliver(mail(9))
    anonymous = server.put(b"Subject: draft\r\n\r\n")
    told: list[int] = []
    comparison = compare(server, wanted, advance=told.append)
    assert set(comparison.present) == {wanted[0].id, wanted[1].id}
    assert comparison.unknown == [stranger, anonymous]
    assert sum(told) == 4
    assert compare(server, []).unknown == [
        message for mails in server.mail.values() for message, _ in mails.values()
    ]


def test_one_content_delivered_twice_filed_thrice() -> None:
    server = LiveServer()
    raw = mail()
    for folder in ("INBOX", "Archive", "Archive"):
        server.deliver(raw, folder)
    once, again = captured(raw), captured(raw, 2_000_000)
    comparison = compare(server, [once, again])
    assert found(comparison, once) == found(comparison, again) == ("INBOX", "1", "content")
    assert comparison.unknown == []


def test_only_what_can_match_is_downloaded() -> None:
    server = LiveServer()
    for number in range(3000):
        server.deliver(mail(number))
    for number in range(20):
        server.put(b"Subject: no id\r\n\r\n" + b"x" * number * 10_000)
    wanted = [captured(mail(number)) for number in range(0, 3000, 2)]
    wanted.append(captured(b"Subject: no id either\r\n\r\n" + b"x" * 100_000))
    comparison = compare(server, wanted)
    assert len(comparison.present) == 1500
    assert len(comparison.unknown) == 1520
    assert len(server.fetched) == 1501  # of those without an id the one whose size fits
    assert server.commands < 12


def test_an_interval() -> None:
    server = LiveServer()
    early, late = server.deliver(mail(1)), server.deliver(mail(2), received_us=5_000_000)
    wanted = [captured(mail(1)), captured(mail(2))]
    assert compare(server, wanted, since_us=2_000_000).present.keys() == {wanted[1].id}
    assert compare(server, [], since_us=2_000_000).unknown == [late]
    assert compare(server, [], until_us=5_000_000).unknown == [early]


# -- by headers


def how_found(raw: bytes, live: bytes, *, read: Read = lambda _: None) -> str | None:
    server = LiveServer()
    server.put(live)
    delivery = captured(raw)
    comparison = compare(server, [delivery], read=read)
    match = comparison.present.get(delivery.id)
    assert bool(comparison.unknown) == (match is None)
    return match.how if match else None


@pytest.mark.parametrize(
    "raw",
    [
        mail(1, b"one\ntwo\nthree\0\r\n"),
        mail(1, b"one\r\r\ntwo\r\n"),
        mail(b"", b"no id\0\r\n"),
        b"  begins with white space\0\r\n" + mail(1),
        b"\0",
        mail(1, b"no end\0"),
    ],
)
def test_a_server_that_makes_line_ends_and_nul_its_own(raw: bytes) -> None:
    live = TRACE + re.sub(rb"\r*\n", b"\r\n", raw).replace(b"\0", b"\x80")
    assert how_found(raw, live, read=lambda _: raw) == "lines"
    assert how_found(raw, live.replace(b"\x80", b"\x81").replace(b"two", b"tow"), read=lambda _: raw) in {
        None,
        "headers",
    }


def test_a_server_that_changes_bytes_is_known_by_the_headers() -> None:
    raw = mail(1, b"one\ntwo\nthree\0\r\n")
    live = TRACE + re.sub(rb"\r*\n", b"\r\n", raw).replace(b"\0", b"?")
    assert how_found(raw, live) == "headers"
    assert how_found(raw, live, read=lambda _: raw) == "headers"
    other = raw.replace(DATE, b"Tue, 2 Jan 2024 00:00:00 +0000")
    assert how_found(raw, live, read=lambda _: other) is None


def test_an_id_that_comes_too_late_for_the_store() -> None:
    raw = mail(1, extra=b"Keywords: " + b"x" * 70_000 + b"\r\n")
    server = LiveServer()
    server.deliver(raw)
    server.deliver(mail(2, b"x" * 70_000))
    delivery = replace(captured(raw), message_id=b"", subject=b"", header_from=b"")
    comparison = compare(server, [delivery])
    assert found(comparison, delivery) == ("INBOX", "1", "content")
    assert len(comparison.unknown) == 1


def test_a_mail_made_of_trace_fields_costs_no_more_than_others() -> None:
    raw = b"X-A:\r\n" * 500_000 + mail(1)
    server = LiveServer()
    server.put(TRACE + raw[:-3])
    server.deliver(raw)
    like = captured(raw)
    wanted = [like, *(replace(like, size=n, content=content_id(b"%d" % n)) for n in range(1000))]
    began = time.process_time()
    comparison = compare(server, wanted)
    assert found(comparison, wanted[0]) == ("INBOX", "2", "content")
    assert time.process_time() - began < 10
    assert len(starts(raw)) == 50


@pytest.mark.parametrize(
    "live",
    [
        mail(1, b"bodx\r\n").partition(b"\r\n")[
            2
        ],  # as the sender kept it, with nothing of a delivery on top
        b"Bcc: " + b"x" * 66 + b"\r\n" + mail(1, b"bodx\r\n").partition(b"\r\n")[2],
        TRACE + mail(1, b"another body that is longer than the lines explain\r\n"),
        TRACE + mail(1, b""),
        TRACE + mail(1, b"bodx\r\n", subject=b"y"),
        TRACE + mail(1, b"bodx\r\n").replace(b"From: bob", b"From: eve"),
        TRACE + mail(2, b"bodx\r\n"),
    ],
)
def test_other_mail_is_not_taken_for_it(live: bytes) -> None:
    assert how_found(mail(1, b"body\r\n"), live) is None


def test_two_mails_with_the_same_headers_do_not_hide_each_other() -> None:
    server = LiveServer()
    one, two, three = mail(1, b"a\nbc\r\n"), mail(1, b"a\nde\r\n"), mail(1, b"afg\r\n")
    wanted = [
        captured(raw, time_us) for time_us, raw in ((1_000_000, one), (9_000_000, two), (1_000_000, three))
    ]
    server.put((TRACE + one).replace(b"a\n", b"a\r\n"), received_us=1_000_000)
    comparison = compare(server, wanted)
    assert set(comparison.present) == {wanted[0].id}
    server.deliver(three)  # whose own bytes are there
    comparison = compare(server, wanted)
    assert {delivery: match.how for delivery, match in comparison.present.items()} == {
        wanted[0].id: "headers", wanted[2].id: "content",
    }  # fmt: skip
    server.put((TRACE + two).replace(b"a\n", b"a\r\n"), "Archive", received_us=9_000_000)
    comparison = compare(server, wanted)
    assert found(comparison, wanted[1]) == ("Archive", "3", "headers")
    assert comparison.unknown == []


def test_a_live_mail_that_nothing_accounts_for_is_not_hidden_by_the_headers_of_another() -> None:
    server = LiveServer()
    raw = mail(1, b"a\nb\r\n")
    server.put((TRACE + raw).replace(b"a\n", b"a\r\n"))
    copy = server.put((b"X-Copy: 2\r\n" + TRACE + raw).replace(b"a\n", b"a\r\n"), "Archive")
    other = server.put((TRACE + raw).replace(b"a\nb", b"a\r\nc"), "Archive")
    delivery = captured(raw)
    comparison = compare(server, [delivery])
    assert found(comparison, delivery) == ("INBOX", "1", "headers")
    assert comparison.unknown == [other]
    assert copy not in comparison.unknown


def test_what_the_server_does_not_give_is_known_by_the_headers() -> None:
    server = LiveServer()
    wanted = [captured(mail(number)) for number in range(1200)]
    for number in range(1200):
        server.deliver(mail(number))
    server.refused = {"7", "600", "1200"}
    comparison = compare(server, wanted)
    assert len(comparison.present) == 1200
    assert sum(match.how == "headers" for match in comparison.present.values()) == 3
    assert comparison.present[wanted[599].id].how == "headers"
    assert server.commands < 150


def test_what_cannot_be_known_at_all() -> None:
    server = LiveServer()
    server.refused = {server.deliver(b"Subject: no id\r\n\r\n").uid}
    delivery = captured(b"Subject: no id\r\n\r\n")
    comparison = compare(server, [delivery])
    assert comparison.present == {}
    assert len(comparison.unknown) == 1


def test_a_lost_connection_is_told_and_nothing_guessed() -> None:
    class Dies(LiveServer):
        def fetch(self, messages):  # type: ignore[no-untyped-def]  # as in the class
            yield from super().fetch(messages[:1])
            self.down = True
            raise LiveError("connection lost")

    server = Dies()
    for number in range(3):
        server.deliver(mail(number))
    with pytest.raises(LiveError, match="the connection is closed"):
        compare(server, [captured(mail(number)) for number in range(3)])


def test_what_has_gone_while_one_looks() -> None:
    class Changing(LiveServer):
        def fetch(self, messages):  # type: ignore[no-untyped-def]  # as in the class
            self.mail["INBOX"].pop("1", None)
            return super().fetch(messages)

    server = Changing()
    for number in range(2):
        server.deliver(mail(number))
    wanted = [captured(mail(number)) for number in range(2)]
    comparison = compare(server, wanted)
    assert set(comparison.present) == {wanted[1].id}
    assert [message.uid for message in comparison.unknown] == ["1"]


def test_50_megabytes() -> None:
    raw = mail(1, b"x" * 70 + b"\r\n") + (b"x" * 70 + b"\r\n") * (50_000_000 // 72)
    server = LiveServer()
    server.deliver(raw)
    delivery = captured(raw)
    assert found(compare(server, [delivery]), delivery) == ("INBOX", "1", "content")


def test_larger_ones_go_by_their_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.live.matching.MOST_BYTES", 1000)
    raw = mail(1, b"x" * 1000 + b"\r\n")
    server = LiveServer()
    server.deliver(raw)
    delivery = captured(raw)
    assert found(compare(server, [delivery]), delivery) == ("INBOX", "1", "headers")
    assert server.fetched == []


def test_trace_ends() -> None:
    raw = b"Received: a\r\n\tb\r\nX-A:c\r\nSubject: d\r\nReceived: e\r\n\r\n"
    assert [raw[end:][:4] for end in trace_ends(raw)] == [b"Rece", b"X-A:", b"Subj"]
    assert trace_ends(b"") == [0]
    assert trace_ends(b"Received: a") == [0]


def test_another_captured_message_does_not_stand_for_one_that_is_gone() -> None:
    """Two mails of one Message-ID, Date, sender, subject and size: one of them is looked for."""
    gone, other = captured(mail(1, b"one of two\r\n")), mail(1, b"two of two\r\n")
    server = LiveServer()
    server.deliver(other)
    known = {content_id(other), gone.content}
    assert found(compare(server, [gone], is_known=known.__contains__), gone) is None
    assert found(compare(server, [gone]), gone) == ("INBOX", "1", "headers"), "nobody knows better"


def test_a_message_that_is_moved_while_we_look_is_found() -> None:
    class Busy(LiveServer):
        def messages(self, folder: str, *interval: int) -> Iterator[LiveMessage]:
            yield from list(super().messages(folder, *interval))
            if folder == "INBOX" and self.mail["Archive"]:  # after INBOX was listed, before Archive is
                _, raw = self.mail["Archive"].popitem()[1]
                self.put(raw, "INBOX")

    server = Busy()
    server.deliver(mail(2))
    server.deliver(mail(1), "Archive")
    assert found(compare(server, [delivery := captured(mail(1))]), delivery) is not None
