"""Compaction for the benches, where the store at hand has it."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
from typing import Any

from store.store import Store
from tests.support.service import COMMAND

MISSING = "this version of the store has no compaction (store.compact); figures after it are left out"


def available() -> bool:
    """Whether a store can be compacted."""
    return importlib.util.find_spec("store.compact") is not None


def compactor(store: Store, threads: int = 2) -> Any:
    """A `Compactor` for all closed packs; `run()` returns its report."""
    module = importlib.import_module("store.compact")
    return module.Compactor(store, module.CompactOptions(threads=threads))


def compact(store: Store) -> Any:
    """Close the open pack and compact everything. Returns the report."""
    store.settle_index(60)
    store.writer.roll()
    store.settle_index(60)
    return compactor(store).run()


def told(report: Any) -> str:
    """The report in words."""
    return (
        f"compaction: {report.packs_before} packs of {report.bytes_before / 1e6:.1f} MB -> "
        f"{report.packs_after} of {report.bytes_after / 1e6:.1f} MB in {report.seconds:.1f} s"
    )


def has_command() -> bool:
    """Whether there is a `mailkeep compact`."""
    asked = subprocess.run([*COMMAND, "compact", "--help"], capture_output=True, timeout=60, check=False)
    return asked.returncode == 0
