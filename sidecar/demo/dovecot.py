"""A private Dovecot 2.3: LMTP in, Maildir below the given directory, IMAP out, all on loopback.

Works as root (mail then belongs to nobody, login processes run as the package's
users) and as any other user. Stopping and starting again keeps mail, ports and users.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path

from sidecar.demo.mailbox import Mailbox
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

MASTER = "master"
"""the user who may log in as everybody, with the same password"""
_START_TIMEOUT_S = 60.0

_CONFIG = """\
base_dir = {directory}/run
state_dir = {directory}/state
instance_name = mailkeep-private
log_path = {directory}/dovecot.log
listen = {host}
protocols = imap lmtp
ssl = no
disable_plaintext_auth = no
default_internal_user = {internal_user}
default_internal_group = {internal_group}
default_login_user = {login_user}
first_valid_uid = {uid}
first_valid_gid = {gid}
mail_home = {directory}/mail/%u
mail_location = maildir:~/Maildir
mail_plugins = quota
mail_max_userip_connections = 100
postmaster_address = postmaster@localhost
quota_full_tempfail = {quota_full_tempfail}
shutdown_clients = yes

service imap-login {{
  chroot =
  inet_listener imap {{
    address = {host}
    port = {imap_port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service lmtp {{
  inet_listener lmtp {{
    address = {host}
    port = {lmtp_port}
  }}
  unix_listener {lmtp_socket} {{
    mode = 0666
  }}
}}
service anvil {{
  chroot =
}}
service stats {{
  chroot =
}}

auth_master_user_separator = *
passdb {{
  driver = passwd-file
  args = scheme=PLAIN {directory}/masters
  master = yes
  pass = yes
}}
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {directory}/users
}}
userdb {{
  driver = passwd-file
  args = username_format=%u {directory}/users
}}
{anyone}
plugin {{
  quota = count:User quota
  quota_vsizes = yes
  quota_grace = 0
}}
{settings}
"""

# Lets every address in: looked at only after the users file did not know it.
_ANYONE = """\
passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={directory}/mail/%u allow_all_users=yes
}}
"""


class PrivateDovecot(Started):
    """A Dovecot of our own under `directory`; a context manager that starts and stops it.

    users: the only mailboxes there are (others get 550 5.1.1 at RCPT); None: any address has one.
    quota_bytes: mailboxes with a limit. What goes over it gets 552 5.2.2 after the message, or
    452 4.2.2 with quota_full_tempfail. settings: more lines of dovecot.conf (global scope).
    """

    def __init__(
        self,
        directory: Path,
        *,
        users: Collection[str] | None = None,
        quota_bytes: Mapping[str, int] | None = None,
        quota_full_tempfail: bool = False,
        settings: Mapping[str, str] | None = None,
        password: str = "demo",  # noqa: S107 - it opens nothing but this throw-away server on loopback
    ) -> None:
        self.directory = directory.resolve() / "dovecot"
        self.password = password
        self.lmtp_port = free_port()
        self.imap_port = free_port()
        self._users = users
        self._quota_bytes = dict(quota_bytes or {})
        self._quota_full_tempfail = quota_full_tempfail
        self._settings = dict(settings or {})
        self._process: ServerProcess | None = None

    @staticmethod
    def why_unavailable() -> str | None:
        """None when a private Dovecot can run here, else the reason in a sentence."""
        program = _program()
        if program is None:
            return "Dovecot is not installed"
        shown = subprocess.run(  # noqa: S603 - no shell, and our own command line
            [program, "--version"], capture_output=True, text=True, timeout=30, check=False
        )
        version = shown.stdout.split(" ")[0].strip()
        if not version.startswith("2.3."):
            return f"Dovecot 2.3 is needed, this is {version or 'of unknown version'}"
        libexec = [
            Path(folder)
            for folder in ("/usr/lib/dovecot", "/usr/libexec/dovecot", "/usr/local/libexec/dovecot")
        ]
        missing = [
            part for part in ("lmtp", "imap") if not any((folder / part).exists() for folder in libexec)
        ]
        return f"Dovecot's {' and '.join(missing)} not installed" if missing else None

    @property
    def lmtp_address(self) -> str:
        """HOST:PORT of the LMTP listener."""
        return f"{LOOPBACK}:{self.lmtp_port}"

    @property
    def lmtp_socket(self) -> Path:
        """The same service on a UNIX socket that anyone may connect to."""
        return self.directory / "lmtp.sock"

    @property
    def pid(self) -> int | None:
        """The master's process id while it runs; it leads a session that holds all the others."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start and wait until LMTP and IMAP greet. Raises ServerFailedError and leaves nothing running."""
        if self._process is not None:
            raise ServerFailedError("this Dovecot runs already")
        reason = self.why_unavailable()
        program = _program()
        if reason or program is None:
            raise ServerFailedError(reason or "Dovecot is not installed")
        refuse_taken(self.lmtp_port, self.imap_port)
        self._write_files()
        config = self.directory / "dovecot.conf"
        process = ServerProcess([program, "-F", "-c", str(config)], output=self.directory / "output.log")
        try:
            self._wait_ready(process)
        except BaseException:
            process.stop()
            raise
        self._process = process

    def stop(self) -> None:
        """Stop it and wait until none of its processes is left. The mail stays."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def mailbox(self, user: str, folder: str = "INBOX") -> Mailbox:
        """Log in over IMAP as that user; use it in a with statement."""
        return Mailbox(LOOPBACK, self.imap_port, user, self.password, folder=folder)

    def log_text(self) -> str:
        """All that it logged so far."""
        log = self.directory / "dovecot.log"
        return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""

    def _wait_ready(self, process: ServerProcess) -> None:
        def settled() -> bool:
            return not process.running or (
                greets(self.lmtp_port, b"220 ") and greets(self.imap_port, b"* OK")
            )

        if not wait_until(settled, timeout_s=_START_TIMEOUT_S) or not process.running:
            logs = why_it_failed(self.directory / "output.log", self.directory / "dovecot.log")
            raise ServerFailedError(f"Dovecot did not start:\n{logs}")

    def _write_files(self) -> None:
        directory = server_directory(self.directory.parent, self.directory.name)
        uid, gid = _mail_owner()
        for name in ("run", "state", "mail"):
            (directory / name).mkdir(exist_ok=True)
        (directory / "mail").chmod(0o700)
        os.chown(directory / "mail", uid, gid)
        (directory / "masters").write_text(f"{MASTER}:{self.password}\n")
        (directory / "users").write_text("".join(f"{line}\n" for line in self._user_lines(uid, gid)))
        anyone = (
            ""
            if self._users is not None
            else _ANYONE.format(password=self.password, uid=uid, gid=gid, directory=directory)
        )
        internal_user, internal_group, login_user = _server_owners()
        (directory / "dovecot.conf").write_text(
            _CONFIG.format(
                directory=directory,
                host=LOOPBACK,
                imap_port=self.imap_port,
                lmtp_port=self.lmtp_port,
                lmtp_socket=self.lmtp_socket,
                internal_user=internal_user,
                internal_group=internal_group,
                login_user=login_user,
                uid=uid,
                gid=gid,
                anyone=anyone,
                quota_full_tempfail="yes" if self._quota_full_tempfail else "no",
                settings="\n".join(f"{key} = {value}" for key, value in self._settings.items()),
            )
        )

    def _user_lines(self, uid: int, gid: int) -> list[str]:
        lines = []
        for user in sorted({*(self._users or ()), *self._quota_bytes}):
            limit = self._quota_bytes.get(user)
            rule = "" if limit is None else f"userdb_quota_rule=*:bytes={limit}"
            lines.append(f"{user}:{self.password}:{uid}:{gid}::{self.directory}/mail/{user}::{rule}")
        return lines


def _program() -> str | None:
    return shutil.which("dovecot", path=SYSTEM_PATH)


def _mail_owner() -> tuple[int, int]:
    if os.geteuid():
        return os.geteuid(), os.getegid()
    # Dovecot refuses to keep root's mail; these ids own nothing else anywhere.
    return 65534, 65534


def _server_owners() -> tuple[str, str, str]:
    """Whom Dovecot's internal and login processes run as: the package's users, or whoever starts it."""
    if os.geteuid():
        user = pwd.getpwuid(os.geteuid()).pw_name
        return user, grp.getgrgid(os.getegid()).gr_name, user
    return "dovecot", "dovecot", "dovenull"
