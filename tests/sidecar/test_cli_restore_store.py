"""`check --replica`, `--repair-from` and `restore-store` over a directory, as an operator has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from store.replicas.remote import Remote
from store.replicas.ship import Shipper
from tests.support.mailstore import filled, mailkeep


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return filled(tmp_path / "store", 20)


@pytest.fixture
def url(path: Path, tmp_path: Path) -> str:
    (tmp_path / "copy").mkdir()
    remote = Remote.open(f"file://{tmp_path}/copy")
    Shipper(path, remote, "host").round()
    return remote.url


def test_compared_damaged_mended(path: Path, url: str) -> None:
    ran = mailkeep("check", "--replica", url, "--read-data", "--store", path)
    assert (ran.code, ran.err) == (0, "")
    assert "1 hosts" in ran.out
    assert "nothing wrong" in ran.out
    pack = next(path.glob("streams/host/*.pack"))
    whole = pack.read_bytes()
    pack.write_bytes(whole[:700] + b"x" + whole[701:])
    ran = mailkeep("check", "--replica", url, "--store", path)
    assert ran.code == 1
    assert f"local: {pack}" in ran.out
    assert "--repair-from" in ran.out
    *findings, summary = mailkeep("check", "--repair-from", url, "--json", "--store", path).objects
    assert {finding["kind"] for finding in findings} == {"local"}
    assert (summary["kind"], summary["mended"]) == ("summary", 1)
    assert pack.read_bytes() == whole
    assert mailkeep("check", "--read-data", "--store", path).code == 0


def test_no_replica_there(path: Path, tmp_path: Path) -> None:
    ran = mailkeep("check", "--replica", f"file://{tmp_path}/nowhere", "--store", path)
    assert ran.code in {50, 51, 52}
    assert "nowhere" in ran.err


def test_the_host_is_gone(url: str, tmp_path: Path) -> None:
    ran = mailkeep("restore-store", url, tmp_path / "again")
    assert (ran.code, ran.err) == (0, "")
    assert "20 deliveries of host" in ran.out
    assert len(mailkeep("list", "--json", "--store", tmp_path / "again").objects) == 20
    assert mailkeep("restore-store", url, tmp_path / "again").code != 0


def test_the_copy_is_mended(path: Path, url: str, tmp_path: Path) -> None:
    Shipper(path, Remote.open(url), "host").round(full=True)
    (piece,) = (tmp_path / "copy").glob("packs/host/*/*")
    whole = piece.read_bytes()
    piece.unlink()
    ran = mailkeep("check", "--replica", url, "--store", path)
    assert ran.code == 1
    assert "--repair-to URL" in ran.out
    assert not piece.exists()
    ran = mailkeep("check", "--repair-to", url, "--store", path)
    assert ran.code == 1
    assert "there: 1 created again, 0 left to `serve`" in ran.out
    assert piece.read_bytes() == whole
    piece.write_bytes(b"?" + whole[1:])
    assert mailkeep("check", "--repair-to", url, "--store", path).code == 0, "it was not read"
    *_, summary = mailkeep("check", "--repair-to", url, "--read-data", "--json", "--store", path).objects
    assert [summary[name] for name in ("findings", "created", "asked", "left")] == [1, 0, 1, 0]
    Shipper(path, Remote.open(url), "host").round()
    ran = mailkeep("check", "--replica", url, "--read-data", "--store", path)
    assert ran.code == 1, "the copy is there, and the next round names it"
    shipper = Shipper(path, Remote.open(url), "host")
    while shipper.round().more:
        pass
    assert mailkeep("check", "--replica", url, "--read-data", "--store", path).code == 0


def test_both_ways_at_once(path: Path, url: str, tmp_path: Path) -> None:
    Shipper(path, Remote.open(url), "host").round(full=True)
    (piece,) = (tmp_path / "copy").glob("packs/host/*/*")
    piece.unlink()
    pack = next(path.glob("streams/host/*.pack"))
    whole = pack.read_bytes()
    pack.write_bytes(whole[:700] + b"x" + whole[701:])
    ran = mailkeep("check", "--repair-to", url, "--repair-from", url, "--store", path)
    assert ran.code == 1
    assert "not mended" in ran.err, "neither side has it"
    assert "1 cannot be mended from here" in ran.out
    ran = mailkeep("check", "--repair-to", url, "--repair-from", f"{url}2", "--store", path)
    assert ran.code == 2
    assert "one replica at a time" in ran.err


def test_what_took_how_long(url: str, tmp_path: Path) -> None:
    (told,) = mailkeep("restore-store", url, tmp_path / "again", "--json").objects
    assert told["deliveries"] == 20
    assert list(told["seconds"]) == ["fetch", "index", "check"]
    assert all(0 <= seconds < 60 for seconds in told["seconds"].values())


def test_it_is_for_its_owner_alone(url: str, tmp_path: Path) -> None:
    (tmp_path / "owned").mkdir()
    if os.geteuid() == 0:
        os.chown(tmp_path / "owned", 65534, 65534)
    for name in ("owned", "new"):
        assert mailkeep("restore-store", url, tmp_path / name).code == 0
        owner = (tmp_path / name).stat().st_uid
        assert {file.stat().st_uid for file in (tmp_path / name).rglob("*")} == {owner}
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ran = mailkeep("restore-store", f"file://{tmp_path}/empty", tmp_path / "again")
    assert ran.code == 52
    assert "holds no replica" in ran.err
    ran = mailkeep("restore-store", f"file://{tmp_path}/empty", tmp_path / "again", "--key", tmp_path / "no")
    assert ran.code == 2


def test_the_replica_is_the_configured_one(tmp_path: Path) -> None:
    file = tmp_path / "mailkeep.toml"
    file.write_text(
        f'[store]\npath = "{tmp_path / "x"}"\n[lmtp]\n[[replica]]\nurl = "s3://bucket/x"\n'
        f'credentials = "{tmp_path / "none"}"\n'
    )
    ran = mailkeep("restore-store", "s3://bucket/x", tmp_path / "again", "--config", file)
    assert ran.code == 50
    assert f"{tmp_path / 'none'}: the credentials cannot be read" in ran.err
