"""`export`: other programs read back what was captured, nothing is overwritten, failures are told."""

from __future__ import annotations

import mailbox
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.export import with_lf, with_quoted_from
from store.records import Leg
from tests.support import restoring
from tests.support.mailstore import NOON_US, mailkeep, written

MESSAGES = [
    b"Subject: one\r\n\r\nFrom me to you\r\n>From you to me\r\n.\r\n",
    b"Subject: two\r\n\r\nno line end at the end",
    b"Subject: three\r\n\r\n8-bit \xff, NUL \0, bare CR \r and LF \n>>From here\r\n",
    b"From the first line\r\n\r\n\r\n\r\n",
]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with written(tmp_path / "store") as fill:
        for number, message in enumerate(MESSAGES):
            sender = b"" if number == 1 else b"bert smith\r\nFrom x@example.com"
            fill.put(message, sender=sender, to=[b"anna@example.org", b"%d@example.org" % number])
    return tmp_path / "store"


def lf(message: bytes) -> bytes:
    return message.replace(b"\r\n", b"\n")


def test_eml_files_are_exact_and_bear_their_time(store: Path, tmp_path: Path) -> None:
    ran = mailkeep("export", "--store", store, "--format", "eml", "--output", tmp_path / "a/b")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.startswith("4 messages, ")
    files = sorted((tmp_path / "a/b").iterdir())
    assert [file.read_bytes() for file in files] == MESSAGES
    assert re.fullmatch(r"20260331T120000Z-[0-9a-f]{10}\.eml", files[0].name)
    assert files[0].stat().st_mtime_ns == NOON_US * 1000


def test_mbox_is_read_back(store: Path, tmp_path: Path) -> None:
    ran = mailkeep("export", "--store", store, "--format", "mbox", "--output", tmp_path / "mbox")
    assert ran.code == 0
    box = mailbox.mbox(tmp_path / "mbox", create=False)
    assert len(box) == len(MESSAGES)
    for key, message in zip(box.keys(), MESSAGES, strict=True):
        # Python's reader leaves mboxrd's quoting to whoever knows of it.
        read = re.sub(rb"(?m)^>(>*From )", rb"\1", box.get_bytes(key))
        assert read in (lf(message), lf(message) + b"\n")
    box.close()
    lines = (tmp_path / "mbox").read_bytes().split(b"\n")
    assert lines[0] == b"From bert_smith__From_x@example.com Tue Mar 31 12:00:00 2026"
    assert b"From MAILER-DAEMON Tue Mar 31 12:00:01 2026" in lines


def test_maildir_is_read_back(store: Path, tmp_path: Path) -> None:
    arguments = ["export", "--store", store, "--format", "maildir", "--output"]
    assert mailkeep(*arguments, tmp_path / "lf").code == 0
    assert mailkeep(*arguments, tmp_path / "crlf", "--crlf").code == 0
    for name, expected in (("lf", [lf(message) for message in MESSAGES]), ("crlf", MESSAGES)):
        assert sorted(entry.name for entry in (tmp_path / name).iterdir()) == ["cur", "new", "tmp"]
        box = mailbox.Maildir(tmp_path / name, create=False)
        assert sorted(box.get_bytes(key) for key in box.keys()) == sorted(expected)  # noqa: SIM118 - no dict
        assert list((tmp_path / name / "tmp").iterdir()) == []
        assert list((tmp_path / name / "cur").iterdir()) == []
    assert mailkeep("export", "--store", store, "--format", "eml", "--crlf", "--output", tmp_path).code == 2


def test_nothing_is_overwritten(store: Path, tmp_path: Path) -> None:
    for name in ("eml", "maildir", "mbox"):
        arguments = ["export", "--store", store, "--format", name, "--output", tmp_path / name]
        assert mailkeep(*arguments, "--limit", "2").code == 0
        before = {file: file.read_bytes() for file in tmp_path.glob(f"{name}/**/*") if file.is_file()}
        again = mailkeep(*arguments)
        assert again.code == 1
        assert "xists" in again.err
        if name != "mbox":
            assert "2 messages" in again.err
            assert "2 failed" in again.err
            assert len(list((tmp_path / name).glob("**/*.*"))) == 4
        assert {file: file.read_bytes() for file in before} == before


def test_the_newest_oldest_first_by_filter_and_by_id(store: Path, tmp_path: Path) -> None:
    arguments = ["export", "--store", store, "--format", "mbox", "--output"]
    assert mailkeep(*arguments, tmp_path / "two", "--limit", "2").code == 0
    assert re.findall(rb"(?m)^From \S+ .*:(\d\d) 2026$", (tmp_path / "two").read_bytes()) == [b"02", b"03"]
    assert mailkeep(*arguments, tmp_path / "one", "--to", "1@example.org").code == 0
    assert b"two" in (tmp_path / "one").read_bytes()
    names = [shown["id"] for shown in mailkeep("list", "--store", store, "--json").objects]
    assert mailkeep(*arguments, tmp_path / "ids", names[0], names[2][:10], names[0]).code == 0
    assert re.findall(rb"(?m)^From \S+ .*:(\d\d) 2026$", (tmp_path / "ids").read_bytes()) == [b"01", b"03"]
    none = mailkeep(*arguments, tmp_path / "none", "--to", "nobody@example.org")
    assert none.code == 0
    assert none.err.startswith("0 messages")
    assert mailkeep(*arguments, tmp_path / "unknown", "f" * 32).code == 17


@pytest.mark.parametrize("name", ["eml", "mbox", "maildir"])
def test_a_damaged_message_does_not_keep_the_others(tmp_path: Path, name: str) -> None:
    noise = [os.urandom(30_000) for _ in range(3)]
    with written(tmp_path / "store") as fill:
        for message in noise:
            fill.put(b"Subject: x\r\n\r\n" + message.hex().encode() + message, leg=Leg.LMTP)
    pack = next((tmp_path / "store/streams/host").glob("*.pack"))
    data = bytearray(pack.read_bytes())
    data[data.find(noise[1]) if noise[1] in data else len(data) // 2] ^= 1
    pack.write_bytes(data)
    output = tmp_path / "out"
    ran = mailkeep("export", "--store", tmp_path / "store", "--format", name, "--output", output)
    assert ran.code == 1
    assert "2 messages" in ran.err
    assert "; 1 failed" in ran.err
    files = [output] if name == "mbox" else [file for file in output.glob("**/*") if file.is_file()]
    whole = b"".join(file.read_bytes() for file in files)
    assert whole.count(b"Subject: x") == 2
    assert [lf(message) in lf(whole) for message in noise] == [True, False, True]


@given(
    st.lists(st.sampled_from([b"From ", b"From", b">", b"F", b"rom ", b"\r\n", b"\n", b"\r", b"x", b" "])),
    st.integers(1, 7),
)
def test_conversions_do_not_depend_on_how_the_message_is_cut(words: list[bytes], step: int) -> None:
    message = b"".join(words)
    pieces = [message[at : at + step] for at in range(0, len(message), step)]
    assert b"".join(with_lf(pieces)) == lf(message)
    quoted = b"".join(with_quoted_from(pieces))
    assert quoted == re.sub(rb"(?m)^(>*From )", rb">\1", message)
    assert re.sub(rb"(?m)^>(>*From )", rb"\1", quoted) == message


def test_a_line_of_nothing_but_quotes_is_not_held() -> None:
    kept = with_quoted_from([b">" * 1000] * 3 + [b"From x"])
    assert [len(piece) for piece in kept][:3] == [1000, 1000, 1000]


def test_a_maildir_keeps_the_flags_of_imported_mail(tmp_path: Path) -> None:
    flags = [b"\\Seen $Work \\flagged", b"$Work", b"$Forwarded \\Answered \\Draft \\Deleted"]
    restoring.fill(tmp_path / "store", MESSAGES[:1])
    for message, word in zip(MESSAGES[1:], flags, strict=True):
        restoring.fill(tmp_path / "store", [message], leg=Leg.IMPORT, flags=word, folder=b"Archive")
    export = ["export", "--store", tmp_path / "store", "--format", "maildir", "--output", tmp_path / "box"]
    for code in (0, 1):  # the second time they are there
        ran = mailkeep(*export, "--leg", "import")
        assert ran.code == code, ran.err
    box = mailbox.Maildir(tmp_path / "box", create=False)
    found = sorted((message.get_subdir(), message.get_flags()) for message in box)
    assert found == [("cur", "DPRT"), ("cur", "FS"), ("new", "")]
    assert mailkeep(*export, "--limit", "2").err.startswith("1 messages"), "of those that went through LMTP"
