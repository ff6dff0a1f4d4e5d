"""A file is there whole or not at all, whatever fails and whoever else writes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from store.files import write_new, write_whole

FULL = OSError(28, "No space left on device")


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was made durable, in its order: by its name then."""
    names: list[str] = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        names.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    return names


@pytest.mark.parametrize("rivals", [False, True])
def test_a_file_is_replaced_and_is_its_owners_alone(tmp_path: Path, *, rivals: bool) -> None:
    file = tmp_path / "it"
    file.write_bytes(b"longer before")
    file.chmod(0o644)
    write_whole(file, b"now", rivals=rivals)
    assert file.read_bytes() == b"now"
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_the_bytes_are_durable_before_the_name_and_the_name_when_it_returns(
    tmp_path: Path, synced: list[str]
) -> None:
    write_whole(tmp_path / "it", b"kept")
    assert synced == [".it.new", tmp_path.name]
    synced.clear()
    write_whole(tmp_path / "it", b"not worth a flush", durable=False)
    assert synced == []


@pytest.mark.parametrize("step", ["os.pwrite", "os.fsync", "pathlib.Path.rename"])
@pytest.mark.parametrize("rivals", [False, True])
def test_where_a_step_fails_all_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, *, rivals: bool
) -> None:
    file = tmp_path / "it"
    file.write_bytes(b"before")

    def fails(*_args: object) -> None:
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(step, fails)
        with pytest.raises(OSError, match="No space"):
            write_whole(file, b"now", rivals=rivals)
    assert file.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_what_a_killed_one_left_is_in_nobodys_way_and_a_link_is_not_followed(tmp_path: Path) -> None:
    left = tmp_path / ".it.new"
    left.write_bytes(b"half of something longer")
    write_whole(tmp_path / "it", b"now")
    assert (tmp_path / "it").read_bytes() == b"now"
    assert not left.exists()
    other = tmp_path / "other"
    other.write_bytes(b"another's")
    left.symlink_to(other)
    write_whole(tmp_path / "it", b"again")
    assert (tmp_path / "it").read_bytes() == b"again"
    assert not (tmp_path / "it").is_symlink()
    assert other.read_bytes() == b"another's"


def test_rivals_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "it"
    texts = {bytes([letter]) * 100_000 for letter in b"abcd"}
    failed: list[Exception] = []

    def write(text: bytes) -> None:
        try:
            for _ in range(50):
                write_whole(file, text, durable=False, rivals=True)
                assert file.read_bytes() in texts
        except Exception as exc:  # noqa: BLE001 - the test fails with it below
            failed.append(exc)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_root_writes_is_the_directorys_owners(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 23456)
    write_whole(tmp_path / "it", b"now")
    found = (tmp_path / "it").stat()
    assert (found.st_uid, found.st_gid) == (12345, 23456)


def test_a_new_file_never_replaces_one_and_leaves_none_that_is_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "it"
    write_new(file, b"first")
    with pytest.raises(FileExistsError):
        write_new(file, b"second")
    assert file.read_bytes() == b"first"

    def full(_fd: int) -> None:
        raise FULL

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_new(tmp_path / "other", b"x")
    assert not (tmp_path / "other").exists()
