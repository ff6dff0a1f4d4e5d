"""The promise: no end downstream before the store has the message, no 250 that the server did not give."""

from __future__ import annotations

import asyncio

import pytest

from sidecar.capture import CaptureFailedError
from sidecar.downstream import CHUNK_BYTES
from sidecar.front import FrontLimits
from store.errors import StoreError
from tests.support.lmtp_stage import Client, Stage, settle
from tests.support.waiting import until

MAIL = b"MAIL FROM:<s@example.org>\r\n"
ONE = b"RCPT TO:<one@example.org>\r\n"
TWO = b"RCPT TO:<two@example.org>\r\n"
THREE = b"RCPT TO:<three@example.org>\r\n"
BODY = b"Subject: x\r\n\r\nhello\r\n"
SAVED_ONE = b"250 2.0.0 <one@example.org> Saved\r\n"
SAVED_TWO = b"250 2.0.0 <two@example.org> Saved\r\n"
SAVED_THREE = b"250 2.0.0 <three@example.org> Saved\r\n"
SOME_MB = (b"0123456789abcdef" * 4 + b"\r\n") * 50_000


async def begin(stage: Stage, *recipients: bytes, ident: bytes = b"") -> Client:
    """A client that has got its 354."""
    client = await stage.greeted(ident)
    await client.send(MAIL + b"".join(recipients or (ONE,)) + b"DATA\r\n")
    assert (await client.replies(len(recipients or (ONE,)) + 2))[-1].startswith(b"354")
    return client


def ended(wire: bytes) -> bool:
    """Whether a mailbox server would take the message for complete."""
    return b" LAST\r\n" in wire or b"\r\n.\r\n" in wire


@pytest.mark.parametrize("message", [b"", BODY, SOME_MB], ids=["empty", "small", "large"])
@pytest.mark.parametrize("chunking", [False, True])
async def test_no_end_before_the_commit(stage: Stage, chunking: bool, message: bytes) -> None:
    stage.sink.chunking = chunking
    gate = stage.capturer.commit_gate = asyncio.Event()
    client = await begin(stage)
    await client.send(message + b".\r\n")
    if len(message) > CHUNK_BYTES:
        await until(lambda: len(stage.sink.wire[0]) > len(message) - 2 * CHUNK_BYTES)
    await settle()
    assert not ended(stage.sink.wire[0])
    assert stage.sink.delivered == []
    gate.set()
    assert await client.reply() == SAVED_ONE
    assert stage.sink.delivered[0].message == message
    assert stage.capturer.kept[0].message == message


async def test_each_reply_is_relayed_as_it_arrives(stage: Stage) -> None:
    stage.sink.gates = {TWO[:-2]: asyncio.Event(), THREE[:-2]: asyncio.Event()}
    client = await begin(stage, ONE, TWO, THREE)
    assert await client.say(BODY + b".\r\n") == SAVED_ONE
    stage.sink.gates[TWO[:-2]].set()
    assert await client.reply() == SAVED_TWO
    stage.sink.gates[THREE[:-2]].set()
    assert await client.reply() == SAVED_THREE


# -- bytes

ODD = [
    b"\0\xff\x80 \0\r\n",
    b"bare \r cr and bare \n lf\r\n",
    b"x" * 3_000_000 + b"\r\n",
    b"..\r\n.a\r\n...\r\n.\r\n",
    b"a\r\n.\r\nMAIL FROM:<smuggled@example.org>\r\n",
    b"\r\n",
    b"\n.a\r\n",
]
SMUGGLING = [
    b"a\n.\nMAIL FROM:<smuggled@example.org>\r\n",
    b"a\n.\r\nMAIL FROM:<smuggled@example.org>\r\n",
    b"x" * 400_000 + b"\n.\r\nMAIL FROM:<smuggled@example.org>\r\n",
    b"a\r\n\n.\n\r\n",
]
HARMLESS = [b"a\r\n.\nMAIL FROM:<smuggled@example.org>\r\n", b"a\r.\rMAIL FROM:<smuggled@example.org>\r\n"]


def stuffed(message: bytes) -> bytes:
    return (b"\r\n" + message).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n"


@pytest.mark.parametrize("chunking", [False, True])
@pytest.mark.parametrize("message", [*ODD, *HARMLESS])
async def test_any_bytes_pass(stage: Stage, message: bytes, chunking: bool) -> None:
    stage.sink.chunking = chunking
    client = await begin(stage)
    assert await client.say(stuffed(message)) == SAVED_ONE
    assert stage.sink.delivered[0].message == message
    assert stage.capturer.kept[0].message == message


@pytest.mark.parametrize("message", SMUGGLING)
async def test_smuggling_passes_as_text_through_bdat(stage: Stage, message: bytes) -> None:
    stage.sink.lax = True
    client = await begin(stage)
    assert await client.say(stuffed(message)) == SAVED_ONE
    assert [delivered.message for delivered in stage.sink.delivered] == [message]


@pytest.mark.parametrize("message", HARMLESS)
async def test_what_a_lax_server_takes_for_text_passes(stage: Stage, message: bytes) -> None:
    stage.sink.lax, stage.sink.chunking = True, False
    client = await begin(stage)
    assert await client.say(stuffed(message)) == SAVED_ONE
    assert [delivered.message for delivered in stage.sink.delivered] == [message]


@pytest.mark.parametrize("lax", [False, True])
@pytest.mark.parametrize("message", SMUGGLING)
async def test_smuggling_is_refused_where_there_is_only_data(stage: Stage, message: bytes, lax: bool) -> None:
    stage.sink.lax, stage.sink.chunking = lax, False
    client = await begin(stage, ONE, TWO)
    await client.send(stuffed(message))
    replies = await client.replies(2)
    assert replies[0].startswith(b"550 5.6.0 Message has a bare newline before a dot")
    assert replies[1] == replies[0]
    await settle()
    assert stage.sink.delivered == []
    assert b"smuggled" not in b"".join(stage.sink.wire)
    kept = stage.capturer.kept[0]
    assert kept.message == message
    assert [outcome.source for outcome in kept.outcomes] == ["mailkeep"] * 2
    assert (await client.say(MAIL)).startswith(b"250")


async def test_upstream_only_crlf_dot_crlf_is_an_end(stage: Stage) -> None:
    client = await begin(stage)
    await client.send(b"a\n.\nb\n.\r\nc\r\n.\nQUIT\r\n.\r")
    await settle()
    assert stage.capturer.kept == []
    assert await client.say(b"\n.\r\n.\r\n") == SAVED_ONE
    assert (await client.reply()).startswith(b"500 5.5.2")


async def test_25_mb_in_bounded_memory(stage: Stage) -> None:
    gate = stage.sink.gates[b"body"] = asyncio.Event()
    client = await begin(stage)
    (session,) = stage.server._sessions if stage.server else ()
    sending = asyncio.ensure_future(client.send(SOME_MB * 8 + b".\r\n"))
    # The server takes nothing, so the front takes nothing more.
    await until(lambda: session._downstream.paused and not session._reading)
    held = len(session._buffer) + session._downstream._transport.get_write_buffer_size()
    assert held < 2_000_000
    assert not sending.done()
    gate.set()
    await sending
    assert await client.reply() == SAVED_ONE
    assert stage.sink.delivered[0].message == SOME_MB * 8
    assert stage.capturer.largest_feed < 1_000_000


async def test_a_store_that_lags_stops_the_reading(stage: Stage) -> None:
    gate = stage.capturer.settle_gate = asyncio.Event()
    client = await begin(stage)
    (session,) = stage.server._sessions if stage.server else ()
    sending = asyncio.ensure_future(client.send(SOME_MB * 4 + b".\r\n"))
    await until(lambda: not session._reading)
    assert len(session._buffer) < 1_000_000
    gate.set()
    await sending
    assert await client.reply() == SAVED_ONE


# -- the store fails


@pytest.mark.parametrize(
    ("fault", "reply"),
    [
        (CaptureFailedError("disk"), b"451 4.3.0 Message could not be kept"),
        (CaptureFailedError("disk", full=True), b"451 4.3.1 "),
        (ZeroDivisionError("bug"), b"451 4.3.0 Internal error\r\n"),
    ],
)
@pytest.mark.parametrize("where", ["feed_fault", "commit_fault"])
@pytest.mark.parametrize("chunking", [False, True])
async def test_a_failed_capture_is_never_delivered(
    stage: Stage, fault: Exception, reply: bytes, where: str, chunking: bool, caplog: pytest.LogCaptureFixture
) -> None:
    stage.sink.chunking = chunking
    client = await begin(stage, ONE, TWO, ident=b"4Q1")
    setattr(stage.capturer, where, fault)
    await client.send(SOME_MB + b".\r\n")
    assert [r[: len(reply)] for r in await client.replies(2)] == [reply] * 2
    await settle()
    assert stage.sink.delivered == []
    assert not ended(stage.sink.wire[0])
    assert stage.capturer.aborted == 1
    assert ("Traceback" in caplog.text) == isinstance(fault, ZeroDivisionError)
    assert "4Q1" in caplog.text
    # The session goes on, with a new connection downstream.
    setattr(stage.capturer, where, None)
    await client.send(MAIL + ONE + b"DATA\r\n")
    await client.replies(3)
    assert await client.say(BODY + b".\r\n") == SAVED_ONE


async def test_let_through_uncaptured(stage: Stage) -> None:
    stage.capturer.uncaptured = True
    client = await begin(stage)
    assert await client.say(BODY + b".\r\n") == SAVED_ONE
    assert stage.sink.delivered[0].message == BODY


@pytest.mark.parametrize("where", ["feed_fault", "commit_fault"])
@pytest.mark.parametrize("message", [BODY, SOME_MB], ids=["small", "large"])
async def test_in_accept_mode_our_own_bug_lets_through(
    stage: Stage, where: str, message: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    stage.capturer.accept = True
    client = await begin(stage, ONE, TWO, ident=b"4Q1")
    setattr(stage.capturer, where, ZeroDivisionError("bug"))
    await client.send(message + b".\r\n")
    assert await client.replies(2) == [SAVED_ONE, SAVED_TWO]
    assert stage.sink.delivered[0].message == message
    ((queue_id, reason, aside),) = stage.capturer.given_up
    assert (queue_id, reason) == (b"4Q1", "bug")
    # All of it is put aside, or nothing.
    assert aside == (b"" if where == "feed_fault" and message is SOME_MB else message)
    assert "CRITICAL" in caplog.text
    assert "Traceback" in caplog.text


async def test_in_accept_mode_a_store_that_hangs_lets_through(stage: Stage) -> None:
    stage.capturer.accept = True
    stage.limits = FrontLimits(reply_timeout_s=2.0)
    stage.capturer.settle_gate = asyncio.Event()
    client = await begin(stage)
    await client.send(SOME_MB + b".\r\n")
    assert await client.reply() == SAVED_ONE
    assert stage.sink.delivered[0].message == SOME_MB
    assert [aside for _, _, aside in stage.capturer.given_up] == [b""]


async def test_in_accept_mode_a_commit_that_hangs_lets_through(stage: Stage) -> None:
    stage.capturer.accept = True
    stage.limits = FrontLimits(delivery_timeout_s=2.0)
    stage.capturer.commit_gate = asyncio.Event()
    client = await begin(stage)
    assert await client.say(BODY + b".\r\n") == SAVED_ONE
    assert [aside for _, _, aside in stage.capturer.given_up] == [BODY]


async def test_in_accept_mode_a_held_back_message_goes_through_next_time(stage: Stage) -> None:
    stage.capturer.accept = True
    stage.capturer.seen_ids = {b"4A"}
    stage.capturer.commit_fault = ZeroDivisionError("bug")
    assert (await deliver(stage, b"4A", BODY, ONE))[0].startswith(b"451 4.3.0")
    assert await deliver(stage, b"4A", BODY, ONE) == [SAVED_ONE]


async def test_a_fault_outside_of_a_message_is_451(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    client = await stage.greeted()
    stage.capturer.begin = lambda: 1 / 0  # type: ignore[method-assign, assignment]
    await client.send(MAIL + ONE + b"DATA\r\n")
    assert (await client.replies(3))[-1].startswith(b"451 4.3.0")
    assert await client.closed() == b""
    assert "ZeroDivisionError" in caplog.text


# -- the mailbox server fails


async def test_never_reached(stage: Stage) -> None:
    await stage.start()
    await stage.sink.stop()
    client = await stage.connect()
    assert (await client.say(b"LHLO x\r\n")).startswith(b"451 4.4.1")
    assert (await client.say(MAIL)).startswith(b"503 5.5.1")
    await stage.sink.start()
    assert (await client.say(b"LHLO x\r\n")).startswith(b"250-")


async def test_reached_before_and_down_now(stage: Stage) -> None:
    client = await stage.greeted()
    await stage.sink.stop()
    other = await stage.greeted()
    for each in (client, other):
        await each.send(MAIL + ONE + TWO + b"DATA\r\n")
        assert [r[:9] for r in await each.replies(4)] == [b"451 4.4.1"] * 4
    await stage.sink.start()
    await client.send(MAIL + ONE + b"DATA\r\n")
    assert (await client.replies(3))[-1].startswith(b"354")


@pytest.mark.parametrize("greeting", [b"421 4.3.2 busy\r\n", b"what?\r\n", b""])
async def test_a_server_that_does_not_want_us(stage: Stage, greeting: bytes) -> None:
    stage.sink.greeting = greeting
    stage.limits = FrontLimits(connect_timeout_s=0.3)
    client = await stage.connect()
    assert (await client.say(b"LHLO x\r\n")).startswith(b"451 4.")


async def test_less_capable_after_a_reconnect(stage: Stage) -> None:
    stage.sink.capabilities = (b"SMTPUTF8",)
    client = await stage.greeted()
    await stage.sink.stop()
    stage.sink.capabilities = ()
    await stage.sink.start()
    assert (await client.say(MAIL)).startswith(b"421 4.3.2")
    assert await client.closed() == b""


@pytest.mark.parametrize(
    ("step", "chunking"),
    [
        *((step, c) for step in (b"MAIL", b"RCPT", b"body", b"end", TWO[:-2]) for c in (False, True)),
        (b"DATA", False),
        (b"BDAT", True),
    ],
)
async def test_dropped_by_the_server(stage: Stage, step: bytes, chunking: bool) -> None:
    stage.sink.chunking = chunking
    client = await stage.greeted()
    stage.sink.drop_at = step
    await client.send(MAIL + ONE + TWO + b"DATA\r\n")
    replies = await client.replies(4)
    if replies[-1].startswith(b"354"):
        await client.send(BODY + b".\r\n")
        replies = await client.replies(2)
        if step == TWO[:-2]:
            assert replies.pop(0) == SAVED_ONE
    lost = [reply for reply in replies if not reply.startswith(b"250")]
    assert lost
    assert {reply[:9] for reply in lost} == {b"451 4.4.2"}
    stage.sink.drop_at = b""
    await client.send(MAIL + ONE + b"DATA\r\n")
    assert (await client.replies(3))[-1].startswith(b"354")
    assert await client.say(BODY + b".\r\n") == SAVED_ONE


async def test_dropped_in_the_middle_of_a_large_message(stage: Stage) -> None:
    stage.sink.chunk_replies = {2: b"not a reply\r\n"}
    client = await begin(stage, ONE, TWO)
    await client.send(SOME_MB + b".\r\n")
    assert [r[:7] for r in await client.replies(2)] == [b"451 4.5"] * 2
    assert stage.sink.delivered == []
    assert stage.capturer.kept[0].message == SOME_MB
    assert [o.source for o in stage.capturer.kept[0].outcomes] == ["mailkeep"] * 2


async def test_a_refused_chunk_is_everybodys_reply(stage: Stage) -> None:
    stage.sink.chunk_replies = {2: b"552 5.3.4 too \xffbig\r\n"}
    client = await begin(stage, ONE, TWO)
    await client.send(SOME_MB + b".\r\n")
    assert await client.replies(2) == [b"552 5.3.4 too \xffbig\r\n"] * 2
    assert stage.sink.delivered == []
    assert [o.source for o in stage.capturer.kept[0].outcomes] == ["downstream"] * 2
    await client.send(MAIL + ONE + b"DATA\r\n")
    assert (await client.replies(3))[-1].startswith(b"354")


@pytest.mark.parametrize("held_back", [False, True])
@pytest.mark.parametrize("pipelining", [False, True])
@pytest.mark.parametrize("stray", [b"250 2.0.0 stray\r\n", b"220 hello\r\n"])
async def test_a_stray_2xx_to_data_delivers_nothing(
    stage: Stage, stray: bytes, pipelining: bool, held_back: bool
) -> None:
    stage.sink.chunking, stage.sink.pipelining, stage.sink.data_reply = False, pipelining, stray
    stage.capturer.seen_ids = {b"4A"} if held_back else set()
    client = await stage.greeted(b"4A")
    await client.send(MAIL + ONE + TWO + b"DATA\r\n")
    *_, last = await client.replies(4)
    if held_back:
        await client.send(BODY + b".\r\n")
        last, other = await client.replies(2)
        assert other == last
    assert last.startswith(b"451 4.5.0")
    assert stage.sink.delivered == []
    assert (await client.say(b"RSET\r\n" + MAIL)).startswith(b"250")


@pytest.mark.parametrize("number", [1, 3])
async def test_a_chunk_answered_with_nonsense(stage: Stage, number: int) -> None:
    stage.sink.chunk_replies = {number: b"354 hm\r\n"}
    client = await begin(stage, ONE, TWO)
    await client.send(SOME_MB + b".\r\n")
    assert [r[:9] for r in await client.replies(2)] == [b"451 4.5.0"] * 2
    assert not ended(stage.sink.wire[0])
    assert stage.capturer.kept[0].message == SOME_MB


async def test_a_final_reply_that_is_none(stage: Stage) -> None:
    stage.sink.final_replies = {ONE[:-2]: b"354 go on\r\n"}
    client = await begin(stage, ONE, TWO)
    await client.send(BODY + b".\r\n")
    assert [r[:9] for r in await client.replies(2)] == [b"451 4.5.0"] * 2
    assert [o.source for o in stage.capturer.kept[0].outcomes] == ["mailkeep"] * 2


async def test_a_retry_whose_recipient_is_answered_with_nonsense(stage: Stage) -> None:
    stage.sink.final_replies = {TWO[:-2]: b"451 4.2.0 locked\r\n"}
    await deliver(stage, b"4A", BODY, ONE, TWO)
    client = await begin(stage, ONE, TWO, ident=b"4A")
    stage.sink.rcpt_replies = {TWO[:-2]: b"354 go on\r\n"}
    await client.send(BODY + b".\r\n")
    first, second = await client.replies(2)
    assert first == SAVED_ONE
    assert second.startswith(b"451 4.5.0")


async def test_lost_between_transactions_is_no_error(stage: Stage) -> None:
    client = await begin(stage)
    assert await client.say(BODY + b".\r\n") == SAVED_ONE
    await stage.sink.stop()
    await stage.sink.start()
    await client.send(MAIL + ONE + b"DATA\r\n")
    assert (await client.replies(3))[-1].startswith(b"354")


async def test_unasked_421_answers_no_command(stage: Stage) -> None:
    stage.sink.mail_reply = b"250 2.1.0 OK\r\n421 4.3.2 going\r\n"
    client = await stage.greeted()
    assert await client.say(MAIL) == b"250 2.1.0 OK\r\n"
    await settle()
    assert (await client.say(ONE)).startswith(b"451 4.4.2")


@pytest.mark.parametrize("gate", [b"MAIL", b"DATA", b"RSET"])
async def test_a_silent_server(stage: Stage, gate: bytes) -> None:
    stage.limits = FrontLimits(reply_timeout_s=1.0)
    stage.sink.chunking = False
    client = await stage.greeted()
    stage.sink.gates[gate] = asyncio.Event()
    await client.send(MAIL + ONE)
    mail, rcpt = await client.replies(2)
    if gate == b"MAIL":
        assert (mail[:9], rcpt[:9]) == (b"451 4.4.2", b"451 4.4.2")
    elif gate == b"DATA":
        assert (await client.say(b"DATA\r\n")).startswith(b"451 4.4.2")
    else:
        assert (await client.say(b"RSET\r\n")).startswith(b"250")
    del stage.sink.gates[gate]
    await client.send(b"RSET\r\n" + MAIL + ONE)
    assert [r[:3] for r in await client.replies(3)] == [b"250"] * 3


async def test_a_delivery_without_end_is_451_in_time(stage: Stage) -> None:
    stage.limits = FrontLimits(delivery_timeout_s=1.0)
    stage.sink.gates[TWO[:-2]] = asyncio.Event()
    client = await begin(stage, ONE, TWO, THREE)
    await client.send(BODY + b".\r\n")
    assert await client.reply() == SAVED_ONE
    assert [r[:9] for r in await client.replies(2)] == [b"451 4.4.2"] * 2
    assert [o.source for o in stage.capturer.kept[0].outcomes] == ["downstream", "mailkeep", "mailkeep"]


async def test_a_store_that_lags_for_too_long_in_all(stage: Stage) -> None:
    stage.limits = FrontLimits(delivery_timeout_s=3.0)  # a third of it for all waits
    stage.capturer.settle_s = 0.6
    client = await begin(stage, ONE, TWO)
    for number in range(2):
        await client.send(BODY)
        await until(lambda n=number: stage.capturer.fed > n * len(BODY))
    await client.send(b".\r\n")
    assert [r[:9] for r in await client.replies(2)] == [b"451 4.3.0"] * 2
    assert stage.sink.delivered == []
    stage.capturer.settle_s = 0.0
    assert (await client.say(MAIL)).startswith(b"250")


async def test_a_server_that_takes_nothing(stage: Stage) -> None:
    stage.limits = FrontLimits(delivery_timeout_s=3.0)
    stage.sink.gates[b"body"] = asyncio.Event()
    client = await begin(stage)
    await client.send(SOME_MB * 8 + b".\r\n")
    assert (await client.reply()).startswith(b"451 4.4.2")
    assert stage.capturer.kept[0].message == SOME_MB * 8


async def test_a_commit_without_end_is_451_in_time(stage: Stage) -> None:
    stage.limits = FrontLimits(delivery_timeout_s=1.0)
    stage.capturer.commit_gate = asyncio.Event()
    client = await begin(stage)
    assert (await client.say(BODY + b".\r\n")).startswith(b"451 4.4.2")
    await settle()
    assert stage.sink.delivered == []


# -- the client goes away


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"LH",
        b"LHLO x\r\n",
        b"LHLO x\r\nXFORWARD NAME=x\r\n",
        b"LHLO x\r\n" + MAIL,
        b"LHLO x\r\n" + MAIL + ONE,
        b"LHLO x\r\n" + MAIL + ONE + b"DATA\r\n",
        b"LHLO x\r\n" + MAIL + ONE + b"DATA\r\nhalf",
        b"LHLO x\r\n" + MAIL + ONE + b"DATA\r\nhalf\r\n.\r",
    ],
)
@pytest.mark.parametrize("rudely", [False, True])
@pytest.mark.parametrize("chunking", [False, True])
async def test_gone_before_the_end(stage: Stage, said: bytes, rudely: bool, chunking: bool) -> None:
    stage.sink.chunking = chunking
    client = await stage.connect()
    await client.send(said)
    await settle()
    if rudely:
        client.abort()
    else:
        client.close()
    assert stage.server
    await until(lambda: stage.server is not None and not stage.server._sessions)
    await until(lambda: not stage.sink._tasks)
    assert stage.sink.delivered == []
    assert stage.capturer.kept == []
    assert stage.capturer.aborted == (b"DATA" in said)


@pytest.mark.parametrize("chunking", [False, True])
@pytest.mark.parametrize("rudely", [False, True])
@pytest.mark.parametrize("during", ["commit", "delivery"])
async def test_gone_after_the_end(stage: Stage, during: str, rudely: bool, chunking: bool) -> None:
    stage.sink.chunking = chunking
    gate = asyncio.Event()
    if during == "commit":
        stage.capturer.commit_gate = gate
    else:
        stage.sink.gates[b"end"] = gate
    client = await begin(stage, ONE, TWO)
    await client.send(BODY + b".\r\n")
    await settle()
    if rudely:
        client.abort()
    else:
        client.close()
    await settle()
    gate.set()
    await until(lambda: stage.capturer.kept and stage.capturer.kept[0].outcomes)
    assert [o.reply + b"\r\n" for o in stage.capturer.kept[0].outcomes] == [SAVED_ONE, SAVED_TWO]
    assert stage.sink.delivered[0].message == BODY


async def test_a_client_that_half_closes_gets_its_replies(stage: Stage) -> None:
    client = await stage.connect()
    await client.send(b"LHLO x\r\n" + MAIL + ONE + b"DATA\r\n" + BODY + b".\r\n")
    client.writer.write_eof()
    assert (await client.closed()).endswith(SAVED_ONE)


async def test_a_client_that_does_not_read(stage: Stage) -> None:
    stage.limits = FrontLimits(idle_timeout_s=1.0)
    client = await stage.greeted()
    client.reader._transport.pause_reading()  # type: ignore[attr-defined]
    (session,) = stage.server._sessions if stage.server else ()
    sending = asyncio.ensure_future(client.send(b"HELP\r\n" * 1_000_000))
    await until(lambda: session._lost or sending.done() or session._link.is_closing())
    assert len(session._buffer) < 1_000_000
    client.abort()
    await asyncio.gather(sending, return_exceptions=True)


# -- retries


async def deliver(stage: Stage, ident: bytes, body: bytes, *recipients: bytes) -> list[bytes]:
    client = await begin(stage, *recipients, ident=ident)
    await client.send(body + b".\r\n")
    return await client.replies(len(recipients))


@pytest.mark.parametrize("chunking", [False, True])
async def test_a_retry_of_what_everybody_has(stage: Stage, chunking: bool) -> None:
    stage.sink.chunking = chunking
    first = await deliver(stage, b"4A", BODY, ONE, TWO)
    assert await deliver(stage, b"4A", BODY, TWO, ONE) == [first[1], first[0]]
    await until(lambda: stage.capturer.kept[1].outcomes)
    assert [o.source for o in stage.capturer.kept[1].outcomes] == ["earlier"] * 2
    assert len(stage.sink.delivered) == 1


@pytest.mark.parametrize("chunking", [False, True])
@pytest.mark.parametrize("body", [BODY, SOME_MB], ids=["small", "large"])
async def test_a_retry_of_what_some_have(stage: Stage, chunking: bool, body: bytes) -> None:
    stage.sink.chunking = chunking
    stage.sink.final_replies = {ONE[:-2]: b"452 4.2.2 full\r\n", THREE[:-2]: b"451 4.2.0 locked\r\n"}
    await deliver(stage, b"4A", body, ONE, TWO, THREE)
    stage.sink.final_replies = {}
    assert await deliver(stage, b"4A", body, ONE, TWO, THREE) == [SAVED_ONE, SAVED_TWO, SAVED_THREE]
    again = stage.sink.delivered[1]
    assert again.recipients == [ONE[:-2], THREE[:-2]]
    assert again.message == body
    outcomes = sorted(stage.capturer.kept[1].outcomes, key=lambda outcome: outcome.recipient)
    assert [o.source for o in outcomes] == ["downstream", "earlier", "downstream"]


async def test_a_retry_of_what_some_have_and_the_rest_is_refused_now(stage: Stage) -> None:
    stage.sink.final_replies = {ONE[:-2]: b"452 4.2.2 full\r\n", THREE[:-2]: b"451 4.2.0 locked\r\n"}
    await deliver(stage, b"4A", BODY, ONE, TWO, THREE)
    client = await begin(stage, ONE, TWO, THREE, ident=b"4A")
    stage.sink.rcpt_replies = {ONE[:-2]: b"550 5.1.1 gone\r\n", THREE[:-2]: b"450 4.2.0 wait\r\n"}
    await client.send(BODY + b".\r\n")
    assert await client.replies(3) == [b"550 5.1.1 gone\r\n", SAVED_TWO, b"450 4.2.0 wait\r\n"]
    assert len(stage.sink.delivered) == 1
    assert (await client.say(MAIL)).startswith(b"250")


@pytest.mark.parametrize("chunking", [False, True])
async def test_a_retry_of_what_nobody_has(stage: Stage, chunking: bool) -> None:
    stage.sink.chunking = chunking
    stage.capturer.seen_ids = {b"4A"}
    assert await deliver(stage, b"4A", BODY, ONE, TWO) == [SAVED_ONE, SAVED_TWO]
    assert stage.sink.delivered[0].message == BODY
    assert stage.sink.delivered[0].recipients == [ONE[:-2], TWO[:-2]]


async def test_a_queue_id_used_again_for_another_message(stage: Stage) -> None:
    await deliver(stage, b"4A", BODY, ONE)
    assert await deliver(stage, b"4A", b"other\r\n", ONE) == [SAVED_ONE]
    assert [d.message for d in stage.sink.delivered] == [BODY, b"other\r\n"]


async def test_a_retry_that_cannot_be_read_back(stage: Stage) -> None:
    stage.capturer.seen_ids = {b"4A"}
    stage.capturer.read_fault = StoreError("damaged")
    assert await deliver(stage, b"4A", BODY * 500, ONE) == [b"451 4.3.0 Internal error\r\n"]
    assert stage.sink.delivered == []
    # Nor will it be next time, so then it is not tried.
    assert await deliver(stage, b"4A", BODY * 500, ONE) == [SAVED_ONE]
    assert stage.sink.delivered[0].message == BODY * 500


async def test_few_of_those_are_remembered(stage: Stage) -> None:
    server = await stage.start()
    stage.capturer.seen_ids = {b"4A"}
    server.cannot_resend(b"4A")
    assert not server.may_be_retry(b"4A")
    for number in range(10_000):
        server.cannot_resend(b"%d" % number)
    assert server.may_be_retry(b"4A")


async def test_a_retry_let_through_uncaptured_waits(stage: Stage) -> None:
    stage.capturer.seen_ids = {b"4A"}
    stage.capturer.uncaptured = True
    assert (await deliver(stage, b"4A", BODY, ONE))[0].startswith(b"451 4.3.0")
    assert stage.sink.delivered == []
    assert await deliver(stage, b"4A", BODY, ONE) == [SAVED_ONE]


async def test_a_held_back_message_refused_at_data(stage: Stage) -> None:
    stage.sink.chunking = False
    stage.sink.data_reply = b"452 4.3.1 no room\r\n"
    stage.capturer.seen_ids = {b"4A"}
    assert await deliver(stage, b"4A", BODY, ONE, TWO) == [b"452 4.3.1 no room\r\n"] * 2
