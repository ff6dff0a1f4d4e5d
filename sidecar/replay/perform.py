"""From a request to its end: the road, the journal, the looks into mailboxes, and Ctrl-C in good order."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.interpreter import loop_factory, spare_the_collector, take_turns
from sidecar.replay.journal import Journal
from sidecar.replay.lock import BeingDoneError, only_one
from sidecar.replay.road import Road
from sidecar.replay.run import LOOK_BACK_US, Ended, Run, RunOptions
from sidecar.replay.targets import Item, Outcome, Result, Target
from sidecar.units import Address
from store.fleet import Archive
from store.ids import FOREVER_US, now_us

if TYPE_CHECKING:
    from sidecar.replay.presence import Presence
    from sidecar.sections import ImapConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """How to put back. `address`: through this LMTP server; None: through IMAP, as `imap` says. With `imap`
    mailboxes are looked into, too. `sender` None: as captured; b"": the null sender."""

    address: Address | None
    imap: ImapConfig | None = None
    sender: bytes | None = b""
    folder: str = ""
    flags: tuple[str, ...] | None = None
    delimiter: str = "+"
    lanes: int = 4
    rate: float = 0.0
    patience_s: float = 60.0
    as_of_us: int = FOREVER_US
    send_doubtful: bool = False

    @property
    def road_name(self) -> str:
        """For the record."""
        if self.address is not None:
            return str(self.address)
        assert self.imap  # noqa: S101 - one of the two there must be
        return f"imap:{self.imap.server}"


def run_name(*parts: str | bytes) -> bytes:
    """What names a request to the store: the same one after an interruption goes on with its run."""
    from blake3 import blake3

    told = (part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part for part in parts)
    return blake3(b"\0".join(told)).digest(16)


class Performance:
    """One request at work."""

    def __init__(self, store: Archive, request: Request, journal: Journal) -> None:
        self._store = store
        self._request = request
        self._journal = journal
        self._stop = threading.Event()

    def presence(self, *, strict: bool = False) -> Presence:
        """Who looks into the mailboxes. Raises `ConfigError`."""
        from sidecar.live.connect import needed
        from sidecar.replay.presence import Presence  # IMAP's library takes a while

        imap = needed(self._request.imap)
        return Presence(self._store, imap, self._stop.is_set, self._request.as_of_us, strict=strict)

    def has_folder_got(self, target: Target) -> bool | None:
        """Whether `folder` has anything that came since the run began: LMTP answers 250 as well where the
        server passes over the detail in the address. None where nobody can tell."""
        from sidecar.config import ConfigError
        from sidecar.live.connect import imap_server
        from sidecar.live.imap import ImapMailbox
        from sidecar.live.mailbox import LiveError
        from sidecar.live.users import imap_user

        request = self._request
        if request.address is None or request.imap is None or not request.folder:
            return None
        since_us = self._look_since_us()
        try:
            user = imap_user(target.recipient, request.imap)
            with ImapMailbox(imap_server(request.imap), user) as mailbox:
                named = {request.folder, request.folder.replace("/", mailbox.separator() or "/")}
                folders = [name for name in mailbox.folders() if name in named or name.upper() in named]
                return any(
                    message.received_us >= since_us
                    for folder in folders
                    for message in mailbox.messages(folder, since_us)
                )
        except (ConfigError, LiveError):
            return None

    def stop(self) -> None:
        """Finish what is being sent, and no more. From any thread."""
        self._stop.set()

    def perform(self, source: Iterator[Item], tell: Callable[[Result], None]) -> Ended:
        """Put it back. Ctrl-C and SIGTERM end it in good order; a second one raises `CancelledError`. Raises
        `BeingDoneError`, `ConfigError`, `StoreError`."""
        spare_the_collector()
        take_turns()
        with (
            only_one(self._store.path, self._journal.selection),
            asyncio.Runner(loop_factory=loop_factory()) as runner,
        ):
            if not self._journal.is_current:  # what it did is not in our plan
                raise BeingDoneError("another process has put back just this meanwhile, or a part of it")
            return runner.run(self._perform(source, tell))

    async def _perform(self, source: Iterator[Item], tell: Callable[[Result], None]) -> Ended:
        request = self._request
        options = RunOptions(
            lanes=request.lanes, rate=request.rate, patience_s=request.patience_s, as_of_us=request.as_of_us,
            looks=_Later(self.presence) if request.imap is not None else None,
            # A message that IMAP took in has the date of its first receipt.
            look_since_us=0 if request.address is None else self._look_since_us(),
            send_doubtful=request.send_doubtful,
        )  # fmt: skip
        run = Run(self._store, self._road(), self._journal, options, tell, self._stop)
        task = asyncio.current_task()
        # In another thread somebody else minds the signals.
        alone = threading.current_thread() is threading.main_thread()
        for sign in (signal.SIGINT, signal.SIGTERM) if alone else ():
            asyncio.get_running_loop().add_signal_handler(sign, self._interrupt, task)
        return await run.put_back(source)

    def _look_since_us(self) -> int:
        began_us = self._journal.began_us
        return 0 if now_us() < began_us else began_us - LOOK_BACK_US  # the clock was wrong then, or is now

    def _interrupt(self, task: asyncio.Task[Ended] | None) -> None:
        if self._stop.is_set() and task is not None:
            task.cancel()
        else:
            print("mailkeep: finishing what is being sent; once more to leave at once", file=sys.stderr)
            self._stop.set()

    def _road(self) -> Road:
        request = self._request
        if request.address is not None:
            from sidecar.replay.lmtp import DEPTH, LmtpRoad

            return LmtpRoad(
                self._store, request.address, sender=request.sender, folder=request.folder,
                delimiter=request.delimiter,
                depth=DEPTH if request.imap is not None else 1,  # where nobody can look, few are in doubt
            )  # fmt: skip
        from sidecar.replay.imap import ImapRoad

        assert request.imap  # noqa: S101 - without it there is an address
        return ImapRoad(
            self._store, request.imap, folder=request.folder, flags=request.flags, lanes=request.lanes
        )


class _Later:
    """Looks, prepared when there is something to look for."""

    def __init__(self, make: Callable[[], Presence]) -> None:
        self._make = make

    def sift(self, targets: Iterable[Item], *, since_us: int = 0) -> Iterator[Item]:
        """See `Looks`."""
        from sidecar.config import ConfigError

        try:
            presence = self._make()
        except ConfigError as exc:  # mail has been sent by now; what is in doubt stays so
            for item in targets:
                if isinstance(item, Target):
                    yield Result(item, Outcome.IN_DOUBT, why=str(exc))
                else:
                    yield item
            return
        yield from presence.sift(targets, since_us=since_us)
