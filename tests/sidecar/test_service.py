"""`mailkeep serve` as a process: starts, tells systemd, stops in order, and says why it cannot start."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.demo.ports import free_port, wait_until
from tests.support.serving import COMMAND, Client, Serving


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    serving = Serving(tmp_path, f"127.0.0.1:{free_port()}")
    yield serving
    if serving.process and serving.process.poll() is None:
        serving.kill()


def get(serving: Serving, page: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{serving.metrics_port}/{page}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


def run(serving: Serving, **environment: str) -> subprocess.CompletedProcess[str]:
    """`serve` where it is expected to end by itself."""
    return subprocess.run(
        [*COMMAND, "serve", "--config", str(serving.config)],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_starts_answers_and_stops_in_order(serving: Serving, signal_number: int) -> None:
    serving.start()
    assert get(serving, "healthz") == (200, "ok\n")
    assert get(serving, "readyz") == (200, "ready\n")
    assert "mailkeep_captured_messages_total" in get(serving, "metrics")[1]
    assert serving.process
    serving.process.send_signal(signal_number)
    assert serving.process.wait(45) == 0
    assert "stopped" in serving.log.read_text()


def test_tells_systemd(serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        serving.start()
        said = [systemd.recv(4096) for _ in range(4)]
        assert any(b"READY=1" in text for text in said)
        assert b"WATCHDOG=1" in said
        serving.stop()
        systemd.setblocking(False)
        rest = b""
        with contextlib.suppress(BlockingIOError):
            while text := systemd.recv(4096):
                rest += text
        assert b"STOPPING=1" in rest


async def test_nobody_behind_it(serving: Serving) -> None:
    serving.start()
    client = Client(*await asyncio.open_connection("127.0.0.1", serving.port))
    assert (await client.reply()).startswith(b"220 ")
    client.writer.write(b"LHLO x\r\n")
    assert (await client.reply()).startswith(b"451 4.4.1 ")
    assert "mailkeep_downstream_failures_total 1.0" in (await asyncio.to_thread(get, serving, "metrics"))[1]
    await client.close()


def test_a_store_that_is_in_use(serving: Serving) -> None:
    serving.start()
    other = Serving(serving.directory, "127.0.0.1:1")  # another port, the same store
    result = run(other)
    assert result.returncode == 12
    assert "another process writes to stream 'host'" in result.stderr


def test_an_address_that_is_in_use(serving: Serving, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", serving.port))
        taken.listen()
        result = run(serving)
    assert result.returncode == 1
    assert f"[lmtp] listen = 127.0.0.1:{serving.port}" in result.stderr


def test_a_slip_in_the_configuration(serving: Serving) -> None:
    serving.config.write_text(serving.config.read_text().replace("downstream", "downstraem"))
    result = run(serving)
    assert result.returncode == 2
    assert "downstraem" in result.stderr
    assert "downstream" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_broken_reload_changes_nothing(serving: Serving) -> None:
    serving.start()
    assert serving.process
    serving.config.write_text("nonsense = ")
    serving.process.send_signal(signal.SIGHUP)
    assert wait_until(lambda: "not reloaded" in serving.log.read_text(), timeout_s=60)
    assert get(serving, "readyz")[0] == 200
    assert serving.stop() == 0
