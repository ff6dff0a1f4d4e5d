"""A retry over the real store: who has the mail is answered from the record, at once and after a restart.

client --> front with the real store --> sink
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.capture import Capturer
from sidecar.front import FrontServer
from sidecar.units import Address
from store.deliveries import Query
from store.store import Store
from tests.support.lmtp_sink import LmtpSink
from tests.support.serving import Client

MESSAGE = b"Subject: once\r\n\r\nand only once\r\n"
ANNA, CARL = b"anna@x.example", b"carl@x.example"


class Rig:
    """Store, front and sink; `restart` closes and opens store and front."""

    def __init__(self, path: Path, *, chunking: bool) -> None:
        self.sink = LmtpSink(chunking=chunking)
        self._path = path

    async def start(self) -> None:
        if not self.sink.address.port:
            await self.sink.start()
        self.store = Store.open(self._path, create=True)
        self.store.start_writing("host")
        self.front = FrontServer(
            Capturer(self.store), listen=Address("127.0.0.1", 0), downstream=self.sink.address
        )
        await self.front.start()

    async def stop(self) -> None:
        await self.front.drain(5)
        await asyncio.to_thread(self.store.close)

    async def send(
        self, recipients: list[bytes], queue_id: bytes = b"4QueueId1", message: bytes = MESSAGE
    ) -> list[bytes]:
        client = await Client.connect(self.front.address.port)
        try:
            return await client.send(message, recipients, queue_id=queue_id)
        finally:
            await client.close()

    def got(self) -> list[list[bytes]]:
        return [[line[9:-1] for line in mail.recipients] for mail in self.sink.delivered]


@pytest.fixture(params=[True, False], ids=["BDAT", "DATA"])
async def rig(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path / "store", chunking=request.param)
    await rig.start()
    yield rig
    await rig.stop()
    await rig.sink.stop()


async def test_at_once_and_after_a_restart(rig: Rig) -> None:
    first = await rig.send([ANNA, CARL])
    assert await rig.send([ANNA, CARL]) == first
    assert rig.got() == [[ANNA, CARL]]
    await rig.stop()
    await rig.start()
    assert await rig.send([CARL]) == first[1:]
    assert rig.got() == [[ANNA, CARL]]


async def test_only_who_is_missing_gets_it(rig: Rig) -> None:
    rig.sink.final_replies[b"RCPT TO:<carl@x.example>"] = b"452 4.2.2 full\r\n"
    assert [reply[:3] for reply in await rig.send([ANNA, CARL])] == [b"250", b"452"]
    rig.sink.final_replies.clear()
    assert [reply[:3] for reply in await rig.send([ANNA, CARL])] == [b"250", b"250"]
    assert rig.got() == [[ANNA, CARL], [CARL]]
    assert rig.sink.delivered[1].message == MESSAGE


async def test_another_queue_id_content_or_recipient_is_no_retry(rig: Rig) -> None:
    await rig.send([ANNA])
    await rig.send([ANNA], queue_id=b"4QueueId2")
    await rig.send([ANNA], message=MESSAGE + b"more\r\n")
    await rig.send([CARL])
    await rig.send([ANNA], queue_id=b"")
    await rig.send([ANNA], queue_id=b"")
    assert rig.got() == [[ANNA], [ANNA], [ANNA], [CARL], [ANNA], [ANNA]]
    rig.store.settle_index()
    assert len(list(rig.store.deliveries(Query()))) == 6


async def test_refused_recipients_are_on_record(rig: Rig) -> None:
    rig.sink.rcpt_replies[b"RCPT TO:<nobody@x.example>"] = b"550 5.1.1 unknown\r\n"
    client = await Client.connect(rig.front.address.port)
    client.writer.write(
        b"MAIL FROM:<>\r\nRCPT TO:<nobody@x.example>\r\nRCPT TO:<anna@x.example>\r\nDATA\r\n"
        + MESSAGE
        + b".\r\n"
    )
    replies = [await client.reply() for _ in range(5)]
    await client.close()
    assert [reply[:3] for reply in replies] == [b"250", b"550", b"250", b"354", b"250"]
    await rig.send([ANNA], queue_id=b"4Other")  # its commit carries the outcomes along
    rig.store.settle_index()
    stored = next(iter(rig.store.deliveries(Query(newest_first=False))))
    assert [r.address for r in stored.delivery.envelope.recipients] == [b"nobody@x.example", ANNA]
    assert {n: o.reply[:3] for n, o in stored.outcomes.items()} == {0: b"550", 1: b"250"}
