"""The files between processes: the state survives, what is damaged is put aside, a request is taken once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from sidecar.scheduler import channel
from sidecar.scheduler.channel import Request, is_served, take_lock
from sidecar.scheduler.state import (
    Ended,
    Far,
    Job,
    KindState,
    Running,
    State,
    load_progress,
    load_state,
    look_at_state,
    save_progress,
    save_state,
)

ENDED = Ended(id=1, kind="check", started=1.5, ended=2.5, result="ok", text="nothing wrong, ümlaut")
STATE = State(
    next_id=9,
    kinds={"check": KindState(schedule="@daily", counted_from=3.25, next=4.5, paused=True, last=ENDED)},
    queue=[Job(id=7, kind="check", arguments={"read_data": "yes"}, manual=True, bookmark="12")],
    running=Running(job=Job(id=8, kind="compact"), started=5.0),
    history=[ENDED],
)


def test_there_and_back(tmp_path: Path) -> None:
    assert load_state(tmp_path) == State()
    save_state(tmp_path, STATE)
    assert load_state(tmp_path) == STATE
    assert look_at_state(tmp_path) == STATE
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    assert (tmp_path / "state.json").stat().st_mode & 0o777 == 0o600


def test_a_state_of_a_later_version_is_read_as_far_as_it_is_known(tmp_path: Path) -> None:
    later = msgspec.to_builtins(STATE) | {"moon": "full"}
    (tmp_path / "state.json").write_bytes(msgspec.json.encode(later))
    assert load_state(tmp_path) == STATE


@pytest.mark.parametrize(
    "damage", [b"", b"\0" * 100, b"{", b'{"next_id": "x"}', b"\xff\xfe", b"[]", b'"\xed\xa0\x80"']
)
def test_damage_is_put_aside(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "state.json").write_bytes(damage)
    assert look_at_state(tmp_path) == State(), "who only looks changes nothing"
    assert (tmp_path / "state.json").read_bytes() == damage
    assert load_state(tmp_path) == State()
    assert (tmp_path / "state.json.damaged").read_bytes() == damage
    assert "cannot be read" in caplog.text
    save_state(tmp_path, STATE)
    assert load_state(tmp_path) == STATE


def test_a_state_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_state(tmp_path, STATE)

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_state(tmp_path, State())
    assert load_state(tmp_path) == STATE
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_progress_that_is_damaged_is_none(tmp_path: Path) -> None:
    assert load_progress(tmp_path) is None
    save_progress(tmp_path, Far(job=1, done=2))
    assert load_progress(tmp_path) == Far(job=1, done=2)
    (tmp_path / "progress.json").write_bytes(b"{")
    assert load_progress(tmp_path) is None


def request(action: str = "run") -> Request:
    return Request(id=channel.new_request_id(), action=action, kind="check")


def test_requests_in_their_order(tmp_path: Path) -> None:
    sent = [request() for _ in range(5)]
    for each in sent:
        channel.send(tmp_path, each)
    assert list(channel.waiting(tmp_path)) == sent
    assert channel.withdraw(tmp_path, sent[2].id)
    assert not channel.withdraw(tmp_path, sent[2].id)
    assert list(channel.waiting(tmp_path)) == [*sent[:2], *sent[3:]]
    assert (tmp_path / "requests").stat().st_mode & 0o777 == 0o700


def test_what_is_no_request_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = request()
    channel.send(tmp_path, good)
    requests = tmp_path / "requests"
    (requests / "1.json").write_text("{")
    (requests / "2.json").write_bytes(msgspec.json.encode(request()))  # its name is another's
    (tmp_path / "secret").write_bytes(msgspec.json.encode(Request(id="3", action="run", kind="check")))
    (requests / "3.json").symlink_to(tmp_path / "secret")
    (requests / "4.json").write_bytes(b" " * (1 << 20))
    os.mkfifo(requests / "5.json")
    (requests / ".half.new").write_text("{")  # somebody is writing it
    assert list(channel.waiting(tmp_path)) == [good]
    assert sorted(path.name for path in requests.iterdir()) == [".half.new", f"{good.id}.json"]
    assert (tmp_path / "secret").exists()
    assert caplog.text.count("is no request") == 5


def test_one_scheduler_for_a_store(tmp_path: Path) -> None:
    assert not is_served(tmp_path)
    assert list(tmp_path.iterdir()) == [], "looking makes nothing"
    lock = take_lock(tmp_path)
    assert lock is not None
    assert is_served(tmp_path)
    assert take_lock(tmp_path) is None
    lock.release()
    lock.release()
    assert not is_served(tmp_path)


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from sidecar.scheduler.channel import take_lock\n"
        "lock = take_lock(pathlib.Path(sys.argv[1]))\n"
        "print(lock is not None, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"True\n"
        assert is_served(tmp_path)
        process.kill()
    assert not is_served(tmp_path)


def test_readers_never_see_half_a_state(tmp_path: Path) -> None:
    save_state(tmp_path, STATE)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            save_state(tmp_path, STATE)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert all(look_at_state(tmp_path) == STATE for _ in range(300))
    finally:
        stop.set()
        thread.join()
