"""`expire`, `hold`, `erase` and `--as-of` as a person runs them: words, JSON, exit codes.

What was removed is seen by nothing any more.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from sidecar.commands.hold import SUBCOMMANDS
from sidecar.replay.journal import Journal
from sidecar.replay.perform import Performance, Request
from sidecar.replay.run import resume
from sidecar.replay.targets import Result, Whereto, targets
from sidecar.select import Selection, select
from sidecar.units import iso_time
from store.ids import now_us
from store.records import Delivery, Leg, Outcome, Outcomes
from store.retention import erase, record
from store.store import Store
from tests.support.lmtp_sink import LmtpSink
from tests.support.mailstore import MESSAGE, Ran, mailkeep, options_in_help, written
from tests.support.service import COMMAND
from tests.support.sink_thread import SinkThread

README = (Path(__file__).parents[2] / "README.md").read_text()
DAY_US = 86_400_000_000
OK = b"250 2.0.0 Saved"
RULES = """
[[retention]]
to = "boss@example.org"
[[retention]]
to = "@example.org"
keep = "90d"
[[retention]]
direction = "out"
keep = "1d"
"""


class Place:
    """A store and a configuration with rules."""

    def __init__(self, directory: Path) -> None:
        self.store = directory / "store"
        self.config = directory / "mailkeep.toml"
        self.rules(RULES)
        now = now_us()
        self.mails: dict[str, Delivery] = {}
        with written(self.store) as fill:
            for name, days, how in (
                ("old", 103, {"queue_id": b"Q1"}),
                ("shared", 102, {"to": [b"boss@example.org", b"anna@example.org"]}),
                ("other", 101, {"to": [b"emil@example.net"]}),
                (
                    "sent",
                    3,
                    {"leg": Leg.MILTER, "to": [b"emil@example.net"], "attributes": {"auth_authen": b"a"}},
                ),
                ("young", 1, {"to": [b"carl@example.org"]}),
            ):
                self.mails[name] = fill.put(
                    MESSAGE + name.encode(),
                    subject=name.encode(),
                    time_us=now - days * DAY_US,
                    replies=[OK],
                    **how,
                )

    def rules(self, text: str) -> None:
        self.config.write_text(f'[store]\npath = "{self.store}"\n[lmtp]\n{text}')

    def run(self, *arguments: str) -> Ran:
        return mailkeep(*arguments, "--config", self.config)

    def listed(self, *arguments: str) -> set[str]:
        return {shown["subject"] for shown in self.run("list", "--json", "--limit", "0", *arguments).objects}

    def id(self, name: str) -> str:
        return self.mails[name].id.hex()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.delenv("MAILKEEP_CONFIG", raising=False)
    monkeypatch.setattr("sidecar.config.DEFAULT_PATH", tmp_path / "etc/mailkeep.toml")
    return Place(tmp_path)


def now() -> str:
    return iso_time(now_us())


EVERYTHING = {"old", "shared", "other", "sent", "young"}


# -- expire


def test_a_dry_run_changes_nothing(place: Place) -> None:
    before = sorted(path.name for path in place.store.rglob("*"))
    ran = place.run("expire", "--dry-run", "--json")
    assert ran.code == 0
    assert [(line["id"], line["rule"], line["hold"]) for line in ran.objects] == [
        (place.id("old"), "to @example.org, keep 90d", None),
        (place.id("sent"), "direction out, keep 1d", None),
    ]
    assert "1 deliveries, 50 B, would be dropped by: to @example.org, keep 90d\n" in ran.err
    text = place.run("expire", "--dry-run")
    assert re.match(
        r"[0-9a-f]{10}  \S+ \S+  lmtp  anna@example.org  \(to @example.org, keep 90d\)", text.lines[0]
    )
    assert place.listed() == EVERYTHING
    assert sorted(path.name for path in place.store.rglob("*")) == before


def test_expire(place: Place) -> None:
    ran = place.run("expire", "--json")
    assert ran.code == 0
    assert ran.objects == [
        {"rule": "to @example.org, keep 90d", "deliveries": 1, "message_bytes": 50},
        {"rule": "direction out, keep 1d", "deliveries": 1, "message_bytes": 51},
    ]
    assert place.listed() == {"shared", "other", "young"}
    again = place.run("expire")
    assert (again.code, again.out) == (0, "")
    assert "nothing that may go has had its time" in again.err


def test_rules_that_are_not_there_or_cannot_be_found(place: Place) -> None:
    place.rules("")
    ran = place.run("expire")
    assert (ran.code, ran.out) == (0, "")
    assert "all is kept for ever" in ran.err
    ran = mailkeep("expire", "--store", place.store)
    assert ran.code == 2
    assert "name it by --config" in ran.err
    place.rules("[[retention]]\nkeep = '90'")
    assert place.run("expire").code == 2
    place.rules("")
    assert place.listed() == EVERYTHING


# -- hold


def test_a_hold_from_its_placing_to_its_release(place: Place) -> None:
    ran = place.run(
        "hold",
        "add",
        "case-17",
        "--to",
        "anna@example.org",
        "--since",
        "1y",
        "--reason",
        "suit",
        "--owner",
        "law",
    )
    assert ran.code == 0
    assert re.fullmatch(
        r"hold case-17 is in force: --to anna@example.org --since 20\S+Z\n2 deliveries .*\n", ran.out
    )
    place.run("hold", "add", "one", "--id", place.id("sent")[:8], "--reason", "x")
    first, second = place.run("hold", "list", "--json").objects
    assert (first["name"], first["owner"], first["reason"], first["in_force"]) == (
        "case-17",
        "law",
        "suit",
        True,
    )
    assert first["matches"]["to"] == "anna@example.org"
    assert abs(first["matches"]["since_us"] - (now_us() - 365 * DAY_US)) < 60_000_000, "absolute from then on"
    assert second["matches"] == {"ids": [place.id("sent")]}
    assert second["owner"] == place.run("hold", "--json").objects[1]["owner"] != ""

    dry = place.run("expire", "--dry-run", "--json")
    assert [(line["id"], line["hold"]) for line in dry.objects] == [
        (place.id("old"), "case-17"),
        (place.id("sent"), "one"),
    ]
    ran = place.run("expire")
    assert (ran.code, ran.out) == (0, "")
    assert "2 more are past their time and held" in ran.err
    assert place.listed() == EVERYTHING

    released = place.run("hold", "release", "case-17", "--reason", "settled")
    assert (released.code, released.out) == (0, "hold case-17 is released\n")
    assert [hold["name"] for hold in place.run("hold", "list", "--json").objects] == ["one"]
    both = {hold["name"]: hold for hold in place.run("hold", "list", "--all", "--json").objects}
    assert (both["case-17"]["in_force"], both["case-17"]["reason"]) == (False, "settled")
    assert both["case-17"]["matches"] == first["matches"]
    assert "case-17  released " in place.run("hold", "list", "--all").out
    assert place.run("expire").code == 0
    assert place.listed() == EVERYTHING - {"old"}


def test_wrong_holds(place: Place) -> None:
    assert place.run("hold", "list").out == "no holds\n"
    add = ["hold", "add", "case", "--reason", "x"]
    ran = place.run(*add)
    assert ran.code == 2
    assert "say what to hold" in ran.err
    assert place.run("hold", "add", "case", "--to", "*").code == 2, "a reason is asked for"
    assert place.run(*add, "--id", "ffff").code == 17
    ran = place.run("hold", "release", "case", "--reason", "x")
    assert (ran.code, ran.out) == (17, "")
    assert "no hold case is in force" in ran.err
    assert "hold list" in ran.err
    assert place.run(*add, "--to", "*").code == 0
    ran = place.run(*add, "--to", "x@y")
    assert ran.code == 1
    assert "in force already: x" in ran.err
    assert place.run("hold", "add", "a/b", "--to", "*", "--reason", "x").code == 1
    assert len(place.run("hold", "list", "--json").objects) == 1


def test_options_before_the_subcommand(place: Place) -> None:
    ran = mailkeep("hold", "--store", place.store, "add", "case", "--to", "*", "--reason", "x")
    assert (ran.code, ran.err) == (0, "")
    assert len(mailkeep("hold", "--store", place.store, "list", "--json").objects) == 1


def test_hostile_words_are_shown_harmless(place: Place) -> None:
    place.run("hold", "add", "case", "--to", "*", "--reason", "\x1b[31mred\n", "--owner", "\x07")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", place.run("hold", "list").out)


def test_beside_a_writer(place: Place) -> None:
    """As beside `serve`: another process places the hold, and it counts here at once."""
    with Store.open(place.store) as store:
        store.start_writing("host")
        command = ["hold", "add", "case", "--to", "*", "--reason", "x", "--store", str(place.store)]
        done = subprocess.run(
            [*COMMAND, *command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        with pytest.raises(Exception, match="under the hold case"):
            erase(store, [place.mails["old"].id], owner="me", reason="x")


# -- erase


def test_erase_by_id_prints_a_receipt_without_a_word_of_the_mail(place: Place) -> None:
    ran = place.run("erase", place.id("old")[:10], "--reason", "request 88", "--owner", "dpo", "--yes")
    assert ran.code == 0
    assert place.id("old") in ran.out
    assert re.search(r"(?m)^By          dpo$", ran.out)
    assert re.search(r"(?m)^Reason      request 88$", ran.out)
    assert re.search(r"1 recipient  50 bytes  tombstone [0-9a-f]{32}", ran.out)
    assert "mailkeep compact" in ran.out
    for word in ("anna", "bert", "old\n", "lunch"):
        assert word not in ran.out
    assert place.listed() == EVERYTHING - {"old"}
    with Store.open(place.store) as store:
        assert store.was_erased(place.mails["old"].content)


def test_erase_by_filter_and_json(place: Place) -> None:
    ran = place.run("erase", "--to", "emil@example.net", "--reason", "request", "--yes", "--json")
    assert ran.code == 0
    assert [line["id"] for line in ran.objects] == [place.id("other"), place.id("sent")]
    (first, second) = ran.objects
    assert (first["leg"], first["recipients"], first["size"], first["reason"]) == ("lmtp", 1, 52, "request")
    assert re.fullmatch("[0-9a-f]{32}", first["tombstone"])
    assert first["captured"] < second["captured"] < first["erased"]
    assert place.listed() == {"old", "shared", "young"}


def test_a_dry_run_of_erase_changes_nothing(place: Place) -> None:
    ran = place.run("erase", "--to", "@example.net", "--reason", "x", "--dry-run", "--json")
    assert ran.code == 0
    assert [line["id"] for line in ran.objects] == [place.id("other"), place.id("sent")]
    assert "2 deliveries would be erased" in ran.err
    assert place.listed() == EVERYTHING


def test_erase_refuses(place: Place) -> None:
    assert place.run("erase", "--reason", "x", "--yes").code == 2, "all of it is never meant"
    assert place.run("erase", "--leg", "lmtp", "--reason", "x", "--yes").code == 2
    assert place.run("erase", place.id("old"), "--yes").code == 2, "a reason is asked for"
    ran = place.run("erase", place.id("old"), "--reason", "x")
    assert ran.code == 2
    assert "--yes" in ran.err
    assert place.run("erase", "ffffffff", "--reason", "x", "--yes").code == 17
    ran = place.run("erase", "--to", "nobody@x", "--reason", "x", "--yes")
    assert (ran.code, ran.out) == (4, "")
    place.run("hold", "add", "case", "--to", "boss@example.org", "--reason", "suit", "--owner", "law")
    for more in ("--yes", "--dry-run"):
        ran = place.run("erase", "--to", "anna@example.org", "--reason", "x", more)
        assert (ran.code, ran.out) == (20, "")
        assert "under the hold case of law (suit)" in ran.err
        assert "hold list" in ran.err
    assert place.listed() == EVERYTHING


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1), ("", 1)])
def test_a_terminal_is_asked(place: Place, answer: str, code: int) -> None:
    terminal, end = pty.openpty()
    command = ["erase", place.id("old"), "--reason", "x", "--store", str(place.store)]
    with subprocess.Popen(
        [*COMMAND, *command],
        stdin=end,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(end)
        os.write(terminal, answer.encode() + b"\n")
        _, err = process.communicate(timeout=60)
        os.close(terminal)
    assert process.returncode == code, err
    assert b"Erase 1 deliveries for good?" in err
    assert ("old" in place.listed()) is (code != 0)


@pytest.fixture
def legs(tmp_path: Path) -> dict[str, Delivery]:
    """One mail to anna and bert: offered once, a first try for anna deferred, then delivered to each; and the
    same bytes for anna again, later."""
    now = now_us()
    with written(tmp_path / "store") as fill:
        to_anna, to_bert = [b"anna@example.org"], [b"bert@example.org"]
        return {
            "offered": fill.put(
                MESSAGE, leg=Leg.MILTER, to=to_anna + to_bert, queue_id=b"Q1", time_us=now - 9 * DAY_US
            ),
            "try": fill.put(b"Received: 1\r\n" + MESSAGE, to=to_anna, queue_id=b"Q1", replies=[b"451 no"]),
            "anna": fill.put(b"Received: 2\r\n" + MESSAGE, to=to_anna, queue_id=b"Q1", replies=[OK]),
            "bert": fill.put(b"Received: 2\r\n" + MESSAGE, to=to_bert, queue_id=b"Q1", replies=[OK]),
            "again": fill.put(b"Received: 2\r\n" + MESSAGE, to=to_anna, queue_id=b"Q2", replies=[OK]),
            "else": fill.put(b"Received: 3\r\n" + MESSAGE, to=to_anna, queue_id=b"Q3", replies=[OK]),
        }


@pytest.mark.parametrize(
    ("arguments", "taken", "left"),
    [
        ("{anna}", "offered try anna", "bert again"),
        ("{bert}", "offered bert", "try anna again"),
        ("{anna} --leg lmtp", "anna", "offered try bert again"),
        ("{anna} --everywhere", "offered try anna bert again", ""),
        ("{again}", "again", "anna bert"),
        ("--to anna@example.org", "offered try anna again else", "bert"),
        ("--to bert@example.org", "offered bert", "try anna again"),
        ("--queue-id Q2", "again", "anna bert"),
        ("{else}", "else", ""),
    ],
)
def test_what_is_taken_and_what_is_told_to_stay(
    tmp_path: Path, legs: dict[str, Delivery], arguments: str, taken: str, left: str
) -> None:
    names = {delivery.id.hex(): name for name, delivery in legs.items()}
    asked = arguments.format(**{name: delivery.id.hex() for name, delivery in legs.items()}).split()
    store = tmp_path / "store"
    dry = mailkeep("erase", *asked, "--reason", "x", "--store", store, "--dry-run", "--json")
    planned = {
        word: [names[line["id"]] for line in dry.objects if line["would_be_erased"] is word]
        for word in (True, False)
    }
    assert planned == {True: taken.split(), False: left.split()}
    ran = mailkeep("erase", *asked, "--reason", "x", "--store", store, "--yes", "--json")
    assert [names[line["id"]] for line in ran.objects] == taken.split()
    assert [names[id_] for id_ in ran.objects[0]["left"]] == left.split()
    assert ("--everywhere" in ran.err) is bool(left)
    shown = [names[line["id"]] for line in mailkeep("list", "--json", "--store", store).objects]
    assert sorted(shown) == sorted(set(names.values()) - set(taken.split()))


# -- what was removed is not seen again


@pytest.mark.parametrize("removed", ["expired", "erased"])
def test_nothing_sees_what_was_removed(place: Place, removed: str, tmp_path: Path) -> None:
    if removed == "expired":
        assert place.run("expire").code == 0
    else:
        assert place.run("erase", place.id("old"), place.id("sent"), "--reason", "x", "--yes").code == 0
    words = "has expired on" if removed == "expired" else "was erased on"
    for arguments in (
        ["show", place.id("old")],
        ["show", place.id("old"), "--raw"],
        ["replay", place.id("old"), "--dry-run"],
        ["replay", place.id("young"), place.id("old"), "--downstream", "127.0.0.1:1"],
        ["export", place.id("young"), place.id("old"), "--format", "eml", "--output", str(tmp_path / "out")],
        ["erase", place.id("old"), "--reason", "x", "--yes"],
    ):
        ran = place.run(*arguments)
        assert (ran.code, ran.out) == (17, ""), arguments
        assert words in ran.err
        assert "does not come back" in ran.err
    assert not list(tmp_path.glob("out/*")), "nothing is done by halves"
    assert place.listed() == {"shared", "other", "young"}
    ran = place.run("replay", "--since", "1y", "--dry-run", "--json")
    assert ran.code == 0
    assert place.id("old") not in {line["id"] for line in ran.objects}
    ran = place.run("export", "--format", "eml", "--output", str(tmp_path / "all"))
    assert (ran.code, len(list((tmp_path / "all").iterdir()))) == (0, 3)
    stats = place.run("stats", "--json").objects[0]
    assert stats[removed] == 2


def test_erased_while_a_replay_runs(place: Place) -> None:
    with SinkThread(LmtpSink()) as server, Store.open(place.store) as store:
        store.start_writing("operator")
        todo = list(targets(select(store, Selection(leg="lmtp"), newest_first=False), Whereto()))
        gone = place.mails["other"]
        results = []

        def progress(result: Result) -> None:
            results.append(result)
            if not store.was_erased(gone.content):
                erase(store, [gone.id], owner="dpo", reason="request")

        journal = Journal(store, b"x" * 16, road="x", owner="o")
        performance = Performance(store, Request(address=server.sink.address, lanes=1), journal)
        performance.perform(resume(store, journal, todo), progress)
    assert [result.target.delivery.id for result in results if not result.is_back] == [gone.id]
    assert len(results) == len(todo)
    (missing,) = (result for result in results if not result.is_back)
    assert "was erased" in missing.why
    assert MESSAGE + b"other" not in {mail.message for mail in server.sink.delivered}
    assert len(server.sink.delivered) == 4


# -- as of


def test_as_of_before_and_after_an_expiry(place: Place, tmp_path: Path) -> None:
    before = now()
    assert place.run("expire").code == 0
    after = now()
    assert place.listed("--as-of", before) == EVERYTHING
    assert place.listed("--as-of", before, "--to", "anna@example.org") == {"old", "shared"}
    assert place.listed("--as-of", after) == {"shared", "other", "young"}
    assert place.listed("--as-of", "2d") == EVERYTHING - {"young"}
    assert place.listed("--as-of", "50d", "--queue-id", "Q1") == {"old"}
    assert place.listed("--as-of", "200d") == set()
    assert place.run("show", place.id("old"), "--as-of", before).code == 0
    assert place.run("show", place.id("old"), "--as-of", before, "--raw").raw == MESSAGE + b"old"
    assert place.run("show", place.id("old"), "--as-of", after).code == 17
    ran = place.run("show", place.id("young"), "--as-of", "2d")
    assert ran.code == 17
    assert "was captured later" in ran.err
    ran = place.run("replay", "--since", "1y", "--as-of", before, "--dry-run", "--json")
    assert place.id("old") in {line["id"] for line in ran.objects}
    assert "as of 20" in ran.err
    ran = place.run(
        "export",
        "--as-of",
        before,
        "--to",
        "anna@example.org",
        "--format",
        "eml",
        "--output",
        str(tmp_path / "e"),
    )
    assert (ran.code, len(list((tmp_path / "e").iterdir()))) == (0, 2)
    (stats,) = place.run("stats", "--as-of", before, "--json").objects
    assert stats["deliveries"] == {"lmtp": 4, "milter": 1}
    assert stats["message_bytes"] == sum(mail.size for mail in place.mails.values())
    assert "Deliveries   3 (3 lmtp)" in place.run("stats", "--as-of", after).out
    for command in (["list"], ["show", place.id("old")], ["stats"], ["replay", "--dry-run", place.id("old")]):
        assert place.run(*command, "--as-of", "soon").code == 2


def test_what_was_erased_is_gone_at_all_times(place: Place) -> None:
    before = now()
    assert place.run("erase", place.id("old"), "--reason", "x", "--yes").code == 0
    assert place.listed("--as-of", before) == EVERYTHING - {"old"}
    ran = place.run("show", place.id("old"), "--as-of", before)
    assert (ran.code, ran.out) == (17, "")
    assert "was erased" in ran.err


def test_as_of_knows_the_replies_of_then(tmp_path: Path) -> None:
    path = tmp_path / "store"
    start = now_us() - DAY_US
    with written(path) as fill:
        mail = fill.put(queue_id=b"Q1", time_us=start, replies=[b"451 later"])
        fill.put(queue_id=b"Q1", time_us=start + 2 * 3_600_000_000, replies=[OK], subject=b"retry")
        outcomes = Outcomes(delivery=mail.id, time_us=start + 3_600_000_000, outcomes=(Outcome(0, OK),))
        record(fill.store, [outcomes])
    assert [line["status"] for line in mailkeep("list", "--json", "--store", path).objects] == [
        "delivered"
    ] * 2
    then = iso_time(start + 1_800_000_000)
    (line,) = mailkeep("list", "--json", "--store", path, "--as-of", then).objects
    assert line["status"] == "refused"
    assert mailkeep("list", "--json", "--store", path, "--as-of", then, "--status", "delivered").objects == []
    (shown,) = mailkeep("show", mail.id.hex(), "--json", "--store", path, "--as-of", then).objects
    assert len(shown["delivered"]) == 1, "the retry has not happened yet"
    assert len(mailkeep("show", mail.id.hex(), "--json", "--store", path).objects[0]["delivered"]) == 2


def test_as_of_is_part_of_what_a_replay_is_asked_for() -> None:
    assert Selection(to="a@b").digest() != Selection(to="a@b", as_of="2026-01-01").digest()


# -- help


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_help_of_each(name: str) -> None:
    assert [option for option in options_in_help("hold", name) if option not in README] == []
    assert re.search(rf"(?m)^\$ mailkeep hold {name} ", README)
