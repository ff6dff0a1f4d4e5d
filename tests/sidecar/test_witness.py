"""The head on its way to whoever keeps it: a file, syslog, an address, by hand and by the clock of `serve`.

What would break these: a head that overwrites what it does not continue, one place that keeps the others from
theirs, a failure that nobody sees, a signature over other bytes than are sent.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from sidecar import heads
from sidecar.config import Config, ConfigError
from sidecar.sections import WitnessConfig
from sidecar.witness import WitnessError, witness
from store.evidence import head_of
from store.notes import SignKey
from store.store import Store
from tests.support.attacker import Attacker
from tests.support.lmtp_sink import LmtpSink
from tests.support.mailstore import MESSAGE, filled, mailkeep
from tests.support.serving import Client, Serving
from tests.support.sink_thread import SinkThread


class Keeper(HTTPServer):
    """Takes heads over HTTP, as a witness elsewhere would."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.status = 200
        super().__init__(("127.0.0.1", 0), _Handler)
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/heads"

    def close(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Keeper)
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        assert self.headers["Content-Type"] == "text/plain; charset=utf-8"
        self.server.heads.append(body)
        self.send_response(self.server.status)
        if self.server.status == 302:
            self.send_header("Location", self.server.url)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        raise AssertionError("a redirect was followed")

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    keeper = Keeper()
    yield keeper
    keeper.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return filled(tmp_path / "store", 3)


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "log"))
        listening.settimeout(5)
        yield listening


def configured(text: str) -> WitnessConfig:
    return Config.parse(f"[lmtp]\n[witness]\n{text}", "test").witness


def test_everywhere_at_once(path: Path, keeper: Keeper, syslog: socket.socket, tmp_path: Path) -> None:
    key, file = tmp_path / "k", tmp_path / "head.txt"
    mailkeep("head", "keygen", key, "--name", "mx1")
    config = configured(f'key = "{key}"\nfile = "{file}"\nsyslog = true\nurl = "{keeper.url}"\n')
    with Store.open(path) as store:
        told = witness(store, config, syslog=str(tmp_path / "log"))
        expected = head_of(store)
    assert told == f"3 facts in 1 streams, head sent to {file}, syslog, {keeper.url}"
    assert keeper.heads == [file.read_text()]
    head = heads.head_in(file.read_text(), heads.verify_key(str(tmp_path / "k.pub")))
    assert head.streams == expected.streams
    lines = [syslog.recv(4096).decode() for _ in range(5)]
    assert all(line.startswith("<85>mailkeep[") for line in lines)
    assert [line.partition(": head: ")[2] for line in lines] == [*filter(None, file.read_text().splitlines())]


def test_nowhere(path: Path) -> None:
    with Store.open(path) as store:
        assert witness(store, WitnessConfig()) == "3 facts in 1 streams, head sent to nobody"


def test_one_place_fails_and_the_others_have_it(path: Path, keeper: Keeper, tmp_path: Path) -> None:
    file = tmp_path / "head.txt"
    config = configured(f'file = "{file}"\nsyslog = true\nurl = "{keeper.url}"\n')
    with Store.open(path) as store:
        with pytest.raises(WitnessError, match=r"syslog: .*No such file"):
            witness(store, config, syslog=str(tmp_path / "nobody"))
        assert keeper.heads == [file.read_text()]
        for status in (302, 403, 500):
            keeper.status = status
            with pytest.raises(WitnessError, match=f"{status}"):
                witness(store, configured(f'url = "{keeper.url}"'))
        with pytest.raises(WitnessError, match="no/such"):
            witness(store, configured(f'file = "{tmp_path}/no/such/head.txt"\nurl = "http://127.0.0.1:1/"\n'))


def test_a_history_that_does_not_go_on(path: Path, keeper: Keeper, tmp_path: Path) -> None:
    """What is in the file stays; what is sent elsewhere shows the fork to whoever compares."""
    file = tmp_path / "head.txt"
    config = configured(f'file = "{file}"\nurl = "{keeper.url}"\n')
    with Store.open(path) as store:
        witness(store, config)
    before = file.read_text()
    Attacker(path).rewrite(lambda groups: groups[0].entries.reverse())
    with Store.open(path) as store:
        witness(store, configured(f'file = "{tmp_path}/another.txt"'))
    Attacker(path).rewrite(lambda groups: groups.reverse())
    with Store.open(path) as store, pytest.raises(WitnessError, match="not of this history"):
        witness(store, config)
    assert file.read_text() == before
    assert len(keeper.heads) == 2
    shutil.rmtree(path / "streams/host")
    Attacker(path).forget()
    with Store.open(path) as store, pytest.raises(WitnessError, match="stream host is missing"):
        witness(store, config)


def _no_head(file: Path) -> None:
    file.write_text("hello\n")


def _no_text(file: Path) -> None:
    file.write_bytes(b"\xff\x00")


def _emptied(file: Path) -> None:
    file.write_bytes(b"")


def _directory(file: Path) -> None:
    file.mkdir()


def _pipe(file: Path) -> None:
    os.mkfifo(file)


def _into_itself(file: Path) -> None:
    file.symlink_to(file)


@pytest.mark.parametrize("put", [_no_head, _no_text, _emptied, _directory, _pipe, _into_itself])
def test_a_file_that_cannot_be_compared(
    path: Path, keeper: Keeper, syslog: socket.socket, tmp_path: Path, put: Callable[[Path], None]
) -> None:
    """It stays as it is, the job fails, and the head goes everywhere else."""
    file = tmp_path / "head.txt"
    put(file)
    before = file.lstat()
    config = configured(f'file = "{file}"\nsyslog = true\nurl = "{keeper.url}"\n')
    with Store.open(path) as store, pytest.raises(WitnessError, match="compared"):
        witness(store, config, syslog=str(tmp_path / "log"))
    after = file.lstat()
    assert (before.st_ino, before.st_mtime_ns, before.st_size) == (
        after.st_ino,
        after.st_mtime_ns,
        after.st_size,
    )
    assert heads.head_in(keeper.heads[0]).facts == 3
    assert b"mailkeep head 1" in syslog.recv(4096)


def test_a_comparison_that_fails_for_a_reason_of_ours(
    path: Path, keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "head.txt"
    config = configured(f'file = "{file}"\nurl = "{keeper.url}"\n')
    with Store.open(path) as store:
        witness(store, config)
        before = file.read_text()

        def broken(*_arguments: object, **_named: object) -> None:
            raise AssertionError("\x1b[2K")

        monkeypatch.setattr("sidecar.witness.continuation", broken)
        with pytest.raises(WitnessError, match="cannot be compared") as caught:
            witness(store, config)
    assert "\x1b" not in str(caught.value)
    assert file.read_text() == before
    assert len(keeper.heads) == 2


def test_a_server_that_trickles(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then is in time for each recv, and would hold the job for hours."""
    monkeypatch.setattr("sidecar.witness.DEADLINE_S", 0.5)
    over = threading.Event()

    def trickle() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not over.wait(0.05):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=trickle)
        server.start()
        config = configured(f'url = "http://127.0.0.1:{listening.getsockname()[1]}/"')
        began = time.monotonic()
        try:
            with Store.open(path) as store, pytest.raises(WitnessError, match="no whole answer within"):
                witness(store, config)
            assert time.monotonic() - began < 60
        finally:
            over.set()
            server.join()
    for thread in threading.enumerate():
        if thread.name == "witness-post":
            thread.join(60)
            assert not thread.is_alive(), "it ends with the connection"


@pytest.mark.parametrize(
    "wrong",
    ['url = "ftp://x/"', 'url = "file:///etc/passwd"', "syslog = 1", 'every = "now"', 'file = "head.txt"'],
)
def test_configured_wrongly(wrong: str) -> None:
    with pytest.raises(ConfigError, match="witness"):
        configured(wrong)


def test_by_serve(keeper: Keeper, tmp_path: Path) -> None:
    """Asked for as an operator would, with mail coming in; the next head goes on from it."""

    async def send(port: int) -> None:
        client = await Client.connect(port)
        assert [reply[:3] for reply in await client.send(MESSAGE)] == [b"250"]
        await client.close()

    key, file = tmp_path / "k", tmp_path / "head.txt"
    mailkeep("head", "keygen", key)
    witnessed = f'[witness]\nkey = "{key}"\nfile = "{file}"\nurl = "{keeper.url}"\n'
    with SinkThread(LmtpSink()) as sink:
        serving = Serving(tmp_path, sink.address, '[scheduler]\nbusy_latency = "1m"\n' + witnessed)
        serving.start()
        try:
            for count in (1, 2):
                asyncio.run(send(serving.port))
                ran = mailkeep("jobs", "run", "witness", "--wait", "--config", serving.config_file)
                assert ran.code == 0, ran.err + ran.out
                assert len(keeper.heads) == count
            keeper.status = 500
            assert mailkeep("jobs", "run", "witness", "--wait", "--config", serving.config_file).code == 1
            metrics = serving.metrics()
            assert metrics['job_runs_total{job="witness",result="ok"}'] == 2
            assert metrics['job_runs_total{job="witness",result="failed"}'] == 1
            asyncio.run(send(serving.port))
            listed = mailkeep("jobs", "--json", "--config", serving.config_file).objects
            kinds = {"compact", "expire", "check", "scrub", "search", "drill", "witness", "audit"}
            assert {one["kind"] for one in listed} == kinds
        finally:
            assert serving.stop() == 0
    with Store.open(serving.store) as store:
        assert (
            heads.read_head(file, SignKey.parse(key.read_text()).verify_key)[1].facts <= head_of(store).facts
        )
    ran = mailkeep(
        "check", "--config", serving.config_file, "--since-head", file, "--key", f"{key}.pub", "--json"
    )
    assert ran.code == 0, ran.out
    assert json.loads(ran.lines[-1])["since_head"]["removed"] == []
    ran = mailkeep("head", "--config", serving.config_file)
    assert "— " in ran.out, "the configured key signs here, too"
