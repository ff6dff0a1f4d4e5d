"""The LMTP client by itself, as replay uses it, and the one waiter behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.downstream import BARE_NEWLINE, Downstream, DownstreamError
from sidecar.units import Address
from sidecar.wakeup import Wakeup
from tests.support.lmtp_sink import LmtpSink
from tests.support.lmtp_stage import settle
from tests.support.waiting import until

MAIL = b"MAIL FROM:<>\r\n"
ONE = b"RCPT TO:<one@example.org>\r\n"


@pytest.fixture
async def sink() -> AsyncIterator[LmtpSink]:
    sink = LmtpSink()
    yield sink
    await sink.stop()


def soon(seconds: float = 20.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def connect(sink: LmtpSink) -> Downstream:
    if not sink.address.port and not sink.address.path:
        await sink.start()
    return await Downstream.connect(sink.address, hostname=b"keep.example", deadline=soon())


@pytest.mark.parametrize("pipelining", [False, True])
@pytest.mark.parametrize(
    ("chunking", "message", "arrives"),
    [
        (True, [b"no line end"], b"no line end"),
        (True, [b"a\n.\nb", b"\0\r"], b"a\n.\nb\0\r"),
        (True, [], b""),
        (False, [b"no line end"], b"no line end\r\n"),
        (False, [b"a\r\n", b".", b"\r\nb\r\n"], b"a\r\n.\r\nb\r\n"),
        (False, [], b""),
    ],
)
async def test_a_message(
    sink: LmtpSink, pipelining: bool, chunking: bool, message: list[bytes], arrives: bytes
) -> None:
    sink.pipelining, sink.chunking = pipelining, chunking
    connection = await connect(sink)
    for _ in range(2):
        assert [r.code for r in await connection.begin(MAIL, [ONE, ONE], 20)] == [250] * 3
        assert await connection.open_body(soon()) is None
        for piece in message:
            assert connection.body(piece) is None
            await connection.drain(soon())
        assert await connection.finish(2, soon()) is None
        for _ in range(2):
            assert (await connection.reply(soon())).raw == b"250 2.0.0 <one@example.org> Saved\r\n"
    assert [d.message for d in sink.delivered] == [arrives] * 2
    connection.close()
    await until(lambda: not sink._tasks)
    assert sink.commands[-1] == b"QUIT"


@pytest.mark.parametrize("pieces", [[b"a\n.\n", b"b"], [b"a\n", b".", b"\r\nb"], [b"a\n."]])
async def test_a_lax_end_is_not_sent(sink: LmtpSink, pieces: list[bytes]) -> None:
    sink.chunking, sink.lax = False, True
    connection = await connect(sink)
    await connection.begin(MAIL, [ONE], 20)
    await connection.open_body(soon())
    refusals = [connection.body(piece) for piece in pieces]
    if refusals[-1] is None:
        refusals.append(await connection.finish(1, soon()))
    assert refusals[-1] is BARE_NEWLINE
    assert connection.lost
    await until(lambda: not sink._tasks)
    assert sink.delivered == []


@pytest.mark.parametrize("chunking", [False, True])
async def test_abort_leaves_no_end(sink: LmtpSink, chunking: bool) -> None:
    sink.chunking = chunking
    connection = await connect(sink)
    await connection.begin(MAIL, [ONE], 20)
    await connection.open_body(soon())
    for _ in range(20):
        connection.body(b"x" * 50_000 + b"\r\n")
        await asyncio.sleep(0)
    connection.abort()
    connection.abort()
    connection.close()
    await until(lambda: not sink._tasks)
    assert sink.delivered == []
    with pytest.raises(DownstreamError):
        connection.body(b"x" * 500_000)
    with pytest.raises(DownstreamError):
        await connection.reply(soon())


async def test_no_last_chunk_behind_a_refused_one(sink: LmtpSink) -> None:
    sink.chunk_replies = {2: b"452 4.3.1 full\r\n"}
    connection = await connect(sink)
    await connection.begin(MAIL, [ONE], 20)
    await connection.open_body(soon())
    for _ in range(5):
        connection.body(b"x" * 100_000)
    refusal = await connection.finish(1, soon())
    assert refusal is not None
    assert refusal.raw == b"452 4.3.1 full\r\n"
    assert b"LAST" not in sink.wire[0]


@pytest.mark.parametrize("stray", [b"250 2.0.0 stray\r\n", b"354 go on\r\n"])
async def test_what_makes_no_sense_for_a_refusal_is_none(sink: LmtpSink, stray: bytes) -> None:
    sink.chunking = stray.startswith(b"3")
    sink.data_reply = sink.chunk_reply = stray
    connection = await connect(sink)
    await connection.begin(MAIL, [ONE], 20)
    with pytest.raises(DownstreamError, match="out of place") as caught:  # noqa: PT012 - where, depends
        await connection.open_body(soon())
        connection.body(b"x" * 100_000)
        connection.body(b"x" * 100_000)
        await connection.finish(1, soon())
    assert caught.value.reply.raw.startswith(b"451 4.5.0")
    assert connection.lost
    await until(lambda: not sink._tasks)
    assert sink.delivered == []


async def test_a_refusal_outlives_the_connection(sink: LmtpSink) -> None:
    sink.chunk_reply = b"552 5.2.3 too big\r\n421 4.3.0 bye\r\n"
    connection = await connect(sink)
    await connection.begin(MAIL, [ONE], 20)
    await connection.open_body(soon())
    connection.body(b"x" * 100_000)
    connection.body(b"x" * 100_000)
    await until(lambda: connection.lost)
    for refusal in (connection.body(b"x" * 200_000), await connection.finish(1, soon())):
        assert refusal is not None
        assert refusal.raw == b"552 5.2.3 too big\r\n"


async def test_unix_socket(sink: LmtpSink, tmp_path: Path) -> None:
    await sink.start(str(tmp_path / "lmtp"))
    connection = await connect(sink)
    assert connection.capabilities.chunking
    connection.close()


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(DownstreamError, match="nothing") as caught:
        await Downstream.connect(
            Address(path=str(tmp_path / "nothing")), hostname=b"keep.example", deadline=soon()
        )
    assert caught.value.reply.raw == b"451 4.4.1 Cannot reach the mailbox server\r\n"


async def test_a_reply_in_time_or_none(sink: LmtpSink) -> None:
    connection = await connect(sink)
    sink.gates[b"MAIL"] = asyncio.Event()
    connection.send(MAIL, replies=1)
    with pytest.raises(DownstreamError) as caught:
        await connection.reply(soon(0.05))
    assert caught.value.reply.raw.startswith(b"451 4.4.2")
    assert connection.lost


async def test_what_comes_unasked_ends_the_connection(sink: LmtpSink) -> None:
    connection = await connect(sink)
    connection._transport.write(b"QUIT\r\n")  # its 221 comes unasked
    await settle()
    assert connection.lost
    with pytest.raises(DownstreamError, match="unasked"):
        await connection.reset(soon())


async def test_wakeup_waits_for_the_wake_and_no_longer_than_the_deadline() -> None:
    loop = asyncio.get_running_loop()
    wakeup = Wakeup(loop)
    wakeup.wake()  # nobody waits: does nothing
    for later, sooner in [(60.0, 0.02), (0.02, 0.04), (0.0, -1.0)]:
        loop.call_soon(wakeup.wake)
        await wakeup.wait(loop.time() + later + 1)
        before = loop.time()
        with pytest.raises(TimeoutError):
            await wakeup.wait(before + sooner)
        assert loop.time() >= before + sooner - 0.001
    wakeup.close()
    wakeup.close()
    assert wakeup._timer is None
