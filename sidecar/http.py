"""The HTTP endpoint: /metrics for Prometheus, /healthz and /readyz for whoever restarts or balances.

A small threaded server of its own, so that it answers while the mail path is busy, and cannot hurt it:
few connections at once, a deadline for each, and whatever goes wrong here ends here. GET and HEAD only.
"""

from __future__ import annotations

import contextlib
import http.server
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from sidecar.sockets import remove_stale_socket
from sidecar.units import Address

_log = logging.getLogger(__name__)

CONNECTIONS_MAX = 16
REQUEST_DEADLINE_S = 10.0
POLL_S = 0.2
_TEXT = "text/plain; charset=utf-8"


class HttpEndpoint:
    """Listens from the start; `stop` ends it. Raises OSError when the address cannot be had.

    `render` gives /metrics its text; `reasons` says why we are not ready, nothing when we are.
    """

    def __init__(
        self, address: Address, render: Callable[[], bytes], reasons: Callable[[], list[str]]
    ) -> None:
        self._socket_path = Path(address.path) if address.is_unix else None
        self._server = _Server(address, render, reasons)
        host, port = self._server.server_address[:2] if not address.is_unix else ("", 0)
        self.address = Address(host=str(host), port=int(port), path=address.path)
        """where it listens; the port is the real one when any was asked for"""
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_S,), name="http", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close the listener and what is open; idempotent."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        if self._socket_path is not None:
            self._socket_path.unlink(missing_ok=True)


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    # Not http.server.HTTPServer: that one asks DNS for our name before it listens.
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = CONNECTIONS_MAX

    def __init__(
        self, address: Address, render: Callable[[], bytes], reasons: Callable[[], list[str]]
    ) -> None:
        self.pages: dict[str, Callable[[], tuple[HTTPStatus, str, bytes]]] = {
            "/metrics": lambda: (HTTPStatus.OK, CONTENT_TYPE_LATEST, render()),
            "/healthz": lambda: (HTTPStatus.OK, _TEXT, b"ok\n"),
            "/readyz": lambda: _ready_page(reasons()),
        }
        self._deadlines: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        if address.is_unix:
            self.address_family = socket.AF_UNIX
            remove_stale_socket(Path(address.path))
            super().__init__(address.path, _Handler)  # type: ignore[arg-type]  # typeshed knows TCP only
        else:
            self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            super().__init__((address.host, address.port), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection."""
        try:
            return super().get_request()
        except OSError:
            # Out of file descriptors: the client still waits, so without a pause this would spin.
            time.sleep(0.1)
            raise

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - socketserver's signature
        """Take a connection on, unless there are too many already."""
        with self._lock:
            if len(self._deadlines) >= CONNECTIONS_MAX:
                return False
            self._deadlines[request] = time.monotonic() + REQUEST_DEADLINE_S
            return True

    def shutdown_request(self, request: Any) -> None:
        """Close a connection; the server calls this at every end."""
        with self._lock:
            self._deadlines.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Cut off whoever sends or reads too slowly; called every POLL_S. Its place is free at once."""
        now = time.monotonic()
        with self._lock:
            for request in [late for late, deadline in self._deadlines.items() if now > deadline]:
                del self._deadlines[request]
                with contextlib.suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - as above
        """A client that went away, or a fault of ours: neither is worth more than a line."""
        _log.debug("an HTTP request ended early", exc_info=True)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_DEADLINE_S

    def do_GET(self) -> None:
        """Answer one of the pages."""
        page = self.server.pages.get(self.path.partition("?")[0])
        try:
            status, content_type, body = page() if page else (HTTPStatus.NOT_FOUND, _TEXT, b"not found\n")
        except Exception:  # noqa: BLE001 - a page that cannot be made is answered 500 and must not end more than itself
            _log.warning("cannot answer %s", self.path, exc_info=True)
            status, content_type, body = HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT, b"internal error\n"
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the name is http.server's

    def version_string(self) -> str:
        """What we are, and no version for a scanner to look up."""
        return "mailkeep"

    def address_string(self) -> str:
        """Who asks; a unix socket's client has no address."""
        return str(self.client_address[0]) if self.client_address else "local"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is http.server's
        """A scrape every few seconds is no news."""


def _ready_page(reasons: list[str]) -> tuple[HTTPStatus, str, bytes]:
    if reasons:
        return HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, "".join(f"{reason}\n" for reason in reasons).encode()
    return HTTPStatus.OK, _TEXT, b"ready\n"
