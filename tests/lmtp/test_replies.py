"""Replies and capabilities: kept byte by byte, wherever the stream is cut."""

import pytest

from sidecar.lmtp import Capabilities, Reply, ReplyError, ReplyParser
from sidecar.lmtp.replies import MAX_REPLY_BYTES

STREAMS = [
    ([b"250 ok\r\n"], [250]),
    ([b"250\r\n"], [250]),
    ([b"250 bare\n", b"451 4.2.0 later\r\n"], [250, 451]),
    ([b"250-one\r\n250-two\r\n250 three\r\n", b"354 go\r\n"], [250, 354]),
    ([b"250-\r\n250 \r\n"], [250]),
    ([b"552 5.2.2 \xff\xfe\x00 \xc3\xa9\r\n", b"250-a\n250 b\n"], [552, 250]),
]


@pytest.mark.parametrize(("raws", "codes"), STREAMS)
def test_split_at_every_byte(raws: list[bytes], codes: list[int]) -> None:
    stream = b"".join(raws)
    for cut in range(len(stream) + 1):
        parser = ReplyParser()
        replies = parser.feed(stream[:cut]) + parser.feed(stream[cut:])
        assert [r.raw for r in replies] == raws
        assert [r.code for r in replies] == codes
    parser = ReplyParser()
    assert [r.raw for i in range(len(stream)) for r in parser.feed(stream[i : i + 1])] == raws


@pytest.mark.parametrize(
    "stream",
    [
        b"hello\r\n",
        b"25 ok\r\n",
        b"650 ok\r\n",
        b"150 ok\r\n",
        b"250-a\r\n251 b\r\n",
        b"2500\r\n",
        b"\r\n",
        b"\n",
    ],
)
def test_what_is_no_reply(stream: bytes) -> None:
    with pytest.raises(ReplyError):
        ReplyParser().feed(stream)


def test_a_reply_is_bounded() -> None:
    parser = ReplyParser()
    line = b"250-" + b"x" * 994 + b"\r\n"
    for _ in range(MAX_REPLY_BYTES // len(line)):
        assert parser.feed(line) == []
    with pytest.raises(ReplyError):
        parser.feed(line)
    with pytest.raises(ReplyError):
        ReplyParser().feed(b"250 " + b"x" * MAX_REPLY_BYTES)


def test_many_replies_in_one_piece_are_no_long_reply() -> None:
    assert len(ReplyParser().feed(b"250 2.1.5 ok\r\n" * 10_000)) == 10_000


def test_a_reply_knows_its_kind() -> None:
    reply = Reply.of(b"552-5.2.2 over\r\n552 5.2.2 quota\r\n")
    assert (reply.permanent, reply.transient, reply.positive, reply.intermediate) == (
        True,
        False,
        False,
        False,
    )
    assert reply.enhanced_code == b"5.2.2"
    assert reply.text == b"552-5.2.2 over\r\n552 5.2.2 quota"
    assert Reply.of(b"250 ok\n").text == b"250 ok"
    assert Reply.of(b"250 ok then\r\n").enhanced_code == b""
    assert Reply.of(b"354 \r\n").intermediate
    assert Reply.of(b"451 4.3\r\n").transient


def test_capabilities_are_mirrored_as_far_as_we_can_keep_them() -> None:
    reply = Reply.of(
        b"250-mail.example Hello\r\n250-8bitmime\r\n250-SIZE 1000\r\n250-DSN\r\n250-CHUNKING\r\n"
        b"250-AUTH PLAIN\r\n250-XCLIENT ADDR\r\n250-STARTTLS\r\n250 PIPELINING\r\n"
    )
    known = Capabilities.parse(reply)
    assert known.pipelining
    assert known.chunking
    assert known.lhlo_reply(b"keep.example") == (
        b"250-keep.example\r\n250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-SIZE 1000\r\n"
        b"250 XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE\r\n"
    )


def test_nothing_is_offered_for_a_server_that_offers_nothing() -> None:
    known = Capabilities.parse(Reply.of(b"250 mail.example\r\n"))
    assert not known.pipelining
    assert not known.chunking
    assert known.mirrored == {}
    assert b"SMTPUTF8" not in known.lhlo_reply(b"h")
