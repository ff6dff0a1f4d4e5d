"""`mailkeep check --replica` and `--repair-from`: this store against a copy of it elsewhere."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from sidecar.bar import Bar
from sidecar.commands import options
from sidecar.present import print_json
from sidecar.readable import escaped
from sidecar.replication import open_configured, open_remote
from sidecar.units import format_size
from store.about import About
from store.findings import Finding
from store.replicas.compare import Compared, compare, repair
from store.replicas.reader import Replica
from store.replicas.remote import Remote

_HINTS = {
    "local": "Mend it by `mailkeep check --repair-from URL`; then restart `serve`, and `mailkeep rebuild`.",
    "replica": "What is here is whole as far as it was compared. Ship to another address, or remove what is "
    "damaged there and restart `serve`.",
}


def check_replica(
    url: str, config: Path | None, store: Path | None, *, endpoint: str | None, credentials: Path | None,
    read_data: bool, mend: bool, json: bool,
) -> int:  # fmt: skip
    """The exit code. Raises `ConfigError`, `StoreError`."""
    path = store or options.configured_path(config)
    replica = Replica(_remote(url, config, endpoint, credentials))
    compared = Compared()
    findings = []
    with Bar("compared, MB", quiet=json) as bar:
        done = 0

        def step(size: int) -> None:
            nonlocal done
            done += size
            bar.advance(done // 1_000_000)
            done %= 1_000_000

        store_id = About.read(path).id
        for finding in compare(replica, path, store_id, read_data=read_data, compared=compared, step=step):
            findings.append(finding)
            if json:
                print_json({**asdict(finding), "hint": _HINTS.get(finding.kind, "")})
            else:
                print(escaped(f"{finding.kind}: {finding.where}: {finding.what}"))
    mended = _repair(replica, path, findings) if mend else 0
    if json:
        print_json({"kind": "summary", "findings": len(findings), "mended": mended, **asdict(compared)})
    else:
        for kind in sorted({finding.kind for finding in findings}):
            print(_HINTS.get(kind, ""))
        print(
            f"{compared.hosts} hosts, {compared.extents} stretches, {format_size(compared.bytes)} compared: "
            + (f"{len(findings)} findings" if findings else "nothing wrong")
            + (f", {mended} packs made again" if mend else "")
            + (f"; {format_size(compared.behind_bytes)} wait to be shipped" if compared.behind_bytes else "")
        )
    return 1 if findings else 0


def _repair(replica: Replica, path: Path, findings: list[Finding]) -> int:
    return repair(replica, path, findings, lambda text: print(escaped(f"mailkeep: {text}"), file=sys.stderr))


def _remote(url: str, config: Path | None, endpoint: str | None, credentials: Path | None) -> Remote:
    """As [[replica]] has it, if it does."""
    known = options.configured(config) if endpoint is None and credentials is None else None
    for replica in known.replica if known is not None else ():
        if replica.url == url:
            return open_configured(replica)
    return open_remote(url, endpoint=endpoint, credentials=credentials)
