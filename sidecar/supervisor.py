"""Several workers: opens the sockets, forks a process for each worker, and starts a dead one again.

    sockets -> fork -> (in each worker) threads, LMDB, mail

It forks and does not execute anew because libmilter lets nobody give it a socket, only inherit one; and so a
worker is there in the time that its store takes to open, and of the same version as the others, whatever was
installed meanwhile. What makes a fork dangerous is not there: this process has one thread, opens neither
store nor index, takes no mail, and reads its signals from the kernel instead of being interrupted by them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from sidecar import log as logging_setup
from sidecar import notify, sockets
from sidecar.board import Board, Cell, State
from sidecar.config import Config
from sidecar.metric_table import SIZE, passing
from sidecar.metrics import Metrics
from sidecar.milter_front import open_for_workers
from sidecar.worker import Worker
from store.neighbours import Neighbours

log = logging.getLogger(__name__)

_SIGNALS = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD}
_LOOK_S = 0.5
_LOOK_STARTING_S = 0.02
_SETTLED_S = 1.0
"""a worker that was ready for so long is started again at once; others wait, longer each time"""
_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 10.0
_HUNG_S = 60.0
"""a worker whose loop has not gone round for so long is killed, and started again"""
_STOP_S = 40.0
"""workers take 30 s for what is in flight; who is there after this is killed (by systemd after 45 s)"""
_RELOAD_S = 10.0


class ListenError(Exception):
    """The workers' sockets cannot be had; the text says which and why."""

    hint = "Nothing was accepted. Mend what is named and start again."
    exit_code = 1


@dataclass(slots=True)
class _Post:
    """A worker's place, whether somebody is there or not."""

    number: int
    pid: int = 0
    ready_since: float | None = None
    due: float = 0.0
    delay_s: float = 0.0
    ending_since: float | None = None


class Supervisor:
    """Runs in the process that was started; in the workers its `run` returns what they are."""

    def __init__(self, config: Config, load: Callable[[], Config]) -> None:
        self._config = config
        self._latest = config
        self._load = load
        self._board = Board(config.workers, SIZE)
        self._neighbours = Neighbours()
        self._metrics = Metrics(version("mailkeep"), self._board, 0)
        self._gauges = passing()
        self._posts = [_Post(number) for number in range(1, config.workers + 1)]
        self._listeners: tuple[socket.socket, ...] = ()
        self._lifeline = (-1, -1)
        self._watchdog_s = notify.watchdog_interval_s()
        self._watchdog_due = 0.0
        self._first_was_ready = False
        self._started = False
        self._stopping_since: float | None = None
        self._reloading_since: float | None = None
        self._exit_code = 0

    def run(self) -> Worker | int:
        """Serve until stopped: the exit code. In a worker: what it is; the caller goes on as that.

        Raises ListenError, MilterError.
        """
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # were it ignored, nobody would tell us who has ended
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._board.put(0, Cell.PID, os.getpid())
        self._open_sockets()
        log.info("%d workers", len(self._posts))
        try:
            while True:
                worker = self._fill_posts()
                if worker is not None:
                    return worker
                if self._stopping_since is not None and not any(post.pid for post in self._posts):
                    break
                self._wait()
                self._reap()
                self._look()
        except BaseException:
            # A fault of ours: the workers see the end of the lifeline, finish what is in flight and end.
            log.critical("the supervisor ends on a fault")
            raise
        log.info("all workers have ended")
        return self._exit_code

    # -- sockets

    def _open_sockets(self) -> None:
        lmtp, milter = self._config.lmtp, self._config.milter
        self._lifeline = os.pipe()
        if lmtp is not None:
            try:
                opened = sockets.listen(lmtp.listen, lmtp.socket_mode, lmtp.socket_group)
            except OSError as exc:
                raise ListenError(f"[lmtp] listen = {lmtp.listen}: {exc}") from exc
            self._listeners = tuple(opened)
            log.info("LMTP at %s, in front of %s", lmtp.listen, lmtp.downstream)
        if milter is not None:
            open_for_workers(milter.listen, milter.socket_mode, milter.socket_group)
            log.info("milter at %s", milter.listen)

    def _close_sockets(self) -> None:
        for listener in self._listeners:
            listener.close()
        for section in (self._config.lmtp, self._config.milter):
            if section is not None and section.listen.is_unix:
                Path(section.listen.path).unlink(missing_ok=True)

    # -- workers

    def _fill_posts(self) -> Worker | None:
        """Start whoever is missing and due. In a new worker: what it is."""
        # The first alone makes what is not there yet: the store, its index.
        open_posts = self._posts if self._first_was_ready else self._posts[:1]
        for post in open_posts:
            if post.pid == 0 and self._stopping_since is None and time.monotonic() >= post.due:
                sys.stdout.flush()
                sys.stderr.flush()
                self._board.put(post.number, Cell.RELOADS, self._generation)
                try:
                    post.pid = os.fork()
                except OSError as exc:  # no memory, too many processes: the others must not go down with it
                    post.delay_s = min(max(_FIRST_DELAY_S, 2 * post.delay_s), _LONGEST_DELAY_S)
                    post.due = time.monotonic() + post.delay_s
                    log.error("worker %d cannot be started yet: %s", post.number, exc)
                    continue
                if post.pid == 0:
                    return self._become(post.number)
                post.ending_since = None
        return None

    def _become(self, number: int) -> Worker:
        """We are a new worker: nothing that is the supervisor's stays."""
        os.close(self._lifeline[1])
        for name in ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"):
            os.environ.pop(name, None)
        lmtp, milter = self._config.lmtp, self._config.milter
        listens = lmtp is not None and number <= lmtp.workers
        worker = Worker(
            number=number, board=self._board, neighbours=self._neighbours,
            config=self._config, latest=self._latest,
            listeners=self._listeners if listens else (),
            milter=milter is not None and number <= milter.workers, lifeline=self._lifeline[0],
        )  # fmt: skip
        if not listens:
            for listener in self._listeners:
                listener.close()
        worker.begin()
        # What came since the fork was for us, and ends us as it would any process.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        return worker

    def _reap(self) -> None:
        """Take note of who has ended."""
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            post = next((post for post in self._posts if post.pid == pid), None)
            if post is not None:
                self._ended(post, os.waitstatus_to_exitcode(status), used)

    def _ended(self, post: _Post, code: int, used: resource.struct_rusage) -> None:
        now = time.monotonic()
        was_ready, post.ready_since, post.pid = post.ready_since, None, 0
        self._board.left(post.number, self._gauges, used.ru_utime + used.ru_stime)
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        if self._stopping_since is not None:
            if code not in (0, -signal.SIGTERM, -signal.SIGINT):  # these before it could handle them
                log.error("worker %d has ended %s", post.number, how)
                self._exit_code = self._exit_code or max(code, 1)
            return
        if code > 0 and not self._started:
            # It has said why. What keeps one from its first start keeps the service from it.
            self._stop(code)
            return
        settled = was_ready is not None and now - was_ready >= _SETTLED_S
        post.delay_s = 0.0 if settled else min(max(_FIRST_DELAY_S, 2 * post.delay_s), _LONGEST_DELAY_S)
        post.due = now + post.delay_s
        self._metrics.restarted()
        log.error("worker %d has ended %s, and is started again", post.number, how)
        notify.status(f"worker {post.number} is being started again")

    def _look(self) -> None:
        """At how the workers are."""
        now = time.monotonic()
        for post in self._posts:
            if post.pid and self._board.get(post.number, Cell.STATE) == State.READY:
                if post.ready_since is None:
                    post.ready_since = now
                    self._first_was_ready = True
                    if self._started:
                        notify.status("capturing mail")
                        log.info("worker %d is ready again", post.number)
                    if self._board.get(post.number, Cell.RELOADS) < self._generation:
                        self._signal(post, signal.SIGHUP)  # it was starting, and would not have survived it
                if now - self._board.get(post.number, Cell.HEARTBEAT) > _HUNG_S:
                    log.critical("worker %d hangs, and is killed", post.number)
                    self._signal(post, signal.SIGKILL)
            elif post.pid and self._board.get(post.number, Cell.STATE) == State.STOPPING:
                post.ending_since = post.ending_since or now
                if now - post.ending_since > _STOP_S:
                    log.critical("worker %d does not come to its end, and is killed", post.number)
                    self._signal(post, signal.SIGKILL)
        if not self._started and all(post.ready_since is not None for post in self._posts):
            self._started = True
            self._board.put(0, Cell.STARTED, 1)
            notify.ready("capturing mail")
            log.info("ready: %d workers", len(self._posts))
        if self._reloading_since is not None:
            self._look_at_reload(now)
        if self._stopping_since is not None and now - self._stopping_since > _STOP_S:
            for post in self._posts:
                self._signal(post, signal.SIGKILL)

    # -- signals

    def _wait(self) -> None:
        """For a signal, a worker's end, or the time of the next look."""
        busy = not self._started or self._reloading_since is not None
        look_s = _LOOK_STARTING_S if busy else min(_LOOK_S, (self._watchdog_s or _LOOK_S) / 2)
        due = []
        if self._started and self._stopping_since is None:
            due = [post.due - time.monotonic() for post in self._posts if post.pid == 0]
        if any(post.pid and post.ready_since is None for post in self._posts):
            look_s = _LOOK_STARTING_S
        got = signal.sigtimedwait(_SIGNALS, max(0.0, min([look_s, *due])))
        if self._watchdog_s is not None and time.monotonic() >= self._watchdog_due:
            notify.watchdog()
            self._watchdog_due = time.monotonic() + self._watchdog_s / 2
        if got is None:
            return
        if got.si_signo == signal.SIGHUP:
            self._reload()
        elif got.si_signo in (signal.SIGTERM, signal.SIGINT):
            self._stop(0)

    def _stop(self, code: int) -> None:
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
            self._exit_code = code
            notify.stopping("finishing what is in flight")
            for post in self._posts:
                self._signal(post, signal.SIGTERM)
            self._close_sockets()  # else the kernel would take connections that nobody answers

    def _signal(self, post: _Post, number: int) -> None:
        if post.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(post.pid, number)

    # -- a changed configuration

    @property
    def _generation(self) -> float:
        """How often it has changed."""
        return self._board.get(0, Cell.RELOADS)

    def _reload(self) -> None:
        notify.reloading()
        try:
            self._latest = self._load()
        except Exception as exc:  # noqa: BLE001 - whatever it is, mail goes on
            log.error("not reloaded, all goes on as before: %s", exc)
            notify.ready("capturing mail; the last reload failed")
            return
        logging_setup.set_level(self._latest.log.level)
        self._reloading_since = time.monotonic()
        # Signals may melt into one, so what counts is which change a worker has seen.
        self._board.put(0, Cell.RELOADS, self._generation + 1)
        for post in self._posts:
            if post.ready_since is not None:
                self._signal(post, signal.SIGHUP)

    def _look_at_reload(self, now: float) -> None:
        """Until all have met it, or some take too long."""
        now_is = self._generation
        late = [p for p in self._posts if p.pid and self._board.get(p.number, Cell.RELOADS) < now_is]
        if late and now - (self._reloading_since or now) < _RELOAD_S:
            return
        if late:
            log.error("workers that have not reloaded: %s", ", ".join(str(post.number) for post in late))
        self._reloading_since = None
        notify.ready("capturing mail")
