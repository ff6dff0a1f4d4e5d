"""The demo's servers, put up as far as this machine allows, and taken down to the last process and file.

Postfix, pymilter and Dovecot may each be missing: then mail goes straight to mailkeep by LMTP, only one leg
is captured, or the mailboxes are those of `sidecar.demo.embedded`. Why is always said.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from sidecar.demo.dovecot import MASTER, PrivateDovecot
from sidecar.demo.embedded import MaildirServer
from sidecar.demo.mailbox import StoredMail
from sidecar.demo.mails import DOMAIN, DORA, DORA_QUOTA_BYTES, USERS
from sidecar.demo.postfix import PrivatePostfix
from sidecar.demo.process import SYSTEM_PATH, ServerFailedError
from sidecar.demo.roads import Direct, Road, ThroughPostfix
from sidecar.demo.serve import PrivateServe

_PLACE_MAX_BYTES = 39
PARTS = ("postfix", "dovecot", "milter")
"""what can be done without"""


class Box(Protocol):
    """A mailbox that is open: over IMAP, or a Maildir."""

    def messages(self) -> list[StoredMail]:
        """All messages, oldest first."""

    def delete(self, uid: int) -> None:
        """Delete one for good."""


class Stage:
    """A directory and the servers in it; a context manager. Its `start_…` methods are called in their order.

    without: parts of `PARTS` to go without though they are there.
    """

    def __init__(self, without: frozenset[str] = frozenset()) -> None:
        self._without = without
        self._running = ExitStack()
        self.keep_directory = False
        """Leave the directory when the servers end, since somebody wants to read the logs."""
        self._serve: PrivateServe | None = None
        self.postfix: PrivatePostfix | None = None
        self.dovecot: PrivateDovecot | None = None
        self.no_postfix = self._why_not("postfix", PrivatePostfix.why_unavailable)
        self.no_dovecot = self._why_not("dovecot", PrivateDovecot.why_unavailable)
        self.no_milter = self._why_not("milter", _why_no_milter)

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="mailkeep-demo-", dir=_temporary_place())).resolve()
        # Servers that drop root walk through it; what is secret below has modes of its own.
        self.directory.chmod(0o755)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._running.close()
        finally:
            if not self.keep_directory:
                shutil.rmtree(self.directory, ignore_errors=True)

    def _why_not(self, part: str, ask: Callable[[], str | None]) -> str:
        return "MAILKEEP_DEMO_WITHOUT says so" if part in self._without else ask() or ""

    # -- starting

    def start_mailboxes(self) -> str:
        """Dovecot, or what stands in for it; tells what runs now. Raises ServerFailedError, OSError."""
        if not self.no_dovecot:
            try:
                dovecot = PrivateDovecot(self.directory, users=USERS, quota_bytes={DORA: DORA_QUOTA_BYTES})
                self.dovecot = self._running.enter_context(dovecot)
            except ServerFailedError as exc:
                self.no_dovecot = str(exc)
            else:
                version = _version("dovecot", "--version")
                return f"Dovecot {version}: LMTP on port {dovecot.lmtp_port}, IMAP on {dovecot.imap_port}"
        embedded = MaildirServer(
            self.directory / "mailboxes", users=USERS, quota_bytes={DORA: DORA_QUOTA_BYTES}
        )
        self._embedded = self._running.enter_context(embedded)
        return f"a small LMTP server with Maildirs, in place of Dovecot: port {embedded.lmtp_port}"

    def start_serve(self) -> str:
        """`mailkeep serve`; tells what runs now. Raises ServerFailedError."""
        downstream = (self.dovecot or self._embedded).lmtp_address
        milter = not self.no_milter and not self.no_postfix
        imap = (self.dovecot.imap_port, MASTER, self.dovecot.password) if self.dovecot else None
        serve = PrivateServe(self.directory, downstream=downstream, milter=milter, imap=imap)
        self._serve = self._running.enter_context(serve)
        fronts = f"LMTP on port {serve.lmtp_port}" + (", milter on a unix socket" if milter else "")
        return f"mailkeep serve: {fronts}, metrics on port {serve.metrics_port}"

    def start_postfix(self) -> str:
        """Postfix in front of it; tells what runs now, or that it does not (`no_postfix` has the reason)."""
        milters = [self.serve.milter] if self.serve.milter else []
        try:
            postfix = PrivatePostfix(
                self.directory, lmtp=self.serve.lmtp_address, domains=[DOMAIN],
                smtpd_milters=milters, non_smtpd_milters=milters,
            )  # fmt: skip
            self.postfix = self._running.enter_context(postfix)
        except ServerFailedError as exc:
            self.no_postfix = str(exc)
            return "Postfix did not start"
        return f"Postfix {_version('postconf', '-dh', 'mail_version')}: SMTP on port {postfix.port}"

    def stop_serve(self) -> int | None:
        """End mailkeep before the rest; its exit code, None when it had not been started."""
        return self._serve.stop() if self._serve else None

    # -- what stands there now

    @property
    def serve(self) -> PrivateServe:
        """mailkeep, once started. Raises ServerFailedError before."""
        if self._serve is None:
            raise ServerFailedError("mailkeep serve has not been started")
        return self._serve

    @property
    def two_legs(self) -> bool:
        """Whether the milter sees the mail too."""
        return self.postfix is not None and bool(self.serve.milter)

    @property
    def mailbox_server(self) -> str:
        """What to call whoever has the mailboxes."""
        return "Dovecot" if self.dovecot else "the Maildir server"

    @property
    def protocol(self) -> str:
        """How mailboxes are read."""
        return "over IMAP" if self.dovecot else "in the Maildir"

    def road(self) -> Road:
        """How mail is sent."""
        if self.postfix:
            return ThroughPostfix(self.postfix, self.mailbox_server)
        return Direct(self.serve.lmtp_address, self.mailbox_server)

    def mailbox(self, user: str) -> AbstractContextManager[Box]:
        """A user's mailbox, to be used in a with statement."""
        return self.dovecot.mailbox(user) if self.dovecot else self._embedded.mailbox(user)

    def logs(self) -> list[Path]:
        """Where each server wrote its own story."""
        places = ("mailkeep/serve.log", "postfix/mail.log", "dovecot/dovecot.log", "dovecot/output.log")
        return [self.directory / place for place in places if (self.directory / place).exists()]


def _temporary_place() -> Path:
    """$TMPDIR or its like; another where that is too long for UNIX sockets, or closed to Postfix's user."""
    given = Path(tempfile.gettempdir()).resolve()
    for place in (given, Path("/tmp"), Path("/var/tmp")):  # noqa: S108 - mkdtemp makes the name
        walkable = all(above.stat().st_mode & 0o001 for above in (place, *place.parents))
        if len(os.fsencode(place)) <= _PLACE_MAX_BYTES and (walkable or os.geteuid()):
            return place
    return given


def _why_no_milter() -> str | None:
    try:
        import milter  # noqa: F401 - a C library that is there or not is known by loading it alone
    except ImportError:
        return "pymilter is not installed"
    return None


def _version(program: str, *arguments: str) -> str:
    path = shutil.which(program, path=SYSTEM_PATH) or program
    shown = subprocess.run(  # noqa: S603 - no shell, and our own command line
        [path, *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    return (shown.stdout.split() or ["?"])[0]
