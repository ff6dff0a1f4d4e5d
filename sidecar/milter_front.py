"""The milter front: mail that Postfix takes in, captured before Postfix says 250 to it.

Runs libmilter (by pymilter's module `milter`, imported at start only) in a thread of its own, listens, and
ends without cutting a message where it can. What is done with mail is in `sidecar.milter_session`.

There is one milter in a process, once: libmilter cannot be started again after it was stopped. The process's
main thread must not block SIGHUP, SIGINT and SIGTERM: a thread of libmilter waits for them too, and where it
gets one, libmilter ends. The front then tells `MilterEvents.died`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

from sidecar.capture import Capturer
from sidecar.milter import Action
from sidecar.milter_session import Context, MilterEvents, MilterLimits, Session, callback
from sidecar.sockets import remove_stale_socket
from sidecar.units import Address

_log = logging.getLogger(__name__)

_NAME = "mailkeep"
_SIGNALS = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
# It may also sleep its 5 s over the closed socket, with nothing left to do: no reason to wait for it.
_JOIN_TIMEOUT_S = 1.0
# The last callback has returned, but libmilter has yet to write its reply, and tells nobody when it has;
# stopped before, Postfix would defer a message that is captured.
_LAST_REPLY_S = 0.2


class MilterError(Exception):
    """The milter front cannot run; `hint` says what to do."""

    hint = "Look for libmilter's reason in the system log."
    exit_code = 30


class MilterMissingError(MilterError):
    """pymilter is not there."""

    hint = (
        "Install it with `pip install mailkeep[milter]` (it is built with gcc and libmilter-dev), "
        "or take the section [milter] out of the configuration."
    )
    exit_code = 2  # trying again does not mend it


class MilterListenError(MilterError):
    """The address cannot be listened on."""

    hint = "Check [milter] listen: is the directory there and ours to write, does another process listen?"


def import_pymilter() -> Any:
    """pymilter's low-level module. Raises MilterMissingError."""
    try:
        import milter
    except ImportError as error:
        raise MilterMissingError(f"[milter] is configured, but pymilter cannot be used: {error}") from error
    return milter


class MilterFront:
    """libmilter listening at `address`, every message of it captured by `capturer`.

    `socket_mode` and `socket_group` (a name; empty: our own) are set on a unix socket once it is there:
    Postfix must be able to write to it. `limits` may be replaced at any time, for messages that begin later.
    `shared`: `open_for_workers` has opened the socket before this process was forked, others take from it.
    """

    def __init__(
        self,
        address: Address,
        capturer: Capturer,
        limits: MilterLimits,
        events: MilterEvents,
        *,
        socket_mode: int = 0o660,
        socket_group: str = "",
        shared: bool = False,
    ) -> None:
        self.capturer = capturer
        self.limits = limits
        self.events = events
        self._address = address
        self._socket_mode = socket_mode
        self._socket_group = socket_group
        self._shared = shared
        self._changed = threading.Condition()
        self._in_flight = 0
        self._stopping = False
        self._milter: Any = None
        self._thread: threading.Thread | None = None

    @property
    def in_flight(self) -> int:
        """Messages between MAIL and their end."""
        return self._in_flight

    @property
    def running(self) -> bool:
        """Whether mail is taken."""
        return self._thread is not None and self._thread.is_alive() and not self._stopping

    def start(self) -> None:
        """Listen, and take mail from now on. Raises MilterMissingError, MilterListenError."""
        milter = import_pymilter()
        self._milter = milter
        self._register(milter)
        if not self._shared:
            _make_free(self._address)
            _open(self._address, self._address, self._socket_mode, self._socket_group)
        self._thread = threading.Thread(target=self._run, name="milter", daemon=True)
        self._thread.start()

    def stop(self, drain_timeout_s: float) -> None:
        """Take no new message, wait at most `drain_timeout_s` for those in flight, then end. Blocks.

        libmilter cuts what is still in flight after that; Postfix then defers it.
        """
        with self._changed:
            self._stopping = True
            self._changed.wait_for(lambda: self._in_flight == 0, drain_timeout_s)
        if self._thread is None:
            return
        time.sleep(_LAST_REPLY_S)
        # libmilter holds the lock that its stop() wants for up to 5 s at a time, until somebody connects.
        stopper = threading.Thread(target=self._milter.stop, name="milter-stop", daemon=True)
        stopper.start()
        while stopper.is_alive():
            _knock(self._address)
            stopper.join(0.05)
        self._thread.join(_JOIN_TIMEOUT_S)
        if self._address.is_unix and not self._shared:
            Path(self._address.path).unlink(missing_ok=True)

    def enter(self) -> bool:
        """Count a message in. False when we are stopping: then it is not counted."""
        with self._changed:
            if not self._stopping:
                self._in_flight += 1
            return not self._stopping

    def leave(self) -> None:
        """Count a message out."""
        with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()

    def _register(self, milter: Any) -> None:
        def negotiate(context: Context, options: list[int]) -> int:
            context.setpriv(Session(self))
            return on_negotiate(context, options)

        on_negotiate = callback(Session.negotiate)
        milter.set_flags(int(Action.SETSYMLIST))
        milter.set_connect_callback(callback(Session.connect))
        milter.set_envfrom_callback(callback(Session.mail))
        milter.set_envrcpt_callback(callback(Session.rcpt))
        milter.set_header_callback(callback(Session.header, quiet=True))
        milter.set_eoh_callback(callback(Session.eoh, quiet=True))
        milter.set_body_callback(callback(Session.body, quiet=True))
        milter.set_eom_callback(callback(Session.eom))
        milter.set_abort_callback(callback(Session.abort))
        milter.set_close_callback(callback(Session.close))
        milter.register(_NAME, negotiate=negotiate)

    def _run(self) -> None:
        # libmilter's threads are children of this one and inherit its mask: signals are the main thread's.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        reason = "libmilter ended"
        try:
            self._milter.main()
        except self._milter.error as error:
            reason = f"libmilter failed: {error}"
        if not self._stopping:
            _log.error("%s; no mail is captured by the milter any more", reason)
            self.events.died(reason)


def open_for_workers(address: Address, mode: int, group: str) -> None:
    """Listen for the workers that are forked after this. Raises MilterMissingError, MilterListenError.

    libmilter makes its socket itself and keeps it to itself, so there is no other way to give it one.
    """
    milter = import_pymilter()
    _make_free(address)
    milter.register(_NAME)
    before = _open_files()
    # A worker's libmilter removes, as it ends, the file it knows: under that name there is none any more.
    made = Address(path=f"{address.path}.new") if address.is_unix else address
    _open(made, address, mode, group)
    if address.is_unix:
        Path(made.path).rename(address.path)
    for number in _open_files() - before:
        # All are woken for a connection and one gets it: the others must not wait in accept() for the next.
        os.set_blocking(number, False)


def _open_files() -> set[int]:
    # The one by which the list itself is read is no more by then.
    return {int(file.name) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()}


def _open(made: Address, address: Address, mode: int, group: str) -> None:
    """Let libmilter listen at `made`. `group` is a name; empty: our own."""
    milter = import_pymilter()
    try:
        milter.setconn(_libmilter_name(made))
        milter.opensocket(True)  # noqa: FBT003 - pymilter takes it by place: remove a stale socket
        if made.is_unix:
            if group:
                shutil.chown(made.path, group=group)
            Path(made.path).chmod(mode)
    except (milter.error, OSError, LookupError) as error:
        raise MilterListenError(f"cannot listen on {address}: {error}") from error


def _libmilter_name(address: Address) -> str:
    if address.is_unix:
        return f"unix:{address.path}"
    return f"{'inet6' if ':' in address.host else 'inet'}:{address.port}@{address.host}"


def _knock(address: Address) -> None:
    """Connect and go; where nobody listens any more, nothing happens."""
    with contextlib.suppress(OSError):
        if address.is_unix:
            with socket.socket(socket.AF_UNIX) as caller:
                caller.settimeout(1.0)
                caller.connect(address.path)
        else:
            socket.create_connection((address.host, address.port), timeout=1.0).close()


def _make_free(address: Address) -> None:
    """Remove a stale socket, and find out why if we cannot listen: libmilter tells that to no one but syslog.

    Raises MilterListenError.
    """
    try:
        if address.is_unix:
            path = Path(address.path)
            remove_stale_socket(path)
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(address.path)
            path.unlink()
        else:
            family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            socket.create_server((address.host, address.port), family=family).close()
    except OSError as error:
        raise MilterListenError(f"cannot listen on {address}: {error.strerror or error}") from error
