"""`mailkeep restore-store`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sidecar.commands import options


def command(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="The replica: s3://bucket/prefix or file:///path.")
    ],
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Where the store is to be; empty or not there.")
    ],
    *,
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host", metavar="NAME", help="Only what this host shipped; may be given several times."
        ),
    ] = None,
    as_of: options.AsOfOption = None,
    threads: Annotated[
        int, typer.Option("--threads", metavar="N", min=1, max=64, help="Objects fetched at once.")
    ] = 8,
    no_check: Annotated[bool, typer.Option("--no-check", help="Leave out the check at the end.")] = False,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", metavar="FILE", exists=True, help="Public key that every round must be signed by."
        ),
    ] = None,
    endpoint: options.EndpointOption = None,
    credentials: options.CredentialsOption = None,
    json: options.JsonOption = False,
    config: options.ConfigOption = None,
    identity: options.IdentityOption = None,
) -> None:
    """Make a store again from a replica, on a bare machine.

    Fetches in parallel, verifies every piece, builds the index and ends with `check`. Interrupted, the same
    command goes on. Until it is whole there is no store at PATH. Where a [[replica]] has this URL, its
    endpoint and credentials are taken. As root: give PATH to the service's user first, or afterwards.

    \b
    Example: mailkeep restore-store s3://mail-backup/mx1 /var/lib/mailkeep
    Example: mailkeep restore-store file:///mnt/nas/mx1 ./then --as-of 'yesterday 14:00'
    Exit codes: 0 all is there; 1 something was missing or damaged, as told, and the rest is there;
    2 wrong usage or configuration; 21 it is sealed, and no identity opens it;
    50 to 52 the replica, as the message says.
    """
    import time

    from sidecar.bar import Bar
    from sidecar.identity import load_identities
    from sidecar.interpreter import spare_the_collector
    from sidecar.present import print_json
    from sidecar.replication import open_named
    from sidecar.select import moment_us
    from sidecar.units import format_size, format_time
    from store.check import Checker, CheckOptions
    from store.notes import VerifyKey
    from store.replicas.fetch import Fetching, FetchOptions
    from store.replicas.reader import Replica
    from store.store import Store

    times = [time.monotonic()]
    spare_the_collector()
    known = options.configured(config)
    identity = identity or (known.encryption.identity if known else None)
    identities = load_identities(identity) if identity else []
    remote = open_named(url, known, endpoint=endpoint, credentials=credentials)
    replica = Replica(remote, VerifyKey.parse(key.read_text()) if key else None)
    fetching = Fetching(
        replica, path,
        FetchOptions(
            hosts=tuple(host or ()), as_of_us=moment_us(as_of), threads=threads, identities=identities,
            check_ahead=not no_check,
        ),
    )  # fmt: skip
    with Bar("restore-store", fetching.total_bytes, quiet=json) as bar:
        fetched = fetching.run(bar.advance, lambda: times.append(time.monotonic()))
    faults = list(fetched.faults)
    with Store.open(path, identities=identities) as store:
        times.append(time.monotonic())
        faults += dict.fromkeys([*fetched.damage, *store.damage])
        if not no_check:  # what was checked while the rest came is not checked again
            found_all = Checker(store, CheckOptions(resume=True)).run()
            faults += [f"{found.kind}: {found.where}: {found.what}" for found in found_all]
        deliveries = sum(store.stats().counters.deliveries.values())
    times.append(time.monotonic())
    if json:
        print_json(
            {
                "hosts": fetched.hosts, "streams": fetched.streams, "packs": fetched.packs,
                "bytes": fetched.bytes, "kept_bytes": fetched.kept_bytes, "as_of_us": fetched.as_of_us,
                "deliveries": deliveries, "faults": faults,
                "seconds": {
                    name: round(end - began, 3)
                    for name, began, end in zip(("fetch", "index", "check"), times, times[1:], strict=False)
                },
            }
        )  # fmt: skip
    else:
        for fault in faults:
            print(f"mailkeep: {fault}", file=sys.stderr)
        print(
            f"{deliveries} deliveries of {', '.join(fetched.hosts)} as of {format_time(fetched.as_of_us)}: "
            f"{fetched.packs} packs, {format_size(fetched.bytes)}"
            + ("" if no_check else "; checked" if not faults else "")
        )
    raise typer.Exit(1 if faults else 0)
