"""`python -m tests.bench scale` (`make bench-scale`): what a delivery costs in a store of ten million.

    this process --starts--> the writer (scale_writer.py): stream -> store, figures at checkpoints
                 --SIGKILL-> the writer
                 --starts--> scale_open.py: how long a fresh process needs to open what was left

The mail is made up (stream.py), its sizes a 25th of real ones so that ten million deliveries fit on a disk;
headers have about their real size, so dedup and the index work as hard as for real mail. It spans ten
simulated years. The generator runs in the writer's process; its CPU time is measured apart and taken off,
wall times include it. Nothing is thrown out of the page cache.

    MAILKEEP_SCALE_DELIVERIES   how many (10 million)
    MAILKEEP_SCALE_DIR          where the store is made, and removed at the end (the temporary directory)
    MAILKEEP_BENCH_OUT          every figure as a line of JSON, as soon as it is known
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.table import Line, conditions, record, show, skipped

DELIVERIES = int(os.environ.get("MAILKEEP_SCALE_DELIVERIES", "10000000"))
BYTES_EACH = 4500
"""room asked for beforehand, for each delivery: packs and index"""
RESERVE_BYTES = 3 << 30
COST_TARGET = 1.3
OPEN_TARGET_S = 2.0
GO_ON_REPORTS = 3
"""reports of a writer that goes on until it is killed"""

COLUMNS = (
    ("deliveries", "deliveries", "{:,}"),
    ("CPU µs", "cpu_us", "{:.0f}"),
    ("wall µs", "wall_us", "{:.0f}"),
    ("maker µs", "maker_us", "{:.0f}"),
    ("RSS MB", "rss_mb", "{:.0f}"),
    ("anon", "anon_mb", "{:.0f}"),
    ("file", "file_mb", "{:.0f}"),
    ("index B", "index_bytes", "{:.0f}"),
    ("packs B", "pack_bytes", "{:.0f}"),
    ("mail B", "message_bytes", "{:.0f}"),
    ("find p50 ms", "find_p50_ms", "{:.2f}"),
    ("p99", "find_p99_ms", "{:.2f}"),
    ("read p50 ms", "read_p50_ms", "{:.2f}"),
    ("p99", "read_p99_ms", "{:.2f}"),
)


@contextlib.contextmanager
def _writer(path: Path, deliveries: int, seed: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.bench.scale_writer", str(path), str(deliveries), str(seed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _reports(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """What the writer says, until it ends or is killed."""
    assert process.stdout
    for line in process.stdout:
        yield json.loads(line)
    if process.wait() > 0:
        raise RuntimeError(f"the writer ended with {process.returncode}")


def _row(cells: list[str]) -> None:
    print(
        "  "
        + "  ".join(cell.rjust(max(len(head), 10)) for cell, (head, *_) in zip(cells, COLUMNS, strict=True))
    )
    sys.stdout.flush()


def _run(path: Path, deliveries: int, seed: int) -> tuple[list[dict[str, Any]], str]:
    """Write, go on, kill. (the checkpoints, the last delivery that was acknowledged)."""
    checkpoints: list[dict[str, Any]] = []
    acknowledged, going_on = "", 0
    with _writer(path, deliveries, seed) as process:
        for report in _reports(process):
            match report.pop("event"):
                case "checkpoint":
                    record("scale", **report)
                    checkpoints.append(report)
                    _row([form.format(report[key]) for _, key, form in COLUMNS])
                case "stopped":
                    skipped("scale", report["why"])
                    return checkpoints, ""
                case "started":
                    record("scale", **report)
                    print(f"  (the maker of mail alone: {report['rss_mb']:.0f} MB resident)", flush=True)
                case "going on":
                    acknowledged, going_on = report["last"], going_on + 1
                    if going_on == GO_ON_REPORTS:
                        process.kill()
                        process.wait()
    return checkpoints, acknowledged


def _open(path: Path, mode: str, acknowledged: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.bench.scale_open", str(path), mode, acknowledged]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
    if done.returncode:
        raise RuntimeError(f"the store cannot be opened: {done.stderr[-2000:]}")
    report: dict[str, Any] = json.loads(done.stdout)
    record("scale", opened=mode, **report)
    return report


def main() -> None:
    """Print the tables."""
    parent = Path(os.environ.get("MAILKEEP_SCALE_DIR", tempfile.gettempdir()))
    needed = DELIVERIES * BYTES_EACH + RESERVE_BYTES
    free = shutil.disk_usage(parent).free
    if free < needed:
        skipped(
            "scale",
            f"{parent} has {free / 1e9:.1f} GB free, {DELIVERIES:,} deliveries need {needed / 1e9:.1f}",
        )
        return
    with tempfile.TemporaryDirectory(prefix="mailkeep-scale-", dir=parent) as temporary:
        path = Path(temporary) / "store"
        print(
            f"\nScale: {DELIVERIES:,} deliveries of made-up mail, bodies a 25th of real sizes\n"
            f"  {conditions()}\n"
            f"  For each delivery in the last window before the checkpoint: CPU without the maker of the\n"
            f"  mail, wall with it. For each so far: bytes of index, packs and mail. find: the first 50 of\n"
            f"  a random mailbox in a random month; read: a random message, by its id"
        )
        _row([head for head, *_ in COLUMNS])
        checkpoints, acknowledged = _run(path, DELIVERIES, 1)
        lines = []
        if len(checkpoints) > 1:
            first, last = checkpoints[0], checkpoints[-1]
            lines.append(
                Line(
                    what=f"CPU a delivery at {last['deliveries']:,} (peer: at {first['deliveries']:,})",
                    ours=f"{last['cpu_us']:.0f} µs",
                    peer=f"{first['cpu_us']:.0f} µs",
                    ratio=last["cpu_us"] / first["cpu_us"],
                    target=COST_TARGET,
                )
            )
        if acknowledged:
            lines.append(_opening(path, "write", acknowledged))
            _, acknowledged = _run(path, 0, 2)
            lines.append(_opening(path, "read", acknowledged))
        show("scale", "Scale, at the end", lines)


def _opening(path: Path, mode: str, acknowledged: str) -> Line:
    report = _open(path, mode, acknowledged)
    there = "there" if report["there"] else "LOST"
    took = f"{report['open_s']:.2f} s"
    if mode == "write":
        took += f" + start_writing {report['start_s']:.2f} s"
    return Line(
        what=f"open to {mode} after SIGKILL (last acknowledged message {there})",
        ours=took,
        ratio=report["open_s"] + report["start_s"],
        target=OPEN_TARGET_S,
        unit=" s",
    )
