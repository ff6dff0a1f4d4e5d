"""A bucket (S3 or what speaks it) or a directory that holds a replica. The only file that knows obstore.

Objects are created once, by one plain PUT with `If-None-Match: *`, and never written again. A client that
hears no answer asks again and is told "already there" by its own first try: so what is there is compared,
and the same bytes are success. What was sent is compared with what the store says it has: by the ETag where
that is the MD5, else by reading it back. Thread-safe, and blocking.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from store.files import sync_directory, write_new
from store.loopback import LOOPBACK
from store.replicas.errors import (
    AwayError,
    ClockError,
    DamagedUploadError,
    DiffersError,
    FullError,
    MissingObjectError,
    RefusedError,
    ReplicaError,
    UnreachableError,
)
from store.replicas.source import Listed

if TYPE_CHECKING:
    from obstore.store import ObjectStore, S3Config

T = TypeVar("T")
_MD5 = re.compile("[0-9a-f]{32}")
_SLOWEST_BYTES = 64 << 10
"""a second: what is large may take so long before it is given up"""
_CREDENTIALS_BY = frozenset(
    {
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_SKIP_SIGNATURE",
    }
)
_PAIR = frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"})
_READ_AGAIN = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteOptions:
    """How to reach a bucket. Without a file of credentials those of the environment are taken
    (AWS_ACCESS_KEY_ID …, or what the machine has at its provider).

    `checksums`: send SHA-256 with each upload, which AWS demands where objects are locked.
    `bandwidth_bytes`: of uploads, a second; 0 for as much as there is. `timeout_s`: for one small request;
    `tries_s`: how long one is tried again.
    """

    endpoint: str = ""
    region: str = ""
    credentials: Path | None = None
    path_style: bool = True
    checksums: bool = False
    bandwidth_bytes: int = 0
    timeout_s: float = 30.0
    tries_s: float = 20.0


@dataclass(slots=True)
class Counted:
    """Since the replica was opened: requests, those that failed, and bytes of objects."""

    requests: int = 0
    failures: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


class Remote:
    """One replica's objects."""

    def __init__(
        self,
        url: str,
        make: Callable[[float], ObjectStore],
        directory: Path | None,
        options: RemoteOptions,
    ) -> None:
        self.url = url
        self.counted = Counted()
        self._directory = directory
        self._options = options
        self._make = make
        self._store = make(options.timeout_s)
        self._patient: tuple[float, ObjectStore] = (options.timeout_s, self._store)
        self._lock = threading.Lock()
        self._free_at = 0.0
        self._closed = threading.Event()

    @classmethod
    def open(cls, url: str, options: RemoteOptions | None = None, *, make: bool = True) -> Remote:
        """The replica at `s3://bucket/prefix` or `file:///path`. Asks nobody yet. `make`: begin a directory
        that is not there, if the one above it is. Raises `ReplicaError`."""
        options = options or RemoteOptions()
        parts = urlsplit(url)
        if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
            path = Path(parts.path)
            return cls(url, _directory(url, path, make=make), path, options)
        if parts.scheme == "s3" and parts.netloc and not parts.query:
            return cls(url, _bucket(url, parts.netloc, parts.path.strip("/"), options), None, options)
        raise ReplicaError(f"{url!r} is no replica's address: write s3://bucket/prefix or file:///path")

    def close(self) -> None:
        """Whoever waits for the bandwidth waits no longer: it gets `UnreachableError`."""
        self._closed.set()

    # -- reading

    def get(self, name: str) -> bytes:
        """A whole object. Raises `ReplicaError`."""
        import obstore

        data = self._ask(name, lambda: bytes(obstore.get(self._patient[1], name).bytes()))
        self._count(received=len(data))
        return data

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Part of one. Raises `ReplicaError`."""
        import obstore

        if not length:
            return b""
        store = self._for(length)
        data = self._ask(name, lambda: bytes(obstore.get_range(store, name, start=start, length=length)))
        self._count(received=len(data))
        return data

    def list(self, prefix: str, after: str = "") -> Iterator[tuple[str, int]]:
        """Names below a prefix (which ends with a slash), those that come after a name, with their sizes in
        bytes, in order. Raises `ReplicaError`."""
        return ((found.name, found.size) for found in self.listed(prefix, after))

    def folders(self, prefix: str) -> Sequence[str]:
        """What comes next below a prefix, wherever a slash follows it, in order. Raises `ReplicaError`."""
        import obstore

        under = prefix.rstrip("/") or None
        found = self._ask(prefix, lambda: obstore.list_with_delimiter(self._store, under))
        return sorted(str(one).rpartition("/")[2] for one in found["common_prefixes"])

    def listed(self, prefix: str, after: str = "") -> Iterator[Listed]:
        """As `list`, with times. Raises `ReplicaError`."""
        import obstore

        under = prefix.rstrip("/") or None
        pages = self._ask(
            prefix, lambda: iter(obstore.list(self._store, under, offset=after or None, chunk_size=1000))
        )
        found = (
            Listed(str(one["path"]), int(one["size"]), round(one["last_modified"].timestamp() * 1e6))
            for page in iter(lambda: self._ask(prefix, lambda: next(pages, None)), None)
            for one in page
        )
        # A bucket has them in order; a directory as they lie on the disk.
        return found if self._directory is None else iter(sorted(found, key=lambda one: one.name))

    def size(self, name: str) -> int | None:
        """An object's size in bytes; None if it is not there. Raises `ReplicaError`."""
        found = self._head(name)
        return found[0] if found else None

    def holds(self, name: str, data: bytes) -> bool:
        """Whether an object is there with just these bytes. Raises `ReplicaError`."""
        found = self._head(name)
        if found is None or found[0] != len(data):
            return False
        return _is_md5_of(found[1], data) or self.get(name) == data

    def locked_until(self, name: str) -> datetime | None:
        """Until when the bucket keeps anybody from removing an object; None if it does not. Needs
        s3:GetObjectRetention, too. Raises `ReplicaError`."""
        import urllib.request

        import obstore

        if self._directory is not None:
            return None
        # obstore tells nothing of locks: it signs the question, and we ask.
        store: Any = self._store
        address = self._ask(name, lambda: obstore.sign(store, "HEAD", name, timedelta(minutes=1)))
        request = urllib.request.Request(address, method="HEAD")  # noqa: S310 - the configured endpoint
        try:
            with urllib.request.urlopen(request, timeout=self._options.timeout_s) as answer:  # noqa: S310 - as above
                told = answer.headers.get("x-amz-object-lock-retain-until-date")
                return datetime.fromisoformat(told).astimezone(UTC) if told else None
        except (OSError, ValueError) as exc:
            raise ReplicaError(f"{self.url}: {name}: how long it is locked cannot be told: {exc}") from exc

    # -- writing

    def create(self, name: str, data: bytes) -> bool:
        """Make an object; False when the very same was there. Raises `DiffersError` when another one was,
        `DamagedUploadError`, `ReplicaError`."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        self._wait_for_room(len(data))
        try:
            e_tag = self._ask(name, lambda: self._put(name, data), creates=True)
        except (AlreadyExistsError, PreconditionError):
            if self.holds(name, data):
                return False
            if self.size(name) is None:  # S3's 409: another upload of it is under way, or was broken off
                raise UnreachableError(f"{self.url}: {name} is being written by somebody else") from None
            raise DiffersError(f"{self.url}: {name} is there with other bytes") from None
        self._count(sent=len(data))
        if self._directory is not None:
            return True  # flushed, and what is read back now would come from the cache
        if not _is_md5_of(e_tag, data) and self.get(name) != data:
            raise DamagedUploadError(f"{self.url}: {name} came to be something else than was sent")
        return True

    def require(self, name: str) -> None:
        """Of a directory: what is known to be there must be. Raises `AwayError` where it is not: nothing, or
        something else, is mounted there, and what lies below must not be filled."""
        if self._directory is not None and not (self._directory / name).exists():
            raise AwayError(f"{self.url} is not there, or has nothing of what was shipped to it any more")

    def delete(self, names: Sequence[str]) -> None:
        """Remove objects; what is not there is no error. Raises `ReplicaError`."""
        import obstore

        at_once = 1000 if self._directory is None else 1  # the first that is missing ends a directory's
        for at in range(0, len(names), at_once):
            some = names[at : at + at_once]
            with contextlib.suppress(MissingObjectError):
                self._ask(some[0], lambda some=some: obstore.delete(self._store, some))  # type: ignore[misc]  # bound now

    def _put(self, name: str, data: bytes) -> str:
        import obstore

        if self._directory is not None:
            return _put_file(self._directory / name, data)
        store = self._for(len(data))
        # Never in parts: few stores refuse to complete a multipart upload over what is there.
        return str(obstore.put(store, name, data, mode="create", use_multipart=False)["e_tag"] or "")

    def _head(self, name: str) -> tuple[int, str] | None:
        import obstore

        try:
            found = self._ask(name, lambda: obstore.head(self._store, name))
        except MissingObjectError:
            return None
        return int(found["size"]), str(found["e_tag"] or "")

    def _for(self, size: int) -> ObjectStore:
        """A client that waits long enough for so many bytes over a slow line."""
        wanted = self._options.timeout_s + size / _SLOWEST_BYTES
        if self._directory is not None or size <= _SLOWEST_BYTES:
            return self._store
        with self._lock:
            if self._patient[0] < wanted:
                self._patient = (2 * wanted, self._make(2 * wanted))
            return self._patient[1]

    def _wait_for_room(self, size: int) -> None:
        limit = self._options.bandwidth_bytes
        if not limit:
            return
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._free_at)
            self._free_at = begin + size / limit
        if self._closed.wait(max(0.0, begin - now)) and begin > now:
            raise UnreachableError(f"{self.url}: closed before it was this upload's turn")

    def set_bandwidth(self, limit_bytes: int) -> None:
        """From now on."""
        self._options = replace(self._options, bandwidth_bytes=limit_bytes)

    def _count(self, *, sent: int = 0, received: int = 0, failures: int = 0, requests: int = 0) -> None:
        with self._lock:
            counted = self.counted
            counted.sent_bytes += sent
            counted.received_bytes += received
            counted.failures += failures
            counted.requests += requests

    def _ask(self, name: str, ask: Callable[[], T], *, creates: bool = False) -> T:
        """What was asked for; what goes wrong is told in our words, but for whoever creates, that something
        is there already."""
        from obstore import exceptions

        self._count(requests=1)
        where = f"{self.url}: {name}"
        try:
            return ask()
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as exc:
            if creates:
                raise
            self._count(failures=1)
            raise UnreachableError(f"{where}: {_words(exc)}") from exc
        except (exceptions.NotFoundError, FileNotFoundError) as exc:
            if "NoSuchBucket" in str(exc):
                self._count(failures=1)
                raise RefusedError(f"{where}: {_words(exc)}") from exc
            raise MissingObjectError(f"{where} is missing") from exc
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError) as exc:
            raise self._failure(where, exc, RefusedError) from exc
        except (exceptions.BaseError, OSError, ValueError) as exc:
            refused = re.search(r"^40[0-5] |another region|redentials", _words(exc))
            raise self._failure(where, exc, RefusedError if refused else UnreachableError) from exc

    def _failure(self, where: str, exc: Exception, otherwise: type[ReplicaError]) -> ReplicaError:
        self._count(failures=1)
        text = _words(exc)
        kind = _kind_of(text, otherwise)
        if kind is RefusedError and self._directory is None:
            # Credentials may be put right; a client keeps for an hour what it has read.
            with self._lock:
                self._store = self._make(self._options.timeout_s)
                self._patient = (self._options.timeout_s, self._store)
        asked = f", asked at {self._options.endpoint or 'AWS'}" if self._directory is None else ""
        return kind(f"{where}{asked}: {text}")


def read_credentials(path: Path) -> tuple[str, str]:
    """The id and the secret of a file with the lines `access_key_id = …` and `secret_access_key = …` (in
    the form of ~/.aws/credentials, with or without `aws_` and a section). Raises `ReplicaError`."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as exc:
        raise RefusedError(f"{path}: the credentials cannot be read: {exc}") from exc
    found = dict(re.findall(r"(?m)^\s*(?:aws_)?(access_key_id|secret_access_key)\s*=\s*(\S+)\s*$", text))
    for wanted in ("access_key_id", "secret_access_key"):
        if wanted not in found:
            raise RefusedError(f"{path}: it has no line `{wanted} = …`")
    return found["access_key_id"], found["secret_access_key"]


def _directory(url: str, path: Path, *, make: bool) -> Callable[[float], ObjectStore]:
    def opened(_timeout_s: float) -> ObjectStore:
        from obstore.store import LocalStore

        try:
            if make:
                path.mkdir(mode=0o700, exist_ok=True)
            path.stat()
        except FileNotFoundError as exc:
            raise AwayError(f"{url}: {exc.strerror}") from exc
        except OSError as exc:
            raise ReplicaError(f"{url}: {exc.strerror}") from exc
        return LocalStore(path)

    return opened


def _bucket(url: str, bucket: str, prefix: str, options: RemoteOptions) -> Callable[[float], ObjectStore]:
    endpoint = urlsplit(options.endpoint)
    plain = endpoint.scheme == "http"
    if options.endpoint and not (endpoint.scheme in {"http", "https"} and endpoint.netloc):
        raise ReplicaError(
            f"{url}: {options.endpoint} is no endpoint: write https://HOST or https://HOST:PORT"
        )
    if plain and endpoint.hostname not in LOOPBACK:
        raise ReplicaError(f"{url}: {options.endpoint} would send mail in the clear: write https://")
    config: S3Config = {"virtual_hosted_style_request": not options.path_style}
    if options.region:
        config["region"] = options.region
    elif options.endpoint:
        config["region"] = "us-east-1"  # what takes requests signed for any region is signed for this one
    if options.endpoint:
        host = endpoint.netloc if options.path_style else f"{bucket}.{endpoint.netloc}"
        config["endpoint"] = endpoint._replace(netloc=host).geturl().rstrip("/")
    if options.checksums:
        config["checksum_algorithm"] = "SHA256"
    provider: dict[str, Any] = {}
    if options.credentials is not None:
        file = options.credentials
        read_credentials(file)  # a slip in it is told now

        def credentials() -> dict[str, Any]:
            key, secret = read_credentials(file)
            until = datetime.now(UTC) + _READ_AGAIN
            return {"access_key_id": key, "secret_access_key": secret, "token": None, "expires_at": until}

        provider["credential_provider"] = credentials

    elif options.endpoint and not _CREDENTIALS_BY & {name.upper() for name in os.environ}:
        # The client would look for them at AWS's address for machines, which is not there.
        raise RefusedError(f"{url}: there are no credentials, neither in a file nor in AWS_ACCESS_KEY_ID")
    elif {name.upper() for name in os.environ} & _PAIR == {"AWS_ACCESS_KEY_ID"}:
        raise RefusedError(f"{url}: AWS_ACCESS_KEY_ID is set, and AWS_SECRET_ACCESS_KEY is not")

    def make(timeout_s: float) -> ObjectStore:
        from obstore.exceptions import BaseError
        from obstore.store import S3Store

        try:
            return S3Store(
                bucket,
                prefix=prefix or None,
                config=config,
                client_options={
                    "allow_http": plain,
                    "timeout": timedelta(seconds=timeout_s),
                    "connect_timeout": timedelta(seconds=min(5.0, timeout_s)),
                    "user_agent": "mailkeep",
                },
                retry_config={
                    "max_retries": 5,
                    "retry_timeout": timedelta(seconds=options.tries_s),
                    "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=5)},
                },
                **provider,
            )
        except (BaseError, ValueError) as exc:
            raise ReplicaError(f"{url}: {_words(exc)}") from exc

    return make


def _put_file(path: Path, data: bytes) -> str:
    """A file of its own, whole and durable when it has its name. Raises `AlreadyExistsError`, `OSError`."""
    from obstore.exceptions import AlreadyExistsError

    missing = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # What ends so is no object to obstore: an upload that was broken off.
    fresh = path.with_name(f"{path.name}#{secrets.randbits(63)}")
    write_new(fresh, data)
    try:
        os.link(fresh, path)  # never replaces what is there
    except FileExistsError as exc:
        raise AlreadyExistsError(str(exc)) from exc
    finally:
        fresh.unlink()
    for directory in (path.parent, *(parent.parent for parent in missing)):
        sync_directory(directory)
    return ""


def _is_md5_of(e_tag: str, data: bytes) -> bool:
    tag = e_tag.strip('"')
    return bool(_MD5.fullmatch(tag)) and hashlib.md5(data, usedforsecurity=False).hexdigest() == tag


def _kind_of(text: str, otherwise: type[ReplicaError]) -> type[ReplicaError]:
    """What is wrong, where a code of the store's tells it: 403 has many reasons."""
    if "RequestTimeTooSkewed" in text:
        return ClockError
    # Ceph's QuotaExceeded, MinIO's XMinioStorageFull and XMinioAdminBucketQuotaExceeded; RFC 4918, 11.5.
    return FullError if re.match("507 ", text) or re.search("QuotaExceeded|StorageFull", text) else otherwise


def _words(exc: Exception) -> str:
    """What the store says, without what is for obstore's own developers."""
    text = str(exc).partition("\n\nDebug source")[0]
    if "BareRedirect" in str(exc) or "PermanentRedirect" in text:
        return "the bucket is in another region than the one that was named"
    if code := re.search("<Code>([^<]*)</Code>", text):
        message, status = (
            re.search("<Message>([^<]*)</Message>", text),
            re.search(r"status(?: code)?:? (\d{3})", text),
        )
        said = code[1] + (f": {html.unescape(message[1])}" if message and message[1] else "")
        return f"{status[1]} {said}" if status else said
    # Without address, time and number of tries: what is said again and again shall be the same.
    said = " ".join(text.rpartition(" - ")[2].split()).rstrip(":")[:300]
    said = said.removeprefix("Server returned non-2xx status code: ")
    why = re.search(r'message: "([^"]+)"', str(exc))  # what the system says, at the very end
    return said + (f" ({why[1]})" if why and why[1] not in said else "")
