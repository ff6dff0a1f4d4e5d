"""From the configuration to a mailbox server: reads the file with passwords."""

from __future__ import annotations

import logging
import stat
from pathlib import Path

from sidecar.config import ConfigError
from sidecar.live.imap import ImapServer
from sidecar.sections import ImapConfig

log = logging.getLogger(__name__)


def needed(config: ImapConfig | None) -> ImapConfig:
    """[imap], without which there is no way into the mailboxes. Raises `ConfigError`."""
    if config is None:
        raise ConfigError(
            "the configuration has no [imap], so the mailboxes cannot be looked into",
            "Say how to log in under [imap]; deploy/mailkeep.toml shows every key.",
        )
    return config


def imap_server(config: ImapConfig | None) -> ImapServer:
    """The configured server with all that is needed to get in. Raises `ConfigError`."""
    config = needed(config)
    passwords = _passwords(config.passwords) if config.passwords else {}
    if not passwords:
        raise ConfigError("[imap] passwords: it names no file with lines USER:PASSWORD")
    password = ""
    if config.master_user:
        if config.master_user not in passwords:
            raise ConfigError(f"[imap] passwords: {config.passwords} has no line for {config.master_user}")
        password = passwords[config.master_user]
    return ImapServer(
        address=config.server, tls=config.tls, ca=config.ca, master=config.master_user,
        separator=config.master_separator, password=password, passwords=passwords, named="[imap] server",
    )  # fmt: skip


def _passwords(path: Path) -> dict[str, str]:
    try:
        if path.stat().st_mode & stat.S_IROTH:
            log.warning("[imap] passwords: everybody can read %s: chmod o-r", path)
        lines = path.read_text("utf-8").splitlines()
    except OSError as exc:
        raise ConfigError(f"[imap] passwords: {path} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"[imap] passwords: {path} is not UTF-8 at byte {exc.start}") from exc
    found = {}
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            user, colon, password = line.strip().partition(":")
            if not colon or not user:
                raise ConfigError(f"[imap] passwords: {path}, line {number}: write USER:PASSWORD")
            found[user] = password
    return found
