"""A private Ceph with a RADOS gateway, a real S3 service, on loopback: one monitor, and one store in memory.

Debian's packages ceph-mon, ceph-osd, ceph-common and radosgw; `make ceph` installs them.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

from sidecar.demo.ports import free_port
from tests.support.s3_engine import S3Engine
from tests.support.s3_request import KEY, SECRET, make_bucket

_PROGRAMS = ("ceph-mon", "ceph-osd", "monmaptool", "ceph-authtool", "ceph", "radosgw", "radosgw-admin")
_START_S = 60.0


def missing_programs() -> list[str]:
    """What of it is not here."""
    return [name for name in _PROGRAMS if not shutil.which(name)]


class Ceph(S3Engine):
    """`directory` should have a short path: sockets are in it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, free_port())
        self._monitor = free_port()
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start and wait until a bucket `mail` is there."""
        fsid = str(uuid.uuid4())
        self._configure(fsid)
        monitor = f"[v2:127.0.0.1:{self._monitor}]"
        self._command("monmaptool", "--create", "--fsid", fsid, "--addv", "a", monitor, "monmap")
        for name in ("mon.", "client.admin", "osd.0", "client.rgw"):
            new = [] if (self.directory / "keyring").exists() else ["--create-keyring"]
            caps = [word for what in ("mon", "osd") for word in ("--cap", what, "allow *")]
            self._command("ceph-authtool", "keyring", *new, "--gen-key", "-n", name, *caps)
        self._command("ceph-mon", "-i", "a", "--mkfs", "--monmap", "monmap", "--keyring", "keyring")
        self._run("ceph-mon", "-i", "a")
        osd = str(uuid.uuid4())
        self._command("ceph", "osd", "new", osd, "0")
        self._command("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._run("ceph-osd", "-i", "0")
        self._run("radosgw", "-n", "client.rgw")
        self._wait()
        self.admin(
            "user", "create", "--uid=t", "--display-name=t", f"--access-key={KEY}", f"--secret={SECRET}"
        )
        make_bucket(self.endpoint, "mail")

    def admin(self, *arguments: str) -> str:
        """radosgw-admin."""
        return self._command("radosgw-admin", *arguments)

    def quota(self, bucket: str, size_bytes: int | None) -> None:
        """So much may be in a bucket; None for any amount."""
        name = f"--bucket={bucket}"
        if size_bytes is None:
            self.admin("quota", "disable", "--quota-scope=bucket", name)
            return
        self.admin("quota", "set", "--quota-scope=bucket", name, f"--max-size={size_bytes}")
        self.admin("quota", "enable", "--quota-scope=bucket", name)

    def stop(self) -> None:
        """End all of it. What it still wants to write is nobody's."""
        for process in reversed(self._processes):
            process.send_signal(signal.SIGKILL)
            process.wait()
        self._processes = []

    def _configure(self, fsid: str) -> None:
        here = self.directory
        (here / "ceph.conf").write_text(
            f"""[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{self._monitor}
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
keyring = {here}/keyring
run_dir = {here}
admin_socket = {here}/$name.sock
log_file = {here}/$name.log
crash_dir = {here}
mon_data = {here}/mon
osd_data = {here}/osd
osd_objectstore = memstore
memstore_device_bytes = 1073741824
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
rgw_frontends = beast endpoint=127.0.0.1:{self.port}
rgw_data = {here}
rgw_dns_name = 127.0.0.1
rgw_bucket_quota_ttl = 1
rgw_run_sync_thread = false
rgw_enable_usage_log = false
"""
        )
        for name in ("mon", "osd"):
            (here / name).mkdir()

    def _arguments(self, program: str, *arguments: str) -> list[str]:
        return [program, *arguments, "-c", str(self.directory / "ceph.conf")]

    def _command(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            self._arguments(program, *arguments), cwd=self.directory, capture_output=True, text=True,
            timeout=_START_S, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program} {' '.join(arguments)}: {done.stderr[-2000:]}")
        return done.stdout

    def _run(self, program: str, *arguments: str) -> None:
        with (self.directory / "out").open("ab") as out:
            self._processes.append(
                subprocess.Popen(
                    self._arguments(program, "-f", *arguments), stdout=out, stderr=out, cwd=self.directory
                )
            )

    def _wait(self) -> None:
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(self.endpoint, timeout=2).close()
                return
            for process in self._processes:
                if process.poll() is not None:
                    break
            time.sleep(0.1)
        raise RuntimeError((self.directory / "out").read_text(errors="replace")[-3000:])
