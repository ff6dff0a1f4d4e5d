"""The command as a whole: help, errors in words, exit codes, light starts, closed pipes, check and stats."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.cli import COMMANDS
from sidecar.select import Selection
from store.store import Store
from tests.store.conftest import put_message
from tests.support.mailstore import MESSAGE, mailkeep, written
from tests.support.service import COMMAND

READING = ["list", "show", "export", "check", "stats"]
CONFIG = '[store]\npath = "{path}"\n[lmtp]\nlisten = "127.0.0.1:2424"\ndownstream = "127.0.0.1:24"\n'


def arguments_of(command: str, output: Path) -> list[str | Path]:
    return [
        command,
        *{"show": ["ab"], "export": ["--format", "mbox", "--output", str(output / "mbox")]}.get(command, []),
    ]


@pytest.fixture(autouse=True)
def _no_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MAILKEEP_CONFIG", raising=False)
    monkeypatch.setattr("sidecar.config.DEFAULT_PATH", tmp_path / "etc/mailkeep.toml")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_a_sentence_an_example_and_exit_codes(command: str) -> None:
    ran = mailkeep(command, "--help")
    assert ran.code == 0
    assert ran.lines[0].startswith(f"Usage: mailkeep {command} ")
    assert f"Example: mailkeep {command}" in ran.out
    assert re.search("Exit codes?: 0", ran.out)
    assert "*" not in ran.lines[0]


def test_help_lists_every_command() -> None:
    for ran in (mailkeep("--help"), mailkeep()):
        listed = re.findall(r"(?m)^  ([a-z][a-z-]+)  +[A-Z]", ran.out + ran.err)
        assert listed == list(COMMANDS)
    assert mailkeep("lits").code == 2


@pytest.mark.parametrize("command", READING)
def test_no_store_is_told_in_words(command: str, tmp_path: Path) -> None:
    arguments = arguments_of(command, tmp_path)
    ran = mailkeep(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("mailkeep: no store is named")
    for looked_at in ("--store", "--config", "MAILKEEP_CONFIG", "etc/mailkeep.toml"):
        assert looked_at in ran.err
    ran = mailkeep(*arguments, "--store", tmp_path / "none")
    assert (ran.code, ran.out) == (11, "")
    assert ran.err.splitlines()[0] == f"mailkeep: there is no store at {tmp_path / 'none'}"
    assert ran.err.count("\n") == 2
    assert not (tmp_path / "none").exists()


def test_the_store_by_option_environment_and_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with written(tmp_path / "store") as fill:
        fill.put()
    config = tmp_path / "mailkeep.toml"
    config.write_text(CONFIG.format(path=tmp_path / "store"))
    assert len(mailkeep("list", "--config", config, "--json").objects) == 1
    monkeypatch.setenv("MAILKEEP_CONFIG", str(config))
    assert len(mailkeep("list", "--json").objects) == 1
    monkeypatch.setenv("MAILKEEP_CONFIG", str(tmp_path / "missing.toml"))
    assert len(mailkeep("list", "--json", "--store", tmp_path / "store").objects) == 1
    ran = mailkeep("list")
    assert (ran.code, ran.out) == (2, "")
    assert "missing.toml: cannot be read" in ran.err
    monkeypatch.delenv("MAILKEEP_CONFIG")
    (tmp_path / "etc").mkdir()
    config.rename(tmp_path / "etc/mailkeep.toml")
    assert len(mailkeep("list", "--json").objects) == 1


def test_a_slip_in_the_config_is_told_in_words(tmp_path: Path) -> None:
    config = tmp_path / "mailkeep.toml"
    config.write_text("[store]\npth = 'x'\n")
    ran = mailkeep("stats", "--config", config)
    assert ran.code == 2
    assert "did you mean path?" in ran.err


@pytest.mark.parametrize(
    "arguments",
    [["--since", "bla"], ["--until", "25:00"], ["--leg", "smtp"], ["--status", "lost"], ["--limit", "x"]],
)
def test_wrong_usage(arguments: list[str], tmp_path: Path) -> None:
    ran = mailkeep("list", "--store", tmp_path, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert arguments[0] in ran.err


def test_a_file_that_cannot_be_made_is_told_in_words(tmp_path: Path) -> None:
    with written(tmp_path / "store") as fill:
        fill.put()
    output = tmp_path / "no/such/folder"
    ran = mailkeep("export", "--store", tmp_path / "store", "--format", "mbox", "--output", output)
    assert (ran.code, ran.err) == (1, f"mailkeep: {output}: No such file or directory\n")


def run(*arguments: str | Path, **how: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "sidecar.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **how)  # type: ignore[call-overload, no-any-return]  # a test's own keywords


@pytest.mark.parametrize("command", ["version", "list"])
def test_a_start_loads_only_what_it_needs(command: str, tmp_path: Path) -> None:
    with written(tmp_path / "store") as fill:
        fill.put()
    code = (
        "import sys; from sidecar.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print({'rich', 'aiosmtpd', 'uvloop', 'prometheus_client', 'asyncio'} & set(sys.modules))"
    )
    arguments = [command] + (["--store", str(tmp_path / "store")] if command == "list" else [])
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"


def test_version_names_libraries() -> None:
    ran = run("version")
    assert ran.returncode == 0
    assert re.search(r"(?m)^python 3\.", ran.stdout)
    assert re.search(r"(?m)^lmdb \d", ran.stdout)


@pytest.mark.parametrize("limit", ["2", "0"])
def test_a_reader_that_goes_away_is_no_fault(tmp_path: Path, limit: str) -> None:
    with Store.open(tmp_path / "store", create=True) as store:
        store.start_writing("host")
        for _ in range(3):
            put_message(store, MESSAGE, to=(b"x" * 60_000,))
    reader, writer = os.pipe()
    os.close(reader)
    command = [*COMMAND, "list", "--json", "--limit", limit, "--store"]
    with os.fdopen(writer, "wb") as gone:
        done = subprocess.run(
            [*command, tmp_path / "store"], stdout=gone, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert done.returncode == 1
    assert b"Error" not in done.stderr


def test_a_terminal_that_knows_only_ascii(tmp_path: Path) -> None:
    with written(tmp_path / "store") as fill:
        fill.put(subject="Zwölf".encode())
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    ran = run("list", "--store", tmp_path / "store", env=environment)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "Zw\\xf6lf" in ran.stdout


def test_check_and_stats_of_a_sound_store(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True) as store:
        store.start_writing("host")
        for _ in range(2):
            put_message(store, MESSAGE)
        put_message(store, MESSAGE, leg="milter")
    ran = mailkeep("check", "--read-data", "--store", tmp_path / "store")
    assert (ran.code, ran.err) == (0, "")
    assert re.fullmatch(r"1 streams, \d+ commits, 3 deliveries, .* read: nothing wrong\n", ran.out)
    as_json = mailkeep("check", "--json", "--store", tmp_path / "store")
    (summary,) = as_json.objects
    assert (as_json.code, summary["kind"], summary["findings"]) == (0, "summary", 0)
    (stats,) = mailkeep("stats", "--json", "--store", tmp_path / "store").objects
    assert stats["deliveries"] == {"lmtp": 2, "milter": 1}
    assert stats["message_bytes"] == 3 * len(MESSAGE)
    assert stats["contents"] == 1
    assert stats["streams"] == ["host"]
    assert (stats["replays"], stats["uncaptured"]) == (0, 0)
    assert stats["last_commit"].endswith("Z")
    assert stats["ratio"] == stats["message_bytes"] / (stats["pack_bytes"] + stats["index_bytes"])
    text = mailkeep("stats", "--store", tmp_path / "store").out
    assert "Deliveries   3 (2 lmtp, 1 milter)\n" in text


def test_stats_of_an_empty_store(tmp_path: Path) -> None:
    Store.open(tmp_path / "store", create=True).close()
    (stats,) = mailkeep("stats", "--json", "--store", tmp_path / "store").objects
    assert (stats["deliveries"], stats["ratio"], stats["last_commit"]) == ({}, None, None)
    assert "no mail yet" in mailkeep("stats", "--store", tmp_path / "store").out
    assert mailkeep("list", "--store", tmp_path / "store").out == ""


@pytest.mark.parametrize("read_data", [False, True])
def test_check_names_damage_with_a_hint(tmp_path: Path, *, read_data: bool) -> None:
    with written(tmp_path / "store") as fill:
        for number in range(3):
            fill.put(MESSAGE + b"%d" % number)
    pack = next((tmp_path / "store/streams/host").glob("*.pack"))
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    arguments = ["check", "--store", tmp_path / "store"] + (["--read-data"] if read_data else [])
    ran = mailkeep(*arguments)
    assert ran.code == 1
    assert str(pack) in ran.out
    assert re.search(r"(?m)^  Restore this pack", ran.out)
    assert re.search(r"\d findings\n$", ran.out)
    found = mailkeep(*arguments, "--json").objects
    assert {"kind", "where", "what", "hint"} == set(found[0])
    assert {"damage"} <= {finding["kind"] for finding in found}
    assert found[-1]["findings"] == len(found) - 1


def test_check_tells_of_damage_that_opening_found(tmp_path: Path) -> None:
    with written(tmp_path / "store") as fill:
        fill.put()
        fill.put()
    pack = next((tmp_path / "store/streams/host").glob("*.pack"))
    with pack.open("r+b") as file:
        file.truncate(pack.stat().st_size - 100)  # the index has seen what is now gone
    ran = mailkeep("check", "--store", tmp_path / "store")
    assert ran.code == 1
    assert "are missing" in ran.out


def test_digests_name_a_request_as_it_was_written() -> None:
    asked = Selection(to="anna@example.org", since="2h")
    assert asked.digest() == Selection(since="2h", to="anna@example.org").digest()
    others = [Selection(), Selection(to="anna@example.org"), Selection(sender="anna@example.org", since="2h")]
    assert len({selection.digest() for selection in [asked, *others]}) == 4
    assert {len(selection.digest()) for selection in others} == {16}
