"""`python -m tests.bench audit`: a mailbox of 10,000 messages compared with the store, over IMAP and on disk.

A private Dovecot whose Maildir is filled file by file, as LMTP would leave it; the store has each of these
messages but the holes, and some that the mailbox has no more.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from sidecar.audit import Account, Auditor, Kind
from sidecar.demo.dovecot import MASTER, PrivateDovecot
from sidecar.live.imap import ImapMailbox, ImapServer
from sidecar.live.mailbox import LiveMailbox
from sidecar.live.maildir import Maildir
from sidecar.sections import ImapConfig
from sidecar.units import Address
from store.store import Store
from tests.bench.table import Line, conditions, show, skipped
from tests.live.test_matching import mail
from tests.store.conftest import put_message
from tests.support.live_server import TRACE

MESSAGES = int(os.environ.get("MAILKEEP_BENCH_MESSAGES", "10000"))
HOLES = GONE = MESSAGES // 100
SIZE_BYTES = 4096
USER = "anna"
_SECONDS = 10.0


def main() -> None:
    """Fill, audit, show."""
    if reason := PrivateDovecot.why_unavailable():
        skipped("audit", reason)
        return
    with tempfile.TemporaryDirectory(prefix="mailkeep-bench-") as directory:
        Path(directory).chmod(0o755)
        with (
            PrivateDovecot(Path(directory), users=[USER]) as dovecot,
            Store.open(Path(directory) / "store", create=True) as store,
        ):
            store.start_writing("host")
            address = Address("127.0.0.1", dovecot.imap_port)
            server = ImapServer(address=address, master=MASTER, password=dovecot.password)
            with ImapMailbox(server, USER) as mailbox:
                mailbox.make_folder("Archive")
                list(mailbox.messages("INBOX"))  # makes the directories
            root = dovecot.directory / "mail" / USER / "Maildir"
            _fill(store, root)
            lines = [
                _audited(store, "over IMAP, for the first time", ImapMailbox(server, USER)),
                _audited(store, "over IMAP, again", ImapMailbox(server, USER)),
                _audited(store, "the Maildir on disk", Maildir(root, USER)),
            ]
    show("audit", f"audit of {MESSAGES} messages of {SIZE_BYTES} bytes", lines, [conditions()])


def _fill(store: Store, root: Path) -> None:
    owner = (root / "cur").stat()
    for number in range(MESSAGES + GONE):
        body = b"".join(os.urandom(38).hex().encode() + b"\r\n" for _ in range(SIZE_BYTES // 78))
        raw = mail(number, body)
        if not 0 < number <= HOLES:
            put_message(store, raw, to=(USER.encode(),))
        if number < MESSAGES:
            name = f"{int(time.time())}.M{number}P1.host:2,S"
            path = root / ("cur" if number % 2 else ".Archive/cur") / name
            path.write_bytes((TRACE + raw).replace(b"\r\n", b"\n"))
            os.chown(path, owner.st_uid, owner.st_gid)
    store.settle_index(60.0)


def _audited(store: Store, what: str, mailbox: LiveMailbox) -> Line:
    began = time.perf_counter()
    auditor = Auditor(store, ImapConfig())
    auditor.scan()
    account: Account = auditor.audit(USER, mailbox)
    seconds = time.perf_counter() - began
    mailbox.close()
    assert (account.live, account.missing, account.count(Kind.HOLE)) == (MESSAGES, GONE, HOLES)
    return Line(what=what, ours=f"{seconds:.2f} s", ratio=seconds, target=_SECONDS, unit=" s")
