"""Several workers in one `mailkeep serve`: they share, keep out of each other's way, and one may die."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from sidecar.identity import write_identity
from store.deliveries import Query
from store.store import Store
from tests.support.lmtp_sink import LmtpSink
from tests.support.milter_client import CONTINUE, Mail, MilterClient
from tests.support.serving import Client
from tests.support.workers import Workers

Start = Callable[..., Workers]


@pytest.fixture
async def sink() -> AsyncIterator[LmtpSink]:
    sink = LmtpSink()
    await sink.start()
    yield sink
    await sink.stop()


@pytest.fixture
async def workers(tmp_path: Path, sink: LmtpSink) -> AsyncIterator[Workers]:
    workers = Workers(tmp_path, str(sink.address))
    await asyncio.to_thread(workers.start)
    yield workers
    if workers.running:
        assert await asyncio.to_thread(workers.stop) == 0, workers.tail()
    # Whatever became of the supervisor, no worker outlives it for long.
    end = time.monotonic() + 60
    while left := [pid for pid in processes(workers.config_file) if pid != os.getpid()]:
        assert time.monotonic() < end, left
        await asyncio.sleep(0.05)


def processes(config: Path) -> list[int]:
    found = subprocess.run(["pgrep", "-f", str(config)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def started(workers: Workers, *arguments: str) -> subprocess.Popen[bytes]:
    with workers.log_file.open("ab") as log:
        return subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=log)


def mode(path: Path) -> int | None:
    return path.stat().st_mode & 0o777 if path.exists() else None


def message(number: int, body: bytes = b"") -> bytes:
    return b"Subject: %d\r\nMessage-ID: <%d@x>\r\n\r\n%s\r\n" % (number, number, body or b"%d" % number)


def of_streams(path: Path) -> Counter[str]:
    """How many deliveries each stream has."""
    found: Counter[str] = Counter()
    with Store.open(path) as store, store.index.read() as snapshot:
        names = {number: name for name in store.view.names() for number in {store_number(name)}}
        for delivery in store.deliveries(Query()):
            found[names[snapshot.delivery(delivery.delivery.id)[0][1].stream]] += 1
    return found


def store_number(name: str) -> int:
    from store.places import stream_number

    return stream_number(name)


def replies_are_known(path: Path) -> bool:
    """Whether all replies that were passed on are written down, which they are a moment later."""
    with Store.open(path) as store:
        return all(
            len(found.outcomes) == len(found.delivery.envelope.recipients)
            for found in store.deliveries(Query())
        )


async def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < end, "it did not come to be"
        await asyncio.sleep(0.05)


async def test_sessions_go_to_all_of_them(workers: Workers, sink: LmtpSink) -> None:
    clients = [await Client.connect(workers.port) for _ in range(20)]
    for number, client in enumerate(clients):
        replies = await client.send(message(number))
        assert replies[0].startswith(b"250"), replies
    metric = workers.metric
    assert await asyncio.to_thread(metric, 'mailkeep_captured_messages_total{leg="lmtp"}') == 20
    assert await asyncio.to_thread(metric, 'mailkeep_connections{leg="lmtp"}') == 20
    assert await asyncio.to_thread(metric, "mailkeep_commit_group_messages_sum") >= 20
    assert len(sink.delivered) == 20
    for client in clients:
        await client.close()
    shares = await asyncio.to_thread(of_streams, workers.store)
    assert set(shares) == {"host", "host-2"}
    assert min(shares.values()) >= 8, shares
    listed = await asyncio.to_thread(workers.command, "list", "--json", "--limit", "0")
    assert len(listed.stdout.splitlines()) == 20, listed.stderr
    checked = await asyncio.to_thread(workers.command, "check", "--read-data")
    assert checked.returncode == 0, checked.stderr


async def test_what_one_has_the_others_do_not_store_again(workers: Workers) -> None:
    body = os.urandom(40_000).hex().encode()
    first, second = await Client.connect(workers.port), await Client.connect(workers.port)
    await first.send(message(1, body))
    await asyncio.sleep(1.0)  # a fifth of a second, on a machine with nothing else to do
    await second.send(message(2, body))
    duplicate = await asyncio.to_thread(workers.metric, "mailkeep_stored_duplicate_bytes_total")
    assert duplicate >= len(body)
    await first.close()
    await second.close()
    assert await asyncio.to_thread(of_streams, workers.store) == {"host": 1, "host-2": 1}


async def test_a_retry_at_another_worker_is_not_delivered_twice(workers: Workers, sink: LmtpSink) -> None:
    first, second = await Client.connect(workers.port), await Client.connect(workers.port)
    for number in range(5):
        mail = message(number), (b"a@x.example", b"b@x.example")
        assert (await first.send(*mail, queue_id=b"4Q%d" % number))[0].startswith(b"250")
        replies = await second.send(*mail, queue_id=b"4Q%d" % number)
        assert all(reply.startswith(b"250") for reply in replies), replies
    assert len(sink.delivered) == 5
    # It is counted after it was answered.
    await until(lambda: workers.metric("mailkeep_retries_suppressed_total") >= 10)
    assert await asyncio.to_thread(workers.metric, "mailkeep_retries_suppressed_total") == 10
    assert await asyncio.to_thread(workers.metric, "mailkeep_redelivered_unknown_total") == 0
    await first.close()
    await second.close()


async def test_a_sealed_store_takes_what_comes_under_one_queue_id(tmp_path: Path, sink: LmtpSink) -> None:
    """Nothing can be read back there: a second transaction must not wait for what the first one had."""
    public = write_identity(tmp_path / "key", None)
    workers = Workers(tmp_path, str(sink.address), extra=f'[encryption]\nrecipients = ["{public}"]\n')
    await asyncio.to_thread(workers.start)
    try:
        clients = [await Client.connect(workers.port) for _ in range(4)]
        for number, client in enumerate(clients * 2):
            replies = await client.send(message(1), [b"u%d@x.example" % number], queue_id=b"4Qsealed")
            assert replies[0].startswith(b"250"), replies
        for client in clients:
            await client.close()
        assert len(sink.delivered) == 8
    finally:
        assert await asyncio.to_thread(workers.stop) == 0


async def test_a_worker_that_cannot_be_forked_yet(tmp_path: Path, sink: LmtpSink) -> None:
    """The others go on, and it comes when it can."""
    script = tmp_path / "forks.py"
    script.write_text(
        "import os, sys\n"
        "fork, refuse = os.fork, sys.argv.pop(1)\n"
        "def forks():\n"
        "    if os.path.exists(refuse): raise BlockingIOError(11, 'no more processes')\n"
        "    return fork()\n"
        "os.fork = forks\n"
        "from sidecar.cli import main\n"
        "main()\n"
    )
    refuse = tmp_path / "refuse"
    workers = Workers(tmp_path, str(sink.address))
    workers.process = started(
        workers, str(script), str(refuse), "serve", "--config", str(workers.config_file)
    )
    await until(lambda: "ready: 2 workers" in workers.log_text())
    try:
        pids = set(processes(workers.config_file)) - {workers.pid}
        refuse.touch()
        os.kill(max(pids), signal.SIGKILL)
        await until(lambda: "cannot be started yet" in workers.log_text())
        client = await Client.connect(workers.port)
        assert (await client.send(message(1)))[0].startswith(b"250")
        await client.close()
        refuse.unlink()
        await until(lambda: "is ready again" in workers.log_text())
    finally:
        workers.signal(signal.SIGTERM)
        assert workers.wait() == 0


async def test_a_retry_after_its_worker_was_killed(workers: Workers, sink: LmtpSink) -> None:
    first = await Client.connect(workers.port)
    assert (await first.send(message(1), queue_id=b"4Qkilled"))[0].startswith(b"250")
    await until(lambda: replies_are_known(workers.store))
    shares = await asyncio.to_thread(of_streams, workers.store)
    (whose,) = shares
    await asyncio.to_thread(workers.kill_worker, whose)
    second = await Client.connect(workers.port)
    assert (await second.send(message(1), queue_id=b"4Qkilled"))[0].startswith(b"250")
    assert len(sink.delivered) == 1
    await first.close()
    await second.close()
    await asyncio.to_thread(workers.wait_ready)


async def test_the_limit_of_connections_is_for_all(tmp_path: Path, sink: LmtpSink) -> None:
    workers = Workers(tmp_path, str(sink.address))
    text = workers.config_file.read_text()
    workers.config_file.write_text(text.replace("[lmtp]\n", "[lmtp]\nmax_connections = 4\n"))
    await asyncio.to_thread(workers.start)
    clients = [await Client.connect(workers.port) for _ in range(4)]
    reader, writer = await asyncio.open_connection("127.0.0.1", workers.port)
    assert (await reader.readline()).startswith(b"421 ")
    writer.close()
    for client in clients:
        await client.close()
    assert await asyncio.to_thread(workers.stop) == 0


async def test_a_killed_worker_comes_back(workers: Workers) -> None:
    before = workers.pids()
    await asyncio.to_thread(workers.kill_worker, "host")
    await asyncio.to_thread(workers.wait_ready)
    after = workers.pids()
    assert len(set(before) & set(after)) == 1
    assert len(after) == 2
    assert await asyncio.to_thread(workers.metric, "mailkeep_worker_restarts_total") == 1
    assert await asyncio.to_thread(workers.metric, "process_cpu_seconds_total") > 0
    assert "has ended by signal 9" in workers.log_text()
    client = await Client.connect(workers.port)
    assert (await client.send(message(1)))[0].startswith(b"250")
    await client.close()


async def test_without_their_supervisor_they_end(workers: Workers) -> None:
    client = await Client.connect(workers.port)
    assert (await client.send(message(1)))[0].startswith(b"250")
    await client.close()
    await asyncio.to_thread(workers.kill)
    await until(lambda: not processes(workers.config_file))
    await asyncio.to_thread(workers.start)


async def test_all_reload(workers: Workers, sink: LmtpSink) -> None:
    other = LmtpSink()
    await other.start()
    text = workers.config_file.read_text()
    workers.config_file.write_text(text.replace(str(sink.address), str(other.address)))
    workers.signal(signal.SIGHUP)
    await until(lambda: workers.log_text().count("reloaded: lmtp.downstream") == 2)
    await asyncio.to_thread(workers.kill_worker, "host-2")  # who comes after it knows it, too
    await asyncio.to_thread(workers.wait_ready)
    clients = [await Client.connect(workers.port) for _ in range(4)]
    for number, client in enumerate(clients):
        assert (await client.send(message(number)))[0].startswith(b"250")
        await client.close()
    assert (len(sink.delivered), len(other.delivered)) == (0, 4)
    workers.config_file.write_text("nonsense = ")
    workers.signal(signal.SIGHUP)
    await until(lambda: "not reloaded" in workers.log_text())
    assert workers.log_text().count("not reloaded") == 1
    workers.config_file.write_text(text)
    await other.stop()


async def test_systemd_hears_it_from_the_supervisor_alone(
    tmp_path: Path, sink: LmtpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        workers = Workers(tmp_path, str(sink.address))
        said: list[bytes] = []

        async def listen() -> None:
            while True:
                said.append(await asyncio.get_running_loop().sock_recv(systemd, 4096))

        listening = asyncio.create_task(listen())
        await asyncio.to_thread(workers.start)
        await until(lambda: said.count(b"WATCHDOG=1") >= 3)
        assert await asyncio.to_thread(workers.stop) == 0
        await until(lambda: any(b"STOPPING=1" in text for text in said))
        listening.cancel()
    assert sum(b"READY=1" in text for text in said) == 1
    assert sum(b"STOPPING=1" in text for text in said) == 1


async def test_the_job_ends_the_others_open_packs(workers: Workers) -> None:
    clients = [await Client.connect(workers.port) for _ in range(2)]
    for number, client in enumerate(clients):
        await client.send(message(number, os.urandom(3000).hex().encode()))
    await until(lambda: replies_are_known(workers.store))
    run = await asyncio.to_thread(workers.command, "jobs", "run", "compact", "--wait", "--arg", "all=true")
    assert run.returncode == 0, run.stderr
    for stream in ("host", "host-2"):
        assert list((workers.store / "streams" / stream).glob("*.segment")), stream
    for number, client in enumerate(clients):
        assert (await client.send(message(10 + number)))[0].startswith(b"250")
        await client.close()
    checked = await asyncio.to_thread(workers.command, "check", "--read-data")
    assert checked.returncode == 0, checked.stderr


async def test_a_worker_that_hangs_is_replaced(tmp_path: Path, sink: LmtpSink) -> None:
    workers = Workers(tmp_path, str(sink.address))
    hurried = (
        "import sidecar.supervisor as s; s._HUNG_S = 5; from sidecar.cli import main; "
        f"main(['serve', '--config', {json.dumps(str(workers.config_file))}])"
    )
    workers.process = started(workers, "-c", hurried)
    await asyncio.to_thread(workers.wait_ready)
    hung = await asyncio.to_thread(workers.writer, "host-2")
    os.kill(hung, signal.SIGSTOP)
    await until(lambda: "hangs, and is killed" in workers.log_text())
    await until(lambda: len(workers.pids()) == 2 and hung not in workers.pids())
    await asyncio.to_thread(workers.wait_ready)
    assert await asyncio.to_thread(workers.stop) == 0


async def test_a_service_of_which_one_cannot_start(tmp_path: Path, sink: LmtpSink) -> None:
    workers = Workers(tmp_path, str(sink.address))
    with Store.open(workers.store, create=True) as store:
        store.start_writing("host-2")
        with pytest.raises(AssertionError, match="another process writes to stream 'host-2'"):
            await asyncio.to_thread(workers.start)
    assert await asyncio.to_thread(workers.wait) == 12


async def test_an_address_that_is_in_use(tmp_path: Path, sink: LmtpSink) -> None:
    workers = Workers(tmp_path, str(sink.address))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", workers.port))
        taken.listen()
        process = started(workers, "-m", "sidecar.cli", "serve", "--config", str(workers.config_file))
        assert await asyncio.to_thread(process.wait, 30) == 1
    assert f"[lmtp] listen = 127.0.0.1:{workers.port}" in workers.log_text()


async def test_from_one_to_several_and_back(tmp_path: Path, sink: LmtpSink) -> None:
    workers = Workers(tmp_path, str(sink.address))
    several = workers.config_file.read_text()
    alone = several.replace("workers = 2\n", "")
    for number, text in enumerate((alone, several, alone)):
        workers.config_file.write_text(text)
        workers.count = 2 if text == several else 1
        await asyncio.to_thread(workers.start)
        clients = [await Client.connect(workers.port) for _ in range(2)]
        for place, client in enumerate(clients):
            assert (await client.send(message(10 * number + place)))[0].startswith(b"250")
            await client.close()
        assert await asyncio.to_thread(workers.stop) == 0
    assert await asyncio.to_thread(of_streams, workers.store) == {"host": 5, "host-2": 1}


@pytest.fixture
def milter_socket(server_directory: Path) -> Path:
    pytest.importorskip("milter")
    return server_directory / "milter.sock"


async def test_milter_workers_share_a_socket(tmp_path: Path, sink: LmtpSink, milter_socket: Path) -> None:
    section = f'[milter]\nlisten = "unix:{milter_socket}"\nsocket_mode = "0600"\nworkers = 2\n'
    workers = Workers(tmp_path, str(sink.address), extra=section)
    await asyncio.to_thread(workers.start)
    assert mode(milter_socket) == 0o600

    def send(count: int) -> None:
        for number in range(count):
            with MilterClient(str(milter_socket)) as client:
                assert client.connect().message(Mail(body=b"%d\r\n" % number)) == CONTINUE

    await asyncio.gather(*(asyncio.to_thread(send, 15) for _ in range(8)))
    assert await asyncio.to_thread(workers.metric, 'mailkeep_captured_messages_total{leg="milter"}') == 120
    await asyncio.to_thread(workers.kill_worker, "host")
    await asyncio.to_thread(send, 5)  # the other is there at once
    await asyncio.to_thread(workers.wait_ready)
    await asyncio.to_thread(send, 5)
    assert await asyncio.to_thread(workers.metric, 'mailkeep_captured_messages_total{leg="milter"}') == 130
    began = time.monotonic()
    assert await asyncio.to_thread(workers.stop) == 0
    assert time.monotonic() - began < 30
    assert mode(milter_socket) is None
    shares = await asyncio.to_thread(of_streams, workers.store)
    assert sum(shares.values()) == 130
    assert len(shares) == 2, shares
