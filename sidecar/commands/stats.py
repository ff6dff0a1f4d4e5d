"""`mailkeep stats`."""

from __future__ import annotations

from typing import Any

from sidecar.commands import options
from sidecar.present import print_json
from sidecar.select import Selection, moment_us, select
from sidecar.units import format_size, format_time, iso_time
from store.store import Stats, Store


def command(
    *,
    as_of: options.AsOfOption = None,
    json: options.JsonOption = False,
    config: options.ConfigOption = None,
    store: options.StoreOption = None,
    identity: options.IdentityOption = None,
) -> None:
    """Show how much mail the store holds and what it takes on disk.

    With --as-of: how many deliveries there were then and what they came to as captured. What the disk
    held then is not known. Each of them is looked at, which takes its time in a large store.

    \b
    Example: mailkeep stats --json
    Exit codes: 0 shown; 2 wrong usage or configuration;
    10 and above: the store cannot be read, as the message says.
    """
    with options.open_store(config, store, identity, needs=options.Need.NOTHING) as opened:
        if as_of is not None:
            _print_as_of(opened, as_of, json=json)
            return
        stats = opened.stats()
    if json:
        print_json(_stats_object(stats))
        return
    counters = stats.counters
    legs = ", ".join(f"{number} {leg}" for leg, number in sorted(counters.deliveries.items()))
    ratio = _ratio(stats)
    for name, value in {
        "Deliveries": f"{sum(counters.deliveries.values())}" + (f" ({legs})" if legs else ""),
        "Messages": f"{counters.contents} different, {format_size(counters.message_bytes)} as captured",
        "Chunks": f"{counters.chunks} different, {format_size(counters.chunk_bytes)}",
        "On disk": f"{format_size(stats.pack_bytes)} packs, {format_size(stats.index_bytes)} index",
        "Ratio": f"{ratio:.2f} bytes of mail for a byte on disk" if ratio is not None else "no mail yet",
        "Streams": ", ".join(stats.streams) or "none",
        "Last commit": format_time(stats.last_commit_us) if stats.last_commit_us else "never",
        "Replays": str(counters.replays),
        "Removed": f"{counters.expired} expired, {counters.erased} erased",
        "Uncaptured": str(counters.uncaptured),
    }.items():
        print(f"{name:<12} {value}")


def _print_as_of(store: Store, as_of: str, *, json: bool) -> None:
    legs: dict[str, int] = {}
    message_bytes = 0
    for stored in select(store, Selection(as_of=as_of)):
        leg = str(stored.delivery.leg)
        legs[leg] = legs.get(leg, 0) + 1
        message_bytes += stored.delivery.size
    if json:
        as_of = iso_time(moment_us(as_of))
        print_json({"as_of": as_of, "deliveries": legs, "message_bytes": message_bytes})
        return
    told = ", ".join(f"{number} {leg}" for leg, number in sorted(legs.items()))
    print(f"As of        {format_time(moment_us(as_of))}")
    print(f"Deliveries   {sum(legs.values())}" + (f" ({told})" if told else ""))
    print(f"Messages     {format_size(message_bytes)} as captured")


def _stats_object(stats: Stats) -> dict[str, Any]:
    counters = stats.counters
    return {
        "deliveries": dict(counters.deliveries),
        "contents": counters.contents,
        "message_bytes": counters.message_bytes,
        "chunks": counters.chunks,
        "chunk_bytes": counters.chunk_bytes,
        "pack_bytes": stats.pack_bytes,
        "index_bytes": stats.index_bytes,
        "ratio": _ratio(stats),
        "streams": list(stats.streams),
        "last_commit": iso_time(stats.last_commit_us) if stats.last_commit_us else None,
        "uncaptured": counters.uncaptured,
        "replays": counters.replays,
        "expired": counters.expired,
        "erased": counters.erased,
    }


def _ratio(stats: Stats) -> float | None:
    """Bytes of mail for each byte on disk; None before there is mail."""
    on_disk = stats.pack_bytes + stats.index_bytes
    return stats.counters.message_bytes / on_disk if on_disk and stats.counters.message_bytes else None
