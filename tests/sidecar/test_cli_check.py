"""`mailkeep check` and `mailkeep rebuild` as an operator has them: options, JSON, hints and exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from store.check import Checker, CheckOptions, Sample
from store.store import Store
from tests.support.mailstore import MESSAGE, filled, mailkeep, written


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return filled(tmp_path / "store", 20)


def spoil(path: Path) -> Path:
    pack = next(path.glob("streams/host/*.pack"))
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    return pack


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ([], None),
        (["--read-data"], 20),
        (["--read-data", "--threads", "2"], 20),
        (["--threads", "2", "--read-data"], 20),
        (["--read-data=100%"], 20),
        (["--read-data", "100%"], 20),
        (["--read-data=1/1", "--resume"], 20),
    ],
)
def test_how_much_is_read(path: Path, arguments: list[str], read: int | None) -> None:
    ran = mailkeep("check", "--store", path, "--json", *arguments)
    (summary,) = ran.objects
    assert (ran.code, ran.err) == (0, "")
    assert (summary["kind"], summary["findings"], summary["deliveries"]) == ("summary", 0, 20)
    assert summary["messages_read"] == (read or 0)
    assert (summary["read_data"] is None) == (read is None)


def test_five_parts_are_all(path: Path) -> None:
    ran = [mailkeep("check", "--store", path, "--json", f"--read-data={n}/5") for n in range(1, 6)]
    assert sum(summary.objects[-1]["messages_read"] for summary in ran) == 20
    assert [summary.objects[-1]["read_data"] for summary in ran][1] == "2/5"


@pytest.mark.parametrize("wrong", ["--read-data=6/5", "--read-data=0%", "--read-data=some", "--threads=0"])
def test_wrong_usage(path: Path, wrong: str) -> None:
    ran = mailkeep("check", "--store", path, wrong)
    assert (ran.code, ran.out) == (2, "")
    assert wrong.partition("=")[0] in ran.err


def test_findings_as_lines_and_as_json(path: Path) -> None:
    pack = spoil(path)
    ran = mailkeep("check", "--store", path)
    assert ran.code == 1
    assert ran.lines[0].startswith(f"damage: {pack}:")
    assert ran.lines[1].startswith("  Restore this pack")
    assert ran.lines[-1].endswith(" findings")
    *findings, summary = mailkeep("check", "--store", path, "--json").objects
    assert all(finding.keys() == {"kind", "where", "what", "hint"} for finding in findings)
    assert all(finding["hint"] for finding in findings)
    assert summary["findings"] == len(findings)


def test_an_index_that_is_wrong_is_put_right(path: Path) -> None:
    with Store.open(path) as store, store.index.update() as update:
        update.fold()
        update.drop_packs(list(store.index.known(b"").catalogue.packs.values()), 0)
        with update._txn.cursor(db=store.index.fresh) as cursor:
            assert not cursor.first()
        update.adopt_runs([], instead_of=frozenset(run.number for run in update.known.catalogue.runs))
    ran = mailkeep("check", "--store", path)
    assert ran.code == 1
    assert ran.lines[0].startswith("index: ")
    assert "Run `mailkeep rebuild`" in ran.lines[1]
    assert mailkeep("list", "--store", path, "--json").objects == []
    ran = mailkeep("rebuild", "--store", path)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("20 deliveries, 20 messages, 20 parts from ")
    assert mailkeep("check", "--store", path, "--read-data").code == 0
    assert len(mailkeep("list", "--store", path, "--json", "--limit", "0").objects) == 20


def test_rebuild_as_json_and_with_damage(path: Path) -> None:
    (report,) = mailkeep("rebuild", "--store", path, "--json").objects
    assert (report["deliveries"], report["contents"], report["damage"]) == (20, 20, [])
    pack = spoil(path)
    ran = mailkeep("rebuild", "--store", path)
    assert ran.code == 1
    assert ran.lines[0].startswith(f"damage: {pack} at byte ")
    assert "the index is new" in ran.lines[-1]


def test_resume_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with Store.open(path, create=True) as store:
        for n in range(4):
            store.start_writing(f"host{n}", pack_bytes=600)
            store.writer.close()
    with written(path) as fill:
        for n in range(10):
            fill.put(MESSAGE * 4 + b"%d" % n)
        fill.store.writer.roll()
        fill.put(b"last")

    class _StopError(Exception):
        pass

    def step(_size: int) -> None:
        if checker.checked.deliveries:
            raise _StopError

    with Store.open(path) as store:
        checker = Checker(store, CheckOptions(read_data=Sample(), step=step))
        with pytest.raises(_StopError):
            list(checker.run())
    assert (path / "jobs/check.json").exists()
    resumed = mailkeep("check", "--store", path, "--read-data", "--resume", "--json").objects[-1]
    assert (resumed["findings"], resumed["messages_read"], resumed["deliveries"]) == (0, 11, 11)
    assert not (path / "jobs/check.json").exists()


@pytest.mark.parametrize("command", ["check", "rebuild"])
def test_no_store(tmp_path: Path, command: str) -> None:
    assert mailkeep(command, "--store", tmp_path / "none").code == 11
    assert mailkeep(command).code == 2
