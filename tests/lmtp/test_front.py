"""The front's commands and transactions, as the wire shows them."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from sidecar.front import FrontLimits, FrontServer
from sidecar.units import Address
from tests.support.lmtp_sink import LmtpSink
from tests.support.lmtp_stage import Client, Stage, settle
from tests.support.waiting import PATIENCE_S, until

MAIL = b"MAIL FROM:<s@example.org>\r\n"
ONE = b"RCPT TO:<one@example.org>\r\n"
TWO = b"RCPT TO:<two@example.org>\r\n"
THREE = b"RCPT TO:<three@example.org>\r\n"
BODY = b"Subject: x\r\n\r\nhello\r\n"
GO = b"354 End data with <CR><LF>.<CR><LF>\r\n"


def key(line: bytes) -> bytes:
    """The sink's name for a RCPT line."""
    return line.removesuffix(b"\r\n")


# -- commands


async def test_capabilities_are_the_servers_and_ours(stage: Stage) -> None:
    stage.sink.capabilities = (b"8BITMIME", b"SIZE 5000", b"SMTPUTF8", b"DSN", b"XCLIENT ADDR", b"STARTTLS")
    client = await stage.connect()
    assert await client.say(b"lhlo mta.example\r\n") == (
        b"250-keep.example\r\n250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n"
        b"250-SIZE 5000\r\n250 XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE\r\n"
    )


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        (b"NOOP\r\n", b"250 2.0.0"),
        (b"noop what ever\n", b"250 2.0.0"),
        (b"VRFY x\r\n", b"252 2.5.2"),
        (b"HELP\r\n", b"214 2.0.0"),
        (b"RSET\r\n", b"250 2.0.0"),
        (b"RSET x\r\n", b"501 5.5.4"),
        (b"HELO x\r\n", b"500 5.5.1"),
        (b"EHLO x\r\n", b"500 5.5.1"),
        (b"LHLO\r\n", b"501 5.5.4"),
        (b"BDAT 1 LAST\r\n", b"500 5.5.2"),
        (b"STARTTLS\r\n", b"500 5.5.2"),
        (b"\r\n", b"500 5.5.2"),
        (b"\xff\xfe\r\n", b"500 5.5.2"),
        (b"NOOP \0\r\n", b"501 5.5.2"),
        (b"MAIL FROM:<>\r\n", b"503 5.5.1"),
        (b"RCPT TO:<a>\r\n", b"503 5.5.1"),
        (b"DATA\r\n", b"503 5.5.1"),
        (b"XFORWARD NAME=x\r\n", b"503 5.5.1"),
        (b"QUIT\r\n", b"221 2.0.0"),
    ],
)
async def test_before_lhlo(stage: Stage, line: bytes, reply: bytes) -> None:
    client = await stage.connect()
    assert (await client.say(line)).startswith(reply)
    assert stage.sink.connections == 0


@pytest.mark.parametrize(
    ("lines", "replies"),
    [
        ([b"RCPT TO:<a>\r\n"], [b"503 5.5.1 Say MAIL"]),
        ([b"DATA\r\n"], [b"503 5.5.1 Say MAIL"]),
        ([b"DATA x\r\n"], [b"501 5.5.4"]),
        ([b"MAIL TO:<a>\r\n"], [b"501 5.5.4"]),
        ([b"MAIL FROM:a\r\n"], [b"501 5.5.4"]),
        ([b"XFORWARD LOGIN=x\r\n"], [b"501 5.5.4"]),
        ([MAIL, MAIL], [b"250 2.1.0", b"503 5.5.1"]),
        ([MAIL, b"RCPT FROM:<a>\r\n", ONE], [b"250 2.1.0", b"501 5.5.4", b"250 2.1.5"]),
        ([MAIL, b"DATA\r\n", ONE], [b"250 2.1.0", b"503 5.5.1 No valid", b"250 2.1.5"]),
        ([MAIL, b"XFORWARD NAME=x\r\n"], [b"250 2.1.0", b"503 5.5.1"]),
        ([MAIL, b"RSET\r\n", ONE, MAIL], [b"250 2.1.0", b"250 2.0.0", b"503 5.5.1", b"250 2.1.0"]),
        ([MAIL, b"LHLO again\r\n", MAIL], [b"250 2.1.0", b"250-keep", b"250 2.1.0"]),
    ],
)
@pytest.mark.parametrize("pipelined", [False, True])
async def test_order_of_commands(
    stage: Stage, lines: list[bytes], replies: list[bytes], pipelined: bool
) -> None:
    client = await stage.greeted()
    if pipelined:
        await client.send(b"".join(lines))
        said = await client.replies(len(lines))
    else:
        said = [await client.say(line) for line in lines]
    assert [a[: len(b)] for a, b in zip(said, replies, strict=True)] == replies
    assert (await client.say(b"QUIT\r\n")).startswith(b"221")
    assert await client.closed() == b""


async def test_lines_are_relayed_as_they_are(stage: Stage) -> None:
    lines = [
        b"mail From:<> BODY=8BITMIME  X=y",
        b'RCPT TO:<"a> b"@example.org>',
        b"RCPT TO:<\xc3\xa9\xff@example.org>",
        b"rcpt TO: <@a,@b:c@example.org> ORCPT=rfc822;c",
    ]
    client = await stage.greeted()
    await client.send(b"".join(line + b"\r\n" for line in lines))
    await client.replies(4)
    assert stage.sink.commands[1:] == lines
    assert await client.say(b"DATA\r\n") == GO
    await client.send(b".\r\n")
    await client.replies(3)
    envelope = stage.capturer.kept[0].envelope
    assert (envelope.sender, envelope.sender_params) == (b"", b"BODY=8BITMIME  X=y")
    assert [(r.address, r.params) for r in envelope.recipients] == [
        (b'"a> b"@example.org', b""),
        (b"\xc3\xa9\xff@example.org", b""),
        (b"@a,@b:c@example.org", b"ORCPT=rfc822;c"),
    ]


async def test_replies_come_back_as_they_are(stage: Stage) -> None:
    many = b"250-2.0.0 first \xff\xfe\r\n250-\xc3\xa9\r\n250 2.0.0 last\r\n"
    stage.sink.mail_reply = b"250-2.1.0 sender\r\n250 2.1.0 \x80ok\r\n"
    stage.sink.rcpt_replies = {key(TWO): b"550-5.1.1 no\r\n550 5.1.1 such \xff user\r\n"}
    stage.sink.final_replies = {key(ONE): many, key(THREE): b"552 5.2.2 over \xf0quota\r\n"}
    client = await stage.greeted()
    await client.send(MAIL + ONE + TWO + THREE + b"DATA\r\n")
    assert await client.replies(5) == [
        stage.sink.mail_reply,
        b"250 2.1.5 OK\r\n",
        stage.sink.rcpt_replies[key(TWO)],
        b"250 2.1.5 OK\r\n",
        GO,
    ]
    await client.send(BODY + b".\r\n")
    assert await client.replies(2) == [many, b"552 5.2.2 over \xf0quota\r\n"]
    await until(lambda: stage.capturer.kept[0].outcomes)
    assert (
        [(o.recipient, o.reply, o.source) for o in stage.capturer.kept[0].outcomes]
        == [
            (1, stage.sink.rcpt_replies[key(TWO)][:-2], "downstream"),  # first: known since RCPT
            (0, many[:-2], "downstream"),
            (2, b"552 5.2.2 over \xf0quota", "downstream"),
        ]
    )
    assert [r.address for r in stage.capturer.kept[0].envelope.recipients] == [
        b"one@example.org",
        b"two@example.org",
        b"three@example.org",
    ]


async def test_xforward_is_recorded_and_lasts_one_transaction(stage: Stage) -> None:
    client = await stage.greeted()
    await client.send(
        b"XFORWARD PROTO=ESMTP HELO=[UNAVAILABLE] IDENT=4Xyz\r\nXFORWARD NAME=a+2Bb ADDR=IPV6:::1\r\n"
        + MAIL + ONE + b"DATA\r\n"
    )  # fmt: skip
    assert [reply[:3] for reply in await client.replies(5)] == [b"250", b"250", b"250", b"250", b"354"]
    assert (await client.say(BODY + b".\r\n" + MAIL)).startswith(b"250 2.0.0")
    assert await client.reply() == b"250 2.1.0 OK\r\n"
    await client.send(ONE + b"DATA\r\n")
    await client.replies(2)
    await client.say(b".\r\n")
    first, second = stage.capturer.kept
    assert first.queue_id == b"4Xyz"
    assert first.attributes == {"PROTO": b"ESMTP", "IDENT": b"4Xyz", "NAME": b"a+b", "ADDR": b"IPV6:::1"}
    assert second.queue_id == b""
    assert second.attributes == {}


async def test_xforward_ends_with_a_refused_mail(stage: Stage) -> None:
    stage.sink.mail_reply = b"452 4.3.1 no\r\n"
    client = await stage.greeted(b"4Old")
    assert (await client.say(MAIL)).startswith(b"452")
    stage.sink.mail_reply = b"250 2.1.0 OK\r\n"
    await client.send(MAIL + ONE + b"DATA\r\n")
    await client.replies(3)
    await client.say(BODY + b".\r\n")
    assert (stage.capturer.kept[0].queue_id, stage.capturer.kept[0].attributes) == (b"", {})


async def test_xforward_ends_with_a_transaction_that_failed(stage: Stage) -> None:
    client = await stage.greeted(b"4Old")
    stage.sink.drop_at = b"RCPT"
    await client.send(MAIL + ONE)
    assert (await client.replies(2))[1].startswith(b"451")
    stage.sink.drop_at = b""
    await client.send(MAIL + ONE + b"DATA\r\n")
    await client.replies(3)
    await client.say(BODY + b".\r\n")
    assert stage.capturer.kept[0].queue_id == b""


async def test_another_mailbox_server_from_the_next_transaction_on(stage: Stage) -> None:
    client = await stage.greeted()
    await client.send(MAIL + ONE)
    await client.replies(2)
    other = LmtpSink(chunking=False)
    await other.start()
    assert stage.server
    stage.server.downstream = other.address
    assert await client.say(b"DATA\r\n") == GO
    assert (await client.say(BODY + b".\r\n")).startswith(b"250")
    assert (len(stage.sink.delivered), other.connections) == (1, 0)
    for _ in range(2):
        await client.send(MAIL + ONE + b"DATA\r\n")
        assert (await client.replies(3))[-1] == GO
        assert (await client.say(BODY + b".\r\n")).startswith(b"250")
    assert (len(stage.sink.delivered), len(other.delivered), other.connections) == (1, 2, 1)
    await until(lambda: not stage.sink._tasks)
    assert stage.sink.commands[-1] == b"QUIT"
    client.close()
    await other.stop()


@pytest.mark.parametrize("chunking", [False, True])
@pytest.mark.parametrize("pipelining", [False, True])
async def test_one_connection_for_many_transactions(stage: Stage, chunking: bool, pipelining: bool) -> None:
    stage.sink.chunking, stage.sink.pipelining = chunking, pipelining
    client = await stage.greeted()
    for number in range(3):
        await client.send(MAIL + ONE + ONE + b"DATA\r\n")
        assert (await client.replies(4))[-1] == GO
        message = b"number %d\r\n..\r\n" % number
        await client.send(message.replace(b"\r\n.", b"\r\n..") + b".\r\n")
        assert await client.replies(2) == [b"250 2.0.0 <one@example.org> Saved\r\n"] * 2
        assert stage.sink.delivered[-1].message == message
        assert stage.sink.delivered[-1].recipients == [key(ONE)] * 2
    assert (await client.say(b"QUIT\r\n")).startswith(b"221")
    assert await client.closed() == b""
    assert stage.sink.connections == 1


async def test_pipelined_commands_go_on_in_one_write(stage: Stage) -> None:
    client = await stage.greeted()
    gate = stage.sink.gates[b"MAIL"] = asyncio.Event()
    await client.send(MAIL + ONE + TWO)
    # The server has not answered MAIL, and has the others already.
    await until(lambda: b"MAIL FROM" in stage.sink.wire[0])
    gate.set()
    assert len(await client.replies(3)) == 3
    assert bytes(stage.sink.wire[0]).endswith(MAIL + ONE + TWO)


async def test_a_server_without_pipelining_gets_one_command_at_a_time(stage: Stage) -> None:
    stage.sink.pipelining = False
    client = await stage.greeted()
    gate = stage.sink.gates[b"MAIL"] = asyncio.Event()
    await client.send(MAIL + ONE)
    await until(lambda: b"MAIL FROM" in stage.sink.wire[0])
    await settle()
    assert b"RCPT" not in stage.sink.wire[0]
    gate.set()
    await client.replies(2)


@pytest.mark.parametrize("chunking", [False, True])
async def test_no_recipient_accepted(stage: Stage, chunking: bool) -> None:
    stage.sink.chunking = chunking
    stage.sink.rcpt_replies = {key(ONE): b"451 4.2.0 locked\r\n"}
    client = await stage.greeted()
    await client.send(MAIL + ONE + b"DATA\r\n")
    assert [r[:9] for r in await client.replies(3)] == [b"250 2.1.0", b"451 4.2.0", b"503 5.5.1"]
    await client.send(b"RSET\r\n" + MAIL + TWO + b"DATA\r\n")
    assert [r[:3] for r in await client.replies(4)] == [b"250", b"250", b"250", b"354"]


async def test_mail_refused(stage: Stage) -> None:
    stage.sink.mail_reply = b"452 4.3.1 full\r\n"
    client = await stage.greeted()
    await client.send(MAIL + ONE + b"DATA\r\n")
    assert [r[:9] for r in await client.replies(3)] == [b"452 4.3.1", b"503 5.5.1", b"503 5.5.1"]
    stage.sink.mail_reply = b"250 2.1.0 OK\r\n"
    assert await client.say(MAIL) == b"250 2.1.0 OK\r\n"


async def test_data_refused_by_the_server_is_relayed(stage: Stage) -> None:
    stage.sink.chunking = False
    stage.sink.data_reply = b"451 4.3.0 \xffnot now\r\n"
    client = await stage.greeted()
    for _ in range(2):
        await client.send(MAIL + ONE + b"DATA\r\n")
        assert (await client.replies(3))[-1] == b"451 4.3.0 \xffnot now\r\n"
    assert stage.capturer.kept == []


async def test_ten_thousand_recipients(stage: Stage) -> None:
    lines = [b"RCPT TO:<u%d@example.org>\r\n" % number for number in range(10_000)]
    lines[5000] = lines[4999]
    stage.sink.rcpt_replies = {key(lines[7]): b"550 5.1.1 no\r\n"}
    client = await stage.greeted()

    async def read() -> list[bytes]:
        return await client.replies(10_002)

    reading = asyncio.ensure_future(read())
    await client.send(MAIL + b"".join(lines) + b"DATA\r\n")
    replies = await reading
    assert replies.index(b"550 5.1.1 no\r\n") == 8
    assert replies[-1] == GO
    await client.send(BODY + b".\r\n")
    finals = await client.replies(9_999)
    del lines[7]
    assert finals == [b"250 2.0.0 %s Saved\r\n" % key(line)[8:] for line in lines]
    assert len(stage.capturer.kept[0].outcomes) == 10_000  # the refusal at RCPT included


async def test_too_many_recipients(stage: Stage) -> None:
    stage.limits = FrontLimits(max_recipients=1)
    client = await stage.greeted()
    await client.send(MAIL + ONE + TWO + b"DATA\r\n")
    assert [r[:9] for r in await client.replies(4)] == [b"250 2.1.0", b"250 2.1.5", b"452 4.5.3", GO[:9]]


async def test_recipients_are_bounded_unless_told() -> None:
    assert FrontLimits().max_recipients == 50_000


async def test_a_line_of_100_mb_is_dropped_in_bounded_memory(stage: Stage) -> None:
    client = await stage.greeted()
    (session,) = stage.server._sessions if stage.server else ()
    largest = 0
    for _ in range(100):
        await client.send(b"x" * 1_000_000)
        largest = max(largest, len(session._buffer))
    await client.send(b"\r\nNOOP\r\n")
    assert await client.replies(2) == [b"500 5.5.2 Line too long\r\n", b"250 2.0.0 Ok\r\n"]
    assert largest < 1_000_000


async def test_a_line_at_the_limit(stage: Stage) -> None:
    client = await stage.greeted()
    await client.send(b"NOOP " + b"x" * (16_384 - 5) + b"\nNOOP " + b"x" * (16_384 - 4) + b"\nNOOP\n")
    assert [r[:9] for r in await client.replies(3)] == [b"250 2.0.0", b"500 5.5.2", b"250 2.0.0"]


# -- the listener


async def test_unix_socket_with_its_mode(stage: Stage, tmp_path: Path) -> None:
    await stage.sink.start(str(tmp_path / "sink"))
    path = tmp_path / "lmtp.sock"
    await stage.start(Address(path=str(path)), socket_mode=0o620)
    assert stat.S_IMODE(path.stat().st_mode) == 0o620
    client = await stage.greeted()
    await client.send(MAIL + ONE + b"DATA\r\n")
    assert (await client.replies(3))[-1] == GO
    assert (await client.say(BODY + b".\r\n")).startswith(b"250 2.0.0")
    assert stage.server
    stage.server.close_listeners()
    assert not path.exists()


async def test_a_stale_unix_socket_is_replaced_and_a_live_one_is_not(stage: Stage, tmp_path: Path) -> None:
    path = tmp_path / "lmtp.sock"
    server = await asyncio.start_unix_server(lambda r, w: w.close(), str(path))
    with pytest.raises(FileExistsError):
        await stage.start(Address(path=str(path)))
    server.close()
    await server.wait_closed()
    assert path.exists()  # as after a crash
    await stage.start(Address(path=str(path)))
    assert await stage.connect()


async def test_an_unknown_group_is_an_error_that_names_it(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no group 'nobody-has-this'"):
        await stage.start(Address(path=str(tmp_path / "s")), socket_group="nobody-has-this")


async def test_not_on_port_25(stage: Stage) -> None:
    with pytest.raises(ValueError, match="25"):
        await FrontServer(
            stage.capturer, listen=Address("127.0.0.1", 25), downstream=Address("127.0.0.1", 24)
        ).start()


async def test_connections_are_capped(stage: Stage) -> None:
    stage.limits = FrontLimits(max_connections=2)
    first, _ = await stage.connect(), await stage.connect()
    third = await stage.raw()
    assert await third.closed() == b"421 4.3.2 Too many connections\r\n"
    first.close()
    assert stage.server
    await until(lambda: len(stage.server._sessions) == 1 if stage.server else False)
    assert await stage.connect()


async def test_idle_client(stage: Stage) -> None:
    stage.limits = FrontLimits(idle_timeout_s=1.0)
    client = await stage.greeted()
    assert await client.closed() == b"421 4.4.2 Idle for too long\r\n"
    client = await stage.greeted()
    await client.send(MAIL + ONE + b"DATA\r\n")
    await client.replies(3)
    await client.send(b"half a message")
    assert await client.closed() == b"421 4.4.2 Idle for too long\r\n"
    assert stage.capturer.aborted == 1
    await until(lambda: not stage.sink._tasks)
    assert stage.sink.delivered == []


async def drip(client: Client, piece: bytes) -> bytes:
    """What the front says to a client that never stops to send a little."""

    async def send() -> None:
        while not client.writer.is_closing():
            client.writer.write(piece)
            await asyncio.sleep(0.02)

    dripping = asyncio.ensure_future(send())
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await client.reader.readline()
    finally:
        dripping.cancel()


@pytest.mark.parametrize("limit", [16_384, 20])
async def test_a_command_that_drips(stage: Stage, limit: int) -> None:
    stage.limits = FrontLimits(idle_timeout_s=1.0, command_line_bytes=limit)
    client = await stage.greeted()
    assert await drip(client, b"N") == b"421 4.4.2 Idle for too long\r\n"


async def test_a_message_that_drips(stage: Stage) -> None:
    stage.limits = FrontLimits(idle_timeout_s=1.0)
    client = await stage.greeted()
    await client.send(MAIL + ONE + b"DATA\r\n")
    await client.replies(3)
    assert await drip(client, b"x") == b"421 4.4.2 Idle for too long\r\n"
    assert stage.capturer.aborted == 1
    await until(lambda: not stage.sink._tasks)
    assert stage.sink.delivered == []
    assert b"LAST" not in stage.sink.wire[0]


async def test_a_slow_client_that_keeps_its_pace(stage: Stage) -> None:
    stage.limits = FrontLimits(idle_timeout_s=1.0)
    client = await stage.greeted()
    await client.send(MAIL + ONE + b"DATA\r\n")
    await client.replies(3)
    for _ in range(15):  # longer than the idle time in all
        await client.send(b"x" * 98 + b"\r\n")
        await asyncio.sleep(0.1)
    assert (await client.say(b".\r\n")).startswith(b"250")


@pytest.mark.parametrize("line", [b"\n", b"NOOP\r\n"])
async def test_a_flood_of_lines_leaves_room_for_others(stage: Stage, line: bytes) -> None:
    flood, other = await stage.greeted(), await stage.greeted()
    assert stage.server
    (session,) = [s for s in stage.server._sessions if s.session.peer == _name(flood)]
    flood.reader._transport.pause_reading()  # type: ignore[attr-defined]
    turns = []
    serve = session._step

    async def step() -> bool:
        turns.append(asyncio.get_running_loop())
        assert session._link.get_write_buffer_size() < 1_000_000
        return await serve()

    session._step = step
    sending = asyncio.ensure_future(flood.send(line * 4_000_000))
    await until(lambda: session._clogged and not session._reading)
    served = len(turns)
    await settle()
    assert len(turns) == served  # it waits for its client
    assert await other.say(b"NOOP\r\n") == b"250 2.0.0 Ok\r\n"
    assert session._out_bytes + session._link.get_write_buffer_size() < 1_000_000
    flood.abort()
    await asyncio.gather(sending, return_exceptions=True)
    await until(lambda: len(stage.server._sessions) == 1 if stage.server else False)
    assert len(turns) - served <= 1000  # what is left of the flood is for nobody


async def test_a_flood_from_a_client_that_never_reads_ends(stage: Stage) -> None:
    stage.limits = FrontLimits(idle_timeout_s=1.0)
    client = await stage.greeted()
    assert stage.server
    client.reader._transport.pause_reading()  # type: ignore[attr-defined]
    sending = asyncio.ensure_future(client.send(b"\n" * 4_000_000))
    await until(lambda: not stage.server._sessions if stage.server else False)
    client.abort()
    await asyncio.gather(sending, return_exceptions=True)


def _name(client: Client) -> object:
    return client.writer.get_extra_info("sockname")


async def test_drain(stage: Stage) -> None:
    server = await stage.start()
    idle, busy = await stage.greeted(), await stage.greeted()
    await busy.send(MAIL + ONE + b"DATA\r\n")
    await busy.replies(3)
    draining = asyncio.ensure_future(server.drain(20))
    assert await idle.closed() == b"421 4.3.2 Shutting down\r\n"
    with pytest.raises(ConnectionRefusedError):
        await stage.raw()
    await busy.send(BODY + b".\r\n" + MAIL)
    assert (await busy.reply()).startswith(b"250 2.0.0")
    assert await busy.closed() == b"421 4.3.2 Shutting down\r\n"
    assert await draining


async def test_drain_out_of_patience(stage: Stage) -> None:
    server = await stage.start()
    stage.sink.gates[key(TWO)] = asyncio.Event()
    client = await stage.greeted()
    await client.send(MAIL + ONE + TWO + b"DATA\r\n")
    await client.replies(4)
    assert (await client.say(BODY + b".\r\n")).startswith(b"250 2.0.0 <one")
    assert not await server.drain(0.1)
    assert await client.closed() == b""
    # What was known is written down.
    assert [o.recipient for o in stage.capturer.kept[0].outcomes] == [0]
