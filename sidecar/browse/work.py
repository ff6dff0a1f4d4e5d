"""The browser's work on the store: in threads of its own, so that the screen answers at all times.

A job tells the screen by posting messages, which waits for nobody. Expected faults are posted as words; a
fault of ours goes to the application, which ends with it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from textual.app import App
from textual.message import Message

from sidecar.browse import actions, listing
from sidecar.readable import escaped
from store.errors import StoreError


class Done(Message):
    """`then` is to be called in the screen's thread."""

    def __init__(self, then: Callable[[], None]) -> None:
        super().__init__()
        self.then = then


class Work:
    """Three threads by what they are for: `list`, `read` and `act`; jobs of one kind run one after the other.

    Close it before the store: it waits for what runs, which must have been told to stop."""

    def __init__(self, app: App[None]) -> None:
        self._app = app
        self._threads = {kind: ThreadPoolExecutor(1, f"browse-{kind}") for kind in ("list", "read", "act")}
        self._closed = False

    def start(self, kind: str, job: Callable[[], object], failed: Callable[[str], None]) -> None:
        """Run `job` in the thread of that kind; `failed` is told why it did not end well, on the screen's
        side."""
        if not self._closed:
            self._threads[kind].submit(self._run, job, failed)

    def tell(self, then: Callable[[], None]) -> None:
        """Have `then` called in the screen's thread; from any thread."""
        self._app.post_message(Done(then))

    def _run(self, job: Callable[[], object], failed: Callable[[str], None]) -> None:
        try:
            if not self._closed:
                job()
        except (listing.StoppedError, actions.StoppedError):
            pass  # whoever stopped it knows
        except (StoreError, OSError, ValueError) as exc:
            words = in_words(exc)
            self.tell(lambda: failed(words))
        except BaseException as exc:  # noqa: BLE001 - a thread has nobody else to tell
            fault = exc
            self.tell(lambda: _raise(fault))

    def close(self) -> None:
        """Begin nothing more, and wait for what runs."""
        self._closed = True
        for thread in self._threads.values():
            thread.shutdown(wait=True, cancel_futures=True)


def in_words(exc: Exception) -> str:
    """What went wrong, in one line, with what may be done."""
    if isinstance(exc, OSError):
        said = str(exc.strerror or exc) if exc.filename is None else f"{exc.filename}: {exc.strerror}"
    else:
        said = str(exc)
    hint = getattr(exc, "hint", "")
    return escaped(f"{said}. {hint}" if hint else said)


def _raise(fault: BaseException) -> None:
    raise fault
