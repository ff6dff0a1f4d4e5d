"""An HTTP proxy in front of an S3 service that does what networks and bad services do, when it is told to."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class FaultProxy:
    """A context manager; `address` is where it listens. Faults are set while it runs:

    `storm`: so many requests are answered 503 (-1: all). `answer`: all are answered with this status and
    body. `drop_answers`: so many uploads arrive, and nobody hears. `truncate`: so many downloads end
    half-way. `delay_s`: before each answer. `lies`: "there already" becomes "created". `flip_uploads`: a bit
    of so many uploads' bodies is turned over on the way, and the service's word on it is as if it were not.
    """

    def __init__(self, upstream: str) -> None:
        self.storm = 0
        self.answer: tuple[int, bytes] | None = None
        self.drop_answers = 0
        self.truncate = 0
        self.delay_s = 0.0
        self.lies = False
        self.flip_uploads = 0
        self.requests: list[str] = []
        self.headers: dict[str, str] = {}
        """of the last upload"""
        self._lock = threading.Lock()
        parts = urlsplit(upstream)
        proxy = self

        class Handler(_Handler):
            faults = proxy
            upstream = parts.netloc

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def heal(self) -> None:
        """No fault any more."""
        self.storm = self.drop_answers = self.truncate = self.flip_uploads = 0
        self.delay_s, self.lies, self.answer = 0.0, False, None

    def take(self, fault: str) -> bool:
        """Whether it is this request's turn."""
        with self._lock:
            left = getattr(self, fault)
            if left > 0:
                setattr(self, fault, left - 1)
            return bool(left)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: FaultProxy
    upstream: str

    def _pass_on(self) -> None:
        faults = self.faults
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        faults.requests.append(f"{self.command} {self.path}")
        if self.command == "PUT":
            faults.headers = dict(self.headers.items())
        time.sleep(faults.delay_s)
        if faults.take("storm"):
            self._answer(503, {}, b"<Error><Code>SlowDown</Code><Message>please</Message></Error>")
            return
        if faults.answer:
            self._answer(faults.answer[0], {}, faults.answer[1])
            return
        status, headers, answer = self._ask(body)
        is_upload = self.command == "PUT"
        if is_upload and status == 200 and faults.take("flip_uploads"):
            headers["ETag"] = f'"{hashlib.md5(body + b"x").hexdigest()}"'
        if is_upload and faults.take("drop_answers"):
            self.close_connection = True
            return
        if is_upload and faults.lies and status == 412:
            status, answer = 200, b""
            headers["ETag"] = f'"{hashlib.md5(body).hexdigest()}"'
        if self.command == "GET" and len(answer) > 1 and faults.take("truncate"):
            self._answer(status, headers, answer, cut=len(answer) // 2)
            self.close_connection = True
            return
        self._answer(status, headers, answer)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on  # noqa: N815 - named by http.server

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.upstream, timeout=60)
        try:
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            answer = connection.getresponse()
            return answer.status, dict(answer.headers.items()), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, cut: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", length or str(len(body)))
        with contextlib.suppress(ConnectionError):  # whoever asked has not waited
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[:cut])

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass
