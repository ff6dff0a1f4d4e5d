"""SIGKILL of single workers under load: nothing that was acknowledged is lost, and the others never stop.

    8 clients --> 2 workers (one killed, in turns and at random moments) --> sink

A client whose connection breaks comes again at once, as Postfix does not, and with the same message and queue
id, as Postfix does: nobody who is known to have it gets it twice. `MAILKEEP_KILLS` says how often.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from store.check import Checked, check
from store.deliveries import Query
from store.ids import content_id
from store.store import Store
from tests.crash.test_kill import Load
from tests.support.lmtp_sink import LmtpSink
from tests.support.serving import Client
from tests.support.workers import Workers

KILLS = int(os.environ.get("MAILKEEP_KILLS", "8"))
CLIENTS = 8
STALL_S = 5.0
"""more than any pause that the other worker may make on a busy machine"""


class Persistent:
    """Clients that never give up, and when each was last answered."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.answered_at: list[float] = []
        self.broken = 0
        self.stopping = False
        self._number = 0

    async def client(self, port: int) -> None:
        client: Client | None = None
        pending: tuple[bytes, list[bytes], bytes] | None = None
        while not self.stopping or pending:
            if pending is None:
                self._number += 1
                message = self.load.message()
                recipients = [b"u%d@x.example" % n for n in range(self.load.random.choice((1, 1, 2)))]
                pending = message, recipients, b"4Q%08d" % self._number
            message, recipients, queue_id = pending
            try:
                if client is None:
                    client = await Client.connect(port)
                replies = await client.send(message, recipients, queue_id=queue_id)
            except OSError:
                self.broken += 1
                if client is not None:
                    await client.close()
                client = None
                await asyncio.sleep(0.01)
                continue
            assert all(reply.startswith(b"250") for reply in replies), replies
            self.load.acknowledged.add(content_id(message))
            self.answered_at.append(time.monotonic())
            pending = None
        if client is not None:
            await client.close()


@pytest.mark.crash
@pytest.mark.timeout(300 + 6 * KILLS)
async def test_one_worker_is_killed_and_the_other_goes_on(tmp_path: Path) -> None:
    seed = int(os.environ.get("MAILKEEP_SEED", str(random.randrange(1 << 30))))
    print(f"seed {seed}, {KILLS} kills")
    load = Load(seed)
    sink = LmtpSink()
    await sink.start()
    workers = Workers(tmp_path, str(sink.address))
    await asyncio.to_thread(workers.start)
    try:
        await kill_one_after_the_other(workers, load, sink)
    finally:
        if workers.running:
            await asyncio.to_thread(workers.kill)
        await sink.stop()


async def kill_one_after_the_other(workers: Workers, load: Load, sink: LmtpSink) -> None:
    clients = Persistent(load)
    tasks = [asyncio.create_task(clients.client(workers.port)) for _ in range(CLIENTS)]
    began = time.monotonic()
    captured = 0.0
    killed: set[int] = set()
    for number in range(KILLS):
        await asyncio.sleep(load.random.uniform(0.05, 0.7))
        spared = await asyncio.to_thread(workers.writer, ("host", "host-2")[number % 2 == 0])
        killed.add(await asyncio.to_thread(workers.kill_worker, ("host", "host-2")[number % 2]))
        await asyncio.to_thread(workers.wait_ready)
        assert spared in workers.pids(), "the other worker ended, too"
        now_captured = await asyncio.to_thread(workers.metric, 'mailkeep_captured_messages_total{leg="lmtp"}')
        assert now_captured >= captured, "a counter went back"
        captured = now_captured
    clients.stopping = True
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    assert len(killed) == KILLS
    assert await asyncio.to_thread(workers.metric, "mailkeep_worker_restarts_total") == KILLS
    unknown = await asyncio.to_thread(workers.metric, "mailkeep_redelivered_unknown_total")
    suppressed = await asyncio.to_thread(workers.metric, "mailkeep_retries_suppressed_total")
    assert await asyncio.to_thread(workers.stop) == 0
    times = itertools.pairwise([began, *sorted(clients.answered_at)])
    pause = max(after - before for before, after in times)
    copies = Counter((mail.message, who) for mail in sink.delivered for who in mail.recipients)
    twice = sum(count - 1 for count in copies.values())
    await asyncio.to_thread(verify, workers.store, load, sink)
    print(
        f"{len(load.acknowledged)} acknowledged, {clients.broken} connections lost, longest pause "
        f"{pause:.2f} s, {suppressed:.0f} retries answered as known, {unknown:.0f} delivered again, "
        f"{twice} copies twice"
    )
    assert pause < STALL_S, "the other worker stopped, too"
    assert twice <= unknown, "mail came twice, and nobody counted it"
    assert len(load.acknowledged) > KILLS, "the load was no load"


def verify(path: Path, load: Load, sink: LmtpSink) -> None:
    with Store.open(path) as store:
        assert not store.damage
        assert list(check(store, Checked(), read_data=True)) == []
        stored = {found.delivery.content for found in store.deliveries(Query())}
        assert set(store.stats().streams) == {"host", "host-2"}
        assert stored <= set(load.sent), "something is there that nobody sent"
        assert load.acknowledged <= stored, "an acknowledged message is missing"
        delivered = {bytes(content_id(mail.message)) for mail in sink.delivered}
        assert delivered <= stored, "the mailbox server has a message that the store has not"
        for content in stored:
            assert b"".join(store.read(content)) == load.sent[content]
