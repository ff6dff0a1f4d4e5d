"""What the three listeners (LMTP, milter, HTTP) share about unix sockets."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

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
