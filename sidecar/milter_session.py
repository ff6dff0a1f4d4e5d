"""One connection from the MTA, as libmilter calls it: each message captured and committed at end-of-message.

CONTINUE when a message is durable, 451 when it is not; nothing is ever changed, rejected or accepted on the
spot. What libmilter asks of callbacks, and this module keeps:

* No exception may leave one. In those that send no reply (header, end-of-headers, body) libmilter would
  ignore the rest of the message and Postfix wait for its timeout: so faults are kept, and told at
  end-of-message.
* Debian's libmilter hands each event to any thread of a pool. A session's events come one after another, but
  nothing may be bound to a thread from one to the next.
* A message may end with end-of-message, abort or close, and after end-of-message no abort comes: state
  is reset in each of them, and at MAIL.

What cannot be kept from here: pymilter itself decodes a header's *name* as UTF-8, and an MTA that sends one
that is not would wait for its timeout. Postfix takes only ASCII for a header's name.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from sidecar.capture import Capture, CaptureFailedError, Capturer
from sidecar.milter import (
    MACROS,
    QUEUE_ID,
    Action,
    Rebuild,
    Reply,
    Stage,
    Step,
    agree,
    attribute_name,
    parse_path,
)
from store.records import Envelope, Leg, Recipient

_log = logging.getLogger(__name__)


class Result(enum.StrEnum):
    """How a message ended at the milter."""

    CAPTURED = "captured"
    UNCAPTURED = "uncaptured"
    """let through without a durable copy (`on_failure = "accept"`)"""
    DEFERRED = "deferred"
    """answered 451 by us"""
    ABANDONED = "abandoned"
    """ended by the client, Postfix or another milter before end-of-message"""


class MilterEvents(Protocol):
    """What the front tells of itself, from any thread. Must not raise."""

    def finished(self, result: Result) -> None:
        """A message has ended."""

    def died(self, reason: str) -> None:
        """libmilter has ended by itself: no connection is taken any more, and the process should end, too.

        Also when libmilter took a SIGTERM before the main thread did, which can happen just after start.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class MilterLimits:
    """Time limits of the milter front, in seconds."""

    commit_timeout_s: float = 30.0
    """For end-of-message, and for one wait for the backlog. Well below Postfix's content_timeout (300 s):
    when Postfix gives up first, the client tries again what we yet make durable."""


class Context(Protocol):
    """What we use of pymilter's context: one connection from the MTA."""

    def getpriv(self) -> Any:
        """What was put there by `setpriv`, or None."""

    def setpriv(self, value: object) -> object:
        """Keep one object with the connection."""

    def getsymval(self, name: str) -> str | None:
        """A macro's value. Raises UnicodeDecodeError for one that is no UTF-8."""

    def setsymlist(self, stage: int, names: str) -> None:
        """Ask for macros, separated by spaces. In negotiation only."""

    def setreply(self, code: str, enhanced: str, text: str) -> None:
        """The SMTP reply (RFC 3463 code included) that the next TEMPFAIL stands for."""


class Front(Protocol):
    """What a session needs of the front that it belongs to."""

    capturer: Capturer
    limits: MilterLimits
    events: MilterEvents

    def enter(self) -> bool:
        """Count a message in. False when the front is stopping: then it is not counted."""

    def leave(self) -> None:
        """Count a message out."""


class _Message:
    """One message, from MAIL to its end. Holds a capture from the first byte on."""

    def __init__(self, front: Front, sender: bytes, params: bytes, *, leading_space: bool) -> None:
        self.fault: Exception | None = None
        self.attributes: dict[str, bytes] = {}
        self.recipients: list[Recipient] = []
        self.rebuild = Rebuild(leading_space=leading_space)
        self._front = front
        self._sender = sender
        self._params = params
        self._capture: Capture | None = None

    def feed(self, data: bytes) -> None:
        """Hand over bytes, waiting while the store is behind. After a fault there is nothing to keep."""
        if not data or self.fault is not None:
            return
        if self._capture is None:
            self._capture = self._front.capturer.begin()
        self._capture.feed(data)
        if self._capture.backlogged:
            self._capture.settle_blocking(self._front.limits.commit_timeout_s)

    def commit(self, queue_id: bytes) -> Result:
        """Make the message durable. Raises the fault that was kept, or CaptureFailedError."""
        self.feed(self.rebuild.finish())
        if self.fault is not None:
            raise self.fault
        if self._capture is None:
            raise RuntimeError("a message without a byte")
        notes = self.rebuild.notes if queue_id else (*self.rebuild.notes, "queue-id-unknown")
        captured = self._capture.commit_blocking(
            Leg.MILTER,
            Envelope(self._sender, tuple(self.recipients), self._params),
            queue_id=queue_id,
            attributes=self.attributes,
            notes=notes,
            timeout_s=self._front.limits.commit_timeout_s,
        )
        return Result.UNCAPTURED if captured.delivery is None else Result.CAPTURED

    def abort(self) -> None:
        """Forget what was not committed."""
        if self._capture is not None:
            self._capture.abort()


class Session:
    """One connection from the MTA: the callbacks, in the order in which they come."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._leading_space = False
        self._client: dict[str, bytes] = {}
        self._message: _Message | None = None

    def negotiate(self, context: Context, options: list[int]) -> Reply:
        """Agree on events and macros. `options` is changed in place."""
        actions, steps = agree(options[0], options[1])
        if Action.SETSYMLIST in actions:
            for stage, names in MACROS.items():
                context.setsymlist(stage, " ".join(names))
        self._leading_space = Step.HDR_LEADSPC in steps
        options[:] = [int(actions), int(steps), 0, 0]
        return Reply.CONTINUE

    def connect(
        self, context: Context, name: str, _family: int, address: tuple[Any, ...] | str | None
    ) -> Reply:
        """The client. `address` is (ip, port, …) for TCP, else a path, or None for mail made on this host."""
        # The event itself says where the client is; macros of the same names fill in what it leaves out.
        self._client = {"client_name": name.encode()}
        if isinstance(address, tuple):
            self._client |= {"client_addr": address[0].encode(), "client_port": b"%d" % address[1]}
        _read_macros(context, Stage.CONNECT, self._client)
        return Reply.CONTINUE

    def mail(self, context: Context, *arguments: bytes) -> Reply:
        """A message begins."""
        self._end()
        sender, params = parse_path(arguments)
        if not self._front.enter():
            context.setreply("451", "4.3.2", "Backup service is stopping, try again later")
            return Reply.TEMPFAIL
        self._message = _Message(self._front, sender, params, leading_space=self._leading_space)
        self._message.attributes |= self._client
        _read_macros(context, Stage.MAIL, self._message.attributes)
        return Reply.CONTINUE

    def rcpt(self, _context: Context, *arguments: bytes) -> Reply:
        """One recipient that Postfix accepts."""
        self._current.recipients.append(Recipient(*parse_path(arguments)))
        return Reply.CONTINUE

    def header(self, _context: Context, name: str, value: bytes) -> Reply:
        """One header, folded lines joined by LF."""
        message = self._current
        message.feed(message.rebuild.header(name.encode(), value))
        return Reply.NOREPLY

    def eoh(self, _context: Context) -> Reply:
        """The headers have ended."""
        message = self._current
        message.feed(message.rebuild.end_of_headers())
        return Reply.NOREPLY

    def body(self, _context: Context, data: bytes) -> Reply:
        """A slice of the body."""
        message = self._current
        message.feed(message.rebuild.body(data))
        return Reply.NOREPLY

    def eom(self, context: Context) -> Reply:
        """The message has ended: make it durable, or answer 451."""
        result, code = Result.DEFERRED, "4.3.0"
        try:
            message = self._current
            _read_macros(context, Stage.END_OF_MESSAGE, message.attributes)
            result = message.commit(message.attributes.pop(attribute_name(QUEUE_ID), b""))
        except CaptureFailedError as error:
            _log.warning("message deferred: %s", error)
            code = "4.3.1" if error.full else code  # RFC 3463: mail system full
        except Exception:  # noqa: BLE001 - whatever it is, the answer is 451 and the session goes on
            _log.exception("message deferred for a fault of our own")
        finally:
            self._end(result)
        if result is Result.DEFERRED:
            context.setreply("451", code, "Message could not be stored, try again later")
            return Reply.TEMPFAIL
        return Reply.CONTINUE

    def abort(self, _context: Context) -> Reply:
        """The message, or with `close` the connection, has ended early."""
        self._end()
        return Reply.CONTINUE

    close = abort

    def keep_fault(self, error: Exception) -> None:
        """Remember what end-of-message has to answer for. Must not fail: there is nobody left to catch it."""
        if self._message is not None and self._message.fault is None:
            self._message.fault = error

    @property
    def _current(self) -> _Message:
        if self._message is None:
            raise RuntimeError("the MTA sent part of a message before MAIL")
        return self._message

    def _end(self, result: Result = Result.ABANDONED) -> None:
        message, self._message = self._message, None
        if message is None:
            return
        try:
            message.abort()
        finally:
            self._front.leave()
            self._front.events.finished(result)


def _read_macros(context: Context, stage: Stage, into: dict[str, bytes]) -> None:
    """Add the stage's macros, under their plain names, without touching what is known already."""
    for macro in MACROS[stage]:
        try:
            value = context.getsymval(macro)
        except UnicodeDecodeError:
            continue  # pymilter cannot hand out a value that is no UTF-8; the mail is captured without it
        if value:
            into.setdefault(attribute_name(macro), value.encode())


def callback(event: Callable[..., Reply], *, quiet: bool = False) -> Callable[..., int]:
    """`event` of the context's session, as pymilter wants it: any exception kept for end-of-message."""

    def call(context: Context, *arguments: object) -> int:
        session = context.getpriv()
        reply = Reply.TEMPFAIL
        # None: no negotiation, or a new connection on the old socket (QUIT_NC). Postfix does neither.
        if session is not None:
            try:
                reply = event(session, context, *arguments)
            except Exception as error:  # noqa: BLE001 - one that escapes would hang the message
                session.keep_fault(error)
        return Reply.NOREPLY if quiet else reply

    return call
