"""`mailkeep head` and `prove` as people have them, and the script that verifies without mailkeep.

What would break these: a proof that verifies for another message, number or head; a script that shares our
mistakes, or that cannot be run where mailkeep is not installed.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from store.records import Delivery
from store.retention import erase
from store.sealing import new_identity
from store.store import Store
from tests.support.mailstore import MESSAGE, Filler, Ran, mailkeep, written

SCRIPT = Path(__file__).parents[2] / "deploy" / "verify_proof.py"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def put(path: Path) -> list[Delivery]:
    with written(path) as fill:
        return [
            fill.put(MESSAGE + b"%d" % n, subject=b"number %d" % n, queue_id=b"Q%d" % n) for n in range(300)
        ]


def script(*arguments: str | Path) -> Ran:
    """Run it as somebody does who has neither package: from elsewhere, with nothing of ours on the path."""
    ran = subprocess.run(
        [sys.executable, "-I", SCRIPT, *arguments], cwd="/", capture_output=True, timeout=60, check=False
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr.decode())


def test_it_imports_neither_package() -> None:
    imported = re.findall(r"^\s*(?:import|from) (\w+)", SCRIPT.read_text(), re.MULTILINE)
    assert set(imported) - sys.stdlib_module_names == {"blake3", "cryptography"}


def test_prove_and_verify(path: Path, put: list[Delivery], tmp_path: Path) -> None:
    signing, head, proof = tmp_path / "k", tmp_path / "head.txt", tmp_path / "proof.json"
    assert mailkeep("head", "keygen", signing, "--name", "mx1.example.org").code == 0
    assert mailkeep("head", "--store", path, "--sign", signing, "--output", head).code == 0
    id_ = put[123].id.hex()
    ran = mailkeep("prove", id_[:12], "--store", path, "--output", proof, "--head", head)
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert proof.stat().st_size < 4096
    message = tmp_path / "message.eml"
    message.write_bytes(mailkeep("show", id_, "--store", path, "--raw").raw)
    asked = ("--message", message, "--head", head, "--key", tmp_path / "k.pub")
    ran = mailkeep("prove", "--verify", proof, *asked)
    assert (ran.code, ran.err) == (0, "")
    assert f"delivery {id_}" in ran.out
    assert "is fact 123 of stream host" in ran.out
    assert "signed by mx1.example.org" in ran.out
    assert "not verified" not in ran.out
    told = mailkeep("prove", "--verify", proof, *asked, "--json").objects[0]
    assert told["verified"] == {"head": True, "signature": True, "message": True}
    assert (told["delivery"], told["number"], told["recipients"]) == (id_, 123, ["anna@example.org"])
    ran = script(proof, *asked)
    assert (ran.code, ran.err) == (0, "")
    assert f"delivery   {id_}, captured 2026-03-31T12:02:03+00:00 (lmtp)" in ran.out
    assert "subject    number 123" in ran.out
    assert ran.out.count("verified   ") == 3
    ran = script(proof)
    assert ran.code == 0
    assert ran.out.count("not asked  ") == 3


def test_what_is_not_so(path: Path, put: list[Delivery], tmp_path: Path) -> None:
    proof, head = tmp_path / "proof.json", tmp_path / "head.txt"
    proof.write_text(mailkeep("prove", put[7].id.hex(), "--store", path).out)
    wrong = tmp_path / "wrong.eml"
    wrong.write_bytes(MESSAGE + b"8")
    right = tmp_path / "right.eml"
    right.write_bytes(MESSAGE + b"7")
    with written(path) as fill:
        fill.put(b"one more")
    head.write_text(mailkeep("head", "--store", path).out)
    signing = tmp_path / "k"
    mailkeep("head", "keygen", signing)
    for verify in (lambda *a: mailkeep("prove", "--verify", *a), script):
        assert verify(proof, "--message", right).code == 0
        assert verify(proof, "--message", wrong).code == 1
        assert verify(proof, "--head", head).code == 1, "the head is a later one"
        assert verify(proof, "--key", tmp_path / "k.pub").code == 1, "nobody has signed it"
    whole = json.loads(proof.read_text())
    fact = bytearray(base64.b64decode(whole["fact"]))
    fact[30] ^= 1
    for change in (
        {"fact": base64.b64encode(fact).decode()},
        {"number": 8},
        {"number": -1},
        {"number": 10**30},
        {"stream": "other"},
        {"path": whole["path"][1:]},
        {"path": whole["path"][::-1]},
        {"path": []},
        {"head": whole["head"].replace("stream 300", "stream 256")},
        {"head": re.sub(r"stream 300 ..", "stream 300 xx", whole["head"])},
        {"head": ""},
        {"format": "mailkeep proof 2"},
        {"fact": ""},
        {"fact": "!"},
        {"number": None},
    ):
        proof.write_text(json.dumps(whole | change))
        assert mailkeep("prove", "--verify", proof).code == 1, change
        ran = script(proof)
        assert ran.code == 1, change
        assert ran.err.startswith("NOT PROVED: ")
        assert "Traceback" not in ran.err
    proof.write_text("not JSON")
    assert mailkeep("prove", "--verify", proof).code == script(proof).code == 1


def test_what_was_erased_is_not_proved(path: Path, put: list[Delivery], tmp_path: Path) -> None:
    head = tmp_path / "head.txt"
    mailkeep("head", "--store", path, "--output", head)
    with Store.open(path) as store:
        store.start_writing("operator")
        erase(store, [put[3].id], owner="dpo", reason="asked")
    ran = mailkeep("prove", put[3].id.hex(), "--store", path)
    assert (ran.code, ran.out) == (17, "")
    assert "was erased" in ran.err
    assert mailkeep("prove", put[4].id.hex(), "--store", path, "--head", head).code == 0
    with written(path) as fill:
        late = fill.put(b"late")
    ran = mailkeep("prove", late.id.hex(), "--store", path, "--head", head)
    assert ran.code == 17
    assert "came later" in ran.err


def test_heads_compared(path: Path, put: list[Delivery], tmp_path: Path) -> None:
    old, new, between = tmp_path / "old.txt", tmp_path / "new.txt", tmp_path / "between.json"
    assert mailkeep("head", "--store", path, "--output", old).code == 0
    with written(path) as fill:
        fill.put(b"one more")
    ran = mailkeep("head", "--store", path, "--consistent-with", old, "--output", between)
    assert ran.code == 0
    assert "all 300 facts of the earlier head are as they were; 1 facts came since" in ran.out
    assert mailkeep("head", "--verify", between).out == ran.out
    told = mailkeep("head", "--store", path, "--consistent-with", old, "--json").objects[0]
    assert told["consistent"]
    mailkeep("head", "--store", path, "--output", new)
    assert "301 facts in 1 streams" in mailkeep("head", "--verify", new).out
    between.write_text(re.sub(r"stream 301 ..", "stream 301 xx", between.read_text()))
    assert mailkeep("head", "--verify", between).code == 1
    (stream,) = mailkeep("head", "--store", path, "--json").objects[0]["streams"]
    assert (stream["stream"], stream["facts"]) == ("host", 301)


def test_wrong_usage(path: Path, put: list[Delivery], tmp_path: Path) -> None:
    for arguments in (
        ["prove", "--store", path],
        ["prove", "12", "--verify", "x"],
        ["prove", "12", "--store", path, "--message", "x"],
    ):
        assert mailkeep(*arguments).code == 2
    assert mailkeep("head", "--verify", tmp_path / "nothing").code == 1
    (tmp_path / "text").write_text("hello\n")
    ran = mailkeep("check", "--store", path, "--since-head", tmp_path / "text")
    assert (ran.code, ran.out) == (1, "")
    assert "that is no head" in ran.err
    assert mailkeep("head", "keygen", tmp_path / "text").code == 1
    assert mailkeep("head", "--store", path, "--sign", tmp_path / "text").code == 1
    assert mailkeep("head", "--verify", tmp_path / "text", "--key", "nonsense").code in {1, 2}


def test_the_script_is_quick(path: Path, put: list[Delivery], tmp_path: Path) -> None:
    proof = tmp_path / "proof.json"
    proof.write_text(mailkeep("prove", put[7].id.hex(), "--store", path).out)
    took = []
    for _ in range(5):
        began = time.perf_counter()
        assert script(proof).code == 0
        took.append(time.perf_counter() - began)
    assert min(took) < 2.0, "a second or two on a loaded machine; the bench has the figures"
    assert os.access(SCRIPT, os.X_OK)


def test_a_sealed_store(path: Path, tmp_path: Path) -> None:
    """Heads and the comparison with them need no identity; a proof shows what is sealed, and does."""
    secret, public = new_identity()
    identity = tmp_path / "identity"
    identity.write_text(secret)
    with Store.open(path, create=True, recipients=(public,)) as store:
        store.start_writing("host")
        delivery = Filler(store).put(MESSAGE)
    head, proof = tmp_path / "head.txt", tmp_path / "proof.json"
    assert mailkeep("head", "--store", path, "--output", head).code == 0
    assert mailkeep("head", "--store", path, "--consistent-with", head).code == 0
    ran = mailkeep("check", "--store", path, "--since-head", head)
    assert ran.code == 0
    assert "NOT VERIFIED: 1 of them are sealed" in ran.out
    assert mailkeep("prove", delivery.id.hex(), "--store", path).code not in {0, 1, 2}
    known = ("--store", path, "--identity", identity)
    assert mailkeep("check", *known, "--since-head", head, "--read-data").code == 0
    assert mailkeep("prove", delivery.id.hex(), *known, "--head", head, "--output", proof).code == 0
    message = tmp_path / "message.eml"
    message.write_bytes(MESSAGE)
    ran = script(proof, "--message", message, "--head", head)
    assert (ran.code, ran.err) == (0, "")
