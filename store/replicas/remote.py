"""A bucket (S3 or what speaks it) or a directory that holds a replica. The only file that knows obstore.

Objects are created once, by one plain PUT with `If-None-Match: *`, and never written again. A client that hears
no answer asks again and is told "already there" by its own first try: so what is there is compared, and the same
bytes are success. What was sent is compared with what the store says it has: by the ETag where that is the MD5,
else by reading it back. Thread-safe, and blocking.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from store.replicas.errors import (
    DiffersError,
    MissingObjectError,
    RefusedError,
    ReplicaError,
    UnreachableError,
)

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_MD5 = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteOptions:
    """How to reach a bucket. Without credentials those of the environment are taken (AWS_ACCESS_KEY_ID …).

    `bandwidth_bytes`: of uploads, a second; 0 for as much as there is. `tries_s`: how long a request is tried.
    """

    endpoint: str = ""
    region: str = "us-east-1"
    access_key_id: str = ""
    secret_access_key: str = ""
    bandwidth_bytes: int = 0
    timeout_s: float = 60.0
    tries_s: float = 10.0


class Remote:
    """One replica's objects. `requests`, `sent_bytes` and `received_bytes` count what was asked for."""

    def __init__(self, url: str, store: ObjectStore, directory: Path | None, options: RemoteOptions) -> None:
        self.url = url
        self.requests = 0
        self.sent_bytes = 0
        self.received_bytes = 0
        self._store = store
        self._directory = directory
        self._bandwidth = options.bandwidth_bytes
        self._lock = threading.Lock()
        self._free_at = 0.0

    @classmethod
    def open(cls, url: str, options: RemoteOptions | None = None) -> Remote:
        """The replica at `s3://bucket/prefix` or `file:///path`. Asks nobody yet. Raises `ReplicaError`."""
        options = options or RemoteOptions()
        parts = urlsplit(url)
        if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
            return cls(url, *_directory(url, Path(parts.path)), options)
        if parts.scheme == "s3" and parts.netloc:
            return cls(url, _bucket(url, parts.netloc, parts.path.strip("/"), options), None, options)
        raise ReplicaError(f"{url!r} is no replica's address: write s3://bucket/prefix or file:///path")

    # -- reading

    def get(self, name: str) -> bytes:
        """A whole object. Raises `ReplicaError`."""
        import obstore

        data = self._ask(name, lambda: bytes(obstore.get(self._store, name).bytes()))
        self.received_bytes += len(data)
        return data

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Part of one. Raises `ReplicaError`."""
        import obstore

        data = self._ask(
            name, lambda: bytes(obstore.get_range(self._store, name, start=start, length=length))
        )
        self.received_bytes += len(data)
        return data

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Names below a prefix (which ends with a slash) with their sizes in bytes, in order. Raises
        `ReplicaError`."""
        import obstore

        def ask() -> list[tuple[str, int]]:
            pages = obstore.list(self._store, prefix.rstrip("/"), chunk_size=1000)
            return [(str(found["path"]), int(found["size"])) for page in pages for found in page]

        yield from sorted(self._ask(prefix, ask))

    def size(self, name: str) -> int | None:
        """An object's size in bytes; None if it is not there. Raises `ReplicaError`."""
        import obstore

        try:
            return int(self._ask(name, lambda: obstore.head(self._store, name))["size"])
        except MissingObjectError:
            return None

    # -- writing

    def create(self, name: str, data: bytes) -> bool:
        """Make an object; False when the very same was there. Raises `DiffersError` when another one was,
        `ReplicaError`."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        self._wait_for_room(len(data))
        try:
            result = self._ask(
                name, lambda: obstore.put(self._store, name, data, mode="create", use_multipart=False)
            )
        except (AlreadyExistsError, PreconditionError):
            if self.size(name) != len(data) or self.get(name) != data:
                raise DiffersError(f"{self.url}: {name} is there with other bytes") from None
            return False
        self.sent_bytes += len(data)
        self._verify(name, data, str(result.get("e_tag") or ""))
        return True

    def delete(self, names: list[str]) -> None:
        """Remove objects; what is not there is no error. Raises `ReplicaError`."""
        import obstore

        for at in range(0, len(names), 1000):
            some = names[at : at + 1000]
            self._ask(some[0], lambda some=some: obstore.delete(self._store, some))  # type: ignore[misc]  # bound now

    def _verify(self, name: str, data: bytes, e_tag: str) -> None:
        if self._directory is not None:
            _settle(self._directory / name)
        tag = e_tag.strip('"')
        if _MD5.fullmatch(tag) and hashlib.md5(data, usedforsecurity=False).hexdigest() == tag:
            return
        if self.get(name) != data:
            raise ReplicaError(f"{self.url}: {name} came to be something else than was sent")

    def _wait_for_room(self, size: int) -> None:
        if not self._bandwidth:
            return
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._free_at)
            self._free_at = begin + size / self._bandwidth
        time.sleep(max(0.0, begin - now))

    def _ask(self, name: str, ask: Callable[[], T]) -> T:
        """What was asked for; what goes wrong is told in our words, but that something is there already."""
        from obstore import exceptions

        self.requests += 1
        where = f"{self.url}: {name}"
        try:
            return ask()
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
            raise
        except (exceptions.NotFoundError, FileNotFoundError) as exc:
            raise MissingObjectError(f"{where} is missing") from exc
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as exc:
            raise RefusedError(f"{where}: {_words(exc)}") from exc
        except (exceptions.BaseError, OSError, ValueError) as exc:
            text = _words(exc)
            kind = RefusedError if re.search(r"\b(401|403)\b|InvalidAccessKeyId|SignatureDoesNotMatch", text) else (
                UnreachableError
            )  # fmt: skip
            raise kind(f"{where}: {text}") from exc


def _directory(url: str, path: Path) -> tuple[Any, Path]:
    from obstore.store import LocalStore

    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise ReplicaError(f"{url}: {exc.strerror}") from exc
    return LocalStore(path), path


def _bucket(url: str, bucket: str, prefix: str, options: RemoteOptions) -> Any:
    from obstore.store import S3Store

    plain = options.endpoint.startswith("http://")
    if plain and urlsplit(options.endpoint).hostname not in _LOOPBACK:
        raise ReplicaError(f"{url}: {options.endpoint} would send credentials in the clear: write https://")
    config: dict[str, Any] = {"region": options.region, "virtual_hosted_style_request": not options.endpoint}
    if options.endpoint:
        config["endpoint"] = options.endpoint
    if options.access_key_id:
        config |= {
            "access_key_id": options.access_key_id,
            "secret_access_key": options.secret_access_key,
        }
    return S3Store(
        bucket,
        prefix=prefix or None,
        config=config,
        client_options={
            "allow_http": plain,
            "timeout": timedelta(seconds=options.timeout_s),
            "connect_timeout": timedelta(seconds=min(5.0, options.timeout_s)),
        },
        retry_config={"max_retries": 4, "retry_timeout": timedelta(seconds=options.tries_s)},
    )


def _settle(path: Path) -> None:
    """A directory's objects must survive a power cut as a bucket's would."""
    for target in (path, path.parent):
        fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _words(exc: Exception) -> str:
    """The first line of what obstore says, without its debugging."""
    text = str(exc).split("\n\nDebug source")[0]
    return " ".join(text.split())[:500]
