"""What the three listeners (LMTP, milter, HTTP) share about sockets."""

from __future__ import annotations

import errno
import grp
import os
import socket
from pathlib import Path

from sidecar.units import Address

BACKLOG = 128
_ANSWER_TIMEOUT_S = 1.0


def remove_stale_socket(path: Path) -> None:
    """Make way where a dead process has left its socket; what is no socket is left for bind to refuse.

    Only a refused connection proves that nobody is there: to remove a socket that somebody listens on, if
    only too busy to answer, would take their clients. Raises FileExistsError, OSError.
    """
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_ANSWER_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise FileExistsError(errno.EADDRINUSE, "another process listens there", str(path))


def bind_unix(path: Path, mode: int, group: str) -> socket.socket:
    """A bound unix socket. One that a dead process left behind is replaced; one that answers is not."""
    remove_stale_socket(path)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        # Before listen, so that nobody connects who may not.
        path.chmod(mode)
        if group:
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
    except (OSError, KeyError) as exc:
        listener.close()
        if isinstance(exc, KeyError):
            raise OSError(f"{path}: there is no group {group!r}") from exc
        raise
    return listener


def listen(address: Address, mode: int, group: str) -> list[socket.socket]:
    """Sockets that listen at `address`, for several processes to accept from. Raises OSError.

    A host name may stand for several addresses, as localhost does for those of IPv4 and IPv6.
    """
    made: list[socket.socket] = []
    try:
        if address.is_unix:
            made.append(bind_unix(Path(address.path), mode, group))
        else:
            found = socket.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            for family, _, _, _, where in dict.fromkeys(found):
                made.append(listener := socket.socket(family))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind(where)
        for listener in made:
            # Somebody else may have taken what one was woken for, and nobody must wait for the next.
            listener.settimeout(0)
            listener.listen(BACKLOG)
    except OSError:
        for listener in made:
            listener.close()
        raise
    return made
