"""`mailkeep jobs` against a running `mailkeep serve`, and without one."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tests.support.service
from sidecar.commands.jobs import SUBCOMMANDS
from sidecar.config import Config, ConfigError, reloadable_changes, reloadable_keys
from sidecar.demo.ports import free_port, wait_until
from sidecar.metric_table import JOBS
from sidecar.sections import SchedulerConfig
from store.store import Store
from tests.support.mailstore import mailkeep, options_in_help
from tests.support.service import COMMAND
from tests.support.serving import Serving

README = (Path(__file__).parents[2] / "README.md").read_text()
WITH_JOBS = (sys.executable, str(Path(__file__).with_name("with_jobs.py")))
SECTION = '[scheduler]\ncompact = ""\nexpire = "@monthly"\ncheck = ""\nnice = 5\nbusy_latency = "10s"\n'


@pytest.fixture
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    monkeypatch.setattr(tests.support.service, "COMMAND", WITH_JOBS)
    serving = Serving(tmp_path, f"127.0.0.1:{free_port()}", SECTION)
    yield serving
    if serving.running:
        serving.kill()


def jobs(serving: Serving, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """As an operator runs it: the command as it is shipped."""
    return subprocess.run(
        [*COMMAND, "jobs", "--config", str(serving.config_file), *arguments],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip


def done(serving: Serving, *arguments: str) -> str:
    ran = jobs(serving, *arguments)
    assert ran.returncode == 0, ran.stderr.decode()
    return ran.stdout.decode()


def listed(serving: Serving) -> dict[str, dict[str, Any]]:
    return {line["kind"]: line for line in map(json.loads, done(serving, "--json").splitlines())}


def steps(serving: Serving) -> list[int]:
    path = serving.directory / "steps"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_list_and_run(serving: Serving) -> None:
    serving.start()
    assert wait_until(lambda: len(listed(serving)) == len(JOBS), timeout_s=60)
    found = listed(serving)
    assert (found["expire"]["state"], found["expire"]["schedule"]) == ("idle", "@monthly")
    assert found["expire"]["next"].endswith("Z")
    assert (found["compact"]["next"], found["compact"]["last"], found["compact"]["serving"]) == (
        None,
        None,
        True,
    )
    assert done(serving, "run", "compact", "--wait") == "compact: ok: nothing to give back \\x1b[31m\n"
    ran = jobs(serving, "run", "expire", "--wait", "--json")
    assert ran.returncode == 1
    assert json.loads(ran.stdout)["result"] == "failed"
    table = done(serving)
    assert re.search(r"(?m)^JOB +STATE +SCHEDULE +NEXT +LAST +TOOK +RESULT$", table)
    assert re.search(r"(?m)^compact +idle +on request +20.* ok: nothing to give back \\x1b\[31m$", table)
    assert re.search(r"(?m)^expire +idle +@monthly +20.* failed: \[Errno 5\] Input/output error$", table)
    assert re.search(r"(?m)^check +idle +on request +never$", table)
    counted = serving.metrics()
    assert counted['job_runs_total{job="compact",result="ok"}'] == 1
    assert counted['job_runs_total{job="expire",result="failed"}'] == 1
    assert counted['job_last_success_timestamp_seconds{job="compact"}'] > 1_700_000_000
    assert counted['job_last_success_timestamp_seconds{job="expire"}'] == 0
    assert serving.stop() == 0


def test_pause_restart_resume(serving: Serving) -> None:
    serving.start()
    assert done(serving, "run", "check") == "check: job 1\n"
    assert done(serving, "run", "check") == "check: job 1, which was asked for already\n"
    assert wait_until(lambda: len(steps(serving)) > 20, timeout_s=60)
    assert wait_until(lambda: "check: " in done(serving), timeout_s=60)
    running = listed(serving)["check"]["running"]
    assert (running["job"], running["total"], running["text"]) == (1, 1000, "steps")
    assert serving.metrics()['job_running{job="check"}'] == 1
    assert done(serving, "pause", "check") == "paused: check\n"
    assert wait_until(lambda: listed(serving)["check"]["state"] == "paused, waits", timeout_s=60)
    assert serving.stop() == 0
    stood = steps(serving)

    ran = jobs(serving)
    assert (ran.returncode, ran.stderr) == (0, b"serve is not running; this is how it left the jobs\n")
    assert re.search(r"(?m)^check +paused, waits ", ran.stdout.decode())
    for command in ("run", "cancel"):
        ran = jobs(serving, command, "check")
        assert (ran.returncode, ran.stdout) == (3, b"")
        assert b"serve is not running" in ran.stderr
    assert done(serving, "pause", "expire") == "paused: expire\n"

    serving.start()
    assert wait_until(lambda: serving.metrics()['job_paused{job="expire"}'] == 1, timeout_s=60)
    assert steps(serving) == stood
    assert done(serving, "resume", "all") == (
        "resumed: compact, expire, check, scrub, search, drill, witness, audit\n"
    )
    assert wait_until(lambda: len(steps(serving)) > len(stood), timeout_s=60)
    (serving.directory / "finish").touch()
    assert wait_until(lambda: listed(serving)["check"]["state"] == "idle", timeout_s=60)
    assert steps(serving) == list(range(1, len(steps(serving)) + 1)), "it went on where it was"
    assert serving.stop() == 0


def test_killed_in_the_middle(serving: Serving) -> None:
    serving.start()
    done(serving, "run", "check")
    assert wait_until(lambda: len(steps(serving)) > 5, timeout_s=60)
    serving.kill()
    assert listed(serving)["check"]["state"] == "interrupted"
    before = len(steps(serving))
    serving.start()
    assert wait_until(lambda: len(steps(serving)) > before, timeout_s=60)
    assert done(serving, "cancel", "check") == "1 cancelled\n"
    assert wait_until(lambda: listed(serving)["check"]["state"] == "idle", timeout_s=60)
    assert listed(serving)["check"]["last"]["text"] == "cancelled"
    assert jobs(serving, "cancel", "check").returncode == 1


def test_stopped_while_somebody_waits(serving: Serving) -> None:
    serving.start()
    waits = subprocess.Popen(
        [*COMMAND, "jobs", "run", "check", "--wait", "--store", serving.store],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert wait_until(lambda: len(steps(serving)) > 5, timeout_s=60)
    assert serving.stop() == 0, "a job keeps nobody from stopping"
    out, err = waits.communicate(timeout=60)
    assert (waits.returncode, out) == (3, b"")
    assert b"the service has ended before job 1" in err
    assert b"resumed" in err


def test_a_reload_takes_up_schedules(serving: Serving) -> None:
    serving.start()
    assert wait_until(lambda: len(listed(serving)) == len(JOBS), timeout_s=60)
    serving.config_file.write_text(serving.config_file.read_text().replace("@monthly", "every 2h"))
    serving.signal(signal.SIGHUP)
    assert wait_until(lambda: listed(serving)["expire"]["schedule"] == "every 2h", timeout_s=60)
    assert serving.stop() == 0


def test_wrong_usage_and_no_store(tmp_path: Path) -> None:
    ran = mailkeep("jobs", "--store", tmp_path / "none")
    assert (ran.code, ran.out) == (11, "")
    assert "there is no store at" in ran.err
    assert not (tmp_path / "none").exists()
    Store.open(tmp_path / "store", create=True).close()
    ran = mailkeep("jobs", "--store", tmp_path / "store")
    assert (ran.code, ran.out) == (0, "no jobs\n")
    assert mailkeep("jobs", "pause", "all", "--store", tmp_path / "store").code == 1
    assert mailkeep("jobs", "run", "check", "--store", tmp_path / "store", "--arg", "x").code == 2
    assert mailkeep("jobs", "run", "--store", tmp_path / "store").code == 2
    assert mailkeep("jobs", "dance").code == 2
    assert not (tmp_path / "store/jobs").exists(), "looking makes nothing"


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_help_of_each(name: str) -> None:
    assert [option for option in options_in_help("jobs", name) if option not in README] == []
    assert re.search(rf"(?m)^\$ mailkeep jobs {name} |# and {name} all", README)


def test_the_section() -> None:
    config = Config.parse('[lmtp]\n[scheduler]\nwindow = "22:00-06:00"\nio_rate = "20MiB"\ncheck = ""\n', "x")
    assert config.scheduler.io_rate_bytes == 20 << 20
    assert config.scheduler.busy_latency_s == 0.2
    keys = {key for section, key in reloadable_keys() if section == "scheduler"}
    assert len(keys) == len(SchedulerConfig.__dataclass_fields__)
    changes, restart = reloadable_changes(Config.parse("[lmtp]\n", "x"), config)
    assert set(changes) == {"scheduler.window", "scheduler.io_rate", "scheduler.check"}
    assert restart == []
    assert '[scheduler] window = "22:00-06:00"' in config.lines()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('window = "night"', "[scheduler] window: 'night' is not a window"),
        ('check = "at dawn"', "[scheduler] check: 'at dawn' is not a schedule"),
        ("nice = 20", "[scheduler] nice: 20 is not from 0 to 19"),
        ('io_class = "realtime"', "[scheduler] io_class: 'realtime' is none of"),
        ("chek = ''", "[scheduler] has no key chek; did you mean check?"),
    ],
)
def test_slips(line: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.parse(f"[lmtp]\n[scheduler]\n{line}\n", "mk.toml")
    assert told in str(caught.value)
