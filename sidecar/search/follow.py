"""How the search index keeps up with the store: behind capture, in small steps, and stopped at any of them.

First the facts that each stream has recorded since (`store.later`): what was captured waits to be read, what
was erased or has expired is forgotten at once. Then what waits is read, the newest first, and taken in.
Streams are followed by the numbers of their facts, so neither workers that write at once nor imported mail
of years ago can slip through; and what one stream erases of another's before we came to it is not there
any more when it is read.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from sidecar.readable import text as as_text
from sidecar.search.files import DIRECTORY, Cursor, Document, SearchDamagedError
from sidecar.search.index import IndexWriter
from sidecar.search.text import Text, extract
from store import records
from store.deliveries import RemovedError
from store.errors import DamagedError, NotFoundError
from store.facts import Fact
from store.ids import ContentId, DeliveryId
from store.later import OtherHistoryError, facts_since
from store.records import Delivery, EntryType, Erasure, Expiry
from store.store import Store

log = logging.getLogger(__name__)

_FACTS_A_STEP = 5000
_MESSAGES_A_STEP = 200
_TEXT_A_STEP = 4 << 20
_MOST_CODED_BYTES = 384 << 10
"""base64 runs longer than that hold no text that anybody would look for"""
_MOST_MESSAGE_BYTES = 8 << 20
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Reached:
    """How far it is: messages in the index, and what is known to be missing yet."""

    messages: int
    waiting: int
    followed: bool
    """whether all that the streams had when it began has been seen"""

    @property
    def is_complete(self) -> bool:
        """Whether whatever there was can be found."""
        return self.followed and not self.waiting


class Follower:
    """One catching-up of one index. `stop` is asked between steps; `step` is told the bytes that were read,
    may wait, and may raise to stop; `progress` is told how many messages are in, and how many wait."""

    def __init__(
        self,
        store: Store,
        index: IndexWriter,
        *,
        stop: Callable[[], bool] = lambda: False,
        step: Callable[[int], None] = lambda _bytes: None,
        progress: Callable[[int, int], None] = lambda _done, _waiting: None,
    ) -> None:
        self._store = store
        self._index = index
        self._stop = stop
        self._step = step
        self._progress = progress
        self._last: tuple[ContentId, Text] | None = None

    def run(self, *, tidy: bool = True) -> Reached:
        """Go on until all is in, or told to stop. An index that cannot be followed up is begun anew. Raises
        `SearchError`, `StoreError`, `OSError`, and what `step` raises."""
        try:
            return self._run(tidy=tidy)
        except (SearchDamagedError, OtherHistoryError) as exc:
            log.warning("the search index is made anew: %s", exc)
            self._index.start_over()
            return self._run(tidy=tidy)

    def forget(self) -> None:
        """The facts alone: from then on nothing of what was erased is in it. Raises as `run`."""
        try:
            self._follow_all()
        except (SearchDamagedError, OtherHistoryError) as exc:
            log.warning("the search index is made anew: %s", exc)
            self._index.start_over()

    def _run(self, *, tidy: bool) -> Reached:
        followed = self._follow_all()
        self._read_waiting()
        if tidy and not self._stop():
            self._index.tidy(lambda: self._step(0))
        return Reached(*self._index.counts(), followed)

    # -- facts

    def _follow_all(self) -> bool:
        return all(self._follow(stream) for stream in self._store.view.names())

    def _follow(self, stream: str) -> bool:
        """The facts of one stream; False when told to stop before the last."""
        upto = self._store.state(stream).facts
        for tries in range(_TRIES):
            with contextlib.suppress(FileNotFoundError):  # compaction replaced a pack
                since, leaf = self._index.cursor(stream)
                found = facts_since(self._store, stream, since, leaf, without=tries == _TRIES - 1)
                while stretch := list(islice(found, _FACTS_A_STEP)):
                    self._note(stream, stretch)
                    self._step(0)
                    if self._stop():
                        return False
                if self._index.cursor(stream).facts < upto:
                    log.error(
                        "stream %s has lost its facts from %d to %d; once they are restored, remove %s",
                        stream, self._index.cursor(stream).facts, upto, self._index.directory,
                    )  # fmt: skip
                    self._index.note(stream, Cursor(upto), (), ())
                return True
        return False

    def _note(self, stream: str, stretch: list[tuple[int, Fact]]) -> None:
        added: list[DeliveryId] = []
        gone: list[DeliveryId] = []
        for _, fact in stretch:
            if fact.data is None or records.type_in(fact.data) not in _TOLD:
                continue
            match records.decode(fact.data):
                case Delivery() as delivery:
                    added.append(delivery.id)
                case Erasure() as erasure:
                    gone.append(erasure.delivery)
                case Expiry() as expiry:
                    gone += expiry.deliveries
        number, fact = stretch[-1]
        self._index.note(stream, Cursor(number + 1, fact.leaf), added, gone)

    # -- messages

    def _read_waiting(self) -> None:
        while not self._stop() and (ids := self._index.next_waiting(_MESSAGES_A_STEP)):
            documents: list[Document] = []
            nothing: list[DeliveryId] = []
            size = 0
            try:
                for id_ in reversed(ids):
                    if size > _TEXT_A_STEP or self._stop():
                        break
                    text = self._text(id_)
                    if text is None:
                        nothing.append(id_)
                    else:
                        documents.append(Document(id_, text))
                        size += len(text.body)
                    self._step(len(text.body) if text else 0)
            finally:
                documents.reverse()
                if documents or nothing:
                    self._index.take_in(documents, nothing)
                    self._progress(*self._index.counts())

    def _text(self, id_: DeliveryId) -> Text | None:
        """The words of a delivery; None where it is gone."""
        try:
            delivery = self._store.delivery(id_).delivery
        except RemovedError:
            return None
        except (NotFoundError, DamagedError) as exc:
            log.warning("delivery %s cannot be read, and is not found by its words: %s", id_.hex(), exc)
            return None
        text = self._of_content(delivery.content)
        people = (delivery.envelope.sender, *(one.address for one in delivery.envelope.recipients))
        return Text(
            text.subject or as_text(delivery.subject),
            " ".join([text.people, *map(as_text, people)]), text.files, text.body,
        )  # fmt: skip

    def _of_content(self, content: ContentId) -> Text:
        if (
            self._last is None or self._last[0] != content
        ):  # most often a list's mail to the next of its members
            gathered = bytearray()
            try:
                for piece in self._store.skim(content, _MOST_CODED_BYTES):
                    gathered += piece
                    if len(gathered) > _MOST_MESSAGE_BYTES:
                        break
            except (NotFoundError, DamagedError) as exc:
                log.warning(
                    "content %s cannot be read whole, and is searched in part: %s", content.hex(), exc
                )
            self._last = content, extract(bytes(gathered))
        return self._last[1]


_TOLD = frozenset({EntryType.DELIVERY, EntryType.ERASURE, EntryType.EXPIRY})


def until(seconds: float) -> Callable[[], bool]:
    """A `stop` that says so after so long."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def forget_removed(store: Store) -> bool:
    """Let what was erased or has expired leave the search index now, if there is one; False while another
    process writes to that, which will do it. Raises `SearchError`, `StoreError`, `OSError`."""
    if not (store.path / DIRECTORY / "state.db").exists():
        return True
    index = IndexWriter.take(store.path, store.id)
    if index is None:
        return False
    with index:
        Follower(store, index).forget()
    return True
