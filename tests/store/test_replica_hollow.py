"""Hollow files: right bytes, whatever else happens to the directory."""

from __future__ import annotations

import errno
import os
import random
import resource
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from store.errors import StoreFullError
from store.replicas.hollow import PAGE_BYTES, Hollow, Part
from store.replicas.layout import RoundError

DATA = random.Random(1).randbytes(8 * PAGE_BYTES + 1000)


def get(_name: str, at: int, size: int) -> bytes:
    return DATA[at : at + size]


@contextmanager
def hollow(root: Path) -> Iterator[Hollow]:
    made = Hollow(root, get)
    made.begin()
    yield made
    made.close()


def whole(size: int = len(DATA)) -> list[Part]:
    return [Part(0, size, "x")]


def test_more_files_than_a_process_may_have_open(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        with hollow(tmp_path) as files:
            for number in range(500):
                files.lay_out(tmp_path / f"{number}.pack", whole(5000))
            files.fill(tmp_path / "400.pack", 0, 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (tmp_path / "400.pack").read_bytes() == DATA[:5000]


def test_what_is_being_fetched_goes_into_its_own_file_though_that_grows(tmp_path: Path) -> None:
    """The number of a descriptor that was closed is another file's soon."""
    path, other = tmp_path / "1.pack", tmp_path / "other"
    asked, grown = threading.Event(), threading.Event()

    def slow(name: str, at: int, size: int) -> bytes:
        asked.set()
        assert grown.wait(60)
        return get(name, at, size)

    files = Hollow(tmp_path, slow)
    files.begin()
    files.lay_out(path, whole(PAGE_BYTES))
    reading = threading.Thread(target=files.fill, args=(path, 0, PAGE_BYTES))
    reading.start()
    assert asked.wait(60)
    files.lay_out(path, whole(3 * PAGE_BYTES))
    fds = [os.open(other, os.O_RDWR | os.O_CREAT) for _ in range(20)]
    grown.set()
    reading.join()
    assert other.read_bytes() == b""
    assert path.read_bytes()[:PAGE_BYTES] == DATA[:PAGE_BYTES]
    for fd in fds:
        os.close(fd)
    files.close()


def test_a_file_that_was_lost_is_fetched_anew(tmp_path: Path) -> None:
    path = tmp_path / "1.run"
    for _ in range(2):
        with hollow(tmp_path) as files:
            files.lay_out(path, whole())
            files.fill(path, 0, len(DATA))
            assert path.read_bytes() == DATA
            path.unlink()
            files.lay_out(path, whole())
            files.fill(path, 0, len(DATA))
            assert path.read_bytes() == DATA
        path.unlink()


def test_what_comes_short_is_no_bytes(tmp_path: Path) -> None:
    files = Hollow(
        tmp_path, lambda name, at, size: get(name, at, size)[:-1] if name == "short" else get(name, at, size)
    )
    files.begin()
    path = tmp_path / "1.pack"
    files.lay_out(path, [Part(0, 1000, "short"), Part(1000, 1000, "x", 1000)])
    with pytest.raises(RoundError):
        files.fill(path, 0, 2000)
    files.close()


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was fetched counts; what was not is fetched when there is room."""

    def full(_fd: int, _data: bytes, _at: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "1.pack"
    with hollow(tmp_path) as files:
        files.lay_out(path, whole())
        files.fill(path, 0, PAGE_BYTES)
        with monkeypatch.context() as patch:
            patch.setattr("store.replicas.hollow.write_all", full)
            with pytest.raises(StoreFullError, match=r"1\.pack"):
                files.fill(path, 0, len(DATA))
        files.fill(path, 0, len(DATA))
    assert path.read_bytes() == DATA


@pytest.mark.parametrize("fails", [False, True])
def test_what_several_want_at_once_is_fetched_once(tmp_path: Path, fails: bool) -> None:
    path = tmp_path / "1.pack"
    asked: list[int] = []
    fault = threading.Semaphore(int(fails))

    def slow(name: str, at: int, size: int) -> bytes:
        asked.append(size)
        time.sleep(0.02)
        if fault.acquire(blocking=False):
            raise RoundError("this once")
        return get(name, at, size)

    files = Hollow(tmp_path, slow)
    files.begin()
    files.lay_out(path, whole())
    wanted = [(at, min(at + PAGE_BYTES, len(DATA))) for at in range(0, len(DATA), PAGE_BYTES // 2)]
    faults: list[Exception] = []

    def fill(place: tuple[int, int]) -> bool:
        try:
            files.fill(path, *place)
        except RoundError as exc:
            faults.append(exc)
            return True
        with path.open("rb") as file:
            return os.pread(file.fileno(), place[1] - place[0], place[0]) == DATA[slice(*place)]

    with ThreadPoolExecutor(len(wanted)) as pool:
        assert all(pool.map(fill, wanted))
    assert len(faults) == fails
    files.fill(path, 0, len(DATA))
    assert path.read_bytes() == DATA
    if not fails:
        assert sum(asked) == len(DATA)
    files.close()
