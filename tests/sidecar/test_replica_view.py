"""The operator's commands on a replica: they list, find, show, export and put back what was captured."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from store.index_copy import copy_of
from store.replicas.errors import ReplicaError
from store.replicas.remote import Remote
from store.replicas.ship import ShipOptions, Shipper
from store.store import Store
from tests.store.conftest import put_message
from tests.support.lmtp_sink import LmtpSink
from tests.support.service import COMMAND
from tests.support.sink_thread import SinkThread

ANNA, BERT = b"anna@example.org", b"bert@example.org"


class Bucket:
    """A replica in a directory, and what two hosts have captured and shipped there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.url = f"file://{directory / 'bucket'}"
        self.mails: dict[str, bytes] = {}
        for number, to in enumerate((ANNA, BERT)):
            name = f"mx{number}"
            with Store.open(directory / name, create=True) as store:
                store.start_writing(name)
                shipper = Shipper(
                    directory / name, Remote.open(self.url), name,
                    ShipOptions(index=lambda store=store: copy_of(store.index, store.view.names())),  # type: ignore[misc]  # bound now
                )  # fmt: skip
                for count in range(10):
                    head = f"Message-ID: <{count}@{name}>\r\nSubject: mail {count} of {name}\r\n"
                    noise = os.urandom(100_000).hex()  # so that a look at a pack does not bring all of it
                    text = f"{head}\r\nword{count}\r\n{noise}\r\n"
                    self.mails[put_message(store, text.encode(), to=(to,)).id.hex()] = text.encode()
                    if count == 7:
                        store.settle_index()
                        shipper.round(full=True)
                store.settle_index()
                shipper.round()

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        place = {"MAILKEEP_VIEW_DIR": str(self.directory / "views"), "MAILKEEP_CONFIG": ""}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        return subprocess.run(
            [*COMMAND, *arguments, "--store", self.url],
            capture_output=True, text=True, check=False, timeout=60, env=clean | place | environment,
        )  # fmt: skip

    def ids(self, *arguments: str) -> set[str]:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return {json.loads(line)["id"] for line in done.stdout.splitlines()}


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket(tmp_path)


def test_it_is_listed_found_shown_and_exported(bucket: Bucket, tmp_path: Path) -> None:
    assert bucket.ids("list", "--limit", "0") == set(bucket.mails)
    annas = {id_ for id_, mail in bucket.mails.items() if b"@mx0>" in mail}
    assert bucket.ids("list", "--limit", "0", "--to", "anna@example.org") == annas
    for id_, mail in list(bucket.mails.items())[::4]:
        shown = bucket.run("show", id_[:10], "--raw")
        assert shown.stdout.encode() == mail.replace(b"\r\n", b"\n"), shown.stderr  # text mode reads so
    done = bucket.run("export", "--format", "eml", "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert {path.read_bytes() for path in (tmp_path / "out").rglob("*.eml")} == set(bucket.mails.values())


def test_words_are_found_once_they_were_read(bucket: Bucket) -> None:
    sevens = {id_ for id_, mail in bucket.mails.items() if b"word7" in mail}
    before = bucket.run("find", "subject:mail", "7", "--json")
    assert {json.loads(line)["id"] for line in before.stdout.splitlines()} == sevens
    assert "find --build" in before.stderr
    built = bucket.run("find", "--build")
    assert built.returncode == 0, built.stderr
    assert bucket.ids("find", "word7") == sevens
    anew = {"MAILKEEP_VIEW_DIR": str(bucket.directory / "others")}  # where nothing was fetched yet
    built = bucket.run("find", "--build", **anew)
    assert (built.returncode, built.stderr.count("10 messages")) == (0, 2), built.stderr
    found = bucket.run("find", "word7", "--json", **anew)
    assert {json.loads(line)["id"] for line in found.stdout.splitlines()} == sevens


def test_a_pack_that_is_missing_hides_nothing_else(bucket: Bucket, tmp_path: Path) -> None:
    annas = {id_ for id_, mail in bucket.mails.items() if b"@mx0>" in mail}
    (pack,) = (bucket.directory / "bucket/packs/mx1").iterdir()
    for piece in pack.iterdir():
        piece.unlink()
    listed = bucket.run("list", "--json", "--limit", "0")
    assert annas <= {json.loads(line)["id"] for line in listed.stdout.splitlines()} < set(bucket.mails)
    assert (listed.returncode, "is missing" in listed.stderr) == (1, True), listed.stderr
    output = tmp_path / "out"
    exported = bucket.run("export", "--format", "eml", "--output", str(output))
    assert (exported.returncode, "failed" in exported.stderr) == (1, True), exported.stderr
    assert len(list(output.iterdir())) >= len(annas)
    sink = LmtpSink()
    with SinkThread(sink) as server:
        done = bucket.run("replay", "--downstream", server.address, "--all")
        assert done.returncode == 3, done.stderr
        assert "Traceback" not in done.stderr
        assert len(annas) <= len(sink.delivered) < len(bucket.mails)


def test_a_host_that_cannot_be_read_is_told_and_the_others_are_there(bucket: Bucket, tmp_path: Path) -> None:
    for file in (bucket.directory / "bucket/hosts/mx1/full").iterdir():
        file.write_bytes(b"?")
    annas = {id_ for id_, mail in bucket.mails.items() if b"@mx0>" in mail}
    output = str(tmp_path / "out")
    for command in ("list", "--json", "--limit", "0"), ("find", "subject:mail", "--json", "--limit", "0"):
        done = bucket.run(*command)
        assert done.returncode == 1, done.stderr
        assert {json.loads(line)["id"] for line in done.stdout.splitlines()} == annas
        assert "mailkeep: mx1: " in done.stderr
        assert "has nothing of mx1 that can be read" in done.stderr
    assert bucket.run("export", "--format", "eml", "--output", output).returncode == 1
    assert len(list(Path(output).iterdir())) == len(annas)
    sink = LmtpSink()
    with SinkThread(sink) as server:
        replay = ("replay", "--downstream", server.address)
        assert bucket.run(*replay, min(annas), "--dry-run").returncode == 0, "what is named is there"
        assert bucket.run(*replay, "--to", "anna@example.org", "--dry-run").returncode == 3
        assert bucket.run(*replay, "--to", "anna@example.org").returncode == 3
        assert len(sink.delivered) == len(annas)
    assert bucket.run("show", min(annas)).returncode == 0


def test_it_is_put_back_once(bucket: Bucket) -> None:
    sink = LmtpSink()
    with SinkThread(sink) as server:
        arguments = ("replay", "--to", "anna@example.org", "--downstream", server.address)
        done = bucket.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        assert sorted(found.message for found in sink.delivered) == sorted(
            mail for mail in bucket.mails.values() if b"@mx0>" in mail
        )
        id_ = next(id_ for id_, mail in bucket.mails.items() if b"@mx0>" in mail)
        shown = bucket.run("show", id_, "--json")
        assert len(json.loads(shown.stdout)["replays"]) == 1, "it is on record, here"
    for host in ("mx0", "mx1"):
        with Store.open(bucket.directory / host) as store:
            assert store.stats().counters.replays == 0, "and not there"


def test_what_needs_the_store_itself_says_so(bucket: Bucket) -> None:
    for arguments in (("check",), ("expire", "--dry-run"), ("stats",), ("compact",)):
        done = bucket.run(*arguments)
        assert done.returncode == 2
        assert "restore-store" in done.stderr
    done = bucket.run("audit", "--import-missing", "--maildir", str(bucket.directory), "anna@example.org")
    assert done.returncode == 2
    assert "is so on its host" in done.stderr


def test_what_is_no_replica_says_so(bucket: Bucket) -> None:
    none = bucket.directory / "none"
    bucket.url = f"file://{none}"
    done = bucket.run("list")
    assert done.returncode == 50
    assert "No such file or directory\nMount what is to be there, or mend the URL" in done.stderr
    assert not none.exists(), "who reads makes nothing"
    none.mkdir()
    done = bucket.run("list")
    assert done.returncode == 52
    assert "holds no replica" in done.stderr


def test_addresses_and_credentials_come_from_the_configuration(bucket: Bucket, tmp_path: Path) -> None:
    file = tmp_path / "mailkeep.toml"
    file.write_text(
        f'[store]\npath = "{tmp_path / "x"}"\n[lmtp]\ndownstream = "127.0.0.1:1"\n[[replica]]\n'
        f'url = "s3://bucket/x"\nendpoint = "http://127.0.0.1:9"\ncredentials = "{tmp_path / "none"}"\n'
    )
    bucket.url = "s3://bucket/x/"
    done = bucket.run("list", "--config", str(file))
    assert f"{tmp_path / 'none'}: the credentials cannot be read" in done.stderr
    done = bucket.run("list", AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_ACCESS_KEY_ID="")
    assert "AWS_SECRET_ACCESS_KEY is not" in done.stderr
    assert done.returncode == ReplicaError.exit_code


def test_a_slip_in_the_address_is_told_in_words(bucket: Bucket) -> None:
    bucket.url = "https://s3.example.net/bucket/x"
    done = bucket.run("list")
    assert done.returncode == ReplicaError.exit_code
    assert "write s3://bucket/prefix" in done.stderr
    bucket.url = "s3://bucket/x"
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    done = bucket.run("list", AWS_ENDPOINT_URL="127.0.0.1:9", **keys)
    assert done.returncode == ReplicaError.exit_code
    assert "127.0.0.1:9 is no endpoint: write https://" in done.stderr
    assert "Traceback" not in done.stderr
    done = bucket.run("list", AWS_ENDPOINT_URL="http://127.0.0.1:9", **keys)
    assert done.returncode == ReplicaError.exit_code
    assert "asked at http://127.0.0.1:9: " in done.stderr
