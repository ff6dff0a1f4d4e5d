"""Small steps on the file system that the store's rooms share."""

from __future__ import annotations

import os
from pathlib import Path


def adopt(path: Path) -> None:
    """Give what root has just made to the owner of the directory it stands in.

    An operator's command run as root must not leave files that the service's own user cannot open.
    """
    if os.geteuid() == 0:
        parent = path.parent.stat()
        os.chown(path, parent.st_uid, parent.st_gid)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
