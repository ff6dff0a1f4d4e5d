"""Audit many mailboxes, several at once, and take in what the store lacks where that is wanted.

A mailbox that cannot be asked is told in its account, and does not keep back the others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

from sidecar.audit import LACKING, Account, Auditor, Difference
from sidecar.intake import Found, How, Intake
from sidecar.live.mailbox import LiveError, LiveMailbox, LiveMessage
from sidecar.live.matching import given

OpenMailbox = Callable[[str], LiveMailbox]


class AuditRun:
    """One audit of some users. `intake` takes in what is lacking, which is then no difference; None: nothing
    is. `advance` is told how
    many more live messages were looked at, in any thread, and may raise to end the run."""

    def __init__(
        self,
        auditor: Auditor,
        open_mailbox: OpenMailbox,
        *,
        intake: Intake | None = None,
        advance: Callable[[int], None] = lambda _number: None,
    ) -> None:
        self._auditor = auditor
        self._open = open_mailbox
        self._intake = intake
        self._taking = threading.Lock()
        self._advance = advance
        self._stopped = threading.Event()

    def run(self, users: Sequence[str], connections: int = 1) -> Iterator[Account]:
        """The accounts, in the order of the users. Raises `StoreError`. Closed before its end, it ends the
        work of the others soon."""
        if connections == 1 or len(users) == 1:
            yield from map(self._audit, users)
            return
        with ThreadPoolExecutor(connections, "audit") as pool:
            try:
                yield from pool.map(self._audit, users)
            finally:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)

    def _audit(self, user: str) -> Account:
        try:
            mailbox = self._open(user)
        except LiveError as exc:
            return Account(user, error=exc)
        try:
            account = self._auditor.audit(user, mailbox, self._looked)
            if self._intake is not None:
                self._take_in(self._intake, account, mailbox)
        except LiveError as exc:
            return Account(user, error=exc)
        finally:
            mailbox.close()
        return account

    def _looked(self, number: int) -> None:
        if self._stopped.is_set():
            raise _StoppedError
        self._advance(number)

    def _take_in(self, intake: Intake, account: Account, mailbox: LiveMailbox) -> None:
        lacking = [d.live for d in account.differences if d.live is not None and d.kind in LACKING]
        taken: set[tuple[str, str]] = set()
        for _, group in groupby(lacking, key=lambda message: message.folder):
            with self._taking:
                for message, raw in given(mailbox, list(group), lambda _message: None):
                    self._looked(0)
                    result = intake.take(self._found(account.user, message, raw))
                    if result.how in (How.NEW, How.THERE):
                        taken.add((message.folder, message.uid))
                intake.settle()
        account.imported = len(taken)
        left: list[Difference] = []
        for difference in account.differences:
            live = difference.live
            is_taken = live is not None and (live.folder, live.uid) in taken
            (account.taken if is_taken else left).append(difference)
        account.differences = left

    def _found(self, user: str, message: LiveMessage, raw: bytes) -> Found:
        return Found(
            origin=f"audit:{user}/{message.folder};{message.uid}", recipient=self._auditor.address(user),
            received_us=message.received_us, folder=message.folder, flags=message.flags,
            pieces=lambda: [raw],
        )  # fmt: skip


class _StoppedError(Exception):
    """Another part of the run has ended it."""
