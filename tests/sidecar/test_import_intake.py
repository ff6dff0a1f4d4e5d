"""Taking mail in from elsewhere: once, as it was, and never what was erased."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.intake import CONVERTED, Found, How, Intake
from sidecar.line_ends import LineEnds, Lines
from sidecar.traces import traces
from store.deliveries import Query, StoredDelivery
from store.errors import SealedError
from store.ids import now_us
from store.records import Erasure, Leg
from store.sealing import new_identity
from store.store import Store
from store.writer import Submission
from tests.support.mailstore import MESSAGE, NOON_US, Filler

ANNA = b"anna@example.org"
TRACED = (
    b"Return-Path: <bert@example.com>\r\nDelivered-To: anna@example.org\r\n"
    b"Received: from mx\r\n\tby imap with LMTP; Mon\r\n"
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store", create=True) as opened:
        opened.start_writing("host")
        yield opened


def found(message: bytes = MESSAGE, **how: object) -> Found:
    given_: dict[str, object] = {"recipient": ANNA, "received_us": NOON_US, "origin": "x"} | how
    return Found(pieces=lambda: [message], **given_)  # type: ignore[arg-type]  # a test's own keywords


def take(store: Store, *messages: Found) -> list[How]:
    with Intake(store) as intake:
        return [intake.take(message).how for message in messages]


def imported(store: Store) -> list[StoredDelivery]:
    store.settle_index()
    return [one for one in store.deliveries(Query()) if one.delivery.leg == Leg.IMPORT]


def test_what_is_kept_of_it(store: Store) -> None:
    message = TRACED + MESSAGE
    assert take(store, found(message, folder="Größe/ä", flags=("\\Seen", "$Later"))) == [How.NEW]
    (one,) = imported(store)
    delivery = one.delivery
    assert b"".join(store.read(delivery.content)) == message
    assert (delivery.time_us, delivery.envelope.sender) == (NOON_US, b"bert@example.com")
    assert [place.address for place in delivery.envelope.recipients] == [ANNA]
    assert NOON_US < delivery.captured_us <= now_us()
    attributes = {name: value for name, value in delivery.attributes.items() if name != "imported"}
    assert attributes == {"origin": b"x", "folder": "Größe/ä".encode(), "flags": b"\\Seen $Later"}
    assert list(store.deliveries(Query(NOON_US, NOON_US + 1)))
    assert not list(store.deliveries(Query(NOON_US + 1)))
    assert not list(store.deliveries(Query(as_of_us=delivery.captured_us - 1))), "the store had it later"
    assert list(store.deliveries(Query(as_of_us=delivery.captured_us)))


def test_once_in_a_folder_however_often(store: Store) -> None:
    same, moved = found(), found(folder="Archive")
    assert take(store, same, same, moved) == [How.NEW, How.THERE, How.NEW]
    assert take(store, same, moved, found(recipient=b"ANNA@example.org")) == [How.THERE] * 3
    assert take(store, found(recipient=b"carl@example.org")) == [How.NEW]
    assert len(imported(store)) == 3


def test_message_ids_count_for_nothing(store: Store) -> None:
    messages = [b"Message-ID: <1@x>\r\n\r\n%d\r\n" % n for n in range(3)] + [b"\r\nnone\r\n"]
    assert take(store, *map(found, messages)) == [How.NEW] * 4


@pytest.mark.parametrize("top", [b"", TRACED, TRACED[:33]])
def test_captured_mail_is_known_again(store: Store, top: bytes) -> None:
    Filler(store).put(b"Received: by postfix\r\n" + MESSAGE, to=[ANNA])
    store.settle_index()
    message = top + b"Received: by postfix\r\n" + MESSAGE
    assert take(store, found(message)) == [How.THERE]
    assert take(store, found(message, folder="Trash")) == [How.THERE]
    expected = How.THERE if b"Delivered-To" in top else How.NEW  # what stood there then says it as well
    assert take(store, found(message, recipient=b"carl@example.org")) == [expected]


def test_what_was_only_offered_is_no_captured_mail(store: Store) -> None:
    Filler(store).put(MESSAGE, to=[ANNA], leg=Leg.MILTER)
    store.settle_index()
    assert take(store, found()) == [How.NEW]


def test_erased_mail_stays_erased_also_under_trace_fields(store: Store) -> None:
    delivery = Filler(store).put(MESSAGE, to=[ANNA])
    erasure = Erasure(
        delivery=delivery.id, time_us=now_us(), owner="o", reason="r",
        content=store.tombstone(delivery.content),
    )  # fmt: skip
    store.writer.submit(Submission(entries=[erasure]))
    other = Filler(store).put(b"other")
    store.settle_index()
    assert take(store, found(), found(TRACED + MESSAGE), found(b"new")) == [How.ERASED, How.ERASED, How.NEW]
    assert other.id in {one.delivery.id for one in store.deliveries(Query())}


def test_times_that_cannot_be(store: Store) -> None:
    early, late = found(b"a", received_us=-5), found(b"b", received_us=1 << 62)
    assert take(store, early, late) == [How.NEW] * 2
    take(store, found(b"c", received_us=1 << 62))
    first, *_, last = sorted(one.delivery.time_us for one in imported(store))
    assert first == 0
    assert now_us() - 60_000_000 < last <= now_us()


def test_what_cannot_be_read_is_told(store: Store) -> None:
    def fails() -> Iterator[bytes]:
        yield b"Subject: x\r\n"
        raise OSError(5, "Input/output error")

    reads = iter([[b"x" * (1 << 20)] * 2, [b"y" * (1 << 20)] * 2])
    changed = Found(origin="x", recipient=ANNA, received_us=0, pieces=lambda: next(reads))
    with Intake(store) as intake:
        bad = intake.take(Found(origin="x", recipient=ANNA, received_us=0, pieces=fails))
        assert (bad.how, bad.reason) == (How.FAILED, "cannot be read: Input/output error")
        assert intake.take(found(b"")).reason == "is empty"
        assert intake.take(changed).reason == "was changed while it was read"
    assert imported(store) == []


def test_many_and_large(store: Store) -> None:
    large = b"Subject: large\r\n\r\n" + b"0123456789abcdef" * (3 << 16)
    many = [found(b"Subject: %d\r\n\r\n" % n) for n in range(3000)]
    assert take(store, *many, found(large)) == [How.NEW] * 3001
    assert take(store, *many, found(large)) == [How.THERE] * 3001
    names = {one.delivery.size: one.delivery.content for one in imported(store)}
    assert b"".join(store.read(names[len(large)])) == large


@given(st.lists(st.sampled_from([b"\n", b"\r", b"\r\n", b"ab", b"\0\xff", b""]), max_size=12))
def test_line_ends_are_those_of_imap_however_it_is_cut(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    crlf = whole.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    lines = Lines(pieces, LineEnds.CRLF)
    assert b"".join(lines) == crlf
    assert lines.changed == (crlf != whole)
    begins_so = whole.partition(b"\n")[0].endswith(b"\r") and b"\n" in whole
    assert b"".join(Lines(pieces, LineEnds.AS_FIRST)) == (whole if begins_so else crlf)
    assert b"".join(Lines(pieces, LineEnds.KEEP)) == whole


def test_a_converted_file_says_so(store: Store) -> None:
    as_first = [found(text, line_ends=LineEnds.AS_FIRST) for text in (b"A: b\n\nc\n", b"A: b\r\n\r\nc\n")]
    take(store, *as_first, found(b"A: b\n\nd\n", line_ends=LineEnds.CRLF))
    notes = {b"".join(store.read(one.delivery.content)): one.delivery.notes for one in imported(store)}
    assert notes == {b"A: b\r\n\r\nc\r\n": (CONVERTED,), b"A: b\r\n\r\nc\n": (), b"A: b\r\n\r\nd\r\n": ()}


def test_trace_fields() -> None:
    top = traces(TRACED + b"Subject: x\r\n\r\nReturn-Path: <body@x>\r\n")
    assert (top.sender, top.delivered_to, top.starts) == (b"bert@example.com", ANNA, (33, 65, len(TRACED)))
    assert traces(b"Subject: x\nReturn-Path:\n <>\n\n").sender == b""
    assert traces(b"Subject: x\r\n\r\nReturn-Path: <body@x>\r\n").sender is None
    assert len(traces(b"Received: x\n" * 50).starts) == 5
    assert traces(b"").starts == ()


def test_a_store_that_is_sealed_for_others_is_refused(tmp_path: Path) -> None:
    _, recipient = new_identity()
    with Store.open(tmp_path / "sealed", create=True, recipients=[recipient]) as store:
        store.start_writing("host")
        with pytest.raises(SealedError):
            Intake(store)
