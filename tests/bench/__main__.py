"""`python -m tests.bench [NAME]...`: what is asked for, of the benches below, or `store`.

Without a name `mail` and `store`, as `make bench` runs them. `store` is size, ingest, sealed, read
and compaction.
Each bench is a module of that name with a `main`. With MAILKEEP_BENCH_OUT every result is also appended to
that file, a line of JSON each, as soon as it is known.
"""

from __future__ import annotations

import importlib
import sys

BENCHES = (
    "mail",
    "size",
    "ingest",
    "sealed",
    "read",
    "compaction",
    "scale",
    "proof",
    "workers",
    "audit",
    "find",
    "replay",
    "fleet",
    "recovery",
    "replication",
    "fleet-dedup",
)
GROUPS = {"store": ("size", "ingest", "sealed", "read", "compaction")}


def main(names: list[str]) -> int:
    """Run the benches of these names, in this order."""
    chosen: list[str] = []
    for name in names or ["mail", "store"]:
        chosen += GROUPS.get(name, (name,))
    if unknown := [name for name in chosen if name not in BENCHES]:
        print(f"no such bench: {', '.join(unknown)}\n\n{__doc__}", file=sys.stderr)
        return 2
    for name in chosen:
        importlib.import_module(f"tests.bench.{name.replace('-', '_')}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
