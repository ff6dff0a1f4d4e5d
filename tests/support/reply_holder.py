"""A wire between Postfix and mailkeep that can be cut where it hurts: after the message, before its reply.

client --> ReplyHolder --> server

Passes everything on. While `holding`, what the server says after the end of a message is kept back, the end
of its connection as well; `held` tells that it came. `cut` then ends every connection without passing it on.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

_END = b"\r\n.\r\n"


class ReplyHolder:
    """A context manager; listens from the start."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.holding = False
        self.held = threading.Event()
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Closing the listener does not wake a thread that waits in accept(); shutting it down does.
        self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def cut(self) -> None:
        """End every connection there is. New ones are passed on as before."""
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target), timeout=30)
            except OSError:
                client.close()  # nobody there: the client sees a connection that ends
                continue
            server.settimeout(None)
            self._open += [client, server]
            thread = threading.Thread(target=self._serve, args=(client, server))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        ended = threading.Event()
        back = threading.Thread(target=self._pass_back, args=(server, client, ended))
        back.start()
        tail = b""
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                if _END in tail + data:  # Postfix sends QUIT in the same breath
                    ended.set()
                tail = (tail + data)[-len(_END) :]
                server.sendall(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        back.join()
        client.close()
        server.close()

    def _pass_back(self, server: socket.socket, client: socket.socket, ended: threading.Event) -> None:
        holding = False
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                holding = holding or (self.holding and ended.is_set())
                if holding:
                    self.held.set()
                else:
                    client.sendall(data)
        if not holding:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
