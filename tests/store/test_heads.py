"""Heads and signed notes as text: what is written is read back, and nothing else passes for it.

What would break these: a name with an odd character, a signature over other bytes than Go's sumdb/note has, a
line that a later version adds taken for damage.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.heads import Head, HeadError, StreamHead, parse
from store.notes import BadKeyError, SignatureError, SignKey, VerifyKey, split

# The example in the documentation of golang.org/x/mod/sumdb/note.
GO_SIGNS = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
GO_VERIFIES = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
)
GO_SIGNATURE = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
GO_NOTE = f"{GO_TEXT}\n— PeterNeumann {GO_SIGNATURE}\n"
HASH = "A" * 43 + "="

hashes = st.binary(min_size=32, max_size=32)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def test_a_note_is_that_of_go() -> None:
    signs, verifies = SignKey.parse(GO_SIGNS), VerifyKey.parse(GO_VERIFIES)
    assert signs.verify_key == verifies
    assert (str(signs), str(verifies)) == (GO_SIGNS, GO_VERIFIES)
    assert signs.sign(GO_TEXT) == GO_NOTE
    assert verifies.verify(GO_NOTE) == GO_TEXT


def test_two_signatures() -> None:
    first, second = SignKey.generate("one"), SignKey.generate("two")
    text = "a head\nof two lines\n"
    note = first.sign(text) + second.sign(text).rpartition("\n\n")[2]
    assert first.verify_key.verify(note) == second.verify_key.verify(note) == text
    assert [name for name, _ in split(note)[1]] == ["one", "two"]
    for wrong in (text, note.replace("two lines", "six lines"), note.replace("— one", "— ono")):
        with pytest.raises(SignatureError):
            first.verify_key.verify(wrong)
    with pytest.raises(SignatureError, match="not a signature"):
        split("text\n\nno signature\n")


@pytest.mark.parametrize("wrong", ["", "a", "a+b", "a+12345678+!", GO_VERIFIES.replace("c7", "c8"), GO_SIGNS])
def test_what_is_no_key(wrong: str) -> None:
    with pytest.raises(BadKeyError):
        VerifyKey.parse(wrong)
    with pytest.raises(BadKeyError):
        SignKey.parse(wrong.removeprefix("PRIVATE"))
    with pytest.raises(BadKeyError):
        SignKey.generate("two words")


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(names, st.tuples(st.integers(1, 1 << 60), hashes, hashes), max_size=5),
    st.integers(0, 1 << 52),
    st.binary(min_size=16, max_size=16),
)
def test_what_is_written_is_read(
    streams: dict[str, tuple[int, bytes, bytes]], time_us: int, store: bytes
) -> None:
    heads = tuple(StreamHead(name, *rest) for name, rest in sorted(streams.items()))
    head = Head(store, time_us, heads[1:], tuple(stream.name for stream in heads[:1]))
    text = head.text()
    assert parse(text) == head
    assert parse(text + "origin of a later version\n") == head
    assert "\n\n" not in text
    assert SignKey.parse(GO_SIGNS).sign(text).startswith(text)
    for line in text.splitlines()[:3]:
        with pytest.raises(HeadError):
            parse(text.replace(line + "\n", "", 1))


@pytest.mark.parametrize(
    "line",
    [
        "stream 1 AAAA AAAA a",
        "stream x " + "A" * 43 + "= " + "A" * 43 + "= a",
        "stream 1",
        "gap",
        "store zz",
        "time yesterday",
        "time 2026-11-25T06:40:00",
        "gap a\ngap a",
        "gap ",
        "gap %61",
        "gap a%2fb",
        "gap a\x0bstore 00",
        "later\x85gap b",
        "later\u2028gap b",
        "later\r",
        "",
        "store " + "78" * 16,
        "time 1970-01-01T00:00:00.000000Z",
        *(
            f"stream {facts} {'A' * 43}= {'A' * 43}= a"
            for facts in ("-1", "+1", "01", "1_0", "\u0661", "1" * 20)
        ),
    ],
)
def test_what_is_no_head(line: str) -> None:
    with pytest.raises(HeadError):
        parse(Head(b"x" * 16, 0, ()).text() + line + "\n")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("78" * 16, "78" * 15),
        ("78" * 16, "78" * 17),
        ("78" * 16, "7A" * 16),
        (".000000Z", "Z"),
        (".000000Z", ".000000+00:00"),
        ("T00", "T25"),
        ("\n", "\r\n"),
        ("\n", "\u2028"),
    ],
)
def test_a_head_is_written_in_one_way(right: str, wrong: str) -> None:
    text = Head(b"x" * 16, 0, ()).text()
    assert parse(text).store_id == b"x" * 16
    with pytest.raises(HeadError):
        parse(text.replace(right, wrong))


@pytest.mark.parametrize("end", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\r"])
def test_only_a_line_feed_ends_a_signature(end: str) -> None:
    """Else one reader would see two signatures where another sees one."""
    note = SignKey.generate("one").sign("text\n")
    assert len(split(note)[1]) == 1
    with pytest.raises(SignatureError, match="not a signature"):
        split(note.removesuffix("\n") + end + note.rpartition("\n\n")[2])
    for wrong in (f"text\n\n— one{end} AAAA\n", "text\n\n— one é\n"):
        with pytest.raises(SignatureError, match="not a signature"):
            split(wrong)
    with pytest.raises(BadKeyError):
        SignKey.generate(f"o{end}e")


@pytest.mark.parametrize("name", ["o\x1bne", "o\x7fne", "o\x9bne"])
def test_a_key_has_no_name_that_drives_a_terminal(name: str) -> None:
    with pytest.raises(BadKeyError):
        SignKey.generate(name)


def test_a_key_in_another_script_is_no_key() -> None:
    with pytest.raises(BadKeyError):
        VerifyKey.parse("one+12345678+é")
