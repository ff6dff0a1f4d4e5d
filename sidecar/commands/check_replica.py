"""`mailkeep check --replica`, `--repair-from`, `--repair-to`: this store against a copy of it elsewhere."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from sidecar.bar import Bar
from sidecar.commands import options
from sidecar.present import print_json
from sidecar.readable import escaped
from sidecar.replication import open_named
from sidecar.units import format_size
from store.about import About
from store.replicas.asked import Wrong
from store.replicas.compare import Compared, compare, repair
from store.replicas.mend import Mended, mend
from store.replicas.reader import Replica
from store.sample import Sample

_HINTS = {
    "local": "Mend it by `mailkeep check --repair-from URL`; then restart `serve`, and `mailkeep rebuild`.",
    "replica": "Mend it by `mailkeep check --repair-to URL`: out of packs that are right here.",
}


def check_replica(
    url: str, config: Path | None, store: Path | None, *, endpoint: str | None, credentials: Path | None,
    read_data: Sample | None, mend_here: bool, mend_there: bool, json: bool,
) -> int:  # fmt: skip
    """The exit code. Raises `ConfigError`, `StoreError`."""
    path = store or options.configured_path(config)
    remote = open_named(url, options.configured(config), endpoint=endpoint, credentials=credentials)
    replica = Replica(remote)
    compared = Compared()
    findings = []
    wrongs: list[Wrong] = []
    with Bar("compared, MB", quiet=json) as bar:
        done = 0

        def step(size: int) -> None:
            nonlocal done
            done += size
            bar.advance(done // 1_000_000)
            done %= 1_000_000

        for finding in compare(
            replica, path, About.read(path).id, read_data=read_data, compared=compared, step=step,
            wrongs=wrongs,
        ):  # fmt: skip
            findings.append(finding)
            if json:
                print_json({**asdict(finding), "hint": _HINTS.get(finding.kind, "")})
            else:
                print(escaped(f"{finding.kind}: {finding.where}: {finding.what}"))
    # In this order: what comes from there is nothing that it lacks.
    there = mend(remote, path, wrongs) if mend_there else Mended()
    mended = repair(replica, path, findings, _tell) if mend_here else 0
    for text in there.left:
        _tell(f"not mended: {text}")
    if json:
        summary = {"kind": "summary", "findings": len(findings), "mended": mended, **asdict(compared)}
        print_json({**summary, "created": there.created, "asked": there.asked, "left": len(there.left)})
        return 1 if findings else 0
    for kind in sorted({finding.kind for finding in findings}):
        if not (mend_here if kind == "local" else mend_there):
            print(_HINTS.get(kind, ""))
    print(
        f"{compared.hosts} hosts, {compared.extents} stretches, {format_size(compared.bytes)} compared: "
        + (f"{len(findings)} findings" if findings else "nothing wrong")
        + (f", {mended} packs made again" if mend_here else "")
        + (f"; {format_size(compared.behind_bytes)} wait to be shipped" if compared.behind_bytes else "")
        + (f"; {compared.others} with other stores are there, too" if compared.others else "")
    )
    if mended:
        print("Restart `serve`, and run `mailkeep rebuild`.")
    if mend_there:
        print(
            f"there: {there.created} created again, {there.asked} left to `serve`, which mends them with its "
            f"next round, {len(there.left)} cannot be mended from here"
        )
    return 1 if findings else 0


def _tell(text: str) -> None:
    print(escaped(f"mailkeep: {text}"), file=sys.stderr)
