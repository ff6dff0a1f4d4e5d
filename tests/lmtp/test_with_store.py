"""The front with the store itself: what was sent is what is kept, and a retry finds its replies."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sidecar.capture import Capturer
from store.deliveries import Query
from store.store import Store
from tests.support.lmtp_stage import Client, Stage

RECIPIENTS = (b"RCPT TO:<one@example.org>", b"RCPT TO:<two@example.org>")
ODD_LINES = b"0123456789\0\xff..\r\n.\r\n" * 90_000
MESSAGE = b"Received: by mx.example\r\n\tid 4Real; now\r\nSubject: x\r\n\r\n" + ODD_LINES
SMALL = b"Subject: small\r\n\r\nhello\r\n"


async def deliver(client: Client, message: bytes) -> list[bytes]:
    commands = b"XFORWARD IDENT=4Real\r\nMAIL FROM:<s@example.org>\r\n" + b"\r\n".join(RECIPIENTS)
    await client.send(commands + b"\r\nDATA\r\n")
    assert (await client.replies(5))[-1].startswith(b"354")
    await client.send((b"\r\n" + message).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n")
    return await client.replies(2)


async def test_captured_delivered_and_delivered_again(stage: Stage, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True) as store:
        store.start_writing("host")
        stage.capturer = Capturer(store)  # type: ignore[assignment]  # the real one takes the stand-in's place
        client = await stage.greeted()
        stage.sink.final_replies = {RECIPIENTS[1]: b"452 4.2.2 full\r\n"}
        saved = b"250 2.0.0 <one@example.org> Saved\r\n"
        assert await deliver(client, MESSAGE) == [saved, b"452 4.2.2 full\r\n"]
        stage.sink.final_replies = {}
        assert await deliver(client, MESSAGE) == [saved, saved.replace(b"one", b"two")]
        assert await deliver(client, SMALL) == [saved, saved.replace(b"one", b"two")]
        assert [d.recipients for d in stage.sink.delivered] == [
            list(RECIPIENTS),
            [RECIPIENTS[1]],
            list(RECIPIENTS),
        ]
        assert [d.message for d in stage.sink.delivered] == [MESSAGE, MESSAGE, SMALL]
        await stage.stop()
    with Store.open(tmp_path / "store") as store:  # outcomes may wait for the next commit, but not beyond
        store.start_writing("host")
        await asyncio.to_thread(store.settle_index)
        kept = list(store.deliveries(Query(newest_first=False)))
        assert [b"".join(store.read(k.delivery.content)) for k in kept] == [MESSAGE, MESSAGE, SMALL]
        assert [[o.source for _, o in sorted(k.outcomes.items())] for k in kept] == [
            ["downstream", "downstream"],
            ["earlier", "downstream"],
            ["downstream", "downstream"],
        ]
