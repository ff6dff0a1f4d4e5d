"""SIGKILL under load, at random moments: what was acknowledged is there, whole, and nothing else is.

    8 clients --> mailkeep serve (killed again and again) --> sink

After each kill: every message that got its 250s, and every message whose end the mailbox server saw, is in
the store and intact; nothing is in the store that was never sent; `check` is clean. `MAILKEEP_KILLS` says
how often (make crash: 200).
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from store.check import Checked, check
from store.deliveries import Query
from store.ids import content_id
from store.sealing import Identity, new_identity, parse_identities
from store.store import Store
from tests.support.lmtp_sink import LmtpSink
from tests.support.serving import Client, Serving

KILLS = int(os.environ.get("MAILKEEP_KILLS", "7"))
CLIENTS = 8


class Load:
    """Clients that send until the connection breaks, and what they were promised."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.sent: dict[bytes, bytes] = {}
        self.acknowledged: set[bytes] = set()
        self.number = 0

    def message(self) -> bytes:
        self.number += 1
        kind = self.random.random()
        head = b"Subject: %d\r\nMessage-ID: <%d@load>\r\n\r\n" % (self.number, self.number)
        if kind < 0.7:
            body = b"%d\r\n" % self.random.getrandbits(64) * self.random.randrange(1, 400)
        elif kind < 0.95:
            size = self.random.randrange(1000, 100_000)
            body = base64.encodebytes(self.random.randbytes(size)).replace(b"\n", b"\r\n")
        else:
            body = base64.encodebytes(self.random.randbytes(1_500_000)).replace(b"\n", b"\r\n")
        message = head + body
        self.sent[content_id(message)] = message
        return message

    async def client(self, port: int) -> None:
        try:
            client = await Client.connect(port)
        except OSError:
            return
        try:
            while True:
                message = self.message()
                recipients = [b"u%d@x.example" % n for n in range(self.random.choice((1, 1, 1, 2, 5)))]
                replies = await client.send(message, recipients, queue_id=b"4Q%08d" % self.number)
                assert all(reply.startswith(b"250") for reply in replies), replies
                self.acknowledged.add(content_id(message))
        except OSError:
            return  # killed: whatever was under way was not acknowledged
        finally:
            await client.close()


@pytest.mark.crash
@pytest.mark.timeout(300 + 6 * KILLS)
@pytest.mark.parametrize("sealed", [False, True], ids=["open", "sealed"])
async def test_killed_under_load(tmp_path: Path, sealed: bool) -> None:
    seed = int(os.environ.get("MAILKEEP_SEED", str(random.randrange(1 << 30))))
    print(f"seed {seed}, {KILLS} kills")
    load = Load(seed)
    sink = LmtpSink()
    await sink.start()
    secret, public = new_identity()
    identities = parse_identities(secret.encode(), "identity", lambda: None) if sealed else []
    extra = f'[encryption]\nrecipients = ["{public}"]\n' if sealed else ""
    serving = Serving(tmp_path, str(sink.address), extra)
    verified: set[bytes] = set()
    slowest = 0.0
    for _ in range(KILLS):
        slowest = max(slowest, await asyncio.to_thread(serving.start))
        clients = [asyncio.create_task(load.client(serving.port)) for _ in range(CLIENTS)]
        await asyncio.sleep(load.random.uniform(0.02, 0.7))
        await asyncio.to_thread(serving.kill)
        await asyncio.wait_for(asyncio.gather(*clients), 30)
        await asyncio.to_thread(verify, serving.store, load, sink, verified, identities)
    await asyncio.to_thread(serving.start)
    assert await asyncio.to_thread(serving.stop) == 0
    with Store.open(serving.store, identities=identities) as store:
        assert list(check(store, Checked(), read_data=True)) == []
    await sink.stop()
    print(f"{len(load.acknowledged)} acknowledged of {len(load.sent)} sent, slowest start {slowest:.2f} s")
    assert len(load.acknowledged) > KILLS, "the load was no load"


def verify(
    path: Path, load: Load, sink: LmtpSink, verified: set[bytes], identities: Sequence[Identity]
) -> None:
    with Store.open(path, identities=identities) as store:
        assert not store.damage
        assert list(check(store, Checked())) == []
        stored = {found.delivery.content for found in store.deliveries(Query())}
        assert stored <= set(load.sent), "something is there that nobody sent"
        assert load.acknowledged <= stored, "an acknowledged message is missing"
        delivered = {bytes(content_id(mail.message)) for mail in sink.delivered}
        assert delivered <= stored, "the mailbox server has a message that the store has not"
        for content in stored - verified:
            assert b"".join(store.read(content)) == load.sent[content]
        verified |= stored
