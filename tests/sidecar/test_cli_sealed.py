"""Keys as an administrator handles them: made, protected, lost, wrong, rotated, for two."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from sidecar.identity import write_identity
from store.store import Store
from tests.store.conftest import put_message
from tests.support.service import COMMAND

MAIL = b"Subject: secret\r\nFrom: a@example.com\r\n\r\nhello\r\n"
SEALED, NO_IDENTITY = 21, 22


def mailkeep(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


def capture(path: Path, *recipients: str, count: int = 1) -> None:
    with Store.open(path, create=True, recipients=recipients) as store:
        store.start_writing("host")
        for _ in range(count):
            put_message(store, MAIL)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return tmp_path / "key.txt"


def test_keygen_makes_a_file_for_its_owner_alone(key: Path) -> None:
    done = mailkeep("keygen", "--output", key)
    assert done.returncode == 0
    assert done.stdout.startswith("age1")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    text = key.read_text()
    assert f"# public key: {done.stdout}" in text
    assert "AGE-SECRET-KEY-1" in text


def test_keygen_never_writes_over_a_file(key: Path) -> None:
    key.write_text("precious")
    done = mailkeep("keygen", "--output", key)
    assert done.returncode == NO_IDENTITY
    assert str(key) in done.stderr
    assert key.read_text() == "precious"


def test_the_identity_opens_by_option_and_by_environment(path: Path, key: Path) -> None:
    capture(path, write_identity(key, None))
    assert mailkeep("list", "--store", path).returncode == SEALED
    assert "secret" in mailkeep("list", "--store", path, "--identity", key).stdout
    assert "secret" in mailkeep("list", "--store", path, MAILKEEP_IDENTITY=str(key)).stdout


def test_a_passphrase_is_asked_for_and_a_wrong_one_told(path: Path, key: Path) -> None:
    public = mailkeep("keygen", "--output", key, "--passphrase", MAILKEEP_PASSPHRASE="horse").stdout.strip()
    assert b"AGE-SECRET-KEY" not in key.read_bytes()
    capture(path, public)
    told = mailkeep("list", "--store", path, "--identity", key, MAILKEEP_PASSPHRASE="horse")
    assert "secret" in told.stdout
    wrong = mailkeep("list", "--store", path, "--identity", key, MAILKEEP_PASSPHRASE="mule")
    assert wrong.returncode == NO_IDENTITY
    assert "does not open with this passphrase" in wrong.stderr
    nobody = mailkeep("list", "--store", path, "--identity", key)
    assert nobody.returncode == NO_IDENTITY
    assert "passphrase" in nobody.stderr


def test_a_wrong_key_is_named_with_whom_it_is_sealed_for(path: Path, key: Path, tmp_path: Path) -> None:
    public = write_identity(tmp_path / "right.txt", None)
    write_identity(key, None)
    capture(path, public)
    for command in ("list", "check", "compact", "rebuild", "stats"):
        done = mailkeep(command, "--store", path, "--identity", key)
        assert done.returncode == SEALED, command
        assert public in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "holds no age identity"), ("AGE-SECRET-KEY-1XYZ", "line 1"), ("# only words\nhello", "line 2")],
)
def test_a_file_that_is_no_identity_is_told_with_its_line(
    path: Path, key: Path, text: str, said: str
) -> None:
    capture(path)
    key.write_text(text)
    done = mailkeep("list", "--store", path, "--identity", key)
    assert done.returncode == NO_IDENTITY
    assert said in done.stderr
    assert "hello" not in done.stderr, "what may be a secret is not repeated"


def test_a_file_that_is_not_there_is_named(path: Path, key: Path) -> None:
    capture(path)
    done = mailkeep("list", "--store", path, "--identity", key)
    assert done.returncode == NO_IDENTITY
    assert str(key) in done.stderr


def test_two_identities_in_one_file_read_across_a_rotation(path: Path, key: Path, tmp_path: Path) -> None:
    capture(path, write_identity(key, None), count=2)
    new = tmp_path / "new.txt"
    public = write_identity(new, None)
    capture(path, public)
    alone = mailkeep("list", "--store", path, "--identity", new)
    assert alone.stdout.count("secret") == 1
    assert "sealed" in alone.stderr
    both = tmp_path / "both.txt"
    both.write_text(key.read_text() + new.read_text())
    assert mailkeep("list", "--store", path, "--identity", both).stdout.count("secret") == 3
    assert mailkeep("compact", "--reseal", "--store", path, "--identity", both).returncode == 0
    assert mailkeep("list", "--store", path, "--identity", new).stdout.count("secret") == 3
    assert mailkeep("list", "--store", path, "--identity", key).returncode == SEALED


def test_check_without_an_identity_says_what_it_could_not_see(path: Path, key: Path) -> None:
    capture(path, write_identity(key, None))
    done = mailkeep("check", "--store", path)
    assert done.returncode == 0
    assert "sealed" in done.stdout
    assert mailkeep("check", "--read-data", "--store", path).returncode == SEALED
