"""`mailkeep replica`, with `prune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sidecar.commands import options

if TYPE_CHECKING:
    from store.replicas.remote import Remote


def command(
    context: typer.Context,
    *,
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="URL", help="This replica; default: those of [[replica]]."),
    ] = None,
    json: options.JsonOption = False,
    config: options.ConfigOption = None,
) -> None:
    """What replicas have: for each host its last round, how old it is, and what is wrong with it. Where
    nothing is captured nothing is shipped, so an old round alone is no fault.

    \b
    Example: mailkeep replica
    Example: mailkeep replica --url s3://mail-backup/all
    Exit codes: 0 all can be read; 1 something is wrong, as told; 2 wrong usage or configuration;
    50 to 52 a replica cannot be read, or nothing is at --url, as the message says.
    """
    if context.invoked_subcommand is not None:
        return
    from sidecar.config import DEFAULT_PATH, ConfigError
    from sidecar.present import print_json
    from sidecar.readable import escaped
    from sidecar.replication import open_named
    from sidecar.units import exact_duration, format_size, format_time, iso_time
    from store.ids import now_us
    from store.replicas.errors import AwayError
    from store.replicas.reader import NoReplicaError, Replica

    known = options.configured(config)
    if known is None and url is None:
        raise ConfigError(
            f"no replica is named: there is no --url, no --config, MAILKEEP_CONFIG is not set, "
            f"and {DEFAULT_PATH} does not exist",
            "Name the replica by --url URL, or the configuration by --config FILE.",
        )
    urls = [url] if url else [replica.url for replica in known.replica] if known else []
    faults = 0
    for number, place in enumerate(urls, 1):
        if not place:
            continue
        try:
            replica = Replica(open_named(place, known))
            hosts = replica.hosts()
        except AwayError:
            if url:
                raise
            hosts = []  # the service makes the directory when it begins to ship
        if not hosts and url:
            raise NoReplicaError(f"{url} holds no replica")
        if not hosts and not json:
            print(f"{number}  {place}: nothing is there")
        for host in hosts:
            reading = replica.read(host)
            faults += len(reading.faults)
            contents = reading.contents
            if json:
                print_json(
                    {
                        "replica": number, "url": place, "host": host, "round": contents.number,
                        "time": iso_time(contents.time_us), "bytes": contents.size,
                        "packs": sum(len(stream.packs) for stream in contents.streams.values()),
                        "index": contents.index is not None and not contents.regrouped,
                        "faults": reading.faults,
                    }
                )  # fmt: skip
                continue
            age = exact_duration((now_us() - contents.time_us) // 1_000_000)
            print(
                f"{number}  {place}  {escaped(host)}: round {contents.number} of "
                f"{format_time(contents.time_us)}, {age} ago, {format_size(contents.size)}"
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
    from store.replicas.reader import NoReplicaError, Replica

    remote: Remote = open_remote(url, endpoint=endpoint, credentials=credentials)
    hosts = Replica(remote).hosts()
    if not hosts:
        raise NoReplicaError(f"{url} holds no replica")
    for name in host or ():
        if name not in hosts:
            raise NoReplicaError(f"{url} has nothing of {name}, but of {', '.join(hosts)}")
    for name in host or hosts:
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
