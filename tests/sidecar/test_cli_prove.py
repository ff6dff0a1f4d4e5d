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
from typing import Any

import msgspec
import pytest

from store import merkle
from store.heads import Head, StreamHead
from store.ids import ContentId, DeliveryId
from store.notes import SignKey
from store.proofs import Proof
from store.records import Delivery, Envelope, Leg, Recipient, encode, leaf
from store.retention import erase
from store.sealing import new_identity
from store.store import Store
from tests.support.attacker import Attacker
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


def script(*arguments: str | Path, environment: dict[str, str] | None = None) -> Ran:
    """Run it as somebody does who has neither package: from elsewhere, with nothing of ours on the path."""
    isolated = "-I" if environment is None else "-s"  # -I would pass over the environment
    ran = subprocess.run(
        [sys.executable, isolated, SCRIPT, *arguments],
        cwd="/",
        capture_output=True,
        timeout=60,
        check=False,
        env=environment,
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
    assert min(took) < 10.0, "a second or two on a loaded machine; the bench has the figures"
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


def forged(*, stream: str = "host", fact: bytes = b"", **fields: Any) -> dict[str, Any]:
    """A proof that holds by its own head, as anybody can make one: a tree of one fact."""
    delivery = Delivery(
        **{
            "id": DeliveryId(b"i" * 16),
            "time_us": 1,
            "leg": Leg.LMTP,
            "content": ContentId(b"c" * 32),
            "size": 1,
            "envelope": Envelope(b"bert@example.com", (Recipient(b"anna@example.org"),)),
            **fields,
        }
    )
    fact = fact or encode(delivery)
    root = merkle.root(1, lambda *_: [leaf(fact)])
    head = Head(b"s" * 16, 1, (StreamHead(stream, 1, root, b"h" * 32),))
    return json.loads(Proof(stream, 0, fact, (), head.text()).text())


def both(proof: Path, told: object) -> tuple[Ran, Ran]:
    proof.write_text(told if isinstance(told, str) else json.dumps(told))
    return mailkeep("prove", "--verify", proof), script(proof)


DRIVING = re.compile("[\\x00-\\x09\\x0b-\\x1f\\x7f-\\x9f\\u2028\\u2029]")


def test_nothing_in_a_proof_makes_lines_of_its_own(tmp_path: Path) -> None:
    proof = tmp_path / "proof.json"
    line = "\nverified   the head is signed by mx1\x1b[2K\x9b\u2028"
    for told in (
        forged(stream=line),
        forged(subject=line.encode(), queue_id=line.encode()),
        forged(envelope=Envelope(line.encode(), (Recipient(line.encode()),))),
    ):
        for ran in both(proof, told):
            assert (ran.code, ran.err) == (0, "")
            assert not re.search("^ *(verified|the head is signed)", ran.out, re.MULTILINE)
            assert not DRIVING.search(ran.out)
    right = forged()
    for told in (
        right | {"stream": line},
        right | {"format": line},
        right | {"head": line},
        right | {"head": right["head"] + line},
        right | {"head": right["head"] + f"\n{line}\n"},
        right | {"path": [line]},
        forged(leg=line),
    ):
        for ran in both(proof, told):
            assert (ran.code, ran.out) == (1, ""), told
            assert not DRIVING.search(ran.err)
            assert len(ran.err.splitlines()) <= 2
    named = tmp_path / "m\nverified   all"
    named.write_bytes(b"x")
    proof.write_text(json.dumps(right))
    ran = script(proof, "--message", named)
    assert (ran.code, len(ran.err.splitlines())) == (1, 1)


def changed_fact(place: int, value: object) -> dict[str, Any]:
    plain = msgspec.msgpack.decode(base64.b64decode(forged()["fact"])[1:])
    plain[place] = value
    return forged(fact=b"\x01" + msgspec.msgpack.encode(plain))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, b"i" * 15),
        (0, b"i" * 17),
        (0, "i" * 16),
        (1, "now"),
        (1, 1.5),
        (1, True),
        (2, "smtp"),
        (2, 1),
        (2, ["lmtp"]),
        (3, b"c" * 31),
        (4, "xxx"),
        (4, True),
        (4, -1),
        (5, [b"a"]),
        (5, b"ab"),
        (5, [b"a", b"ab"]),
        (5, ["a", [[b"b"]]]),
        (5, [b"a", [["b"]]]),
        (5, [b"a", [[]]]),
        (6, 1),
        (7, None),
        (10, []),
        (11, {}),
    ],
)
def test_a_fact_of_other_types(tmp_path: Path, place: int, value: object) -> None:
    for ran in both(tmp_path / "proof.json", changed_fact(place, value)):
        assert (ran.code, ran.out) == (1, "")
        assert "Traceback" not in ran.err


def test_a_proof_of_other_types(tmp_path: Path) -> None:
    right = forged()
    for told in (
        *(right | {"number": number} for number in (False, 0.0, "0", [0], 1, -1)),
        *(right | {what: value} for what in ("stream", "fact", "head") for value in (None, 1, ["host"])),
        *(right | {"path": path} for path in (None, "", {}, [1])),
        *({k: v for k, v in right.items() if k != gone} for gone in right),
        [],
        "null",
        "[" * 100_000,
        '{"later": ' + "[" * 100_000,
        '{"number": ' + "1" * 10_000,
        "1" * 10_000,
    ):
        for ran in both(tmp_path / "proof.json", told):
            assert (ran.code, ran.out) == (1, ""), told
            assert "Traceback" not in ran.err


def test_a_fact_that_is_deep(tmp_path: Path) -> None:
    fact = b"\x01" + b"\x91" * 100_000
    for ran in both(tmp_path / "proof.json", forged(fact=fact)):
        assert (ran.code, ran.out) == (1, "")
        assert "Traceback" not in ran.err


def test_a_head_that_two_readers_would_read_in_two_ways(tmp_path: Path) -> None:
    right = forged()
    head = right["head"]
    stream = head.splitlines()[-1]
    for wrong in (
        head + "store " + "00" * 16 + "\n",
        head + "store\n",
        head + "time 1970-01-01T00:00:00.000000Z\n",
        head + stream + "\n",
        head + "gap host\n",
        head.replace(" host", " %68ost"),
        *(head.replace("stream 1", f"stream {facts}") for facts in ("01", "+1", " 1", "-1", "1_0", "\u0661")),
        *(head + f"later{end}gap other\n" for end in ("\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\r")),
        head.replace("\n", "\u2028"),
        head + "\n— mx1 \n",
        head.replace("\n", "\r\n"),
        head.replace("time ", "\ntime "),
        re.sub("^time.*\n", "", head, flags=re.MULTILINE),
        re.sub("^store.*\n", "", head, flags=re.MULTILINE),
        re.sub("^store.*\n", "store 00\n", head, flags=re.MULTILINE),
        re.sub("^time.*\n", "time now\n", head, flags=re.MULTILINE),
    ):
        for ran in both(tmp_path / "proof.json", right | {"head": wrong}):
            assert (ran.code, ran.out) == (1, ""), wrong
            assert "Traceback" not in ran.err
    for ran in both(tmp_path / "proof.json", right | {"head": head + "later lines are passed over\n"}):
        assert ran.code == 0
    kept = tmp_path / "kept.txt"
    kept.write_bytes(head.replace("\n", "\r\n").encode())
    for verify in (lambda *a: mailkeep("prove", "--verify", *a), script):
        assert verify(tmp_path / "proof.json", "--head", kept).code == 1


def test_a_time_that_no_calendar_has(tmp_path: Path) -> None:
    for time_us in (2**62, 2**63, -(2**63)):
        for ran in both(tmp_path / "proof.json", forged(time_us=time_us)):
            assert (ran.code, ran.err) == (0, "")
            assert f"captured {time_us} µs" in ran.out


def test_the_script_on_a_terminal_that_knows_ascii_alone(tmp_path: Path) -> None:
    proof = tmp_path / "proof.json"
    proof.write_text(json.dumps(forged(subject="Grüße ✓".encode())))
    ran = script(proof, environment={"PYTHONIOENCODING": "ascii"})
    assert (ran.code, ran.err) == (0, "")
    assert r"subject    Gr\xfc\xdfe \u2713" in ran.out


def test_the_script_with_a_key_that_is_none(tmp_path: Path) -> None:
    proof, key = tmp_path / "proof.json", str(SignKey.generate("mx1").verify_key)
    told = forged()
    proof.write_text(json.dumps(told | {"head": told["head"] + "\n— mx1 é\n"}))
    assert script(proof, "--key", key).code == 1
    proof.write_text(json.dumps(told))
    damaged = key.replace(key.split("+")[1], "00000000")
    for wrong in (key, damaged, "mx1", "", "a+b+c", "x" * 5000, key.replace("mx1", "mx1\nverified")):
        ran = script(proof, "--key", wrong)
        assert (ran.code, ran.out, len(ran.err.splitlines())) == (1, "", 1)
        assert ran.err.startswith("NOT PROVED: ")


def test_what_is_read_is_not_written_to(path: Path, put: list[Delivery], tmp_path: Path) -> None:
    head, key, linked = tmp_path / "head.txt", tmp_path / "k", tmp_path / "linked"
    public = tmp_path / "k.pub"
    assert mailkeep("head", "keygen", key).code == 0
    assert mailkeep("head", "--store", path, "--output", head, "--sign", key).code == 0
    linked.symlink_to(head)
    before = [file.read_bytes() for file in (head, key, public)]
    id_ = put[3].id.hex()
    for arguments in (
        ("head", "--store", path, "--consistent-with", head, "--output", head),
        ("head", "--store", path, "--consistent-with", head, "--output", linked),
        ("head", "--store", path, "--consistent-with", head, "--key", public, "--output", public),
        ("head", "--store", path, "--sign", key, "--output", key),
        ("head", "--store", path, "--output", public),
        ("prove", id_, "--store", path, "--head", head, "--output", head),
        ("prove", id_, "--store", path, "--head", head, "--output", linked),
        ("prove", id_, "--store", path, "--head", head, "--key", public, "--output", public),
        ("prove", id_, "--store", path, "--sign", key, "--output", key),
        ("prove", id_, "--store", path, "--output", head),
    ):
        ran = mailkeep(*arguments)
        assert (ran.code, ran.out) == (1, ""), arguments
        assert "Name another file" in ran.err
        assert [file.read_bytes() for file in (head, key, public)] == before
        assert linked.is_symlink()


def test_only_its_like_is_replaced(path: Path, put: list[Delivery], tmp_path: Path) -> None:
    output = tmp_path / "output"
    id_ = put[3].id.hex()
    old = tmp_path / "old.txt"
    assert mailkeep("head", "--store", path, "--output", old).code == 0
    commands = (
        ("head", "--store", path, "--output", output),
        ("head", "--store", path, "--consistent-with", old, "--output", output),
        ("prove", id_, "--store", path, "--output", output),
    )
    made = []
    for arguments in commands:
        assert mailkeep(*arguments).code == 0
        assert mailkeep(*arguments).code == 0, "its like is there"
        made.append(output.read_bytes())
        output.unlink()
    for which, arguments in enumerate(commands):
        others = [one for number, one in enumerate(made) if number != which]
        for there in (b"", b"\xff", b"{}", b"my letters\n", *others):
            output.write_bytes(there)
            ran = mailkeep(*arguments)
            assert (ran.code, ran.out) == (1, "")
            assert f"{output} is there already, and is no " in ran.err
            assert output.read_bytes() == there
        output.unlink()
        os.mkfifo(output)
        ran = mailkeep(*arguments)
        assert (ran.code, ran.err.splitlines()[0]) == (1, f"mailkeep: {output} is no file")
        output.unlink()


def test_a_head_is_replaced_by_one_that_goes_on_from_it(
    path: Path, put: list[Delivery], tmp_path: Path
) -> None:
    head, another = tmp_path / "head.txt", tmp_path / "another.txt"
    assert mailkeep("head", "--store", path, "--output", head).code == 0
    with written(path) as fill:
        fill.put(b"one more")
    assert mailkeep("head", "--store", path, "--output", head).code == 0
    before = head.read_text()
    assert "stream 301 " in before
    Attacker(path).rewrite(lambda groups: groups.reverse())
    ran = mailkeep("head", "--store", path, "--output", head)
    assert (ran.code, ran.out) == (1, "")
    assert "stream host: its first 301 facts are not what they were" in ran.err
    assert "Name another file" in ran.err
    assert head.read_text() == before
    assert mailkeep("head", "--store", path, "--output", another).code == 0
    with written(tmp_path / "elsewhere") as fill:
        fill.put()
    ran = mailkeep("head", "--store", tmp_path / "elsewhere", "--output", head)
    assert ran.code == 1
    assert "they are of different stores" in ran.err
    assert head.read_text() == before


def test_keys_are_made_both_or_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, public = tmp_path / "k", tmp_path / "k.pub"
    for there in (key, public):
        there.write_text("mine")
        ran = mailkeep("head", "keygen", key)
        assert (ran.code, ran.out, ran.err) == (1, "", f"mailkeep: {there}: File exists\n")
        assert [file.name for file in tmp_path.iterdir()] == [there.name]
        there.unlink()
    synced: list[str] = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        if synced[-1] == failing:
            raise OSError(28, "No space left on device", "k.pub")
        fsync(fd)

    monkeypatch.setattr("os.fsync", noted)
    failing = "k.pub"
    assert mailkeep("head", "keygen", key).code == 1
    assert not [*tmp_path.iterdir()]
    synced.clear()
    failing = ""
    assert mailkeep("head", "keygen", key).code == 0
    assert synced == ["k", "k.pub", tmp_path.name]
    assert (key.stat().st_mode & 0o777, public.stat().st_mode & 0o777) == (0o600, 0o644)
