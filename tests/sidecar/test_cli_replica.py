"""`mailkeep replica` and `replica prune` as an operator has them, on replicas in directories."""

from __future__ import annotations

from pathlib import Path

import pytest

from store.replicas.remote import Remote
from store.replicas.ship import Shipper
from store.store import Store
from tests.store.conftest import put_message
from tests.support.mailstore import mailkeep


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A replica with three full rounds, and a piece that nothing names."""
    with Store.open(tmp_path / "store", create=True) as store:
        store.start_writing("mx1")
        put_message(store, b"Subject: 1\r\n\r\n")
        remote = Remote.open(f"file://{tmp_path}/replica")
        shipper = Shipper(tmp_path / "store", remote, "mx1")
        shipper.round(full=True)
        put_message(store, b"Subject: 2\r\n\r\n")
        shipper.round(full=True)
    return remote.url


@pytest.fixture
def config(tmp_path: Path, url: str) -> Path:
    file = tmp_path / "mailkeep.toml"
    file.write_text(
        f'[store]\npath = "{tmp_path}/store"\n[lmtp]\n[[replica]]\n[[replica]]\nurl = "{url}"\n'
        f'[[replica]]\nurl = "file://{tmp_path}/empty"\n'
    )
    return file


def test_what_is_there(config: Path, url: str, tmp_path: Path) -> None:
    ran = mailkeep("replica", "--config", config)
    assert ran.code == 0
    assert f"2  {url}  mx1: round 5 of " in ran.out
    assert f"3  file://{tmp_path}/empty: nothing is there" in ran.out
    (told,) = mailkeep("replica", "--config", config, "--json").objects
    assert (told["replica"], told["host"], told["round"], told["packs"], told["faults"]) == (
        2,
        "mx1",
        5,
        1,
        [],
    )


def test_a_damaged_full_round_is_told(config: Path, tmp_path: Path) -> None:
    last = max((tmp_path / "replica/hosts/mx1/full").iterdir())
    last.write_bytes(last.read_bytes()[:-1])
    ran = mailkeep("replica", "--config", config)
    assert ran.code == 1
    assert f"hosts/mx1/full/{last.name}: it is damaged, or no round" in ran.out


def test_prune(url: str, tmp_path: Path) -> None:
    before = sorted((tmp_path / "replica").rglob("*"))
    ran = mailkeep("replica", "prune", url, "--dry-run")
    assert ran.code == 0
    assert "hosts/mx1/full/000000000001" in ran.out
    assert "mx1: 2 objects would be removed" in ran.out
    assert sorted((tmp_path / "replica").rglob("*")) == before
    assert mailkeep("replica", "prune", url, "--host", "mx1", "--json").objects == [
        {"host": "mx1", "objects": 2, "removed": True}
    ]
    assert "mx1: 0 objects removed" in mailkeep("replica", "prune", url).out
    assert len(list((tmp_path / "replica/hosts/mx1/full").iterdir())) == 2


def test_what_is_no_replica() -> None:
    ran = mailkeep("replica", "prune", "https://bucket")
    assert ran.code == 50
    assert "write s3://bucket/prefix or file:///path" in ran.err


def test_where_nothing_is(url: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for command in (("replica", "--url"), ("replica", "prune")):
        ran = mailkeep(*command, f"file://{tmp_path}/empty")
        assert ran.code == 52
        assert "holds no replica" in ran.err
    ran = mailkeep("replica", "prune", url, "--host", "mx9")
    assert ran.code == 52
    assert "nothing of mx9, but of mx1" in ran.err
