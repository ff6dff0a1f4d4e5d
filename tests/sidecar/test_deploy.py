"""What deploy/ offers works as it stands: the servers' own tools read it, and it says what the code says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.cli import COMMANDS
from sidecar.config import Config, all_keys, reloadable_keys
from sidecar.metric_table import LABEL_VALUES, PREFIX, TABLE
from sidecar.sections import (
    ImapConfig,
    LmtpConfig,
    MetricsConfig,
    MilterConfig,
    ReplicaConfig,
    RetentionConfig,
)

RULE = re.compile(r"(?m)^#(?=[\[#a-z])|^#$")
"""what stands before the lines of the rule that mailkeep.toml shows and does not have"""
DEPLOY = Path(__file__).parents[2] / "deploy"
SNIPPETS = ("postfix-lmtp.cf", "postfix-milter.cf", "postfix-both.cf")
SETTINGS = (*SNIPPETS, "mailkeep.toml", "mailkeep.service", "mailkeep.sysusers.conf", "dovecot-lmtp.conf",
            "dovecot-restore.conf", "dovecot-master.conf", "prometheus-scrape.yml",
            "prometheus-alerts.yml")  # fmt: skip


def run(tool: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A server's own tool. Without it the test is skipped on a developer's machine and fails in CI."""
    found = shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{tool} is not installed, and CI must not pass without this test")
        pytest.skip(f"NOT TESTED: {tool} is not installed")
    return subprocess.run([found, *arguments], capture_output=True, text=True, timeout=60, check=False)


def code(name: str) -> str:
    """A file without its comments and blank lines."""
    return "".join(
        f"{line}\n"
        for line in (DEPLOY / name).read_text().splitlines()
        if line and not line.lstrip().startswith("#")
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_each_file_says_what_it_is_where_it_goes_and_how_to_undo_it(name: str) -> None:
    opening = re.match(r"(#.*\n)+", (DEPLOY / name).read_text())
    assert opening is not None
    for word in ("# Goes ", "# To undo: "):
        assert word in opening[0]


def test_the_example_is_the_defaults() -> None:
    defaults = Config(lmtp=LmtpConfig(), milter=MilterConfig(), metrics=MetricsConfig(), imap=ImapConfig())
    assert Config.load(DEPLOY / "mailkeep.toml") == defaults
    with_rule = RULE.sub("", (DEPLOY / "mailkeep.toml").read_text())
    assert Config.parse(with_rule, "mailkeep.toml") == replace(
        defaults, retention=(RetentionConfig(),), replica=(ReplicaConfig(),)
    )


def test_the_example_shows_every_key_with_its_default_and_help() -> None:
    shown, section, comment = {}, "", ""
    for line in RULE.sub("", (DEPLOY / "mailkeep.toml").read_text()).splitlines():
        if line.startswith("#"):
            comment += line.removeprefix("# ")
        elif line.startswith("["):
            section, comment = line.strip("[]"), ""
        elif line:
            key, _, default = line.partition(" = ")
            shown[section, key] = (default, comment)
            comment = ""
    expected = {
        (key.section, key.key): (
            key.default,
            key.help + " [reload]" * ((key.section, key.key) in reloadable_keys()),
        )
        for key in all_keys()
    }
    assert shown == expected
    assert list(shown) == list(expected), "in the order of the code"


def test_the_service_is_hardened_and_comes_back() -> None:
    unit = code("mailkeep.service").splitlines()
    for line in (
        "Type=notify",
        "ExecStart=/opt/mailkeep/.venv/bin/mailkeep serve --config /etc/mailkeep/mailkeep.toml",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "Restart=always",
        "RestartSec=1",
        "TimeoutStopSec=45",
        "User=mailkeep",
        "StateDirectory=mailkeep",
        "StateDirectoryMode=0700",
        "RuntimeDirectory=mailkeep",
        "NoNewPrivileges=true",
        "ProtectSystem=strict",
        "ProtectHome=true",
        "PrivateTmp=true",
        "PrivateDevices=true",
        "MemoryDenyWriteExecute=true",
        "CapabilityBoundingSet=",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
        "SystemCallFilter=@system-service",
        "WantedBy=multi-user.target",
    ):
        assert line in unit
    assert any(line.startswith("LimitNOFILE=") for line in unit)
    assert any(line.startswith("WatchdogSec=") for line in unit)


def test_systemd_takes_the_service(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("NOT TESTED: systemd-analyze is not installed")
    unit = tmp_path / "mailkeep.service"
    # The program is not installed where the tests run; all else is as it is shipped.
    unit.write_text(
        re.sub("(?m)^ExecStart=.*", "ExecStart=/bin/true", (DEPLOY / "mailkeep.service").read_text())
    )
    checked = run("systemd-analyze", "verify", "--man=no", unit)
    assert "mailkeep.service" not in checked.stderr
    assert checked.returncode == 0, checked.stderr


def postconf(directory: Path, settings: str) -> subprocess.CompletedProcess[str]:
    """What Postfix makes of a main.cf; unknown parameters and bad syntax come as warnings."""
    (directory / "main.cf").write_text(f"compatibility_level = 3.6\n{settings}")
    (directory / "master.cf").write_text("smtp inet n - n - - smtpd\nlmtp unix - - n - - lmtp\n")
    return run("postconf", "-c", directory, "-n")


def test_postconf_tells_what_it_does_not_know(tmp_path: Path) -> None:
    assert (
        "unused parameter: lmtp_line_lenght_limit"
        in postconf(tmp_path, "lmtp_line_lenght_limit = 0\n").stderr
    )


@pytest.mark.parametrize("name", SNIPPETS)
def test_postfix_reads_the_snippets(name: str, tmp_path: Path) -> None:
    read = postconf(tmp_path, (DEPLOY / name).read_text())
    assert read.stderr == ""
    assert read.returncode == 0
    for line in code(name).splitlines():
        assert line in read.stdout.splitlines()


def test_the_addresses_are_those_of_the_defaults() -> None:
    lmtp, milter = LmtpConfig(), MilterConfig()
    for name in ("postfix-lmtp.cf", "postfix-both.cf"):
        assert f"virtual_transport = lmtp:inet:{lmtp.listen}\n" in code(name)
        assert "lmtp_line_length_limit = 0\n" in code(name)
        assert "lmtp_send_xforward_command = yes\n" in code(name)
    for name in ("postfix-milter.cf", "postfix-both.cf"):
        assert f"smtpd_milters = {{ {milter.listen}, default_action=tempfail, " in code(name)
        timeout = re.search("content_timeout=([0-9]+)s }", code(name))
        assert timeout is not None
        assert int(timeout[1]) > milter.commit_timeout_s
    assert f"- {MetricsConfig().listen}\n" in code("prometheus-scrape.yml")
    assert f"address = {lmtp.downstream.host}\n" in code("dovecot-lmtp.conf")
    assert f"port = {lmtp.downstream.port}\n" in code("dovecot-lmtp.conf")


def test_dovecot_reads_the_snippet(tmp_path: Path) -> None:
    config = tmp_path / "dovecot.conf"
    config.write_text(f"protocols = imap\n{(DEPLOY / 'dovecot-lmtp.conf').read_text()}")
    read = run("doveconf", "-n", "-c", config)
    if read.stdout.startswith("# 2.4"):
        pytest.skip("NOT TESTED: the snippet is for Dovecot 2.3")
    assert read.returncode == 0, read.stderr
    assert "protocols = imap lmtp" in read.stdout
    assert "inet_listener mailkeep {\n    address = 127.0.0.1\n    port = 24\n" in read.stdout


def test_dovecot_reads_the_master_user(tmp_path: Path) -> None:
    config = tmp_path / "dovecot.conf"
    config.write_text(f"protocols = imap\n{code('dovecot-master.conf')}")
    read = run("doveconf", "-n", "-c", config)
    assert read.returncode == 0, read.stderr
    assert "result_success = continue" in read.stdout


def test_dovecot_reads_the_listener_without_sieve(tmp_path: Path) -> None:
    config = tmp_path / "dovecot.conf"
    config.write_text(f"protocols = imap lmtp\n{code('dovecot-restore.conf')}")
    read = run("doveconf", "-n", "-c", config)
    if read.stdout.startswith("# 2.4"):
        pytest.skip("NOT TESTED: the snippet is for Dovecot 2.3")
    assert read.returncode == 0, read.stderr
    assert "executable = lmtp -o mail_plugins=quota\n" in read.stdout


SELECTOR = re.compile(r"\b((?:mailkeep|process|up)[a-z_]*)\b(?:\{([^}]*)\})?")
RULE_PARTS = ("expr", "labels", "severity", "annotations", "summary", "action")
_OF_THE_SCRAPE = {"job", "instance"}
_PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes"}


def unknown_in(expression: str) -> list[str]:
    """The metrics, labels and values in a Prometheus expression that mailkeep does not have."""
    specs = {PREFIX + spec.name: spec for spec in TABLE}
    unknown = []
    for name, selector in SELECTOR.findall(expression):
        spec = specs.get(re.sub("_(bucket|sum|count)$", "", name))
        if name != "up" and name not in _PROCESS and (spec is None or (name in specs) == bool(spec.bounds)):
            unknown.append(name)
        for label, value in re.findall(r'([a-z_]+)(?:!=|=~|=)"([^"]*)"', selector):
            if spec is not None and label in spec.labels:
                unknown += [] if value in LABEL_VALUES[label] else [f'{name}{{{label}="{value}"}}']
            elif label not in _OF_THE_SCRAPE:
                unknown.append(f"{name}{{{label}}}")
    by = {label for labels in re.findall(r"\bby \(([^)]*)\)", expression) for label in labels.split(", ")}
    return unknown + sorted(by - set(LABEL_VALUES) - {"le"} - _OF_THE_SCRAPE)


def test_what_is_unknown_is_seen() -> None:
    assert unknown_in("rate(mailkeep_captured_mail_total[5m])") == ["mailkeep_captured_mail_total"]
    assert unknown_in('mailkeep_job_running{job="chekc"}') == ['mailkeep_job_running{job="chekc"}']
    assert unknown_in('sum by (leek) (mailkeep_store_bytes{leg="lmtp"})') == [
        "mailkeep_store_bytes{leg}",
        "leek",
    ]
    assert unknown_in("mailkeep_commit_seconds > 1") == ["mailkeep_commit_seconds"]


def test_alerts_name_what_there_is_and_say_what_to_do() -> None:
    rules = code("prometheus-alerts.yml").split("      - alert: ")[1:]
    assert len(rules) == len({rule.split("\n")[0] for rule in rules}) > 10
    for rule in rules:
        parts = dict(re.findall(r"(?m)^ +([a-z]+):(?: (.*))?$", rule))
        assert set(RULE_PARTS) <= set(parts), rule
        assert parts["severity"] in {"page", "ticket"}
        assert all(parts[name] for name in ("expr", "summary", "action"))
        assert unknown_in(parts["expr"]) == [], rule
        for label in re.findall(r"\$labels\.([a-z]+)", rule):
            assert label in LABEL_VALUES
    readme = (DEPLOY.parent / "README.md").read_text()
    assert [name for rule in rules if f"`{(name := rule.split(chr(10))[0])}`" not in readme] == []
    commands = re.findall(r"`mailkeep ([a-z]+)", code("prometheus-alerts.yml"))
    assert set(commands) <= set(COMMANDS)


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.skip("NOT TESTED: promtool is not installed")
    return run("promtool", *arguments)


def test_promtool_takes_the_rules() -> None:
    checked = promtool("check", "rules", DEPLOY / "prometheus-alerts.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "rules found" in checked.stdout


QUIET_DAYS = """\
rule_files: [{rules}]
evaluation_interval: 10m
tests:
  - interval: 10m
    input_series:
      - {{series: 'up{{job="mailkeep", instance="a"}}', values: '1x500'}}
      - {{series: 'mailkeep_workers_running{{instance="a"}}', values: '1x500'}}
      - {{series: 'mailkeep_last_proven_restore_timestamp_seconds{{instance="a"}}', values: '1x500'}}
      - series: 'mailkeep_capture_failures_total{{instance="a", leg="lmtp", reason="full"}}'
        values: '0x500'
      - series: 'mailkeep_job_runs_total{{instance="a", job="check", result="failed"}}'
        values: '0x10 1x490'
    alert_rule_test:
      - {{eval_time: 40h, alertname: MailkeepRestoreNotProven}}
      - eval_time: 50h
        alertname: MailkeepRestoreNotProven
        exp_alerts: [{{exp_labels: {{severity: ticket, instance: a}}, exp_annotations: {proven}}}]
      - eval_time: 3h
        alertname: MailkeepJobFailed
        exp_alerts:
          - exp_labels: {{severity: ticket, instance: a, job: check, result: failed}}
            exp_annotations: {failed}
      - {{eval_time: 30h, alertname: MailkeepJobFailed}}
      - {{eval_time: 30h, alertname: MailkeepDown}}
      - {{eval_time: 30h, alertname: MailkeepNotReady}}
      - {{eval_time: 30h, alertname: MailkeepCaptureFailures}}
"""


def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    rules = DEPLOY / "prometheus-alerts.yml"

    def annotations(alert: str, **labels: str) -> str:
        rule = rules.read_text().split(f"alert: {alert}\n")[1]
        texts = dict(re.findall(r"(?m)^ +(summary|action): (.*)$", rule.split("- alert:")[0]))
        for name, value in labels.items():
            texts["summary"] = texts["summary"].replace(f"{{{{ $labels.{name} }}}}", value)
        return json.dumps(texts)  # which is YAML

    (tmp_path / "tests.yml").write_text(
        QUIET_DAYS.format(
            rules=rules,
            proven=annotations("MailkeepRestoreNotProven"),
            failed=annotations("MailkeepJobFailed", job="check"),
        )
    )
    tested = promtool("test", "rules", tmp_path / "tests.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_the_dashboard_shows_what_there_is() -> None:
    board = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    assert board["title"] == "mailkeep"
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 10
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    assert [unknown for text in expressions for unknown in unknown_in(text)] == []
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["targets"], panel["title"]
    shown = " ".join(expressions)
    for name in (
        "captured_messages_total",
        "capture_failures_total",
        "commit_seconds_bucket",
        "store_bytes",
        "stored_duplicate_bytes_total",
        "job_runs_total",
        "last_proven_restore_timestamp_seconds",
    ):
        assert f"mailkeep_{name}" in shown
