"""The drill: says proven when everything comes back, and only then.

canary --> mailkeep serve --> sink (the mailbox server)      store --> scratch server inside the drill

What would break these: a drill that proves without restoring, that leaves records in the history which a
replay would believe, whose canary is not captured, that reaches a mailbox with anything but the canary, whose
result does not reach /metrics.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP
from aiosmtpd.smtp import Envelope as SmtpEnvelope
from blake3 import blake3

from sidecar.config import Config, ConfigError
from sidecar.demo.ports import free_port
from sidecar.drill import Plan, Proof, drill, load_proof, record
from sidecar.drill.restore import Sender, restore
from sidecar.drill.sample import draw
from sidecar.drill.sink import Arrived, ScratchServer
from sidecar.identity import write_identity
from sidecar.jobs.drill import drill_job
from sidecar.scheduler.context import JobContext
from store.deliveries import Query
from store.ids import DeliveryId
from store.records import Delivery, Leg
from store.store import Store
from tests.store.conftest import put_message
from tests.support.lmtp_sink import LmtpSink
from tests.support.mailstore import NOON_US, SECOND_US, Ran, mailkeep, written
from tests.support.service import Service
from tests.support.serving import Client
from tests.support.sink_thread import SinkThread

DRILL_BOX = b"drill@example.org"
RCPT = b"RCPT TO:<%s>" % DRILL_BOX
YEAR_US = 31_536_000 * SECOND_US


def mail(number: int, size: int = 3000) -> bytes:
    """One that shares nothing with another."""
    body = random.Random(number).randbytes(size // 2).hex().encode()
    return b"Subject: number %d\r\nMessage-ID: <%d@x>\r\n\r\n.%s\0\xff\r\n" % (number, number, body)


@dataclass
class Stage:
    """A service, the mailbox server behind it, and some mail in the store."""

    service: Service
    sink: LmtpSink
    sent: list[bytes] = field(default_factory=list)

    def send(self, count: int) -> None:
        async def talk() -> None:
            client = await Client.connect(self.service.port)
            for _ in range(count):
                self.sent.append(mail(len(self.sent)))
                assert [reply[:3] for reply in await client.send(self.sent[-1])] == [b"250"]
            await client.close()

        asyncio.run(talk())

    def drill(self, *arguments: str) -> Ran:
        """In this process: an interpreter for each would cost most of the time."""
        return mailkeep("drill", "--config", self.service.config_file, *arguments)

    def proof(self) -> tuple[float, float]:
        metrics = self.service.metrics()
        return metrics["last_proven_restore_timestamp_seconds"], metrics["drill_failures_total"]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    sink = LmtpSink()
    with SinkThread(sink) as running:
        service = Service(
            tmp_path / "mailkeep",
            lmtp={"downstream": running.address},
            drill={"recipient": DRILL_BOX.decode(), "sample": 5, "timeout": "20s"},
        )
        with service:
            yield Stage(service, sink)


def summary(ran: Ran) -> dict[str, Any]:
    last = ran.objects[-1]
    assert last["kind"] == "summary"
    return last


def test_canary_and_sample_are_proven_and_nothing_else_is_left(stage: Stage) -> None:
    assert stage.proof() == (0, 0)
    stage.send(8)
    ran = stage.drill("--json")
    assert ran.code == 0, ran.err
    *messages, told = ran.objects
    assert (told["proven"], told["reasons"], told["notes"]) == (True, [], [])
    assert (told["messages"], told["restored"]) == (6, 6)
    assert told["canary"]["recipient"] == DRILL_BOX.decode()
    assert told["canary"]["reply"].startswith("250 2.0.0 ")
    assert told["first_seconds"] > 0
    assert told["messages_per_second"] > 0
    assert told["bytes"] == sum(message["size"] for message in messages)
    assert len({message["id"] for message in messages}) == 6

    canaries = [one for one in stage.sink.delivered if one.recipients == [RCPT]]
    assert len(stage.sink.delivered) == 9, "no mailbox got anything but the canary"
    assert canaries[0].mail == b"MAIL FROM:<>"
    listed = stage.service.listed()
    assert len(listed) == 9
    assert listed[-1]["id"] == told["canary"]["id"] == messages[0]["id"]
    assert stage.service.raw(listed[-1]["id"]) == canaries[0].message
    with Store.open(stage.service.store) as store:
        assert [one.replays for one in store.deliveries(Query())] == [()] * 9

    proven, failures = stage.proof()
    assert proven > 1_700_000_000
    assert failures == 0
    assert stage.service.stop() == 0
    stage.service.start()
    assert stage.proof() == (proven, 0), "it outlives a restart"
    assert stage.drill("--no-canary").lines[-1] == "proven: every byte came back"
    assert stage.proof()[0] > proven
    assert len(stage.sink.delivered) == 9


def test_two_canaries_share_nothing(stage: Stage) -> None:
    assert stage.drill("--no-sample").code == 0
    before = stage.service.metrics()["stored_new_bytes_total"]
    ran = stage.drill("--no-sample")
    assert ran.code == 0
    assert "restored 1 message," in ran.out
    assert stage.service.metrics()["stored_new_bytes_total"] - before > 6000


def test_the_job_of_serve(stage: Stage) -> None:
    stage.send(3)
    ran = mailkeep("jobs", "--config", stage.service.config_file, "run", "drill", "--wait")
    assert ran.code == 0, ran.out + ran.err
    assert "canary to drill@example.org by LMTP" in ran.out
    assert "proven: every byte came back" in ran.out
    proven, failures = stage.proof()
    assert proven > 0
    assert failures == 0

    stage.sink.final_replies[RCPT] = b"550 5.7.1 no canaries here\r\n"
    ran = mailkeep("jobs", "--config", stage.service.config_file, "run", "drill", "--wait")
    assert ran.code == 1
    assert "no canaries here" in ran.out
    assert stage.proof() == (proven, 1)
    assert stage.service.metrics()['job_runs_total{job="drill",result="failed"}'] == 1
    assert "drill: not proven: the canary was refused" in stage.service.log_text()

    stage.service.configure(drill={"recipient": ""})
    stage.service.reload()
    ran = mailkeep(
        "jobs", "--config", stage.service.config_file, "run", "drill", "--wait", "--arg", "sample=2"
    )
    assert ran.code == 0, ran.out + ran.err
    assert "restored 2 messages" in ran.out
    assert "note: no canary was sent: [drill] recipient is not set" in ran.out


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ({"rcpt_replies": {RCPT: b"550 5.1.1 who?\r\n"}}, "was refused by LMTP .*: 550 5.1.1 who[?]"),
        ({"final_replies": {RCPT: b"452 4.2.2 full\r\n"}}, "was refused by LMTP .*: 452 4.2.2 full"),
        ({"drop_at": b"connect"}, "cannot be handed in|was refused by LMTP .*: 451"),
    ],
    ids=["recipient", "message", "not there"],
)
def test_a_mailbox_server_that_refuses_the_canary(stage: Stage, script: dict[str, Any], said: str) -> None:
    stage.send(2)
    for name, value in script.items():
        setattr(stage.sink, name, value)
    ran = stage.drill("--json")
    told = summary(ran)
    assert (ran.code, told["proven"]) == (6, False)
    (reason,) = told["reasons"]
    assert re.search(said, reason), reason
    assert told["restored"] >= 2, "the sample is tried all the same"
    assert stage.proof() == (0, 1)


def test_nobody_takes_the_canary(stage: Stage) -> None:
    stage.send(1)
    stage.service.configure(drill={"via": f"127.0.0.1:{free_port()}"})
    ran = stage.drill()
    assert ran.code == 6
    assert "not proven: the canary cannot be handed in by SMTP 127.0.0.1:" in ran.out
    assert "restored 1 message," in ran.out


class Relay:
    """Takes mail by SMTP and passes it on to mailkeep with a line on top, as Postfix does; or not quite."""

    def __init__(self, port: int, how: str) -> None:
        self._port = port
        self._how = how

    async def handle_DATA(  # noqa: N802 - the name is aiosmtpd's
        self, _server: SMTP, _session: object, envelope: SmtpEnvelope
    ) -> str:
        assert isinstance(envelope.content, bytes)
        message = b"Received: by relay\r\n" + envelope.content
        if self._how == "altered":
            message = message.replace(b"It may be deleted.", b"It may be deleted!")
        if self._how != "swallowed":
            client = await Client.connect(self._port)
            await client.send(message, [recipient.encode() for recipient in envelope.rcpt_tos])
            await client.close()
        return "250 2.0.0 queued"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("straight", ""),
        ("altered", "but not as it was sent: something on the way altered it"),
        ("swallowed", "was taken by SMTP .* but is not in the store in 1 s"),
        ("refused", "the mailbox server said: 550 5.7.1 no"),
        ("deferred", "took none in 1 s, and said: 451 4.7.1 later"),
    ],
)
def test_by_smtp(stage: Stage, how: str, said: str) -> None:
    replies = {"refused": b"550 5.7.1 no\r\n", "deferred": b"451 4.7.1 later\r\n"}
    if how in replies:
        stage.sink.final_replies[RCPT] = replies[how]
    port = free_port()
    relay = Controller(Relay(stage.service.port, how), hostname="127.0.0.1", port=port)
    relay.start()
    try:
        stage.service.configure(drill={"via": f"127.0.0.1:{port}", "sender": "ops@example.org"})
        ran = stage.drill(
            "--json", "--no-sample", "--timeout", "1s" if how in ("swallowed", "deferred") else "20s"
        )
    finally:
        relay.stop()
    told = summary(ran)
    assert ran.code == (6 if said else 0), ran.out
    assert bool(said) == (not told["proven"])
    if said:
        assert re.search(said, told["reasons"][0]), told["reasons"]
    else:
        assert stage.service.raw(told["canary"]["id"]).startswith(
            b"Received: by relay\r\nFrom: mailkeep drill <ops@"
        )


# -- stores without a service


def filled(path: Path, count: int, **how: object) -> list[Delivery]:
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        return [put_message(store, mail(number), **how) for number in range(count)]


@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_flipped_byte_fails_the_drill_and_names_the_message(tmp_path: Path, at: int) -> None:
    path = tmp_path / "store"
    ends, deliveries = [0], []
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        for number in range(6):
            deliveries.append(put_message(store, mail(number)))
            (pack,) = (path / "streams/host").glob("*.pack")
            ends.append(pack.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[ends[at + 1] - (ends[at + 1] - max(ends[at], 200)) // 2] ^= 1
    pack.write_bytes(data)
    ran = mailkeep("drill", "--store", path, "--no-canary", "--json")
    told = summary(ran)
    assert ran.code == 6, ran.out
    assert (told["messages"], told["restored"]) == (6, 5)
    (reason,) = told["reasons"]
    assert deliveries[at].id.hex()[:10] in reason
    assert "to anna@example.org" in reason
    (bad,) = (one for one in ran.objects if one["kind"] == "message" and not one["proven"])
    assert bad["id"] == deliveries[at].id.hex()
    assert bad["error"]
    assert load_proof(path).reasons == [reason]
    assert load_proof(path).failures == 1


def test_a_missing_pack(tmp_path: Path) -> None:
    path = tmp_path / "store"
    filled(path, 2)
    with Store.open(path) as store:
        for pack in (path / "streams/host").glob("*.pack"):
            pack.unlink()
        report = asyncio.run(drill(store, Plan(route=None, sample=9)))
    assert not report.proven
    assert len(report.reasons) == 2


def test_without_a_scratch_server_nothing_is_proven_and_that_is_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    filled(path, 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    ran = mailkeep("drill", "--store", path, "--no-canary")
    assert ran.code == 6
    assert "no scratch server" in ran.lines[-1]
    assert load_proof(path).failures == 1


def test_a_job_that_has_nothing_to_prove_by_counts_as_failed(tmp_path: Path) -> None:
    config = Config.parse("[lmtp]\n[drill]\nsample = 0\n", "x")
    with written(tmp_path / "store") as filler:
        with pytest.raises(ConfigError):
            drill_job(filler.store, lambda: config)(JobContext({}))
        assert load_proof(filler.store.path).failures == 1


def test_every_leg_and_any_address(tmp_path: Path) -> None:
    addresses = [b"a@x", b'"a b>"@x', "jürgen@x".encode(), b"<odd", b"two\r\nlines", b"", b"x" * 3000 + b"@x"]
    with written(tmp_path / "store") as filler:
        for number, address in enumerate(addresses):
            leg = (Leg.LMTP, Leg.MILTER, Leg.IMPORT)[number % 3]
            filler.put(mail(number), to=(address,), leg=leg)
        filler.put(mail(99), to=())
        filler.put(b"")
        filler.put(b"no line end\n.\r\n..")
    ran = mailkeep("drill", "--store", tmp_path / "store", "--no-canary", "--sample", "100")
    assert ran.code == 0, ran.out
    assert "restored 10 messages" in ran.out


def test_an_empty_store_proves_nothing(tmp_path: Path) -> None:
    filled(tmp_path / "store", 0)
    ran = mailkeep("drill", "--store", tmp_path / "store", "--no-canary")
    assert ran.code == 6
    assert ran.lines == ["not proven: the store has no mail, so nothing was restored"]


def test_what_is_erased_meanwhile_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "store"
    first, second = filled(path, 2)
    erased = mailkeep("erase", first.id.hex(), "--store", path, "--reason", "asked for", "--yes")
    assert erased.code == 0, erased.err
    with Store.open(path) as store:
        assert draw(store, 9) == [second.id]
        done = asyncio.run(restore(store, [first.id, second.id], lambda _: None))
    assert [(one.removed, one.proven) for one in done.results] == [(True, False), (False, True)]


def test_a_sealed_store_needs_its_identity(tmp_path: Path) -> None:
    key, path = tmp_path / "key.txt", tmp_path / "store"
    with Store.open(path, create=True, recipients=[write_identity(key, None)]) as store:
        store.start_writing("host")
        put_message(store, mail(1))
    ran = mailkeep("drill", "--store", path, "--no-canary")
    assert ran.code == 21
    assert "--identity" in ran.err
    assert load_proof(path) == Proof()
    ran = mailkeep("drill", "--store", path, "--no-canary", "--identity", key)
    assert ran.code == 0, ran.err
    assert load_proof(path).last_proven > 0


def test_the_job_of_a_sealed_service_sends_no_canary(tmp_path: Path) -> None:
    public = write_identity(tmp_path / "key.txt", None)
    sink = LmtpSink()
    with SinkThread(sink) as running:
        service = Service(
            tmp_path / "mailkeep",
            lmtp={"downstream": running.address},
            drill={"recipient": DRILL_BOX.decode()},
            encryption={"recipients": [public]},
        )
        with service:
            ran = mailkeep("jobs", "--config", service.config_file, "run", "drill", "--wait")
            assert ran.code == 1
            assert "no identity is given" in ran.out
            assert sink.delivered == []
            assert service.metrics()["drill_failures_total"] == 1
            ran = mailkeep(
                "drill", "--config", service.config_file, "--identity", tmp_path / "key.txt", "--json"
            )
            assert ran.code == 0, ran.out + ran.err
            assert summary(ran)["canary"]["reply"].startswith("250")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "[drill] recipient is not set"),
        (("--no-sample", "--no-canary"), "--no-sample goes neither"),
        (("--no-sample", "--sample", "3"), "--no-sample goes neither"),
        (("--timeout", "soon"), "'soon' is not a duration"),
    ],
)
def test_what_cannot_be_done_is_told(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    config = tmp_path / "mailkeep.toml"
    config.write_text(f'[store]\npath = "{tmp_path}/store"\n[lmtp]\n')
    ran = mailkeep("drill", "--config", config, *arguments)
    assert ran.code == 2
    assert said in " ".join(ran.err.split())
    if not arguments:
        assert "--no-canary" in ran.err


def test_the_way_of_the_canary() -> None:
    def plan(text: str, **how: Any) -> Plan:
        return Plan.of(Config.parse(f'[drill]\nrecipient = "d@x.example"\n{text}', "test"), **how)

    assert str(plan("[lmtp]").route) == "LMTP 127.0.0.1:2424"
    assert str(plan('via = "127.0.0.1:25"\n[lmtp]').route) == "SMTP 127.0.0.1:25"
    milter = plan('via = "127.0.0.1:25"\n[milter]')
    assert milter.route is not None
    assert milter.route.leg == Leg.MILTER
    assert milter.notes == ("without [lmtp] the mailbox server's reply to the canary is not seen",)
    assert plan("[lmtp]", canary=False).route is None
    for text in ("[milter]", '[lmtp]\nlisten = "127.0.0.1:0"'):
        with pytest.raises(ConfigError, match="via is not set"):
            plan(text)
    with pytest.raises(ConfigError, match="nothing that a drill could prove"):
        plan("sample = 0\n[lmtp]", canary=False)
    with pytest.raises(ConfigError, match=r"via: .*SMTP is spoken over TCP"):
        plan('via = "unix:/run/x"\n[lmtp]')
    with pytest.raises(ConfigError, match="is not one mail address"):
        Config.parse('[lmtp]\n[drill]\nrecipient = "a@x>\\r\\nDATA"', "test")


# -- the sample


def spread(path: Path) -> tuple[Store, list[DeliveryId]]:
    """Five in ten years, two hundred in the last minutes."""
    with written(path) as filler:
        rare = [filler.put(mail(n), time_us=NOON_US + n * 2 * YEAR_US).id for n in range(5)]
        for number in range(200):
            filler.put(mail(0), time_us=NOON_US + 10 * YEAR_US + number * SECOND_US)
    return Store.open(path), rare


def test_the_sample_is_drawn_evenly_over_time(tmp_path: Path) -> None:
    store, rare = spread(tmp_path / "store")
    with store:
        counts = [len(set(draw(store, 4)) & set(rare)) for _ in range(50)]
    # Four different of five intervals that are alike and one that is nothing; by message it would be 0.1.
    assert sum(counts) / 50 > 2


def test_the_sample_is_as_large_as_asked_for_and_without_doubles(tmp_path: Path) -> None:
    store, rare = spread(tmp_path / "store")
    with store:
        for number in (0, 1, 50, 203, 204, 205, 1000):
            drawn = draw(store, number)
            assert len(drawn) == len(set(drawn)) == min(number, 205)
            assert drawn == sorted(drawn, key=lambda id_: id_[8:] + id_[:8])
        assert rare[0] not in draw(store, 204, but=frozenset(rare[:1]))
        assert len(draw(store, 300, but=frozenset(rare[:1]))) == 204


# -- the scratch server


async def test_the_scratch_server_tells_what_came_and_leaves_nothing() -> None:
    async with ScratchServer() as server:
        socket = Path(server.address.path)
        assert socket.parent.stat().st_mode & 0o077 == 0, "nobody else reaches it"
        sender = Sender(server.address)
        message = os.urandom(400_000)
        assert await sender.send(b"a@x", b"b@x", [message[:5], message[5:]]) == b"250 2.0.0 Ok"
        assert server.take() == [Arrived(b"b@x", 400_000, blake3(message).digest())]
        assert server.take() == []
        assert await sender.send(b"a@x", b"b@x", [b""]) == b"250 2.0.0 Ok"
        assert server.take() == [Arrived(b"b@x", 0, blake3().digest())]

        def broken() -> Iterator[bytes]:
            yield message
            raise OSError("gone")

        with pytest.raises(OSError, match="gone"):
            await sender.send(b"a@x", b"b@x", broken())
        sender.drop()
        await asyncio.sleep(0.05)
        assert server.take() == [], "a message without its end is none"
        reader, writer = await asyncio.open_unix_connection(server.address.path)
        writer.write(b"DATA\r\nRCPT TO:nonsense\r\nQUIT\r\n")
        assert [line[:3] async for line in reader] == [b"220", b"502", b"501", b"221"]
        writer.close()
    assert not socket.parent.exists()


def test_a_large_message_is_compared_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Store.open(path, create=True) as store:
        store.start_writing("host")
        delivery = put_message(store, b"Subject: big\r\n\r\n" + os.urandom(48 << 20))
    with Store.open(path) as store:
        tracemalloc.start()
        done = asyncio.run(restore(store, [delivery.id], lambda _: None))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert done.proven == 1
    assert peak < 24 << 20


# -- the record


def test_the_record_counts_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    assert load_proof(tmp_path) == Proof()
    assert record(tmp_path, 5.0, []) == Proof(last_drill=5.0, last_proven=5.0)
    assert record(tmp_path, 6.0, ["a", "b"]) == Proof(
        last_drill=6.0, last_proven=5.0, failures=1, reasons=["a", "b"]
    )
    record(tmp_path, 4e9, [])
    assert record(tmp_path, 6.0, ["a"]).last_proven == 6.0  # the clock was ahead
    (tmp_path / "jobs/drill.json").write_text('{"failures":1}')
    assert record(tmp_path, 7.0, []) == Proof(last_drill=7.0, last_proven=7.0, failures=1)
    assert json.loads((tmp_path / "jobs/drill.json").read_text())["failures"] == 1
    (tmp_path / "jobs/drill.json").write_text("{")
    assert load_proof(tmp_path) == Proof()
