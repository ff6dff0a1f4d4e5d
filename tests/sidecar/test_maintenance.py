"""The background jobs of a real `mailkeep serve`: compact, expire and check, asked for as an operator would.

    client --> mailkeep serve --> sink        mailkeep jobs run JOB --wait

What would break these: a job that does nothing and says ok, rules that SIGHUP does not bring to it, a result
that neither `jobs` nor /metrics tells, a job that keeps the service from stopping or begins anew each time,
capture that waits for compaction.
"""

from __future__ import annotations

import asyncio
import random
import re
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.demo.ports import wait_until
from store.check import Checked, check
from store.deliveries import Query
from store.ids import now_us
from store.segments import Segment, all_packs, pack_path, stream_files
from store.store import Store
from tests.support.lmtp_sink import LmtpSink
from tests.support.mailstore import MESSAGE, Ran, mailkeep, written
from tests.support.serving import Client, Serving
from tests.support.sink_thread import SinkThread

DAY_US = 86_400_000_000
SCHEDULER = """[scheduler]
compact = ""
expire = ""
check = ""
search = ""
nice = 0
io_class = "none"
busy_latency = "1m"
"""
RULE = '[[retention]]\nto = "@%s"\nkeep = "90d"\n'


class Kept:
    """A service with small packs, and what it was sent."""

    def __init__(self, directory: Path, downstream: str) -> None:
        self.serving = Serving(directory, downstream, SCHEDULER)
        text = self.serving.config.read_text()
        more = 'reserve = "1MiB"\npack_size = "64KiB"\ncompaction_level = 3\n'
        self.plain = text.replace('reserve = "1MiB"\n', more)
        self.configure()
        self.random = random.Random(1)
        self.sent: list[bytes] = []

    @property
    def path(self) -> Path:
        return self.serving.store

    @property
    def stream(self) -> Path:
        return self.path / "streams/host"

    def start(self) -> None:
        self.serving.start()

    def configure(self, more: str = "", *, io_rate: str = "0") -> None:
        scheduler = f'{SCHEDULER}io_rate = "{io_rate}"\n'
        self.serving.config.write_text(self.plain.replace(SCHEDULER, scheduler) + more)

    def reload(self) -> None:
        before = len(self.serving.log.read_text())
        assert self.serving.process
        self.serving.process.send_signal(signal.SIGHUP)
        assert wait_until(lambda: "reloaded" in self.serving.log.read_text()[before:], timeout_s=60)

    def send(self, count: int, *, size: int = 2000) -> None:
        """Messages that share nothing, each acknowledged when this returns."""

        async def talk() -> None:
            client = await Client.connect(self.serving.port)
            for _ in range(count):
                head = b"Subject: number %d\r\nMessage-ID: <%d@load>\r\n\r\n" % ((len(self.sent),) * 2)
                message = head + self.random.randbytes(size // 2).hex().encode() + b"\r\n"
                assert [reply[:3] for reply in await client.send(message)] == [b"250"]
                self.sent.append(message)
            await client.close()

        asyncio.run(talk())

    # -- jobs

    def command(self, *arguments: str) -> Ran:
        """In the tests' own process: an interpreter for each would cost most of the time."""
        return mailkeep(*arguments, "--config", self.serving.config)

    def jobs(self, *arguments: str) -> Ran:
        return self.command("jobs", *arguments)

    def run(self, *arguments: str) -> str:
        """Run a job to its end; what came of it."""
        ran = self.jobs("run", *arguments, "--wait")
        assert ran.code == 0, ran.err + ran.out
        return ran.out

    def listed(self, kind: str) -> dict[str, Any]:
        ran = self.jobs("--json")
        assert ran.code == 0, ran.err
        told = {line["kind"]: line for line in ran.objects}
        return told.get(kind, {"state": "not yet known", "running": None})

    def metrics(self) -> dict[str, float]:
        page = f"http://127.0.0.1:{self.serving.metrics_port}/metrics"
        with urllib.request.urlopen(page, timeout=60) as answer:
            lines = [line.rpartition(" ") for line in answer.read().decode().splitlines() if line[:1] != "#"]
        return {name.removeprefix("mailkeep_"): float(value) for name, _, value in lines}

    # -- what must be so

    def whole(self, *, more: int = 0) -> None:
        """The service has ended: all that was sent is there, and so many more."""
        with Store.open(self.path) as store:
            assert store.damage == []
            found = [stored.delivery for stored in store.deliveries(Query(newest_first=False))]
            assert len(found) == len(self.sent) + more
            bodies = {b"".join(store.read(delivery.content)) for delivery in found}
            assert set(self.sent) <= bodies
            assert list(check(store, Checked(), read_data=True)) == []


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    with SinkThread(LmtpSink()) as sink:
        kept = Kept(tmp_path, sink.address)
        yield kept
        if kept.serving.process and kept.serving.process.poll() is None:
            kept.serving.kill()


def test_compact(kept: Kept) -> None:
    kept.start()
    assert kept.run("compact") == "compact: ok: nothing is due\n"
    kept.send(150)
    before = all_packs(kept.stream)
    assert len(before) > 2, "the test wants several packs"
    told = kept.run("compact", "--arg", "all=")
    assert re.fullmatch(r"compact: ok: \d+ packs of 0\.\d MB are now \d of 0\.\d MB\n", told)
    assert isinstance(stream_files(kept.stream).parts[0], Segment)
    assert not set(before) & set(all_packs(kept.stream)), "the open one was ended, since all was asked for"
    listed = kept.listed("compact")
    assert (listed["state"], listed["running"], listed["queued"]) == ("idle", None, [])
    assert listed["last"]["result"] == "ok"
    assert f"compact: ok: {listed['last']['text']}\n" == told
    assert listed["last_success"] == listed["last"]["ended"]
    counted = kept.metrics()
    assert counted['job_runs_total{job="compact",result="ok"}'] == 2
    assert abs(counted['job_last_success_timestamp_seconds{job="compact"}'] - time.time()) < 60
    assert counted['job_last_duration_seconds{job="compact"}'] > 0
    assert counted['job_running{job="compact"}'] == 0
    assert counted["jobs_queued"] == 0
    assert kept.run("check", "--arg", "read_data=100%") == "check: ok: 150 deliveries, nothing wrong\n"
    kept.send(20)
    assert kept.serving.stop() == 0
    kept.whole()


def test_arguments_that_a_job_does_not_know(kept: Kept) -> None:
    kept.start()
    ran = kept.jobs("run", "compact", "--arg", "al=")
    assert ran.code in {1, 2}
    assert "al" in ran.err
    ran = kept.jobs("run", "expire", "--arg", "all=")
    assert ran.code in {1, 2}
    ran = kept.jobs("run", "check", "--wait", "--arg", "read_data=nonsense")
    assert ran.code in {1, 2}
    assert "nonsense" in ran.err + ran.out
    assert kept.serving.stop() == 0


def test_expire_by_rules_that_sighup_brings(kept: Kept) -> None:
    now = now_us()
    with written(kept.path) as fill:
        for n in range(30):
            domain = (b"old.example", b"young.example", b"other.example")[n % 3]
            days = 10 if n % 3 == 1 else 100
            fill.put(
                MESSAGE * 10 + b"%d" % n, to=(b"u@" + domain,), time_us=now - days * DAY_US - n * 1_000_000
            )
        fill.store.writer.roll()
    kept.start()
    kept.send(5)
    assert kept.run("expire") == "expire: ok: no rules: mail is kept for ever\n"
    kept.configure(RULE % "old.example" + RULE % "young.example")
    kept.reload()
    assert kept.run("expire") == "expire: ok: 10 deliveries expired\n"
    assert kept.run("expire") == "expire: ok: 0 deliveries expired\n"
    kept.configure(RULE % "other.example")
    kept.reload()
    assert kept.run("expire") == "expire: ok: 10 deliveries expired\n"
    kept.configure()
    kept.reload()
    assert kept.run("expire") == "expire: ok: no rules: mail is kept for ever\n"
    assert kept.listed("expire")["last"]["text"] == "no rules: mail is kept for ever"
    assert kept.metrics()['job_runs_total{job="expire",result="ok"}'] == 5
    listed = kept.command("list", "--json", "--limit", "0").lines
    assert len(listed) == 15
    told = kept.run("compact")
    assert ", 20 messages dropped" in told
    assert kept.serving.stop() == 0
    kept.whole(more=10)


def test_what_was_erased_goes_with_the_next_run(kept: Kept) -> None:
    """Also from the pack that is being written, however little is in it."""
    kept.start()
    kept.send(5)
    shown = kept.command("list", "--json").objects
    (gone,) = [one["id"] for one in shown if one["subject"] == "number 2"]
    ran = kept.command("erase", gone, "--reason", "asked", "--owner", "dpo", "--yes")
    assert ran.code == 0, ran.err
    told = kept.run("compact")
    assert ", 1 messages dropped" in told
    kept.sent.pop(2)
    kept.send(5)
    assert kept.command("show", gone).code == 17
    assert kept.serving.stop() == 0
    kept.whole()


def test_check_tells_of_damage(kept: Kept) -> None:
    kept.start()
    kept.send(60)
    assert kept.run("check") == "check: ok: 60 deliveries, nothing wrong\n"
    pack = pack_path(kept.stream, 1)
    data = bytearray(pack.read_bytes())
    data[5000] ^= 1
    pack.write_bytes(data)
    ran = kept.jobs("run", "check", "--wait")
    assert ran.code == 1
    assert re.search(r"^check: failed: \d+ findings; `mailkeep check` tells them\n", ran.out)
    assert f"check: damage: {pack}" in kept.serving.log.read_text()
    listed = kept.listed("check")
    assert (listed["state"], listed["last"]["result"]) == ("idle", "failed")
    assert listed["last_success"] < listed["last"]["ended"]
    counted = kept.metrics()
    assert counted['job_runs_total{job="check",result="ok"}'] == 1
    assert counted['job_runs_total{job="check",result="failed"}'] == 1
    ran = kept.jobs("run", "compact", "--wait", "--arg", "all=")
    assert "units left as they are" in ran.out, "a damaged pack is never rewritten"
    assert pack.exists()
    kept.send(5)
    assert kept.serving.stop() == 0


def slowly_compacting(kept: Kept) -> int:
    """The id of a job that would take five minutes at the rate it is given."""
    kept.configure(io_rate="3KiB")
    kept.start()
    kept.send(120, size=8000)
    asked = kept.jobs("run", "compact", "--json", "--arg", "all=")
    assert asked.code == 0, asked.err
    assert wait_until(lambda: kept.listed("compact")["running"] is not None, timeout_s=60)
    return int(asked.objects[0]["job"])


def test_stopped_in_the_middle_and_gone_on_with(kept: Kept) -> None:
    job = slowly_compacting(kept)
    assert wait_until(lambda: kept.listed("compact")["running"]["waiting"] == "I/O rate", timeout_s=60)
    running = kept.listed("compact")["running"]
    assert running["job"] == job
    assert running["total"] > 500_000
    assert running["text"].startswith("host, packs 1 to ")
    began = time.monotonic()
    assert kept.serving.stop() == 0
    assert time.monotonic() - began < 25, "a job must not keep the service from stopping"
    assert set(all_packs(kept.stream)) == stream_files(kept.stream).packs(), "nothing half done is left"
    left = kept.listed("compact")
    assert (left["state"], left["serving"]) == ("interrupted", False)
    assert left["last"]["result"] == "interrupted"

    kept.configure()
    kept.start()
    assert wait_until(lambda: kept.listed("compact")["state"] == "idle", timeout_s=60)
    last = kept.listed("compact")["last"]
    assert (last["job"], last["result"]) == (job, "ok")
    assert "packs of" in last["text"]
    assert kept.metrics()['job_runs_total{job="compact",result="ok"}'] == 1
    assert isinstance(stream_files(kept.stream).parts[0], Segment)
    assert kept.serving.stop() == 0
    kept.whole()


def test_capture_goes_on_meanwhile(kept: Kept) -> None:
    slowly_compacting(kept)
    began = time.monotonic()
    kept.send(60)
    took = time.monotonic() - began
    assert kept.metrics()['job_running{job="compact"}'] == 1, "the test wants it to run all the while"
    listed = kept.command("list", "--json", "--limit", "0").lines
    assert len(listed) == len(kept.sent), "and what came is found at once"
    assert took < 30, "at the job's rate it would be far more"
    assert kept.jobs("cancel", "compact").code == 0
    assert wait_until(lambda: kept.listed("compact")["state"] == "idle", timeout_s=60)
    assert kept.listed("compact")["last"]["text"] == "cancelled"
    assert kept.serving.stop() == 0
    kept.whole()
