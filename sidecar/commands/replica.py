"""`mailkeep replica`, with `prune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sidecar.commands import options

if TYPE_CHECKING:
    from store.replicas.remote import Remote


def command(
    context: typer.Context, *, json: options.JsonOption = False, config: options.ConfigOption = None
) -> None:
    """What the replicas of [[replica]] have: for each host its last round, and what is wrong with it.

    \b
    Example: mailkeep replica
    Exit codes: 0 all can be read; 1 something is wrong, as told; 2 wrong usage or configuration;
    50 to 52 a replica cannot be read, as the message says.
    """
    if context.invoked_subcommand is not None:
        return
    from sidecar.config import load_default
    from sidecar.present import print_json
    from sidecar.readable import escaped
    from sidecar.replication import open_configured
    from sidecar.units import format_size, format_time, iso_time
    from store.replicas.reader import Replica

    faults = 0
    for number, configured in enumerate(load_default(config).replica, 1):
        if not configured.url:
            continue
        remote = open_configured(configured)
        replica = Replica(remote)
        hosts = replica.hosts()
        if not hosts and not json:
            print(f"{number}  {configured.url}: nothing is there")
        for host in hosts:
            reading = replica.read(host)
            faults += len(reading.faults)
            contents = reading.contents
            if json:
                print_json(
                    {
                        "replica": number, "url": configured.url, "host": host, "round": contents.number,
                        "time": iso_time(contents.time_us), "bytes": contents.size,
                        "packs": sum(len(stream.packs) for stream in contents.streams.values()),
                        "faults": reading.faults,
                    }
                )  # fmt: skip
                continue
            print(
                f"{number}  {configured.url}  {escaped(host)}: round {contents.number} of "
                f"{format_time(contents.time_us)}, {format_size(contents.size)}"
            )
            for fault in reading.faults:
                print(f"   {escaped(fault)}")
    raise typer.Exit(1 if faults else 0)


def prune(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="The replica: s3://bucket/prefix or file:///path.")
    ],
    *,
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host", metavar="NAME", help="Only what this host shipped; may be given several times."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be removed.")] = False,
    endpoint: options.EndpointOption = None,
    credentials: options.CredentialsOption = None,
    json: options.JsonOption = False,
) -> None:
    """Remove from a replica what no reader needs any more: rounds before the last full one but one, and
    pieces that nothing names, once they are a day old. Run it where the right to delete is, not on the
    host that ships.

    \b
    Example: mailkeep replica prune s3://mail-backup/mx1 --credentials admin --dry-run
    Exit codes: 0 done; 2 wrong usage; 50 to 52 the replica, as the message says.
    """
    from sidecar.present import print_json
    from sidecar.readable import escaped
    from sidecar.replication import open_remote
    from store.replicas.prune import removable, remove
    from store.replicas.reader import Replica

    remote: Remote = open_remote(url, endpoint=endpoint, credentials=credentials)
    for name in host or Replica(remote).hosts():
        names = removable(remote, name)
        if dry_run and not json:
            print(*map(escaped, names), sep="\n", end="\n" if names else "")
        if not dry_run:
            remove(remote, names)
        if json:
            print_json({"host": name, "objects": len(names), "removed": not dry_run})
        else:
            print(f"{escaped(name)}: {len(names)} objects {'would be ' if dry_run else ''}removed")


SUBCOMMANDS = {"prune": prune}
