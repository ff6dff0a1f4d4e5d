"""What to try while the demo keeps running: lines to copy into another terminal."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from sidecar.demo.mails import ANNA, BERT, USERS
from sidecar.demo.ports import LOOPBACK
from sidecar.demo.stage import Stage


def hints(stage: Stage) -> Iterator[str]:
    """The lines, for what runs on this stage."""
    serve = stage.serve
    yield f"export MAILKEEP_CONFIG={shlex.quote(str(serve.config))}"
    yield f"{_mailkeep()} list        # also: show ID, replay ID, stats, check, --help"
    if stage.dovecot:
        yield f"{_mailkeep()} undelete {ANNA} --since 1h    # after you have deleted something; also: audit"
    yield ""
    kind, port = ("SMTP", stage.postfix.port) if stage.postfix else ("LMTP", serve.lmtp_port)
    mail = r"'Subject: Hello\r\n\r\nIt works.\r\n'"
    sending = f"smtplib.{kind}('{LOOPBACK}', {port}).sendmail('you@example.com', ['{ANNA}'], {mail})"
    yield f"Send mail ({kind} on {LOOPBACK} port {port}):"
    yield f'python3 -c "import smtplib; {sending}"'
    if stage.postfix:
        yield f"swaks --server {LOOPBACK}:{port} --from you@example.com --to {ANNA},{BERT}"
    yield ""
    if dovecot := stage.dovecot:
        yield f"Read mail: IMAP on {LOOPBACK} port {dovecot.imap_port}, password {dovecot.password}"
    else:
        yield f"Read mail: {stage.directory}/mailboxes/{ANNA}/Maildir"
    yield f"Mailboxes: {', '.join(USERS)}; no other address has one"
    yield f"Metrics:   http://{LOOPBACK}:{serve.metrics_port}/metrics"
    for log in stage.logs():
        yield f"Log:       {log}"
    yield ""
    yield "Ctrl-C here (or SIGTERM) stops all servers and removes the directory with all that is in it."


def _mailkeep() -> str:
    """The command as it can be typed here."""
    beside = Path(sys.executable).with_name("mailkeep")
    if shutil.which("mailkeep"):
        return "mailkeep"
    return shlex.quote(str(beside)) if beside.exists() else f"{shlex.quote(sys.executable)} -P -m sidecar.cli"
