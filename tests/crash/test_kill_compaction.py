"""SIGKILL while compaction rewrites what clients are sending: nothing lost, nothing twice, nothing back.

    4 clients --> mailkeep serve --> sink        mailkeep compact --all, beside it or as its job
                  (either is killed, or both, at a random moment, again and again; some mail is erased)

What would break this: an old pack removed before the segment that stands for it is durable or indexed, a
message that comes to share what compaction drops, a segment that counts half, a tombstone forgotten.
`MAILKEEP_KILLS` says how often (40 times at most: each takes ten seconds), `MAILKEEP_SEED` repeats a run as
far as the moments go.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from store import layout
from store.check import Checked, check
from store.deliveries import Query
from store.ids import ContentId, DeliveryId
from store.places import Damage
from store.scan import read_pack_header, scan_records
from store.segments import Segment, all_packs, stream_files
from store.store import Store
from tests.crash.test_kill import Load
from tests.support.lmtp_sink import LmtpSink
from tests.support.service import COMMAND
from tests.support.serving import Serving

KILLS = min(int(os.environ.get("MAILKEEP_KILLS", "4")), 40)
CLIENTS = 4
SCHEDULER = (
    '[scheduler]\ncompact = ""\nexpire = ""\ncheck = ""\nsearch = ""\n'
    'nice = 0\nio_class = "none"\nbusy_latency = "1m"\n'
)
STORE = 'reserve = "1MiB"\npack_size = "64KiB"\ncompaction_level = 3\n'


class Trial:
    """A service, what it was sent, and what was erased of that."""

    def __init__(self, directory: Path, sink: LmtpSink, seed: int) -> None:
        self.load = Load(seed)
        self.random = random.Random(seed)
        self.serving = Serving(directory, str(sink.address), SCHEDULER)
        text = self.serving.config_file.read_text()
        self.serving.config_file.write_text(text.replace('reserve = "1MiB"\n', STORE))
        self.erased: dict[ContentId, DeliveryId] = {}
        self.stored: dict[ContentId, DeliveryId] = {}
        self.proved: set[ContentId] = set()
        self.slowest_s = 0.0
        self.log = directory / "compact.log"

    @property
    def path(self) -> Path:
        return self.serving.store

    # -- one round

    async def round(self) -> None:
        serving = self.serving
        victims = self.random.choice([("serve",), ("serve",), ("compact",), ("serve", "compact")])
        how = self.random.choice(["beside", "job"])
        self.slowest_s = max(self.slowest_s, await asyncio.to_thread(serving.start))
        clients = [asyncio.create_task(self.load.client(serving.port)) for _ in range(CLIENTS)]
        await asyncio.sleep(self.random.uniform(0.1, 0.6))
        await asyncio.to_thread(self.erase, self.random.randrange(3))
        if how == "job":
            asked = await asyncio.to_thread(serving.command, "jobs", "run", "compact", "--arg", "all=")
            assert asked.returncode == 0, asked.stderr.decode()
            await asyncio.sleep(self.random.uniform(0.0, 1.5))
            await asyncio.to_thread(serving.kill)
        else:
            await self._beside(victims)
        await asyncio.wait_for(asyncio.gather(*clients), 60)
        await asyncio.to_thread(self.verify)
        print(f"{how}, killed {victims if how == 'beside' else 'serve'}: {self.told()}")

    async def _beside(self, victims: tuple[str, ...]) -> None:
        compacting = self._start_compacting()
        try:
            await asyncio.sleep(self.random.uniform(0.4, 2.0))
            for victim in self.random.sample(victims, len(victims)):
                if victim == "serve":
                    await asyncio.to_thread(self.serving.kill)
                else:
                    compacting.send_signal(signal.SIGKILL)
            code = await asyncio.to_thread(compacting.wait, 120)
            told = self.log.read_text()
            if code == 1:  # the job of an earlier round, which serve has resumed, was at it
                assert "another process compacts stream 'host'" in told, told
            else:
                assert code in ({0, -signal.SIGKILL} if "compact" in victims else {0}), told
        finally:
            if compacting.poll() is None:
                compacting.kill()
                compacting.wait()
        if self.serving.running:  # goes on capturing for a moment
            await asyncio.sleep(self.random.uniform(0.0, 0.4))
            await asyncio.to_thread(self.serving.kill)

    def _start_compacting(self) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [*COMMAND, "compact", "--all", "--config", str(self.serving.config_file)],
                stdout=log, stderr=log,
            )  # fmt: skip

    def erase(self, count: int) -> None:
        """Some of what is there, for good: it counts from the command's exit code on."""
        some = self.random.sample(sorted(self.stored), min(count, len(self.stored)))
        if some:
            ids = [self.stored[content].hex() for content in some]
            ran = self.serving.command("erase", *ids, "--reason", "asked", "--owner", "dpo", "--yes")
            assert ran.returncode == 0, ran.stderr.decode()
            self.erased.update((content, self.stored.pop(content)) for content in some)

    # -- what must be so

    def verify(self, *, everything: bool = False) -> None:
        """Nobody runs. All that was acknowledged and not erased is there, once; and nothing strange is."""
        with Store.open(self.path) as store:
            assert not store.damage
            assert list(check(store, Checked())) == []
            found = [stored.delivery for stored in store.deliveries(Query())]
            self.stored = {delivery.content: delivery.id for delivery in found}
            assert len(self.stored) == len(found), "something is there twice"
            assert self.stored.keys() <= self.load.sent.keys(), "something is there that nobody sent"
            lost = self.load.acknowledged - self.stored.keys() - self.erased.keys()
            assert not lost, "an acknowledged message is missing"
            assert not self.erased.keys() & self.stored.keys(), "an erased message is back"
            assert all(store.was_erased(content) for content in self.erased)
            fresh = self.stored.keys() - self.proved
            again = self.random.sample(
                sorted(self.proved - self.erased.keys()), min(20, len(self.proved) // 2)
            )
            for content in self.stored if everything else [*fresh, *again]:
                assert b"".join(store.read(content)) == self.load.sent[content]
            self.proved |= fresh

    def verify_tidy(self) -> None:
        """After one more run nothing is left of those that were killed, nor of what was erased."""
        known: set[Path] = set()
        segments = 0
        for directory in (self.path / "streams").iterdir():
            files = stream_files(directory)
            assert (files.superseded, files.damaged) == ((), ())
            assert set(all_packs(directory)) == files.packs()
            segments += sum(isinstance(part, Segment) for part in files.parts)
            known |= {directory / part.name for part in files.parts if isinstance(part, Segment)}
            assert set(directory.glob("*.segment*")) <= known
        assert segments >= 1
        assert not list((self.path / "index").glob("*.tmp"))
        with Store.open(self.path) as store, store.index.read() as snapshot:
            runs = {store.index.run_path(run.number) for run in snapshot.known.catalogue.runs}
            assert set((self.path / "index").glob("*.run")) == runs
            assert not snapshot.has_condemned()
        bytes_ = self.stored_bytes()
        for content in self.erased:
            name = re.search(rb"Message-ID: (<\d+@load>)", self.load.sent[content])
            assert name
            assert name[1] not in bytes_, "the bytes of an erased message are still there"
        for content in list(self.stored)[:20]:
            name = re.search(rb"Message-ID: (<\d+@load>)", self.load.sent[content])
            assert name
            assert name[1] in bytes_, "else the look at the bytes proves nothing"

    def stored_bytes(self) -> bytes:
        """All that is in the packs, unpacked."""
        found = []
        for path in self.path.glob("streams/*/*.pack"):
            for record in scan_records(path, read_pack_header(path).key(), layout.PACK_HEADER_BYTES):
                assert not isinstance(record, Damage)
                if record.type != layout.RecordType.COMMIT:
                    found.append(layout.block_bytes(record.type, record.payload))
        return b"\0".join(found)

    def told(self) -> str:
        packs = sum(len(all_packs(directory)) for directory in (self.path / "streams").iterdir())
        return (
            f"{len(self.load.acknowledged)} acknowledged, {len(self.erased)} erased, {packs} packs, "
            f"slowest start {self.slowest_s:.2f} s"
        )


@pytest.mark.crash
@pytest.mark.timeout(300 + 20 * KILLS)
async def test_killed_while_compacting(tmp_path: Path) -> None:
    seed = int(os.environ.get("MAILKEEP_SEED", str(random.randrange(1 << 30))))
    print(f"seed {seed}, {KILLS} kills")
    sink = LmtpSink()
    await sink.start()
    trial = Trial(tmp_path, sink, seed)
    try:
        for _ in range(KILLS):
            await trial.round()
        began = time.monotonic()
        await asyncio.to_thread(trial.serving.start)
        print(f"the last start took {time.monotonic() - began:.2f} s")
        await asyncio.to_thread(trial.erase, 2)
        assert await asyncio.to_thread(trial.serving.stop) == 0
    finally:
        if trial.serving.running:
            trial.serving.kill()
        await sink.stop()
    await asyncio.to_thread(trial.verify, everything=True)
    ran = await asyncio.to_thread(trial.serving.command, "compact", "--all", "--level", "1")
    assert ran.returncode == 0, ran.stderr.decode()
    print(ran.stdout.decode())
    await asyncio.to_thread(trial.verify, everything=True)
    await asyncio.to_thread(trial.verify_tidy)
    ran = await asyncio.to_thread(trial.serving.command, "check", "--read-data")
    assert ran.returncode == 0, ran.stdout.decode()
    print(trial.told())
    assert len(trial.load.acknowledged) > 2 * KILLS, "the load was no load"
