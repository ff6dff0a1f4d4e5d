"""The job that compares the mailboxes with the store."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from sidecar.jobs.common import FINDINGS_TOLD, Current
from sidecar.readable import escaped, header_text
from sidecar.scheduler.context import JobContext
from sidecar.scheduler.kinds import Run
from sidecar.sections import ImapConfig
from store.ids import now_us
from store.store import Store

_NAMED = 5
"""of the mailboxes that could not be asked so many are named in the result"""

if TYPE_CHECKING:
    from sidecar.audit import Difference

log = logging.getLogger(__name__)


class Audited(Protocol):
    """Is told what an audit found."""

    def __call__(self, holes: int, missing: int, *, whole: bool) -> None:
        """`whole`: no mailbox was left out."""


def audit_job(store: Store, config: Current, audited: Audited) -> Run:
    """Compares the mailboxes with the store; holes go to the log. The run fails when one cannot be asked."""

    def run(context: JobContext) -> str:
        from sidecar.audit import Auditor, Kind  # an IMAP client in memory, for those alone who audit
        from sidecar.audit_run import AuditRun
        from sidecar.live.connect import imap_server
        from sidecar.live.imap import ImapMailbox

        def step(_number: int) -> None:
            context.yield_()

        imap, back_us = config().imap, config().scheduler.audit_since_us
        server = imap_server(imap)
        since_us = 0 if back_us is None else max(now_us() - back_us, 0)
        auditor = Auditor(store, imap or ImapConfig(), since_us=since_us)
        users = auditor.scan(step)
        holes = missing = 0
        failed: list[str] = []
        for number, account in enumerate(
            AuditRun(auditor, lambda user: ImapMailbox(server, user), advance=step).run(users), 1
        ):
            context.progress(number, len(users), account.user)
            if account.error is not None:
                failed.append(account.user)
                log.error("audit: %s", account.error)
            for difference in account.differences:
                if difference.kind is Kind.HOLE and difference.live is not None and holes < FINDINGS_TOLD:
                    log.error("audit: %s, %s is not in the store", account.user, _named(difference))
                holes += difference.kind is Kind.HOLE
            missing += account.missing
        audited(holes, missing, whole=not failed)
        mailboxes = "1 mailbox" if len(users) == 1 else f"{len(users)} mailboxes"
        if failed:
            named = ", ".join(failed[:_NAMED]) + (", …" if len(failed) > _NAMED else "")
            raise NotAskedError(f"{len(failed)} of {mailboxes} could not be asked: {escaped(named)}")
        return f"{mailboxes}: {holes} holes, {missing} messages deleted or moved out"

    return run


def _named(difference: Difference) -> str:
    live = difference.live
    if live is None:
        return ""
    sender = header_text(difference.header_from)
    named = header_text(difference.subject), f"from {sender}" if sender else "", header_text(live.message_id)
    return escaped(", ".join((f"{live.folder} {live.uid}", *filter(None, named))))


class NotAskedError(Exception):
    """The audit could not look into a mailbox."""
