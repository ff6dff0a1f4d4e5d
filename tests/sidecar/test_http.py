"""The endpoint answers its three pages over real sockets, and neither clients nor faults bring it down."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path

import pytest

import sidecar.http
from sidecar.http import HttpEndpoint
from sidecar.metrics import Metrics
from sidecar.units import Address

ANY = Address.parse("127.0.0.1:0")


@contextmanager
def endpoint(
    address: Address = ANY,
    render: Callable[[], bytes] = lambda: b"a 1\n",
    reasons: Callable[[], list[str]] = list,
) -> Iterator[HttpEndpoint]:
    running = HttpEndpoint(address, render, reasons)
    try:
        yield running
    finally:
        running.stop()


def ask(address: Address, path: str, method: str = "GET") -> tuple[int, str, bytes]:
    client = HTTPConnection(address.host or "localhost", address.port or 80, timeout=60)
    if address.is_unix:
        client.sock = socket.socket(socket.AF_UNIX)
        client.sock.connect(address.path)
    try:
        client.request(method, path)
        response = client.getresponse()
        return response.status, response.headers.get("Content-Type", ""), response.read()
    finally:
        client.close()


def raw(address: Address, request: bytes) -> bytes:
    with socket.create_connection((address.host, address.port), timeout=60) as client:
        client.sendall(request)
        answer = b""
        while data := client.recv(65536):
            answer += data
        return answer


def test_the_pages() -> None:
    metrics = Metrics("0.1.0")
    with endpoint(render=metrics.render) as running:
        status, content_type, body = ask(running.address, "/metrics")
        assert status == 200
        assert content_type.startswith("text/plain; version=")
        assert b'mailkeep_build_info{version="0.1.0"} 1.0\n' in body
        assert ask(running.address, "/healthz") == (200, "text/plain; charset=utf-8", b"ok\n")
        assert ask(running.address, "/readyz?verbose") == (200, "text/plain; charset=utf-8", b"ready\n")
        assert ask(running.address, "/")[0] == 404
        assert ask(running.address, "/metrics/../healthz")[0] == 404


def test_readyz_gives_the_reasons() -> None:
    reasons = ["store: full", "downstream: connection refused"]
    with endpoint(reasons=lambda: reasons) as running:
        assert ask(running.address, "/readyz")[::2] == (503, b"store: full\ndownstream: connection refused\n")
        assert ask(running.address, "/healthz")[0] == 200
        reasons.clear()
        assert ask(running.address, "/readyz")[0] == 200


def test_head_has_the_length_and_no_body() -> None:
    with endpoint(render=lambda: b"x" * 77) as running:
        answer = raw(running.address, b"HEAD /metrics HTTP/1.0\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Length: 77" in head
    assert b"Server: mailkeep\r\n" in head
    assert body == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_refused(method: str) -> None:
    with endpoint() as running:
        assert ask(running.address, "/metrics", method)[0] == 501


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\r\n",
        b"\0\xff\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 70_000 + b"\r\n\r\n",
    ],
)
def test_nonsense_does_not_bring_it_down(request_bytes: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with endpoint() as running:
        with suppress(ConnectionError):  # closed with our bytes unread: all the same to us
            raw(running.address, request_bytes)
        assert ask(running.address, "/healthz")[0] == 200
    assert capfd.readouterr().err == ""


def test_a_page_that_cannot_be_made_is_500_and_the_next_is_served() -> None:
    def fails() -> bytes:
        raise RuntimeError("broken")

    with endpoint(render=fails, reasons=lambda: 1 // 0) as running:  # type: ignore[arg-type,return-value]  # it fails
        assert ask(running.address, "/metrics")[0] == 500
        assert ask(running.address, "/readyz")[0] == 500
        assert ask(running.address, "/healthz")[0] == 200


def test_slow_clients_are_cut_off_and_their_places_given_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecar.http, "CONNECTIONS_MAX", 2)
    monkeypatch.setattr(sidecar.http, "REQUEST_DEADLINE_S", 1.0)
    with endpoint() as running:
        where = (running.address.host, running.address.port)
        slow = [socket.create_connection(where, timeout=60) for _ in range(2)]
        slow[0].sendall(b"GET /metr")
        with socket.create_connection(where, timeout=60) as third, suppress(ConnectionError):
            assert third.recv(1) == b"", "one too many is closed"
        for client in slow:
            assert client.recv(1) == b""
            client.close()
        assert ask(running.address, "/healthz")[0] == 200


def test_a_unix_socket_and_one_that_was_left_behind(tmp_path: Path) -> None:
    address = Address(path=str(tmp_path / "http.sock"))
    left = socket.socket(socket.AF_UNIX)
    left.bind(address.path)
    left.close()
    with endpoint(address) as running:
        assert running.address == address
        assert ask(address, "/healthz")[0] == 200
        with pytest.raises(OSError, match="another process listens"):
            HttpEndpoint(address, lambda: b"", list)
        assert ask(address, "/healthz")[0] == 200
    assert not Path(address.path).exists()


def test_no_other_file_is_taken_for_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("keep")
    with pytest.raises(OSError, match="in use"):
        HttpEndpoint(Address(path=str(path)), lambda: b"", list)
    assert path.read_text() == "keep"


def test_a_taken_port_is_an_error_at_once() -> None:
    with endpoint() as running, pytest.raises(OSError, match="in use"):
        HttpEndpoint(running.address, lambda: b"", list)


def test_stopping_twice_is_harmless() -> None:
    running = HttpEndpoint(ANY, lambda: b"", list)
    running.stop()
    running.stop()
    with pytest.raises(ConnectionError):
        ask(running.address, "/healthz")
