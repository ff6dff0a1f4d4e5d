"""Make the head and hand it to whoever keeps it: a file, syslog, an address; on a clock in `serve`.

Before the file is replaced the head in it is compared: a store that does not go on from it is not the one
that was there, so the file stays and the job fails, loudly; so it does where the file cannot be compared.
Each place is tried whatever became of the others, and none may hold the job for long. Nothing here can
disturb capture: all of it happens in a job's thread.
"""

from __future__ import annotations

import os
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from sidecar import heads
from sidecar.readable import escaped
from sidecar.sections import WitnessConfig
from store.evidence import continuation, head_of
from store.files import write_whole
from store.store import Store

TIMEOUT_S = 30.0
"""for each step"""
DEADLINE_S = 60.0
"""for all of a POST: a server that gives a byte now and then keeps within the other one"""
SYSLOG = "/dev/log"
_PRIORITY = 10 * 8 + 5
"""facility authpriv, severity notice"""


class WitnessError(Exception):
    """The head did not get everywhere, or is of another history than the last one; the text says what."""

    hint = "`mailkeep check --since-head` with a head that was kept elsewhere tells whether all is as it was."
    exit_code = 1


def witness(store: Store, config: WitnessConfig, *, syslog: str = SYSLOG) -> str:
    """Make a head and send it everywhere; in a few words where it went. Raises `WitnessError`, `StoreError`,
    `OSError`."""
    signing = heads.sign_key(config.key_file) if config.key_file else None
    sign = signing.sign if signing else str
    note = sign(head_of(store).text())
    faults: list[str] = []
    if config.file is not None:
        note, faults = _compared(store, config.file, sign, note)
    went: list[str] = []
    for place, send in _places(config, note, syslog, keep_file=bool(faults)):
        try:
            send()
            went.append(place)
        except (OSError, HTTPException, ValueError) as exc:
            faults.append(f"{place}: {exc}")
    head = heads.head_in(note)
    faults += [f"stream {name} has lost facts" for name in head.gaps]
    if faults:
        raise WitnessError(escaped("; ".join(faults)))
    return f"{head.facts} facts in {len(head.streams)} streams, head sent to {', '.join(went) or 'nobody'}"


def _compared(store: Store, file: Path, sign: Callable[[str], str], note: str) -> tuple[str, list[str]]:
    """The head that was compared with the one in the file, or else `note`; and why the file must stay."""
    try:
        if not os.path.lexists(file):
            return note, []
        if not file.is_file():  # to open a pipe would wait for its other end
            return note, [f"{file} is no file: the head was not compared"]
        made = continuation(store, heads.read_head(file)[0], sign=sign)
        return made.new, [f"the head in {file} is not of this history: {fault}" for fault in made.faults()]
    except Exception as exc:  # noqa: BLE001 - whatever is in the file, it must not keep the head from the others
        return note, [f"the head in {file} cannot be compared, and the file stays as it is: {exc!r}"]


def _places(
    config: WitnessConfig, note: str, syslog: str, *, keep_file: bool
) -> Iterator[tuple[str, Callable[[], None]]]:
    if config.file is not None and not keep_file:
        yield str(config.file), partial(write_whole, config.file, note.encode())
    if config.syslog:
        yield "syslog", partial(_to_syslog, note, syslog)
    if config.url:
        yield config.url, partial(_post, config.url, note)


def _to_syslog(note: str, address: str) -> None:
    """A message for each line that is not empty. Raises OSError where nobody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.settimeout(TIMEOUT_S)
        log.connect(address)
        for line in filter(None, note.splitlines()):
            log.send(f"<{_PRIORITY}>mailkeep[{os.getpid()}]: head: {line}".encode())


class _Stay(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET, and nobody would have the head."""

    def redirect_request(self, *_request: Any) -> None:
        return None


def _post(url: str, note: str) -> None:
    """Raises `OSError` (its subclasses `URLError`, `TimeoutError`), `HTTPException`, `ValueError`."""
    faults: list[Exception] = []

    def work() -> None:
        try:
            _post_now(url, note)
        except Exception as exc:  # noqa: BLE001 - raised below, in the thread that waits
            faults.append(exc)

    posting = threading.Thread(target=work, name="witness-post", daemon=True)
    posting.start()
    posting.join(DEADLINE_S)
    if posting.is_alive():  # it is left to itself: nothing waits for it, also not the end of the process
        raise TimeoutError(f"no whole answer within {DEADLINE_S:g} s")
    if faults:
        raise faults.pop()  # kept, it would keep this frame, which keeps it


def _post_now(url: str, note: str) -> None:
    request = urllib.request.Request(  # noqa: S310 - the configuration takes http and https alone
        url, note.encode(), {"Content-Type": "text/plain; charset=utf-8", "User-Agent": "mailkeep"}
    )
    try:
        urllib.request.build_opener(_Stay).open(
            request, timeout=TIMEOUT_S
        ).close()  # its status is the answer
    except HTTPError as exc:
        exc.close()
        raise
