"""`mailkeep.store`: what a store is. Its format, id and key, and for whom what comes into it is sealed."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from store.errors import DamagedError, FormatError, StoreError, StoreNotFoundError
from store.files import sync_directory, write_whole
from store.ids import now_us
from store.layout import FORMAT_VERSION, OPEN_VERSION

NAME = "mailkeep.store"
_NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "ceph", "afs", "glusterfs"}
)


@dataclass(frozen=True, slots=True)
class About:
    """What stands in `mailkeep.store`."""

    id: bytes
    key: bytes
    created_us: int
    recipients: tuple[str, ...] = ()
    """age public keys; with none of them nothing is sealed"""

    @classmethod
    def read(cls, path: Path, *, create: bool = False) -> About:
        """What the store at `path` is. Raises `StoreNotFoundError`, `FormatError`, `DamagedError`,
        `StoreError`."""
        file = path / NAME
        if create and not file.exists():
            _create(path)
        try:
            told = json.loads(file.read_text())
            version = int(told["format"])
            if version > FORMAT_VERSION:
                raise FormatError(f"{path} has format {version}; this version reads up to {FORMAT_VERSION}")
            return cls(
                bytes.fromhex(told["id"]), bytes.fromhex(told["key"]), int(told["created_us"]),
                tuple(map(str, told.get("recipients", ()))),
            )  # fmt: skip
        except FileNotFoundError as exc:
            raise StoreNotFoundError(f"there is no store at {path}") from exc
        except (ValueError, KeyError, TypeError) as exc:
            raise DamagedError(f"{file} cannot be read: {exc}") from exc
        except OSError as exc:
            raise StoreError(f"{file} cannot be read: {exc.strerror}") from exc

    def write(self, path: Path) -> None:
        """Make it so, durably, by one rename. Raises `StoreError`."""
        told: dict[str, object] = {
            "format": FORMAT_VERSION if self.recipients else OPEN_VERSION,
            "id": self.id.hex(),
            "key": self.key.hex(),
            "created_us": self.created_us,
        }
        if self.recipients:
            told["recipients"] = list(self.recipients)
        try:
            # With rivals: several may make a store here at once.
            write_whole(path / NAME, json.dumps(told).encode() + b"\n", rivals=True)
        except OSError as exc:
            raise StoreError(f"{path / NAME} cannot be written: {exc.strerror}") from exc

    def told(self) -> str:
        """For whom it is sealed, in words."""
        return ", ".join(self.recipients) or "nobody"


def _create(path: Path) -> None:
    _refuse_network_file_system(path)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    # What a creation that was cut off leaves, and what a file system of its own has, is in nobody's way.
    others = {entry.name for entry in path.iterdir() if f"{NAME}." not in entry.name}
    others -= {"lost+found", "streams"}
    streams = path / "streams"
    if others or (streams.exists() and any(streams.iterdir())):
        raise StoreError(f"{path} is neither a store nor empty; not made into one")
    streams.mkdir(mode=0o700, exist_ok=True)
    About(os.urandom(16), os.urandom(32), now_us()).write(path)
    sync_directory(path.parent)


def _refuse_network_file_system(path: Path) -> None:
    # LMDB's locks and a memory map are not to be trusted over a network.
    target = str(path.absolute())
    best, kind = "", ""
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    for line in mounts:
        fields = line.split()
        point = fields[4]
        if len(point) >= len(best) and (target + "/").startswith(point.rstrip("/") + "/"):
            best, kind = point, fields[fields.index("-") + 1]
    if kind in _NETWORK_FILE_SYSTEMS:
        raise StoreError(f"{path} is on a network file system ({kind}); the store needs a local disk")
