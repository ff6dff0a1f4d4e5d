"""A private Postfix on one loopback port: takes mail by SMTP, hands it on by LMTP, and to nobody else.

It has no SMTP client, no local delivery and no route to other domains, so no mail can
leave the machine. Postfix can only run as root; `why_unavailable` tells.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import smtplib
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sidecar.demo.ports import LOOPBACK, free_port, greets, wait_until
from sidecar.demo.process import (
    SYSTEM_PATH,
    ServerFailedError,
    ServerProcess,
    refuse_taken,
    server_directory,
    why_it_failed,
)
from sidecar.demo.started import Started

_START_TIMEOUT_S = 60.0
_COMMAND_TIMEOUT_S = 60.0

# No service here runs chrooted, so socket paths mean what they say.
_MASTER_CF = """\
{host}:{port} inet n - n - - smtpd
pickup   unix n - n 60  1 pickup
cleanup  unix n - n -   0 cleanup
qmgr     unix n - n 300 1 qmgr
rewrite  unix - - n -   - trivial-rewrite
bounce   unix - - n -   0 bounce
defer    unix - - n -   0 bounce
trace    unix - - n -   0 bounce
error    unix - - n -   - error
retry    unix - - n -   - error
discard  unix - - n -   - discard
showq    unix n - n -   - showq
lmtp     unix - - n -   - lmtp
anvil    unix - - n -   1 anvil
scache   unix - - n -   1 scache
postlog  unix-dgram n - n - 1 postlogd
"""

# Directory, owned by root or by Postfix, mode: what "postfix check" would make.
_QUEUE_DIRECTORIES = {
    "active": 0o700,
    "bounce": 0o700,
    "corrupt": 0o700,
    "defer": 0o700,
    "deferred": 0o700,
    "flush": 0o700,
    "hold": 0o700,
    "incoming": 0o700,
    "maildrop": 0o730,
    "private": 0o700,
    "public": 0o710,
    "saved": 0o700,
    "trace": 0o700,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What Postfix answered to one message.

    code, text: the reply that decided (to the final dot, or to MAIL or the last RCPT when it
    came no further). refused: the reply to each recipient that was turned away.
    """

    code: int
    text: str
    refused: Mapping[str, tuple[int, str]]

    @property
    def accepted(self) -> bool:
        """True when Postfix took the message for the recipients that are not in `refused`."""
        return self.code == 250

    @property
    def queue_id(self) -> str:
        """Postfix's name for the message, "" when it was not accepted."""
        return self.text.rpartition("queued as ")[2] if self.accepted else ""


class PrivatePostfix(Started):
    """A Postfix of our own under `directory`; a context manager that starts and stops it.

    lmtp: where mail for `domains` goes, "HOST:PORT" or "unix:/path". smtpd_milters and
    non_smtpd_milters: "inet:HOST:PORT" or "unix:/path", each with default_action=tempfail.
    settings: main.cf parameters that are added or win over ours.
    """

    def __init__(
        self,
        directory: Path,
        *,
        lmtp: str,
        domains: Sequence[str] = ("demo.example",),
        smtpd_milters: Sequence[str] = (),
        non_smtpd_milters: Sequence[str] = (),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory.resolve() / "postfix"
        self.port = free_port()
        self._lmtp = lmtp
        self._domains = tuple(domains)
        self._smtpd_milters = tuple(smtpd_milters)
        self._non_smtpd_milters = tuple(non_smtpd_milters)
        self._settings = dict(settings or {})
        self._process: ServerProcess | None = None

    @staticmethod
    def why_unavailable() -> str | None:
        """None when a private Postfix can run here, else the reason in a sentence."""
        if shutil.which("postconf", path=SYSTEM_PATH) is None:
            return "Postfix is not installed"
        if os.geteuid() != 0:
            return "Postfix can only be started by root"
        try:
            pwd.getpwnam(_built_in("mail_owner"))
        except KeyError:
            return f"Postfix's user {_built_in('mail_owner')} does not exist"
        return None

    @property
    def pid(self) -> int | None:
        """The master's process id while it runs; it leads a session that holds all the others."""
        return self._process.pid if self._process else None

    @property
    def config_directory(self) -> Path:
        """What Postfix's commands take after -c."""
        return self.directory / "etc"

    def start(self) -> None:
        """Start and wait until SMTP greets. Raises ServerFailedError and leaves nothing running."""
        if self._process is not None:
            raise ServerFailedError("this Postfix runs already")
        if reason := self.why_unavailable():
            raise ServerFailedError(reason)
        refuse_taken(self.port)
        self._write_files()
        master = f"{_built_in('daemon_directory')}/master"
        process = ServerProcess(
            [master, "-c", str(self.config_directory)], output=self.directory / "output.log"
        )
        try:
            self._wait_ready(process)
        except BaseException:
            process.stop()
            raise
        self._process = process

    def stop(self) -> None:
        """Stop it and wait until none of its processes is left. The queue stays."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def send(
        self, sender: str, recipients: Sequence[str], raw: bytes, *, options: Sequence[str] = ()
    ) -> Submission:
        """Send one message by SMTP, bytes as they are (dots stuffed, a last line end added).

        options: MAIL parameters such as BODY=8BITMIME and SMTPUTF8. Raises OSError or
        smtplib.SMTPException when the connection fails; a refusal is a result, not an error.
        """
        with smtplib.SMTP(LOOPBACK, self.port, local_hostname="client.demo.example", timeout=120) as smtp:
            smtp.ehlo()
            code, text = smtp.mail(sender, options)
            if code != 250:
                return Submission(code=code, text=_readable(text), refused={})
            refused = {}
            for recipient in recipients:
                code, text = smtp.rcpt(recipient)
                if code != 250:
                    refused[recipient] = code, _readable(text)
            if len(refused) < len(recipients):
                try:
                    code, text = smtp.data(raw)
                except smtplib.SMTPDataError as error:  # refused before the message itself
                    code, text = error.smtp_code, error.smtp_error  # type: ignore[assignment]
            return Submission(code=code, text=_readable(text), refused=refused)

    def submit(self, sender: str, recipients: Sequence[str], raw: bytes) -> None:
        """Hand in one message through sendmail(1), the road of local programs (non_smtpd_milters)."""
        self._run(
            "sendmail", "-C", str(self.config_directory), "-i", "-f", sender, "--", *recipients, stdin=raw
        )

    def flush(self) -> None:
        """Try all deferred mail again now."""
        self._run("postqueue", "-c", str(self.config_directory), "-f")

    def queue(self) -> list[dict[str, Any]]:
        """What is queued, as postqueue(1) tells it: queue_name, queue_id, sender, recipients, ... When it is
        empty, the log has all that has become of the mail."""
        # Twice, for what is moved from one directory to another while showq(8) walks them is in neither.
        listed = self._queued() or self._queued()
        if not listed:
            self._wait_for_log()
        return [json.loads(line) for line in listed.splitlines()]

    def log_text(self) -> str:
        """All that it logged so far."""
        log = self.directory / "mail.log"
        return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""

    def _queued(self) -> bytes:
        return self._run("postqueue", "-c", str(self.config_directory), "-j")

    def _wait_for_log(self) -> None:
        """Until what was logged before is in the file: postlogd(8) writes for all, in turn, when it can."""
        mark = f"all up to {time.monotonic_ns()}"
        self._run("postlog", "-c", str(self.config_directory), "-t", "postfix/mark", mark)
        if not wait_until(lambda: mark in self.log_text(), timeout_s=_COMMAND_TIMEOUT_S):
            raise ServerFailedError("Postfix does not write its log")

    def _run(self, command: str, *arguments: str, stdin: bytes = b"") -> bytes:
        program = f"{_built_in('command_directory')}/{command}"
        done = subprocess.run(  # noqa: S603 - no shell, and our own command line
            [program, *arguments],
            input=stdin,
            capture_output=True,
            timeout=_COMMAND_TIMEOUT_S,
            env={"PATH": SYSTEM_PATH},
            check=False,
        )
        if done.returncode:
            raise ServerFailedError(f"{command} failed ({done.returncode}): {_readable(done.stderr)}")
        return done.stdout

    def _wait_ready(self, process: ServerProcess) -> None:
        def settled() -> bool:
            return not process.running or greets(self.port, b"220 ")

        if not wait_until(settled, timeout_s=_START_TIMEOUT_S) or not process.running:
            logs = why_it_failed(self.directory / "output.log", self.directory / "mail.log")
            raise ServerFailedError(f"Postfix did not start:\n{logs}")

    def _write_files(self) -> None:
        directory = server_directory(self.directory.parent, self.directory.name)
        owner = pwd.getpwnam(_built_in("mail_owner"))
        for name in ("etc", "queue", "queue/pid"):
            (directory / name).mkdir(exist_ok=True)
        self._make_owned(directory / "data", owner.pw_uid, owner.pw_gid, 0o700)
        for name, mode in _QUEUE_DIRECTORIES.items():
            self._make_owned(directory / "queue" / name, owner.pw_uid, owner.pw_gid, mode)
        for name in ("maildrop", "public"):
            shutil.chown(directory / "queue" / name, group=_built_in("setgid_group"))
        parameters = {**self._parameters(directory), **self._settings}
        main_cf = "".join(f"{name} = {value}\n" for name, value in parameters.items())
        _write_aged(directory / "etc" / "main.cf", main_cf)
        _write_aged(directory / "etc" / "master.cf", _MASTER_CF.format(host=LOOPBACK, port=self.port))

    @staticmethod
    def _make_owned(directory: Path, uid: int, gid: int, mode: int) -> None:
        directory.mkdir(exist_ok=True)
        os.chown(directory, uid, gid)
        directory.chmod(mode)

    def _parameters(self, directory: Path) -> dict[str, str]:
        lmtp = self._lmtp if self._lmtp.startswith("unix:") else f"inet:{self._lmtp}"
        kept = ("mail_owner", "setgid_group", "command_directory", "daemon_directory", "shlib_directory")
        return {
            "compatibility_level": "3.6",
            **{name: _built_in(name) for name in kept},
            "meta_directory": f"{directory}/etc",
            "queue_directory": f"{directory}/queue",
            "data_directory": f"{directory}/data",
            "maillog_file": f"{directory}/mail.log",
            "maillog_file_prefixes": str(directory),
            "syslog_name": "postfix",
            "enable_long_queue_ids": "yes",
            # Loopback only, and no name is ever looked up.
            "inet_interfaces": LOOPBACK,
            "inet_protocols": "ipv4",
            "myhostname": "mx.demo.example",
            "mynetworks": "127.0.0.0/8",
            "smtpd_peername_lookup": "no",
            "disable_dns_lookups": "yes",
            "lmtp_host_lookup": "native",
            # One way out: LMTP, for our domains. Everything else is refused or bounced here.
            "mydestination": "",
            "relay_domains": "",
            "smtpd_relay_restrictions": "reject_unauth_destination",
            "virtual_mailbox_domains": ", ".join(self._domains),
            "virtual_transport": f"lmtp:{lmtp}",
            "default_transport": "error:5.7.1 this Postfix sends nothing to other hosts",
            "local_transport": "error:5.7.1 this Postfix has no local mailboxes",
            "local_recipient_maps": "",
            "alias_maps": "",
            "alias_database": "",
            "fast_flush_domains": "",
            "notify_classes": "",
            "biff": "no",
            "smtpd_tls_security_level": "none",
            "lmtp_tls_security_level": "none",
            # What a capture in front of Dovecot wants: whole lines, and the queue id passed on.
            "lmtp_line_length_limit": "0",
            "lmtp_send_xforward_command": "yes",
            "smtputf8_enable": "yes",
            "message_size_limit": "536870912",
            "mailbox_size_limit": "0",
            "virtual_mailbox_limit": "0",
            # Deferred mail comes again in a second or two, not in minutes.
            "queue_run_delay": "1s",
            "minimal_backoff_time": "1s",
            "maximal_backoff_time": "2s",
            "transport_retry_time": "1s",
            "milter_default_action": "tempfail",
            "smtpd_milters": _milters(self._smtpd_milters),
            "non_smtpd_milters": _milters(self._non_smtpd_milters),
        }


def _write_aged(path: Path, text: str) -> None:
    """Write a file dated a minute ago: Postfix waits until a configuration file is two seconds old."""
    path.write_text(text)
    past = time.time() - 60
    os.utime(path, (past, past))


def _milters(addresses: Sequence[str]) -> str:
    return ", ".join(f"{{ {address}, default_action=tempfail }}" for address in addresses)


@cache
def _built_in(parameter: str) -> str:
    """A parameter's compiled-in value: -d reads no configuration file of the machine."""
    program = shutil.which("postconf", path=SYSTEM_PATH) or "postconf"
    shown = subprocess.run(  # noqa: S603 - no shell, and our own command line
        [program, "-dh", parameter], capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=True
    )
    return shown.stdout.strip()


def _readable(text: bytes) -> str:
    return text.decode("utf-8", "replace").strip()
