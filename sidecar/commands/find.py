"""`mailkeep find`."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from sidecar.commands import options
from sidecar.commands.shortfall import Shortfall
from sidecar.present import print_newest
from sidecar.select import Damaged, Selection, exact_filter, matching, select
from store.deliveries import StoredDelivery
from store.filters import Filter
from store.fleet import Archive
from store.ids import FOREVER_US, DeliveryId, order
from store.store import Store

if TYPE_CHECKING:
    from sidecar.search.query import Term

_CATCH_UP_S = 2.0
"""how long an answer may wait for what is not in the index yet"""
_NICE = 10


class _Command(TyperCommand):
    """`-word` is a word that must not be there, and no option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # A control character, which a query takes for a space, keeps the parser from reading it as options.
        read = [f"\x1f{one}" if one[:1] == "-" and one[1:2] != "-" and len(one) > 2 else one for one in args]
        try:
            return super().parse_args(ctx, read)
        except Exception as exc:
            if hasattr(exc, "possibilities"):  # no such option; typer has its own copy of the class
                exc.message += ". Words that begin with - and look like an option come after --"  # type: ignore[attr-defined]  # such an error has one
            raise


COMMAND_CLASS = _Command


def command(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="WORDS", help="What must be there.", show_default=False),
    ] = None,
    *,
    to: options.ToOption = None,
    sender: options.FromOption = None,
    since: options.SinceOption = None,
    until: options.UntilOption = None,
    queue_id: options.QueueIdOption = None,
    message_id: options.MessageIdOption = None,
    subject: options.SubjectOption = None,
    leg: options.LegOption = None,
    status: options.StatusOption = None,
    as_of: options.AsOfOption = None,
    limit: options.LimitOption = 50,
    build: Annotated[
        bool, typer.Option("--build", help="First wait until all mail is in the search index.")
    ] = False,
    json: options.JsonOption = False,
    config: options.ConfigOption = None,
    store: options.ArchiveOption = None,
    identity: options.IdentityOption = None,
) -> None:
    """Find mail by its words, newest first: in subjects, addresses, names of attachments and texts.

    All WORDS must be there; in any case and accent. word* is whatever begins so, '"two words"' a phrase,
    -word must not be there, subject:word (address:, file:, body:) is in one place alone. All filters must
    hold, too.

    \b
    Example: mailkeep find invoice 'müll*' -draft --to anna@example.org --since 90d
    Exit codes: 0 found, maybe nothing; 1 the search index cannot be used, or some mail is
    damaged or missing, as told; 2 wrong usage or configuration; 130 interrupted; 10 and
    above: the store, as the message says.
    """
    from sidecar.readable import escaped
    from sidecar.search.query import QueryError, parse, remarks

    terms: tuple[Term, ...] = ()
    if words or not build:
        typed = " ".join(words or ()).replace("\x1f", "")
        try:
            terms = parse(typed)
        except QueryError as exc:
            raise typer.BadParameter(str(exc)) from exc
        for remark in remarks(typed):
            print(f"mailkeep: {escaped(remark)}", file=sys.stderr)
    selection = Selection(
        to=to, sender=sender, since=since, until=until, queue_id=queue_id, message_id=message_id,
        subject=subject, leg=leg, status=status, as_of=as_of, limit=limit + 1 if limit else 0,
    )  # fmt: skip
    with options.open_archive(config, store, identity) as opened:
        shortfall = Shortfall(opened)
        if why := _why_no_index(opened, config, build=build):
            if build:
                from sidecar.search.files import NoSearchError

                raise NoSearchError(f"there is no search index: {why}")
            print(f"mailkeep: {why}: only subjects and addresses are searched", file=sys.stderr)
            found = _scanned(opened, terms, selection, shortfall.damaged)
        else:
            reserve_bytes = options.store_settings(config).reserve_bytes
            for member in opened.members:
                _catch_up(member, reserve_bytes, build=build, quiet=json)
            if not terms:
                shortfall.exit()
                return
            asked = exact_filter(opened, selection)
            hits = (_found(member, terms, asked) for member in opened.members)
            ids = _once(heapq.merge(*hits, key=order, reverse=True))
            found = matching(opened, selection, ids, damaged=shortfall.damaged)
        print_newest(found, limit, json=json)
    shortfall.exit()


def _why_no_index(opened: Archive, config: Path | None, *, build: bool) -> str:
    if any(member.keyring.seals for member in opened.members):
        from sidecar.search.files import remove

        for member in opened.members:
            remove(member.path)  # one of the time before
        return "the store is sealed, and no words of it may lie here in the clear"
    if opened.is_remote:
        from sidecar.search.files import DIRECTORY

        if build or all((member.path / DIRECTORY).exists() for member in opened.members):
            return ""
        return (
            "nobody has read the words of the replica yet, as `mailkeep find --build --store URL` does, once"
        )
    known = options.configured(config)
    return "" if known is None or known.search.enabled else "[search] enabled is false"


def _scanned(
    store: Archive, terms: tuple[Term, ...], selection: Selection, damaged: Damaged
) -> Iterator[StoredDelivery]:
    from dataclasses import replace

    from sidecar.search.scan import matches

    found = select(store, replace(selection, limit=0), damaged=damaged)
    hits = (stored for stored in found if matches(terms, stored.delivery))
    return islice(hits, selection.limit or None)


def _catch_up(store: Store, reserve_bytes: int, *, build: bool, quiet: bool) -> None:
    """Take in what is new: all of it, or as much as there is time for. Says what is missing."""
    from shutil import disk_usage

    from sidecar.bar import Bar
    from sidecar.search.files import SearchError
    from sidecar.search.follow import Follower, until
    from sidecar.search.index import IndexWriter

    if not build:
        try:
            full = disk_usage(store.path).free < reserve_bytes
            index = None if full else IndexWriter.take(store.path, store.id)
            if index is not None:
                with index:
                    Follower(store, index, stop=until(_CATCH_UP_S)).run(tidy=False)
            why = "free space is below the reserve" if full else ""
        except (OSError, SearchError) as exc:  # a full disk, a medium or a person that may only read
            why = str(exc)
        if why:
            print(f"mailkeep: the search index is as it was: {why}", file=sys.stderr)
        _tell_missing(store)
        return
    index = IndexWriter.take(store.path, store.id)
    if index is None:
        raise SearchError("another process writes to the search index: `mailkeep jobs` shows how far it is")
    from sidecar.scheduler.niceness import stand_back

    stand_back(_NICE, "idle")  # it has time, and the mail has not
    with index, Bar("search index", quiet=quiet) as bar:
        known = index.counts()[0]

        def show(done: int, _waiting: int) -> None:
            nonlocal known
            bar.advance(max(done - known, 0))
            known = done

        try:
            reached = Follower(store, index, progress=show).run()
        except KeyboardInterrupt:
            print("mailkeep: interrupted; what is done stays, the same command goes on", file=sys.stderr)
            raise typer.Exit(options.INTERRUPTED) from None
    print(f"mailkeep: {_messages(reached.messages)} can be found by their words", file=sys.stderr)


def _messages(number: int) -> str:
    return "1 message" if number == 1 else f"{number} messages"


def _tell_missing(store: Store) -> None:
    from sidecar.search.reader import IndexReader

    try:
        with IndexReader(store.path, store.id) as reader:
            messages, waiting = reader.counts()
            behind = reader.behind(store)
    except FileNotFoundError:
        messages, waiting, behind = 0, 0, True
    if waiting or behind:
        left = f"{waiting} wait to be read" if waiting else "more are to come"
        print(
            f"mailkeep: {_messages(messages)} can be found by their words as yet, and {left}, so there may "
            "be more.\n`serve` goes on with it every few minutes; `mailkeep find --build` does so now.",
            file=sys.stderr,
        )


def _found(store: Store, terms: tuple[Term, ...], asked: Filter) -> Iterator[DeliveryId]:
    """What a store's index has, newest first. One that turns out to be damaged is begun anew, once."""
    from sidecar.search.files import SearchDamagedError
    from sidecar.search.follow import Follower, until
    from sidecar.search.index import IndexWriter
    from sidecar.search.query import expression
    from sidecar.search.reader import IndexReader

    interval = asked.since_us or 0, FOREVER_US if asked.until_us is None else asked.until_us
    seen: set[DeliveryId] = set()
    for is_last in (False, True):
        try:
            with IndexReader(store.path, store.id) as reader:
                for id_ in reader.search(expression(terms), *interval):
                    if id_ not in seen:
                        seen.add(id_)
                        yield id_
            return
        except FileNotFoundError:
            return
        except SearchDamagedError as exc:
            index = None if is_last else IndexWriter.take(store.path, store.id)
            if index is None:
                raise
            print(f"mailkeep: {exc}; it is made anew", file=sys.stderr)
            with index:
                index.start_over()
                Follower(store, index, stop=until(_CATCH_UP_S)).run(tidy=False)
            _tell_missing(store)


def _once(ids: Iterator[DeliveryId]) -> Iterator[DeliveryId]:
    """Each id once, where the same follow on each other."""
    return (id_ for id_, _ in groupby(ids))
