"""systemd gets its lines over a real datagram socket, and without systemd nothing happens."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from sidecar import notify


@pytest.mark.parametrize("abstract", [False, True])
def test_states_are_sent(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"@mailkeep-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name.replace("@", "\0") if abstract else name)
        systemd.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        for sent, received in (
            (notify.ready("serving"), b"READY=1\nSTATUS=serving"),
            (notify.reloading(), b"RELOADING=1"),
            (notify.status("3 in flight"), b"STATUS=3 in flight"),
            (notify.watchdog(), b"WATCHDOG=1"),
            (notify.stopping("draining"), b"STOPPING=1\nSTATUS=draining"),
        ):
            assert sent
            assert systemd.recv(4096) == received


@pytest.mark.parametrize("where", ["", "relative", "/nonexistent/notify", "vsock:2:1"])
def test_nobody_to_tell_is_no_error(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", where)
    assert not notify.ready("serving")


def test_the_watchdogs_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert notify.watchdog_interval_s() is None
    for usec, pid, interval_s in (
        ("60000000", "", 30.0),
        ("60000000", str(os.getpid()), 30.0),
        ("60000000", "1", None),
        ("0", "", None),
        ("soon", "", None),
    ):
        monkeypatch.setenv("WATCHDOG_USEC", usec)
        monkeypatch.setenv("WATCHDOG_PID", pid)
        assert notify.watchdog_interval_s() == interval_s
