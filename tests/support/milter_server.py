"""A process with a real milter front, whose capturer writes mail to files; SIGTERM drains and ends it,
SIGUSR1 lets libmilter end by itself.

    python milter_server.py SOCKET DIRECTORY [DRAIN_TIMEOUT_S]

libmilter can be started once in a process, so each set of tests needs a process of its own. What a capture
does wrong is told in its mail: by a header `X-Fault` (at feed) or by the sender (at commit). Every message
that is made durable is DIRECTORY/<number>.json and .eml; DIRECTORY/events has a line for each that ended.
"""

from __future__ import annotations

import itertools
import json
import logging
import signal
import sys
import threading
import time
from pathlib import Path

from sidecar.capture import Captured, CaptureFailedError
from sidecar.milter_front import MilterFront
from sidecar.milter_session import MilterLimits, Result
from sidecar.units import Address
from store.ids import content_id, new_delivery_id, now_us


class FileCapture:
    """One message, kept in memory until commit. Counts those that are open."""

    def __init__(self, capturer: FileCapturer) -> None:
        self._capturer = capturer
        self._data = bytearray()
        self._open = True
        self._settled = 0
        capturer.count(+1)

    def feed(self, data: bytes) -> None:
        assert self._open
        assert not self.backlogged
        if b"X-Fault: capture" in data:
            raise CaptureFailedError("told to fail")
        if b"X-Fault: bug" in data:
            raise ZeroDivisionError("a bug")
        self._data += data

    @property
    def backlogged(self) -> bool:
        return len(self._data) - self._settled > 100_000

    def settle_blocking(self, timeout_s: float) -> None:
        assert timeout_s > 0
        self._settled = len(self._data)

    def commit_blocking(self, leg, envelope, *, queue_id, attributes, notes=(), timeout_s):
        assert self._open
        assert timeout_s == 7.5
        if envelope.sender == b"capture-fails@example.org":
            raise CaptureFailedError("told to fail")
        if envelope.sender == b"full@example.org":
            raise CaptureFailedError("told to be full", full=True)
        if envelope.sender == b"bug@example.org":
            raise ZeroDivisionError("a bug")
        self._capturer.dump(
            bytes(self._data),
            {
                "leg": leg,
                "sender": envelope.sender.decode("latin-1"),
                "sender_params": envelope.sender_params.decode("latin-1"),
                "recipients": [
                    [r.address.decode("latin-1"), r.params.decode("latin-1")] for r in envelope.recipients
                ],
                "queue_id": queue_id.decode(),
                "attributes": {k: v.decode() for k, v in attributes.items()},
                "notes": list(notes),
            },
        )
        self._close()
        accepted = envelope.sender == b"accept-mode@example.org"
        delivery = None if accepted else new_delivery_id(now_us())
        return Captured(delivery, content_id(bytes(self._data)), len(self._data))

    def abort(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._capturer.count(-1)


class FileCapturer:
    """Writes durable messages to a directory; also what the front tells of itself."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._open_captures = 0
        self.end = threading.Event()

    def begin(self) -> FileCapture:
        return FileCapture(self)

    def count(self, change: int) -> None:
        with self._lock:
            self._open_captures += change

    def dump(self, data: bytes, facts: dict) -> None:
        number = next(self._numbers)
        (self._directory / f"{number}.eml").write_bytes(data)
        draft = self._directory / f"{number}.draft"
        draft.write_text(json.dumps(facts))
        draft.rename(draft.with_suffix(".json"))

    def finished(self, result: Result) -> None:
        self._tell(f"{result} {self._open_captures}")

    def died(self, reason: str) -> None:
        self._tell(f"died {reason}")
        self.end.set()

    def _tell(self, line: str) -> None:
        with self._lock, (self._directory / "events").open("a") as events:
            events.write(line + "\n")


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    socket_path, directory, *drain = sys.argv[1:]
    capturer = FileCapturer(Path(directory))
    # A thread from before libmilter, as in the real service: signals must reach the main thread all the same.
    threading.Thread(target=lambda: time.sleep(3600), name="early", daemon=True).start()
    front = MilterFront(
        Address.parse(f"unix:{socket_path}"),
        capturer,
        MilterLimits(commit_timeout_s=7.5),
        capturer,
        socket_mode=0o640,
    )
    signal.signal(signal.SIGTERM, lambda *_: capturer.end.set())
    # libmilter stopped behind the front's back. In a thread, for it may block.
    stopper = threading.Thread(target=lambda: front._milter.stop(), daemon=True)
    signal.signal(signal.SIGUSR1, lambda *_: stopper.start())
    front.start()
    print("ready", flush=True)
    capturer.end.wait()
    print(f"stopping with {front.in_flight} in flight", flush=True)
    front.stop(float(drain[0]) if drain else 20.0)
    print(f"stopped, running={front.running}", flush=True)


if __name__ == "__main__":
    main()
