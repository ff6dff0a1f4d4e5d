"""Where mail is imported from: what each kind of source finds, and what it says of what it cannot read."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.export import with_lf, with_quoted_from
from sidecar.intake import Found
from sidecar.line_ends import LineEnds, Lines
from sidecar.sources import maildir, mbox
from sidecar.sources.dates import from_line_us, received_us
from sidecar.sources.detect import source_at
from sidecar.sources.eml import NO_HEADER, EmlSource
from sidecar.sources.format import Format
from sidecar.sources.imap import SourceError, account, is_url
from sidecar.sources.maildir import MaildirSource
from sidecar.sources.mbox import MboxSource, unquoted
from sidecar.sources.source import Skipped, Wanted

WANTED = Wanted(recipient=b"anna@example.org")
THEN_S = 1_700_000_000
FROM = b"From bert@example.com Tue Nov 14 22:13:20 2023\n"


def read(found: Found) -> bytes:
    return b"".join(Lines(found.pieces(), found.line_ends))


def parted(found: Iterable[Found | Skipped]) -> tuple[list[Found], list[Skipped]]:
    everything = list(found)
    return (
        [one for one in everything if isinstance(one, Found)],
        [one for one in everything if isinstance(one, Skipped)],
    )


def put(path: Path, data: bytes, *, at_s: int = THEN_S) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (at_s, at_s))
    return path


def from_mbox(path: Path, data: bytes, wanted: Wanted = WANTED) -> list[Found]:
    path.write_bytes(data)
    found, skipped = parted(MboxSource(path).messages(wanted))
    assert skipped == []
    return found


# -- Maildir


def test_maildir_folders_flags_and_times(tmp_path: Path) -> None:
    put(tmp_path / "new/1700000000.M1P2.host", b"Subject: new\n\nx\n", at_s=THEN_S + 9)
    put(tmp_path / f"cur/{THEN_S + 5}.M1P2.host,S=5,W=7:2,FRSab", b"Subject: cur\n\nx")
    put(tmp_path / ".Archiv.Gr&APYA3w-e/cur/odd-name:2,", b"Subject: folder\r\n\r\nx\r\n")
    put(tmp_path / "dovecot-keywords", b"0 $Label1\nnonsense\n")
    put(tmp_path / "tmp/1700000000.M9P9.host", b"half")
    found, skipped = parted(MaildirSource(tmp_path).messages(WANTED))
    assert skipped == []
    assert [(one.folder, one.flags, one.received_us // 1_000_000, read(one)) for one in found] == [
        ("INBOX", ("\\Flagged", "\\Answered", "\\Seen", "$Label1"), THEN_S, b"Subject: cur\r\n\r\nx"),
        ("INBOX", (), THEN_S, b"Subject: new\r\n\r\nx\r\n"),
        ("Archiv.Größe", (), THEN_S, b"Subject: folder\r\n\r\nx\r\n"),
    ]
    assert MaildirSource(tmp_path).total == 3


def test_maildir_with_directories_in_directories(tmp_path: Path) -> None:
    for name in ("cur/1", "Lists/cur/2", "Lists/a/new/3", "cur/.hidden"):
        put(tmp_path / name, b"A: b\n\n")
    found, _ = parted(source_at(tmp_path).messages(Wanted(recipient=b"x@y", prefix="old")))
    assert [one.folder for one in found] == ["old/INBOX", "old/Lists", "old/Lists/a"]


def test_a_maildir_in_a_home_is_found(tmp_path: Path) -> None:
    put(tmp_path / "Maildir/cur/1", b"A: b\n\n")
    found, _ = parted(source_at(tmp_path).messages(WANTED))
    assert [one.folder for one in found] == ["INBOX"]


def test_maildir_while_the_server_renames(tmp_path: Path) -> None:
    put(tmp_path / "new/17.a", b"A: b\n\n")
    found, _ = parted(MaildirSource(tmp_path).messages(WANTED))
    (tmp_path / "cur").mkdir()
    (tmp_path / "new/17.a").rename(tmp_path / "cur/17.a:2,S")
    assert read(found[0]) == b"A: b\r\n\r\n"


def test_maildir_tells_what_is_bad(tmp_path: Path) -> None:
    put(tmp_path / "cur/empty", b"")
    (tmp_path / "cur/dangling").symlink_to("nowhere")
    (tmp_path / "cur/directory").mkdir()
    os.mkfifo(tmp_path / "cur/fifo")
    (tmp_path / "cur/link").symlink_to(put(tmp_path / "../others/cur/1", b"A: secret\n\n"))
    (tmp_path / ".Folder").symlink_to("../others")
    (tmp_path / "new").symlink_to("../others/cur")
    put(tmp_path / f"cur/{THEN_S}.M1P2.host", b"no header at all")
    put(tmp_path / "cur/README.txt", b"What this is\n\nNote: nothing\n")
    put(tmp_path / "cur/random", bytes(range(256)))
    put(tmp_path / "cur/renamed", b"\nA: b\n\nx\n")
    found, skipped = parted(MaildirSource(tmp_path).messages(WANTED))
    assert [read(one) for one in found] == [b"no header at all", b"\r\nA: b\r\n\r\nx\r\n"]
    assert {Path(one.origin).name: one.reason for one in skipped} == {
        "dangling": "cannot be read: No such file or directory",
        "directory": "is no file",
        "empty": "is empty",
        "fifo": "is no file",
        **dict.fromkeys(("link", ".Folder", "new"), maildir._LINK),
        "README.txt": NO_HEADER,
        "random": NO_HEADER,
    }


def test_a_file_that_is_something_else_by_now_is_not_followed(tmp_path: Path) -> None:
    file = put(tmp_path / "cur/1", b"A: b\n\n")
    found, _ = parted(MaildirSource(tmp_path).messages(WANTED))
    file.unlink()
    file.symlink_to(put(tmp_path / "secret", b"A: secret\n\n"))
    with pytest.raises(OSError, match="symbolic links"):
        read(found[0])
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(OSError, match="no file any more"):
        read(found[0])


def test_mail_of_before_1970_is_not_left_out(tmp_path: Path) -> None:
    put(tmp_path / "cur/odd", b"A: b\n\n", at_s=-5000)
    put(tmp_path / "eml/odd.eml", b"A: b\n\n", at_s=-5000)
    for source in (MaildirSource(tmp_path), EmlSource(tmp_path / "eml")):
        assert len(parted(source.messages(WANTED))[0]) == 1


def test_an_mbox_that_was_written_anew_gives_no_halves(tmp_path: Path) -> None:
    path = tmp_path / "box"
    before = [FROM + b"Subject: %d\n\nbody\n\n" % number for number in range(3)]
    path.write_bytes(b"".join(before))
    found, _ = parted(MboxSource(path).messages(WANTED))
    new = tmp_path / "box.new"
    new.write_bytes(b"".join(before))
    new.rename(path)  # even where the same is in it: one cannot know
    with pytest.raises(OSError, match="changed meanwhile"):
        read(found[1])
    found, _ = parted(MboxSource(path).messages(WANTED))
    path.write_bytes(b"From another\n" + b"".join(before))
    with pytest.raises(OSError, match="changed meanwhile"):
        read(found[1])


def test_long_lines_are_not_held() -> None:
    piece = b">" * (256 << 10)
    held = [len(one) for one in unquoted(piece for _ in range(40))]
    assert sum(held) == 40 * len(piece)
    assert max(held) <= len(piece) + 8
    assert b"".join(unquoted([b"\n>>", b">>F", b"rom x\n>From"])) == b"\n>>>From x\n>From"
    held = [len(one) for one in Lines((b"a" * 1000 for _ in range(10)), LineEnds.AS_FIRST)]
    assert held == [1000] * 10
    for pieces in ([b"a\r", b"\nb\n"], [b"a", b"", b"\r\nb\n"]):
        assert b"".join(Lines(pieces, LineEnds.AS_FIRST)) == b"a\r\nb\n"
    assert b"".join(Lines([b"a", b"\nb\n"], LineEnds.AS_FIRST)) == b"a\r\nb\r\n"


# -- mbox


def test_mbox_dates_flags_and_stretches(tmp_path: Path) -> None:
    found = from_mbox(
        tmp_path / "m",
        FROM + b"Status: RO\nX-Status: AF\n\n>From me\n>>From you\n> From us\nFrom here\n\nFrom there\n\n"
        b"From x Tue Nov 14 23:13:21 2023 +0100\nSubject: two\n\nX-Status: F\nno end",
    )
    first = b"Status: RO\nX-Status: AF\n\nFrom me\n>From you\n> From us\nFrom here\n\nFrom there\n"
    assert [read(one) for one in found] == [
        first.replace(b"\n", b"\r\n"),
        b"Subject: two\r\n\r\nX-Status: F\r\nno end",
    ]
    assert [one.received_us for one in found] == [THEN_S * 1_000_000, (THEN_S + 1) * 1_000_000]
    assert [one.flags for one in found] == [("\\Seen", "\\Answered", "\\Flagged"), ()]
    assert [one.folder for one in found] == ["", ""]


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n", b"x", b"\nFrom ", b"\nFrom x Tue"])
def test_mbox_cut_off_at_its_end(tmp_path: Path, end: bytes) -> None:
    (found,) = from_mbox(tmp_path / "m", FROM + b"A: b\n\nlast" + end)
    kept = b"\n" if end == b"\n\n" else end
    assert read(found) == (b"A: b\n\nlast" + kept).replace(b"\n", b"\r\n")


def test_mbox_with_crlf(tmp_path: Path) -> None:
    data = (FROM + b"A: 1\n\none\n\n" + FROM + b"A: 2\n\ntwo\n\n").replace(b"\n", b"\r\n")
    assert [read(one) for one in from_mbox(tmp_path / "m", data)] == [
        b"A: 1\r\n\r\none\r\n",
        b"A: 2\r\n\r\ntwo\r\n",
    ]


def test_mbox_without_dates_goes_by_empty_lines(tmp_path: Path) -> None:
    data = b"From bert\nDate: Tue, 14 Nov 2023 22:13:20 +0000\n\na\nFrom here\n\nFrom bert\nA: 2\n\nb\n"
    found = from_mbox(tmp_path / "m", data)
    assert [read(one)[-8:] for one in found] == [b"m here\r\n", b"2\r\n\r\nb\r\n"]
    assert found[0].received_us == THEN_S * 1_000_000


def test_mbox_of_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [b"A: %d\n\n" % n + b"y" * (n % 50) + b"\n" for n in range(40)]
    data = b"".join(FROM + message + b"\n" for message in messages)
    for block in (1, 7, 64, 1000):
        monkeypatch.setattr(mbox, "_BLOCK_BYTES", block)
        found = from_mbox(tmp_path / "m", data)
        assert [read(one) for one in found] == [one.replace(b"\n", b"\r\n") for one in messages]


LINES = st.sampled_from(
    [b"", b"From ", b">From x", b">>From ", b"From a Tue Nov 14 22:13:20 2023", b"Fro", b"x", b"\0\xff", b">"]
)


@given(
    messages=st.lists(st.lists(LINES, min_size=1, max_size=6), min_size=1, max_size=4), cut=st.integers(1, 9)
)
def test_what_is_exported_to_mbox_comes_back(
    tmp_path_factory: pytest.TempPathFactory, messages: list[list[bytes]], cut: int
) -> None:
    originals = [b"A: b\r\n" + b"".join(line + b"\r\n" for line in lines) for lines in messages]
    written = b""
    for message in originals:
        written += FROM + b"".join(with_quoted_from(with_lf([message]))) + b"\n"
    assert [read(one) for one in from_mbox(tmp_path_factory.mktemp("m") / "m", written)] == originals
    for message in originals:
        quoted = b"".join(with_quoted_from([message]))
        pieces = [quoted[at : at + cut] for at in range(0, len(quoted), cut)]
        assert b"".join(unquoted(pieces)) == message


def test_a_large_mbox_is_not_held(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "m"
    with path.open("wb") as file:
        for n in range(20):
            file.write(FROM + b"A: %d\n\n" % n + b"0123456789abcde\n" * 65536 + b"\n")
    tracemalloc.start()
    found, _ = parted(MboxSource(path).messages(WANTED))
    sizes = [sum(map(len, Lines(one.pieces(), one.line_ends))) for one in found]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(sizes) == 20
    assert min(sizes) > 1 << 20
    assert peak < 5 << 20


def test_mbox_tells_what_is_bad(tmp_path: Path) -> None:
    put(tmp_path / "a", b"")
    put(tmp_path / "b.mbox", FROM + b"A: b\n\n\n")
    put(tmp_path / "c", b"Subject: no mbox\n\n")
    put(tmp_path / "d", FROM + b"\n" + FROM + b"A: b\n\nx\n")
    found, skipped = parted(MboxSource(tmp_path).messages(WANTED))
    assert [one.folder for one in found] == ["b", "d"]
    assert [one.reason for one in skipped] == [
        "is empty",
        "is no mbox: its first line does not begin with 'From '",
        "is empty",
    ]


# -- .eml


def test_eml_folders_and_dates(tmp_path: Path) -> None:
    top = b"Received: from a\r\n\tby b; Tue, 14 Nov 2023 22:13:20 +0000 (UTC)\r\n"
    put(tmp_path / "1.eml", top + b"Date: Mon, 1 Jan 2001 00:00:00 +0000\r\n\r\nbare \n LF\r\n")
    put(tmp_path / "sub/deep/2.EML", b"Date: Tue, 14 Nov 2023 23:13:21 +0100\n\nx\n")
    put(tmp_path / "sub/3.eml", b"Date: never\nA: b\xff\0\n\n", at_s=THEN_S + 2)
    put(tmp_path / "sub/notes.txt", b"A: b\n\n")
    put(tmp_path / "sub/.4.eml", b"A: b\n\n")
    found, skipped = parted(EmlSource(tmp_path).messages(WANTED))
    assert skipped == []
    assert [(one.folder, one.received_us // 1_000_000 - THEN_S) for one in found] == [
        ("", 0),
        ("sub", 2),
        ("sub/deep", 1),
    ]
    assert read(found[0]) == (tmp_path / "1.eml").read_bytes()
    assert read(found[1]) == b"Date: never\r\nA: b\xff\0\r\n\r\n"
    since = Wanted(recipient=b"x@y", since_us=(THEN_S + 1) * 1_000_000, until_us=(THEN_S + 2) * 1_000_000)
    assert [one.folder for one in parted(EmlSource(tmp_path).messages(since))[0]] == ["sub/deep"]
    assert [read(one) for one in parted(source_at(tmp_path / "sub/3.eml").messages(WANTED))[0]]


def test_eml_tells_what_is_bad(tmp_path: Path) -> None:
    put(tmp_path / "1.eml", b"")
    put(tmp_path / "2.eml", b"\x89PNG\r\n\0\0\0")
    (tmp_path / "3.eml").symlink_to("nowhere")
    _, skipped = parted(EmlSource(tmp_path).messages(WANTED))
    assert [one.reason for one in skipped] == [
        "is empty",
        "is no mail: there is no header field in it",
        "cannot be read: No such file or directory",
    ]


def test_what_may_not_be_read_is_told(tmp_path: Path) -> None:
    put(tmp_path / "cur/1.eml", b"A: b\n\n").chmod(0)
    if os.access(tmp_path / "cur/1.eml", os.R_OK):
        pytest.skip("root may read everything")
    secret = [tmp_path / ".Secret", tmp_path / "secret", tmp_path / "listed"]
    for folder in secret:
        put(folder / "cur/2.eml", b"A: b\n\n")
        put(folder / "inner/cur/2.eml", b"A: b\n\n")
        folder.chmod(0o400 if folder.name == "listed" else 0)
    try:
        for source in (MaildirSource(tmp_path), EmlSource(tmp_path)):
            found, skipped = parted(source.messages(WANTED))
            for one in found:  # which the intake tells
                with pytest.raises(PermissionError):
                    read(one)
            assert {one.reason for one in skipped} == {"cannot be read: Permission denied"}
            named = {Path(one.origin).name for one in (*found, *skipped)}
            assert {"1.eml", "secret"} <= named
        with pytest.raises(SourceError, match="secret: cannot be read: Permission denied"):
            source_at(tmp_path / "secret")
    finally:
        for folder in secret:
            folder.chmod(0o700)


# -- which kind, and dates


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    put(tmp_path / "maildir/new/1", b"A: b\n\n")
    put(tmp_path / "mboxes/in", FROM + b"A: b\n\n")
    put(tmp_path / "emls/x/1.eml", b"A: b\n\n")
    put(tmp_path / "both/1.eml", b"A: b\n\n")
    put(tmp_path / "both/2", FROM)
    put(tmp_path / "message", b"A: b\n\n")
    put(tmp_path / "neither", b"\0\1\2")
    put(tmp_path / "none/x", b"\0")
    expected = {"maildir": "maildir", "mboxes": "mbox", "mboxes/in": "mbox", "emls": "eml", "message": "eml"}
    assert {name: source_at(tmp_path / name).kind for name in expected} == expected
    for name, words in {
        "both": "has both", "neither": "is neither", "none": "no Maildir", "gone": "No such file",
    }.items():  # fmt: skip
        with pytest.raises(SourceError, match=f"{name}: .*{words}"):
            source_at(tmp_path / name)
    with pytest.raises(SourceError, match="is no Maildir"):
        source_at(tmp_path / "emls", Format.MAILDIR)
    with pytest.raises(SourceError, match="is a path"):
        source_at(tmp_path / "emls", Format.IMAP)


def test_dates() -> None:
    assert from_line_us(b"From - Tue Nov 14 22:13:20 2023\r\n") == THEN_S * 1_000_000
    assert from_line_us(b"From x@y Tue Nov 14 23:13:20 +0100 2023\n") == THEN_S * 1_000_000
    assert from_line_us(b"From x@y Tue, Nov 14 22:13 2023") == (THEN_S - 20) * 1_000_000
    for line in (b"From x", b"From x Tue Foo 14 22:13:20 2023", b"From x Tue Nov 31 22:13:20 2023"):
        assert from_line_us(line) is None
    tomorrow = time.strftime("%a, %d %b %Y %T +0000", time.gmtime(time.time() + 10 * 86400)).encode()
    assert received_us(b"Date: " + tomorrow + b"\n\n") is None
    for value in (
        b"",
        b"Mon, 99 Foo",
        b"Mon, 1 Jan 99999 00:00:00",
        b"\xff\xfe",
        b"1 Jan 1950 00:00:00 +0000",
    ):
        assert received_us(b"Received: x; " + value + b"\nDate: " + value + b"\n\n") is None


def test_accounts() -> None:
    assert is_url("imap://a@b")
    assert not is_url("/path/imap://x")
    assert [str(part) for part in account("imaps://anna%40example.org@host.example")] == [
        "host.example:993", "anna@example.org", "tls",
    ]  # fmt: skip
    assert account("imap://anna@example.org@127.0.0.1:1143")[1:] == ("anna@example.org", "none")
    assert account("imap://anna@mail.example")[2] == "starttls"
    for url in ("imap://host", "imap://a@host/INBOX", "imap://a@host:port"):
        with pytest.raises(SourceError):
            account(url)
    with pytest.raises(SourceError, match="password"):
        account("imap://a:secret@host")
