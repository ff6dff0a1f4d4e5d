"""`show` tells all there is, joins the two legs, and gives a message back to the byte."""

from __future__ import annotations

import random
import subprocess
import threading
from pathlib import Path

import pytest

from store.ids import DeliveryId
from store.records import Delivery, Leg, Replay
from store.store import Store
from store.writer import Submission
from tests.store.conftest import put_message
from tests.support.mailstore import MESSAGE, NOON_US, SECOND_US, mailkeep, written
from tests.support.service import COMMAND

DAY_US = 86_400 * SECOND_US
NOISE = random.Random(7).randbytes(200_000)


@pytest.mark.parametrize(
    "message", [MESSAGE, b"", b"\0\r\n.\n\r\r.\r\n\xff\x1b[31m", NOISE], ids=["mail", "none", "odd", "noise"]
)
def test_raw_is_the_message_and_nothing_else(tmp_path: Path, message: bytes) -> None:
    with written(tmp_path / "store") as fill:
        delivery = fill.put(message)
    ran = mailkeep("show", "--store", tmp_path / "store", "--raw", delivery.id.hex()[:10])
    assert (ran.code, ran.raw, ran.err) == (0, message, "")


def test_raw_through_a_real_pipe_while_the_store_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        delivery = put_message(store, NOISE)
        command = [*COMMAND, "show", "--store", path, "--raw", delivery.id.hex()]
        assert subprocess.run(command, capture_output=True, check=True, timeout=60).stdout == NOISE


def test_json(tmp_path: Path) -> None:
    message = b"Content-Transfer-Encoding: base64\r\n\r\n" + (b"QUJD" * 19 + b"\r\n") * 400
    with Store.open(tmp_path / "store", create=True) as store:
        store.start_writing("host")
        delivery = put_message(store, message, queue_id=b"Q1")
        record_replay(store, delivery.id)
    (shown,) = mailkeep("show", "--store", tmp_path / "store", "--json", delivery.id.hex()).objects
    assert shown["id"] == delivery.id.hex()
    assert shown["size"] == len(message)
    assert shown["attributes"] == {"helo": "mx.example.com"}
    assert shown["recipients"] == [
        {"address": "anna@example.org", "params": "", "reply": None, "source": None}
    ]
    assert shown["damage"] is None
    assert {part["encoding"] for part in shown["parts"]} == {"raw", "base64"}
    assert {(part["width"], part["eol"]) for part in shown["parts"]} == {(0, ""), (76, "\r\n")}
    decoded = sum(part["stored_bytes"] for part in shown["parts"] if part["width"])
    assert decoded == pytest.approx(400 * 57, abs=57)
    assert shown["replays"] == [
        {
            "run": "run-1",
            "time": "2026-03-31T12:00:00.000000Z",
            "recipient": "emil@example.org",
            "downstream": "127.0.0.1:24",
            "reply": "250 ok",
        }
    ]
    assert [leg["id"] for leg in shown["delivered"]] == [delivery.id.hex()]
    assert shown["offered"] == []


def record_replay(store: Store, delivery: DeliveryId) -> None:
    done = threading.Event()
    replay = Replay(
        delivery=delivery, time_us=NOON_US, run="run-1", recipient=b"emil@example.org",
        downstream="127.0.0.1:24", reply=b"250 ok",
    )  # fmt: skip
    store.writer.submit(Submission(entries=[replay], done=lambda _error: done.set()))
    assert done.wait(60)


def test_text_and_both_legs(tmp_path: Path) -> None:
    with written(tmp_path / "store") as fill:
        offered = fill.put(leg=Leg.MILTER, queue_id=b"Q1", to=[b"anna@example.org", b"bcc@example.org"])
        first = fill.put(
            queue_id=b"Q1", to=[b"anna@example.org"], replies=[b"451 4.3.0 try\r\nagain \x1b"],
            subject=b"=?utf-8?q?=C3=A4h?=", message_id=b"<1@x>",
            attributes={"NAME": b"mx\x07"}, notes=("from-spool",),
        )  # fmt: skip
        second = fill.put(queue_id=b"Q1", to=[b"anna@example.org"], replies=[b"250 2.0.0 Saved"])
        record_replay(fill.store, second.id)
        # The same queue id, used again: too late, or for another message.
        fill.put(queue_id=b"Q1", leg=Leg.MILTER, time_us=NOON_US + 6 * DAY_US)
        fill.put(queue_id=b"Q1", leg=Leg.MILTER, time_us=NOON_US + DAY_US, message_id=b"<other@x>")
        fill.put(queue_id=b"Q2", leg=Leg.MILTER, time_us=NOON_US + 3 * SECOND_US)
        third = fill.put(
            queue_id=b"Q1", time_us=NOON_US + 3 * DAY_US, message_id=b"<1@x>", to=[b"late@example.org"]
        )

    def shown(delivery: Delivery) -> str:
        ran = mailkeep("show", "--store", tmp_path / "store", delivery.id.hex())
        assert (ran.code, ran.err) == (0, "")
        return ran.out

    text = shown(first)
    assert "Leg         lmtp, refused\n" in text
    assert "Subject     äh\n" in text
    assert "  NAME = mx\\x07\n" in text
    assert "Notes       from-spool\n" in text
    assert "     47 B in 1 chunk, as it is\n" in text
    to, delivered = text.split("Offered to\n")[1].split("Delivered to\n")
    assert [line.split()[-1] for line in to.splitlines()] == ["<anna@example.org>", "<bcc@example.org>"]
    assert offered.id.hex()[:10] in to
    lines = delivered.splitlines()
    assert lines[0].endswith("this one    <anna@example.org>  451 4.3.0 try / again \\x1b")
    assert lines[1].endswith(f"{second.id.hex()[:10]}  <anna@example.org>  250 2.0.0 Saved")
    assert lines[2].endswith(f"{third.id.hex()[:10]}  <late@example.org>  no reply known")
    assert "Replays" not in text
    assert "<emil@example.org> by 127.0.0.1:24, run run-1: 250 ok" in shown(second)
    assert shown(offered).split("Offered to\n")[1].splitlines()[0].split()[2:4] == ["this", "one"]


def test_ids_that_fit_none_or_several(tmp_path: Path) -> None:
    with written(tmp_path / "store") as fill:
        put = [fill.put().id.hex() for _ in range(17)]
    twice = next(digit for digit in "0123456789abcdef" if sum(name[0] == digit for name in put) > 1)
    ran = mailkeep("show", "--store", tmp_path / "store", twice)
    assert (ran.code, ran.out) == (18, "")
    assert ran.err.startswith(f"mailkeep: '{twice}' fits ")
    assert ran.err.endswith("Give more characters of the id.\n")
    for unknown in ("f" * 32, "hello", "0" * 33):
        ran = mailkeep("show", "--store", tmp_path / "store", "--raw", unknown)
        assert (ran.code, ran.raw) == (17, b"")
        assert "`mailkeep list`" in ran.err


def test_damage_is_told_and_wrong_bytes_are_never_given(tmp_path: Path) -> None:
    with written(tmp_path / "store") as fill:
        delivery = fill.put(NOISE)
    pack = next((tmp_path / "store/streams/host").glob("*.pack"))
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1  # in the noise, which is most of the pack
    pack.write_bytes(data)
    ran = mailkeep("show", "--store", tmp_path / "store", "--raw", delivery.id.hex())
    assert ran.code == 15
    assert NOISE.startswith(ran.raw)
    assert ran.err.startswith("mailkeep: ")
    assert "check --read-data" in ran.err
    assert mailkeep("show", "--store", tmp_path / "store", delivery.id.hex()).code == 0


def test_raw_and_json_exclude_each_other(tmp_path: Path) -> None:
    assert mailkeep("show", "--store", tmp_path, "--raw", "--json", "ab").code == 2
