"""The job `scrub` of a real `mailkeep serve`: what is wrong with a replica is found, told and mended.

client --> mailkeep serve --> sink        mailkeep jobs run scrub --wait
                 |
                 v
            directory, which loses and alters objects
"""

from __future__ import annotations

import json
import os
import shutil
import smtplib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.demo.ports import wait_until
from sidecar.portion import Portion
from store.store import Store
from tests.store.conftest import put_message
from tests.support.lmtp_sink import LmtpSink
from tests.support.mailstore import Ran, mailkeep
from tests.support.service import Service
from tests.support.sink_thread import SinkThread


class Shipping:
    """A service that ships to a directory."""

    def __init__(self, service: Service, replica: Path) -> None:
        self.service, self.replica = service, replica
        self.url = f"file://{replica}"

    def send(self) -> None:
        with smtplib.LMTP("127.0.0.1", self.service.port) as client:
            client.sendmail("bert@example.com", ["anna@example.org"], b"Subject: one more\r\n\r\n")
        self.catch_up(time.time())

    def catch_up(self, since: float) -> None:
        done = wait_until(lambda: self.metric("last_success_timestamp_seconds") > since, timeout_s=60)
        assert done, self.service.tail()

    def metric(self, name: str) -> float:
        return self.service.metrics()[f'replica_{name}{{replica="1"}}']

    def pieces(self) -> list[Path]:
        return sorted(self.replica.glob("packs/host/*/*"))

    def scrub(self, *arguments: str) -> Ran:
        return mailkeep("jobs", "run", "scrub", "--wait", *arguments, "--config", self.service.config_file)

    def told(self) -> str:
        told = mailkeep("jobs", "--json", "--config", self.service.config_file).out
        return json.dumps([json.loads(line) for line in told.splitlines()])

    def is_whole(self) -> bool:
        command = ("check", "--replica", self.url, "--read-data", "--store", self.service.store)
        return mailkeep(*command).code == 0

    def notes(self) -> list[Path]:
        return list(self.service.store.glob("jobs/mend-*"))


@pytest.fixture
def shipping(tmp_path: Path) -> Iterator[Shipping]:
    replica = {"url": f"file://{tmp_path}/replica", "interval": "100ms", "scrub_read": "100%"}
    jobs = {"scrub": "", "search": "", "nice": 0, "io_class": "none"}
    with SinkThread(LmtpSink()) as sink:
        service = Service(
            tmp_path, lmtp={"downstream": sink.address}, scheduler=jobs, **{"[replica]": replica}
        )
        with Store.open(service.store, create=True) as store:
            store.start_writing("host")
            for _ in range(3):  # closed packs go there in pieces
                put_message(store, b"Subject: before\r\n\r\n" + os.urandom(20_000))
                store.writer.roll()
        service.start()
        made = Shipping(service, tmp_path / "replica")
        made.catch_up(0)
        made.send()
        yield made
        if service.running:
            service.kill()


def test_what_is_wrong_is_found_and_mended(shipping: Shipping) -> None:
    assert shipping.metric("scrub_timestamp_seconds") == 0
    assert shipping.scrub().code == 0
    began = shipping.metric("scrub_timestamp_seconds")
    assert began > 0
    assert [shipping.metric(f"{what}_objects") for what in ("missing", "damaged", "unmended")] == [0, 0, 0]
    first, second, *_ = shipping.pieces()
    whole = first.read_bytes()
    first.unlink()
    data = bytearray(second.read_bytes())
    data[7] ^= 1
    second.write_bytes(data)
    assert shipping.scrub().code == 0
    assert [shipping.metric(f"{what}_objects") for what in ("missing", "damaged", "unmended")] == [1, 1, 0]
    assert f"{first.name} is missing" in shipping.service.log_text()
    assert f"{second.name} is damaged" in shipping.service.log_text()
    assert wait_until(lambda: not shipping.notes(), timeout_s=60), shipping.service.tail()
    assert first.read_bytes() == whole
    assert second.with_name(f"{second.name}.1").exists()
    assert shipping.is_whole()
    assert shipping.scrub().code == 0
    assert [shipping.metric(f"{what}_objects") for what in ("missing", "damaged", "unmended")] == [0, 0, 0]
    assert shipping.metric("scrub_timestamp_seconds") > began
    # Its last round, which nothing there misses.
    shipping.send()
    max(shipping.replica.glob("hosts/host/*/*"), key=lambda file: file.name).unlink()
    assert shipping.scrub().code == 0
    assert shipping.metric("damaged_objects") == 1
    assert wait_until(lambda: not shipping.notes(), timeout_s=60), shipping.service.tail()
    assert shipping.is_whole()
    assert shipping.service.stop() == 0
    shipping.service.start()
    assert shipping.metric("damaged_objects") == 1, "what was found outlives a restart"


def test_what_cannot_be_mended_is_told(shipping: Shipping) -> None:
    shipping.pieces()[0].unlink()
    pack = min(shipping.service.store.glob("streams/host/*.pack"))
    pack.write_bytes(bytes(pack.stat().st_size))
    ran = shipping.scrub("--arg", "read_data=0")
    assert ran.code == 1
    assert "1 cannot be mended from here" in ran.out + ran.err
    assert shipping.metric("unmended_objects") == 1
    assert shipping.metric("scrub_timestamp_seconds") == 0
    shutil.rmtree(shipping.replica)
    ran = shipping.scrub()
    assert "No such file or directory" in ran.out + ran.err
    assert not shipping.replica.exists()
    shipping.replica.mkdir()
    ran = shipping.scrub()
    assert "if that is mounted" in ran.out + ran.err
    assert shipping.notes() == []


def test_portions() -> None:
    assert [str(Portion.parse(text)) for text in ("256MiB", "5%", "0", "0.5%")] == [
        "256MiB",
        "5%",
        "0",
        "0.5%",
    ]
    assert Portion.parse("5%").of(1001) == 51
    assert Portion.parse("1KiB").of(1000) == 1000
    assert Portion.parse("0").of(1000) == 0
    for wrong in ("101%", "%", "-1", "some", "1.5MiB"):
        with pytest.raises(ValueError, match=r"more than all|or a share such as 5%"):
            Portion.parse(wrong)
