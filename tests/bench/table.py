"""How results are shown: one table for a bench, and a line of JSON for each of its lines."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One comparison. `ratio` is held against `target`: at most that, or (`at_least`) at least that."""

    what: str
    ours: str
    peer: str = ""
    ratio: float | None = None
    target: float | None = None
    at_least: bool = False
    unit: str = ""
    """of ratio and target, when they are a figure and no ratio"""

    @property
    def verdict(self) -> str:
        """Nothing, `met` or `NOT MET`."""
        if self.ratio is None or self.target is None:
            return ""
        return (
            "met"
            if (self.ratio >= self.target if self.at_least else self.ratio <= self.target)
            else "NOT MET"
        )


def show(bench: str, title: str, lines: Sequence[Line], notes: Sequence[str] = ()) -> None:
    """Print the table, and keep its lines."""
    rows = [("", "mailkeep", "peer", "ratio", "target", "")]
    for line in lines:
        sign = "≥" if line.at_least else "≤"
        ratio = "" if line.ratio is None else f"{line.ratio:.3g}{line.unit}"
        target = "" if line.target is None else f"{sign} {line.target:g}{line.unit}"
        rows.append((line.what, line.ours, line.peer, ratio, target, line.verdict))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"\n{title}")
    for row in rows:
        first, *others = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  " + "  ".join([first, *others]).rstrip())
    for note in notes:
        print(f"  ({note})")
    print(end="", flush=True)
    for line in lines:
        record(bench, **asdict(line), verdict=line.verdict)


def record(bench: str, **facts: object) -> None:
    """Append to MAILKEEP_BENCH_OUT, if that is set."""
    if out := os.environ.get("MAILKEEP_BENCH_OUT"):
        with Path(out).open("a") as file:
            file.write(json.dumps({"bench": bench, "at": round(time.time(), 3), **facts}) + "\n")


def skipped(bench: str, why: str) -> None:
    """Say loudly that something was not measured."""
    print(f"\nNOT MEASURED ({bench}): {why}", flush=True)
    record(bench, skipped=why)


def conditions() -> str:
    """What the figures depend on."""
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of all lie; the largest for 100."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def spread(seconds: Sequence[float]) -> str:
    """p50, p99 and max in ms."""
    return " / ".join(f"{percentile(seconds, p) * 1e3:.2f}" for p in (50, 99, 100)) + " ms"
