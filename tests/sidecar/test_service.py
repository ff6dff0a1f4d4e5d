"""`mailkeep serve` as a process: starts, tells systemd, stops in order, and says why it cannot start."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.demo.ports import free_port, wait_until
from tests.support.service import COMMAND
from tests.support.serving import Client, Serving


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    serving = Serving(tmp_path, f"127.0.0.1:{free_port()}")
    yield serving
    if serving.running:
        serving.kill()


def run(serving: Serving, **environment: str) -> subprocess.CompletedProcess[str]:
    """`serve` where it is expected to end by itself."""
    return subprocess.run(
        [*COMMAND, "serve", "--config", str(serving.config_file)],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_starts_answers_and_stops_in_order(serving: Serving, signal_number: int) -> None:
    serving.start()
    assert serving.page("/healthz") == (200, "ok\n")
    # It listens a moment before it says so.
    assert wait_until(lambda: serving.page("/readyz") == (200, "ready\n"), timeout_s=60)
    assert "mailkeep_captured_messages_total" in serving.page("/metrics")[1]
    serving.signal(signal_number)
    assert serving.process
    assert serving.process.wait(45) == 0
    assert "stopped" in serving.log_text()


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
    assert "mailkeep_downstream_failures_total 1.0" in (await asyncio.to_thread(serving.page, "/metrics"))[1]
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
    serving.config_file.write_text(serving.config_file.read_text().replace("downstream", "downstraem"))
    result = run(serving)
    assert result.returncode == 2
    assert "downstraem" in result.stderr
    assert "downstream" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_broken_reload_changes_nothing(serving: Serving) -> None:
    serving.start()
    serving.config_file.write_text("nonsense = ")
    serving.signal(signal.SIGHUP)
    assert wait_until(lambda: "not reloaded" in serving.log_text(), timeout_s=60)
    assert serving.page("/readyz")[0] == 200
    assert serving.stop() == 0
