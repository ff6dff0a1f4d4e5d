"""What every private S3 service has: where it listens, who may come in, and how one ships to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from store.replicas.remote import RemoteOptions
from tests.support.s3_request import KEY, SECRET


class S3Engine(ABC):
    """A context manager around a service on loopback, whose files are all in `directory`."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port

    @abstractmethod
    def start(self) -> None:
        """Start and wait until a bucket `mail` is there."""

    @abstractmethod
    def stop(self) -> None:
        """End all of it, however far it has come."""

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def credentials(self) -> Path:
        """A file with them."""
        return self.directory / "credentials"

    def options(self, endpoint: str = "", **how: Any) -> RemoteOptions:
        """How to reach it, there or through a proxy at `endpoint`."""
        return RemoteOptions(endpoint=endpoint or self.endpoint, credentials=self.credentials, **how)

    def replica(self, url: str, endpoint: str = "") -> dict[str, dict[str, str]]:
        """The section of a configuration that has a service ship to it, ten times a second."""
        return {
            "[replica]": {
                "url": url,
                "interval": "100ms",
                "endpoint": endpoint or self.endpoint,
                "credentials": str(self.credentials),
            }
        }

    def __enter__(self) -> Self:
        self.credentials.write_text(f"access_key_id = {KEY}\nsecret_access_key = {SECRET}\n")
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
